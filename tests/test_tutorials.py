"""Every tutorial, played from its first line to its last, with a git server and a base model that are small but real."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import GOLDEN, Hub
from tokenizers import Tokenizer, models, pre_tokenizers

from adaptergit.export import export
from adaptergit.splice import adapters

PAGES = Path(__file__).parent.parent / "docs" / "tutorials"
PLAYER = Path(__file__).parent / "tutorial_player.py"
WORDS = "a an the film play book is was der das ein lovely superb great good awful dull boring bad"


@pytest.fixture
def reader(hub: Hub, home: Path, tmp_path: Path) -> Reader:
    """Somebody with an empty folder, adaptergit on the path, and a base model that was downloaded before."""
    hub.server.create("you/adapters")
    hub.server.create("community/index")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "adaptergit").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m adaptergit "$@"\n')
    (programs / "adaptergit").chmod(0o755)
    snapshot = home / ".cache" / "huggingface" / "hub" / "models--bert-base-uncased" / "snapshots" / ("0" * 40)
    (snapshot.parent.parent / "refs").mkdir(parents=True)
    (snapshot.parent.parent / "refs" / "main").write_text("0" * 40)
    longer().save_pretrained(snapshot)
    special = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    words = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate([*special.values(), *WORDS.split()])}, "[UNK]")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=128, **special).save_pretrained(
        snapshot
    )
    return Reader(hub, home, tmp_path / "work", programs)


def longer() -> Any:
    """The tiny BERT, with room for texts of the usual length."""
    short = transformers.BertForPreTraining.from_pretrained(GOLDEN / "bases" / "bert")
    model = transformers.BertForPreTraining(
        transformers.BertConfig(**short.config.to_dict() | {"max_position_embeddings": 128})
    )
    table = "bert.embeddings.position_embeddings.weight"
    weights = short.state_dict()
    model.load_state_dict(weights | {table: torch.cat([weights[table], torch.zeros(128 - len(weights[table]), 32)])})
    return model


class Reader:
    """Reads one tutorial after the other, in the same folder."""

    def __init__(self, hub: Hub, home: Path, work: Path, programs: Path) -> None:
        self.hub, self.home, self.work = hub, home, work
        work.mkdir()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ADAPTERGIT_", "HF_"))}
        root = str(PLAYER.parent.parent)
        self.environment = kept | {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }

    def play(self, name: str) -> str:
        """Return what the whole page printed."""
        text = (PAGES / name).read_text("utf-8")
        here = text.replace("https://git.example", self.hub.server.url).replace("git.example", "127.0.0.1")
        here = here.replace("add-git-example", "add-127-0-0-1")
        page = self.home / name
        page.write_text(here, "utf-8")
        done = subprocess.run(
            [sys.executable, str(PLAYER), str(page)],
            cwd=self.work, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout


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
