"""The base model's fingerprint: blind to what does not matter, not to what does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers
from conftest import tiny_model

from adaptergit.errors import ModelError, PackageError
from adaptergit.splice import Fingerprint, adapters, compare, fingerprint_of

MODELS = ["bert", "roberta", "gpt2", "llama"]


@pytest.mark.parametrize("name", MODELS)
def test_it_survives_its_text(name: str) -> None:
    found = fingerprint_of(tiny_model(name))
    assert Fingerprint.parse(str(found)) == found
    assert len(str(found)) < 256


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_cast_is_the_same_model(name: str, dtype: torch.dtype) -> None:
    compare(fingerprint_of(tiny_model(name)), tiny_model(name).to(dtype))


@pytest.mark.parametrize(
    ("name", "auto"),
    [("bert", "AutoModelForSequenceClassification"), ("bert", "AutoModelForMaskedLM"), ("bert", "AutoModelForTokenClassification"),
     ("gpt2", "AutoModelForCausalLM"), ("llama", "AutoModelForCausalLM"), ("llama", "AutoModelForSequenceClassification")],
)  # fmt: skip
def test_another_head_is_the_same_model(name: str, auto: str) -> None:
    compare(fingerprint_of(tiny_model(name)), tiny_model(name, auto))


def test_adapters_and_resized_embeddings_are_the_same_model() -> None:
    expected = fingerprint_of(tiny_model())
    model = tiny_model()
    adapters(model).add("a")
    adapters(model).active = "a"
    compare(expected, model)
    model.resize_token_embeddings(100)
    compare(expected, model)


@pytest.mark.parametrize("name", MODELS)
def test_other_weights_are_another_model(name: str) -> None:
    torch.manual_seed(0)
    other = transformers.AutoModel.from_config(tiny_model(name).config)
    with pytest.raises(ModelError, match="other weights"):
        compare(fingerprint_of(tiny_model(name)), other)


def test_two_untrained_models_differ() -> None:
    """Norms and biases of fresh models are all alike; the embedding tells them apart."""
    torch.manual_seed(0)
    config = tiny_model("llama").config
    with pytest.raises(ModelError, match="other weights"):
        compare(fingerprint_of(transformers.AutoModel.from_config(config)), transformers.AutoModel.from_config(config))


def test_fine_tuned_weights_are_another_model() -> None:
    model = tiny_model()
    expected = fingerprint_of(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.03)
    with pytest.raises(ModelError, match="other weights"):
        compare(expected, model)


def negate(model: torch.nn.Module) -> None:
    model.encoder.layer[1].intermediate.dense.weight.neg_()


def zero(model: torch.nn.Module) -> None:
    model.encoder.layer[0].output.dense.weight.zero_()


def double_the_norms(model: torch.nn.Module) -> None:
    for layer in model.encoder.layer:
        layer.output.LayerNorm.weight.mul_(2)
        layer.attention.output.LayerNorm.weight.mul_(2)


def tune_one_matrix(model: torch.nn.Module) -> None:
    weight = model.encoder.layer[1].attention.self.query.weight
    weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * weight.std())


@pytest.mark.parametrize("change", [negate, zero, double_the_norms, tune_one_matrix])
def test_one_changed_part_is_another_model(change: Callable[[torch.nn.Module], None]) -> None:
    model = tiny_model()
    expected = fingerprint_of(model)
    with torch.no_grad():
        change(model)
    with pytest.raises(ModelError, match="other weights"):
        compare(expected, model)


def test_other_sizes_are_named() -> None:
    config = tiny_model().config
    config.num_hidden_layers = 5
    with pytest.raises(ModelError, match="5 blocks of hidden size 32, not"):
        compare(fingerprint_of(tiny_model()), transformers.AutoModel.from_config(config))


def test_another_architecture_of_the_same_size_is_named() -> None:
    config = tiny_model().config
    config.intermediate_size += 8
    with pytest.raises(ModelError, match="other modules or shapes"):
        compare(fingerprint_of(tiny_model()), transformers.AutoModel.from_config(config))


def test_a_model_without_storage_is_compared_by_structure() -> None:
    config = tiny_model().config
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(config)
    compare(fingerprint_of(tiny_model()), model)


@pytest.mark.parametrize("text", ["", "fp1", "fp2:2x32:00:", "fp1:ax32:00:", "fp1:2x32:00:AAAA", "fp1:2x32:00:!"])
def test_other_text_is_no_fingerprint(text: str) -> None:
    with pytest.raises(PackageError):
        Fingerprint.parse(text)


def test_the_numbers_do_not_change_between_versions() -> None:
    """Cards in the world hold these; a change needs fp2."""
    assert str(fingerprint_of(tiny_model("bert"))).startswith(
        "fp1:2x32:80597f2a1cc1a95a72f4e2d883e7f70b:CUL9k_8B_QkC5PX_ABwE1v9x"
    )


def _replaced(model: torch.nn.Module) -> None:
    linear = next(m for m in model.modules() if isinstance(m, torch.nn.Linear))
    linear.weight = torch.nn.Parameter(torch.randn_like(linear.weight))


def _written(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)


def _merged(model: torch.nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data += torch.randn_like(module.weight)


@pytest.mark.parametrize("change", [_replaced, _written, _merged])
def test_what_is_remembered_of_a_model_ends_with_its_weights(change: Callable[[torch.nn.Module], None]) -> None:
    model = tiny_model()
    before = fingerprint_of(model)
    assert fingerprint_of(model) is before
    change(model)
    with pytest.raises(ModelError, match="other weights"):
        compare(before, model)
    assert fingerprint_of(model) == fingerprint_of(tiny_model_like(model))


def tiny_model_like(model: torch.nn.Module) -> torch.nn.Module:
    """Return a model with the same weights that nobody has looked at."""
    other = tiny_model()
    other.load_state_dict(model.state_dict())
    return other
