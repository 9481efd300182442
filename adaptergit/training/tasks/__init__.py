"""What can be learnt from a file. Adding a task is a class in a file of its own, named here."""

from __future__ import annotations

import difflib

from adaptergit.errors import UsageError
from adaptergit.training.tasks.base import Task, Tools, Wishes
from adaptergit.training.tasks.choice import MultipleChoice
from adaptergit.training.tasks.images import ImageClassification
from adaptergit.training.tasks.language import FillMask, TextGeneration
from adaptergit.training.tasks.question_answering import QuestionAnswering
from adaptergit.training.tasks.sequences import TextToText
from adaptergit.training.tasks.tagging import TokenClassification
from adaptergit.training.tasks.text import MultiLabelClassification, TextClassification, TextRegression

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        TextClassification,
        MultiLabelClassification,
        TextRegression,
        TokenClassification,
        QuestionAnswering,
        MultipleChoice,
        FillMask,
        TextGeneration,
        TextToText,
        ImageClassification,
    )
}


def task_class(name: str) -> type[Task]:
    """Return a task by its name.

    Raises:
        UsageError: There is none.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(TASKS)}"
        raise UsageError(f"unknown task {name!r}", hint=hint)
    return TASKS[name]


__all__ = ["TASKS", "Task", "Tools", "Wishes", "task_class"]
