"""Heads beside the model: every task, saved with its adapter, several at once, and one of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from conftest import tiny_model
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

import adaptergit
from adaptergit.errors import UsageError
from adaptergit.splice import (
    CausalLMHead,
    ClassificationHead,
    DependencyParsingHead,
    HeadConfig,
    ImageClassificationHead,
    MaskedLMHead,
    MultiLabelHead,
    MultipleChoiceHead,
    QuestionAnsweringHead,
    Seq2SeqLMHead,
    TaggingHead,
    adapters,
    register_head,
)
from adaptergit.splice.heads import HeadCall, HeadModule

IDS = torch.randint(5, 60, (4, 7), generator=torch.Generator().manual_seed(1))
CLASSES = torch.tensor([0, 1, 2, 0])
STARTS = torch.tensor([[1, 2, 4, 6]] * 4)
HEADS: list[tuple[HeadConfig, dict[str, torch.Tensor], tuple[int, ...]]] = [
    (ClassificationHead(num_labels=3, labels=("x", "y", "z")), {"labels": CLASSES}, (4, 3)),
    (ClassificationHead(num_labels=1), {"labels": torch.rand(4)}, (4, 1)),
    (ClassificationHead(num_labels=3, use_pooler=True), {"labels": CLASSES}, (4, 3)),
    (MultiLabelHead(num_labels=3), {"labels": torch.tensor([[0, 1, 1]] * 4)}, (4, 3)),
    (ImageClassificationHead(num_labels=3), {"labels": CLASSES}, (4, 3)),
    (ImageClassificationHead(num_labels=3, multilabel=True), {"labels": torch.tensor([[0, 1, 1]] * 4)}, (4, 3)),
    (TaggingHead(num_labels=3), {"labels": IDS % 3}, (4, 7, 3)),
    (QuestionAnsweringHead(), {"start_positions": CLASSES, "end_positions": CLASSES + 3}, (4, 7)),
    (MultipleChoiceHead(num_choices=2), {"labels": torch.tensor([0, 1])}, (2, 2)),
    (MaskedLMHead(), {"labels": IDS}, (4, 7, 72)),
    (CausalLMHead(), {"labels": IDS}, (4, 7, 72)),
    (Seq2SeqLMHead(), {"labels": IDS}, (4, 7, 72)),
    (
        DependencyParsingHead(num_labels=3),
        {"word_starts": STARTS, "labels_arcs": CLASSES[:, None] % 2 + 1, "labels_rels": CLASSES[:, None]},
        (4, 7, 8, 3),
    ),
]


def first(output: Any) -> torch.Tensor:
    return next(v for k, v in output.items() if k != "loss" and isinstance(v, torch.Tensor))


@pytest.mark.parametrize(("config", "labels", "shape"), HEADS, ids=lambda value: getattr(value, "type", ""))
def test_a_head_answers_and_is_saved(config: HeadConfig, labels: Any, shape: tuple[int, ...], tmp_path: Path) -> None:
    model = tiny_model("bert")
    panel = adapters(model)
    panel.add("a")
    panel.add_head("a", config)
    panel.train("a")
    model.eval()
    if isinstance(config, DependencyParsingHead):
        labels = {
            **labels,
            "labels_arcs": nn.functional.pad(labels["labels_arcs"], (0, 6)),
            "labels_rels": nn.functional.pad(labels["labels_rels"], (0, 6)),
        }
    output = model(input_ids=IDS, **labels)
    assert first(output).shape == shape
    assert output.loss is not None
    output.loss.backward()
    assert any(p.grad is not None for p in panel.head_module("a").parameters())
    panel.save("a", tmp_path / "a")
    other = tiny_model("bert")
    adaptergit.load(tmp_path / "a", other, policy="unsigned")
    assert adapters(other).head_config("a") == config
    given = {k: v for k, v in labels.items() if k == "word_starts"}
    with torch.no_grad():
        assert torch.allclose(first(other(input_ids=IDS, **given)), first(output), atol=1e-6)


def test_choices_may_come_in_a_dimension_of_their_own() -> None:
    model = tiny_model("bert")
    panel = adapters(model)
    panel.add("a")
    panel.add_head("a", MultipleChoiceHead(num_choices=2))
    panel.active = "a"
    with torch.no_grad():
        assert torch.allclose(model(input_ids=IDS.view(2, 2, 7)).logits, model(input_ids=IDS).logits)


@pytest.mark.parametrize("text", ["Parallel(a, b)", "BatchSplit(a, b, batch_sizes=[1, 3])", "Stack(a, b)"])
def test_several_heads_answer_for_their_rows(text: str) -> None:
    model = tiny_model("bert")
    panel = adapters(model)
    for name, count in (("a", 2), ("b", 5)):
        panel.add(name)
        panel.add_head(name, ClassificationHead(num_labels=count))
    panel.activate(text, head=["a", "b"])
    with torch.no_grad():
        one, two = model(input_ids=IDS).head_outputs
    rows = {"Parallel": (4, 4), "BatchSplit": (1, 3), "Stack": (4, 4)}[text.partition("(")[0]]
    assert (one.logits.shape, two.logits.shape) == ((rows[0], 2), (rows[1], 5))


def test_average_of_heads() -> None:
    panel = adapters(tiny_model("bert"))
    for name in ("a", "b"):
        panel.add_head(name, ClassificationHead())
    panel.average_head("c", ["a", "b"], [1, 3])
    for key, value in panel.head_module("c").state_dict().items():
        a, b = (panel.head_module(name).state_dict()[key] for name in ("a", "b"))
        assert torch.allclose(value, 0.25 * a + 0.75 * b)
    panel.add_head("d", ClassificationHead(num_labels=5))
    with pytest.raises(UsageError):
        panel.average_head("e", ["a", "d"])


def test_a_head_of_ones_own_is_saved_and_loaded(tmp_path: Path) -> None:
    @register_head
    @dataclass(frozen=True)
    class MeanHead(HeadConfig):
        """Reads the mean over the sequence."""

        type: ClassVar[str] = "mean"

        size: int = 3

        def build(self, hidden_size: int, config: Any) -> HeadModule:
            return MeanModule(hidden_size, self.size)

    class MeanModule(HeadModule):
        def __init__(self, hidden_size: int, size: int) -> None:
            super().__init__()
            self.linear = nn.Linear(hidden_size, size)

        def answer(self, call: HeadCall) -> Any:
            return SequenceClassifierOutput(logits=self.linear(call.hidden.mean(1)))

    model = tiny_model("bert")
    panel = adapters(model)
    panel.add("a")
    panel.add_head("a", MeanHead(size=4))
    panel.active = "a"
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
    panel.save("a", tmp_path / "a")
    other = tiny_model("bert")
    adaptergit.load(tmp_path / "a", other, policy="unsigned")
    with torch.no_grad():
        assert torch.allclose(other(input_ids=IDS).logits, expected, atol=1e-6)


def test_a_second_copy_of_a_classes_head_is_not_a_copy_of_the_first(tmp_path: Path) -> None:
    alone = {}
    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        model = tiny_model("bert", "AutoModelForSequenceClassification")
        panel = adapters(model)
        panel.add(name)
        panel.train(name)
        panel.save(name, tmp_path / name)
        with torch.no_grad():
            alone[name] = model.eval()(input_ids=IDS).logits
    both = tiny_model("bert", "AutoModelForSequenceClassification")
    for name in ("a", "b"):  # a answers while b is loaded
        adaptergit.load(tmp_path / name, both)
    for name in ("b", "a"):
        adapters(both).active = name
        with torch.no_grad():
            assert torch.allclose(both(input_ids=IDS).logits, alone[name], atol=1e-6)
