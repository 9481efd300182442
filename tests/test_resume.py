"""An interrupted training goes on as it was begun, or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import CliRunner
from safetensors.torch import load_file
from test_tasks import BAD, GOOD, json_lines, made_base, tokenizer

from adaptergit.cli import main
from adaptergit.errors import NotFoundError, UsageError
from adaptergit.package import Card
from adaptergit.training import Progress, TrainSpec, train
from adaptergit.training.sweep import Sweep, train_all, variations


class StopError(Exception):
    """Somebody pulled the plug."""


def stop_at(step: int, stage: str = "training") -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if progress.stage == stage and progress.done == step:
            raise StopError

    return report


def never(progress: Progress) -> None:
    assert progress.stage != "training", "training began"


@pytest.fixture
def spec(tmp_path: Path) -> TrainSpec:
    """Four epochs of two steps on a tiny base."""
    size = len(tokenizer(tmp_path / "base"))
    config = transformers.BertConfig(
        vocab_size=size, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    base = made_base(tmp_path / "base", config, "AutoModel")
    rows = [{"text": f"a {word} film", "label": label} for words, label in ((GOOD, "1"), (BAD, "0")) for word in words]
    file = json_lines(tmp_path / "moods.jsonl", rows)
    return TrainSpec(
        base=base, train=file, eval=file, output=tmp_path / "out", adapter="seq_bn[reduction_factor=4]",
        epochs=4, batch_size=4, max_length=8, learning_rate=1e-2,
    )  # fmt: skip


@pytest.fixture
def cut(spec: TrainSpec) -> TrainSpec:
    """The same, interrupted in its third epoch, to be resumed."""
    with pytest.raises(StopError):
        train(spec, stop_at(5))
    return replace(spec, resume=True)


def other_file(cut: TrainSpec) -> dict[str, Any]:
    path = cut.output.parent / "other.jsonl"
    return {"train": json_lines(path, [{"text": word, "label": str(i % 2)} for i, word in enumerate(GOOD * 2)])}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (lambda _: {"learning_rate": 0.5}, "learning_rate was 0.01, is 0.5"),
        (lambda _: {"seed": 7}, "seed was 42, is 7"),
        (lambda _: {"epochs": 8}, "epochs was 4, is 8"),
        (lambda _: {"batch_size": 2}, "batch_size was 4, is 2"),
        (lambda _: {"adapter": "seq_bn[reduction_factor=4, non_linearity=gelu]"}, "non_linearity was relu, is gelu"),
        (other_file, "data_sha256 is another"),
    ],
)
def test_a_training_is_resumed_only_as_it_was_begun(
    cut: TrainSpec, changes: Callable[[TrainSpec], dict[str, Any]], why: str
) -> None:
    before = sorted(cut.checkpoints.rglob("*"))
    with pytest.raises(UsageError, match=why):
        train(replace(cut, **changes(cut)), never)
    assert sorted(cut.checkpoints.rglob("*")) == before, "it can still be resumed"
    assert not cut.output.exists()


@pytest.mark.slow
def test_a_file_that_was_moved_and_another_description_are_no_difference(cut: TrainSpec) -> None:
    moved = cut.train.rename(cut.train.with_name("moved.jsonl"))
    result = train(replace(cut, train=moved, eval=moved, about={"license": "MIT"}))
    assert Card.from_yaml((result.output / "card.yaml").read_bytes()).license == "MIT"
    assert not cut.checkpoints.exists()


def test_another_validation_file_is_a_difference(spec: TrainSpec) -> None:
    stopping = replace(spec, patience=4, validation=spec.eval)
    with pytest.raises(StopError):
        train(stopping, stop_at(5))
    with pytest.raises(UsageError, match="validation_sha256 is another"):
        train(replace(stopping, resume=True, validation=other_file(spec)["train"]), never)


@pytest.mark.slow
def test_a_checkpoint_that_was_not_written_to_its_end_is_passed_over(spec: TrainSpec, cut: TrainSpec) -> None:
    whole = train(replace(spec, output=spec.output.with_name("whole"), name="out"))
    half = cut.checkpoints / "checkpoint-6"
    half.mkdir()
    (half / "adapter_state.safetensors").write_bytes(b"half")
    resumed = train(cut)
    assert torch.equal(torch.stack(resumed.answers), torch.stack(whole.answers))
    ours, theirs = (load_file(one.output / "adapter.safetensors") for one in (resumed, whole))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_checkpoint_that_nobody_knows_the_beginning_of_is_refused(cut: TrainSpec) -> None:
    (cut.checkpoints / "begun.json").unlink()
    with pytest.raises(UsageError, match="nothing says what"):
        train(cut, never)


def test_a_sharded_training_starts_over(cut: TrainSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")  # as a launcher does
    with pytest.raises(NotFoundError, match="no checkpoint"):
        train(replace(cut, fsdp=True), never)


# --- several runs in one call ----------------------------------------------------------------------------------------


def trained(specs: list[TrainSpec]) -> tuple[Sweep, list[str]]:
    """Train all, and tell which were trained at all."""
    seen: list[str] = []
    found = train_all(specs, report=lambda spec, p: seen.append(spec.adapter_name) if p.stage == "training" else None)
    return found, list(dict.fromkeys(seen))


@pytest.fixture
def sweep(spec: TrainSpec) -> list[TrainSpec]:
    """Three seeds: one is finished, one was interrupted, one never begun."""
    specs = variations(spec, seeds=(1, 2, 3))
    with pytest.raises(StopError):
        train_all(specs, report=lambda one, p: stop_at(5)(p) if one.seed == 2 else None)
    assert [one.output.exists() for one in specs] == [True, False, False]
    return [replace(one, resume=True) for one in specs]


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on(spec: TrainSpec, sweep: list[TrainSpec]) -> None:
    finished = (sweep[0].output / "card.yaml").read_bytes()
    found, seen = trained(sweep)
    assert seen == ["out-s2", "out-s3"]
    assert (sweep[0].output / "card.yaml").read_bytes() == finished
    whole = train(replace(spec, output=spec.output.with_name("whole"), seed=2))
    assert found.results[1].metrics == whole.metrics
    assert found.summaries[0].runs == 3
    assert found.results[0].metrics.samples == 8
    assert set(found.results[0].metrics.intervals) == set(whole.metrics.values)
    assert found.results[0].notes
    assert trained(sweep)[1] == [], "all are finished"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "why"),
    [({"learning_rate": 0.5}, "learning_rate was 0.01, is 0.5"), ({"about": {"license": "MIT"}}, "license was")],
)
def test_a_finished_run_with_other_options_is_not_taken_for_this_one(
    sweep: list[TrainSpec], changes: dict[str, Any], why: str
) -> None:
    before = (sweep[0].output / "card.yaml").read_bytes()
    with pytest.raises(UsageError, match=why):
        trained([replace(one, **changes) for one in sweep])
    assert (sweep[0].output / "card.yaml").read_bytes() == before
    found, seen = trained([replace(sweep[0], overwrite=True, **changes), sweep[2]])
    assert seen == ["out-s1", "out-s3"]
    assert found.results[0].learning_rate == changes.get("learning_rate", 0.01)


@pytest.mark.slow
def test_a_finished_run_that_was_scored_on_another_file_is_not_taken(sweep: list[TrainSpec]) -> None:
    with pytest.raises(UsageError, match=r"evaluation\.data_sha256 is another"):
        trained([replace(one, eval=other_file(one)["train"]) for one in sweep])


@pytest.mark.slow
def test_runs_of_a_file_are_resumed_by_the_option(sweep: list[TrainSpec], tmp_path: Path) -> None:
    one = sweep[0]
    runs = tmp_path / "runs.toml"
    runs.write_text(
        f'base = "{one.base}"\ntrain = "moods.jsonl"\neval = "moods.jsonl"\nadapter = "{one.adapter}"\nepochs = 4\n'
        'batch_size = 4\nmax_length = 8\nlearning_rate = 0.01\n[[run]]\noutput = "out"\nseeds = [1, 2, 3]\n'
    )
    assert CliRunner().invoke(main, ["train", "--runs", str(runs)]).exit_code == 2
    done = CliRunner().invoke(main, ["train", "--runs", str(runs), "--resume", "--json"])
    assert done.exit_code == 0, done.stderr
    assert [bool(run["notes"]) for run in json.loads(done.stdout)["runs"]] == [True, False, False]


@pytest.mark.slow
def test_answers_of_a_run_that_was_finished_before_are_not_made_up(sweep: list[TrainSpec], tmp_path: Path) -> None:
    one = sweep[0]
    options = {
        "base": one.base, "train": one.train, "eval": one.eval, "adapter": one.adapter, "epochs": 4, "batch-size": 4, "max-length": 8,
        "learning-rate": 0.01, "seed": 1, "output": one.output, "predictions": tmp_path / "said.jsonl",
    }  # fmt: skip
    done = CliRunner().invoke(
        main, ["train", "--resume", *(str(part) for key, value in options.items() for part in (f"--{key}", value))]
    )
    assert done.exit_code == 2
    assert "adaptergit predict" in done.stderr
    assert not (tmp_path / "said.jsonl").exists()
