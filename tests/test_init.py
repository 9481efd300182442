"""``init``: what it asks on a terminal, what it takes as options, and that it does all of it or nothing."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import snapshot

from adaptergit.errors import UsageError
from adaptergit.prepare import Purpose, initialise, usable_keys
from adaptergit.publish import push_source
from adaptergit.settings import config_dir
from adaptergit.trust import generate_key

fcntl, pty, termios = (pytest.importorskip(name) for name in ("fcntl", "pty", "termios"))  # Windows has none

URL = "https://github.com/acme/adapters.git"
FILES = {".gitattributes", ".adaptergit/allowed_signers"}


@pytest.fixture
def clone(tmp_path: Path, home: Path) -> Path:
    folder = tmp_path / "clone"
    subprocess.run(["git", "init", "-q", "-b", "main", str(folder)], check=True)
    return folder


def files(clone: Path) -> set[str]:
    return {path.relative_to(clone).as_posix() for path in clone.rglob("*") if path.is_file() and ".git/" not in path.as_posix()}  # fmt: skip


def remote(clone: Path) -> str:
    done = subprocess.run(["git", "remote", "-v"], cwd=clone, capture_output=True, text=True, check=True)
    return done.stdout.split("\t")[1].split(" ")[0] if done.stdout else ""


class Terminal:
    """A person at a terminal."""

    def __init__(self, clone: Path, *argv: str) -> None:
        self._main, side = pty.openpty()
        command = [sys.executable, "-m", "adaptergit", "init", *argv]
        self._process = subprocess.Popen(
            command, cwd=clone, stdin=side, stdout=side, stderr=side, start_new_session=True, preexec_fn=self._sit_down,
        )  # fmt: skip
        os.close(side)
        self.seen = ""

    @staticmethod
    def _sit_down() -> None:
        """What is started in the background ignores Ctrl-C; what a person starts at a terminal does not."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def reads(self, text: str) -> None:
        """Wait until something is shown."""
        while text not in self.seen:
            if not self._more():
                raise AssertionError(f"{text!r} was not shown, but {self.seen!r}")

    def types(self, text: str) -> None:
        self.seen = ""
        os.write(self._main, text.encode())

    def answers(self, question: str, answer: str = "") -> None:
        self.reads(question)
        self.types(f"{answer}\n")

    def interrupts(self) -> int:
        """Press Ctrl-C until it is heard: a signal just before Python waits for a line is seen only after the line."""
        self.seen = ""
        while self._process.poll() is None:
            os.write(self._main, b"\x03")
            while select.select([self._main], [], [], 1)[0] and self._more():
                pass
        return self.ends()

    def ends(self) -> int:
        while self._more():
            pass
        os.close(self._main)
        return self._process.wait()

    def _more(self) -> bool:
        select.select([self._main], [], [])
        try:
            data = os.read(self._main, 4096)
        except OSError:  # how a terminal ends
            return False
        self.seen += data.decode()
        return bool(data)


def test_a_person_is_asked_and_enter_takes_the_defaults(clone: Path) -> None:
    person = Terminal(clone)
    person.reads("1  a new key")
    person.answers("Key to sign with [1]")
    person.answers("Remote to push to, a URL [none]", URL)
    person.answers("What the adapters are for, in a sentence [none]", "Sentiment of films.")
    person.answers("Base model that most of them are for [none]", "google-bert/bert-base-uncased")
    person.answers("Licence, an SPDX expression [Apache-2.0]")
    assert person.ends() == 0
    assert files(clone) == {*FILES, "README.md"}
    assert remote(clone) == URL
    text = (clone / "README.md").read_text()
    for part in ("# adapters\n", "Sentiment of films.", "`google-bert/bert-base-uncased`", "Apache-2.0", '"github.com/acme/adapters@NAME"'):  # fmt: skip
        assert part in text
    public = (config_dir() / "signing_key.pub").read_text().split()[1]
    assert public in (clone / ".adaptergit/allowed_signers").read_text()


def test_an_answer_that_will_not_do_is_asked_for_again(clone: Path) -> None:
    person = Terminal(clone, "--new-key", "--remote-url", URL)
    person.answers("What the adapters are for", "Films.")
    person.answers("Base model")
    person.answers("Licence", "my own")
    person.reads("is not an SPDX expression")
    person.answers("Licence", "MIT")
    assert person.ends() == 0
    assert "Licence: MIT" in (clone / "README.md").read_text()


def test_a_key_of_ssh_is_offered_and_publishing_is_told_to_name_it(clone: Path, home: Path) -> None:
    key = generate_key(home / ".ssh" / "id_ed25519")
    (home / ".ssh" / "broken.pub").write_text("no key")
    assert [one.path for one in usable_keys(home)] == [key.path]
    person = Terminal(clone)
    person.reads(key.public.fingerprint)
    for wrong in ("7", "key"):
        person.answers("Key to sign with [2]", wrong)
        person.reads("Error: a number from 1 to 2")
    person.answers("Key to sign with [2]", "1")
    for question in ("Remote", "What", "Base model"):
        person.answers(question)
    assert person.ends() == 0
    assert f"--key {key.path}" in person.seen.replace("\r\n", "")
    assert key.public.line.split()[1] in (clone / ".adaptergit/allowed_signers").read_text()
    assert not config_dir().exists()
    assert files(clone) == FILES


def test_what_the_clone_has_is_not_asked_for(clone: Path) -> None:
    generate_key(config_dir() / "signing_key")
    initialise(clone, remote_url=URL, purpose=Purpose("Films."))
    person = Terminal(clone)
    assert person.ends() == 0
    assert "nothing to do" in person.seen
    assert "[" not in person.seen


@pytest.mark.parametrize("questions", [0, 1, 3])
def test_an_interrupt_leaves_nothing_half_done(clone: Path, home: Path, questions: int) -> None:
    before, at_home = snapshot(clone), snapshot(home)
    person = Terminal(clone)
    asked = ["Key", "Remote", "What the adapters", "Base model"]
    for question in asked[:questions]:
        person.answers(question, {"Remote": URL, "What the adapters": "x"}.get(question, ""))
    person.reads(asked[questions])
    assert person.interrupts() == 130
    assert "interrupted" in person.seen
    assert snapshot(clone) == before
    assert snapshot(home) == at_home


@pytest.mark.parametrize("flags", [("--yes",), ("--json",)])
def test_a_terminal_is_not_asked_if_it_does_not_want_to_be(clone: Path, flags: tuple[str, ...]) -> None:
    person = Terminal(clone, "--new-key", *flags)
    assert person.ends() == 0
    assert "[none]" not in person.seen
    assert files(clone) == FILES


def test_without_a_terminal_options_say_everything(clone: Path) -> None:
    options = ["--new-key", "--remote-url", URL, "--purpose", "Films.", "--license", "MIT", "--json"]
    command = [sys.executable, "-m", "adaptergit", "init", *options]
    done = subprocess.run(command, cwd=clone, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    names = [Path(path).name for path in json.loads(done.stdout)["written"]]
    assert names == ["signing_key", ".gitattributes", "allowed_signers", "README.md"]
    assert remote(clone) == URL


@pytest.mark.parametrize(
    ("url", "principal"),
    [
        ("git@github.com:acme/adapters.git", "github.com/acme/adapters"),
        (URL, "github.com/acme/adapters"),
        ("bare", None),
    ],
)
def test_a_remote_by_ssh_tells_the_public_name_and_a_folder_none(
    clone: Path, home: Path, url: str, principal: str | None
) -> None:
    (clone / "bare").mkdir()
    initialise(clone, new_key=True, remote_url=url, purpose=Purpose("Films."))
    found = push_source(url, clone)
    assert found.principal == principal
    assert found.url == ((clone / "bare").resolve().as_uri() if url == "bare" else url)
    assert (f'"{principal}@NAME"' in (clone / "README.md").read_text()) is (principal is not None)


def test_what_goes_wrong_takes_back_what_was_done(clone: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clone / ".gitattributes").write_text("*.png binary\n")
    before, at_home = snapshot(clone), {name for name in snapshot(home) if "signing_key" in name}
    from adaptergit import prepare

    real = prepare.replace_file

    def interrupted(path: Path, data: bytes) -> None:
        if path.name == "README.md":
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        real(path, data)

    monkeypatch.setattr(prepare, "replace_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        initialise(clone, new_key=True, remote_url=URL, purpose=Purpose("Films."))
    after = snapshot(clone)
    assert {name: data for name, data in after.items() if not name.startswith(".git/")} == {
        name: data for name, data in before.items() if not name.startswith(".git/")
    }
    assert remote(clone) == ""
    assert {name for name in snapshot(home) if "signing_key" in name} == at_home


def test_what_cannot_be_done_is_refused_before_anything_is(clone: Path, home: Path) -> None:
    before, at_home = snapshot(clone), snapshot(home)
    with pytest.raises(UsageError, match="no signing key"):
        initialise(clone)
    with pytest.raises(UsageError, match="SPDX"):
        initialise(clone, new_key=True, purpose=Purpose("x", "", "my own"))
    with pytest.raises(UsageError, match="one line"):
        initialise(clone, new_key=True, purpose=Purpose("x\ny"))
    for wrong, why in (
        ("no url", "not a repository"),
        ("acme/adapters", "no URL to git"),
        ("https://me:secret@github.com/a/b", "credentials"),
    ):
        with pytest.raises(UsageError, match=why):
            initialise(clone, new_key=True, remote_url=wrong)
    assert snapshot(clone) == before
    assert snapshot(home) == at_home
    initialise(clone, new_key=True, remote_url=URL, purpose=Purpose("x"))
    with pytest.raises(UsageError, match="never overwritten"):
        initialise(clone, new_key=True)
    with pytest.raises(UsageError, match="remote already"):
        initialise(clone, remote_url="https://github.com/acme/others.git")
    with pytest.raises(UsageError, match="README already"):
        initialise(clone, purpose=Purpose("y"))
    assert initialise(clone, remote_url=URL) == []
