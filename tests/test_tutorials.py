"""Every tutorial, played from its first line to its last, with a git server and a base model that are small but real."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import GOLDEN, Hub
from tokenizers import Tokenizer, models, pre_tokenizers

from adaptergit.export import export
from adaptergit.publish import publish
from adaptergit.splice import adapters

PAGES = Path(__file__).parent.parent / "docs" / "tutorials"
PLAYER = Path(__file__).parent / "tutorial_player.py"
GOOD, BAD = ("lovely", "superb", "great", "good"), ("awful", "dull", "boring", "bad")
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
        return self.play_text((PAGES / name).read_text("utf-8"), name)

    def play_text(self, text: str, name: str) -> str:
        """Return what some text of a page printed."""
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


@pytest.mark.slow
def test_the_commands_of_the_readme(reader: Reader, source: Callable[..., Path]) -> None:
    """From who is trusted to publishing; what needs a public server, or a program of others, is left out."""
    for name, version in (("ner", "1.2.0"), ("sst2", "1.0.0"), ("sst2", "1.1.0")):
        content = f"{name} {version}".encode() * 90
        publish(source(content, name=name, version=version), clone=reader.hub.clone, key=reader.hub.key.path)
    (reader.work / "acme.pub").write_text(f"{reader.hub.key.public.line}\n")
    mine = reader.hub.server.create("me/adapters")
    reader.hub.git("clone", "-q", mine, str(reader.work / "my-clone"))
    rows = "".join(f"a {word} film\t{word in GOOD}\n" for word in (*GOOD, *BAD) for _ in range(3))
    for name in ("train.tsv", "dev.tsv"):
        (reader.work / name).write_text(f"sentence\tlabel\n{rows}")
    text = (PAGES.parent.parent / "README.md").read_text("utf-8")
    blocks = [block for block in re.findall(r"^```console\n.*?^```$", text, re.M | re.S) if "adaptergit" in block]
    played = {
        "adaptergit trust add": 0, "adaptergit lock": 1, "adaptergit index list": 2, "adaptergit train": 3,
    }  # fmt: skip
    chosen = sorted(
        (rank, block)
        for block in blocks
        for start, rank in played.items()
        if block.startswith(f"```console\n$ {start}")
    )
    assert [rank for rank, _ in chosen] == [0, 1, 2, 3]
    page = "\n\n".join(block for _, block in chosen)
    page = page.replace("acme/adapters@", f"{reader.hub.url}@").replace("github.com/acme", "127.0.0.1/acme")
    page = page.replace("/srv/www", str(reader.work / "www"))
    said = reader.play_text(page, "commands.md")
    assert (reader.work / "www" / "adapters" / "mirror.json").is_file()
    assert "1.1.0" in (reader.work / "adaptergit.lock").read_text("utf-8")
    assert "sst2" in said
    assert "adapters/sst2/1.0.0" in reader.hub.git("ls-remote", mine)


def test_every_tutorial_is_played() -> None:
    played = re.findall(r'play\("([\w-]+\.md)"\)', Path(__file__).read_text("utf-8"))
    assert {page.name for page in PAGES.iterdir()} == set(played)
