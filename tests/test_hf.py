"""The Hugging Face Hub as a source of unsigned checkpoints: a Hub on loopback, huggingface_hub itself, tiny models."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rfc8785
import torch
from conftest import GOLDEN, snapshot, tiny_model
from hf_server import TOKEN, Answer, HubServer, Repository, Request, endless, is_large, says, served

import adaptergit
from adaptergit.errors import (
    AdaptergitError,
    AdaptergitWarning,
    ModelError,
    NotFoundError,
    PackageError,
    TransportError,
    TrustError,
    UsageError,
)
from adaptergit.formats.unpack import PICKLES
from adaptergit.hf import Checkpoint, HubReference, fetch_hub
from adaptergit.hf.checkpoints import WEIGHT_FILES
from adaptergit.pins import pin_key, revoke, unpin
from adaptergit.reference import Reference
from adaptergit.settings import Limits, Settings, cache_dir, config_dir
from adaptergit.splice import adapters
from adaptergit.trust import SigningKey

HEAD = GOLDEN / "public" / "bert__head_classification" / "checkpoint" / "a"
README = b"""---
license: mit
language: [en, "no"]
datasets: rotten_tomatoes
pipeline_tag: text-classification
tags: [adapter-transformers, adapterhub:sentiment/rotten_tomatoes, bert]
base_model: acme/tiny
---
# Mine
"""


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with served(monkeypatch, tmp_path / "hf") as server:
        yield server


@pytest.fixture
def repository(hf: HubServer) -> Repository:
    """Somebody's adapter for BERT with a head, as AdapterHub's library uploads it."""
    return hf.create("acme/x", {**files_of(HEAD), "README.md": README})


def got(ref: str = "hf:acme/x", **options: Any) -> Checkpoint:
    found = fetch_hub(ref, **options)
    assert isinstance(found, Checkpoint)
    return found


def first_use(ref: str = "hf:acme/x", **options: Any) -> Checkpoint:
    with pytest.warns(AdaptergitWarning, match="first use"):
        return got(ref, policy="tofu", **options)


def unsigned(ref: str = "hf:acme/x", **options: Any) -> Checkpoint:
    with pytest.warns(AdaptergitWarning, match="nobody vouches"):
        return got(ref, policy="unsigned", **options)


def nothing_is_kept() -> None:
    left = snapshot(cache_dir()) if cache_dir().exists() else {}
    assert not [name for name in left if not name.startswith("locks/")]
    assert not (config_dir() / "known_checkpoints").exists()


# --- references -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "folder", "revision", "name"),
    [
        ("hf:acme/BERT-sst2", "", None, "BERT-sst2"),
        ("hf:acme/x@main", "", "main", "x"),
        ("hf:acme/x/a/b@refs/pr/1", "a/b", "refs/pr/1", "b"),
        ("hf:acme/x/sst2@sst2/v1.0.0#sha256:" + "a" * 64, "sst2", "sst2/v1.0.0", "sst2"),
    ],
)
def test_a_reference_says_where(text: str, folder: str, revision: str | None, name: str) -> None:
    reference = HubReference.parse(text)
    assert (reference.folder, reference.revision, reference.name) == (folder, revision, name)
    assert str(reference) == text
    assert reference.principal == f"huggingface.co/{reference.repository}"
    assert HubReference.parse(str(reference)) == reference


def test_the_host_of_the_endpoint_is_who_publishes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://Hub.Corp.example:8443/")
    assert HubReference.parse("hf:acme/x").principal == "hub.corp.example/acme/x"
    for bad in ("ftp://host", "https://me:secret@host", "https://", "host", "https://host/?x=1", "https://host/../x"):
        monkeypatch.setenv("HF_ENDPOINT", bad)
        with pytest.raises(UsageError, match="HF_ENDPOINT") as caught:
            HubReference.parse("hf:acme/x")
        assert "secret" not in str(caught.value)


def test_plain_http_is_spoken_only_where_a_person_allows_it(hf: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://192.0.2.1:9")
    with pytest.raises(UsageError, match="only https"):
        fetch_hub("hf:acme/x")


@pytest.mark.parametrize(
    "text",
    [
        "hf:", "hf:x", "hf://acme/x", "hf:acme/", "hf:/x", "hf:acme/x/", "hf:acme/../x", "hf:acme/x/..", "hf:acme/x/../y",
        "hf:acme/x/a\\b", "hf:acme/x/.hidden", "hf:-acme/x", "hf:acme/x.git", "hf:acme/a--b", "hf:acme/x@", "hf:acme/x@-v",
        "hf:acme/x@a..b", "hf:acme/x@a b", "hf:acme/x@/main", "hf:acme/x@main@main", "hf:acme/x#", "hf:acme/x#main",
        "hf:acme/x#sha256:abc", "hf:acme/x#sha256:" + "A" * 64, "hf:acme/x\n", "hf:acmé/x", "hf:acme/x?y=1", "hf:acme/x/%2e%2e",
        "hf:" + "a" * 200 + "/x",
    ],
)  # fmt: skip
def test_a_bad_reference_is_refused_with_an_example(text: str) -> None:
    for call in (HubReference.parse, fetch_hub, adaptergit.load):
        with pytest.raises(UsageError) as caught:
            call(text)
        assert caught.value.hint


@pytest.mark.parametrize(
    "call", [adaptergit.fetch, adaptergit.resolve, Reference.parse, lambda ref: adaptergit.lock([ref])]
)
def test_where_a_git_repository_is_needed_it_says_so(call: Callable[..., Any]) -> None:
    for text in ("hf:acme/x", "hf:acme/x@main"):
        with pytest.raises(UsageError, match="on the Hugging Face Hub"):
            call(text)


def test_index_and_lock_files_are_not_for_the_hub(repository: Repository, tmp_path: Path) -> None:
    for name in ("index", "lock"):
        with pytest.raises(UsageError, match="names what is on the Hub"):
            adaptergit.load("hf:acme/x", tiny_model(), **{name: tmp_path / "file"})
    with pytest.raises(UsageError, match="lock"):
        adaptergit.convert("hf:acme/x", tmp_path / "out", to="adaptergit", lock="adaptergit.lock")


# --- what comes -------------------------------------------------------------------------------------------------------


def test_an_unsigned_checkpoint_is_refused_before_its_weights_move(hf: HubServer, repository: Repository) -> None:
    with pytest.raises(TrustError, match="nobody signed") as caught:
        adaptergit.load("hf:acme/x", tiny_model())
    assert not hf.count("/cdn/")
    nothing_is_kept()
    # It says the identity and both ways on, and they work.
    exact = str(caught.value.hint).split('"')[1]
    assert exact.startswith(f"hf:acme/x@{repository.head}#sha256:")
    assert exact.rpartition(":")[2] in caught.value.what
    assert "tofu" in str(caught.value.hint)
    assert got(exact, policy="digest").level == "digest"
    assert first_use().level == "tofu"


def test_the_identity_is_that_of_the_bytes(repository: Repository) -> None:
    found = first_use()
    listed = [
        {"path": name, "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        for name, data in sorted(repository.files.items())
        if name != ".gitattributes"
    ]
    assert found.identity == hashlib.sha256(rfc8785.dumps(listed) + b"\n").hexdigest()
    assert snapshot(found.path) == {name: data for name, data in repository.files.items() if name != ".gitattributes"}
    assert found.commit == repository.head
    assert str(found.pinned) == f"hf:acme/x@{repository.head}#sha256:{found.identity}"
    assert found.path.parent.name == found.identity


def test_the_same_bytes_are_kept_once_whoever_has_them(hf: HubServer, repository: Repository) -> None:
    first = first_use()
    hf.create("other/y", {name: data for name, data in repository.files.items() if name != ".gitattributes"})
    second = first_use("hf:other/y")
    assert second.path == first.path
    assert hf.count("/cdn/") == 2


def test_only_files_of_a_checkpoint_are_asked_for(hf: HubServer, repository: Repository) -> None:
    extra = {
        "evil.py": b"import os",
        "pytorch_adapter.bin": b"pickle",
        "tokenizer.json": b"{}",
        "optimizer.pt": b"x",
        "model.safetensors": b"base",
        "deep/adapter_config.json": b"{}",
    }
    repository.write(extra)
    found = first_use()
    assert sorted(file.path for file in found.files) == sorted([*files_of(HEAD), "README.md"])
    asked = " ".join(path for _, path, _ in hf.asked)
    assert not [name for name in extra if f"/{name}" in asked]


def test_every_name_that_formats_read_is_on_the_list() -> None:
    assert {made: pickled for pickled, made in PICKLES.items()} == WEIGHT_FILES


@pytest.mark.parametrize("where", ["", "adapters/deep"])
def test_it_loads_as_from_a_folder(where: str, hf: HubServer, tmp_path: Path) -> None:
    place = f"{where}/" if where else ""
    hf.create("acme/x", {f"{place}{name}": data for name, data in files_of(HEAD).items()})
    direct, model = tiny_model(), tiny_model()
    adaptergit.load(HEAD, direct)
    with pytest.warns(AdaptergitWarning, match="first use"):
        loaded = adaptergit.load(f"hf:acme/x/{where}".rstrip("/"), model, policy="tofu")
    assert loaded is model
    inputs = {"input_ids": torch.arange(1, 9).reshape(2, 4)}
    with torch.no_grad():
        assert torch.equal(direct(**inputs).logits, model(**inputs).logits)
    assert adapters(model).names == adapters(direct).names


def test_the_base_model_is_the_one_it_names(repository: Repository, home: Path) -> None:
    (home / "config").mkdir(exist_ok=True)
    config = json.loads(repository.files["adapter_config.json"])
    repository.remove("head_config.json", "model_head.safetensors")
    # What it says, or, where that is a folder of whoever trained it, what its README says.
    for stated, named in (("acme/named", "acme/named"), ("/home/me/bert", "acme/tiny"), ("", "acme/tiny")):
        repository.write({"adapter_config.json": json.dumps({**config, "model_name": stated}).encode()})
        bases = f'[base_models]\n"{named}" = "{GOLDEN / "bases" / "bert"}"\n'
        (home / "config" / "config.toml").write_text(f"resolution_max_age = 0\n{bases}")
        with pytest.warns(AdaptergitWarning):
            model = adaptergit.load("hf:acme/x", policy="unsigned")
        assert type(model).__name__ == "BertModel"
        assert adapters(model).active == "a"
    repository.write({"adapter_config.json": b'{"model_name": "/etc"}', "README.md": b"none"})
    with pytest.warns(AdaptergitWarning), pytest.raises(NotFoundError, match="'/etc' is not mapped"):
        adaptergit.load("hf:acme/x", policy="unsigned")


def test_a_peft_checkpoint_is_called_after_its_repository(hf: HubServer, tmp_path: Path, home: Path) -> None:
    model = tiny_model()
    adapters(model).add("lora", "lora[r=4]")
    adaptergit.export(model, "lora", tmp_path / "peft", to="peft")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "acme/tiny"
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps(config))
    hf.create("acme/my-lora", files_of(tmp_path / "peft"))
    (home / "config").mkdir(exist_ok=True)
    (home / "config" / "config.toml").write_text(f'[base_models]\n"acme/tiny" = "{GOLDEN / "bases" / "bert"}"\n')
    with pytest.warns(AdaptergitWarning):
        loaded = adaptergit.load("hf:acme/my-lora", policy="unsigned")
    assert adapters(loaded).names == ("my-lora",) or list(adapters(loaded).names) == ["my-lora"]
    with pytest.warns(AdaptergitWarning):
        adaptergit.load("hf:acme/my-lora", loaded, policy="unsigned", name="again")


def test_a_package_that_nobody_signed_loads_with_its_card(hf: HubServer, tmp_path: Path) -> None:
    model = tiny_model()
    panel = adapters(model)
    panel.add("mine", "seq_bn")
    panel.save("mine", tmp_path / "out", license="MIT")
    hf.create("acme/ours", files_of(tmp_path / "out"))
    with pytest.raises(TrustError, match="nobody signed"):
        adaptergit.load("hf:acme/ours", tiny_model())
    with pytest.warns(AdaptergitWarning):
        loaded = adaptergit.load("hf:acme/ours", tiny_model(), policy="unsigned")
    assert adapters(loaded).about("mine").card.license == "MIT"
    with pytest.warns(AdaptergitWarning), pytest.raises(AdaptergitError, match=r"fingerprint|base model|blocks"):
        adaptergit.load("hf:acme/ours", tiny_model("gpt2"), policy="unsigned")


def test_a_checkpoint_with_a_card_is_compared_with_the_model(hf: HubServer, tmp_path: Path) -> None:
    shutil.copytree(HEAD, tmp_path / "theirs")
    adaptergit.describe(tmp_path / "theirs", base=tiny_model(), license="MIT")
    hf.create("acme/carded", files_of(tmp_path / "theirs"))
    with pytest.warns(AdaptergitWarning):
        loaded = adaptergit.load("hf:acme/carded", tiny_model(), policy="unsigned")
    assert adapters(loaded).about("a").card.license == "MIT"
    model = tiny_model("roberta")
    with pytest.warns(AdaptergitWarning), pytest.raises(ModelError):
        adaptergit.load("hf:acme/carded", model, policy="unsigned")
    assert getattr(model, "adaptergit", None) is None


@pytest.mark.slow
def test_pickles_are_never_fetched_to_be_loaded(hf: HubServer, tmp_path: Path) -> None:
    legacy = GOLDEN / "public" / "bert__legacy_min_config" / "checkpoint" / "a"
    hf.create("acme/old", {**files_of(legacy), "README.md": README})
    with pytest.raises(PackageError, match="pickled") as caught:
        adaptergit.load("hf:acme/old", tiny_model(), policy="unsigned")
    assert "adaptergit convert hf:acme/old" in str(caught.value.hint)
    assert "--allow-pickle" in str(caught.value.hint)
    with pytest.raises(PackageError, match="pickled"):
        adaptergit.convert("hf:acme/old", tmp_path / "no", to="adaptergit", policy="unsigned")
    assert not hf.count(".bin")
    assert not hf.count("/cdn/")
    with pytest.raises(TrustError, match="nobody signed"):
        adaptergit.convert("hf:acme/old", tmp_path / "no", to="adaptergit", base=tiny_model(), allow_pickle=True)
    with pytest.warns(AdaptergitWarning, match="first use"):
        made = adaptergit.convert(
            "hf:acme/old", tmp_path / "new", to="adaptergit", base=tiny_model(), allow_pickle=True, policy="tofu"
        )
    assert made.format == "adaptergit"
    adaptergit.load(tmp_path / "new", tiny_model())
    assert not list(cache_dir().rglob("*.safetensors"))  # what is kept is what was there
    with pytest.raises(PackageError, match="pickled"):  # and is no way around
        adaptergit.load("hf:acme/old", tiny_model(), policy="unsigned")


@pytest.mark.parametrize(
    ("files", "error", "match"),
    [
        ({}, NotFoundError, "there is no adapter"),
        ({"sst2/adapter_config.json": b"{}", "ner/x": b""}, NotFoundError, "ner, sst2|sst2, ner"),
        ({"adapter_config.json": b"{}"}, NotFoundError, "there is no adapter"),
        ({"adapter_model.safetensors": b"x"}, NotFoundError, "there is no adapter"),
        ({"adapter_setup.json": b"{}", "a/adapter_config.json": b"{}"}, UsageError, "set-up"),
    ],
)
def test_what_is_no_adapter_says_what_is_there(
    files: dict[str, bytes], error: type[AdaptergitError], match: str, hf: HubServer
) -> None:
    hf.create("acme/none", files)
    model = tiny_model()
    with pytest.raises(error, match=match):
        adaptergit.load("hf:acme/none", model, policy="unsigned")
    assert getattr(model, "adaptergit", None) is None


@pytest.mark.parametrize("config", [b"{", b"[]", b"\xff", b'{"peft_type": "LORA"}', b'{"peft_type": 7}', b"{}"])
def test_a_checkpoint_that_makes_no_sense_leaves_the_model_alone(config: bytes, hf: HubServer) -> None:
    hf.create("acme/none", {"adapter_config.json": config, "adapter_model.safetensors": b"x"})
    model = tiny_model()
    with pytest.warns(AdaptergitWarning), pytest.raises((PackageError, NotFoundError)):
        adaptergit.load("hf:acme/none", model, policy="unsigned")
    assert getattr(model, "adaptergit", None) is None


def test_what_is_not_there(hf: HubServer, repository: Repository) -> None:
    for text, match in {
        "hf:acme/none": "no such repository",
        "hf:acme/x@v9": "no such branch, tag or commit",
        "hf:acme/x@" + "0" * 40: "no such branch, tag or commit",
        "hf:acme/x/nowhere": "no such file or folder",
    }.items():
        with pytest.raises(NotFoundError, match=match):
            fetch_hub(text)
    nothing_is_kept()


def test_long_lists_come_in_pages(hf: HubServer, repository: Repository) -> None:
    repository.write({f"a{i}.txt": b"" for i in range(20)})
    hf.page = 3
    assert len(first_use().files) == 5
    assert hf.count("cursor=") == 8


def test_convert_takes_it_from_the_hub_with_what_its_readme_tells(repository: Repository, tmp_path: Path) -> None:
    with pytest.warns(AdaptergitWarning, match="first use"):
        made = adaptergit.convert("hf:acme/x", tmp_path / "ours", to="adaptergit", base=tiny_model(), policy="tofu")
    assert made.heads == ("a",)
    card = adaptergit.load(tmp_path / "ours", tiny_model())
    about = adapters(card).about("a").card.data
    assert about["license"] == "MIT"
    assert about["keywords"] == ["bert"]
    assert about["task"] == {
        "type": "text-classification",
        "id": "sentiment",
        "subtask": "rotten_tomatoes",
        "languages": ["en", "no"],
        "dataset": "rotten_tomatoes",
    }
    adaptergit.convert("hf:acme/x", tmp_path / "same", to="adapterhub", policy="tofu")
    assert snapshot(tmp_path / "same") == {**snapshot(HEAD), "README.md": README}


# --- policies ---------------------------------------------------------------------------------------------------------


def test_tofu_pins_the_first_bytes_and_refuses_others(hf: HubServer, repository: Repository) -> None:
    first = first_use()
    assert f"127.0.0.1/acme/x@main sha256:{first.identity}" in (config_dir() / "known_checkpoints").read_text()
    assert got(policy="tofu", refresh=True).identity == first.identity
    repository.write({"adapter_config.json": repository.files["adapter_config.json"] + b" "})
    before = snapshot(config_dir()), snapshot(cache_dir() / "checkpoints")
    with pytest.raises(TrustError, match="was pinned as") as caught:
        got(policy="tofu", refresh=True)
    assert first.identity in caught.value.what
    assert "adaptergit trust remove 127.0.0.1/acme/x@main" in str(caught.value.hint)
    assert caught.value.__notes__ == ["different since then: adapter_config.json"]
    assert (snapshot(config_dir()), snapshot(cache_dir() / "checkpoints")) == before
    # Another revision is another place; and the pinned commit is still the pinned commit.
    assert got(str(first.pinned), policy="digest").identity == first.identity
    with pytest.warns(AdaptergitWarning, match="first use"):
        got(f"hf:acme/x@{first.commit}", policy="tofu")
    assert unpin("127.0.0.1/acme/x@main") == 1
    assert first_use(refresh=True).identity != first.identity
    with pytest.raises(NotFoundError, match="no pin"):
        unpin("127.0.0.1/acme/never@main")


@pytest.mark.slow
def test_a_pinned_digest_is_exactly_that(repository: Repository) -> None:
    with pytest.raises(TrustError, match="needs a pinned digest"):
        got(policy="digest")
    for policy in ("digest", "tofu", "unsigned", "enforce"):
        with pytest.raises(TrustError, match="you pinned"):
            got("hf:acme/x#sha256:" + "0" * 64, policy=policy)
    nothing_is_kept()
    exact = str(first_use().pinned)
    with pytest.raises(TrustError, match="nobody signed"):  # a level never falls through to a weaker one
        got(exact)
    assert got(exact, policy="digest").steps[-2] == "that is the digest you pinned"


def test_unsigned_must_be_asked_for_and_warns_every_time(repository: Repository) -> None:
    for _ in range(2):
        unsigned()
    assert not (config_dir() / "known_checkpoints").exists()


def test_the_settings_choose_the_policy(repository: Repository, home: Path) -> None:
    (home / "config").mkdir(exist_ok=True)
    (home / "config" / "config.toml").write_text('[[policy]]\nmatch = "127.0.0.1/acme/*"\nlevel = "tofu"\n')
    with pytest.warns(AdaptergitWarning, match="first use"):
        assert got().level == "tofu"
    with pytest.raises(UsageError, match="unknown policy"):
        got(policy="none")


def test_a_repository_whose_key_is_known_cannot_go_back_to_unsigned(repository: Repository, key: SigningKey) -> None:
    """Whoever takes over the account has no key: an unsigned checkpoint must not pass for a first use."""
    pin_key("127.0.0.1/acme/x", key.public.line)
    with pytest.raises(TrustError, match="not signed at all"):
        got(policy="tofu")
    with pytest.raises(TrustError, match="not signed at all"):
        got()
    nothing_is_kept()
    assert unsigned().level == "unsigned"


def test_a_revoked_checkpoint_is_refused_at_every_level(repository: Repository) -> None:
    exact = first_use().pinned
    revoke(f"sha256:{exact.digest}", reason="poisoned data")
    for policy in ("tofu", "unsigned", "digest", "enforce"):
        with pytest.raises(TrustError, match="poisoned data"):
            got(str(exact), policy=policy)
    with pytest.raises(TrustError, match="poisoned data"):
        got(policy="tofu", refresh=True)


def test_a_pin_that_cannot_be_understood_is_an_error(repository: Repository) -> None:
    config_dir().mkdir(exist_ok=True)
    for line in ("127.0.0.1/acme/x@main", "127.0.0.1/acme/x@main sha256:short", "a b c"):
        (config_dir() / "known_checkpoints").write_text(f"# mine\n\n{line}\n")
        with pytest.raises(TrustError, match="known_checkpoints:3"):
            got(policy="tofu")


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_a_pinned_or_exact_reference_touches_no_network_twice(hf: HubServer, repository: Repository) -> None:
    found = first_use()
    exact, commit = str(found.pinned), f"hf:acme/x@{found.commit}"
    first_use(commit)
    hf.asked.clear()
    for reference, policy in ((exact, "digest"), (commit, "tofu"), (f"hf:acme/x#sha256:{found.identity}", "digest")):
        again = got(reference, policy=policy)
        assert (again.from_store, again.identity, again.path) == (True, found.identity, found.path)
    with pytest.raises(TrustError):  # and no network is needed to refuse
        got(exact, policy="enforce")
    assert got(policy="tofu").from_store  # a branch: for a day
    assert hf.asked == []
    assert not got(policy="tofu", settings=Settings(resolution_max_age=0)).from_store
    assert hf.count() == 8  # the commit, the listing, and size and bytes of three small files
    assert not hf.count("/cdn/")


@pytest.mark.parametrize("variable", ["ADAPTERGIT_OFFLINE", "HF_HUB_OFFLINE", None])
def test_offline_opens_no_socket(
    variable: str | None, hf: HubServer, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {} if variable else {"offline": True}
    if variable:
        monkeypatch.setenv(variable, "1")
    with pytest.raises(NotFoundError, match="offline was asked for"):
        got(policy="tofu", **options)
    with pytest.raises(NotFoundError, match="offline was asked for"):
        adaptergit.load("hf:acme/x", tiny_model(), policy="tofu", **options)
    assert hf.asked == []
    if variable:
        monkeypatch.delenv(variable)
    found = first_use()
    if variable:
        monkeypatch.setenv(variable, "1")
    hf.asked.clear()
    assert (
        got(
            policy="tofu", settings=Settings(resolution_max_age=0, offline=variable == "ADAPTERGIT_OFFLINE"), **options
        ).path
        == found.path
    )
    assert hf.asked == []


@pytest.mark.parametrize("damage", ["a changed byte", "a missing file", "one more file", "a changed list", "no list"])
def test_what_is_damaged_is_never_used_and_fetched_again(damage: str, hf: HubServer, repository: Repository) -> None:
    found = first_use()
    exact = str(found.pinned)
    file, listing = found.path / "adapter.safetensors", found.path.parent / "files.json"
    file.chmod(0o644)
    if damage == "a changed byte":
        file.write_bytes(file.read_bytes()[:-1] + b"X")
    elif damage == "a missing file":
        file.unlink()
    elif damage == "one more file":
        (found.path / "adapter_fusion_config.json").write_text("{}")
    elif damage == "a changed list":
        listing.write_bytes(listing.read_bytes().replace(b'"size":', b'"size" :'))
    else:
        listing.unlink()
    with pytest.raises(PackageError):
        got(exact, policy="digest", offline=True)
    with pytest.raises(PackageError):
        adaptergit.load(exact, tiny_model(), policy="digest", offline=True)
    hf.asked.clear()
    assert not got(exact, policy="digest").from_store
    assert hf.asked
    assert got(exact, policy="digest", offline=True).from_store
    assert snapshot(found.path)["adapter.safetensors"] == repository.files["adapter.safetensors"]


@pytest.mark.slow
def test_many_processes_fetch_it_once(hf: HubServer, repository: Repository, home: Path) -> None:
    script = (
        "import sys, huggingface_hub.constants as c; c.HF_HUB_OFFLINE = False; c.HF_HUB_DISABLE_TELEMETRY = True\n"
        "from adaptergit.hf import fetch_hub; print(fetch_hub('hf:acme/x', policy='tofu').path)"
    )
    environment = {**os.environ, "HF_HUB_DISABLE_XET": "1", "PYTHONWARNINGS": "ignore"}
    running = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(3)
    ]
    paths = {process.communicate()[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(paths) == 1
    assert hf.count("/cdn/") == 2
    assert (config_dir() / "known_checkpoints").read_text().count("\n") == 1


# --- attacks ----------------------------------------------------------------------------------------------------------


def other_bytes(request: Request) -> None:
    """Another adapter of the same size, from the place the Hub sends to."""
    digest = request.path.rpartition("/")[2]
    request.answer(200, request.hub.objects[digest][:-1] + b"!", {"ETag": f'"{digest}"'})


def more_bytes(request: Request) -> None:
    digest = request.path.rpartition("/")[2]
    request.answer(200, request.hub.objects[digest] + b"!", {"ETag": f'"{digest}"'})


ATTACKS: dict[str, tuple[str, list[Answer], type[AdaptergitError], str]] = {
    "other weights from the CDN": ("GET /cdn/", [other_bytes], PackageError, "the Hub lists"),
    "a configuration that is not the listed one": (
        "resolve/", [says(200, b"{}", X_Repo_Commit="0" * 40, ETag='"x"')] * 9, PackageError, "the Hub lists",
    ),
    "weights without an end": ("GET /cdn/", [endless] * 9, AdaptergitError, "far more than the|cannot be reached"),
    "more weights than listed": ("GET /cdn/", [more_bytes] * 9, AdaptergitError, "bytes arrived|broke off"),
    "no Hub at all": ("/api/", [says(200, b"<html>")] * 9, TransportError, "cannot be understood"),
    "a Hub without a commit": ("/revision/", [says(200, b'{"id": "acme/x"}')] * 9, TransportError, "this is no Hub"),
    "a commit that is a path": ("/revision/", [says(200, b'{"id": "acme/x", "sha": "../../x"}')] * 9, TransportError, "this is no Hub"),
    "a list that is none": ("/tree/", [says(200, b'{"a": 1}')] * 9, TransportError, "cannot be understood"),
    "a list of nonsense": ("/tree/", [says(200, b'[{"type": "file"}]')] * 9, TransportError, "cannot be understood"),
    "a list nested too deeply": ("/tree/", [says(200, b"[" * 100_000)] * 9, TransportError, "cannot be understood"),
    "a server in trouble": ("/api/", [says(500, b"")] * 9, TransportError, "answered 500"),
    "a server that throws out": ("/api/", [says(429, b"")] * 9, TransportError, "answered 429"),
    "a redirect to a file": ("/revision/", [says(302, b"", Location="file:///etc/passwd")] * 9, TransportError, "cannot be"),
    "a redirect in circles": ("/revision/", [says(302, b"", Location="/api/models/acme/x/revision/main")] * 99, TransportError, "cannot be"),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_server_gets_nothing_in(name: str, hf: HubServer, repository: Repository) -> None:
    part, faults, error, match = ATTACKS[name]
    hf.faults[part] = list(faults)
    model = tiny_model()
    with pytest.raises(error, match=match):
        adaptergit.load("hf:acme/x", model, policy="tofu")
    nothing_is_kept()
    assert getattr(model, "adaptergit", None) is None


def entry(path: str, size: Any = 2, **more: Any) -> dict[str, Any]:
    return {"type": "file", "path": path, "oid": "0" * 40, "size": size, **more}


LISTS: dict[str, tuple[Callable[[list[Any]], list[Any]], str]] = {
    "weights of a terabyte": (
        lambda entries: [*(e for e in entries if not is_large(e["path"])), entry("adapter.safetensors", 1 << 40)], "the limit is",
    ),
    "weights of less than nothing": (
        lambda entries: [*(e for e in entries if not is_large(e["path"])), entry("adapter.safetensors", -1)], "lists",
    ),
    "a size that is text": (lambda entries: [entry("adapter_config.json", "2"), *entries], "lists"),
    "a configuration of a gigabyte": (
        lambda entries: [*(e for e in entries if e["path"] != "adapter_config.json"), entry("adapter_config.json", 1 << 30)],
        "the limit is",
    ),
    "a digest that is none": (
        lambda entries: [*entries, entry("x", lfs={"oid": "../../etc", "size": 2, "pointerSize": 1})], "lists",
    ),
    "one file twice": (lambda entries: [*entries, *entries], "twice"),
    "more files than anybody has": (lambda entries: [*entries, *(entry(f"f{i}") for i in range(1200))], "more than"),
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_a_hostile_list_is_refused_before_anything_is_fetched(name: str, hf: HubServer, repository: Repository) -> None:
    hf.listed, match = LISTS[name]
    with pytest.raises(AdaptergitError, match=match):
        got(policy="tofu")
    assert not hf.count("/resolve/")
    nothing_is_kept()


def test_names_that_lead_elsewhere_are_not_looked_at(hf: HubServer, repository: Repository, tmp_path: Path) -> None:
    evil = [
        "../adapter_config.json",
        "/etc/passwd",
        "a/../../head_config.json",
        "..",
        "adapter_config.json/../../x",
        "",
    ]
    hf.listed = lambda entries: [*entries, *(entry(path) for path in evil)]
    before = {path for path in tmp_path.rglob("*") if "home" not in path.parts}
    found = first_use()
    assert sorted(file.path for file in found.files) == sorted([*files_of(HEAD), "README.md"])
    assert {path for path in tmp_path.rglob("*") if "home" not in path.parts} == before
    hf.listed = lambda entries: [entry(f"../{e['path']}") for e in entries]
    with pytest.raises(NotFoundError, match="there is no adapter"):
        got(policy="tofu", refresh=True)


def test_weights_that_lie_elsewhere_are_asked_for_without_the_token(
    hf: HubServer, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    first_use()
    sent = {path: headers.get("Authorization", headers.get("authorization")) for _, path, headers in hf.asked}
    assert all(token == f"Bearer {TOKEN}" for path, token in sent.items() if not path.startswith("/cdn/"))
    assert [token for path, token in sent.items() if path.startswith("/cdn/")] == [None, None]


def test_a_token_is_in_no_message(hf: HubServer, repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN + "x")
    repository.private = True
    echo = json.dumps({"error": f"bad token {TOKEN}x"}).encode()
    for answer in (None, says(401, echo), says(403, echo, X_Error_Message=f"bad token {TOKEN}x"), says(500, echo)):
        hf.faults["/api/"] = [] if answer is None else [answer]
        with pytest.raises((NotFoundError, TransportError)) as caught:
            got(policy="tofu")
        assert TOKEN not in str(caught.value)


def test_private_and_gated_repositories(hf: HubServer, repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    repository.private = True
    with pytest.raises(NotFoundError, match="may not see") as caught:
        got(policy="tofu")
    assert "hf auth login" in str(caught.value.hint)
    repository.private, repository.gated = False, True
    with pytest.raises(NotFoundError, match="terms"):
        got(policy="tofu")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert first_use().commit == repository.head


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, hf: HubServer, repository: Repository) -> None:
    found = first_use()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(TransportError, match="cannot be reached"):
        got(policy="tofu", refresh=True)
    assert got(str(found.pinned), policy="digest").from_store


def test_what_breaks_off_leaves_nothing(hf: HubServer, repository: Repository) -> None:
    hf.faults["GET /cdn/"] = [says(200, b"xx")] * 9
    with pytest.raises((TransportError, PackageError)):
        got(policy="tofu")
    nothing_is_kept()
    hf.faults.clear()
    assert first_use().commit == repository.head


def test_limits_are_those_of_the_settings(hf: HubServer, repository: Repository) -> None:
    settings = Settings(limits=Limits(checkpoint_bytes=1000))
    with pytest.raises(PackageError, match="the limit is 1000"):
        got(policy="tofu", settings=settings)
    assert not hf.count("/resolve/")


@pytest.mark.parametrize(
    "front",
    [
        b"---\na: &a [1]\nb: *a\n---\n",
        b"---\n!!python/object/apply:os.system ['true']\n---\n",
        b"---\n" + b"[" * 500 + b"\n---\n",
        b"---\nlicense: mit\nlicense: gpl-3.0\n---\n",
        b"---\n" + b"x: y\n" * 20_000 + b"---\n",
        b"---\n\xff\xfe: x\n---\n",
        b"---\nlicense: {a: b}\nlanguage: 7\ntags: {}\nmodel-index: [1, {results: [{metrics: x}]}]\ndatasets: null\n---\n",
        b"---\nnever closed\n",
        b"---\n- a\n- list\n---\n",
    ],
)
def test_a_hostile_model_card_does_no_harm(front: bytes, repository: Repository, tmp_path: Path) -> None:
    repository.write({"README.md": front})
    with pytest.warns(AdaptergitWarning):
        adaptergit.convert("hf:acme/x", tmp_path / "out", to="adaptergit", base=tiny_model(), policy="unsigned")
    model = adaptergit.load(tmp_path / "out", tiny_model())
    assert adapters(model).about("a").card.license == "LicenseRef-Unspecified"


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def run(hf: HubServer) -> Callable[..., str]:
    """Run adaptergit in a process of its own, as a person does; no traceback ever."""

    def call(*argv: str, code: int = 0, **more: str) -> str:
        clean = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "PYTHONWARNINGS")}
        environment = {**clean, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", **more}
        argv = (sys.executable, "-m", "adaptergit", *argv)
        done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout if "--json" in argv else done.stdout + done.stderr

    return call


@pytest.mark.slow
def test_the_commands_take_it(run: Callable[..., str], repository: Repository, tmp_path: Path) -> None:
    assert "nobody signed" in run("load", "hf:acme/x", code=4)
    refused = run("verify", "hf:acme/x", code=4)
    assert "  ok  its identity is sha256:" in refused
    assert "  no  hf:acme/x holds a checkpoint that nobody signed" in refused
    info = json.loads(run("info", "hf:acme/x", "--json"))
    assert (info["signed"], info["format"], info["told"]["license"]) == (False, "adapterhub", "MIT")
    shown = run("info", "hf:acme/x")
    assert "licence      MIT" in shown
    assert info["reference"] in shown
    loaded = json.loads(run("load", info["reference"], "--policy", "digest", "--json"))
    assert (loaded["from_store"], loaded["identity"]) == (True, info["identity"])
    assert "first use" in run("load", "hf:acme/x", "--policy", "tofu")
    assert f"127.0.0.1/acme/x@main\tsha256:{info['identity']}" in run("trust", "ls")
    assert f"unsigned     127.0.0.1/acme/x@main: sha256:{info['identity']}" in run(
        "trust", "explain", "127.0.0.1/acme/x"
    )
    assert "that is what was pinned" in run("verify", "hf:acme/x", "--policy", "tofu")
    repository.write({"README.md": b"new"})
    refused = run("load", "hf:acme/x", "--policy", "tofu", "--refresh", code=4)
    assert "different since then: README.md" in refused
    assert "removed 1 pin\n" in run("trust", "remove", "127.0.0.1/acme/x@main")
    assert "names what is on the Hub" in run("load", "hf:acme/x", "--index", str(tmp_path / "i"), code=2)
    assert "write it like" in run("load", "hf:acme", code=2)
    assert "offline was asked for" in run("load", "hf:acme/x@other", "--offline", code=5)


def test_importing_and_help_import_no_huggingface_hub() -> None:
    script = (
        "import sys, adaptergit; adaptergit.fetch_hub; from adaptergit.cli import main\n"
        "from click.testing import CliRunner\n"
        "for argv in (['--help'], ['load', '--help'], ['publish', '--help']): assert CliRunner().invoke(main, argv).exit_code == 0\n"
        "assert not {'huggingface_hub', 'torch', 'transformers'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
