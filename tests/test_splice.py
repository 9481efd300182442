"""Splicing: the model stays what it is, and adapters do what they say."""

from __future__ import annotations

import copy
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import GOLDEN, tiny_model
from tokenizers import Tokenizer, models
from tokenizers.pre_tokenizers import Whitespace
from torch import nn

import adaptergit
from adaptergit.errors import ModelError, PackageError, UsageError
from adaptergit.splice import (
    Bottleneck,
    ClassificationHead,
    Parallel,
    PromptTuning,
    Stack,
    adapters,
    anatomy_of,
    parse_composition,
    parse_config,
)
from adaptergit.splice.config import config_from_dict, describe, presets

MODELS = ["bert", "roberta", "gpt2", "llama", "llama_gqa"]
PRESETS = ["seq_bn", "double_seq_bn", "par_bn", "scaled_par_bn", "adapter_plus"]


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(5, 60, (3, 7), generator=torch.Generator().manual_seed(1))


def noisy(panel: Any, name: str, seed: int = 0) -> None:
    """Give an adapter weights of some size: fresh ones hardly act."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in panel.module(name).parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def hidden(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids)[0]


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# --- the model stays what it is ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_detach_gives_the_model_back_bit_for_bit(name: str, ids: torch.Tensor) -> None:
    model = tiny_model(name)
    before, attributes = hidden(model, ids), set(model.__dict__) | set(model._modules)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    panel = adapters(model)
    panel.add("a", "double_seq_bn")
    noisy(panel, "a")
    panel.add_head("a", ClassificationHead())
    panel.train("a")
    assert type(model).__name__.endswith("Model")
    assert list(model.state_dict()) == list(state)
    assert panel.detach() is model
    model.eval()
    assert torch.equal(hidden(model, ids), before)
    assert set(model.__dict__) | set(model._modules) == attributes
    assert hooks(model) == 0
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())


@pytest.mark.parametrize("name", MODELS)
def test_an_inactive_adapter_costs_nothing(name: str, ids: torch.Tensor) -> None:
    model = tiny_model(name)
    before = hidden(model, ids)
    panel = adapters(model)
    panel.add("a", "seq_bn")
    noisy(panel, "a")
    assert hooks(model) == 0
    assert torch.equal(hidden(model, ids), before)
    panel.active = "a"
    assert hooks(model) > 0
    assert not torch.allclose(hidden(model, ids), before)
    panel.active = None
    assert hooks(model) == 0
    assert torch.equal(hidden(model, ids), before)


def test_the_base_models_state_dict_and_files_are_untouched(tmp_path: Path) -> None:
    model = tiny_model()
    keys = list(model.state_dict())
    panel = adapters(model)
    panel.add("a")
    panel.active = "a"
    model.load_state_dict(model.state_dict(), strict=True)
    model.save_pretrained(tmp_path)
    again = transformers.AutoModel.from_pretrained(tmp_path)
    assert list(again.state_dict()) == keys
    assert not hasattr(again, "adaptergit")


def test_parameters_move_and_switch_with_the_model() -> None:
    model = tiny_model()
    panel = adapters(model)
    panel.add("a")
    names = [n for n, _ in model.named_parameters() if n.startswith("adaptergit.a.")]
    assert len(names) == 2 * 4
    model.double()
    assert all(p.dtype == torch.float64 for p in panel.module("a").parameters())
    model.train()
    assert panel.module("a").training
    model.requires_grad_(False)
    assert not any(p.requires_grad for p in panel.module("a").parameters())


@pytest.mark.parametrize("name", MODELS)
def test_a_zero_adapter_is_the_identity(name: str, ids: torch.Tensor) -> None:
    model = tiny_model(name)
    before = hidden(model, ids)
    panel = adapters(model)
    panel.add("a", "double_seq_bn")
    for parameter in panel.module("a").parameters():
        nn.init.zeros_(parameter)
    panel.active = "a"
    assert torch.equal(hidden(model, ids), before)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("preset", PRESETS)
def test_gradients_reach_every_parameter_and_only_the_adapters(name: str, preset: str, ids: torch.Tensor) -> None:
    model = tiny_model(name)
    panel = adapters(model)
    panel.add("a", f"{preset}[reduction_factor=2]")  # wide enough that no ReLU is dead
    noisy(panel, "a")
    panel.train("a")
    torch.manual_seed(0)  # stochastic depth leaves an adapter out now and then
    output = model(ids)[0]
    (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    for parameter_name, parameter in model.named_parameters():
        ours = parameter_name.startswith("adaptergit.")
        assert (parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)) is ours, parameter_name


@pytest.mark.parametrize("checkpointing", [{"use_reentrant": False}, {"use_reentrant": True}])
def test_gradient_checkpointing_changes_nothing(checkpointing: dict[str, bool], ids: torch.Tensor) -> None:
    def gradients(with_checkpoints: bool) -> list[torch.Tensor]:
        model = tiny_model("bert")
        panel = adapters(model)
        panel.add("a", "double_seq_bn")
        noisy(panel, "a")
        panel.train("a")
        model.eval()  # no dropout
        if with_checkpoints:
            model.train()
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
            model.gradient_checkpointing_enable(checkpointing)
            model.enable_input_require_grads()
        model(ids)[0].square().sum().backward()
        return [p.grad for p in panel.module("a").parameters() if p.grad is not None]

    plain, checkpointed = gradients(False), gradients(True)
    assert len(plain) == len(checkpointed) > 0
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(plain, checkpointed, strict=True))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_generation_agrees_with_and_without_a_cache(name: str, ids: torch.Tensor) -> None:
    model = tiny_model(name, "AutoModelForCausalLM")
    panel = adapters(model)
    panel.add("a", "double_seq_bn")
    noisy(panel, "a")
    plain = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
    panel.active = "a"
    found = [model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=c, pad_token_id=0) for c in (True, False)]
    assert torch.equal(*found)
    assert not torch.equal(found[0], plain)


def test_bfloat16_follows_the_host(ids: torch.Tensor) -> None:
    model = tiny_model().to(torch.bfloat16)
    panel = adapters(model)
    panel.add("a")
    panel.add("wide", dtype=torch.float32)
    for name, dtype in (("a", torch.bfloat16), ("wide", torch.float32)):
        assert next(panel.module(name).parameters()).dtype == dtype
        panel.active = name
        assert hidden(model, ids).dtype == torch.bfloat16


@pytest.mark.slow
def test_a_compiled_forward_has_one_graph(ids: torch.Tensor) -> None:
    for name in ("bert", "gpt2", "llama"):
        model = tiny_model(name)
        panel = adapters(model)
        panel.add("a", "double_seq_bn")
        noisy(panel, "a")
        panel.active = "a"
        torch._dynamo.reset()
        explained = (
            torch._dynamo.explain(model)(ids, use_cache=False) if name != "bert" else torch._dynamo.explain(model)(ids)
        )
        assert explained.graph_count == 1, explained.break_reasons


def test_a_deep_copy_is_a_model_of_its_own(ids: torch.Tensor) -> None:
    model = tiny_model()
    panel = adapters(model)
    panel.add("a")
    noisy(panel, "a")
    panel.active = "a"
    twin = copy.deepcopy(model)
    before = hidden(model, ids)
    assert torch.equal(hidden(twin, ids), before)
    noisy(adapters(twin), "a", seed=5)
    assert torch.equal(hidden(model, ids), before)
    assert not torch.allclose(hidden(twin, ids), before)
    panel.detach()
    assert not torch.allclose(hidden(twin, ids), hidden(model, ids))


def test_a_pickled_model_keeps_its_adapters(ids: torch.Tensor) -> None:
    model = tiny_model()
    panel = adapters(model)
    panel.add("a")
    noisy(panel, "a")
    panel.active = "a"
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(hidden(again, ids), hidden(model, ids))


# --- several adapters -------------------------------------------------------------------------------------------------


@pytest.fixture
def two() -> tuple[Any, Any]:
    model = tiny_model()
    panel = adapters(model)
    for index, name in enumerate(("a", "b")):
        panel.add(name, "double_seq_bn")
        noisy(panel, name, index)
    return model, panel


def test_a_stack_runs_its_children_in_order(two: tuple[Any, Any], ids: torch.Tensor) -> None:
    model, panel = two
    outputs = []
    for composition in ("a", "b", "Stack(a, b)", "Stack(b, a)"):
        panel.active = composition
        outputs.append(hidden(model, ids))
    assert len({tuple(o.flatten().tolist()) for o in outputs}) == 4
    panel.active = Stack("a")
    assert torch.equal(hidden(model, ids), outputs[0])


def test_using_is_for_the_block_only(two: tuple[Any, Any], ids: torch.Tensor) -> None:
    model, panel = two
    panel.active = "a"
    with_a = hidden(model, ids)
    panel.active = "b"
    with_b = hidden(model, ids)
    with panel.using("a"):
        assert torch.equal(hidden(model, ids), with_a)
        with panel.using(None):
            assert not torch.equal(hidden(model, ids), with_a)
        assert torch.equal(hidden(model, ids), with_a)
    assert torch.equal(hidden(model, ids), with_b)
    panel.active = None
    with panel.using("a"):
        assert torch.equal(hidden(model, ids), with_a)
    assert hooks(model) == 0


def test_threads_use_adapters_of_their_own(two: tuple[Any, Any], ids: torch.Tensor) -> None:
    model, panel = two
    expected = {}
    for name in ("a", "b", None):
        panel.active = name
        expected[name] = hidden(model, ids)
    panel.active = None
    failures: list[str] = []

    def work(name: str | None) -> None:
        for _ in range(25):
            with panel.using(name):
                if not torch.equal(hidden(model, ids), expected[name]):
                    failures.append(str(name))

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b", None, "a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_adapterdrop_skips_blocks(two: tuple[Any, Any], ids: torch.Tensor) -> None:
    model, panel = two
    plain = hidden(model, ids)
    panel.activate("a", skip_layers=range(8))
    assert torch.equal(hidden(model, ids), plain)
    panel.activate("a", skip_layers=[0])
    assert not torch.equal(hidden(model, ids), plain)


def test_removing_an_active_adapter_switches_it_off(two: tuple[Any, Any], ids: torch.Tensor) -> None:
    model, panel = two
    plain = hidden(model, ids)
    panel.active = "Stack(a, b)"
    panel.remove("a")
    assert panel.names == ["b"]
    assert panel.active is None
    assert torch.equal(hidden(model, ids), plain)


def test_a_forward_that_fails_leaves_nothing_behind(two: tuple[Any, Any], ids: torch.Tensor) -> None:
    model, panel = two
    panel.active = "a"
    before = hidden(model, ids)
    broken = model.encoder.layer[0].intermediate.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(ids)
    broken.remove()
    assert torch.equal(hidden(model, ids), before)


# --- heads ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_head_answers_with_logits_and_a_loss(name: str, ids: torch.Tensor) -> None:
    model = tiny_model(name)
    panel = adapters(model)
    panel.add("a")
    panel.add_head("a", ClassificationHead(num_labels=3, labels=("x", "y", "z")))
    panel.active = "a"
    output = model(input_ids=ids, labels=torch.tensor([0, 1, 2]))
    assert output.logits.shape == (3, 3)
    assert torch.isfinite(output.loss)
    assert isinstance(model(ids, return_dict=False), tuple)
    panel.active = None
    assert not hasattr(model(ids), "logits")


def test_without_adapters_the_model_answers_for_itself(ids: torch.Tensor) -> None:
    model = tiny_model()
    plain = hidden(model, ids)
    panel = adapters(model)
    panel.add("a")
    panel.add_head("a", ClassificationHead())
    panel.active = "a"
    with panel.using(None):
        assert torch.equal(model(ids).last_hidden_state, plain)
    assert model(ids).logits.shape == (3, 2)
    static = tiny_model("bert", "AutoModelForSequenceClassification")
    own = static(ids).logits
    panel = adapters(static)
    panel.add("a")
    panel.train("a")
    static.eval()
    with torch.no_grad():
        panel.head_module("a").copies["classifier"].weight.zero_()
    with panel.using(None):
        assert torch.equal(static(ids).logits, own)
    assert not torch.equal(static(ids).logits, own)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_padding_on_either_side_is_not_read(name: str) -> None:
    """The head reads the last real token, wherever the padding is."""
    model = tiny_model(name)
    panel = adapters(model)
    panel.add("a")
    panel.add_head("a", ClassificationHead())
    panel.active = "a"
    ids, mask = torch.tensor([[7, 8, 9, 10]]), torch.ones(1, 4, dtype=torch.long)
    plain = model(input_ids=ids, attention_mask=mask).logits
    zeros, padding = torch.zeros(1, 2, dtype=torch.long), torch.full((1, 2), 1)
    right = model(input_ids=torch.cat([ids, padding], 1), attention_mask=torch.cat([mask, zeros], 1)).logits
    assert torch.allclose(plain, right, atol=1e-5)
    left_mask = torch.cat([zeros, mask], 1)
    positions = (left_mask.cumsum(1) - 1).clamp(min=0)
    left = model(input_ids=torch.cat([padding, ids], 1), attention_mask=left_mask, position_ids=positions).logits
    assert torch.allclose(plain, left, atol=1e-5)


def test_regression_has_one_logit(ids: torch.Tensor) -> None:
    model = tiny_model()
    panel = adapters(model)
    panel.add("a")
    panel.add_head("a", ClassificationHead(num_labels=1))
    panel.active = "a"
    output = model(ids, labels=torch.tensor([0.1, 0.5, 1.0]))
    assert output.logits.shape == (3, 1)
    assert torch.isclose(output.loss, ((output.logits.view(-1) - torch.tensor([0.1, 0.5, 1.0])) ** 2).mean())


def test_training_a_model_with_a_head_of_its_own_trains_a_copy(ids: torch.Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = tiny_model("bert", "AutoModelForSequenceClassification")
    own = model.classifier.weight.clone()
    panel = adapters(model)
    panel.add("a")
    panel.train("a")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(12):
        loss = model(ids, labels=torch.tensor([0, 1, 0])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    assert losses[-1] < 0.5 * losses[0]
    assert torch.equal(model.classifier.weight, own)
    logits = model(ids).logits
    panel.save("a", tmp_path / "a", license="MIT")
    panel.detach()
    assert not torch.allclose(model(ids).logits, logits, atol=1e-3)
    adaptergit.load(tmp_path / "a", model)
    assert torch.equal(model(ids).logits, logits)


# --- saving and loading -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_saved_is_loaded(name: str, preset: str, ids: torch.Tensor, tmp_path: Path) -> None:
    model = tiny_model(name)
    panel = adapters(model)
    panel.add("a", f"{preset}[reduction_factor=8, ln_before=True, ln_after=True, use_gating=True]")
    noisy(panel, "a")
    panel.add_head("a", ClassificationHead(num_labels=3))
    panel.active = "a"
    panel.save("a", tmp_path / "a", license="MIT", description="mine")
    again = tiny_model(name)
    assert adaptergit.load(tmp_path / "a", again) is again
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert adapters(again).config("a") == panel.config("a")


def test_a_saved_folder_is_deterministic(tmp_path: Path) -> None:
    from conftest import snapshot

    model = tiny_model()
    panel = adapters(model)
    panel.add("a")
    for folder in ("x", "y"):
        panel.save("a", tmp_path / folder, license="MIT")
    assert snapshot(tmp_path / "x") == snapshot(tmp_path / "y")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    panel = adapters(tiny_model())
    panel.add("a")
    panel.save("a", tmp_path / "a", license="MIT")
    return tmp_path / "a"


def untouched(model: nn.Module) -> bool:
    return not hasattr(model, "adaptergit") and hooks(model) == 0


@pytest.mark.parametrize("name", ["roberta", "gpt2", "llama"])
def test_another_base_model_is_refused(name: str, saved: Path) -> None:
    model = tiny_model(name)
    with pytest.raises(ModelError, match="another base model"):
        adaptergit.load(saved, model)
    assert untouched(model)


def test_the_same_architecture_with_other_weights_is_refused(saved: Path) -> None:
    torch.manual_seed(3)
    model = transformers.AutoModel.from_config(tiny_model().config)
    with pytest.raises(ModelError, match="other weights"):
        adaptergit.load(saved, model)
    assert untouched(model)


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("reduction_factor: 16", "reduction_factor: 8", ModelError),
        ("family: bottleneck", "family: hologram", PackageError),
        ("non_linearity: relu", "non_linearity: unknown", PackageError),
        ("leave_out: []", "leave_out: [0]", ModelError),
        ("mh_adapter: false", "mh_adapter: true", PackageError),
        ("    scaling: 1.0", "    scaling: big", PackageError),
        ("    dropout: 0.0", "    dropout: 7", PackageError),
        ("    dropout: 0.0", "    dropped: 0.0", PackageError),
        ("format: adaptergit", "format: peft", PackageError),
    ],
)
def test_a_card_that_does_not_fit_its_weights_is_refused(
    saved: Path, old: str, new: str, error: type[Exception]
) -> None:
    text = (saved / "card.yaml").read_text()
    assert old in text
    (saved / "card.yaml").write_text(text.replace(old, new))
    model = tiny_model()
    with pytest.raises(error):
        adaptergit.load(saved, model)
    assert untouched(model)


def change_tensors(saved: Path, change: Any) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(saved / "adapter.safetensors")
    change(tensors)
    save_file(tensors, saved / "adapter.safetensors")


KEY = "blocks.0.ffn.down.weight"


@pytest.mark.parametrize(
    ("change", "error", "why"),
    [
        (lambda t: t.pop(KEY), ModelError, "missing"),
        (lambda t: t.update(extra=torch.zeros(1)), ModelError, "unexpected"),
        (lambda t: t.update({KEY: t[KEY][:1]}), ModelError, "shape"),
        (lambda t: t.update({KEY: t[KEY].T.contiguous()}), ModelError, "shape"),
        (lambda t: t.update({KEY: t[KEY].long()}), PackageError, "dtype"),
        (lambda t: t[KEY].fill_(float("nan")), PackageError, "finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused(saved: Path, change: Any, error: type[Exception], why: str) -> None:
    change_tensors(saved, change)
    model = tiny_model()
    with pytest.raises(error, match=why):
        adaptergit.load(saved, model)
    assert untouched(model)


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 100, b"\x02\0\0\0\0\0\0\0{}"])
def test_a_file_that_is_no_safetensors_is_refused(saved: Path, content: bytes) -> None:
    (saved / "adapter.safetensors").write_bytes(content)
    model = tiny_model()
    with pytest.raises((PackageError, ModelError)):
        adaptergit.load(saved, model)
    assert untouched(model)


def test_a_failed_load_keeps_the_adapters_that_were_there(saved: Path, ids: torch.Tensor) -> None:
    model = tiny_model()
    panel = adapters(model)
    panel.add("mine")
    noisy(panel, "mine")
    panel.active = "mine"
    before = hidden(model, ids)
    (saved / "adapter.safetensors").write_bytes(b"")
    with pytest.raises(PackageError):
        adaptergit.load(saved, model)
    assert panel.names == ["mine"]
    assert torch.equal(hidden(model, ids), before)


def test_a_name_is_taken_once(saved: Path) -> None:
    model = tiny_model()
    adaptergit.load(saved, model)
    with pytest.raises(UsageError, match="already"):
        adaptergit.load(saved, model)
    adaptergit.load(saved, model, name="again", activate=False)
    assert adapters(model).names == ["a", "again"]
    assert str(adapters(model).active) == "a"


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    panel = adapters(tiny_model())
    panel.add("a")
    with torch.no_grad():
        next(panel.module("a").parameters()).view(-1)[0] = float("nan")
    with pytest.raises(PackageError, match="not finite"):
        panel.save("a", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_weights_that_half_precision_cannot_hold_are_refused(tmp_path: Path, ids: torch.Tensor) -> None:
    panel = adapters(tiny_model())
    panel.add("a")
    with torch.no_grad():
        next(panel.module("a").parameters()).view(-1)[0] = 1e6
    panel.save("a", tmp_path / "a")
    model = tiny_model().to(torch.float16)
    with pytest.raises(ModelError, match="too large for float16"):
        adaptergit.load(tmp_path / "a", model)
    assert untouched(model)
    adaptergit.load(tmp_path / "a", model, dtype=torch.float32)
    assert adapters(model).names == ["a"]


NAMES = ["a:b", "a:head", "a\\b", "two\nlines", "x" * 255, "a\"b'c", "Stack(a, b)", "None", " ", "ä ö", "a.b", "-"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_can_be_anything_a_file_name_can(name: str, tmp_path: Path, ids: torch.Tensor) -> None:
    model = tiny_model()
    panel = adapters(model)
    for one in ("a", name):
        panel.add(one, "seq_bn")
        panel.add_head(one, ClassificationHead(num_labels=3))
    noisy(panel, name)
    panel.active = name
    expected = model(ids).logits
    assert panel.active_head == name
    composition = Stack(name, Parallel("a", name))
    assert parse_composition(str(composition)) == composition
    assert len(dict(model.named_parameters())) == len(list(model.parameters()))
    panel.save_setup(tmp_path / "setup", name="named")
    other = tiny_model()
    adaptergit.load(tmp_path / "setup", other)
    assert adapters(other).names == [name]
    assert torch.equal(other(ids).logits, expected)
    panel.remove(name)
    assert (panel.names, panel.heads) == (["a"], ["a"])


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b", "x" * 256, "ä" * 128, "\ud800", 7, None])
def test_what_no_file_can_be_called_names_no_adapter(name: Any) -> None:
    panel = adapters(tiny_model())
    with pytest.raises(UsageError):
        panel.add(name)
    assert panel.names == []


@pytest.mark.parametrize(
    "config",
    [
        "seq_bn[reduction_factor={'7': 2, 'default': 4}]",
        "seq_bn[leave_out=[7]]",
        "lora[leave_out=[-1]]",
        "loreft[layers=[2]]",
        "seq_bn|lora[leave_out=[9]]",
    ],
)
def test_a_block_that_is_not_there_is_named(config: str) -> None:
    panel = adapters(tiny_model())
    with pytest.raises(ModelError, match="block"):
        panel.add("a", config)
    assert panel.names == []


def test_a_reduction_factor_is_of_a_block() -> None:
    with pytest.raises(UsageError, match="no block's number"):
        adapters(tiny_model()).add("a", "seq_bn[reduction_factor={'x': 2, 'default': 4}]")


def test_a_prompt_starts_from_a_text(tmp_path: Path) -> None:
    model = tiny_model()
    panel = adapters(model)
    config = PromptTuning(prompt_length=5, prompt_init="from_string", prompt_init_text="good film")
    model.config._name_or_path = str(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no tokenizer"):
        panel.add("a", config)
    words = Tokenizer(models.WordLevel({"?": 0, "good": 5, "film": 6}, unk_token="?"))
    words.pre_tokenizer = Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(tmp_path)
    model.config._name_or_path = str(tmp_path)
    panel.add("a", config)
    (found,) = panel.module("a").parameters()
    assert torch.equal(found, model.get_input_embeddings().weight[[5, 6, 5, 6, 5]])


def test_a_prompt_needs_tokens() -> None:
    whisper = transformers.WhisperConfig(
        vocab_size=70, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, num_mel_bins=8, max_source_positions=8,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    vit = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4
    )
    with pytest.raises(ModelError, match="no tokens"):
        adapters(transformers.AutoModel.from_config(whisper)).add("a", "prompt_tuning")
    panel = adapters(transformers.AutoModel.from_config(vit))
    with pytest.raises(ModelError, match="embeds tokens"):
        panel.add("a", "prompt_tuning[prompt_init=from_string, prompt_init_ids=[1, 2]]")
    panel.add("a", "prompt_tuning")


def test_a_model_that_takes_no_prompt_says_so_at_once() -> None:
    config = transformers.ModernBertConfig(
        vocab_size=70, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
    )  # fmt: skip
    model = transformers.AutoModel.from_config(config).train()
    panel = adapters(model)
    with pytest.raises(ModelError, match="takes no prompt"):
        panel.add("a", "prompt_tuning")
    assert panel.names == []
    assert all(module.training for module in model.modules())


@pytest.mark.skipif(transformers.__version__ < "5", reason="attends once there")
def test_a_model_that_attends_twice_refuses_a_prefix_at_once() -> None:
    config = transformers.DiffLlamaConfig(
        vocab_size=70, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    panel = adapters(transformers.AutoModel.from_config(config))
    with pytest.raises(ModelError, match="takes no prefix"):
        panel.add("a", "prefix_tuning_flat")
    assert panel.names == []


def test_an_invalid_card_field_writes_nothing(tmp_path: Path) -> None:
    panel = adapters(tiny_model())
    panel.add("a")
    with pytest.raises(PackageError, match="license"):
        panel.save("a", tmp_path / "a", license="my own")
    assert not (tmp_path / "a").exists()


def test_the_base_model_is_found_through_the_settings(
    saved: Path, home: Path, tmp_path: Path, ids: torch.Tensor
) -> None:
    from adaptergit.errors import NotFoundError

    tiny_model().save_pretrained(tmp_path / "base")
    with pytest.raises(NotFoundError, match="cannot be loaded"):
        adaptergit.load(saved)
    (home / "config").mkdir()
    (home / "config" / "config.toml").write_text(f'[base_models]\nbert = "{tmp_path}/base"\n')
    model = adaptergit.load(saved)
    assert type(model).__name__ == "BertModel"
    assert str(adapters(model).active) == "a"


def mapped(home: Path, name: str, folder: Path) -> None:
    (home / "config").mkdir(exist_ok=True)
    (home / "config" / "config.toml").write_text(f'[base_models]\n{name} = "{folder}"\n')


def test_a_head_of_the_models_class_loads_into_that_class(home: Path, tmp_path: Path, ids: torch.Tensor) -> None:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        GOLDEN / "bases" / "bert", num_labels=3
    ).eval()
    panel = adapters(model)
    panel.add("a")
    panel.train("a")
    model.eval()
    panel.save("a", tmp_path / "a", license="MIT")
    mapped(home, "bert", GOLDEN / "bases" / "bert")
    again = adaptergit.load(tmp_path / "a")
    assert type(again).__name__ == "BertForSequenceClassification"
    assert torch.equal(again(ids).logits, model(ids).logits)
    plain = adaptergit.load(tmp_path / "a", head=False)
    assert type(plain).__name__ == "BertModel"


def test_a_card_chooses_no_folder_and_no_pickle(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained(tmp_path / "bert")
    with pytest.raises(adaptergit.NotFoundError, match="not mapped"):
        adaptergit.load(saved)
    text = (saved / "card.yaml").read_text()
    for name in ("/etc", "../x", "a/b/c"):
        (saved / "card.yaml").write_text(text.replace("id: bert", f"id: {name}"))
        with pytest.raises(adaptergit.NotFoundError, match="not mapped"):
            adaptergit.load(saved)


def test_weights_are_checked_again_when_they_are_read(saved: Path) -> None:
    """Between the verification and the reading lies the loading of a base model, which may take minutes."""
    from adaptergit.splice.checkpoint import read_into

    panel = adapters(tiny_model())
    modules = {"": panel.build(parse_config("seq_bn"))}
    with pytest.raises(PackageError, match="changed while"):
        read_into(saved / "adapter.safetensors", modules, digest="0" * 64)


def test_a_load_that_fails_late_takes_everything_back(saved: Path) -> None:
    model = tiny_model()
    for options in ({"device": "nowhere"}, {"device": "cuda:99"}, {"dtype": torch.int8}, {"policy": "lax"}):
        with pytest.raises(UsageError):
            adaptergit.load(saved, model, **options)
        assert untouched(model)
    panel = adapters(model)
    panel.add_head("zz", ClassificationHead())
    checkpoint = GOLDEN / "public" / "bert__head_classification" / "checkpoint" / "a"
    with pytest.raises(UsageError, match="already"):
        adaptergit.load(checkpoint, model, name="zz")
    assert (panel.names, panel.heads) == ([], ["zz"])


@pytest.mark.parametrize("arguments", [(None,), (3,), ("x", "model"), ("x", {})])
def test_wrong_arguments_are_named(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(UsageError):
        adaptergit.load(*arguments)


@pytest.mark.parametrize(
    "head",
    [
        "{num_labels: 1000000000000000000}",
        "{layers: 30000}",
        "{layers: many}",
        "{colour: red}",
        "{dropout_prob: 2}",
        "{activation_function: x}",
    ],
)
def test_a_hostile_head_is_refused(saved: Path, head: str) -> None:
    with (saved / "card.yaml").open("a") as file:
        file.write(f"head: {{type: classification, config: {head}}}\n")
    with pytest.raises((PackageError, ModelError)):
        adaptergit.load(saved, tiny_model())


# --- configurations and compositions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(presets()))
def test_a_configuration_survives_its_card(name: str) -> None:
    config = parse_config(name)
    record = describe(config)
    family = record.pop("family")
    assert config_from_dict(family, record) == config
    assert config.method == name


def test_old_names_of_presets_are_known() -> None:
    assert parse_config("pfeiffer") == parse_config("seq_bn")
    assert parse_config("houlsby") == parse_config("double_seq_bn")


def test_config_strings_hold_any_value() -> None:
    config = parse_config(
        'seq_bn[reduction_factor={"0": 2, "default": 16}, non_linearity=gelu, leave_out=[1, 2], dropout=0.1]'
    )
    assert isinstance(config, Bottleneck)
    assert config.reduction_factor == {"0": 2, "default": 16}
    assert (config.non_linearity, config.leave_out, config.dropout) == ("gelu", (1, 2), 0.1)


@pytest.mark.parametrize(
    "text",
    [
        "", "seq_bnn", "seq_bn[", "seq_bn[]x", "seq_bn[reduction_factor]", "seq_bn[reduction_factor=]", "seq_bn[rf=2]", "seq_bn[reduction_factor=0]",
        "seq_bn[reduction_factor=-1]", "seq_bn[reduction_factor=big]", "seq_bn[dropout=1, dropout=2]", "seq_bn[dropout=__import__('os')]",
        "seq_bn[non_linearity=nope]", "seq_bn[scaling=loud]", "seq_bn[output_adapter=False]", "seq_bn[init_weights=zero]",
        "seq_bn[residual_before_ln=maybe]", "seq_bn[leave_out=3]", "seq_bn[mh_adapter=1]", "seq_bn[dropout=True]",
    ],
)  # fmt: skip
def test_a_malformed_config_string_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_config(text)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("seq_bn[dropout=0.1, rf=2]", "rf=2"),
        ("seq_bn[reduction_factor=0]", "0]"),
        ("seq_bn[non_linearity=nope, dropout=0.5]", "nope"),
        ("seq_bn[dropout=0.5, scaling = loud]", "loud"),
        ("seq_bn[inv_adapter=nice, inv_adapter_reduction_factor=2, dropout=9]", "9]"),
        ("seq_bn[mh_adapter=1]", "1]"),
        ("lora[r=2, alpha=x, dropout=7]", "x, drop"),
        ("seq_bn[reduction_factor=big]", "big"),
        ("seq_bn[leave_out=[1, 'x']]", "[1, 'x']"),
        ("lora|foo", "foo"),
        ("lora | seq_bn[rf=2] | ia3", "rf=2"),
        ("lora|seq_bn[dropout=2]", "2]"),
        ("lora||ia3", "|ia3"),
        ("seq_bn|", ""),
        ("", ""),
        ("seq_bn[dropout=0.1", "[drop"),
        ("seq_bn[non_linearity='gelu]", "[non"),
        ("seq_bn[dropout=0.1]x", "x"),
        ("seq_bn dropout", "dropout"),
        ("seq_bn[dropout=0.1,, scaling=2]", ", scaling"),
        ("seq_bn[dropout=]", "dropout=]"),
        ("seq_bn[dropout=0.1, dropout=0.2]", "dropout=0.2"),
        ("seq_bn[dropout=open('x')]", "open"),
    ],
)
def test_the_error_points_into_the_string(text: str, where: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_config(text)
    *_, shown, pointer = caught.value.what.split("\n")
    assert shown == f"  {text}"
    assert shown[pointer.index("^") :].startswith(where) if where else pointer.index("^") == len(shown)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Stack()",
        "Stack(a",
        "Fuze(a, b)",
        "Stack(a,,b)",
        "Stack(a b)",
        "a b",
        "Split(a, b)",
        "Stack(a))",
        "Stack(a, weights=[1])",
        3,
    ],
)
def test_a_malformed_composition_is_refused(text: Any) -> None:
    with pytest.raises(UsageError):
        parse_composition(text)


def test_unknown_names_change_nothing(two: tuple[Any, Any]) -> None:
    _, panel = two
    panel.active = "a"
    for bad in ("c", "Stack(a, c)"):
        with pytest.raises(UsageError, match="no adapter"):
            panel.active = bad
    with pytest.raises(UsageError, match="no head"):
        panel.activate("a", head="nope")
    with pytest.raises(UsageError, match="already"):
        panel.add("a")
    with pytest.raises(UsageError):
        panel.add("b/c")
    with pytest.raises(UsageError):
        panel.train()
    assert str(panel.active) == "a"
    assert panel.names == ["a", "b"]


class Plain(transformers.PreTrainedModel):
    """A model without residual blocks."""

    config_class = transformers.BertConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.encoder = nn.Sequential(nn.Embedding(100, 8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
        self.post_init()

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.encoder(input_ids),)


def test_an_unknown_architecture_is_refused_with_its_modules() -> None:
    config = transformers.BertConfig(hidden_size=8, vocab_size=100)
    config.model_type = "plain"
    with pytest.raises(ModelError, match="no residual blocks") as caught:
        anatomy_of(Plain(config))
    assert "encoder" in str(caught.value.hint)


def test_reproducible_initialisation() -> None:
    weights = []
    for _ in range(2):
        panel = adapters(tiny_model())
        panel.add("a", "seq_bn[init_weights_seed=42]")
        weights.append(panel.module("a").state_dict())
    assert all(torch.equal(v, weights[1][k]) for k, v in weights[0].items())


def test_a_seed_leaves_the_global_generator_alone() -> None:
    panel = adapters(tiny_model())
    before = torch.get_rng_state()
    panel.add("a", "seq_bn[init_weights_seed=42]")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_folder_never_takes_the_place_of_a_reference(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "acme").mkdir()
    saved.rename(tmp_path / "acme" / "adapters@sst2")
    with pytest.raises(adaptergit.NotFoundError, match="store"):
        adaptergit.load("acme/adapters@sst2", tiny_model(), offline=True)
    adaptergit.load("./acme/adapters@sst2", tiny_model())
