"""A task adapter that was trained on top of a language adapter brings it along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Hub, machine_of, tiny_model

import adaptergit
from adaptergit.errors import NotFoundError, PackageError, UsageError
from adaptergit.pins import pin_key
from adaptergit.splice import adapters

IDS = torch.tensor([[5, 6, 7, 8]])


def noisy(panel: Any, name: str) -> None:
    with torch.no_grad():
        for parameter in panel.module(name).parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1)


@pytest.fixture
def published(hub: Hub, tmp_path: Path) -> tuple[str, Any, torch.Tensor]:
    """Publish "en", and "qa" that was trained on top of it; return where, a model with both, and what it computes."""
    hub.trust()
    model = tiny_model()
    panel = adapters(model)
    panel.add("en", "seq_bn_inv[reduction_factor=2]")
    panel.add("qa", "seq_bn[reduction_factor=2]")
    noisy(panel, "en")
    noisy(panel, "qa")
    panel.save("en", tmp_path / "en", license="MIT")
    first = adaptergit.publish(tmp_path / "en", version="1.0.0", clone=hub.clone, key=hub.key.path)
    needed = [{"reference": f"{hub.url}@en==1.0.0", "digest": first.digest}]
    panel.save("qa", tmp_path / "qa", license="MIT", dependencies=needed)
    adaptergit.publish(tmp_path / "qa", version="1.0.0", clone=hub.clone, key=hub.key.path)
    panel.active = "Stack(en, qa)"
    return hub.url, model, model(IDS)[0].detach()


@pytest.mark.slow
def test_an_adapter_is_loaded_on_top_of_what_it_was_trained_on(published: tuple[str, Any, torch.Tensor]) -> None:
    url, _, wanted = published
    model = adaptergit.load(f"{url}@qa", tiny_model())
    assert str(adapters(model).active) == "Stack(en, qa)"
    assert torch.equal(model(IDS)[0], wanted)
    again = adaptergit.load(f"{url}@en", tiny_model())
    adaptergit.load(f"{url}@qa", again)
    assert torch.equal(again(IDS)[0], wanted), "the very release that is there already is used"


def test_it_can_be_loaded_alone(published: tuple[str, Any, torch.Tensor]) -> None:
    model = adaptergit.load(f"{published[0]}@qa", tiny_model(), dependencies=False)
    assert adapters(model).names == ["qa"]
    assert adapters(model).active == "qa"


@pytest.mark.slow
def test_a_refresh_asks_for_the_adapter_and_takes_what_it_needs_from_the_store(
    published: tuple[str, Any, torch.Tensor], hub: Hub, tmp_path: Path
) -> None:
    url = published[0]
    adaptergit.load(f"{url}@qa", tiny_model())
    panel = adapters(tiny_model())
    panel.add("qa", "seq_bn[reduction_factor=4]")
    needed = [{"reference": f"{url}@en==1.0.0", "digest": adaptergit.fetch(f"{url}@en==1.0.0").digest}]
    panel.save("qa", tmp_path / "newer", license="MIT", dependencies=needed)
    with machine_of("publisher"):
        hub.trust()
        adaptergit.publish(tmp_path / "newer", version="1.1.0", clone=hub.clone, key=hub.key.path)
    found = adapters(adaptergit.load(f"{url}@qa", tiny_model())).about("qa")
    assert found.card.version == "1.0.0", "asked a moment ago"
    panel = adapters(adaptergit.load(f"{url}@qa", tiny_model(), refresh=True))
    assert panel.about("qa").card.version == "1.1.0"
    assert (panel.about("qa").from_store, panel.about("en").from_store) == (False, True)


def test_another_adapter_of_that_name_is_not_taken_for_it(published: tuple[str, Any, torch.Tensor]) -> None:
    model = tiny_model()
    adapters(model).add("en", "seq_bn")
    with pytest.raises(UsageError, match="another 'en'"):
        adaptergit.load(f"{published[0]}@qa", model)
    assert adapters(model).names == ["en"]


def test_a_lock_file_holds_what_its_members_need(published: tuple[str, Any, torch.Tensor], tmp_path: Path) -> None:
    url, _, wanted = published
    adaptergit.lock([f"{url}@qa"], path=tmp_path / "adaptergit.lock")
    assert [one.id.rpartition("@")[2] for one in adaptergit.check_lock(path=tmp_path / "adaptergit.lock")] == [
        "en",
        "qa",
    ]
    model = adaptergit.load(f"{url}@qa", tiny_model(), lock=tmp_path / "adaptergit.lock", offline=True)
    assert torch.equal(model(IDS)[0], wanted)


def test_a_release_that_is_not_what_the_card_pins_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.trust()
    panel = adapters(tiny_model())
    for name, more in (("en", {}), ("qa", {"dependencies": [{"reference": f"{hub.url}@en", "digest": "0" * 64}]})):
        panel.add(name, "seq_bn")
        panel.save(name, tmp_path / name, license="MIT", **more)
        adaptergit.publish(tmp_path / name, version="1.0.0", clone=hub.clone, key=hub.key.path)
    model = tiny_model()
    with pytest.raises((NotFoundError, adaptergit.TrustError)):
        adaptergit.load(f"{hub.url}@qa", model)
    assert not hasattr(model, "adaptergit")


def test_a_card_from_elsewhere_names_no_place_of_this_machine(hub: Hub, tmp_path: Path) -> None:
    hub.trust()
    panel = adapters(tiny_model())
    panel.add("qa", "seq_bn")
    panel.save("qa", tmp_path / "qa", license="MIT", dependencies=[{"reference": f"{tmp_path}/secret@x"}])
    adaptergit.publish(tmp_path / "qa", version="1.0.0", clone=hub.clone, key=hub.key.path)
    with pytest.raises(PackageError, match="place of this machine"):
        adaptergit.load(f"{hub.url}@qa", tiny_model())


def test_a_card_from_elsewhere_asks_no_other_host_without_encryption(hub: Hub, tmp_path: Path) -> None:
    pin_key("git.example/acme/adapters", hub.key.public.line)
    panel = adapters(tiny_model())
    panel.add("qa", "seq_bn")
    panel.save("qa", tmp_path / "qa", license="MIT", dependencies=[{"reference": f"{hub.url}@en"}])
    said = {"repository": "git.example/acme/adapters", "version": "1.0.0"}
    adaptergit.publish(tmp_path / "qa", clone=hub.clone, key=hub.key.path, **said)
    hub.server.reset()
    with pytest.raises(PackageError, match="without https"):
        adaptergit.load(hub.clone / "adapters" / "qa", tiny_model(), policy="enforce")
    assert hub.server.traffic.requests == []


def test_adapters_that_need_each_other_are_refused(hub: Hub, tmp_path: Path) -> None:
    hub.trust()
    panel = adapters(tiny_model())
    for name, other in (("a", "b"), ("b", "a")):
        panel.add(name, "seq_bn")
        panel.save(name, tmp_path / name, license="MIT", dependencies=[{"reference": f"{hub.url}@{other}"}])
        adaptergit.publish(tmp_path / name, version="1.0.0", clone=hub.clone, key=hub.key.path)
    with pytest.raises(PackageError, match="on top of each other"):
        adaptergit.load(f"{hub.url}@a", tiny_model())
