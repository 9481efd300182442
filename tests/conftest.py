"""Small real things to test with: a home of one's own, keys made by ssh-keygen, packages, a git server, tiny models."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from posix_only import needs_posix

from adaptergit.git import GitServer
from adaptergit.package import Card
from adaptergit.pins import pin_key
from adaptergit.trust import SigningKey, generate_key

GOLDEN = Path(__file__).parent / "assets" / "golden"
FINGERPRINT = "fp1:2x32:" + "0" * 32 + ":"

# CI must say the same twice; at a person's desk the property tests keep looking for what nobody thought of.
hypothesis.settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # one process a core: threads of theirs would only wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out, where that is not POSIX, what only POSIX has."""
    if os.name == "posix" and "ADAPTERGIT_TEST_WITHOUT_POSIX" not in os.environ:
        return
    for item in items:
        if isinstance(item, pytest.Function) and needs_posix(item):
            item.add_marker(pytest.mark.skip(reason="needs POSIX"))


def card_data(**changes: Any) -> dict[str, Any]:
    return {
        "name": "sst2",
        "version": "1.0.0",
        "description": "A test.",
        "task": {"type": "text-classification"},
        "base_model": {"id": "acme/tiny", "model_type": "bert", "fingerprint": FINGERPRINT},
        "adapter": {"format": "adaptergit", "method": "seq_bn", "config": {}},
        "license": "Apache-2.0",
    } | changes


def tensor_file(content: bytes) -> bytes:
    """A safetensors file that ends with these bytes."""
    import numpy
    from safetensors.numpy import save

    return save({"blocks.0.ffn.down.weight": numpy.frombuffer(content, dtype=numpy.uint8)})


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has its own settings, pins, keys and store."""
    home = tmp_path / "home"
    home.mkdir()
    for name in [n for n in os.environ if n.startswith(("GIT_", "ADAPTERGIT_", "XDG_"))]:
        monkeypatch.delenv(name)
    for name in ("HOME", "USERPROFILE"):  # Windows looks at the latter, and its git at both
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("ADAPTERGIT_CONFIG_DIR", str(home / "config"))
    monkeypatch.setenv("ADAPTERGIT_CACHE_DIR", str(home / "cache"))
    (home / ".gitconfig").write_text("[user]\nname = Test\nemail = test@example.org\n[init]\ndefaultBranch = main\n")
    return home


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers, whatever ran before it in its process."""
    random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return generate_key(tmp_path_factory.mktemp("keys") / "publisher")


@pytest.fixture(scope="session")
def other_key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return generate_key(tmp_path_factory.mktemp("keys") / "other")


@pytest.fixture
def source(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder to publish: a card and some weights."""

    def make(weights: bytes = b"w" * 5000, folder: str = "out", **changes: Any) -> Path:
        path = tmp_path / folder
        path.mkdir(parents=True, exist_ok=True)
        (path / "card.yaml").write_bytes(Card(card_data(**changes)).to_yaml())
        (path / "adapter.safetensors").write_bytes(tensor_file(weights))
        return path

    return make


@dataclass
class Hub:
    """A bare repository on a git server, and a publisher's clone of it."""

    server: GitServer
    url: str
    bare: Path
    clone: Path
    key: SigningKey

    def git(self, *argv: str, where: Path | None = None) -> str:
        return git(where or self.clone, *argv)

    def trust(self) -> None:
        pin_key("127.0.0.1/acme/adapters", self.key.public.line)


def git(where: Path, *argv: str, stdin: str | None = None) -> str:
    done = subprocess.run(["git", "-C", str(where), *argv], input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def hub(tmp_path: Path, home: Path, key: SigningKey) -> Iterator[Hub]:
    root = tmp_path / "server"
    root.mkdir()
    with GitServer(root) as server:
        url = server.create("acme/adapters")
        clone = tmp_path / "clone"
        subprocess.run(["git", "clone", "-q", url, str(clone)], check=True, capture_output=True)
        yield Hub(server, url, root / "acme" / "adapters.git", clone, key)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 kB, where root may make one."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small file system here")
    yield small
    subprocess.run(["umount", str(small)], check=True)


@contextmanager
def machine_of(who: str) -> Iterator[None]:
    """Be on somebody else's machine: with settings, pins and a store of its own."""
    before = {name: os.environ[name] for name in ("ADAPTERGIT_CONFIG_DIR", "ADAPTERGIT_CACHE_DIR")}
    os.environ |= {name: str(Path(value).parent / who / Path(value).name) for name, value in before.items()}
    try:
        yield
    finally:
        os.environ |= before


def push_as_it_is(hub: Hub, data: bytes, *signers: SigningKey) -> None:
    """Push a rotation that the command would not make."""
    from adaptergit.git import Clone
    from adaptergit.trust import ROTATION, ROTATION_NAMESPACE, SignedRotation, sign

    clone, folder = Clone.at(hub.clone), Path(tempfile.mkdtemp(dir=hub.clone.parent))
    (folder / ROTATION).write_bytes(data)
    for number, one in enumerate(signers):
        (folder / f"{ROTATION}.{number}.sig").write_bytes(sign(data, one, namespace=ROTATION_NAMESPACE))
    oids = clone.store_files({path.name: path for path in folder.iterdir()})
    commit = clone.commit(clone.make_tree(("100644", "blob", oid, one) for one, oid in oids.items()), "rotate", ())
    hub.git("push", "-qf", "origin", f"{commit}:refs/tags/adapters-rotations/{SignedRotation(data, {}).mark}")


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes, but for locks, to compare before and after."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.parent.name.endswith("locks"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def tiny_model(name: str = "bert", auto: str = "AutoModel") -> Any:
    import transformers

    return getattr(transformers, auto).from_pretrained(GOLDEN / "bases" / name, attn_implementation="eager").eval()
