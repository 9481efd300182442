"""The file of the weights: mapped where nobody may write to it, read where somebody may, and shared with nobody who trains."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import Hub, tiny_model

import adaptergit
from adaptergit.errors import PackageError
from adaptergit.publish import publish
from adaptergit.resolve import fetch
from adaptergit.splice import adapters
from adaptergit.splice.tensorfile import read_tensors, write_tensors

maps = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is mapped")


@pytest.fixture
def release(hub: Hub, tmp_path: Path) -> tuple[str, Path]:
    """A reference to a release that is in the store, and its weights there."""
    torch.manual_seed(0)
    panel = adapters(tiny_model())
    panel.add("mood", "seq_bn")
    panel.save("mood", tmp_path / "mood", version="1.0.0", license="CC0-1.0")
    publish(tmp_path / "mood", clone=hub.clone, key=hub.key.path)
    hub.trust()
    reference = f"{hub.url}@mood==1.0.0"
    return reference, fetch(reference).path / "adapter.safetensors"


def is_mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text("utf-8")


@maps
def test_what_the_store_holds_is_mapped_and_training_changes_no_file(release: tuple[str, Path]) -> None:
    reference, weights = release
    before = hashlib.sha256(weights.read_bytes()).hexdigest()
    trained, other = (adapters(adaptergit.load(reference, tiny_model())) for _ in range(2))
    assert is_mapped(weights)
    theirs = {name: value.clone() for name, value in other.module("mood").state_dict().items()}
    trained.train("mood")
    optimiser = torch.optim.SGD(trained.module("mood").parameters(), lr=1.0)
    trained.model(torch.arange(8).reshape(1, 8)).last_hidden_state.sum().backward()
    optimiser.step()
    mine = trained.module("mood").state_dict()
    assert any(not torch.equal(mine[name], theirs[name]) for name in theirs)
    assert all(torch.equal(value, theirs[name]) for name, value in other.module("mood").state_dict().items())
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == before
    fetch(reference, offline=True)


@maps
def test_nothing_is_mapped_once_the_adapter_is_gone(release: tuple[str, Path]) -> None:
    reference, weights = release
    panel = adapters(adaptergit.load(reference, tiny_model()))
    panel.remove("mood")
    assert not is_mapped(weights)
    panel = adapters(adaptergit.load(reference, tiny_model(), dtype=torch.float64))  # a copy: nobody needs the file
    assert not is_mapped(weights)


def test_weights_that_somebody_may_write_to_are_read(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_tensors(path, {"a": torch.arange(4096.0)})
    found = read_tensors(path)
    with path.open("r+b") as stream:
        stream.write(bytes(path.stat().st_size))
    assert torch.equal(found["a"], torch.arange(4096.0))


@pytest.mark.parametrize("mode", [0o644, 0o444])
@pytest.mark.parametrize("blanks", range(0, 64, 8))
def test_wherever_a_header_ends_the_tensors_lie_well(tmp_path: Path, mode: int, blanks: int) -> None:
    path = tmp_path / "w.safetensors"
    tensors = {"a": torch.arange(48.0).reshape(3, 16), "b": torch.tensor(2.5), "c": torch.empty(0, 7)}
    raw = safetensors.torch.save(tensors)
    size = int.from_bytes(raw[:8], "little")
    path.write_bytes((size + blanks).to_bytes(8, "little") + raw[8 : 8 + size] + b" " * blanks + raw[8 + size :])
    path.chmod(mode)
    found = read_tensors(path, digest=hashlib.sha256(path.read_bytes()).hexdigest())
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)
        assert found[name].data_ptr() % 64 == 0
    with pytest.raises(PackageError, match="changed while"):
        read_tensors(path, digest="0" * 64)


def test_what_is_written_can_be_mapped_as_it_lies(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    for length in range(1, 40):
        write_tensors(path, {"n" * length: torch.arange(10.0)})
        assert (8 + int.from_bytes(path.read_bytes()[:8], "little")) % 64 == 0
        assert torch.equal(safetensors.torch.load_file(path)["n" * length], torch.arange(10.0))
