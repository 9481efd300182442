"""Adapters spliced into every architecture of the zoo: tiny configurations, one file each.

Anatomy is found; a zero adapter is the identity; a random one changes the output; gradients reach exactly the adapter's
parameters; detach gives the model back bit for bit.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from adaptergit.errors import AdaptergitError, ModelError
from adaptergit.splice import Bottleneck, LoRA, adapters

_SHARED = Path(__file__).parent.parent.parent / "shared" / "zoo"
_SMALL = Path(__file__).parent / "assets" / "zoo"
ZOO = Path(os.environ.get("ADAPTERGIT_ZOO", _SHARED if _SHARED.is_dir() else _SMALL))
FILES = sorted(path.stem for path in ZOO.glob("*.json"))
# Why no adapter is spliced in: nothing in these is added to a residual stream by itself.
WITHOUT_BRANCHES = {
    "deepseek_v4": "hyper-connections mix several streams by a matrix",
    "qwen4_exp": "hyper-connections mix several streams by a matrix",
    "qwen4_exp_text": "hyper-connections mix several streams by a matrix",
}
# Reversible layers compute their own gradients, for the parameters they know; xLSTM changes tensors in place, and has
# no gradients without adapters either.
WITHOUT_GRADIENTS = {"reformer", "xlstm"}
# No linear layer has a role that LoRA, IA3 and VeRA know (experts of one tensor, einsum, convolutions, state spaces).
WITHOUT_ROLES = {"jetmoe", "mamba", "mamba2", "poolformer", "swiftformer", "xlnet", "xlstm"}
# Attentions that take no prefix, and are refused.
WITHOUT_PREFIX = {
    "bailing_hybrid": "heads of this attention are not known",
    "diffllama": "computed more than once",
    "gemma4_text": "attentions of one size",
    "gemma4_unified_text": "attentions of one size",
    "mimo_v2_flash": "attentions of one size",
}
EVERYWHERE = Bottleneck(
    mh_adapter=True, output_adapter=True, cross_adapter=True, reduction_factor=8, non_linearity="relu"
)
EVERY_MATRIX = LoRA(intermediate_lora=True, output_lora=True, attn_matrices=("q", "k", "v"))
pytestmark = pytest.mark.slow


def build(name: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    record = json.loads((ZOO / f"{name}.json").read_text())
    torch.manual_seed(0)
    try:
        config = transformers.AutoConfig.for_model(record["model_type"], **record["config"])
    except ValueError as error:
        pytest.skip(f"transformers {transformers.__version__} does not know {name}: {error}"[:120])
    try:
        model = getattr(transformers, record["auto_class"]).from_config(config).eval()
        with torch.no_grad():
            model(**{key: made(spec) for key, spec in record["inputs"].items()})
    except Exception as error:  # the configurations were made for transformers 5
        if transformers.__version__ >= "5":
            raise
        pytest.skip(f"transformers {transformers.__version__} cannot run {name}: {error}"[:120])
    return model, {key: made(spec) for key, spec in record["inputs"].items()}


def made(spec: dict[str, Any]) -> torch.Tensor:
    shape = [2 if size == "B" else size for size in spec["shape"]]
    kinds = {
        "ids": lambda: torch.randint(5, 90, shape),
        "float": lambda: torch.randn(shape),
        "ones": lambda: torch.ones(shape, dtype=torch.long),
        "zeros": lambda: torch.zeros(shape, dtype=torch.long),
    }
    return kinds[spec["kind"]]()


def outputs(model: nn.Module, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    torch.manual_seed(1)  # some models draw noise in evaluation too
    result = model(**inputs)
    return [value for value in result.values() if isinstance(value, torch.Tensor) and value.is_floating_point()]


def fill(module: nn.Module, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


@pytest.mark.parametrize("name", FILES)
def test_zoo(name: str) -> None:
    model, inputs = build(name)
    with torch.no_grad():
        before = outputs(model, inputs)
    if name in WITHOUT_BRANCHES:
        with pytest.raises(AdaptergitError):
            adapters(model, inputs=inputs)
        return
    panel = adapters(model, inputs=inputs)
    panel.add("a", EVERYWHERE)
    assert panel.anatomy.blocks >= 1
    assert {site.key for site in panel.anatomy.sites} == {place.key for place in panel.spliced("a").parts.places}
    panel.activate("a")
    fill(panel.module("a"), 0.0)
    with torch.no_grad():
        for found, expected in zip(outputs(model, inputs), before, strict=True):
            assert torch.allclose(found, expected, atol=1e-5, rtol=1e-4), "a zero adapter is the identity"
    fill(panel.module("a"), 0.5)
    with torch.no_grad():
        assert any(
            not torch.allclose(found, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))
            for found, expected in zip(outputs(model, inputs), before, strict=True)
        ), "a random adapter changes the output"
    if name not in WITHOUT_GRADIENTS:
        gradients(model, panel, inputs)
    if name in WITHOUT_ROLES:
        assert not panel.host.projections
    else:
        low_rank(model, panel, inputs, before)
    prefix(model, panel, inputs, before, WITHOUT_PREFIX.get(name))
    panel.detach()
    with torch.no_grad():
        for found, expected in zip(outputs(model, inputs), before, strict=True):
            assert torch.equal(found, expected), "detach gives the model back bit for bit"


def low_rank(model: nn.Module, panel: Any, inputs: dict[str, torch.Tensor], before: list[torch.Tensor]) -> None:
    """LoRA, wherever there are linear layers whose role is known."""
    model.eval()
    panel.add("l", EVERY_MATRIX)
    panel.activate("l")
    with torch.no_grad():
        for found, expected in zip(outputs(model, inputs), before, strict=True):
            assert torch.allclose(found, expected, atol=1e-5, rtol=1e-4), "a fresh LoRA is the identity"
    fill(panel.module("l"), 0.5)
    with torch.no_grad():
        assert any(
            not torch.allclose(found, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))
            for found, expected in zip(outputs(model, inputs), before, strict=True)
        ), "a random LoRA changes the output"


def prefix(
    model: nn.Module, panel: Any, inputs: dict[str, torch.Tensor], before: list[torch.Tensor], refused: str | None
) -> None:
    """Prefix tuning, wherever an attention goes through transformers' attention function."""
    if not list(panel.host.attentions()):
        with pytest.raises(ModelError):
            panel.add("p", "prefix_tuning_flat")
        return
    if refused is not None:
        with pytest.raises(ModelError, match=refused):
            attempt(model, panel, inputs)
        panel.activate(None)
        return
    panel.add("p", "prefix_tuning_flat[prefix_length=3]")
    fill(panel.module("p"), 1.0)
    panel.train("p")
    model.eval()
    found = outputs(model, inputs)
    assert any(
        not torch.allclose(one, two, rtol=0, atol=1e-5 * float(two.abs().max()))
        for one, two in zip(found, before, strict=True)
    ), "a random prefix changes the output"
    sum(value.float().pow(2).mean() for value in found).backward()
    reached = [p.grad is not None for p in panel.module("p").parameters()]
    assert all(reached), "gradients reach the prefix"


def attempt(model: nn.Module, panel: Any, inputs: dict[str, torch.Tensor]) -> None:
    panel.add("p", "prefix_tuning_flat")
    panel.activate("p")
    outputs(model, inputs)


def gradients(model: nn.Module, panel: Any, inputs: dict[str, torch.Tensor]) -> None:
    panel.train("a")
    model.eval()
    try:
        sum(value.float().pow(2).mean() for value in outputs(model, inputs)).backward()
    except RuntimeError as error:  # some models change tensors in place in evaluation
        if "inplace" not in str(error):
            raise
        model.train()
        sum(value.float().pow(2).mean() for value in outputs(model, inputs)).backward()
    ours = dict(panel.module("a").named_parameters())
    missing = [key for key, parameter in ours.items() if parameter.grad is None]
    assert not missing, f"no gradient reaches {missing[:4]}"
    own = {id(parameter) for parameter in ours.values()}
    heads = {id(p) for head in panel.heads for p in panel.head_module(head).parameters()}
    for key, parameter in model.named_parameters():
        assert parameter.grad is None or id(parameter) in own | heads, f"a gradient reaches {key}"


def test_zoo_is_understood() -> None:
    assert len(set(FILES) & set(WITHOUT_BRANCHES)) <= 0.03 * max(len(FILES), 100)
