"""Files of an archive that nobody signed: found in an index, and loaded by whoever pins exactly these bytes."""

from __future__ import annotations

import hashlib
import pickle
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOLDEN, snapshot
from golden import base_model, read
from safetensors.torch import load_file
from test_index import Index, make_index

import adaptergit
from adaptergit.errors import AdaptergitError, NotFoundError, PackageError, TrustError
from adaptergit.index.adapterhub import import_adapterhub
from adaptergit.index.repository import replace as write
from adaptergit.splice import adapters
from adaptergit.trust import Revocation, generate_key

CASE = "bert__head_classification"
CHECKPOINT = GOLDEN / "public" / CASE / "checkpoint" / "a"
CARD = """
author: Ada
config: {{using: pfeiffer}}
default_version: '1'
description: Sentiment.
files:
  - {{sha1: x, sha256: {sha256}, url: "{url}", version: '1'}}
model_name: bert-base-uncased
subtask: sst-2
task: sentiment
type: text_task
"""


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("evil"),))


@dataclass
class Archive:
    index: Index
    files: Path
    digest: str = ""

    @property
    def reference(self) -> str:
        return f"adapter-hub/Hub@ukp-sst==1#sha256:{self.digest}"

    def serve(self, data: bytes) -> None:
        """List a file, as the archive of the time did, and serve it."""
        (self.files / "sst.zip").write_bytes(data)
        self.digest = hashlib.sha256(data).hexdigest()
        clone = self.files.parent / "Hub"
        card = CARD.format(sha256=self.digest, url=f"{self.index.forge.url}/files/sst.zip")
        write(clone / "adapters/ukp/sst.yaml", card.encode())
        import_adapterhub(self.index.repository, clone)
        self.index.publish()


def zipped(folder: Path, *, evil: bool = False) -> bytes:
    """As AdapterHub served them: a zip file with pickled weights."""
    made = folder / "checkpoint"
    shutil.copytree(CHECKPOINT, made)
    torch.save(load_file(made / "adapter.safetensors"), made / "pytorch_adapter.bin")
    (made / "adapter.safetensors").unlink()
    if evil:
        (made / "pytorch_adapter.bin").write_bytes(pickle.dumps({"a": Evil()}))
    with zipfile.ZipFile(folder / "made.zip", "w") as archive:
        for path in sorted(made.iterdir()):
            archive.write(path, path.name)
    return (folder / "made.zip").read_bytes()


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    people = [generate_key(tmp_path / "keys" / name) for name in ("alice", "bob", "carol", "online", "mallory")]
    for index in make_index(tmp_path / "index", people):
        (index.dist / "files").mkdir()
        made = Archive(index, index.dist / "files")
        made.serve(zipped(tmp_path))
        index.user()
        yield made


def states(model: Any) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in adapters(model).spliced("a").parts.state_dict().items()}


@pytest.mark.slow
def test_whoever_pins_the_file_gets_what_is_in_it(archive: Archive, home: Path) -> None:
    model = base_model(read(CASE))
    adaptergit.load(CHECKPOINT, model)
    direct = states(model)
    adapters(model).detach()
    assert adaptergit.load(archive.reference, model, policy="digest") is model
    assert adapters(model).active is not None
    assert direct.keys() == states(model).keys()
    assert all(torch.equal(direct[key], value) for key, value in states(model).items())
    # Fetched once, and then without a network.
    adapters(model).detach()
    archive.index.forge.asked.clear()
    adaptergit.load(archive.reference, model, policy="digest", offline=True)
    assert archive.index.forge.asked == []


@pytest.mark.slow
def test_the_base_model_is_the_one_that_the_archive_names(archive: Archive, home: Path) -> None:
    (home / "config").mkdir(exist_ok=True)
    bert = GOLDEN / "bases" / "bert"
    (home / "config" / "config.toml").write_text(
        f'[base_models]\n"bert-base-uncased" = "{bert}"\n[[policy]]\nmatch = "github.com/adapter-hub/*"\nlevel = "digest"\n'
    )
    model = adaptergit.load(archive.reference)
    assert adapters(model).names == ["a"]


@pytest.mark.parametrize(
    ("change", "policy", "error", "message"),
    [
        (lambda a: a.reference, None, NotFoundError, "nobody signed"),
        (lambda a: a.reference, "enforce", NotFoundError, "nobody signed"),
        (lambda a: a.reference, "tofu", NotFoundError, "nobody signed"),
        (lambda a: a.reference, "unsigned", NotFoundError, "nobody signed"),
        (lambda a: a.reference.partition("#")[0], "digest", NotFoundError, "nobody signed"),
        (lambda a: a.reference.replace(a.digest, "0" * 64), "digest", TrustError, "not listed"),
        (lambda a: a.reference.replace("==1", "==2"), "digest", TrustError, "not listed"),
    ],
)
def test_nothing_less_than_the_digest_loads_it(
    archive: Archive, change: Any, policy: str | None, error: type[AdaptergitError], message: str, home: Path
) -> None:
    model = base_model(read(CASE))
    before = snapshot(home)
    with pytest.raises(error, match=message):
        adaptergit.load(change(archive), model, policy=policy)
    assert getattr(model, "adaptergit", None) is None
    assert snapshot(home) == before


def test_the_refusal_says_how_it_is_loaded(archive: Archive) -> None:
    with pytest.raises(NotFoundError) as caught:
        adaptergit.fetch("adapter-hub/Hub@ukp-sst")
    assert archive.digest in str(caught.value.hint)
    assert 'policy="digest"' in str(caught.value.hint)


def test_another_file_than_the_one_that_is_listed_is_refused(archive: Archive, home: Path) -> None:
    (archive.files / "sst.zip").write_bytes(b"something else")
    model = base_model(read(CASE))
    with pytest.raises(TrustError, match="you pinned"):
        adaptergit.load(archive.reference, model, policy="digest")
    assert getattr(model, "adaptergit", None) is None
    assert list((home / "cache" / "legacy").iterdir()) == []
    with pytest.raises(NotFoundError, match="offline"):
        adaptergit.load(archive.reference, model, policy="digest", offline=True)


@pytest.mark.slow
def test_a_file_that_was_damaged_here_is_fetched_again(archive: Archive, home: Path) -> None:
    model = base_model(read(CASE))
    adaptergit.load(archive.reference, model, policy="digest")
    adapters(model).detach()
    (home / "cache" / "legacy" / f"{archive.digest}.zip").write_bytes(b"damaged")
    adaptergit.load(archive.reference, model, policy="digest")
    assert adapters(model).names == ["a"]


@pytest.mark.slow
def test_a_pickle_that_is_a_program_does_not_run(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil-zip").mkdir()
    archive.serve(zipped(tmp_path / "evil-zip", evil=True))
    from adaptergit.indexes import client
    from adaptergit.settings import load_settings

    client(load_settings()).update("community")
    with pytest.raises(PackageError, match="pickle"):
        adaptergit.load(archive.reference, base_model(read(CASE)), policy="digest")
    assert not (tmp_path / "evil").exists()


def test_a_file_that_the_index_revoked_is_refused(archive: Archive) -> None:
    from adaptergit.indexes import client
    from adaptergit.settings import load_settings

    archive.index.repository.revoke(Revocation(None, archive.digest, None, "refuse", "poisoned", "revoked.jsonl"))
    archive.index.publish()
    client(load_settings()).update("community")
    with pytest.raises(TrustError, match="poisoned"):
        adaptergit.load(archive.reference, base_model(read(CASE)), policy="digest")


@pytest.mark.slow
def test_it_is_converted_when_the_pickle_is_allowed_by_name(archive: Archive, tmp_path: Path) -> None:
    model = base_model(read(CASE))
    options: dict[str, Any] = {"to": "adaptergit", "base": model, "policy": "digest"}
    with pytest.raises(PackageError):
        adaptergit.convert(archive.reference, tmp_path / "no", **options)
    adaptergit.convert(archive.reference, tmp_path / "ours", **options, allow_pickle=True)
    adapters(model).detach()
    adaptergit.load(tmp_path / "ours", model, name="a")
    assert adapters(model).names == ["a"]
