"""Somebody who reads a page and types what it says, with a git server and a base model that are small but real."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import GOLDEN, Hub
from tokenizers import Tokenizer, models, pre_tokenizers

ROOT = Path(__file__).parent.parent
PLAYER = Path(__file__).parent / "tutorial_player.py"
WORDS = "a an the film play book is was der das ein lovely superb great good awful dull boring bad"
GOOD, BAD = ("lovely", "superb", "great", "good"), ("awful", "dull", "boring", "bad")
ELSEWHERE = {
    r"python3 -m venv|pip install": "test_install.py installs the wheel",
    r"SOURCE_DATE_EPOCH": "test_install.py builds it twice",
    r"python docs/absolute_links": "test_docs.py looks at where they lead",
    r"make |\.venv/bin/python -m pytest|pre-commit": "what CI itself runs",
    r"torchrun|accelerate launch": "test_distributed.py trains with several processes",
    r"adaptergit index review 7": "test_contribute.py reviews proposals on a forge",
    r"vllm serve|curl http://127.0.0.1:8000/": "vLLM wants a GPU; test_cli_convert.py looks at what it gets",
    r"hf auth login": "asks the Hub itself for a password",
}
"""What is not typed, by how it begins, and where it is looked at instead."""
_SERVE = """#!/bin/bash
# adaptergit serve, in the background; here once it answers.
adaptergit serve "$@" --port $PORT > "$HOME/served" 2>&1 & echo $! > "$HOME/server"
until curl -s -o /dev/null http://127.0.0.1:$PORT/healthz; do
    kill -0 $(cat "$HOME/server") || { cat "$HOME/served"; exit 1; }
    sleep 0.2
done
cat "$HOME/served"
"""


@pytest.fixture
def reader(hub: Hub, home: Path, tmp_path: Path) -> Iterator[Reader]:
    """Somebody with an empty folder, adaptergit on the path, and a base model that was downloaded before."""
    hub.server.create("you/adapters")
    hub.server.create("community/index")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, script in (
        ("adaptergit", f'#!/bin/sh\nexec "{sys.executable}" -m adaptergit "$@"\n'), ("serve-and-go-on", _SERVE),
    ):  # fmt: skip
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
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
    reader = Reader(hub, home, tmp_path / "work", programs, snapshot)
    yield reader
    with suppress(OSError):
        os.kill(int((home / "server").read_text()), signal.SIGTERM)


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

    def __init__(self, hub: Hub, home: Path, work: Path, programs: Path, base: Path) -> None:
        self.hub, self.home, self.work, self.base = hub, home, work, base
        work.mkdir()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ADAPTERGIT_", "HF_"))}
        root = str(PLAYER.parent.parent)
        self.environment = kept | {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "PORT": str(free_port()),
        }

    def play(self, name: str) -> str:
        """Return what the whole tutorial printed."""
        return self.play_text((ROOT / "docs" / "tutorials" / name).read_text("utf-8"), name)

    def type_blocks(self, page: str, instead: Mapping[str, str], which: Sequence[int] | None = None) -> str:
        """Type the commands of a page, or of some blocks of it in this order; return what they printed.

        Args:
            page: From the root of the repository.
            instead: What stands there for what only readers know.
            which: Numbers of blocks; default: all of them.
        """
        blocks = blocks_of(page)
        chosen = [blocks[number] for number in (range(len(blocks)) if which is None else which)]
        text = "".join(f"```console\n{without_elsewhere(block)}```\n" for block in chosen)
        for old, new in instead.items():
            assert any(old in block for block in blocks), old
            text = text.replace(old, new)
        text = re.sub(r"^\$ adaptergit serve ", "$ serve-and-go-on ", text, flags=re.M)
        text = text.replace("http://127.0.0.1:8080/", f"http://127.0.0.1:{self.environment['PORT']}/")
        return self.play_text(text, page, self.where)

    def type_lines(self, *commands: str) -> str:
        """Type commands; return what they printed."""
        typed = "".join(f"$ {command}\n" for command in commands)
        return self.play_text(f"```console\n{typed}```\n", "lines", self.where)

    @property
    def where(self) -> Path:
        """Where the last commands ended."""
        told = self.home / ".where"
        return Path(told.read_text("utf-8").strip()) if told.exists() else self.work

    def play_text(self, text: str, name: str, where: Path | None = None) -> str:
        """Return what some text of a page printed."""
        here = text.replace("https://git.example", self.hub.server.url).replace("git.example", "127.0.0.1")
        here = here.replace("add-git-example", "add-127-0-0-1")
        page = self.home / name.replace("/", "-")
        page.write_text(here, "utf-8")
        done = subprocess.run(
            [sys.executable, str(PLAYER), str(page)],
            cwd=where or self.work, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout


def blocks_of(page: str) -> list[str]:
    """What stands in the console blocks of a page."""
    found = re.finditer(r"^( *)```console\n(.*?)^\1```$", (ROOT / page).read_text("utf-8"), re.M | re.S)
    return [textwrap.dedent(match[2]) for match in found]


def without_elsewhere(block: str) -> str:
    """A block without the commands that are looked at elsewhere."""
    return re.sub(rf"^\$ (?:{'|'.join(ELSEWHERE)})(?:.*\\\n)*.*\n", "", block, flags=re.M)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
