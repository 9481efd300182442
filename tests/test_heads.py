"""Heads beside the model: every task, saved with its adapter, several at once, and one of one's own."""

from __future__ import annotations

import threading
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
    parse_composition,
    register_head,
)
from adaptergit.splice.composition import copies_of, ends_of, for_row
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


def test_rows_that_are_no_whole_questions_are_refused() -> None:
    model = tiny_model("bert")
    panel = adapters(model)
    panel.add("a")
    panel.add_head("a", MultipleChoiceHead(num_choices=2))
    panel.active = "a"
    with pytest.raises(UsageError, match="3 rows are no questions with 2 choices each"):
        model(input_ids=IDS[:3])
    with pytest.raises(UsageError, match="the questions have 4 choices, and the head knows 2"):
        model(input_ids=IDS[None])
    assert model(input_ids=IDS).logits.shape == (2, 2), "nothing of the calls before is left"


def test_an_answer_without_names_is_one_heads_alone() -> None:
    class Plain(HeadModule):
        def answer(self, call: HeadCall) -> Any:
            return (call.hidden.mean(1),)

    class PlainHead(HeadConfig):
        type: ClassVar[str] = "plain"

        def build(self, hidden_size: int, config: Any) -> HeadModule:
            return Plain()

    model = tiny_model("bert")
    panel = adapters(model)
    panel.add("a")
    panel.add_head("a", PlainHead())
    panel.add_head("b", ClassificationHead(num_labels=3))
    panel.active = "a"
    assert model(input_ids=IDS)[0].shape == (4, 32)
    assert torch.equal(model(input_ids=IDS, return_dict=False)[0], model(input_ids=IDS)[0])
    panel.activate("a", head=["a", "b"])
    with pytest.raises(UsageError, match="Plain answers with a tuple") as caught:
        model(input_ids=IDS)
    assert "ModelOutput" in str(caught.value.hint)
    panel.active = "a"
    with pytest.raises(UsageError, match="Plain answers with a tuple"):
        model(input_ids=IDS, labels=CLASSES, num_items_in_batch=4)


@pytest.mark.slow
def test_a_head_is_compiled_into_one_graph_with_the_model() -> None:
    model = tiny_model("bert")
    panel = adapters(model)
    panel.add("a")
    panel.add_head("a", TaggingHead())
    panel.active = "a"
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(first(compiled(IDS)), first(model(IDS)), atol=1e-6)


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


def two_headed(head: Any = None) -> Any:
    """A model with adapters a and b, a head of each one's own, and c without."""
    torch.manual_seed(0)
    model = tiny_model("bert", "AutoModel" if head is not None else "AutoModelForSequenceClassification")
    panel = adapters(model)
    for name in ("a", "b"):
        panel.add(name, "lora[init_weights=bert]")
        if head is not None:
            panel.add_head(name, head)
        else:
            panel.train(name)
            with torch.no_grad():
                for parameter in panel.head_module(name).parameters():
                    parameter.normal_()
    panel.add("c")
    model.eval()
    return panel


@pytest.mark.parametrize("head", [ClassificationHead(num_labels=3), None], ids=["beside", "own class"])
@pytest.mark.parametrize(
    "text",
    [
        "Parallel(a, b)",
        "BatchSplit(a, b, batch_sizes=[1, 3])",
        "Route(a, b, b, a)",
        "MultiTask(a, b)",
        "Stack(c, Parallel(a, Stack(c, b)))",
        "BatchSplit(Stack(b, a), Stack(c, a), batch_sizes=[2, 2])",
    ],
)
def test_every_row_is_answered_by_the_head_of_its_own_adapter(text: str, head: Any) -> None:
    panel = two_headed(head)
    tasks = [1, 0, 0, 1] if "MultiTask" in text else None
    panel.activate(text, task_ids=tasks)
    with torch.no_grad():
        output = panel.model(input_ids=IDS)
    answers = output.get("head_outputs") or [output]
    tree = parse_composition(text)
    rows = len(IDS) * copies_of(tree)
    logits: dict[str, list[torch.Tensor]] = {}
    for row in range(rows):
        own = for_row(tree, row, rows, tasks)
        with panel.using(own), torch.no_grad():
            alone = panel.model(input_ids=IDS[row % len(IDS)][None]).logits
        logits.setdefault("all" if head is None else str(ends_of(own)[0]), []).append(alone)
    assert len(answers) == len(logits)
    for answer, expected in zip(answers, logits.values(), strict=True):
        assert torch.allclose(answer.logits, torch.cat(expected), atol=1e-5)


@pytest.mark.parametrize("text", ["Parallel(a, c)", "Route(a, None)", "MultiTask(b, c)"])
def test_rows_of_which_some_have_a_head_need_to_be_told(text: str) -> None:
    panel = two_headed(ClassificationHead(num_labels=3))
    panel.active = "b"
    for choose in (panel.activate, lambda tree: panel.using(tree).__enter__()):
        with pytest.raises(UsageError, match=r"c would be answered|without an adapter"):
            choose(text)
    assert (panel.active, panel.active_head) == ("b", "b")
    panel.activate(text, head="a", task_ids=[0, 1, 0, 1])
    assert panel.model(input_ids=IDS).logits.shape[1] == 3
    panel.activate(text, head=[], task_ids=[0, 1, 0, 1])
    assert not hasattr(panel.model(input_ids=IDS), "logits")


def test_using_answers_with_its_own_head() -> None:
    panel = two_headed(ClassificationHead(num_labels=3))
    expected = {}
    for name, head in (("a", None), ("b", None), ("a", "b"), (None, "a")):
        panel.activate(name, head)
        expected[name, head] = panel.model(input_ids=IDS).logits
    panel.active = "a"
    for (name, head), logits in expected.items():
        with panel.using(name, head=head):
            assert torch.equal(panel.model(input_ids=IDS).logits, logits)
    with panel.using("a", head=[]):
        assert not hasattr(panel.model(input_ids=IDS), "logits")
    panel.active = None
    with panel.using("b"):
        assert torch.equal(panel.model(input_ids=IDS).logits, expected["b", None])
    assert not hasattr(panel.model(input_ids=IDS), "logits")


@pytest.mark.parametrize("head", [ClassificationHead(num_labels=3), None], ids=["beside", "own class"])
def test_threads_have_heads_of_their_own(head: Any) -> None:
    panel = two_headed(head)
    expected = {}
    for name in ("a", "b", None):
        panel.active = name
        with torch.no_grad():
            expected[name] = panel.model(input_ids=IDS)[0]
    failures: list[str | None] = []

    def work(name: str | None) -> None:
        for _ in range(10):
            with panel.using(name), torch.no_grad():
                if not torch.equal(panel.model(input_ids=IDS)[0], expected[name]):
                    failures.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b", None, "a")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


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
