"""What the examples beside this file train: models, words and sentences made in place, so that nothing is downloaded.

In a script of yours, ``from_pretrained("bert-base-uncased")`` and a data set stand here.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

GOOD, BAD = ("good", "great", "superb", "lovely"), ("bad", "awful", "dull", "boring")
REST = ("a", "the", "film", "book", "play", "is", "was", "very")
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
_SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
# Wider than usual: nothing was trained here, and words must reach each other through random attention.
_SPREAD = {"initializer_range": 0.2}


def tokenizer() -> Any:
    """Return a tokenizer of whole words."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate((*SPECIAL, *GOOD, *BAD, *REST))}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    names = dict(zip(("pad_token", "unk_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, **names)


def sentences(count: int, seed: int = 0) -> tuple[list[str], list[int]]:
    """Return sentences, and whether each is friendly."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    labels = [draw.randrange(2) for _ in range(count)]
    texts = [
        f"the {draw.choice(('film', 'book', 'play'))} is very {draw.choice(GOOD if label else BAD)}" for label in labels
    ]
    return texts, labels


def base(folder: Path, kind: str) -> Path:
    """Write a base model with random weights, the same every time.

    Args:
        folder: Where to.
        kind: "classifier", "seq2seq" or "causal".
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    words = tokenizer()
    made: Any
    if kind == "classifier":
        made = transformers.BertForSequenceClassification(
            transformers.BertConfig(vocab_size=len(words), **_SIZE, **_SPREAD)
        )
    elif kind == "seq2seq":
        t5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
        ids = {"pad_token_id": 0, "eos_token_id": 3, "decoder_start_token_id": 0}
        made = transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=len(words), **t5, **ids))
    else:
        ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
        made = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=len(words), **_SIZE, **_SPREAD, **ids))
    made.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def play(example: Callable[[Path, int], dict[str, Any]], steps: int) -> None:
    """Run an example in a temporary folder; with ``--quick``, for a few steps only."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a few steps: shows that it runs")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as folder:
        for name, value in example(Path(folder), 4 if quick else steps).items():
            print(f"{name}: {value}")


def same(one: Any, other: Any, batch: dict[str, torch.Tensor]) -> None:
    """Two models answer alike, or the example is wrong."""
    with torch.no_grad():
        mine, theirs = one.eval()(**batch).logits, other.eval()(**batch).logits
    assert torch.equal(mine.cpu(), theirs), "loaded into a fresh model, the adapter computes something else"


def accuracy(logits: torch.Tensor, labels: Sequence[int]) -> float:
    """Return the share of right answers."""
    return float((logits.argmax(dim=1) == torch.tensor(labels)).float().mean())
