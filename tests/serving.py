"""Small real things to serve: a tiny base model with a tokenizer, adapters of every kind over it, a server process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import torch
import transformers
from conftest import GOLDEN
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from adaptergit.splice import (
    ClassificationHead,
    HeadConfig,
    MultiLabelHead,
    MultipleChoiceHead,
    QuestionAnsweringHead,
    TaggingHead,
    adapters,
)

WORDS = [f"w{i}" for i in range(60)]
KINDS: dict[str, tuple[str, HeadConfig]] = {
    "two": ("seq_bn", ClassificationHead(num_labels=2, labels=("no", "yes"))),
    "five": ("lora[r=4]", ClassificationHead(num_labels=5)),
    "same": ("double_seq_bn", ClassificationHead(num_labels=2, labels=("no", "yes"))),
    "prefix": ("prefix_tuning[prefix_length=3]", ClassificationHead(num_labels=3)),
    "inverted": ("seq_bn_inv", ClassificationHead(num_labels=4)),
    "number": ("ia3", ClassificationHead(num_labels=1)),
    "many": ("loreft", MultiLabelHead(num_labels=3, labels=("a", "b", "c"))),
    "tags": ("par_bn", TaggingHead(num_labels=3, labels=("O", "B", "I"))),
    "answers": ("seq_bn", QuestionAnsweringHead()),
    "prompt": ("prompt_tuning[prompt_length=2]", TaggingHead(num_labels=2)),
    "prompted": ("prompt_tuning[prompt_length=2]", ClassificationHead(num_labels=2)),
    "choice": ("seq_bn", MultipleChoiceHead()),
}
"""Config string and head of each adapter."""


def tokenizer_of(base: str) -> Any:
    """Whole words, as many as the tiny models know, with special tokens where BERT and RoBERTa have them."""
    special = {"bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]"], "roberta": ["<s>", "<pad>", "</s>", "<unk>"]}
    names = special.get(base, ["<unk>", "<s>", "</s>"])
    core = Tokenizer(
        models.WordLevel(
            {word: i for i, word in enumerate([*names, *WORDS])}, next(n for n in names if "unk" in n.lower())
        )
    )
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    options: dict[str, Any] = {"unk_token": next(n for n in names if "unk" in n.lower())}
    if base == "bert":
        core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        options |= {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    elif base == "roberta":
        core.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
        options |= {"pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>", "eos_token": "</s>"}
    else:  # as GPT-2 and Llama: nothing to pad with, and to the left if there were
        options |= {"eos_token": "</s>", "padding_side": "left"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, **options)


def base_folder(folder: Path, base: str = "bert") -> Path:
    """A tiny base model with its tokenizer, as people have them."""
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / "bases" / base / name, folder)
    tokenizer_of(base).save_pretrained(folder)
    return folder


def model_of(base: Path, auto: str = "AutoModel", **options: Any) -> Any:
    return getattr(transformers, auto).from_pretrained(base, **options).eval()


def shake(module: torch.nn.Module, seed: int) -> None:
    """Random weights, far from those that do nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)


def save_adapters(base: Path, out: Path, kinds: Mapping[str, tuple[str, HeadConfig | None]] = KINDS) -> list[Path]:
    """Package folders of adapters over a base model."""
    panel = adapters(model_of(base))
    for seed, (name, (config, head)) in enumerate(kinds.items()):
        panel.add(name, config)
        shake(panel.module(name), seed)
        if head is not None:
            panel.add_head(name, head)
            shake(panel.head_module(name), seed + 1000)
        panel.save(name, out / name, base_model={"id": "acme/tiny"}, license="Apache-2.0")
    return [out / name for name in kinds]


@dataclass(frozen=True)
class Server:
    """``adaptergit serve`` in a process of its own."""

    process: subprocess.Popen[str]
    facts: dict[str, Any]

    @property
    def url(self) -> str:
        return str(self.facts["url"])

    def predict(self, **body: Any) -> requests.Response:
        return requests.post(f"{self.url}/v1/predict", json=body)

    def get(self, path: str) -> requests.Response:
        return requests.get(self.url + path)

    def metrics(self) -> dict[str, float]:
        """Every sample by its name with labels, as Prometheus reads it."""
        from prometheus_client.parser import text_string_to_metric_families

        return {
            sample.name + "".join(f",{k}={v}" for k, v in sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.get("/metrics").text)
            for sample in family.samples
        }


@contextmanager
def serving(references: Sequence[str | Path], *options: str, env: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Start a server on a free port; stop it at the end, if the test has not."""
    command = [sys.executable, "-m", "adaptergit", "serve", *map(str, references), "--port", "0", "--json", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **(env or {})})
    try:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if line == "}\n":  # the end of the one JSON object
                break
        facts = json.loads(said)
        assert "url" in facts, facts
        yield Server(process, facts)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
