"""The Python blocks of README and how-to pages, run from first to last, with releases and a base model that are small but real."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import CliRunner
from conftest import GOLDEN, Hub
from fastapi.testclient import TestClient
from hf_server import TOKEN, served
from tokenizers import Tokenizer, models, pre_tokenizers

import adaptergit
from adaptergit.cli import main
from adaptergit.errors import AdaptergitWarning
from adaptergit.pins import pin_key
from adaptergit.publish import publish
from adaptergit.resolve import Fetched
from adaptergit.settings import config_dir
from adaptergit.splice import adapters
from adaptergit.trust import SigningKey, generate_key

ROOT = Path(__file__).parent.parent
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "fine", "film")
Play = Callable[..., dict[str, Any]]


def words(*more: str) -> Any:
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate((*WORDS, *more))}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), WORDS, strict=False))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names)


@pytest.fixture
def base(home: Path, tmp_path: Path) -> Path:
    """A base model on this machine, which the settings know by its id."""
    folder = tmp_path / "base"
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    transformers.BertModel(transformers.BertConfig(vocab_size=16, **sizes)).save_pretrained(folder)
    words().save_pretrained(folder)
    (home / "config").mkdir()
    (home / "config" / "config.toml").write_text(f'[base_models]\n"tiny-bert" = "{folder}"\n')
    return folder


@pytest.fixture
def packages(base: Path, tmp_path: Path) -> Path:
    """Adapters as they come from training."""
    for name in ("sentiment", "sst2", "ner", "qa", "nli"):
        model = transformers.AutoModel.from_pretrained(base)
        panel = adapters(model)
        panel.add(name, "seq_bn[reduction_factor=4]")
        if name != "qa":
            panel.add_head(name, adaptergit.ClassificationHead(num_labels=2, labels=("bad", "good")))
        panel.save(name, tmp_path / "out" / name, base_model={"id": "tiny-bert"}, license="Apache-2.0")
    return tmp_path / "out"


@pytest.fixture
def play(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Run the blocks of a page in one session, in an empty folder but for what is said."""
    monkeypatch.chdir(tmp_path)

    def run(page: str, instead: dict[str, str], **session: Any) -> dict[str, Any]:
        text = (ROOT / page).read_text("utf-8")
        blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.M | re.S))
        assert blocks
        for block in blocks:
            code = block[1]
            for old, new in instead.items():
                code = code.replace(old, new)
            exec(compile(code, f"{page}:{text[: block.start()].count(chr(10)) + 2}", "exec"), session)
        return session

    return run


def prepared(base: Path, *names: str) -> Any:
    model = transformers.AutoModel.from_pretrained(base)
    for name in names:
        adapters(model).add(name, "seq_bn[reduction_factor=4]")
    return model


@pytest.mark.slow
def test_the_readme(play: Play, packages: Path, hub: Hub) -> None:
    hub.trust()
    versions = {"sentiment": "1.0.0", "sst2": "1.0.0", "ner": "1.2.0", "qa": "1.0.0"}
    done = {
        name: publish(packages / name, clone=hub.clone, key=hub.key.path, version=version)
        for name, version in versions.items()
    }
    instead = {
        "https://git.example/acme/adapters.git@": f"{hub.url}@",
        '"acme/adapters@': f'"{hub.url}@',
        "5b0c…": done["qa"].digest,
    }
    session = play("README.md", instead)
    assert type(session["model"]) is transformers.BertModel
    assert session["panel"].names == ["sst2", "ner", "qa", "nli"]


def test_adapters_in_a_model(play: Play, packages: Path, base: Path, tmp_path: Path) -> None:
    batch = {"input_ids": torch.tensor([[5, 6, 7]] * 3)}
    play(
        "docs/panel.md",
        {"acme/adapters@sentiment": str(packages / "sentiment"), "bert-base-uncased": str(base)},
        adaptergit=adaptergit,
        model=prepared(base, "de", "qa", "ner"),
        batch=batch,
        tokenizer=words("gut", "schlecht"),
        base_tokenizer=words(),
        AutoTokenizer=transformers.AutoTokenizer,
        AutoModel=transformers.AutoModel,
    )
    assert (tmp_path / "out" / "sst2" / "card.yaml").is_file()
    assert (tmp_path / "out" / "hub" / "adapter_config.json").is_file()


def test_training(play: Play, packages: Path, base: Path, hub: Hub) -> None:
    generate_key(config_dir() / "signing_key")
    hub.clone.rename(packages.parent / "my-clone")
    adapters(model := prepared(base, "en")).save("en", packages / "en", license="Apache-2.0")
    adapters(model).add("qa", "seq_bn[reduction_factor=4]")
    (packages / "qa").rename(packages / "another")
    play("docs/training.md", {}, adaptergit=adaptergit, model=model)
    assert "acme/adapters@en==1.0.0" in (packages / "qa" / "card.yaml").read_text("utf-8")


def test_the_first_page(play: Play, packages: Path, hub: Hub) -> None:
    hub.trust()
    publish(packages / "sentiment", clone=hub.clone, key=hub.key.path, version="1.0.0")
    session = play("docs/index.md", {'"acme/adapters@': f'"{hub.url}@'})
    assert adapters(session["model"]).active == "sentiment"


@pytest.mark.slow
def test_the_hugging_face_hub(
    play: Play, packages: Path, key: SigningKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin_key("127.0.0.1/acme/*", key.public.line)
    with served(monkeypatch, tmp_path / "hf") as server:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        (packages / "nli").rename(packages / "mine")
        done = publish(packages / "sst2", to="hf:acme/bert-sst2", key=key.path, version="1.0.0")
        publish(packages / "ner", to="hf:acme/adapters/ner", key=key.path, version="1.0.0")
        theirs = GOLDEN / "public" / "bert__head_classification" / "checkpoint" / "a"
        server.create("elsewhere/bert-sst2", {path.name: path.read_bytes() for path in theirs.iterdir()})
        commit = server.repositories["acme/bert-sst2"].head
        instead = {"<commit>": commit, "5b0c…": done.digest, "bert-base-uncased": str(GOLDEN / "bases/bert")}
        with pytest.warns(AdaptergitWarning, match="first use"):
            session = play("docs/hugging-face.md", instead, adaptergit=adaptergit)
        assert type(session["found"]) is Fetched
        assert (tmp_path / "out" / "theirs" / "card.yaml").is_file()
        # The commands of the page, one after the other.
        lines = re.findall(
            r"^\$ (adaptergit .*?)(?:  +#.*)?$", (ROOT / "docs/hugging-face.md").read_text("utf-8"), re.M
        )
        assert len(lines) > 4
        generate_key(config_dir() / "signing_key")
        for number, line in enumerate(lines):
            words_of = shlex.split(line)[1:]
            if "publish" in words_of:
                words_of = [*(w for w in words_of if w not in ("--version", "1.0.0")), "--version", f"2.{number}.0"]
                words_of += ["--key", str(key.path)]
            done_ = CliRunner().invoke(main, words_of)
            assert done_.exit_code == 0, (line, done_.output)


def test_serving(play: Play, packages: Path, hub: Hub) -> None:
    hub.trust()
    for name in ("sentiment", "ner"):
        publish(packages / name, clone=hub.clone, key=hub.key.path, version="1.0.0")
    session = play("docs/serving.md", {'"acme/adapters@': f'"{hub.url}@', 'device="cuda"': 'device="cpu"'})
    with TestClient(session["app"]) as client:
        answer = client.post("/v1/predict", json={"adapter": "sentiment", "texts": ["a fine film"], "top_k": 1})
    assert answer.json()["predictions"][0]["labels"][0] in ("good", "bad")


def test_every_page_with_python_is_played() -> None:
    pages = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in (ROOT / "docs").glob("*.md")}
    played = set(re.findall(r'\(?"(docs/[\w-]+\.md)"', Path(__file__).read_text("utf-8")))
    assert {page for page, text in pages.items() if "```python" in text} <= played
