"""Wrong turns that people took, each mended by its message alone."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from click.testing import CliRunner
from conftest import Hub, git, tiny_model

import adaptergit
from adaptergit.cli import main
from adaptergit.errors import (
    AdaptergitWarning,
    DataError,
    ModelError,
    NotFoundError,
    PackageError,
    ReleaseError,
    StorageError,
    TransportError,
    TrustError,
    UsageError,
)
from adaptergit.git import Clone
from adaptergit.package import Card
from adaptergit.package.editing import edit_card
from adaptergit.pins import known_signers, pin_key, unpin
from adaptergit.prepare import initialise
from adaptergit.publish import publish
from adaptergit.rotate import rotate
from adaptergit.settings import cache_dir, load_settings
from adaptergit.store.lockfile import read_lock
from adaptergit.training import TrainSpec, train
from adaptergit.training.base import load_base
from adaptergit.training.readers import parse_rows
from adaptergit.trust import SigningKey, generate_key, parse_allowed_signers

Source = Callable[..., Path]


def test_a_pin_is_removed_by_the_name_it_is_listed_by(home: Path, key: SigningKey, tmp_path: Path) -> None:
    other = generate_key(tmp_path / "other")
    for name in ("example.org/a/b", "example.org/a/c"):
        pin_key(name, key.public.line)
    assert unpin("example.org/a/b") == 1
    assert [one.principals for one in known_signers(load_settings())] == [("example.org/a/c",)]
    pin_key("example.org/a/c", other.public.line)
    with pytest.raises(UsageError, match="has 2 keys") as several:
        unpin("example.org/a/c")
    assert several.value.hint is not None
    assert unpin(several.value.hint.split()[3]) == 1
    with pytest.raises(NotFoundError):
        unpin("example.org/nobody/here")


@pytest.mark.parametrize("said", ["127.0.0.1:8080/you/adapters", "https://127.0.0.1:8080/you/adapters.git"])
def test_an_address_is_told_what_it_is_called(home: Path, key: SigningKey, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        pin_key(said, key.public.line)
    assert refused.value.hint == "did you mean 127.0.0.1/you/adapters?"


def test_who_adds_a_key_to_a_repository_with_releases_is_told_to_rotate(
    hub: Hub, source: Source, tmp_path: Path
) -> None:
    initialise(clone=hub.clone, key=hub.key.path)
    _commit(hub)
    publish(source(), clone=hub.clone, key=hub.key.path)
    second = generate_key(tmp_path / "second")
    with pytest.raises(ReleaseError) as refused:
        publish(source(), version="1.1.0", clone=hub.clone, key=second.path)
    assert f"adaptergit rotate --keep {second.path}" in str(refused.value.hint)
    rotate(second.path, key=hub.key.path, clone=hub.clone)
    with pytest.raises(UsageError, match="was replaced by a rotation"):
        initialise(clone=hub.clone, key=hub.key.path)


def _commit(hub: Hub) -> None:
    for argv in (("add", "-A"), ("commit", "-qm", "announce"), ("push", "-q")):
        subprocess.run(["git", "-C", str(hub.clone), *argv], check=True)


def test_the_folder_above_is_told_what_is_in_it(hub: Hub, source: Source) -> None:
    inner = source()
    with pytest.raises(NotFoundError, match=re.escape(f"did you mean {inner}?")):
        publish(inner.parent, clone=hub.clone, key=hub.key.path)


def test_texts_are_a_list(tmp_path: Path) -> None:
    for texts in ("a fine film", [3], [["a", 3]]):
        with pytest.raises(UsageError, match=r"texts are a list"):
            adaptergit.predict(tmp_path, texts=texts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda path: adaptergit.adapters("folder"), "model must be a transformers model, not str"),
        (lambda path: adaptergit.load(path, lock=3), "lock must be a path, not int"),
        (lambda path: adaptergit.publish(path, version=1.8), "a version is text, not 1.8"),
    ],
)
def test_other_types_are_named(call: Callable[[Path], Any], said: str, source: Source) -> None:
    with pytest.raises(UsageError, match=said):
        call(source())


def test_an_option_of_a_line_of_ones_own_is_recognised() -> None:
    with pytest.raises(TrustError, match="did you mean 'valid-before'"):
        parse_allowed_signers('a/b valid-bfore="20200101" ssh-ed25519 AAAA', source="x")


def test_json_is_answered_in_json_also_when_the_call_is_wrong(home: Path) -> None:
    for argv in (["load", "--json"], ["lod", "x", "--json"], ["load", "x", "--json", "--nonsense"]):
        done = subprocess.run([sys.executable, "-m", "adaptergit", *argv], capture_output=True, text=True, check=False)
        found = json.loads(done.stdout)["error"]
        assert (done.returncode, found["type"]) == (2, "UsageError")
        assert found["hint"].endswith("--help")
    done = subprocess.run(
        [sys.executable, "-m", "adaptergit", "store", "ls", "--json"], capture_output=True, check=True
    )
    assert json.loads(done.stdout) == {"packages": []}


def test_a_full_disk_is_said_to_be_one_whoever_writes_weights(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    import signal

    model = tiny_model("bert")
    panel = adaptergit.adapters(model)
    panel.add("big", "seq_bn[reduction_factor=0.02]")
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, most))
    try:
        for write in (
            lambda: panel.save("big", tmp_path / "ours"),
            lambda: adaptergit.export(model, "big", tmp_path / "theirs", to="adapterhub"),
        ):
            with pytest.raises(OSError, match="File too large"):
                write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        signal.signal(signal.SIGXFSZ, before)
    assert not list((tmp_path / "ours").glob("*.safetensors"))


def test_what_a_reader_with_only_the_readme_ran_into(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="the reference is empty"):
        adaptergit.load(" ")
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="neither an index file nor a lock file names a folder"):
        adaptergit.load(tmp_path / "out", lock="nope.lock")
    (tmp_path / "l.lock").write_text("garbage")
    with pytest.raises(PackageError) as damaged:
        read_lock(tmp_path / "l.lock")
    assert "and write it anew: adaptergit lock" in str(damaged.value.hint)
    said = CliRunner().invoke(
        main, ["train", "--base", "x", "--train", "t", "--eval", "e", "--output", "o", "--language", "en us"]
    )
    assert "--language 'en us' is no BCP 47 tag" in said.stderr
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TransportError, match="git is not installed"):
        Clone.at(hub.clone)


def test_a_card_that_nobody_signed_is_shown_as_a_preview(source: Source) -> None:
    said = CliRunner().invoke(main, ["card", "render", str(source())], catch_exceptions=False)
    assert "a preview: nothing is signed yet" in said.stderr
    assert "preview" not in said.stdout


ZEROS = "sha256:" + "0" * 64
TRAIN = ("train", "--base", "x", "--eval", "rows.csv", "--output", "o")


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (("load", ""), 2, "the reference is empty"),
        (("load", "https://github.com/acme/a/tree/main/adapters/x"), 5, "write github.com/acme/a@x"),
        (("load", "https://git.example.org/a/b/c/-/blob/main/adapters/x/card.yaml"), 5, "write git.example.org/a/b/c@x"),
        (("load", "https://huggingface.co/acme/x/tree/main"), 5, "write hf:acme/x"),
        (("inspect", "./nope"), 5, "there is no such folder"),
        (("card", "make", "empty"), 5, "name a package folder, or the folder with adapter_config.json"),
        (("search", "x", "--index", "rows.csv"), 3, "--index takes the name of an index"),
        (("index", "add", "rows.csv", "--root", ZEROS), 5, "name a folder that 'adaptergit index build' wrote"),
        (("bundle", "import", "nope.tar"), 5, "name the file that adaptergit bundle export wrote"),
        (("sync", "--file", "ci.lock"), 5, "--lock ci.lock"),
        (("train", "--base", "x", "--train", "rows.csv", "--eval", "rows.csv", "--output", "rows.csv"), 2, "is a file"),
        (
            ("train", "--base", "x", "--train", "a", "--eval", "b", "--output", "o", "--language", "english"),
            2,
            "en, de, sr-Latn",
        ),
        ((*TRAIN, "--train", "row.csv"), 5, "did you mean 'rows.csv'?"),
        ((*TRAIN, "--train", "nix/rows.csv"), 5, "nix is not there"),
        ((*TRAIN, "--train", "empty/rows.csv"), 5, "empty holds nothing"),
        ((*TRAIN, "--license", "CC0"), 2, "write for example CC0-1.0"),
        ((*TRAIN, "--license", "GPLv3"), 2, "write for example GPL-3.0-only or GPL-3.0-or-later"),
        ((*TRAIN, "--license", "free"), 2, "write for example Apache-2.0 or LicenseRef-My-Terms"),
        (("convert", "rows.csv", "out", "--to", "peft"), 2, "name the folder that it is in"),
    ],
)  # fmt: skip
def test_the_message_says_what_mends_it(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...], code: int, said: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "rows.csv").write_text("text,label\na,b\n")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, argv)
    assert (result.exit_code, said in result.stderr) == (code, True), result.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'index = "\xff"', "line 1 is not UTF-8"),
        (b"\nallow_http = 3", 'write allow_http = ["mirror.lan"]'),
        (b"policy = true", 'policy cannot be true\n  hint: write policy = "enforce"'),
        (b'base_models = "/models"', "base_models cannot be '/models'"),
        (b"mirrors = []", "mirrors cannot be a list"),
        (b"default_host = {}", "default_host cannot be a table"),
        (b"default_host = github.com", "texts are in a pair of quotes"),
        (b"[base_models]\nacme/tiny = '/x'", "so is a name with / or * in it"),
        (b'allowed_signers = "C:\\Users"', "write a path with \\ in single quotes"),
        (b"[base_models]\na = 3", 'write "a" = "/folder"'),
        (b'[mirrors]\na = "x"', 'write "a" = ["https://mirror.lan/"]'),
        (None, "make it a file that you may read"),
    ],
)
def test_settings_that_cannot_be_read_say_how_they_are_written(home: Path, text: bytes | None, said: str) -> None:
    path = home / "config" / "config.toml"
    path.mkdir(parents=True)
    if text is not None:
        path.rmdir()
        path.write_bytes(text)
    result = CliRunner().invoke(main, ["search", "x"])
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_dry_run_tries_the_key_that_will_sign(hub: Hub, source: Source, tmp_path: Path) -> None:
    key = tmp_path / "open_to_all"
    key.write_bytes(hub.key.path.read_bytes())
    key.with_name("open_to_all.pub").write_text(hub.key.public.line)
    key.chmod(0o644)
    with pytest.raises(TrustError) as refused:
        publish(source(), clone=hub.clone, key=key, dry_run=True)
    assert refused.value.hint == f"nobody else may read a private key: chmod 600 {key}"
    key.chmod(0o600)
    assert publish(source(), clone=hub.clone, key=key, dry_run=True).dry_run


def test_a_card_is_valid_with_its_weights(source: Source) -> None:
    folder = source()
    assert CliRunner().invoke(main, ["card", "validate", str(folder)]).exit_code == 0
    edit_card(folder, ["adapter.parameters=7"])
    wrong = CliRunner().invoke(main, ["card", "validate", str(folder)])
    assert (wrong.exit_code, "the card says 7, the weights hold" in wrong.stderr) == (3, True)
    (folder / "adapter.safetensors").unlink()  # a card by itself says nothing wrong
    assert CliRunner().invoke(main, ["card", "validate", str(folder)]).exit_code == 0


def test_an_editor_that_is_not_there_is_named(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, drafts = source(), tmp_path / "drafts"
    drafts.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(drafts))
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", str(tmp_path / "nope"))
    result = CliRunner().invoke(main, ["card", "edit", str(folder)])
    assert (result.exit_code, "or name fields: FIELD=VALUE" in result.stderr) == (2, True)
    assert not list(drafts.iterdir())


def test_a_full_disk_is_said_of_the_folder_that_was_named(small_disk: Path, tmp_path: Path) -> None:
    model = tiny_model("bert")
    panel = adaptergit.adapters(model)
    panel.add("a", "seq_bn[reduction_factor=0.02]")
    panel.save("a", tmp_path / "a", base_model={"id": "acme/tiny"}, license="MIT")
    with pytest.raises(StorageError) as full:
        adaptergit.convert(tmp_path / "a", small_disk / "out", to="adapterhub", base=tiny_model("bert"))
    assert (full.value.where, "free some space" in str(full.value.hint)) == (str(small_disk / "out"), True)
    assert not list(small_disk.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "hint"),
    [
        ("a.csv", "text,label\n", "write one example a line"),
        ("a.csv", "text,text\na,b\n", "rename one 'text'"),
        ("a.csv", 'text,label\n"a" b,c\n', 'write "" for a quote'),
        ("a.csv", "text,label\na,x\nb,x\n", "or name their column with --label-column"),
        ("a.csv", "text,label\na,x\nb, \n", "give the row a label"),
        ("a.jsonl", '{\n"text": "a"\n}', "an example is a whole line"),
        ("a.json", '{"text": "a"}\n{"text": "b"}\n', "is called .jsonl"),
        ("a.json", '[{"text": "a"}]', "rows go into .jsonl"),
        ("a.conll", "word\n\n", "with a tab or a space between"),
    ],
)
def test_data_that_cannot_be_used_says_how_it_is_written(tmp_path: Path, name: str, content: str, hint: str) -> None:
    from adaptergit.training import TASKS, read_rows

    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as unusable:
        TASKS["text-classification"].learn({"text": "text", "label": "label"}, read_rows(tmp_path / name))
    assert hint in str(unusable.value.hint)


@pytest.mark.parametrize(
    ("turn", "hint"),
    [
        (lambda panel: panel.activate("Stac(a)"), "did you mean 'Stack'?"),
        (lambda panel: panel.activate("Foo(a)"), "Stack, Fuse, Split"),
        (lambda panel: panel.add_fusion("Stack(a, b)"), 'Fuse("a", "b")'),
        (lambda panel: panel.add_fusion("b,c"), "Average and Stack take others"),
        (lambda panel: panel.merge("a"), "leave it active"),
        (lambda panel: (panel.merge("b"), panel.merge("b")), "panel.unmerge('b') takes it out"),
        (lambda panel: panel.average("d", ["v", "w"]), "strategy='svd'"),
        (lambda panel: panel.add_head("a", adaptergit.ClassificationHead(num_labels=2, labels=("x",))), "num_labels=1"),
    ],
)
def test_a_wrong_turn_in_python_is_mended_by_its_hint(turn: Callable[[Any], Any], hint: str) -> None:
    panel = adaptergit.adapters(tiny_model("bert"))
    for name, config in {"a": "seq_bn", "b": "lora", "c": "lora", "v": "vera", "w": "vera"}.items():
        panel.add(name, config)
    with pytest.raises((UsageError, ModelError)) as wrong:
        turn(panel)
    assert hint in str(wrong.value.hint)


def test_a_name_of_two_parts_begins_with_its_host_only_where_that_is_said(
    hub: Hub, source: Source, tmp_path: Path
) -> None:
    key = f"{hub.key.public.line}"
    assert pin_key("acme/adapters", key).principals == ("github.com/acme/adapters",)
    assert pin_key("//gitbox/adapters.git", key).principals == ("gitbox/adapters",)
    assert unpin("//gitbox/adapters") == 1
    with pytest.raises(UsageError, match="names no host") as refused:
        publish(source(), clone=hub.clone, key=hub.key.path, remote=None, repository="me/adapters")
    assert refused.value.hint == "write host/org/repo: github.com/me/adapters"
    near = hub.url.replace("127.0.0.1", "localhost").replace("acme/adapters", "adapters")
    hub.server.create("adapters")
    hub.git("remote", "set-url", "origin", near)
    told: list[str] = []
    publish(source(), clone=hub.clone, key=hub.key.path, report=told.append)
    with pytest.raises(TrustError) as unknown:
        adaptergit.fetch(f"{near}@sst2")
    for said in (told[-1], str(unknown.value.hint)):
        assert f"adaptergit trust add //localhost/adapters '{key}'" in said
    pin_key("//localhost/adapters", key)
    assert adaptergit.fetch(f"{near}@sst2").version == "1.0.0"


def test_a_release_that_was_not_pushed_is_no_ground_for_the_next(hub: Hub, source: Source) -> None:
    told: list[str] = []
    made = publish(source(), clone=hub.clone, key=hub.key.path, remote=None, report=told.append)
    assert made.repository == "127.0.0.1/acme/adapters"  # where it will go names it
    push = "git push origin HEAD refs/tags/adapters/sst2/1.0.0"
    assert told[-1] == f"tagged, and nothing pushed; to release it: {push}"
    with pytest.raises(ReleaseError, match=r"was never pushed: adapters/sst2/1\.0\.0") as refused:
        publish(source(b"new"), version="1.1.0", clone=hub.clone, key=hub.key.path)
    assert "git push origin HEAD adapters/sst2/1.0.0" in str(refused.value.hint)
    subprocess.run(push.split(), cwd=hub.clone, check=True, capture_output=True)
    publish(source(b"new"), version="1.1.0", clone=hub.clone, key=hub.key.path)
    hub.trust()
    assert adaptergit.fetch(f"{hub.url}@sst2").version == "1.1.0"


def test_paths_are_text_too_and_other_types_are_named(tmp_path: Path, source: Source) -> None:
    (tmp_path / "t.csv").write_text("text,label\na,x\nb,y\n")
    spec = TrainSpec(
        base="nope", train=str(tmp_path / "t.csv"), eval=str(tmp_path / "t.csv"), output=str(tmp_path / "o")
    )  # type: ignore[arg-type]
    assert spec.adapter_name == "o"
    with pytest.raises(NotFoundError, match="base model"):
        train(spec)
    with pytest.raises(UsageError, match="expected a TrainSpec, not dict"):
        train({"base": "nope"})  # type: ignore[arg-type]
    with pytest.raises(NotFoundError, match="no such file"):
        adaptergit.predict(source(), file=str(tmp_path / "nope.tsv"))
    for call in (adaptergit.fetch, adaptergit.resolve):
        with pytest.raises(UsageError, match="lock must be a path, not list"):
            call("acme/adapters@x", lock=["l"])  # type: ignore[operator]
    with pytest.raises(UsageError, match="expected a function, not str"), adaptergit.watching("x"):  # type: ignore[arg-type]
        pass


def test_nothing_of_a_key_is_printed_where_a_card_is_meant(key: SigningKey) -> None:
    said = CliRunner().invoke(main, ["card", "validate", str(key.path)])
    assert (said.exit_code, "it has no fields, so that it is none" in said.stderr) == (3, True)
    assert "OPENSSH" not in said.output
    assert key.path.read_text().splitlines()[1][:20] not in said.output


def test_a_store_that_is_named_from_here_is_the_same_from_elsewhere(
    hub: Hub, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(source(), clone=hub.clone, key=hub.key.path)
    hub.trust()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADAPTERGIT_CACHE_DIR", "near")
    assert adaptergit.fetch(f"{hub.url}@sst2").path.is_relative_to(tmp_path / "near")


def test_a_damaged_release_fails_the_check_of_a_lock(hub: Hub, source: Source, tmp_path: Path) -> None:
    publish(source(), clone=hub.clone, key=hub.key.path)
    hub.trust()
    adaptergit.lock([f"{hub.url}@sst2"], path=tmp_path / "l")
    (found,) = adaptergit.sync(path=tmp_path / "l")
    weights = found.path / "adapter.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(PackageError, match="damaged") as refused:
        adaptergit.check_lock(path=tmp_path / "l")
    assert "adaptergit store verify --remove" in str(refused.value.hint)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("t.conll", "Bob B-PER\nlives O\n", "--task token-classification"),
        ("t.jsonl", '{"tokens": ["Bob"], "tags": ["O"]}\n', "--task token-classification"),
        ("t.jsonl", '{"question": "q", "context": "c", "answers": {}}\n', "--task question-answering"),
        ("t.json", '[{"text": "a", "label": "b"}]', "one object on each line"),
    ],
)
def test_rows_of_another_task_name_it(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    file = str(tmp_path / name)
    argv = ["train", "--base", "x", "--train", file, "--eval", file, "--output", str(tmp_path / "o")]
    result = CliRunner().invoke(main, argv)
    assert (result.exit_code, said in result.stderr) == (8, True), result.stderr


@pytest.mark.parametrize("said", ["foo", "", "acme adapters", "file:///srv/adapters.git"])
def test_what_is_no_repository_is_not_explained(home: Path, said: str) -> None:
    done = CliRunner().invoke(main, ["trust", "explain", said])
    assert done.exit_code == 2
    assert "hint: write host/org/repo, as its releases name it" in done.stderr
    assert (
        CliRunner().invoke(main, ["trust", "explain", "acme/x"]).stdout.startswith("repository   github.com/acme/x\n")
    )


# --- a fifth reader ---------------------------------------------------------------------------------------------------


def test_nothing_is_saved_over_another_adapter(tmp_path: Path, hub: Hub, source: Source) -> None:
    panel = adaptergit.adapters(tiny_model())
    for name in ("a", "b"):
        panel.add(name, "lora[r=2]")
    panel.save("a", tmp_path / "out", license="MIT")
    before = (tmp_path / "out" / "adapter.safetensors").read_bytes()
    with pytest.raises(UsageError, match="there is another adapter, a") as refused:
        panel.save("b", tmp_path / "out", license="MIT")
    assert refused.value.hint == "name a new folder, or remove this one"
    assert (tmp_path / "out" / "adapter.safetensors").read_bytes() == before
    panel.save("a", tmp_path / "out", license="MIT")  # once more
    publish(source(), clone=hub.clone, key=hub.key.path)
    hub.trust()
    with pytest.raises(UsageError, match="there is a signed package"):
        panel.save("a", adaptergit.fetch(f"{hub.url}@sst2").path, license="MIT")


def test_a_panel_that_was_taken_away_takes_nothing_in() -> None:
    model = tiny_model()
    panel = adaptergit.adapters(model)
    panel.detach()
    with pytest.raises(UsageError, match="the panel was taken away from its model"):
        panel.add("a", "lora[r=2]")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_json_for_which_there_is_no_room_is_said_on_stderr() -> None:
    with Path("/dev/full").open("w") as full:
        argv = [sys.executable, "-m", "adaptergit", "trust", "ls", "--json"]
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.stderr == "error: No space left on device\n  hint: free some space\n"
    assert done.returncode == TransportError.exit_code


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda text: text.replace("version: 1.0.0", "version: 1.0"), 'in quotes: "1.0"'),
        (lambda text: text.replace("license:", "licence:"), "--unset licence license=…"),
        (lambda text: "".join(line for line in text.splitlines(True) if "license" not in line), "adaptergit card edit"),
        (lambda text: "name: [a\n", "mend it in the file"),
    ],
    ids=["number", "typo", "missing", "no YAML"],
)
def test_a_card_is_mended_as_its_message_says(source: Source, change: Callable[[str], str], hint: str) -> None:
    path = source() / "card.yaml"
    before = path.read_text()
    path.write_text(change(before))
    assert path.read_text() != before
    done = CliRunner().invoke(main, ["card", "validate", str(path)])
    assert done.exit_code == PackageError.exit_code
    assert f"  hint: {hint}" in done.stderr or hint in done.stderr


def test_a_folder_without_a_card_says_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    done = CliRunner().invoke(main, ["load", str(tmp_path)])
    assert f"adaptergit card make {tmp_path}" in done.stderr
    folder = tmp_path / "only-weights"
    folder.mkdir()
    (folder / "adapter.safetensors").write_bytes(b"x")
    done = CliRunner().invoke(main, ["card", "make", str(folder)])
    assert "weights alone do not say what they are of" in done.stderr


@pytest.mark.parametrize(
    "call",
    [
        lambda: adaptergit.load("acme/a@b", offline="no"),  # type: ignore[arg-type]
        lambda: adaptergit.load("acme/a@b", head="no"),  # type: ignore[arg-type]
        lambda: adaptergit.fetch("acme/a@b", refresh=3),  # type: ignore[arg-type]
        lambda: adaptergit.publish("out", dry_run="yes"),  # type: ignore[arg-type]
    ],
)
def test_flags_are_true_or_false(call: Callable[[], object]) -> None:
    with pytest.raises(UsageError, match="must be True or False, not"):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: adaptergit.convert(3, "out", to="peft"),  # type: ignore[arg-type]
        lambda: adaptergit.convert("a", 3, to="peft"),  # type: ignore[arg-type]
        lambda: adaptergit.predict(3, texts=["a"]),  # type: ignore[arg-type]
        lambda: adaptergit.publish(3),  # type: ignore[arg-type]
        lambda: adaptergit.publish("out", clone=3),  # type: ignore[arg-type]
        lambda: adaptergit.adapters(tiny_model()).route(3),  # type: ignore[arg-type]
    ],
)
def test_a_number_in_the_place_of_a_name_is_refused_as_such(call: Callable[[], object]) -> None:
    with pytest.raises(UsageError, match=r"not int|not 3"):
        call()


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("Average(a, b, weights=[1])", "one value for each"),
        ("Average(a, b, wights=[1, 2])", "did you mean 'weights'?"),
    ],
)
def test_fields_of_compositions_are_hinted_at(text: str, hint: str) -> None:
    panel = adaptergit.adapters(tiny_model())
    with pytest.raises(UsageError) as refused:
        panel.active = text
    assert hint in str(refused.value.hint)


def test_runs_say_where_a_licence_goes(tmp_path: Path) -> None:
    from adaptergit.training.sweep import read_runs

    for key, hint in (("license", 'about.license = "…"'), ("adaptors", "did you mean 'adapters'")):
        (tmp_path / "runs.toml").write_text(
            f'{key} = "MIT"\nbase = "b"\n[[run]]\ntrain = "t"\neval = "e"\noutput = "o"\n'
        )
        with pytest.raises(UsageError) as refused:
            read_runs(tmp_path / "runs.toml")
        assert hint in str(refused.value.hint)


def test_an_index_that_is_nowhere_is_looked_for_by_its_path(home: Path) -> None:
    done = CliRunner().invoke(main, ["index", "add", "nixdir", "--root", f"sha256:{'0' * 64}"])
    assert done.stderr == (
        "error: nixdir: neither a folder that is there nor an address\n"
        "  hint: check the path, or write https://host/path\n"
    )
    done = CliRunner().invoke(main, ["index", "add", "http://127.0.0.1:9/x", "--root", f"sha256:{'0' * 64}"])
    assert "no answer: connection refused" in done.stderr


def test_a_repository_that_is_no_folder_is_looked_for_by_its_path(home: Path, tmp_path: Path) -> None:
    with pytest.raises(TransportError) as refused:
        adaptergit.fetch(f"{(tmp_path / 'nowhere.git').as_uri()}@sst2")
    assert refused.value.hint == "check the address: there is no git repository"
    assert "access rights" not in refused.value.what


def test_an_index_is_named_as_indexes_can_be(tmp_path: Path, key: SigningKey) -> None:
    public = f"{key.path}.pub"
    argv = ["index", "init", str(tmp_path / "i"), "--name", "A B", "--maintainer", public, "--online", public]
    done = CliRunner().invoke(main, [*argv, "--key", str(key.path)])
    assert "hint: --name community: small letters and digits" in done.stderr
    assert not (tmp_path / "i").exists()


def test_a_file_that_is_no_key_is_named_and_not_shown(home: Path, tmp_path: Path, hub: Hub, source: Source) -> None:
    (tmp_path / "train.tsv").write_text("text\tlabel\nsecret words\tpos\n")
    done = CliRunner().invoke(main, ["trust", "add", "acme/a", str(tmp_path / "train.tsv")])
    assert done.stderr.startswith(f"error: {tmp_path / 'train.tsv'}: this file holds no public key\n")
    assert "secret" not in done.stderr
    argv = ["publish", str(source()), "--repo", str(hub.clone), "--key", str(tmp_path / "train.tsv")]
    done = CliRunner().invoke(main, argv)
    assert "train.tsv holds no private key\n  hint: this is no OpenSSH private key; adaptergit keygen" in done.stderr


def test_an_adapter_is_no_model_to_inspect(home: Path) -> None:
    done = CliRunner().invoke(main, ["inspect", "acme/adapters@sst2"])
    assert "this names an adapter, not a model\n  hint: adaptergit summary acme/adapters@sst2" in done.stderr


def test_a_model_that_vllm_does_not_serve_is_not_sent_in_a_circle(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    for kind, hint in (("BertLMHeadModel", "adaptergit serve and predict run"), ("BertForMaskedLM", "--model-class")):
        model = getattr(transformers, kind)(config)
        adaptergit.adapters(model).add("a", "lora[r=2]")
        with pytest.raises(UsageError, match=f"this is a {kind}") as refused:
            adaptergit.export(model, "a", tmp_path / "out", to="vllm")
        assert hint in str(refused.value.hint)


@pytest.mark.parametrize(
    "argv",
    [
        ["train", "--learning-rate", "0"],
        ["train", "--early-stopping", "0"],
        ["predict", "acme/a@b", "a [MASK]", "--top-k", "0"],
        ["predict", "acme/a@b", "--text", "a", "--max-new-tokens", "0"],
        ["store", "prune", "--older-than", "-1"],
        ["index", "submit", "--to", "https://host.example/i.git", "--threshold", "0"],
    ],
)
def test_a_number_that_makes_no_sense_is_refused_by_the_option_it_was_given_to(home: Path, argv: list[str]) -> None:
    done = CliRunner().invoke(main, argv)
    assert done.exit_code == 2
    assert f"Invalid value for '{argv[-2]}': " in done.stderr


def test_a_name_of_two_words_is_shown_how_to_be_composed() -> None:
    panel = adaptergit.adapters(tiny_model("bert"))
    for name in ("My X", "b"):
        panel.add(name, "seq_bn")
    with pytest.raises(UsageError, match=r"Stack\(de, Fuse\(a, 'b c'\)\)"):
        panel.active = "Stack(My X, b)"
    panel.active = "Stack('My X', b)"
    assert str(panel.active) == "Stack('My X', b)"


def test_a_card_whose_head_nobody_can_load_is_told_before_it_is_published(source: Source) -> None:
    folder = source(head={"type": "classification", "config": {"num_labels": 2}, "labels": ["bad", "good"]})
    with pytest.raises(PackageError, match="there are 1, and the head has 2 logits"):
        edit_card(folder / "card.yaml", ["head.labels=positive"])
    text = (folder / "card.yaml").read_text()
    (folder / "card.yaml").write_text(text.replace("  - good\n", ""))
    done = CliRunner().invoke(main, ["card", "validate", str(folder)])
    assert done.exit_code == 3
    assert "one label for each" in done.stderr


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 90868376\n"


def test_a_base_model_that_git_lfs_keeps_says_so(home: Path, tmp_path: Path) -> None:
    tiny_model("bert").save_pretrained(tmp_path / "base")
    weights = tmp_path / "base" / "model.safetensors"
    index = tmp_path / "index.json"
    index.write_text('{"schema": "adaptergit.index/1", "entries": []}')
    for data in (LFS, weights.read_bytes()[:-100]):
        weights.write_bytes(data)
        with pytest.raises(NotFoundError, match=r"damaged, or not all there[^$]*git lfs pull"):
            load_base(str(tmp_path / "base"))
        with pytest.raises(NotFoundError, match="git lfs pull"):
            adaptergit.search(base_of=tmp_path / "base", index=index)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match=r"name a folder with config\.json"):
        adaptergit.search(base_of=tmp_path / "empty", index=index)


def test_what_is_read_is_not_written_over(home: Path, tmp_path: Path, hub: Hub) -> None:
    (tmp_path / "dev.csv").write_text("text,label\na,b\n")
    data = ["--train", str(tmp_path / "dev.csv"), "--eval", str(tmp_path / "dev.csv")]
    done = CliRunner().invoke(main, ["train", "--base", "x", *data, "--predictions", str(tmp_path / "dev.csv")])
    assert "--predictions would write over it" in done.stderr
    done = CliRunner().invoke(main, ["bundle", "export", str(tmp_path / "dev.csv"), f"{hub.url}@sst2"])
    assert "there is a file that is no bundle" in done.stderr
    assert (tmp_path / "dev.csv").read_text() == "text,label\na,b\n"


def test_a_misspelt_module_beside_right_ones_is_told() -> None:
    panel = adaptergit.adapters(tiny_model("bert"))
    with pytest.warns(AdaptergitWarning, match=r"nothing in the model is called 'vlaue'[^$]*did you mean 'value'"):
        panel.add("a", adaptergit.LoRA(target_modules=("query", "vlaue")))
    panel.add("b", adaptergit.LoRA(target_modules=("query", "attention.self.value")))  # ends of paths
    with pytest.raises(UsageError, match=r"train takes names[^$]*panel\.train\(\"a\", \"b\"\)"):
        panel.train(["a"])  # type: ignore[arg-type]


def test_a_wrong_default_host_is_told_where_it_is_written(home: Path) -> None:
    config = home / "config" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('default_host = "https://github.com"\n')
    with pytest.raises(UsageError, match=r"config\.toml: default_host 'https://github\.com' is not a host name"):
        load_settings()


def test_a_folder_has_no_name_to_trust(home: Path, key: SigningKey, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a folder has no public name") as refused:
        pin_key((tmp_path / "r.git").as_uri(), key.public.line)
    assert "None" not in str(refused.value)


def test_the_private_half_goes_to_the_agent_whichever_was_named(
    home: Path, source: Source, hub: Hub, tmp_path: Path
) -> None:
    path = tmp_path / "locked"
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(path)]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
    argv = ["publish", str(source()), "--repo", str(hub.clone), "--key", f"{path}.pub"]
    done = subprocess.run(  # without a terminal, which would be asked for the passphrase
        [sys.executable, "-m", "adaptergit", *argv], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        start_new_session=True, check=False,
    )  # fmt: skip
    assert f"ssh-add {path} once" in done.stderr


def test_what_a_re_check_of_all_that_found(home: Path, source: Source, tmp_path: Path, hub: Hub) -> None:
    for wrong in ("https://host.example/a/b.git", "acme/adapters"):
        done = CliRunner().invoke(main, ["verify", wrong])
        assert "@adapter" in done.stderr
    for url, said in (("bad url", "git@github.com:acme"), ("https://h.example/a/b.git@sst2", "names an adapter")):
        subprocess.run(["git", "init", "-q", str(tmp_path / "c")], check=True)
        done = CliRunner().invoke(
            main, ["init", "--repo", str(tmp_path / "c"), "--yes", "--new-key", "--remote-url", url]
        )
        assert said in done.stderr
    done = CliRunner().invoke(main, ["load", f"{hub.url}@sst2", "--lock", str(tmp_path / "no.lock")])
    assert f"--lock {tmp_path / 'no.lock'}" in done.stderr
    folder = source()
    text = (folder / "card.yaml").read_text()
    (folder / "card.yaml").write_text(text.replace("license: Apache-2.0", "licence: Apache-2.0"))
    with pytest.raises(PackageError, match="this was wrong before: name that field too"):
        edit_card(folder / "card.yaml", ["version=1.0.1"])


def said(*argv: str, code: int | None = None) -> str:
    """Return what a person is told who types this."""
    done = CliRunner().invoke(main, list(argv))
    assert done.exit_code != 0 if code is None else done.exit_code == code, done.output
    return done.stderr


def test_a_card_is_edited_until_it_is_right(source: Source) -> None:
    path = source() / "card.yaml"
    text = path.read_text()
    path.write_text(text.replace("license: Apache-2.0\n", "").replace("version: 1.0.0", "version: 1.0"))
    with pytest.raises(PackageError, match="this was wrong before: name that field too"):
        edit_card(path, ["license=MIT"])
    assert edit_card(path, ["license=MIT", "version=1.1.0"]).license == "MIT"
    path.write_text(text.replace("license: Apache-2.0", "license: Apache2"))
    assert f"adaptergit card edit {path} license=…" in said("card", "validate", str(path), code=3)
    assert edit_card(path, ["license=Apache-2.0"]).license == "Apache-2.0"
    with pytest.raises(PackageError, match="nothing was changed: write another value"):
        edit_card(path, ["license=Apache2"])
    path.write_text("name: [a\n")
    with pytest.raises(PackageError, match="mend it in the file, then edit"):
        edit_card(path, ["license=MIT"])
    path.write_bytes(text.encode().replace(b"Apache-2.0", b"Apache-2.0 # \xe9"))
    line = text[: text.index("Apache-2.0")].count("\n") + 1
    assert f"card.yaml:{line}: not UTF-8 at byte" in said("card", "validate", str(path), code=3)
    path.unlink()
    path.mkdir()
    assert "this is a folder, and no card" in said("card", "edit", str(path.parent), "license=MIT", code=5)


def test_hints_about_a_lock_name_that_lock(hub: Hub, source: Source, tmp_path: Path, monkeypatch: Any) -> None:
    publish(source(), clone=hub.clone, key=hub.key.path)
    pin_key("127.0.0.1/acme/adapters", hub.key.public.line)
    mine = tmp_path / "my.lock"
    assert CliRunner().invoke(main, ["lock", f"{hub.url}@sst2", "--lock", str(mine)]).exit_code == 0
    for asked, how in ((f"{hub.url}@sst2>1.0.0", "lock --upgrade"), (f"{hub.url}@other", "lock")):
        for command in ("load", "verify", "info"):
            told = said(command, asked, "--lock", str(mine), code=5)
            assert f"hint: adaptergit {how} '{asked}' --lock '{mine}'" in told
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adaptergit.lock").write_bytes(mine.read_bytes())
    told = said("load", f"{hub.url}@other", "--lock", "adaptergit.lock", code=5)
    assert told.endswith(f"hint: adaptergit lock '{hub.url}@other'\n")


def test_what_is_no_package_says_what_it_is(source: Source, hub: Hub, tmp_path: Path, monkeypatch: Any) -> None:
    folder = source()
    assert f"name its folder: {folder}" in said("verify", str(folder / "card.yaml"), code=5)
    assert f"did you mean {folder}?" in said("verify", str(folder.parent), code=5)
    assert "publish signs the copy it writes to adapters/NAME in the clone" in said("verify", str(folder), code=5)
    publish(folder, clone=hub.clone, key=hub.key.path)
    assert f"did you mean {hub.clone / 'adapters' / 'sst2'}?" in said("verify", str(hub.clone), code=5)
    (tmp_path / "empty").mkdir()
    for command in (
        ["card", "validate"],
        ["verify"],
        ["publish", "--repo", str(hub.clone), "--key", str(hub.key.path)],
    ):
        told = said(*command, str(tmp_path / "empty"), code=5)
        assert "neither a package folder nor a checkpoint" in told
    git(tmp_path, "init", "-q", "--bare", "hub.git")
    monkeypatch.chdir(tmp_path)
    assert "a git repository: name an adapter in it, ./hub.git@adapter" in said("load", "hub.git", code=5)
    assert "for what lies here, write ./hub.git" in said("load", "hub.git@mood", code=2)
    assert f"name an adapter in it: {hub.url}@adapter" in said("lock", hub.url, code=2)
    assert f"name an adapter in it: {hub.url}@adapter" in said("export", hub.url, "out", "--to", "vllm", code=5)


@pytest.mark.parametrize(
    "url",
    ["https://git.example/me/adapters.git@mood", "git@git.example:me/adapters.git@mood", "me/adapters@mood",
     "file:///nowhere/hub.git@mood", "ssh://git@git.example/me/adapters@mood"],
)  # fmt: skip
def test_an_adapter_is_no_repository(url: str, hub: Hub, key: SigningKey, tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "fresh")
    clone = str(tmp_path / "fresh")
    for argv in (
        ["init", "--yes", "--repo", clone, "--key", str(key.path), "--remote-url", url],
        ["mirror", f"{hub.url}@sst2", "--to", url],
        ["index", "add", url, "--root", f"sha256:{'0' * 64}"],
        ["index", "submit", "--to", url, "--repo", str(hub.clone), "--key", str(hub.key.path)],
        ["index", "explain", url],
    ):
        told = said(*argv, code=2)
        assert "names an adapter, and no repository\n  hint: leave out what begins with its last @" in told, argv
    assert git(tmp_path / "fresh", "remote") == ""
    assert not (tmp_path / "me").exists()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("", "an empty text is no address"),
        ("github.com/me/adapters", "write https://github.com/me/adapters.git or git@github.com:me/adapters.git"),
        ("http://git.example/me/x", "plain http is allowed on loopback only"),
        ("./hub.git", "there is no such repository"),
        ("file:///nowhere.git", "git init --bare '/nowhere.git' makes one"),
    ],
)
def test_a_remote_is_one_that_others_can_fetch_from(url: str, told: str, key: SigningKey, tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "fresh")
    argv = ["init", "--yes", "--repo", str(tmp_path / "fresh"), "--key", str(key.path), "--remote-url", url]
    assert told in said(*argv, code=2)
    assert git(tmp_path / "fresh", "remote") == ""


@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_a_clone_that_is_behind_is_told_before_anything_is_pushed(
    dry: list[str], hub: Hub, source: Source, tmp_path: Path
) -> None:
    git(tmp_path, "clone", "-q", hub.url, "old")
    publish(source(), clone=hub.clone, key=hub.key.path)
    git(tmp_path, "init", "-q", "-b", git(hub.clone, "branch", "--show-current").strip(), "bare-start")
    git(tmp_path / "bare-start", "remote", "add", "origin", hub.url)
    for name in ("user.name", "user.email"):
        for clone in ("old", "bare-start"):
            git(tmp_path / clone, "config", name, "a@b.example")
    for clone in ("old", "bare-start"):
        other = source(b"other", version="1.1.0")
        argv = ["publish", str(other), "--repo", str(tmp_path / clone), "--key", str(hub.key.path), *dry]
        told = said(*argv, code=9)
        assert "of origin has commits that this clone has not" in told
        command = told.partition("hint: ")[2].partition(", then publish again")[0]
        subprocess.run(command, shell=True, check=True, capture_output=True)
        assert CliRunner().invoke(main, [*argv, "--dry-run"] if not dry else argv).exit_code == 0


def test_what_came_from_another_address_is_had_by_its_digest(hub: Hub, source: Source) -> None:
    done = publish(source(), clone=hub.clone, key=hub.key.path, repository="example.org/me/adapters")
    pin_key("example.org/me/adapters", hub.key.public.line)
    folder = (hub.server.root / "acme" / "adapters.git").as_uri()
    assert CliRunner().invoke(main, ["load", f"{folder}@sst2"]).exit_code == 0
    by_digest = f"example.org/me/adapters@sst2#sha256:{done.digest}"
    told = said("load", "example.org/me/adapters@sst2", "--offline", code=5)
    assert f"1.0.0 is stored, from another address, and is had by its digest: '{by_digest}'" in told
    assert CliRunner().invoke(main, ["load", by_digest, "--offline"]).exit_code == 0


def test_settings_that_name_no_index_are_told(home: Path) -> None:
    config = home / "config" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('index = "nofile.json"\n')
    told = said("search", "x", code=5)
    assert "which the settings name" in told
    assert 'mend index = "…" there' in told
    assert "there is no such index file" in CliRunner().invoke(main, ["doctor"]).stdout
    config.write_text('default_host = "x\n')
    assert "texts are in a pair of quotes" in said("search", "x", code=2)
    config.write_text("resolution_max_age = -5\n")
    assert "resolution_max_age is a number of seconds, from 0 on" in said("search", "x", code=2)


def test_small_things_are_said_as_they_are(hub: Hub, key: SigningKey, source: Source, tmp_path: Path) -> None:
    assert "None@" not in said("show", f"{(tmp_path / 'x.git').as_uri()}@mood", code=5)
    (tmp_path / "a.csv").write_text("a,b\n")
    assert "this is a file, and no folder" in said("publish", str(tmp_path / "a.csv"), code=5)
    assert "this is a file, and no folder" in said("init", "--repo", str(tmp_path / "a.csv"), code=2)
    assert "SHA256:xx: not a key's fingerprint" in said("index", "revoke", "SHA256:xx", "--reason", "x", code=2)
    told = said("publish", str(source()), "--repo", str(hub.clone), "--key", str(hub.key.path), "--remote", "orign")
    assert "did you mean 'origin'?" in told
    assert "--repo" in said("publish", str(source()), "--repo", str(tmp_path), code=2)
    argv = ["index", "init", str(tmp_path / "ix"), "--name", "ix", "--maintainer", str(key.path) + ".pub"]
    done = CliRunner().invoke(main, [*argv, "--online", str(key.path) + ".pub", "--key", str(key.path)])
    assert "a maintainer's key is the online one too" in done.stderr


# --- an eighth reader -------------------------------------------------------------------------------------------------


def test_an_index_of_the_settings_that_is_none_is_told_by_whoever_meets_it(home: Path) -> None:
    config = home / "config" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('index = "nope.json"\n')
    (config.parent / "nope.json").write_text("{bad")
    told = said("search", "x", code=3)
    assert f'the settings name it: mend index = "…" in {config}' in told
    assert "--index" not in told
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 1
    assert "nope.json" in done.stdout
    config.write_text(f'index = "{home}"\n')
    assert f"{home}: " in CliRunner().invoke(main, ["doctor"]).stdout


def test_a_key_that_no_card_has_is_taken_out_by_the_command_that_is_named(source: Source) -> None:
    path = source() / "card.yaml"
    path.write_text(path.read_text().replace("license:", "licence:"))
    told = said("card", "validate", str(path), code=3)
    command = shlex.split(told.partition("take it out: ")[2].replace("license=…", "license=MIT"))
    assert "--unset where a card has none of that name" in said("card", "edit", str(path), "license=MIT", code=3)
    assert CliRunner().invoke(main, command[1:]).exit_code == 0
    assert Card.from_yaml(path.read_bytes()).license == "MIT"
    assert "licence" not in path.read_text()
    assert "write another value for description" in said(
        "card", "edit", str(path), f"description={'x' * 70000}", code=3
    )
    path.write_text(path.read_text().replace("type: text", "kind: x\n  type: text"))
    assert "--unset task.kind" in said("card", "validate", str(path), code=3)
    assert CliRunner().invoke(main, ["card", "edit", str(path), "--unset", "task.kind"]).exit_code == 0
    assert "a card needs what was to be taken out" in said("card", "edit", str(path), "--unset", "license", code=3)
    path.write_text("")
    assert "bring back what it held" in said("card", "edit", str(path), "license=MIT", code=3)


def test_hints_that_did_not_mend(hub: Hub, home: Path, source: Source, tmp_path: Path) -> None:
    named = "leave out what begins with its last @"
    assert named in said("trust", "explain", "example.org/me/adapters@mood")
    argv = ["publish", str(source()), "--repo", str(hub.clone), "--key", str(hub.key.path)]
    assert named in said(*argv, "--repository", "example.org/me/adapters@mood")
    assert "'abc' is not a PEP 440 version" in said(*argv, "--version", "abc")
    assert "is not a PEP 440 version" in said("yank", "sst2", "==1.0.0", "--reason", "x", "--repo", str(hub.clone))
    told = said("init", "--repo", str(hub.clone), "--remote-url", "https://example.org/a/b.git", "--key", str(hub.key.path))  # fmt: skip
    assert f"git -C '{hub.clone}' remote set-url origin URL" in told
    lock = tmp_path / "d.lock"
    told = said("lock", "--upgrade", "--lock", str(lock))
    assert f"adaptergit lock 'org/repo@adapter' --lock '{lock}'" in told
    config = home / "config" / "config.toml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text('[[policy]]\nmatch = "*"\nlevel = "tofu"\nthreshold = 0\n')
    assert "write threshold = 1, or leave it out" in said("search", "x")
    config.write_text('default_host = "a.example"\ndefault_host = "b.example"\n')
    assert "write each setting once" in said("search", "x")


def test_a_release_asked_for_under_another_name_says_its_own(hub: Hub, source: Source) -> None:
    done = publish(source(), clone=hub.clone, key=hub.key.path)
    hub.trust()
    assert CliRunner().invoke(main, ["load", f"{hub.url}@sst2"]).exit_code == 0
    told = said("load", f"{hub.url}@other#sha256:{done.digest}", "--offline", code=4)
    assert "if 'sst2' is what you meant, ask for that" in told
    (package,) = (folder for folder in (cache_dir() / "packages").glob("*/*") if folder.is_dir())
    package.chmod(0o755)
    (package / "manifest.json").unlink()
    told = CliRunner().invoke(main, ["store", "verify"])
    assert "there is no manifest.json" in told.stdout
    assert "publish signs" not in told.stdout


def test_hints_that_led_in_circles(hub: Hub, home: Path, tmp_path: Path, source: Source, key: SigningKey) -> None:
    lone = tmp_path / "lone"
    (tmp_path / "lone.pub").write_text(key.public.line + "\n")
    assert f"sign with it (--key {lone}.pub)" in said("keygen", str(lone))
    told = said("publish", str(source()), "--repo", str(hub.clone), "--key", str(lone), code=5)
    assert f"if ssh-agent holds it: --key {lone}.pub" in told
    assert "name the one that signs now: --key PATH" in said("rotate", str(hub.key.path), "--repo", str(hub.clone))
    assert "ssh-keygen -lf FILE.pub" in said("trust", "revoke", str(lone), "--reason", "x")
    with pytest.raises(DataError) as refused:
        parse_rows("text,label\nschön,1\n".encode("latin-1"), ".csv", Path("standard input"))
    assert refused.value.hint == "send it through iconv -f latin1 -t utf-8"


def test_maintainers_are_told_what_is_missing(tmp_path: Path, key: SigningKey, other_key: SigningKey) -> None:
    online, folder = generate_key(tmp_path / "online"), tmp_path / "index"
    init = ["index", "init", str(folder), "--name", "mine", "--online", f"{online.path}.pub", "--key", str(key.path)]
    init += ["--maintainer", f"{key.path}.pub"]
    assert "--threshold is at most their number" in said(*init, "--threshold", "2")
    two = [*init[:2], str(tmp_path / "two"), *init[3:], "--maintainer", f"{other_key.path}.pub", "--threshold", "2"]
    assert CliRunner().invoke(main, two).exit_code == 0
    told = said("index", "rotate", "--repo", str(tmp_path / "two"), "--key", str(key.path))
    assert "hint: adaptergit index sign --root 1 --key" in told
    assert CliRunner().invoke(main, init).exit_code == 0
    there = ["--repo", str(folder), "--key", str(key.path)]
    for _ in range(2):
        rotated = CliRunner().invoke(main, ["index", "rotate", "--online", f"{other_key.path}.pub", *there])
        assert "; it counts" in rotated.stdout
    (folder / "roots" / "2.json").unlink()
    told = said("index", "rotate", *there)
    assert "roots/3.json is there, and roots/2.json is not" in told
    assert "git restore roots/2.json roots/2.json.sig" in told
    assert CliRunner().invoke(main, ["index", "check", "--repo", str(folder)]).exit_code != 0


def test_arguments_of_other_kinds_are_refused_in_words(tmp_path: Path) -> None:
    panel = adaptergit.adapters(tiny_model())
    panel.add("a")
    for call in (
        lambda: adaptergit.search(None),  # type: ignore[arg-type]
        lambda: adaptergit.evaluate(tmp_path, None),  # type: ignore[arg-type]
        lambda: adaptergit.evaluate(tmp_path, [{}]),  # type: ignore[arg-type]
        lambda: publish(None),  # type: ignore[arg-type]
        lambda: panel.save("a", None),
        lambda: adaptergit.predict(tmp_path, texts=(one for one in "ab")),  # type: ignore[arg-type]
    ):
        with pytest.raises(UsageError, match=r"must be a path|are a text|are a list of strings"):
            call()


def test_nothing_is_converted_into_what_it_is_made_of(tmp_path: Path) -> None:
    panel = adaptergit.adapters(tiny_model())
    panel.add("a")
    panel.save("a", tmp_path / "a")
    with pytest.raises(UsageError, match="the target lies inside the source"):
        adaptergit.convert(tmp_path / "a", tmp_path / "a" / "sub", to="adapterhub", base=tiny_model())
    assert {one.name for one in (tmp_path / "a").iterdir()} == {"card.yaml", "adapter.safetensors"}


def test_of_signs_alone_nothing_is_found(hub: Hub, source: Source, tmp_path: Path) -> None:
    publish(source(), clone=hub.clone, key=hub.key.path)
    hub.trust()
    file = tmp_path / "index.json"
    assert CliRunner().invoke(main, ["index", "list", str(file), f"{hub.url}@sst2"]).exit_code == 0
    assert [one.name for one in adaptergit.search("", index=file)] == ["sst2"]
    assert adaptergit.search("!!!", index=file) == []
    assert adaptergit.search("\N{GRINNING FACE}", index=file) == []
