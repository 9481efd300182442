"""Where adapters go: sites of the table, sites that were watched, and sites by hand, held against a forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
import transformers
from conftest import tiny_model
from torch import nn

from adaptergit.errors import ModelError, UsageError
from adaptergit.splice import Bottleneck, Site, adapters, anatomy_of
from adaptergit.splice.anatomy import branch_and_role, introspect

IDS = torch.randint(5, 60, (2, 8), generator=torch.Generator().manual_seed(3))
EVERYWHERE = Bottleneck(
    mh_adapter=True, output_adapter=True, cross_adapter=True, reduction_factor=8, non_linearity="relu"
)


def crossing(name: str) -> nn.Module:
    """A decoder that reads an encoder too."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 72, "add_cross_attention": True, "is_decoder": True}
    sizes |= (
        {"n_embd": 16, "n_layer": 2, "n_head": 2}
        if name == "gpt2"
        else {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    )
    return transformers.AutoModel.from_config(transformers.AutoConfig.for_model(name, **sizes)).eval()


@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-roberta", "camembert", "electra", "gpt2"])
def test_a_decoder_that_reads_an_encoder_has_a_branch_for_it(name: str) -> None:
    model = crossing(name)
    given = {"input_ids": IDS, "encoder_hidden_states": torch.randn(2, 5, 16)}
    sites = anatomy_of(model).sites
    assert [site.branch for site in sites] == ["attention", "cross_attention", "ffn"] * 2
    assert {site.key for site in introspect(model, given)} == {site.key for site in sites}
    assert anatomy_of(model, sites=sites, inputs=given).sites == sites
    before = model(**given)[0]
    panel = adapters(model)
    panel.add("a", replace(EVERYWHERE, mh_adapter=False, output_adapter=False))
    assert len(panel.spliced("a").parts.places) == 2
    panel.active = "a"
    for parameter in panel.module("a").parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(model(**given)[0], before)
    for parameter in panel.module("a").parameters():
        nn.init.normal_(parameter)
    assert not torch.allclose(model(**given)[0], before, atol=1e-3)
    panel.active = None
    panel.add("l", "lora[init_weights=bert, intermediate_lora=True]")
    panel.active = "l"
    assert not torch.equal(model(**given)[0], before)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_the_table_says_what_is_seen(name: str) -> None:
    """Or a larger module that stands for the same branch."""
    model = tiny_model(name)
    sites = anatomy_of(model).sites
    assert anatomy_of(model, sites=sites).sites == sites
    assert anatomy_of(model, sites=introspect(model)).sites == introspect(model)


def bert_sites(**changes: Any) -> list[Site]:
    first, *others = anatomy_of(tiny_model("bert")).sites
    return [replace(first, **changes), *others]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"residual": "encoder.layer.0.output.LayerNorm"}, "does not run after"),
        ({"residual": "pooler"}, "does not run after"),
        ({"residual": "encoder.layer.0.attention.self.query"}, None),
        ({"residual": "encoder.layer.0.attention.output.dense"}, "not called with the stream"),
        ({"output": "encoder.layer.0.attention.output.dense"}, None),
        ({"output": "encoder.layer.0.attention.self.value"}, "nothing adds"),
        ({"output": "encoder.layer.0.intermediate.dense", "residual": "encoder.layer.0.intermediate"}, "its stream is"),
        ({"norm": "encoder.layer.0.output.LayerNorm"}, "takes over the sum is encoder.layer.0.attention.output.LayerN"),
        ({"norm": None}, "takes over the sum is encoder.layer.0.attention.output.LayerN"),
        ({"hidden_size": 16}, "32 wide, not 16"),
        ({"output": "pooler.dense", "residual": None}, "nothing adds"),
    ],
)
def test_a_site_by_hand_is_held_against_a_forward(changes: dict[str, Any], why: str | None) -> None:
    model = tiny_model("bert")
    sites = bert_sites(**changes)
    if why is None:
        assert anatomy_of(model, sites=sites).sites == tuple(sites)
        return
    with pytest.raises(ModelError, match=why) as caught:
        adapters(model, sites=sites)
    assert "blocks.0.attention" in caught.value.what
    assert "encoder.layer.0.attention" in str(caught.value.hint), "the module tree is shown"
    assert not hasattr(model, "adaptergit")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: record.update(branch="fnn"),
        lambda record: record.update(color="red"),
        lambda record: record.pop("output"),
        lambda record: record.update(block=7),
        lambda record: record.update(block=1),
    ],
)
def test_a_record_that_is_no_site_is_named(damage: Callable[[dict[str, Any]], object]) -> None:
    records = [asdict(site) for site in bert_sites()]
    damage(records[0])
    for given in (records[:1] if records[0].get("block") == 7 else records, []):
        with pytest.raises(UsageError):
            adapters(tiny_model("bert"), sites=given)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("block", "0"), ("block", 0.0), ("block", True), ("block", -1), ("branch", []), ("output", ""), ("output", 3),
        ("output", None), ("residual", ""), ("residual", "encoder+"), ("norm", ""), ("norm", "pooler."),
        ("hidden_size", "32"), ("hidden_size", None), ("ordinal", "x"), ("ordinal", 0), ("ordinal", 2),
        ("channels_first", 1), ("swapped", None),
    ],
)  # fmt: skip
def test_a_field_that_holds_what_it_cannot_is_named(field: str, value: Any) -> None:
    records = [asdict(site) for site in bert_sites()]
    records[0][field] = value
    with pytest.raises(UsageError, match=field) as caught:
        anatomy_of(tiny_model("bert"), sites=records)
    assert str(value) in caught.value.what


@pytest.mark.parametrize("given", ["abc", 7, [None], [7], ["block"], [("block", 0)], {"block": 0}, [Site]])
def test_what_is_no_list_of_sites_is_told_as_such(given: Any) -> None:
    model = tiny_model("bert")
    with pytest.raises(UsageError, match=r"is no (list of sites|site)") as caught:
        adapters(model, sites=given)
    assert "ordinal" in str(caught.value.hint)
    adapters(model)
    with pytest.raises(UsageError, match=r"is no (list of sites|site)"):
        adapters(model, sites=given)


@pytest.mark.parametrize("residual", ["encoder.layer.0.intermediate", "encoder.layer.0.intermediate.dense", None])
def test_two_sites_are_two_branches(residual: str | None) -> None:
    sites = bert_sites()
    again = replace(sites[1], ordinal=2, residual=residual)
    with pytest.raises(ModelError, match=r"blocks.0.ffn2: .*dropout is the output of another site, and runs 1 times"):
        adapters(tiny_model("bert"), sites=[*sites, again])


def test_sites_are_chosen_once() -> None:
    model = tiny_model("bert")
    panel = adapters(model)
    assert adapters(model, sites=panel.anatomy.sites) is panel
    with pytest.raises(UsageError, match="other sites"):
        adapters(model, sites=panel.anatomy.sites[:1])


def test_a_model_that_cannot_be_watched_shows_its_modules() -> None:
    model = transformers.AutoModel.from_config(
        transformers.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2, vocab_size=20)
    )
    with pytest.raises(ModelError, match="could not be watched") as caught:
        adapters(model, inputs={"input_ids": IDS[:, :3] * 100})
    assert "decoder.block" in str(caught.value.hint)


def test_a_stream_that_is_scaled_on_the_way_to_a_norm_has_no_norm() -> None:
    """A zero adapter is the identity even if it stands for the whole sum."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp, self.norm = nn.Sequential(nn.Linear(8, 8), nn.Tanh()), nn.LayerNorm(8)

        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.norm(hidden_states * 3.0 + self.mlp(hidden_states))
            return out

    class Scaled(transformers.PreTrainedModel):
        config_class = transformers.BertConfig

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.embed, self.blocks = nn.Embedding(72, 8), nn.ModuleList(Block() for _ in range(2))
            self.post_init()

        def get_input_embeddings(self) -> nn.Module:
            return self.embed

        def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor]:
            hidden = self.embed(input_ids)
            for block in self.blocks:
                hidden = block(hidden)
            return (hidden,)

    config = transformers.BertConfig(hidden_size=8, vocab_size=72)
    config.model_type = "scaled"
    model = Scaled(config).eval()
    before = model(IDS)[0]
    panel = adapters(model)
    assert [site.norm for site in panel.anatomy.sites] == [None, None]
    panel.add("a", "adapter_plus[reduction_factor=2]")
    for parameter in panel.module("a").parameters():
        nn.init.zeros_(parameter)
    panel.active = "a"
    assert torch.allclose(model(IDS)[0], before, atol=1e-6)


def test_a_layer_inside_a_projection_has_the_projections_role() -> None:
    """As Inkling2 has them from transformers 5.24 on: a projection with a convolution and a norm of its own."""
    assert branch_and_role("self_attn.q_proj.linear") == ("attention", "q")
    assert branch_and_role("self_attn.o_proj.linear") == ("attention", "o")
    assert branch_and_role("linear") == ("ffn", None)
