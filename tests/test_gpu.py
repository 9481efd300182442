"""On CUDA: loading, splicing, every method, mixed batches, bfloat16 and torch.compile. Skipped where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model
from test_methods import EVERY, fits, noisy
from torch import nn

import adaptergit
from adaptergit.splice import ClassificationHead, adapters

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def ids(rows: int = 3) -> torch.Tensor:
    return torch.randint(5, 60, (rows, 7), generator=torch.Generator().manual_seed(1)).to(DEVICE)


def hidden(model: nn.Module, rows: int = 3) -> torch.Tensor:
    with torch.no_grad():
        return model(ids(rows))[0]


def with_noise(name: str, *configs: str) -> tuple[nn.Module, Any]:
    model = tiny_model(name)
    panel = adapters(model)
    for number, config in enumerate(configs):
        torch.manual_seed(number)
        panel.add(f"a{number}", config)
        noisy(panel, f"a{number}")
    return model, panel


@pytest.fixture(autouse=True)
def exact() -> Any:
    """TF32 rounds to ten bits, and the tests compare with the CPU's numbers."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def test_an_adapter_is_loaded_to_where_the_model_is(tmp_path: Path) -> None:
    model, panel = with_noise("bert", "seq_bn[reduction_factor=4]")
    panel.add_head("a0", ClassificationHead(num_labels=3, labels=("x", "y", "z")))
    panel.activate("a0")
    with torch.no_grad():
        expected = model(ids().cpu()).logits
    panel.save("a0", tmp_path / "a")
    other = tiny_model().to(DEVICE)
    adaptergit.load(tmp_path / "a", other)
    assert {p.device.type for p in other.parameters()} == {DEVICE}
    with torch.no_grad():
        assert torch.allclose(other(ids()).logits.cpu(), expected, atol=1e-4)


def test_adapters_move_with_the_model() -> None:
    model, panel = with_noise("bert", "double_seq_bn[reduction_factor=4]", "lora")
    panel.active = "Stack(a0, a1)"
    expected = model(ids().cpu())[0]
    model.to(DEVICE)
    assert torch.allclose(hidden(model).cpu(), expected, atol=1e-4)
    model.to("cpu")
    assert torch.allclose(model(ids().cpu())[0], expected, atol=1e-6)


def test_detaching_gives_the_model_back_bit_for_bit() -> None:
    model = tiny_model().to(DEVICE)
    before = hidden(model)
    panel = adapters(model)
    panel.add("a", "double_seq_bn")
    noisy(panel, "a")
    panel.active = "a"
    assert not torch.equal(hidden(model), before)
    panel.detach()
    assert torch.equal(hidden(model), before)


@pytest.mark.parametrize("config", EVERY)
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_every_method_runs_forward_and_backward(name: str, config: str) -> None:
    if not fits(name, config):
        pytest.skip("not defined for a part of a fused layer")
    model, panel = with_noise(name, config)
    panel.active = "a0"
    with torch.no_grad():
        expected = model(ids().cpu())[0]
    model.to(DEVICE)
    assert torch.allclose(hidden(model).cpu(), expected, atol=1e-3, rtol=1e-3)
    panel.train("a0")
    model.eval()
    model(ids())[0].pow(2).mean().backward()
    trained = {key: p for key, p in panel.module("a0").named_parameters() if p.requires_grad}
    assert trained
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in trained.values())


@pytest.mark.parametrize("config", EVERY)
def test_every_method_runs_in_bfloat16(config: str) -> None:
    model = tiny_model("llama").to(DEVICE, torch.bfloat16)
    panel = adapters(model)
    panel.add("a", config)
    panel.active = "a"
    found = hidden(model)
    assert found.dtype == torch.bfloat16
    assert bool(found.isfinite().all())


@pytest.mark.parametrize("config", ["seq_bn[reduction_factor=4]", "lora[r=2]"])
@pytest.mark.parametrize("rows", [8, 32, 128, 256])
def test_every_row_of_a_mixed_batch_sees_its_own_adapter(rows: int, config: str) -> None:
    model, panel = with_noise("bert", *[config] * 8)
    model.to(DEVICE)
    chosen = [None if row % 9 == 8 else f"a{row % 9}" for row in range(rows)]
    panel.route(chosen)
    mixed = hidden(model, rows)
    for name in set(chosen):
        panel.active = name
        alone = hidden(model, rows)
        own = [row for row in range(rows) if chosen[row] == name]
        assert torch.allclose(mixed[own], alone[own], atol=1e-4), name


@pytest.mark.parametrize("rows", [8, 64, 256])
def test_as_many_adapters_as_rows(rows: int) -> None:
    model, panel = with_noise("bert", *["seq_bn[reduction_factor=8]"] * rows)
    model.to(DEVICE)
    panel.route([f"a{row}" for row in range(rows)])
    mixed = hidden(model, rows)
    for row in range(0, rows, max(1, rows // 8)):
        panel.active = f"a{row}"
        assert torch.allclose(mixed[row], hidden(model, rows)[row], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["a0", "a1", "Stack(a0, a1)", "BatchSplit(a0, a1, batch_sizes=[1, 2])"])
def test_a_compiled_model_gives_the_same_numbers(text: str) -> None:
    model, panel = with_noise("bert", "seq_bn[reduction_factor=4]", "lora[r=2]")
    model.to(DEVICE)
    panel.active = text
    expected = hidden(model)
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(compiled(ids())[0], expected, atol=1e-4)


def test_merging_is_undone_bit_for_bit() -> None:
    model, panel = with_noise("bert", "lora[r=2]")
    model.to(DEVICE)
    before = hidden(model)
    panel.active = "a0"
    adapted = hidden(model)
    panel.merge("a0")
    assert torch.allclose(hidden(model), adapted, atol=1e-4)
    panel.unmerge("a0")
    assert torch.equal(hidden(model), before)
