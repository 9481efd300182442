"""The benchmarks' own arithmetic and report; what they measure is measured by running them."""

from __future__ import annotations

import doctest
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def result(**rows: tuple[float, float]) -> Any:
    from results import Result, Row

    made = Result("forward", "A forward pass", "full", {"rounds": 3, "threads": 1, "clock": "wall"}, percent=True)
    for name, (value, ratio) in rows.items():
        made.rows.append(Row("1 × 32", "ours", name, value, "s", value, value, "ours, plain", ratio, ratio, ratio))
    return made


def test_a_ratio_is_of_the_two_times_of_one_round() -> None:
    from spread import ratio

    theirs = [1.0, 8.0, 2.0, 4.0, 1.0]
    middle, low, high = ratio([2 * time for time in theirs], theirs)
    assert (middle, low, high) == (2, 2, 2), "however much the machine swings, ours took twice as long"


def test_the_interval_says_when_nothing_is_known() -> None:
    from spread import ratio

    middle, low, high = ratio([1, 3, 1, 3, 1, 3, 1], [2] * 7)
    assert (low, high) == (0.5, 1.5)
    assert low <= middle <= high


def test_numbers_are_shown_in_units_that_people_read() -> None:
    import results

    assert doctest.testmod(results) == (0, 1)


@pytest.mark.parametrize(
    ("found", "limit", "met"), [(1.0, 1.0, True), (1.01, 1.0, False), (None, 1.0, None), (1.0, None, None)]
)
def test_a_target_that_was_not_measured_is_neither_met_nor_missed(found: Any, limit: Any, met: Any) -> None:
    from results import Target

    assert Target("overhead", found, limit, "%").met is met


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    from results import read

    made = result(seq_bn=(0.002, 1.05))
    made.target("overhead", 0.05, 0.04, "%")
    made.finish(tmp_path)
    assert read(tmp_path / "forward.json") == made


def test_the_page_names_machine_versions_and_every_miss() -> None:
    from report import page

    made = result(seq_bn=(0.002, 1.083), lora=(0.001, 1.0))
    made.target("overhead of seq_bn", 0.083, 0.04, "%")
    made.versions["peft"] = {"peft": "0.21.2"}
    made.machine |= {"processor": "An Abacus", "load_before": 9.0, "cores": 2}
    text = page([made])
    assert "0 met, 1 missed, 0 not judged" in text
    assert "| overhead of seq_bn | 8.3 % | 4.0 % | **missed** |" in text
    assert "+8.3 % [+8.3, +8.3]" in text
    assert "An Abacus" in text
    assert "peft 0.21.2" in text
    assert "other programs ran" in text


def test_every_committed_result_can_be_reported() -> None:
    from report import ORDER, found, page

    results = found(BENCHMARKS / "results")
    committed = {path.stem for path in (BENCHMARKS / "results").glob("*.json")}
    assert committed == {one.name for one in results}, f"report.py knows {ORDER}"
    text = page(results)
    assert all(target.what in text for one in results for target in one.targets)


def test_the_page_is_the_one_of_the_committed_results() -> None:
    from report import DOCS, found, page

    assert (DOCS / "performance.md").read_text() == page(found(BENCHMARKS / "results")), "run benchmarks/report.py"


@pytest.mark.slow
def test_the_readme_tells_the_numbers_of_the_committed_results() -> None:
    from report import found as results_of

    results = {one.name: one for one in results_of(BENCHMARKS / "results")}

    def found(result: str, group: str, who: str, name: str) -> Any:
        rows = results[result].rows
        return next(r for r in rows if (r.group, r.contender, r.name) == (group, who, name))

    def overhead(who: str, name: str = "lora") -> str:
        ratio = found("forward", "BERT-base, 4 × 64", who, name).ratio
        return f"{100 * (ratio - 1):+.1f} %"

    def loading(who: str, name: str) -> str:
        return f"{1e3 * found('loading', 'BERT-base, verified', who, name).value:.0f} ms"

    ours, theirs = "into a model that has a panel", "into a model that has one"
    on_theirs = f"{overhead('ours', 'seq_bn')}, on 4.57 {overhead('ours on 4.57', 'seq_bn')}"
    bottleneck = [on_theirs, overhead("adapters", "seq_bn"), "–", "–"]
    lora = [overhead("ours"), overhead("adapters"), overhead("peft"), "–"]
    load = [loading("ours", ours), loading("adapters", theirs), "–", "–"]
    load_lora = [loading("ours", f"a LoRA, {ours}"), "not measured", loading("peft", theirs), "–"]
    text = (BENCHMARKS.parent / "README.md").read_text("utf-8")
    for what, cells in (
        ("what a bottleneck adds to a forward pass of 4 × 64 tokens, BERT-base, one thread of a CPU", bottleneck),
        ("what a LoRA adds to it", lora),
        ("loading a bottleneck of 3.6 MB, ours verified", load),
        ("loading a LoRA of as many bytes, ours verified", load_lora),
    ):
        assert f"| {what} | {' | '.join(cells)} |\n" in text


@pytest.mark.slow
def test_every_result_can_be_drawn() -> None:
    pytest.importorskip("matplotlib")
    from plots import draw
    from report import found

    for one in found(BENCHMARKS / "results"):
        drawn = draw(one)
        assert drawn.startswith(b"<?xml")
        assert draw(one) == drawn, f"{one.name} is not drawn the same twice"


@pytest.mark.slow
def test_a_contender_that_fails_says_why_and_goes_on(tmp_path: Path) -> None:
    from harness import ContenderError, Worker

    worker = Worker("plain", sorted(os.sched_getaffinity(0))[:1], 1, tmp_path)
    try:
        with pytest.raises(ContenderError, match="KeyError: 'huge'"):
            worker.answer({"prepare": "x", "do": "forward", "with": {"batch": 1, "length": 4, "size": "huge"}})
        worker.answer({"prepare": "x", "do": "forward", "with": {"batch": 1, "length": 4, "size": "tiny"}})
        took = worker.answer({"run": "x", "times": 2})
        assert 0 < took["wall"] <= took["whole"]
    finally:
        worker.close()


def test_a_contender_that_is_gone_is_an_error_with_its_last_words(tmp_path: Path, monkeypatch: Any) -> None:
    from harness import ContenderError, Worker

    monkeypatch.setenv("ADAPTERGIT_PEFT_PYTHON", f"{sys.executable} -c raise(SystemExit('no_such_thing'))")
    worker = Worker("peft", sorted(os.sched_getaffinity(0))[:1], 1, tmp_path)
    with pytest.raises(ContenderError, match="no_such_thing"):
        worker.answer({"ask": "versions", "with": {}})
    worker.close()


@pytest.mark.slow
def test_a_question_is_answered_without_the_peers(tmp_path: Path) -> None:
    argv = [sys.executable, str(BENCHMARKS / "switching.py"), "--quick", "--rounds", "2", "--size", "tiny"]
    done = subprocess.run([*argv, "--only", "ours", "--out", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "switching.json").read_text())
    assert {row["contender"] for row in written["rows"]} == {"ours"}
    assert all(row["value"] > 0 for row in written["rows"])
    assert all(target["found"] is not None for target in written["targets"])
