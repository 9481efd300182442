"""Wrong turns that people took, each mended by its message alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import Hub, tiny_model

import adaptergit
from adaptergit.cli import main
from adaptergit.errors import NotFoundError, PackageError, ReleaseError, TransportError, TrustError, UsageError
from adaptergit.git import Clone
from adaptergit.pins import known_signers, pin_key, unpin
from adaptergit.prepare import initialise
from adaptergit.publish import publish
from adaptergit.rotate import rotate
from adaptergit.settings import load_settings
from adaptergit.store.lockfile import read_lock
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
    assert "delete it and write it anew" in str(damaged.value.hint)
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
