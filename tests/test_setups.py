"""Packages of more than one adapter: set-ups, fusions and heads alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import GOLDEN
from ruamel.yaml import YAML

import adaptergit
from adaptergit.errors import AdaptergitError, PackageError, UsageError
from adaptergit.formats.adapterhub_write import write_setup
from adaptergit.splice import ClassificationHead, Fuse, FusionConfig, TaggingHead, adapters
from adaptergit.splice.fusion import regularisation

IDS = torch.randint(5, 60, (2, 8), generator=torch.Generator().manual_seed(3))


def bert() -> Any:
    return transformers.AutoModel.from_pretrained(GOLDEN / "bases" / "bert").eval()


def noisy(*modules: Any) -> None:
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.2)


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    model = bert()
    panel = adapters(model)
    for name in ("de", "a", "b"):
        panel.add(name, "seq_bn")
    panel.add("l", "lora")
    panel.add_fusion("Fuse(a, b)")
    panel.add_head("ner", TaggingHead(num_labels=3, labels=("O", "B", "I")))
    panel.add_head("sst", ClassificationHead(num_labels=2))
    noisy(*(panel.module(name) for name in panel.names), panel.fusion_module("a,b"))
    return model


COMPOSITION = "Stack(de, l, Fuse(a, b))"


def test_a_set_up_is_saved_and_loaded_with_all_that_acts_in_it(model: Any, tmp_path: Path) -> None:
    panel = adapters(model)
    panel.activate(COMPOSITION, head=["ner", "sst"])
    wanted = model(IDS)
    panel.save_setup(tmp_path / "setup", name="everything", license="MIT")
    panel.save_setup(tmp_path / "same", COMPOSITION, name="everything", license="MIT")  # by its name
    for name in ("card.yaml", "adapter.safetensors"):
        assert (tmp_path / "same" / name).read_bytes() == (tmp_path / "setup" / name).read_bytes()
    other = bert()
    adaptergit.load(tmp_path / "setup", other)
    found = adapters(other)
    assert str(found.active) == COMPOSITION
    assert sorted(found.names) == ["a", "b", "de", "l"]
    assert (found.fusions, found.heads) == (["a,b"], ["ner", "sst"])
    got = other(IDS)
    for one, two in zip(got.head_outputs, wanted.head_outputs, strict=True):
        assert torch.equal(one.logits, two.logits)
    assert found.head_config("ner").labels == ("O", "B", "I")
    # Without heads, and beside others.
    third = bert()
    adapters(third).add("mine", "seq_bn")
    adaptergit.load(tmp_path / "setup", third, head=False, activate=False)
    assert adapters(third).heads == []
    assert adapters(third).active is None
    with pytest.raises(UsageError, match="already"):
        adaptergit.load(tmp_path / "setup", third)
    with pytest.raises(UsageError, match="keep their names"):
        adaptergit.load(tmp_path / "setup", bert(), name="x")


def test_a_head_and_a_fusion_alone(model: Any, tmp_path: Path) -> None:
    panel = adapters(model)
    panel.activate("Fuse(a, b)", head="ner")
    wanted = model(IDS).logits
    panel.save_head("ner", tmp_path / "head")
    panel.save_fusion("a,b", tmp_path / "fusion", name="a-and-b")
    for name in ("a", "b"):
        panel.save(name, tmp_path / name)
    other = bert()
    adaptergit.load(tmp_path / "head", other, name="tags")
    assert adapters(other).active_head == "tags"
    adaptergit.load(tmp_path / "fusion", other)  # its adapters are not there yet
    assert adapters(other).fusions == ["a,b"]
    assert adapters(other).active is None
    for name in ("a", "b"):
        adaptergit.load(tmp_path / name, other)
    adapters(other).activate("Fuse(a, b)", head="tags")
    assert torch.equal(other(IDS).logits, wanted)
    third = bert()
    for name in ("a", "b", "fusion"):
        adaptergit.load(tmp_path / name, third)
    assert str(adapters(third).active) == "Fuse(a, b)"


def test_a_set_up_can_be_published_and_found(model: Any, tmp_path: Path) -> None:
    panel = adapters(model)
    with pytest.raises(UsageError, match="no name of its own"):
        panel.save_setup(tmp_path / "setup", "Stack(de, l)")
    with pytest.raises(UsageError, match="nothing to save"):
        panel.save_setup(tmp_path / "setup", name="empty")
    assert not (tmp_path / "setup").exists()
    panel.save_setup(tmp_path / "setup", "Stack(de, l)", name="two")
    card = YAML(typ="safe").load((tmp_path / "setup" / "card.yaml").read_text())
    assert card["adapter"]["method"] == "setup"
    assert card["adapter"]["parameters"] == panel.parameters_of("de") + panel.parameters_of("l")


Damage = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    "damage",
    [
        lambda config: config.pop("heads"),
        lambda config: config.update(more=1),
        lambda config: config.update(adapters={}),
        lambda config: config["adapters"].append(config["adapters"][0]),
        lambda config: config["adapters"][0].update(name="../x"),
        lambda config: config["adapters"][0].update(name=7),
        lambda config: config["adapters"][0].update(method="lora"),
        lambda config: config["adapters"][0]["config"].update(nonsense=1),
        lambda config: config["adapters"].pop(),
        lambda config: config["fusions"][0].update(sites=["blocks.99.ffn"]),
        lambda config: config["fusions"][0].update(sites=config["fusions"][0]["sites"] * 2),
        lambda config: config["fusions"][0].update(sites=3),
        lambda config: config["fusions"][0]["config"].update(key="no"),
        lambda config: config["heads"][0].update(labels=[1, 2, 3]),
        lambda config: config["heads"][0].update(config=[]),
        lambda config: config["heads"][0].update(type="no such"),
        lambda config: config.update(composition="Stack(de,"),
        lambda config: config.update(composition="Stack(de, nobody)"),
        lambda config: config.update(composition=3),
    ],
)
def test_a_damaged_set_up_is_refused_and_the_model_untouched(model: Any, tmp_path: Path, damage: Damage) -> None:
    panel = adapters(model)
    panel.activate(COMPOSITION, head="ner")
    panel.save_setup(tmp_path / "setup", name="everything")
    yaml, path = YAML(typ="safe"), tmp_path / "setup" / "card.yaml"
    card = yaml.load(path.read_text())
    damage(card["adapter"]["config"])
    with path.open("w") as stream:
        yaml.dump(card, stream)
    other = bert()
    with pytest.raises(AdaptergitError) as caught:
        adaptergit.load(tmp_path / "setup", other)
    assert not isinstance(caught.value, UsageError) or "nobody" in str(caught.value)
    assert not hasattr(other, "adaptergit")


def test_a_fusion_is_trained_alone_with_its_regulariser(model: Any) -> None:
    panel = adapters(model)
    panel.train_fusion("Fuse(a, b)")
    fusion = panel.fusion_module("a,b")
    loss = model(IDS)[0].pow(2).mean() + regularisation(fusion)
    loss.backward()
    reached = {name.split(".")[1] for name, p in model.named_parameters() if p.grad is not None}
    assert reached == {"a,b:fusion"}
    # By hand: 0.01 · Σ ‖W_v - I‖².
    values = [m.value.weight for m in panel.fused("a,b").modules.values()]
    by_hand = 0.01 * sum(((w - torch.eye(len(w))) ** 2).sum() for w in values)
    assert torch.allclose(regularisation(fusion), by_hand)
    with pytest.raises(UsageError, match="holds no Fuse"):
        panel.train_fusion("a")


def test_a_package_error_names_the_card(model: Any, tmp_path: Path) -> None:
    adapters(model).save_setup(tmp_path / "setup", "Stack(de, l)", name="two")
    path = tmp_path / "setup" / "card.yaml"
    path.write_text(path.read_text().replace("family: bottleneck", "family: nonsense"))
    with pytest.raises(PackageError, match=r"card\.yaml.*nonsense"):
        adaptergit.load(tmp_path / "setup", bert())


def test_a_fusions_temperature_is_saved_where_it_has_come_to(tmp_path: Path) -> None:
    model = bert()
    panel = adapters(model)
    for name in ("a", "b"):
        panel.add(name, "seq_bn")
    panel.add_fusion("Fuse(a, b)", FusionConfig(temperature=True))
    noisy(panel.module("a"), panel.module("b"), panel.fusion_module("a,b"))
    panel.train_fusion("Fuse(a, b)")
    for _ in range(200):
        model(IDS)[0].sum().backward()
    model.eval()
    (temperature,) = {float(fusion.temperature) for fusion in panel.fused("a,b").modules.values()}
    assert temperature == pytest.approx(40, rel=1e-4)
    panel.save_setup(tmp_path / "setup", name="fused")
    panel.save_fusion("a,b", tmp_path / "fusion", name="fusion-alone")
    wanted = model(IDS)[0]
    for folders in (["setup"], ["fusion"]):
        other = bert()
        if folders == ["fusion"]:
            adapters(other).add("a", "seq_bn")
            adapters(other).add("b", "seq_bn")
            for name in ("a", "b"):
                adapters(other).module(name).load_state_dict(panel.module(name).state_dict())
        adaptergit.load(tmp_path / folders[0], other)
        assert torch.equal(other(IDS)[0], wanted)
    half = bert().to(torch.bfloat16)
    adaptergit.load(tmp_path / "setup", half)
    assert {float(f.temperature) for f in adapters(half).fused("a,b").modules.values()} == {temperature}
    with pytest.raises(UsageError, match="temperature"):
        write_setup(panel, Fuse("a", "b"), [], tmp_path / "hub")


def test_a_fusion_of_adapters_starts_at_its_temperature(tmp_path: Path) -> None:
    model = bert()
    panel = adapters(model)
    for name in ("a", "b"):
        panel.add(name, "seq_bn")
    panel.add_fusion("Fuse(a, b)", FusionConfig(temperature=True))
    noisy(panel.module("a"), panel.module("b"), panel.fusion_module("a,b"))
    panel.active = "Fuse(a, b)"
    write_setup(panel, Fuse("a", "b"), [], tmp_path / "hub")
    other = bert()
    adaptergit.load(tmp_path / "hub", other)
    assert torch.equal(other(IDS)[0], model(IDS)[0])
