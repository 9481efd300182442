"""What a training that did not reach its end leaves behind, and what is said of it."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers
from click.testing import CliRunner, Result
from test_predict import golden

from adaptergit.cli import main


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return golden("bert", tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.tsv"
    path.write_text("text\tlabel\n" + "a good film\tpos\nan awful film\tneg\n" * 4)
    return path


def train(base: Path, data: Path, output: Path, *more: str) -> Result:
    options = ["--epochs", "2", "--batch-size", "2", "--max-length", "8", "--name", "mood", *more]
    files = ["--base", str(base), "--train", str(data), "--eval", str(data), "--output", str(output)]
    return CliRunner().invoke(main, ["train", *files, *options])


def test_texts_longer_than_the_base_model_reads_are_refused_with_what_it_reads(
    bert: Path, data: Path, tmp_path: Path
) -> None:
    assert "hint: train with --max-length" in train(bert, data, tmp_path / "out", "--max-length", "4000").stderr


def interrupt_in_step(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Press Ctrl-C in one of 2 x 4 steps."""
    steps, step = iter(range(1, 99)), transformers.Trainer.training_step

    def stopped(self: Any, *args: Any, **options: Any) -> Any:
        if next(steps) == number:
            raise KeyboardInterrupt
        return step(self, *args, **options)

    monkeypatch.setattr(transformers.Trainer, "training_step", stopped)


def test_interrupted_before_the_first_checkpoint_nothing_is_left_and_nothing_promised(
    bert: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_in_step(monkeypatch, 2)
    said = train(bert, data, tmp_path / "out")
    assert said.exit_code == 130
    assert said.stderr.splitlines()[-1] == "interrupted"
    assert not list(tmp_path.glob("out*"))


@pytest.mark.slow
def test_interrupted_later_it_goes_on_as_promised(
    bert: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_in_step(patch, 6)
        said = train(bert, data, tmp_path / "out")
    assert said.exit_code == 130
    assert said.stderr.splitlines()[-1].startswith("interrupted; 'adaptergit train … --resume' goes on")
    assert train(bert, data, tmp_path / "out", "--resume").exit_code == 0
    assert [path.name for path in tmp_path.glob("out*")] == ["out"]


@pytest.mark.slow
@pytest.mark.parametrize("room", [0, 4, 16, 48, 96])
def test_a_disk_that_is_full_after_some_kilobytes_is_a_clear_error(
    bert: Path, data: Path, small_disk: Path, room: int
) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * (shutil.disk_usage(small_disk).free - room * 1024))
    said = train(bert, data, small_disk / "out", "--adapter", "seq_bn[reduction_factor=0.25]")
    assert said.exit_code == 6, said.output
    assert "cannot write to the output folder: No space left on device" in said.stderr
    assert "hint: free some space" in said.stderr
    assert "Traceback" not in said.stderr
    assert not (small_disk / "out").exists()
    left = list((small_disk / "out.checkpoints").glob("*"))
    assert all((folder / "trainer_state.json").is_file() for folder in left)
    assert bool(left) is (small_disk / "out.checkpoints").exists() is ("--resume" in said.stderr)
    filler.unlink()
    assert train(bert, data, small_disk / "out").exit_code == 0
    del said
    gc.collect()  # what could not be written is still open, as far as the error remembers
