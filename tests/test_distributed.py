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
import yaml
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
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": "0", "DS_ACCELERATOR": "cpu"}
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


_AUTO = ("train_micro_batch_size_per_gpu", "train_batch_size", "gradient_accumulation_steps", "gradient_clipping")


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeed_trains_as_one_process_does(place: Path, alone: dict[str, Any], stage: int) -> None:
    """Every parameter is sharded at stage 3, however small; the better epoch is taken again at the end."""
    pytest.importorskip("deepspeed")
    zero = {"stage": stage, "stage3_param_persistence_threshold": 0}
    config = {**dict.fromkeys(_AUTO, "auto"), "zero_optimization": zero}
    (place / f"zero{stage}.json").write_text(json.dumps(config))
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
    options = ("--deepspeed", f"zero{stage}.json", "--early-stopping", "2", "--validation", "eval.jsonl")
    found = launched(place, f"zero{stage}", *launcher, options=options)
    assert found["losses"] == pytest.approx(alone["losses"], abs=1e-4)
    assert found["metrics"] == alone["metrics"]
    assert found["adapter_parameters"] == alone["adapter_parameters"]
    ours, theirs = (load_file(place / one / "adapter.safetensors") for one in (f"zero{stage}", "one"))
    assert {key: one.shape for key, one in ours.items()} == {key: one.shape for key, one in theirs.items()}
    card, other = (yaml.safe_load((place / one / "card.yaml").read_text()) for one in (f"zero{stage}", "one"))
    assert (card["base_model"], card["adapter"]) == (other["base_model"], other["adapter"])
    assert sorted(path.name for path in place.iterdir() if path.name.startswith(f"zero{stage}.")) == [
        f"zero{stage}.json"
    ]
    scored = subprocess.run(
        [sys.executable, "-m", "adaptergit", "eval", f"zero{stage}", "--base", "base", "--data", "eval.jsonl"],
        cwd=place, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert scored.returncode == 0, scored.stderr


def test_deepspeed_without_a_launcher_is_refused(place: Path) -> None:
    pytest.importorskip("deepspeed")
    (place / "ds.json").write_text("{}")
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
        [*command, "--output", "lonely", "--deepspeed", "ds.json"],
        cwd=place, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "torchrun --nproc-per-node 2" in done.stderr
    assert not (place / "lonely").exists()


def test_a_sharded_run_stops_early_as_one_process_does(place: Path) -> None:
    options = ("--early-stopping", "1", "--validation", "eval.jsonl")
    alone = launched(place, "stopped-one", sys.executable, options=options)
    launcher = ("torch.distributed.run", "--nproc-per-node", "2", "--standalone")
    found = launched(place, "stopped", sys.executable, "-m", *launcher, options=("--fsdp", *options))
    assert found["losses"] == pytest.approx(alone["losses"], abs=1e-4)
    assert found["metrics"] == alone["metrics"]


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
