"""What is shipped: schemas and template, in a wheel and in an editable install."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

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


@pytest.mark.slow
def test_a_wheel_finds_them_too(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    target = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(target)
    assert (target / "adaptergit" / "py.typed").exists()
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import adaptergit\n"
        "from adaptergit.resources import resource; from adaptergit.package import schemas\n"
        "assert adaptergit.__file__.startswith(sys.argv[1]), adaptergit.__file__\n"
        f"assert all(str(resource(n)).startswith(sys.argv[1]) for n in {SHIPPED})\n"
        "assert schemas.problems('card', {})"
    )
    subprocess.run([sys.executable, "-I", "-c", script, str(target)], check=True, cwd=tmp_path)


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
