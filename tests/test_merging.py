"""Adapters merged into weights, and several adapters into one, against the peers' numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model
from golden import GOLDEN, cases, inputs_of, prepare, prepare_peft, read
from safetensors.torch import load_file
from torch import nn

import adaptergit
from adaptergit.errors import UsageError
from adaptergit.splice import ClassificationHead, TunedParameters, adapters
from adaptergit.splice.merging import COMBINATIONS

IDS = torch.randint(5, 60, (3, 7), generator=torch.Generator().manual_seed(1))
EVERY = [*cases("adapters"), *cases("peft")]
MERGED = [name for name in EVERY if read(name).get("merged")]
AVERAGED = [name for name in EVERY if read(name).get("average")]
WEIGHTED = [name for name in EVERY if read(name).get("add_weighted_adapter")]


def prepared(name: str) -> tuple[Any, dict[str, Any], dict[str, torch.Tensor]]:
    case, folder = read(name), GOLDEN / "public" / name
    panel = (prepare_peft if "peft" in case["library"] else prepare)(case, folder)
    return panel, case, load_file(folder / "io.safetensors")


def run(model: nn.Module, io: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs_of(io))[0]


@pytest.mark.parametrize("name", MERGED)
def test_golden_merged_weights_give_the_forward(name: str) -> None:
    panel, case, io = prepared(name)
    weights = {key: value.clone() for key, value in panel.model.state_dict().items()}
    panel.activate(case["active"])
    forward = run(panel.model, io)
    panel.merge(case["active"])
    assert panel.active is None
    assert torch.allclose(run(panel.model, io), forward, atol=1e-4)
    if (case.get("merge_vs_forward_diff") or 0) < 1e-4:
        expected = load_file(GOLDEN / "public" / name / "merged.safetensors")
        ours = dict(panel.model.state_dict())
        compared = 0
        for key, value in expected.items():
            found = [own for path, own in ours.items() if key.endswith(path) or path.endswith(key)]
            if found:
                assert torch.allclose(found[0], value, atol=2e-5)
                compared += 1
        assert compared
    panel.unmerge(case["active"])
    assert all(torch.equal(value, weights[key]) for key, value in panel.model.state_dict().items())


@pytest.mark.parametrize("name", AVERAGED)
def test_golden_average(name: str) -> None:
    panel, case, io = prepared_without(name, case_average(name))
    options = dict(case["average"])
    names, weights = options["names"], options.get("weights")
    strategy = options.get("combine_strategy", "linear")
    panel.average(
        "ours",
        names,
        weights,
        strategy=strategy,
        normalize_weights=options.get("normalize_weights", True),
        rank=options.get("svd_rank"),
    )
    panel.activate("ours")
    found = run(panel.model, io)
    drops_inverse = panel.config("ours").to_dict().get("inv_adapter") and case["construct"] == "AdapterModel"
    changes_scale = strategy == "lora_delta_w_svd" and options.get("svd_rank") != case["adapters"]["a"]["config"]["r"]
    if drops_inverse or changes_scale:  # defects 11 and 17 of docs/compatibility.md: the right value
        own = panel._weights(names, weights, options.get("normalize_weights", True))
        check_by_hand(panel, names, own, bool(changes_scale))
    else:
        assert torch.allclose(found, io["out.last_hidden_state"], atol=5e-5)


def case_average(name: str) -> set[str]:
    return set(read(name)["average"]["names"])


def prepared_without(name: str, wanted: set[str]) -> tuple[Any, dict[str, Any], dict[str, torch.Tensor]]:
    """Everything but the average that the library saved."""
    case, folder = read(name), GOLDEN / "public" / name
    small = {**case, "adapters": {key: value for key, value in case["adapters"].items() if key in wanted}}
    return prepare(small, folder), case, load_file(folder / "io.safetensors")


def check_by_hand(panel: Any, names: list[str], weights: list[float], by_update: bool) -> None:
    if not by_update:
        for key, value in panel.module("ours").state_dict().items():
            mean = sum(w * panel.module(n).state_dict()[key] for n, w in zip(names, weights, strict=True))
            assert torch.allclose(value, mean, atol=1e-6)
        return
    for place, leaf in panel.module("ours").places.items():
        deltas = sum(w * panel.module(n).places[place].delta() for n, w in zip(names, weights, strict=True))
        u, s, vh = torch.linalg.svd(deltas)
        nearest = (u[:, : leaf.r] * s[: leaf.r]) @ vh[: leaf.r]
        assert torch.allclose(leaf.delta(), nearest, atol=1e-5)


@pytest.mark.parametrize("name", WEIGHTED)
def test_golden_weighted(name: str) -> None:
    panel, case, io = prepared(name)
    options = case["add_weighted_adapter"]
    torch.manual_seed(0)
    draw_as_peft(panel)
    panel.combine(
        "ours",
        options["adapters"],
        options["weights"],
        strategy=options["combination_type"],
        rank=options.get("svd_rank"),
        density=options.get("density") or 1.0,
        majority=options.get("majority_sign_method") or "total",
    )
    for place, leaf in panel.module("ours").places.items():
        assert torch.allclose(leaf.delta(), panel.module("comb").places[place].delta(), atol=2e-5), place.key
    panel.activate("ours")
    assert torch.allclose(run(panel.model, io), io["out.last_hidden_state"], atol=5e-5)


def draw_as_peft(panel: Any) -> None:
    """PEFT makes and fills the new adapter's layers before it draws what DARE keeps: draw the same numbers."""
    for leaf in panel.module("comb").places.values():
        a = nn.Linear(leaf.target.inputs, leaf.r, bias=False)
        nn.Linear(leaf.r, leaf.target.outputs, bias=False)
        nn.init.kaiming_uniform_(a.weight, a=5**0.5)


def test_golden_ejected_prefix() -> None:
    name = "bert__eject_prefix"
    if name not in EVERY:
        pytest.skip("not in this set of cases")
    panel, _, io = prepared(name)
    before = panel.parameters_of("a")
    panel.eject_prefix("a")
    assert panel.config("a").flat
    assert panel.parameters_of("a") < before
    panel.activate("a")
    assert torch.allclose(run(panel.model, io), io["out.last_hidden_state"], atol=2e-5)


def test_a_merged_adapter_is_not_activated_again(tiny: Any) -> None:
    panel = adapters(tiny)
    panel.add("a", "lora")
    panel.merge("a")
    for bad in (lambda: panel.activate("a"), lambda: panel.merge("a"), lambda: panel.unmerge("b")):
        with pytest.raises(UsageError):
            bad()
    panel.detach()


@pytest.mark.parametrize("config", ["seq_bn", "lora[use_gating=True]", "ia3[use_gating=True]", "prefix_tuning"])
def test_what_depends_on_its_input_cannot_be_merged(tiny: Any, config: str) -> None:
    panel = adapters(tiny)
    panel.add("a", config)
    weights = {key: value.clone() for key, value in tiny.state_dict().items()}
    with pytest.raises(UsageError, match="merged"):
        panel.merge("a")
    assert all(torch.equal(value, weights[key]) for key, value in tiny.state_dict().items())


def test_detach_takes_merged_adapters_out(tiny: Any) -> None:
    weights = {key: value.clone() for key, value in tiny.state_dict().items()}
    panel = adapters(tiny)
    for name in ("a", "b"):
        panel.add(name, "lora[init_weights=bert]")
        panel.merge(name)
    panel.detach()
    assert all(torch.equal(value, weights[key]) for key, value in tiny.state_dict().items())


def noisy(panel: Any, *names: str) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in names:
            for parameter in panel.module(name).parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


def hidden(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS)[0]


@pytest.mark.parametrize("config", ["lora[{}]", "dora[{}]"])
def test_an_adapter_of_an_embedding_is_merged(tiny: Any, config: str) -> None:
    panel = adapters(tiny)
    before = hidden(tiny)
    panel.add("a", config.format("target_modules=['embeddings.word_embeddings']"))
    noisy(panel, "a")
    panel.active = "a"
    active = hidden(tiny)
    assert not torch.allclose(active, before, atol=1e-3)
    panel.merge("a")
    assert torch.allclose(hidden(tiny), active, atol=1e-5)
    panel.unmerge("a")
    assert torch.equal(hidden(tiny), before)


def test_nothing_is_saved_from_a_model_with_merged_weights(tiny: Any, tmp_path: Path) -> None:
    panel = adapters(tiny)
    panel.add("a", "lora")
    noisy(panel, "a")
    panel.merge("a")
    with pytest.raises(UsageError, match="is merged"):
        panel.save("a", tmp_path / "a")
    assert not (tmp_path / "a").exists()
    panel.unmerge("a")
    panel.save("a", tmp_path / "a")
    adaptergit.load(tmp_path / "a", tiny_model())


def test_heads_are_averaged_as_the_adapters_are(tiny: Any) -> None:
    panel = adapters(tiny)
    for name in ("a", "b"):
        panel.add(name, "lora")
        panel.add_head(name, ClassificationHead(num_labels=3))
    noisy(panel, "a", "b")

    def weights(name: str) -> torch.Tensor:
        return torch.cat([parameter.detach().view(-1) for parameter in panel.head_module(name).parameters()])

    panel.average("sum", ["a", "b"], [0.5, 0.7], normalize_weights=False)
    assert torch.allclose(weights("sum"), 0.5 * weights("a") + 0.7 * weights("b"), atol=1e-6)
    panel.combine("mean", ["a", "b"], [1.0, 3.0])
    assert torch.allclose(weights("mean"), 0.25 * weights("a") + 0.75 * weights("b"), atol=1e-6)
    panel.combine("less", ["a", "b"], [1.0, -0.9])
    assert torch.allclose(weights("less"), weights("a"))
    panel.combine("nothing", ["a", "b"], [-1.0, -0.9])
    assert "nothing" not in panel.heads


def test_weights_that_another_module_shares_are_not_merged_into() -> None:
    from conftest import tiny_model

    model = tiny_model("gpt2", "AutoModelForCausalLM")
    panel = adapters(model)
    panel.add("a", "lora[target_modules=['wte']]")
    with pytest.raises(UsageError, match="shares its weights"):
        panel.merge("a")


def test_what_else_is_active_stays_when_an_adapter_is_merged(tiny: Any) -> None:
    panel = adapters(tiny)
    panel.add("a", "lora")
    panel.add("s", "seq_bn")
    panel.add_head("s", ClassificationHead(num_labels=3))
    noisy(panel, "a", "s")
    panel.activate("Stack(a, s)", skip_layers=[1])
    with pytest.raises(UsageError, match="left out in some blocks"):
        panel.merge("a")
    panel.activate("Stack(a, s)")
    expected = hidden(tiny)
    panel.merge("a")
    assert (panel.active, panel.active_head) == ("s", "s")
    torch.testing.assert_close(hidden(tiny), expected)
    merged = hidden(tiny)
    panel.unmerge("a")
    panel.activate("Stack(a, s)")
    panel.merge("a")
    assert torch.equal(hidden(tiny), merged)
    panel.detach()
    panel = adapters(tiny)
    for name in ("a", "b"):
        panel.add(name, "lora")
    for text, why in (
        ("Average(a, b)", "is active in"),
        ("Parallel(a, b)", "is active in"),
        ("Stack(a, b)", "works on"),
    ):
        panel.active = text
        with pytest.raises(UsageError, match=why):
            panel.merge("a")
        assert str(panel.active) == text
    panel.active = "a"
    panel.merge("a")
    assert panel.active is None
    assert expected.shape == merged.shape


@pytest.mark.parametrize("strategy", COMBINATIONS)
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_loras_with_biases_and_in_fused_layers_are_combined(name: str, strategy: str) -> None:
    """In GPT-2, queries, keys and values are one layer; the LoRAs adapt two of them."""
    from conftest import tiny_model

    model = tiny_model(name)
    panel = adapters(model)
    configs = ("lora[r=2, alpha=4, lora_bias=True]", "lora[r=2, alpha=1, lora_bias=True]")
    for one, config in zip("ab", configs, strict=True):
        panel.add(one, config)
        panel.add_head(one, ClassificationHead(num_labels=3))
    noisy(panel, "a", "b")
    panel.combine("c", ["a", "b"], [0.7, -0.4], strategy=strategy, rank=4 if "svd" in strategy else None)
    if strategy in ("cat", "svd", "ties_svd", "dare_linear_svd", "magnitude_prune_svd"):  # nothing is pruned or cut
        exact = strategy != "ties_svd"
        for place, leaf in panel.module("c").places.items():
            a, b = (panel.module(one).places[place] for one in "ab")
            assert torch.allclose(leaf.delta(), 0.7 * a.delta() - 0.4 * b.delta(), atol=1e-5) == exact
            bias = 0.7 * a.scale * a.lora_bias - 0.4 * b.scale * b.lora_bias
            assert torch.allclose(leaf.scale * leaf.lora_bias, bias, atol=1e-5) == exact
    panel.active = "c"
    assert torch.isfinite(hidden(model)).all()
    assert panel.active_head == "c", "heads of what is added are averaged"
    assert torch.allclose(head_of(panel, "c"), head_of(panel, "a"), atol=1e-6)


MERGEABLE = [
    "lora[r=2]", "dora[r=2]", "dora[r=2, dora_norm=adapters]", "vera[r=2]", "mtl_lora[r=2]",
    "ia3[intermediate_lora=False, attn_matrices=['q', 'v']]", "loha[r=2]", "lokr[r=2]", "miss[r=2]",
    "oft[block_size=8]", "hra[r=2]", "fourierft[n_frequency=20]",
]  # fmt: skip


@pytest.mark.parametrize("config", MERGEABLE)
def test_whatever_changes_weights_is_added_up_to_a_lora(config: str) -> None:
    """With all ranks kept, the LoRA does what all do together when each is merged alone."""
    model = tiny_model("bert")
    panel = adapters(model)
    panel.add("a", config)
    panel.add("b", "lora[r=3]")
    noisy(panel, "a", "b")
    weights = {path: value.clone() for path, value in model.state_dict().items()}
    changes = {path: torch.zeros_like(value) for path, value in weights.items()}
    for name, weight in (("a", 0.5), ("b", -2.0)):
        panel.merge(name)
        for path, value in model.state_dict().items():
            changes[path] += weight * (value - weights[path])
        panel.unmerge(name)
    panel.combine("c", ["a", "b"], [0.5, -2.0], strategy="svd", rank=32)
    assert panel.config("c").method == "lora"
    assert panel.names == ["a", "b", "c"]
    panel.merge("c")
    assert any(change.abs().sum() > 0 for change in changes.values())
    for path, value in model.state_dict().items():
        torch.testing.assert_close(value, weights[path] + changes[path], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", ["ia3", "tuned"])
@pytest.mark.parametrize("strategy", ["linear", "ties", "magnitude_prune", "dare_linear"])
def test_what_starts_from_no_change_is_combined_by_how_far_it_went(config: str, strategy: str) -> None:
    model = tiny_model("bert")
    panel = adapters(model)
    chosen: Any = config
    if config == "tuned":
        chosen = TunedParameters(parameters=("encoder.layer.0.output.LayerNorm.weight", "pooler.dense.bias"))
    for name in "abc":
        panel.add(name, chosen)
    noisy(panel, "a", "b")
    panel.combine("made", ["a", "b"], [0.5, 2.0], strategy=strategy, density=1.0)
    start = panel.module("c").state_dict()
    for key, value in panel.module("made").state_dict().items():
        steps = [
            weight * (panel.module(name).state_dict()[key] - start[key]) for name, weight in (("a", 0.5), ("b", 2.0))
        ]
        if strategy == "ties":  # the mean of the entries whose sign is that of the sum without weights
            sign = torch.where(steps[0] / 0.5 + steps[1] / 2.0 >= 0, 1, -1)
            agree = torch.stack([step.sign() == sign for step in steps])
            expected = start[key] + (torch.stack(steps) * agree).sum(0) / agree.sum(0).clamp(min=1)
        else:
            expected = start[key] + steps[0] + steps[1]
        torch.testing.assert_close(value, expected)
    panel.combine("back", ["a", "a"], [1.0, -1.0], strategy="linear")
    panel.active = "back"
    changed = hidden(model)
    panel.active = None
    torch.testing.assert_close(changed, hidden(model))


@pytest.mark.parametrize(
    ("configs", "options", "message"),
    [
        (("seq_bn", "seq_bn"), {"strategy": "ties"}, "ties is not defined for seq_bn"),
        (("seq_bn", "seq_bn"), {"strategy": "svd", "rank": 2}, "same linear layers"),
        (("dora", "dora"), {}, "cat is not defined for dora"),
        (("ia3", "ia3"), {}, "cat is not defined for ia3"),
        (("ia3", "ia3[use_gating=True]"), {"strategy": "ties"}, "not defined for ia3"),
        (("ia3", "ia3[use_gating=True]"), {"strategy": "svd", "rank": 2}, "depends on its input"),
        (("ia3", "ia3[alpha=2]"), {"strategy": "ties"}, "one configuration"),
        (("ia3", "lora"), {"strategy": "svd", "rank": 2}, "same linear layers"),
        (("dora", "lora"), {"strategy": "svd"}, "rank"),
    ],
)
def test_what_is_not_defined_is_refused(configs: tuple[str, str], options: dict[str, Any], message: str) -> None:
    panel = adapters(tiny_model("bert"))
    for name, config in zip("ab", configs, strict=True):
        panel.add(name, config)
    with pytest.raises(UsageError, match=message):
        panel.combine("c", ["a", "b"], **options)
    assert panel.names == ["a", "b"]


@pytest.mark.parametrize(("name", "rank"), [("gpt2", 40), ("llama", 40), ("bert", 64)])
def test_a_rank_above_what_a_layer_has_is_all_it_has(name: str, rank: int) -> None:
    model = tiny_model(name)
    panel = adapters(model)
    for one in "ab":
        panel.add(one, "lora[attn_matrices=['q', 'k', 'v'], r=2]")
    noisy(panel, "a", "b")
    panel.combine("c", ["a", "b"], [0.5, -2.0], strategy="svd", rank=rank)
    for place, leaf in panel.module("c").places.items():
        a, b = (panel.module(one).places[place] for one in "ab")
        torch.testing.assert_close(leaf.delta(), 0.5 * a.delta() - 2.0 * b.delta(), atol=1e-5, rtol=1e-4)


def test_changes_are_read_off_the_models_own_weights(tiny: Any) -> None:
    panel = adapters(tiny)
    for name in "ab":
        panel.add(name, "dora")
    panel.add("l", "lora")
    panel.merge("l")
    for make in (panel.combine, panel.average):
        with pytest.raises(UsageError, match="l is merged"):
            make("c", ["a", "b"], strategy="svd" if make == panel.combine else "lora_delta_w_svd", rank=2)
    panel.unmerge("l")
    panel.combine("c", ["a", "b"], strategy="svd", rank=2)


def test_a_head_goes_on_answering_when_its_adapter_is_merged() -> None:
    model = tiny_model("bert", "AutoModelForSequenceClassification")
    panel = adapters(model)
    panel.add("a", "lora")
    noisy(panel, "a")
    panel.add_head("a", ClassificationHead(num_labels=5))
    panel.active = "a"
    with torch.no_grad():
        before = model(IDS).logits
        panel.merge("a")
        torch.testing.assert_close(model(IDS).logits, before, atol=1e-5, rtol=1e-5)
    assert (panel.active, panel.active_head) == (None, "a")


def head_of(panel: Any, name: str) -> torch.Tensor:
    return panel.head_module(name).linears[0].weight


def test_heads_that_differ_are_left_alone(tiny: Any) -> None:
    panel = adapters(tiny)
    for name, count in (("a", 2), ("b", 5)):
        panel.add(name, "lora")
        panel.add_head(name, ClassificationHead(num_labels=count))
    panel.average("c", ["a", "b"])
    panel.combine("d", ["a", "b"])
    assert panel.heads == ["a", "b"]


@pytest.mark.parametrize("config", ["prefix_tuning[prefix_length=3]|par_bn", "unipelt"])
def test_prefixes_in_a_union_are_ejected(tiny: Any, config: str) -> None:
    panel = adapters(tiny)
    panel.add("a", config)
    noisy(panel, "a")
    panel.active = "a"
    expected, before = hidden(tiny), panel.parameters_of("a")
    panel.active = None
    panel.eject_prefix("a")
    assert panel.parameters_of("a") < before
    panel.active = "a"
    assert torch.allclose(hidden(tiny), expected, atol=1e-6)
    panel.add("b", "seq_bn|lora")
    with pytest.raises(UsageError, match="prefix"):
        panel.eject_prefix("b")


@pytest.fixture
def tiny() -> nn.Module:
    from conftest import tiny_model

    return tiny_model()


def test_a_merged_model_that_was_cast_is_restored_in_its_new_dtype() -> None:
    model = tiny_model()
    wanted = {key: value.to(torch.bfloat16) for key, value in model.state_dict().items()}
    panel = adapters(model)
    panel.add("x", "lora")
    with torch.no_grad():
        for parameter in panel.module("x").parameters():
            parameter.add_(0.1)
    panel.merge("x")
    model.to(torch.bfloat16)
    panel.unmerge("x")
    assert all(torch.equal(value, wanted[key]) for key, value in model.state_dict().items())
    assert {value.dtype for key, value in model.state_dict().items() if value.is_floating_point()} == {torch.bfloat16}


def test_unions_of_veras_with_other_random_matrices_are_not_averaged(tiny: Any) -> None:
    panel = adapters(tiny)
    for name in "ab":
        panel.add(name, "vera|seq_bn")
    with pytest.raises(UsageError, match="different random matrices"):
        panel.average("c", ["a", "b"])
    for name in "de":
        panel.add(name, "vera[init_weights_seed=3]|seq_bn")
    panel.average("f", ["d", "e"])
