"""How unsigned checkpoints of the Hugging Face Hub are shown."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from adaptergit.cli.output import clean, print_json, step

if TYPE_CHECKING:
    from adaptergit.hf import Checkpoint


def show_checkpoint(found: Checkpoint, as_json: bool) -> None:
    """Say what it is, what was checked, and how to ask for exactly these bytes."""
    from adaptergit.hf.describe import describe_checkpoint

    description = describe_checkpoint(found)
    if as_json:
        shown = {
            "path": found.path,
            "from_store": found.from_store,
            "signed": False,
            "reference": str(found.pinned),
            "commit": found.commit,
            "identity": found.identity,
            "level": found.level,
            "steps": found.steps,
            "files": found.files,
        }
        print_json(shown | asdict(description))
        return
    step("kept here already" if found.from_store else f"fetched from {found.served_by}")
    for line in found.steps:
        click.echo(f"  ok  {clean(line)}")
    task = description.told.get("task", {})
    rows = [
        ("signed by", f"nobody; accepted by the policy {found.level}"),
        ("format", " ".join(text for text in (description.format, description.method) if text)),
        ("base model", description.base_model),
        ("task", task.get("type", "")),
        ("languages", ", ".join(task.get("languages", ()))),
        ("licence", description.told.get("license", "")),
        ("reference", str(found.pinned)),
        ("files", str(found.path)),
    ]
    for title, text in rows:
        if text:
            click.echo(f"{title:<12} {clean(text)}")
