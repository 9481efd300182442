"""Compositions: the grammar, and any nesting against a slow reference that runs each leaf alone."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import hypothesis.strategies as st
import pytest
import torch
import transformers
from conftest import tiny_model
from hypothesis import HealthCheck, given, settings
from reference import Reference

from adaptergit.errors import UsageError
from adaptergit.splice import (
    Average,
    BatchSplit,
    Fuse,
    MultiTask,
    Parallel,
    Route,
    Split,
    Stack,
    adapters,
    each,
    parse_composition,
)
from adaptergit.splice.composition import copies_of

ROWS, LENGTH = 4, 6
ADAPTERS = {
    "a": "seq_bn[reduction_factor=4]",
    "b": "double_seq_bn[reduction_factor=8]",
    "p": "par_bn[reduction_factor=4]",
    "l": "lora[r=2]",
    "i": "ia3",
    "n": "seq_bn[original_ln_before=False, ln_after=True, use_gating=True]",
}
FUSED = [("a", "n"), ("n", "p"), ("a", "p")]


@pytest.fixture(scope="module", params=["bert", "llama"])
def panel(request: pytest.FixtureRequest) -> Any:
    # In double precision: a softmax over large scores makes much of a little rounding.
    model = tiny_model(request.param).double()
    panel = adapters(model)
    for name, config in ADAPTERS.items():
        panel.add(name, config)
    for names in FUSED:
        panel.add_fusion(Fuse(*names))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for holder in [*map(panel.module, panel.names), *map(panel.fusion_module, panel.fusions)]:
            for parameter in holder.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return panel


names = st.sampled_from(list(ADAPTERS))


def shares(total: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(1, total - 1), min_size=1, max_size=2, unique=True).map(
        lambda cuts: [b - a for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), total], strict=True)]
    )


def blocks(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Blocks that do not share out rows: what stands in them sees every row."""
    some = st.lists(inner, min_size=2, max_size=3)
    return st.one_of(
        some.map(lambda children: Stack(*children)),
        st.tuples(some, st.lists(st.floats(0.1, 2), min_size=3, max_size=3)).map(
            lambda pair: Average(*pair[0], weights=pair[1][: len(pair[0])])
        ),
        st.sampled_from(FUSED).map(lambda pair: Fuse(*pair)),
    )


inside = st.recursive(names, blocks, max_leaves=4)


@st.composite
def trees(draw: st.DrawFn) -> Any:
    """Rows shared out at the top, positions below, the rest inside."""
    kind = draw(st.sampled_from(["plain", "split", "rows", "parallel", "route", "tasks"]))
    if kind == "split":
        sizes = draw(shares(LENGTH))
        return Split(*[draw(inside) for _ in sizes], splits=sizes)
    if kind == "rows":
        sizes = draw(shares(ROWS))
        return BatchSplit(*[draw(inside) for _ in sizes], batch_sizes=sizes)
    if kind == "parallel":
        return Parallel(*draw(st.lists(inside, min_size=2, max_size=3)))
    if kind == "route":
        return Route(*draw(st.lists(st.none() | names, min_size=ROWS, max_size=ROWS)))
    if kind == "tasks":
        return MultiTask(*draw(st.lists(inside, min_size=2, max_size=2)))
    return draw(inside)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=trees(), tasks=st.lists(st.integers(0, 1), min_size=ROWS, max_size=ROWS))
def test_every_leaf_acts_as_if_it_were_alone(panel: Any, tree: Any, tasks: list[int]) -> None:
    model = panel.model
    ids = torch.randint(5, 60, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    panel.activate(None)
    if stacks_updates(tree):
        return  # a Stack of LoRAs is a chain of updates; of unequal sizes, an error
    with Reference(panel, tree, tasks), torch.no_grad():
        expected = model(ids.repeat(copies_of(tree), 1))[0]
    panel.activate(tree, task_ids=tasks)
    with torch.no_grad():
        found = model(ids)[0]
    panel.activate(None)
    assert torch.allclose(found, expected, atol=1e-8), str(tree)


def stacks_updates(tree: Any) -> bool:
    """Whether more than one adapter of the LoRA kind, or a block with one, is in a Stack."""
    if not hasattr(tree, "children"):
        return False
    low = [
        child
        for child in tree.children
        if child and set("li") & set([child] if isinstance(child, str) else child.names())
    ]
    return (isinstance(tree, Stack) and len(low) > 1) or any(map(stacks_updates, tree.children))


METHODS = {
    **ADAPTERS,
    "compacter": "compacter[phm_dim=2, reduction_factor=4]",
    "nice": "seq_bn_inv[reduction_factor=4, inv_adapter_reduction_factor=2]",
    "glow": "seq_bn[reduction_factor=4, inv_adapter=glow, inv_adapter_reduction_factor=2]",
    "dora": "dora[r=2]",
    "vera": "vera[r=2]",
    "dvora": "dvora[r=2]",
    "gated": "lora[r=2, use_gating=True]",
    "prefix": "prefix_tuning[prefix_length=3, bottleneck_size=4]",
    "flat": "prefix_tuning_flat[prefix_length=2]",
    "loreft": "loreft[r=2, prefix_positions=1, suffix_positions=1]",
    "direft": "direft[prefix_positions=2]",
    "mam": "prefix_tuning[prefix_length=1, bottleneck_size=4] | par_bn[reduction_factor=4]",
}
alone = st.sampled_from(list(METHODS))
stacked = st.tuples(alone, alone).filter(lambda pair: pair[0] != pair[1]).map(lambda pair: Stack(*pair))


@st.composite
def trees_of_rows(draw: st.DrawFn) -> Any:
    """Every row with adapters of its own, at the top or below a Stack."""
    kind = draw(st.sampled_from([BatchSplit, Parallel, Route, MultiTask]))
    if kind is Route:
        return Route(*draw(st.lists(st.none() | alone, min_size=ROWS, max_size=ROWS)))
    if kind is BatchSplit:
        sizes = draw(shares(ROWS))
        tree: Any = BatchSplit(*[draw(alone | stacked) for _ in sizes], batch_sizes=sizes)
    else:
        tree = kind(*draw(st.lists(alone | stacked, min_size=2, max_size=2)))
    return Stack(draw(alone), tree) if draw(st.booleans()) else tree


@pytest.fixture(scope="module", params=["bert", "llama", "t5"])
def methods(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    small = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 70}
    t5 = transformers.T5Config(**small, tie_word_embeddings=False)
    model = transformers.T5Model(t5).eval() if request.param == "t5" else tiny_model(request.param)
    if request.param == "llama":
        model.set_attn_implementation("sdpa")  # its eager softmax is in single precision whatever the model is
    panel = adapters(model.double())
    for name, config in METHODS.items():
        panel.add(name, config)
    with torch.no_grad():
        for module in map(panel.module, panel.names):
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape) * 0.2)
    return panel


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tree=trees_of_rows(),
    tasks=st.lists(st.integers(0, 1), min_size=ROWS, max_size=ROWS),
    left=st.booleans(),
    fewest=st.sampled_from([1, 2, each.FEWEST]),
)
def test_every_row_is_as_if_its_adapters_were_alone(
    methods: Any, tree: Any, tasks: list[int], left: bool, fewest: int
) -> None:
    ids = torch.randint(5, 60, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row in range(1, ROWS):
        mask[row, slice(row - 1) if left else slice(LENGTH - row + 1, None)] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if methods.model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids.flip(1)
    rows, seen = ROWS * copies_of(tree), mask.bool().repeat(copies_of(tree), 1)
    reference, expected = Reference(methods, tree, tasks), []
    for row in range(rows):
        own = {key: value[row % ROWS][None] for key, value in inputs.items()}
        with methods.using(reference.row(tree, row, rows)), torch.no_grad():
            expected.append(methods.model(**own)[0])
    with methods.using(tree, task_ids=tasks), torch.no_grad(), patch.object(each, "FEWEST", fewest):
        found = methods.model(**inputs)[0]
    if "decoder_input_ids" in inputs:
        seen = torch.ones_like(seen)
    # T5's softmax in transformers 4 is in single precision whatever the model is.
    assert torch.allclose(found[seen], torch.cat(expected)[seen], atol=1e-5), str(tree)


@given(tree=trees())
def test_a_composition_survives_its_string(tree: Any) -> None:
    again = parse_composition(str(tree))
    assert str(again) == str(tree)
    if not isinstance(tree, str):
        assert again == tree


@pytest.mark.parametrize(
    "text",
    [
        "Stack(a, Fuse(a, b, name='x'))",
        "Split(a, Stack(a, b), splits=[2, 4])",
        "BatchSplit(a, b, batch_sizes=[1, 3])",
        "Average(a, b, weights=[0.5, 0.25], normalize_weights=False)",
        "Parallel(a, Stack(b, 'my adapter (old)'))",
        "Route(a, None, b)",
        "MultiTask(a, b)",
    ],
)
def test_strings_go_both_ways(text: str) -> None:
    assert str(parse_composition(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "Parallel(a, Parallel(b, l))",
        "Average(Parallel(a, b), l)",
        "Stack(Parallel(a, b), Parallel(a, b))",
        "Fuse(a, l)",
        "Fuse(a, i)",
        "Split(a, b, splits=[1])",
        "Average(a, b, weights=[1, -1])",
    ],
)
def test_what_has_no_meaning_is_refused(panel: Any, text: str) -> None:
    with pytest.raises(UsageError):
        panel.activate(text)
    assert panel.active is None


@pytest.mark.parametrize(
    "text", ["BatchSplit(a, b, batch_sizes=[1, 2])", "Split(a, b, splits=[1, 1])", "Route(a, b, a)"]
)
def test_sizes_that_do_not_fit_the_batch_are_named(panel: Any, text: str) -> None:
    ids = torch.randint(5, 60, (ROWS, LENGTH))
    with panel.using(text), pytest.raises(UsageError, match=r"rows|positions"):
        panel.model(ids)


def test_a_fusion_needs_adapters_at_the_same_places(panel: Any) -> None:
    for names in ("a,b", "l,i"):
        with pytest.raises(UsageError):
            panel.add_fusion(names)
    assert panel.fusions == [",".join(names) for names in FUSED]


def test_a_route_with_beams(panel: Any) -> None:
    """Beam search repeats every row: its adapter goes with it."""
    ids = torch.randint(5, 60, (2, LENGTH))
    with panel.using(Route("a", "b")), torch.no_grad():
        one = panel.model(ids)[0]
        two = panel.model(ids.repeat_interleave(3, 0))[0]
    assert torch.allclose(two[::3], one, atol=1e-5)


def test_attention_of_a_fusion_can_be_read(panel: Any) -> None:
    for module in panel.fused("a,n").modules.values():
        module.keep_attention = True
    with panel.using("Fuse(a, n)"), torch.no_grad():
        panel.model(torch.randint(5, 60, (ROWS, LENGTH)))
    attention = next(iter(panel.fused("a,n").modules.values())).attention
    assert attention.shape == (ROWS, LENGTH, 2)
    assert torch.allclose(attention.sum(-1), torch.ones(ROWS, LENGTH, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["Deberta", "DebertaV2"])
@pytest.mark.parametrize("dtype", [None, torch.long, torch.float32])
def test_debertas_prefixes_act_on_their_rows_whatever_the_mask_is(kind: str, dtype: torch.dtype | None) -> None:
    """The model makes masks of ones and zeros, of the dtype it was given, or of floats."""
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    relative = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 8}
    config = getattr(transformers, f"{kind}Config")(vocab_size=70, share_att_key=True, **small, **relative)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    panel = adapters(model)
    for name, method in (
        ("f", "prefix_tuning_flat[prefix_length=3]"),
        ("s", "seq_bn[reduction_factor=4]"),
        ("l", "lora"),
    ):
        panel.add(name, method)
        with torch.no_grad():
            for parameter in panel.module(name).parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.3)
    ids = torch.randint(5, 60, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    given = {} if dtype is None else {"attention_mask": torch.ones(ROWS, LENGTH, dtype=dtype)}
    outputs = {}
    with torch.no_grad():
        for name in ("f", "s", None):
            with panel.using(name):
                outputs[name] = model(ids, **given)[0]
        assert not torch.allclose(outputs["f"], outputs[None], atol=0.01)
        with panel.using(Route("f", "s", None, "f")):
            found = model(ids, **given)[0]
    for row, name in enumerate(("f", "s", None, "f")):
        assert torch.allclose(found[row], outputs[name][row], atol=1e-5)
    if kind == "DebertaV2":  # the layers that project tokens project positions too, which belong to no row
        with panel.using(Route("l", "l", None, "l")), pytest.raises(UsageError, match="positions"):
            model(ids)


# --- kinds of updates of one projection ---------------------------------------------------------------------------------


def projections() -> tuple[Any, Any, torch.Tensor]:
    model = tiny_model()
    panel = adapters(model)
    for number, (name, config) in enumerate(
        [("lora", "lora"), ("dora", "dora"), ("ia3", "ia3"), ("vera", "vera"), ("other", "lora")]
    ):
        panel.add(name, config)
        if name != "other":
            generator = torch.Generator().manual_seed(number)
            with torch.no_grad():
                for parameter in panel.module(name).parameters():
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    panel.add("unit", "ia3")
    return model, panel, torch.arange(5, 17).reshape(2, 6)


@pytest.mark.parametrize("one", ["lora", "dora", "ia3"])
def test_what_changes_nothing_alone_changes_nothing_behind_another_kind(one: str) -> None:
    model, panel, ids = projections()
    panel.activate(one)
    alone = model(input_ids=ids).last_hidden_state
    for other in {"lora": ["unit"], "dora": ["unit", "other"], "ia3": ["other"]}[one]:
        for composition in (Stack(one, other), Stack(other, one)):
            panel.activate(composition)
            torch.testing.assert_close(model(input_ids=ids).last_hidden_state, alone, msg=str(composition))


@pytest.mark.parametrize("first", ["lora", "ia3", "vera"])
def test_a_split_in_a_stack_keeps_what_came_before(first: str) -> None:
    model, panel, ids = projections()
    second = first if first != "lora" else "vera"
    panel.activate(Stack(first, second))
    wanted = model(input_ids=ids).last_hidden_state
    panel.activate(Stack(first, Split(second, second, splits=[2, 4])))
    torch.testing.assert_close(model(input_ids=ids).last_hidden_state, wanted)


def test_splits_longer_than_the_sequence_are_refused() -> None:
    model, panel, ids = projections()
    panel.add("a")
    panel.add("b")
    for pair in (("a", "b"), ("lora", "other")):
        panel.activate(Split(*pair, splits=[4, 4]))
        with pytest.raises(UsageError, match="8 positions of a sequence of 6"):
            model(input_ids=ids)


def test_a_fusion_is_used_for_its_own_adapters_only() -> None:
    _, panel, _ = projections()
    for name in "abcd":
        panel.add(name)
    panel.add_fusion(Fuse("a", "b"), name="f")
    panel.activate("Fuse(a, b, name='f')")
    panel.activate("Fuse(a, Stack(c, b), name='f')")
    with pytest.raises(UsageError, match="made for a, b, and not for"):
        panel.activate("Fuse(c, d, name='f')")


MANY = 10


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize(
    "config",
    [
        "seq_bn[reduction_factor=4]",
        "double_seq_bn[reduction_factor=8, use_gating=True, scaling=learned]",
        "adapter_plus[reduction_factor=4]",
        "compacter[phm_dim=2, reduction_factor=4]",
        "scaled_par_bn[reduction_factor=4]",
        "lora[r=2, lora_bias=True]",
        "lora[r=2, use_gating=True]",
        "dora[r=2, target_modules=all-linear]",
        "seq_bn[reduction_factor=4]|lora[r=2]",
        "ia3",
        "seq_bn_inv[reduction_factor=4]",
        "loreft[r=2]",
        "prefix_tuning[prefix_length=2, flat=True]",
    ],
)
def test_many_alike_adapters_act_on_their_rows_as_each_does_alone(name: str, config: str) -> None:
    model = tiny_model(name)
    panel = adapters(model)
    for number in range(MANY):
        panel.add(f"a{number}", config)
    panel.add("below", "lora[r=3]" if name == "llama" else "double_seq_bn[reduction_factor=2]")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for adapter in panel.names:
            for parameter in panel.module(adapter).parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    # Every adapter, one of them twice and apart, in no order, with rows that have none, or another below.
    trees = [
        *(f"a{n}" for n in (3, 1, 0, 2, 4, 5, 9, 8, 7, 6, 3)),
        None,
        "below",
        *(Stack("below", f"a{n}") for n in range(9)),
    ]
    ids = torch.randint(5, 60, (len(trees), LENGTH), generator=generator)
    panel.route(trees)
    with torch.no_grad():
        mixed = model(ids)[0]
    inferred = model(ids)[0]  # with gradients, one after another
    torch.testing.assert_close(mixed, inferred, atol=1e-5, rtol=1e-4)
    for row, tree in enumerate(trees):
        panel.active = tree
        with torch.no_grad():
            torch.testing.assert_close(mixed[row : row + 1], model(ids[row : row + 1])[0], atol=1e-5, rtol=1e-4)


def test_alike_adapters_with_another_between_them_keep_their_rows(panel: Any) -> None:
    chosen = ["a", "l", "twin"]
    panel.add("twin", ADAPTERS["a"])
    panel.route(chosen)
    ids = torch.randint(5, 60, (3, LENGTH), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mixed = panel.model(ids)[0]
        for row, name in enumerate(chosen):
            panel.active = name
            torch.testing.assert_close(mixed[row : row + 1], panel.model(ids[row : row + 1])[0])
    panel.remove("twin")


def test_many_alike_adapters_are_those_of_now() -> None:
    model = tiny_model().eval()
    panel = adapters(model)
    for number in range(MANY):
        panel.add(f"a{number}", "seq_bn[reduction_factor=4]")
    ids = torch.randint(5, 60, (MANY, LENGTH), generator=torch.Generator().manual_seed(0))
    panel.route([f"a{number}" for number in range(MANY)])
    with torch.inference_mode():
        before = model(ids)[0]
    with torch.no_grad():
        for parameter in panel.module("a4").parameters():
            parameter.add_(0.5)
    for adapter in ("a4", "a5"):
        for path, module in panel.module(adapter).named_modules():
            for key, parameter in list(module._parameters.items()):
                if adapter == "a5" and parameter is not None:
                    module._parameters[key] = torch.nn.Parameter(parameter.detach() + 0.5)
                    assert path
    with torch.inference_mode():
        after = model(ids)[0]
    changed = [row for row in range(MANY) if not torch.equal(before[row], after[row])]
    assert changed == [4, 5]
    model.to(torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(ids)[0].float(), after, atol=1e-5, rtol=1e-4)
    model.float().train()
    with torch.no_grad():
        assert model(ids)[0].isfinite().all()
