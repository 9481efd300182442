"""The Python blocks of README and how-to pages, run from first to last, with releases and a base model that are small but real."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import Hub
from tokenizers import Tokenizer, models, pre_tokenizers

import adaptergit
from adaptergit.publish import publish
from adaptergit.settings import config_dir
from adaptergit.splice import adapters
from adaptergit.trust import generate_key

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


def test_every_page_with_python_is_played_or_asks_for_more_than_this_machine_has() -> None:
    pages = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in (ROOT / "docs").glob("*.md")}
    played = set(re.findall(r'\(?"(docs/[\w-]+\.md)"', Path(__file__).read_text("utf-8")))
    with_python = {page for page, text in pages.items() if "```python" in text}
    # index.md has the README's first block; a Hub and a GPU are what the other two need
    assert {page.removeprefix("docs/") for page in with_python - played} == {
        "index.md",
        "hugging-face.md",
        "serving.md",
    }
