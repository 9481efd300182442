"""Signed packages on the Hugging Face Hub: publishing them, and whose word counts when they are loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import card_data, snapshot, tiny_model
from hf_server import TOKEN, HubServer, Repository, Request, says, served
from huggingface_hub import ModelCard

import adaptergit
from adaptergit.errors import (
    AdaptergitError,
    AdaptergitWarning,
    NotFoundError,
    PackageError,
    ReleaseError,
    TransportError,
    TrustError,
    UsageError,
)
from adaptergit.hf import fetch_hub
from adaptergit.package import Manifest, canonical
from adaptergit.package.readme import is_rendered
from adaptergit.pins import known_signers, pin_key
from adaptergit.publish import publish
from adaptergit.resolve import Fetched, verify
from adaptergit.settings import Settings, cache_dir, load_settings
from adaptergit.splice import adapters
from adaptergit.trust import SigningKey

Source = Callable[..., Path]
TO = "hf:acme/bert-sst2"
PRINCIPAL = "127.0.0.1/acme/bert-sst2"


@pytest.fixture
def hf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with served(monkeypatch, tmp_path / "hf") as server:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture
def release(hf: HubServer, source: Source, key: SigningKey) -> Callable[..., Any]:
    """Publish some weights under a key that is trusted."""
    pin_key("127.0.0.1/acme/*", key.public.line)

    def make(weights: bytes = b"w" * 5000, to: str = TO, signer: SigningKey = key, **options: Any) -> Any:
        return publish(source(weights), to=to, key=signer.path, **options)

    return make


def got(ref: str = TO, **options: Any) -> Fetched:
    found = fetch_hub(ref, **options)
    assert isinstance(found, Fetched)
    return found


def bert_sst2(hf: HubServer) -> Repository:
    return hf.repositories["acme/bert-sst2"]


# --- publishing -------------------------------------------------------------------------------------------------------


def test_a_release_is_one_commit_and_a_tag(hf: HubServer, release: Callable[..., Any], key: SigningKey) -> None:
    lines: list[str] = []
    done = release(report=lines.append)
    repository = bert_sst2(hf)
    assert len(repository.trees) == 2  # the Hub's own first commit, and this
    assert repository.refs == {"main": repository.head, "v1.0.0": repository.head}
    names = {".gitattributes", "README.md", "adapter.safetensors", "card.yaml", "manifest.json", "manifest.json.sig"}
    assert set(repository.files) == names
    manifest = Manifest.from_bytes(repository.files["manifest.json"])
    assert (manifest.repository, manifest.name, manifest.version, manifest.previous) == (
        PRINCIPAL,
        "sst2",
        "1.0.0",
        None,
    )
    assert done.digest == canonical.sha256(repository.files["manifest.json"])
    assert done.reference == f"{TO}@v1.0.0#sha256:{done.digest}"
    assert (done.tag, done.branch, done.signer) == ("refs/tags/v1.0.0", "refs/heads/main", key.public.fingerprint)
    assert any("made http" in line for line in lines)
    found = got()
    assert (found.version, found.digest, found.served_by) == ("1.0.0", done.digest, hf.url)
    assert snapshot(found.path) == {name: data for name, data in repository.files.items() if name != ".gitattributes"}
    assert got(done.reference).from_store
    assert got(f"{TO}@v1.0.0").digest == done.digest
    assert found.verdict.vouched_by


def test_the_readme_is_a_model_card_that_the_manifest_covers(hf: HubServer, source: Source, key: SigningKey) -> None:
    evaluation = [{"dataset": "sst2", "split": "dev", "metric": "accuracy", "value": 0.91}]
    task = {
        "type": "text-classification",
        "id": "sentiment",
        "subtask": "sst2",
        "languages": ["en", "no"],
        "dataset": "sst2",
    }
    publish(source(evaluation=evaluation, task=task, keywords=["small"]), to=TO, key=key.path)
    text = bert_sst2(hf).files["README.md"].decode()
    card = ModelCard(text)  # as the Hub's own library reads it
    data = card.data
    assert data.tags == ["adaptergit", "adapterhub:sentiment/sst2", "small"]
    assert (data.library_name, data.license, data.pipeline_tag) == ("adaptergit", "apache-2.0", "text-classification")
    assert (data.base_model, data.language, data.datasets) == ("acme/tiny", ["en", "no"], ["sst2"])
    (result,) = data.eval_results
    assert (result.dataset_name, result.dataset_split, result.metric_type) == ("sst2", "dev", "accuracy")
    assert result.metric_value == 0.91
    assert f'adaptergit.load("{TO}@v1.0.0")' in text
    assert is_rendered(text)
    listed = {file.path for file in Manifest.from_bytes(bert_sst2(hf).files["manifest.json"]).files}
    assert "README.md" in listed


@pytest.mark.slow
def test_releases_follow_each_other_and_never_change(hf: HubServer, release: Callable[..., Any]) -> None:
    first = release()
    with pytest.raises(ReleaseError, match="published already"):
        release(b"other")
    second = release(b"new", version="1.1.0")
    assert second.previous == first.digest
    assert bert_sst2(hf).refs["v1.0.0"] != bert_sst2(hf).refs["v1.1.0"] == bert_sst2(hf).head
    for version in ("1.0.5", "0.9"):
        with pytest.raises(ReleaseError, match=r"older than 1.1.0"):
            release(b"late", version=version)
    assert got().version == "1.1.0"
    assert got(f"{TO}@v1.0.0").version == "1.0.0"
    before = snapshot_of(hf)
    with pytest.raises(UsageError, match="neither '@' nor '#'"):
        release(to=f"{TO}@main")
    assert snapshot_of(hf) == before


def snapshot_of(hf: HubServer) -> Any:
    return {name: (dict(one.refs), one.files) for name, one in hf.repositories.items()}


def test_files_of_the_last_release_that_are_no_more_go(
    hf: HubServer, release: Callable[..., Any], other_key: SigningKey
) -> None:
    release(cosigners=[other_key.path])
    cosigned = [name for name in bert_sst2(hf).files if name.count(".") == 3]
    assert len(cosigned) == 1
    bert_sst2(hf).write({"notes.txt": b"a person's"})
    release(version="1.1.0")
    assert not set(cosigned) & set(bert_sst2(hf).files)
    assert bert_sst2(hf).files["notes.txt"] == b"a person's"
    assert got().version == "1.1.0"


def test_a_dry_run_changes_nothing(hf: HubServer, release: Callable[..., Any]) -> None:
    lines: list[str] = []
    done = release(dry_run=True, report=lines.append)
    assert (done.dry_run, hf.repositories) == (True, {})
    assert any("dry run: would sign" in line and "make acme/bert-sst2" in line for line in lines)
    release()
    before = snapshot_of(hf)
    release(version="2.0.0", dry_run=True)
    assert snapshot_of(hf) == before
    assert not [one for one in hf.asked if one[0] == "PUT" and "2.0.0" in one[1]]


def test_whoever_is_slower_is_refused_and_overwrites_nothing(hf: HubServer, release: Callable[..., Any]) -> None:
    release()

    def meanwhile(request: Request) -> None:
        bert_sst2(hf).write({"theirs.txt": b"x"})
        request.commit("acme/bert-sst2", "main")

    hf.faults["POST /api/models/acme/bert-sst2/commit"] = [meanwhile]
    with pytest.raises(ReleaseError, match="somebody else published at the same time"):
        release(version="1.1.0")
    assert "v1.1.0" not in bert_sst2(hf).refs
    assert b'"version":"1.0.0"' in bert_sst2(hf).files["manifest.json"]
    assert "theirs.txt" in bert_sst2(hf).files
    assert release(version="1.1.0").version == "1.1.0"


def test_a_tag_that_failed_is_made_the_next_time(hf: HubServer, release: Callable[..., Any]) -> None:
    hf.faults["/tag/"] = [says(500)]
    with pytest.raises(TransportError, match="answered 500") as caught:
        release()
    assert "publish again" in str(caught.value.hint)
    assert "v1.0.0" not in bert_sst2(hf).refs
    head = bert_sst2(hf).head
    with pytest.raises(ReleaseError, match="with other files"):
        release(b"other")
    done = release()
    assert bert_sst2(hf).refs == {"main": head, "v1.0.0": head}
    assert done.digest == got().digest


@pytest.mark.slow
def test_a_folder_of_a_repository_holds_an_adapter_of_its_name(hf: HubServer, release: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match="the folder is for 'ner', the card is of 'sst2'"):
        release(to="hf:acme/adapters/ner")
    release(to="hf:acme/adapters/sst2")
    release(b"ner", to="hf:acme/adapters/ner", name="ner")
    repository = hf.repositories["acme/adapters"]
    assert {"sst2/manifest.json", "ner/manifest.json"} <= set(repository.files)
    assert set(repository.refs) == {"main", "sst2/v1.0.0", "ner/v1.0.0"}
    assert got("hf:acme/adapters/sst2").card.name == "sst2"
    assert got("hf:acme/adapters/ner@ner/v1.0.0").version == "1.0.0"
    with pytest.raises(NotFoundError, match="ner"):
        fetch_hub("hf:acme/adapters")


def test_one_adapter_does_not_take_the_place_of_another(hf: HubServer, release: Callable[..., Any]) -> None:
    release()
    before = snapshot_of(hf)
    with pytest.raises(ReleaseError, match=r"there is .*@sst2 already") as caught:
        release(name="ner", version="2.0.0")
    assert f"--to {TO}/ner" in str(caught.value.hint)
    assert snapshot_of(hf) == before


def test_a_readme_that_a_person_wrote_is_kept(hf: HubServer, release: Callable[..., Any], tmp_path: Path) -> None:
    hf.create("acme/bert-sst2", {"README.md": b"---\nlicense: mit\n---\n# Written by hand\n", "theirs.bin": b"x"})
    release()
    assert bert_sst2(hf).files["README.md"] == b"---\nlicense: mit\n---\n# Written by hand\n"
    (tmp_path / "out" / "README.md").write_text("# Mine\n")
    release(version="1.1.0")
    text = bert_sst2(hf).files["README.md"].decode()
    assert text.endswith("---\n# Mine\n")
    assert ModelCard(text).data.library_name == "adaptergit"
    assert got().version == "1.1.0"


def test_a_checkpoint_of_others_is_published_as_it_is(hf: HubServer, key: SigningKey, tmp_path: Path) -> None:
    pin_key(PRINCIPAL, key.public.line)
    model = tiny_model()
    adapters(model).add("lora", "lora[r=4]")
    adaptergit.export(model, "lora", tmp_path / "peft", to="peft")
    adaptergit.describe(tmp_path / "peft", base=tiny_model(), name="lora", version="1.0.0")
    publish(tmp_path / "peft", to=TO, key=key.path)
    files = bert_sst2(hf).files
    assert files["adapter_model.safetensors"] == (tmp_path / "peft" / "adapter_model.safetensors").read_bytes()
    assert ModelCard(files["README.md"].decode()).data.tags == ["adaptergit", "peft"]
    loaded = adaptergit.load(TO, tiny_model())
    assert adapters(loaded).about("lora").verdict.level == "enforce"


def test_who_may_not_write_is_told_and_no_token_is_shown(
    hf: HubServer, release: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrong")
    with pytest.raises(TransportError, match="the Hub refuses") as caught:
        release()
    assert "hf auth login" in str(caught.value.hint)
    assert "wrong" not in str(caught.value)
    assert hf.repositories == {}


def test_what_the_hub_says_of_the_front_matter_is_shown(hf: HubServer, release: Callable[..., Any]) -> None:
    refusal = {"errors": [{"message": '"language[0]" must be\x1b[31m ISO 639'}], "warnings": []}
    hf.faults["validate-yaml"] = [says(400, json.dumps(refusal).encode())]
    with pytest.raises(PackageError, match=r"\"language\[0\]\" must be") as caught:
        release()
    assert "\x1b" not in str(caught.value)
    hf.faults["validate-yaml"] = [says(200, b'{"errors": [], "warnings": [{"message": "no tags"}]}')]
    with pytest.warns(AdaptergitWarning, match="no tags"):
        release()


FAILURES = {"500": says(500), "403": says(403, b"{}"), "something else": says(200, b"<html>")}
HALFWAY = [(part, name) for part in ("/refs", "/tree/", "preupload", "objects/batch", "/commit/") for name in FAILURES]
# Who says yes to an upload is believed: the commit names the bytes by their sha256.
HALFWAY += [(part, name) for part in ("PUT /lfs", "/verify") for name in ("500", "403")]


@pytest.mark.parametrize(("part", "failure"), HALFWAY)
def test_a_hub_that_fails_halfway_has_nothing_new(
    part: str, failure: str, hf: HubServer, release: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # huggingface_hub tries again, for half a minute
    release()
    before = snapshot_of(hf)
    hf.faults[part] = [FAILURES[failure]] * 20
    with pytest.raises(AdaptergitError):
        release(b"new" * 100, version="1.1.0")
    assert snapshot_of(hf) == before
    hf.faults.clear()
    assert release(b"new" * 100, version="1.1.0").version == "1.1.0"


def test_offline_and_options_of_git_are_refused(
    hf: HubServer, release: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for options in ({"clone": "elsewhere"}, {"remote": None}, {"repository": "a/b/c"}, {"pull_request": True}):
        with pytest.raises(UsageError, match="not for the Hub"):
            release(**options)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UsageError, match="offline was asked for"):
        release()
    assert hf.asked == []


# --- loading ----------------------------------------------------------------------------------------------------------


def test_a_release_loads_like_any_other(hf: HubServer, key: SigningKey, tmp_path: Path, home: Path) -> None:
    model = tiny_model()
    panel = adapters(model)
    panel.add("sst2", "seq_bn")
    panel.save("sst2", tmp_path / "out", license="Apache-2.0")
    publish(tmp_path / "out", to=TO, key=key.path, version="1.0.0")
    before = model.state_dict()
    with pytest.raises(TrustError, match="nobody you know"):
        adaptergit.load(TO, tiny_model())
    with pytest.warns(AdaptergitWarning, match="first use"):
        loaded = adaptergit.load(TO, tiny_model(), policy="tofu")
    assert [signer.key for signer in known_signers(load_settings())] == [key.public]
    assert adapters(loaded).about("sst2").verdict.manifest.repository == PRINCIPAL
    assert before.keys() == loaded.state_dict().keys()
    assert adaptergit.convert(TO, tmp_path / "hub", to="adapterhub", base=tiny_model()).format == "adapterhub"


def test_the_policy_decides_before_the_weights_move(hf: HubServer, source: Source, key: SigningKey) -> None:
    publish(source(b"w" * 100_000), to=TO, key=key.path)
    with pytest.raises(TrustError, match="nobody you know"):
        fetch_hub(TO)
    assert not hf.count("/cdn/")
    assert not list((cache_dir() / "packages").glob("*/*"))


def tampered(name: str, change: Callable[[bytes], bytes]) -> Callable[[Repository], object]:
    return lambda repository: repository.write({name: change(repository.files[name])})


ATTACKS: dict[str, tuple[Callable[[Repository], object], str]] = {
    "a changed weight": (tampered("adapter.safetensors", lambda data: data[:-1] + b"!"), "not the file that the manifest lists"),
    "other weights": (tampered("adapter.safetensors", lambda data: data + b"!"), "not the file that the manifest lists"),
    "a changed card": (tampered("card.yaml", lambda data: data.replace(b"A test", b"B test")), "was changed"),
    "a changed model card": (tampered("README.md", lambda data: data[:-1] + b"!"), "was changed"),
    "a changed manifest": (tampered("manifest.json", lambda data: data.replace(b"Apache-2.0", b"Apache-1.0")), "signature|valid"),
    "a broken signature": (tampered("manifest.json.sig", lambda data: data[:-60] + b"A" * 60), "manifest.json.sig"),
    "no signature": (lambda repository: repository.remove("manifest.json.sig"), "not signed"),
    "missing weights": (lambda repository: repository.remove("adapter.safetensors"), "not there"),
    "a huge manifest": (tampered("manifest.json", lambda data: data + b" " * 200_000), "limit"),
    "a huge signature": (tampered("manifest.json.sig", lambda data: data * 2000), "limit|more than"),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_a_changed_package_is_refused(name: str, hf: HubServer, release: Callable[..., Any]) -> None:
    release()
    change, match = ATTACKS[name]
    change(bert_sst2(hf))
    for policy in (None, "tofu"):
        with pytest.raises((PackageError, TrustError), match=match):
            fetch_hub(TO, policy=policy)
    assert not list((cache_dir() / "packages").glob("*/*"))
    assert not list(cache_dir().glob("tmp/*"))


def test_a_key_that_is_not_the_publishers_is_refused(
    hf: HubServer, release: Callable[..., Any], other_key: SigningKey
) -> None:
    release(signer=other_key)
    with pytest.raises(TrustError, match=r"only .* may sign"):
        got()
    with pytest.raises(TrustError, match=r"only .* may sign"):
        got(policy="tofu")


@pytest.mark.slow
def test_a_release_of_another_place_is_refused(hf: HubServer, release: Callable[..., Any]) -> None:
    """The publisher's own signature, on a package that belongs elsewhere."""
    release()
    release(b"other", to="hf:acme/other")
    release(b"ner", to="hf:acme/bert-sst2/ner", name="ner")
    package = {name: data for name, data in hf.repositories["acme/other"].files.items() if name != ".gitattributes"}
    hf.create("acme/copy", package)
    with pytest.raises(TrustError, match=r"asked for 127.0.0.1/acme/copy"):
        got("hf:acme/copy")
    ner = {name.removeprefix("ner/"): data for name, data in bert_sst2(hf).files.items() if name.startswith("ner/")}
    bert_sst2(hf).write({f"pos/{name}": data for name, data in ner.items()})
    with pytest.raises(TrustError, match="asked for the adapter 'pos'"):
        got(f"{TO}/pos")
    assert got().card.name == "sst2"
    bert_sst2(hf).write(ner)
    with pytest.raises(TrustError, match="held 'sst2' when this machine had it before, and now 'ner'"):
        got(refresh=True)
    assert got(f"{TO}@v1.0.0").card.name == "sst2"


@pytest.mark.slow
def test_a_moved_tag_and_a_branch_that_went_back_are_refused(hf: HubServer, release: Callable[..., Any]) -> None:
    release()
    release(b"new", version="1.1.0")
    repository = bert_sst2(hf)
    assert got().version == "1.1.0"
    repository.refs["v1.0.0"], old = repository.head, repository.refs["v1.0.0"]
    with pytest.raises(TrustError, match=r"the tag v1.0.0 is of 1.0.0, but the manifest is of 1.1.0"):
        got(f"{TO}@v1.0.0")
    repository.refs |= {"v1.0.0": old, "main": old}
    with pytest.raises(TrustError, match=r"this machine had 1.1.0 from it") as caught:
        got(refresh=True)
    assert f"{TO}@v1.0.0" in str(caught.value.hint)
    assert got(f"{TO}@v1.0.0").version == "1.0.0"  # who names it has chosen
    with pytest.raises(ReleaseError, match=r"1\.1\.0 is tagged, but main holds 1\.0\.0"):
        release(b"newer", version="1.2.0")


def test_a_version_with_two_digests_is_refused(hf: HubServer, release: Callable[..., Any]) -> None:
    release()
    got()
    del hf.repositories["acme/bert-sst2"]
    release(b"another 1.0.0")
    with pytest.raises(TrustError, match="releases never change"):
        got(refresh=True)


def test_a_second_load_of_a_pinned_release_touches_no_network(hf: HubServer, release: Callable[..., Any]) -> None:
    done = release()
    got()
    hf.asked.clear()
    assert got(done.reference).from_store
    assert got(f"{TO}@{'f' * 40}#sha256:{done.digest}").from_store
    assert got().from_store  # a branch: for a day
    assert got(offline=True, settings=Settings(resolution_max_age=0)).from_store
    assert hf.asked == []


def test_a_damaged_package_is_fetched_again(hf: HubServer, release: Callable[..., Any]) -> None:
    release()
    weights = got().path / "adapter.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(b"damaged")
    with pytest.raises(PackageError):
        got(offline=True)
    assert not got().from_store
    assert got(offline=True).from_store


def test_a_fetched_folder_is_an_ordinary_package(hf: HubServer, release: Callable[..., Any], tmp_path: Path) -> None:
    release()
    found = got()
    assert verify(found.path, policy="enforce").manifest.repository == PRINCIPAL
    assert adaptergit.stored()[0].digest == found.digest


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_publish_and_load_from_a_shell(hf: HubServer, source: Source, key: SigningKey, tmp_path: Path) -> None:
    clean = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    environment = {**clean, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": TOKEN}

    def run(*argv: str, code: int = 0) -> str:
        argv = (sys.executable, "-m", "adaptergit", *argv)
        done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert TOKEN not in done.stdout + done.stderr
        return done.stdout + done.stderr

    folder = str(source())
    signed = ("--key", str(key.path))
    assert "one folder at a time" in run("publish", folder, str(tmp_path), "--to", TO, *signed, code=2)
    assert "would publish hf:acme/bert-sst2@v1.0.0" in run("publish", folder, "--to", TO, *signed, "--dry-run")
    shown = run("publish", folder, "--to", TO, *signed)
    assert f'load it: adaptergit.load("{TO}@v1.0.0")' in shown
    assert "published already" in run("publish", folder, "--to", TO, *signed, code=9)
    assert "nobody you know vouches" in run("load", TO, code=4)
    run("trust", "add", PRINCIPAL, key.public.line)
    assert "accepted     enforce" in run("load", TO)
    assert "  ok  " in run("verify", f"{TO}@v1.0.0")
    assert json.loads(run("info", TO, "--json"))["card"] == card_data()
