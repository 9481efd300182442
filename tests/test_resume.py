"""An interrupted training goes on as it was begun, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from test_tasks import BAD, GOOD, json_lines, made_base, tokenizer

from adaptergit.errors import NotFoundError, UsageError
from adaptergit.package import Card
from adaptergit.training import Progress, TrainSpec, train


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


def test_a_sharded_training_starts_over(cut: TrainSpec) -> None:
    with pytest.raises(NotFoundError, match="no checkpoint"):
        train(replace(cut, fsdp=True), never)
