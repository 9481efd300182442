"""Rows that cannot be answered are refused before anything is trained, wherever they stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from test_tasks import json_lines, made_base, tokenizer

from adaptergit.errors import AdaptergitError, DataError
from adaptergit.training import Progress, TrainSpec, train

ANSWER = [{"text": "the film", "answer_start": 0}]
TAGGED = [{"tokens": ["the", "film"], "tags": ["O", "B"]}]
MOODS = [{"text": "a good film", "label": "1"}, {"text": "a bad film", "label": "0"}]
ASKED = [{"question": "what is good", "context": "the film is good", "answers": ANSWER}]
CHOSEN = [{"text": "the film was", "choices": ["good", "bad"], "label": "good"}]

UNANSWERABLE: list[tuple[str, list[dict[str, Any]], dict[str, Any], dict[str, Any], str]] = [
    ("text-classification", MOODS, {"text": None, "label": "1"}, {}, "NoneType"),
    ("text-classification", [{**row, "other": "film"} for row in MOODS], {"text": "a", "label": "1"}, {"columns": {"pair": "other"}}, "no column 'other'"),
    ("token-classification", TAGGED, {"tokens": ["the", "\u200b"], "tags": ["O", "B"]}, {}, "makes nothing of word 2"),
    ("question-answering", ASKED, {"question": "film " * 30, "context": "the film", "answers": []}, {}, "a question has 30 tokens"),
    ("question-answering", ASKED, {"question": "what", "context": None, "answers": []}, {}, "NoneType"),
    ("multiple-choice", CHOSEN, {"text": None, "choices": ["good", "bad"], "label": 0}, {}, "NoneType"),
]  # fmt: skip


@pytest.fixture
def base(tmp_path: Path) -> str:
    """A tiny base whose tokenizer drops zero-width spaces."""
    from tokenizers import normalizers

    made = tokenizer(tmp_path / "base")
    made.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    made.save_pretrained(tmp_path / "base")
    config = transformers.BertConfig(
        vocab_size=len(made), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    return made_base(tmp_path / "base", config, "AutoModel")


def untrained(progress: Progress) -> None:
    assert progress.stage != "training", "training began"


@pytest.mark.parametrize("place", ["eval", "validation"])
@pytest.mark.parametrize(
    ("task", "good", "bad", "options", "why"), UNANSWERABLE, ids=[f"{t}-{why}" for t, *_, why in UNANSWERABLE]
)
def test_a_held_out_row_that_cannot_be_answered_is_refused_before_training(
    tmp_path: Path, base: str, place: str, task: str, good: list[dict[str, Any]], bad: dict[str, Any],
    options: dict[str, Any], why: str,
) -> None:  # fmt: skip
    right, wrong = json_lines(tmp_path / "right.jsonl", good * 4), json_lines(tmp_path / "wrong.jsonl", [*good, bad])
    files: dict[str, Any] = {"eval": wrong} if place == "eval" else {"eval": right, "validation": wrong, "patience": 1}
    with pytest.raises(AdaptergitError, match=why):
        train(
            TrainSpec(base=base, task=task, train=right, output=tmp_path / "out", max_length=24, **files, **options),
            untrained,
        )
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.checkpoints").exists()


def test_a_held_out_picture_that_cannot_be_opened_is_refused_before_training(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    base = made_base(tmp_path / "base", config, "AutoModel")
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(base)
    for place in ("train/red", "train/blue", "eval/red"):
        (tmp_path / place).mkdir(parents=True)
        image.new("RGB", (16, 16), place.rpartition("/")[2]).save(tmp_path / place / "a.png")
    whole = (tmp_path / "eval/red/a.png").read_bytes()
    (tmp_path / "eval/red/b.png").write_bytes(whole[: len(whole) // 2])
    spec = TrainSpec(
        base=base,
        task="image-classification",
        train=tmp_path / "train",
        eval=tmp_path / "eval",
        output=tmp_path / "out",
    )
    with pytest.raises(AdaptergitError, match="not an image"):
        train(spec, untrained)


def test_a_bad_training_row_leaves_the_checkpoints_of_an_earlier_run(tmp_path: Path, base: str) -> None:
    (tmp_path / "out.checkpoints/checkpoint-8").mkdir(parents=True)
    right = json_lines(tmp_path / "right.jsonl", MOODS)
    wrong = json_lines(tmp_path / "wrong.jsonl", [*MOODS, {"text": None, "label": "1"}])
    with pytest.raises(AdaptergitError, match="NoneType"):
        train(TrainSpec(base=base, train=wrong, eval=right, output=tmp_path / "out"), untrained)
    assert (tmp_path / "out.checkpoints/checkpoint-8").is_dir()


@pytest.mark.parametrize("place", ["eval", "validation"])
@pytest.mark.parametrize(("task", "length"), [("fill-mask", 16), ("text-generation", 1)])
def test_texts_of_which_no_token_is_guessed_are_refused(tmp_path: Path, task: str, length: int, place: str) -> None:
    """A perplexity of 1 over nothing would look splendid in a card."""
    base = tmp_path / "base"
    made = tokenizer(base)
    made.add_special_tokens({"mask_token": "[MASK]"})
    made.save_pretrained(base)
    if task == "fill-mask":
        config: Any = transformers.BertConfig(
            vocab_size=len(made), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )
        made_base(base, config, "AutoModelForMaskedLM")
    else:
        config = transformers.GPT2Config(vocab_size=len(made), n_embd=32, n_layer=1, n_head=2, n_positions=64)
        made_base(base, config, "AutoModelForCausalLM")
    long, short = tmp_path / "long.txt", tmp_path / "short.txt"
    long.write_text("the film was good\n" * 20)
    short.write_text("the film\n")
    files: dict[str, Any] = {"eval": short} if place == "eval" else {"eval": long, "validation": short, "patience": 1}
    with pytest.raises(DataError, match="no token of the texts is to be guessed"):
        train(
            TrainSpec(base=str(base), task=task, train=long, output=tmp_path / "out", max_length=length, **files),
            untrained,
        )
