"""The same training on one process and on two: torchrun and accelerate launch, DDP and FSDP, on the CPU."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from test_tasks import BAD, GOOD, json_lines, tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base without dropout, whose draws would differ between processes; data; and a run of one process."""
    folder = tmp_path_factory.mktemp("distributed")
    size = len(tokenizer(folder / "base"))
    config = transformers.BertConfig(
        vocab_size=size, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained(folder / "base")
    draw = random.Random(0)
    for name, count in (("train", 64), ("eval", 21)):
        labels = [draw.randint(0, 1) for _ in range(count)]
        json_lines(
            folder / f"{name}.jsonl",
            [
                {"text": " ".join(draw.choices(GOOD if y else BAD, k=draw.randint(1, 5))), "label": str(y)}
                for y in labels
            ],
        )
    return folder


def launched(place: Path, output: str, *launcher: str, options: tuple[str, ...] = ()) -> dict[str, Any]:
    command = [
        *launcher, "-m", "adaptergit", "train", "--base", "base", "--train", "train.jsonl", "--eval", "eval.jsonl", "--epochs", "2",
        "--learning-rate", "0.01", "--batch-size", "8", "--max-length", "16", "--output", output, "--name", "mood", "--json", *options,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": "0"}
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def alone(place: Path) -> dict[str, Any]:
    return launched(place, "one", sys.executable)


@pytest.mark.parametrize(
    ("name", "launcher", "options"),
    [
        ("ddp", ("torch.distributed.run", "--nproc-per-node", "2", "--standalone"), ()),
        ("fsdp", ("torch.distributed.run", "--nproc-per-node", "2", "--standalone"), ("--fsdp",)),
        ("accelerate", ("accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"), ()),
    ],
)  # fmt: skip
def test_two_processes_train_as_one(
    place: Path, alone: dict[str, Any], name: str, launcher: tuple[str, ...], options: tuple[str, ...]
) -> None:
    found = launched(place, name, sys.executable, "-m", *launcher, options=options)
    assert len(found["losses"]) == 16
    assert found["losses"] == pytest.approx(alone["losses"], abs=1e-4)
    assert found["metrics"] == alone["metrics"]
    ours, theirs = (load_file(place / one / "adapter.safetensors") for one in (name, "one"))
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, atol=1e-4, rtol=0)
    assert sorted(path.name for path in place.iterdir() if path.name.startswith(f"{name}.")) == []


def test_a_batch_that_cannot_be_shared_is_refused(place: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "adaptergit",
        "train",
        "--base",
        "base",
        "--train",
        "train.jsonl",
        "--eval",
        "eval.jsonl",
    ]
    done = subprocess.run(
        [*command, "--output", "odd", "--batch-size", "7"],
        cwd=place, capture_output=True, text=True, check=False, env={**os.environ, "WORLD_SIZE": "2"},
    )  # fmt: skip
    assert done.returncode == 2
    assert "2 processes cannot share" in done.stderr
    assert not (place / "odd").exists()
