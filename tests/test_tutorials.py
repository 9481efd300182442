"""Every tutorial, played from its first line to its last, with a git server and a base model that are small but real."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from conftest import GOLDEN
from reading import Reader, reader

from adaptergit.export import export
from adaptergit.splice import adapters

__all__ = ["reader"]
PAGES = Path(__file__).parent.parent / "docs" / "tutorials"


@pytest.mark.slow
def test_publish_your_first_adapter_and_work_without_network(reader: Reader) -> None:
    said = reader.play("first-adapter.md")
    assert "('bad', 'good')" in said
    assert "adapters/sentiment/1.1.0" in reader.hub.git("ls-remote", f"{reader.hub.server.url}/you/adapters.git")
    reader.play("offline.md")
    assert (reader.work / "mirror" / "mirror.json").is_file()


@pytest.mark.slow
def test_run_a_community_index(reader: Reader) -> None:
    reader.play("first-adapter.md")
    shutil.rmtree(reader.home / ".cache" / "adaptergit")
    (reader.home / ".config" / "adaptergit" / "known_publishers").unlink()  # only the index vouches
    said = reader.play("community-index.md")
    assert "the key may sign for 127.0.0.1/you/adapters: the index community" in said
    refused = subprocess.run(
        [sys.executable, "-m", "adaptergit", "load", f"{reader.hub.server.url}/you/adapters.git@sentiment"],
        env=reader.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert refused.returncode == 4
    assert "stolen laptop" in refused.stderr
    assert (reader.work / "community" / "dist" / "snapshot.json.sig").is_file()


@pytest.mark.slow
def test_come_from_adapterhub(reader: Reader) -> None:
    shutil.copytree(GOLDEN / "public" / "bert__head_classification" / "checkpoint" / "a", reader.work / "hub-adapter")
    assert "tensors: 12 equal" in reader.play("from-adapterhub.md")
    assert (reader.work / "for-adapters" / "adapter_config.json").is_file()


@pytest.mark.slow
def test_come_from_peft(reader: Reader) -> None:
    torch.manual_seed(0)
    model = transformers.AutoModel.from_pretrained(GOLDEN / "bases" / "bert")
    adapters(model).add("chat", "lora[r=4, alpha=8]")
    export(model, "chat", reader.work / "peft-checkpoint", to="peft")
    reader.play("from-peft.md")
    assert (reader.work / "adapters" / "for-peft" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_carry_a_task_to_another_language(reader: Reader) -> None:
    reader.play("cross-lingual.md")
    assert (reader.work / "out" / "mood" / "card.yaml").is_file()


def test_every_tutorial_is_played() -> None:
    played = re.findall(r'play\("([\w-]+\.md)"\)', Path(__file__).read_text("utf-8"))
    assert {page.name for page in PAGES.iterdir()} == set(played)
