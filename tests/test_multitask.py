"""Several tasks in one batch: which task a row has, said call by call, and what MTL-LoRAs have in common."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import tiny_model

import adaptergit
from adaptergit.errors import UsageError
from adaptergit.splice import ClassificationHead, adapters

IDS = torch.randint(5, 60, (4, 6), generator=torch.Generator().manual_seed(3))


def two_tasks(model: Any, config: str = "mtl_lora") -> Any:
    panel = adapters(model)
    for seed, name in enumerate("ab"):
        panel.add(name, config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in panel.module(name).parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return panel


def alone(model: Any, panel: Any, tasks: list[int]) -> torch.Tensor:
    rows = []
    for row, task in enumerate(tasks):
        with panel.using("ab"[task]), torch.no_grad():
            rows.append(model(input_ids=IDS[row][None])[0])
    return torch.cat(rows)


@pytest.mark.parametrize("headed", [False, True])
@pytest.mark.parametrize("own_class", [False, True])
def test_every_call_names_the_tasks_of_its_rows(own_class: bool, headed: bool) -> None:
    model = tiny_model("bert", "AutoModelForSequenceClassification" if own_class else "AutoModel")
    panel = two_tasks(model)
    if headed:
        for name in "ab":
            panel.add_head(name, ClassificationHead(num_labels=3))
    panel.active = "MultiTask(a, b)"
    for tasks in ([0, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 1]):
        for ids in (tasks, torch.tensor(tasks)):
            with torch.no_grad():
                found = model(input_ids=IDS, task_ids=ids)
            if headed and len(set(tasks)) > 1:
                logits = torch.empty(4, 3)
                for answer, task in zip(found.head_outputs, sorted(set(tasks), key=tasks.index), strict=True):
                    logits[[row for row, own in enumerate(tasks) if own == task]] = answer.logits
            else:
                logits = found[0]
            torch.testing.assert_close(logits, alone(model, panel, tasks), atol=1e-5, rtol=1e-5)
    with pytest.raises(UsageError, match="task_ids"):
        model(input_ids=IDS)


@pytest.mark.parametrize("ids", [[0, 1], [0, 1, 2, 0], [0, 1, -1, 0], [0.0, 1.0, 0.0, 1.0], ["a", "b", "a", "b"]])
def test_task_ids_that_fit_no_task_are_refused_and_nothing_stays_of_the_call(ids: list[Any]) -> None:
    model = tiny_model("bert")
    panel = two_tasks(model)
    panel.activate("MultiTask(a, b)", task_ids=[1, 1, 0, 0])
    before = model(input_ids=IDS)[0]
    with pytest.raises(UsageError, match="task_ids must be 4 numbers from 0 to 1"):
        model(input_ids=IDS, task_ids=ids)
    assert torch.equal(model(input_ids=IDS)[0], before)


def test_tasks_of_a_call_follow_what_is_activated_around_it() -> None:
    """Heads that come later, and ``using``, hook the model after the tasks did."""
    model = tiny_model("bert", "AutoModelForSequenceClassification")
    panel = two_tasks(model)
    panel.active = "MultiTask(a, b)"
    for name in "ab":
        panel.add_head(name, ClassificationHead(num_labels=3))
    panel.active = "MultiTask(a, b)"
    tasks = [0, 0, 0, 0]
    torch.testing.assert_close(model(input_ids=IDS, task_ids=tasks).logits, alone(model, panel, tasks))
    with panel.using("Stack(a, MultiTask(b, a))", head=[]), torch.no_grad():
        found = model(input_ids=IDS, task_ids=tasks).logits
    with panel.using("Stack(a, b)", head=[]), torch.no_grad():
        torch.testing.assert_close(found, model(input_ids=IDS).logits)


def test_shared_matrices_learn_from_every_task_and_what_is_a_tasks_own_does_not(tmp_path: Path) -> None:
    model = tiny_model("bert")
    panel = two_tasks(model, "mtl_lora[n_up_projection=2]")
    a, b = (next(iter(panel.module(name).places.values())) for name in "ab")
    assert not torch.equal(a.lora_A, b.lora_A)
    panel.share_parameters("a", "b")
    assert [id(a.lora_A), id(a.lora_B)] == [id(b.lora_A), id(b.lora_B)]
    assert a.task is not b.task
    panel.train("a", "b")
    panel.active = "MultiTask(a, b)"
    ours = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(ours) == len({id(parameter) for parameter in ours}), "an optimiser gets each once"
    optimiser = torch.optim.SGD(ours, lr=0.1)
    before = {name: copy.deepcopy(panel.module(name).state_dict()) for name in "ab"}
    model(input_ids=IDS, task_ids=[1, 1, 1, 1])[0].square().sum().backward()
    optimiser.step()
    for name, of_task in (("a", False), ("b", True)):
        for key, value in panel.module(name).state_dict().items():
            if not key.endswith("weights"):  # of the mixture: so sharp that one step moves nothing
                assert torch.equal(value, before[name][key]) != (of_task or not key.endswith("task")), key
    panel.save("a", tmp_path / "a")
    twin = tiny_model("bert")
    adaptergit.load(tmp_path / "a", twin, name="x")
    panel.active = "a"
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(twin(input_ids=IDS)[0], model(input_ids=IDS)[0])


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("named", ["generate", "activate"])
def test_tasks_of_a_generation(beams: int, named: str) -> None:
    model = tiny_model("gpt2", "AutoModelForCausalLM")
    panel = two_tasks(model, "seq_bn")
    tasks, options = [1, 0, 0, 1], {"max_new_tokens": 4, "num_beams": beams, "do_sample": False, "pad_token_id": 0}
    expected = []
    for row, task in enumerate(tasks):
        with panel.using("ab"[task]):
            expected.append(model.generate(IDS[row][None], **options))
    if named == "generate":
        panel.active = "MultiTask(a, b)"
        found = model.generate(IDS, task_ids=torch.tensor(tasks), **options)
    else:
        panel.activate("MultiTask(a, b)", task_ids=tasks)
        found = model.generate(IDS, **options)
    assert torch.equal(found, torch.cat(expected))


def test_the_base_by_itself_is_told_tasks_too() -> None:
    model = tiny_model("bert", "AutoModelForSequenceClassification")
    panel = two_tasks(model)
    panel.active = "MultiTask(a, b)"
    with torch.no_grad():
        found = model.bert(input_ids=IDS, task_ids=[0, 1, 1, 0])[0]
        for row, task in enumerate([0, 1, 1, 0]):
            with panel.using("ab"[task]):
                torch.testing.assert_close(model.bert(input_ids=IDS[row][None])[0], found[row][None])
    for wrong in (3, "ab", {0: 1}):
        with pytest.raises(UsageError, match="task_ids must be a list"):
            model(input_ids=IDS, task_ids=wrong)
        with pytest.raises(UsageError, match="task_ids must be a list"):
            panel.activate("MultiTask(a, b)", task_ids=wrong)


def test_what_has_no_matrices_to_share_is_refused() -> None:
    panel = adapters(tiny_model("bert"))
    for name, config in (("a", "mtl_lora"), ("b", "mtl_lora[r=4]"), ("c", "lora"), ("d", "mtl_lora")):
        panel.add(name, config)
    for names, message in ((("a", "b"), "same places"), (("c", "a"), "MTL"), (("a",), "two"), (("a", "x"), "x")):
        with pytest.raises(UsageError, match=message):
            panel.share_parameters(*names)
    panel.share_parameters("a", "d")
    panel.remove("a")
    panel.active = "d"
    panel.model(input_ids=IDS)


def test_a_trainer_trains_tasks_that_are_mixed_in_a_batch(tmp_path: Path) -> None:
    model = tiny_model("bert", "AutoModelForSequenceClassification")
    panel = two_tasks(model)
    panel.share_parameters("a", "b")
    for name in "ab":
        panel.add_head(name, ClassificationHead(num_labels=2))
    panel.train("a", "b")
    panel.head_module("a").requires_grad_(True)
    panel.active = "MultiTask(a, b)"
    rows = [
        {"input_ids": IDS[i % 4], "labels": torch.tensor(i % 2), "task_ids": torch.tensor((i // 2) % 2)}
        for i in range(8)
    ]
    before = {name: copy.deepcopy(panel.module(name).state_dict()) for name in "ab"}
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=4,
        remove_unused_columns=False,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
    )
    result = transformers.Trainer(model, arguments, train_dataset=rows).train()
    assert result.training_loss > 0
    for name in "ab":
        assert any(not torch.equal(value, before[name][key]) for key, value in panel.module(name).state_dict().items())
