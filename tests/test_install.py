"""What is shipped: schemas and template, in a wheel and in an editable install."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import adaptergit
from adaptergit.resources import resource

ROOT = Path(__file__).parent.parent
SHIPPED = [
    "schema/card.schema.json",
    "schema/manifest.schema.json",
    "schema/index.schema.json",
    "schema/source.schema.json",
    "index_repo_template/README.md",
    "index_repo_template/.github/workflows/check.yml",
]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_are_found_here(name: str) -> None:
    assert resource(name).read_bytes() == (ROOT / name).read_bytes()


@pytest.mark.parametrize("path", sorted((ROOT / "schema").glob("*.json")), ids=lambda p: p.name)
def test_every_schema_is_valid_and_closed(path: Path) -> None:
    schema = json.loads(path.read_text())
    Draft202012Validator.check_schema(schema)
    assert schema["additionalProperties"] is False


BROUGHT = {"deepspeed": "whoever names its configuration has it"}


@pytest.mark.slow
def test_whatever_is_imported_is_declared() -> None:
    """What comes with something else today is missing when that changes its mind."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = [*project["dependencies"], *(one for name in ("train", "serve", "demo") for one in extras[name])]
    names = {canonicalize_name(Requirement(one).name) for one in declared}
    imported: dict[str, str] = {}
    for path in (ROOT / "adaptergit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0]: path.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported[str(node.module).partition(".")[0]] = path.name
    theirs = imported.keys() - sys.stdlib_module_names - {"adaptergit"} - BROUGHT.keys()
    known = packages_distributions()
    missing = {one: imported[one] for one in theirs if not names & {*map(canonicalize_name, known.get(one, ()))}}
    assert missing == {}


@pytest.mark.slow
def test_a_wheel_finds_them_too(tmp_path: Path) -> None:
    wheel = built(ROOT, tmp_path, "--wheel")
    target = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(target)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import adaptergit\n"
        "from adaptergit.resources import resource; from adaptergit.package import schemas\n"
        "assert adaptergit.__file__.startswith(sys.argv[1]), adaptergit.__file__\n"
        f"assert all(str(resource(n)).startswith(sys.argv[1]) for n in {SHIPPED})\n"
        "assert schemas.problems('card', {})"
    )
    subprocess.run([sys.executable, "-I", "-c", script, str(target)], check=True, cwd=tmp_path)


MAKE = """
import sys, adaptergit, transformers
panel = adaptergit.adapters(transformers.AutoModel.from_pretrained(sys.argv[1]))
panel.add("a", "seq_bn")
panel.save("a", "out", name="a", description="Anything.", license="MIT", task={"id": "text-classification"})
"""


@pytest.mark.slow
def test_pipx_installs_the_wheel_in_an_empty_environment(tmp_path: Path) -> None:
    """With what it declares and nothing else, it makes, publishes and loads an adapter."""
    wheel = built(ROOT, tmp_path / "dist", "--wheel")
    settings = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "XDG_CONFIG", "SSL_"))}
    who = {f"GIT_{role}_{key}": f"me@{role}.example" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    place = {"PIPX_HOME": str(tmp_path / "pipx"), "PIPX_BIN_DIR": str(tmp_path / "bin"), "HOME": str(tmp_path)}
    environment = {**settings, **who, **place, "PATH": f"{tmp_path / 'bin'}:/usr/local/bin:/usr/bin:/bin"}

    def run(*argv: str) -> str:
        done = subprocess.run(argv, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    versions = f"--constraint {ROOT / 'constraints.txt'}"
    run(sys.executable, "-m", "pipx", "install", "--pip-args", versions, str(wheel))
    assert run("adaptergit", "--version") == f"adaptergit, version {adaptergit.__version__}\n"
    python = tmp_path / "pipx" / "venvs" / "adaptergit" / "bin" / "python"
    run(str(python), "-c", MAKE, str(Path(__file__).parent / "assets" / "golden" / "bases" / "bert"))
    run("git", "init", "-q", "--bare", "-b", "main", "there.git")
    run("git", "clone", "-q", "there.git", "clone")
    key = json.loads(run("adaptergit", "keygen", "--json"))["public_key"]
    run("adaptergit", "trust", "add", "example.org/me/adapters", key)
    told = ["--repo", "clone", "--repository", "example.org/me/adapters"]
    run("adaptergit", "publish", "out", "--version", "1.0.0", *told)
    found = run("adaptergit", "load", f"file://{tmp_path / 'there.git'}@a", "--json")
    assert json.loads(found)["card"]["name"] == "a"


@pytest.mark.slow
def test_everybody_builds_the_same_bytes(tmp_path: Path) -> None:
    """What the release workflow does, in two places, at two times, by people with other habits."""
    here = checkout(tmp_path / "a", modified=1_600_000_000, mode=0o644)
    there = checkout(tmp_path / "somewhere" / "else" / "b", modified=1_700_000_000, mode=0o600)
    (there / "adaptergit" / "__pycache__").mkdir()
    (there / "adaptergit" / "__pycache__" / "left.cpython-311.pyc").write_bytes(b"of an earlier run")
    first, second = built(here, tmp_path / "1"), built(there, tmp_path / "2")
    assert second.read_bytes() == first.read_bytes()
    (source, other) = (next((tmp_path / name).glob("*.tar.gz")) for name in "12")
    assert other.read_bytes() == source.read_bytes()
    direct = built(here, tmp_path / "3", "--wheel")
    assert direct.read_bytes() == first.read_bytes(), "the wheel made from the sdist is another one than the tree's"


@pytest.mark.slow
def test_a_wheel_holds_what_is_tracked_and_the_code_asks_for(tmp_path: Path) -> None:
    tree = checkout(tmp_path / "tree")
    names = set(zipfile.ZipFile(built(tree, tmp_path / "out", "--wheel")).namelist())
    data = {name for name in tracked() if name.startswith(("schema/", "index_repo_template/"))}
    code = {name for name in tracked() if name.startswith("adaptergit/")}
    assert {name for name in names if ".dist-info/" not in name} == code | {f"adaptergit/_data/{name}" for name in data}
    assert "adaptergit/py.typed" in names
    assert "index_repo_template/.gitlab-ci.yml" in data


def built(tree: Path, out: Path, *options: str) -> Path:
    """Build as a release is built, and return the wheel."""
    argv = [sys.executable, "-m", "build", "--no-isolation", *options, "--outdir", str(out), str(tree)]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1750000000"}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name]


def checkout(folder: Path, *, modified: int = 0, mode: int = 0o644) -> Path:
    """Copy what is tracked, as it is now, to another place and time."""
    for name in tracked():
        copy = folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((ROOT / name).read_bytes())
        copy.chmod(mode | (ROOT / name).stat().st_mode & 0o100)
        os.utime(copy, (modified, modified))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("first", ["load", "publish", "resolve", "search", "rotate", "lock", "mirror", "export"])
def test_functions_are_not_hidden_by_the_modules_they_live_in(first: str) -> None:
    script = f"import adaptergit.{first}, adaptergit\nassert all(callable(getattr(adaptergit, n)) for n in adaptergit.__all__[1:] if n[0] != '_')"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_public_surface_is_what_it_says() -> None:
    for name in adaptergit.__all__:
        assert getattr(adaptergit, name) is not None
    assert set(dir(adaptergit)) == set(adaptergit.__all__)
    with pytest.raises(AttributeError):
        adaptergit.nonsense  # noqa: B018
