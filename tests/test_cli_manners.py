"""How the command line behaves whatever the command: near misses, quiet and verbose, colours, completion."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from conftest import Hub, tiny_model

import adaptergit
from adaptergit.cli import _ALIASES, _COMMANDS, main
from adaptergit.cli.groups import Group
from adaptergit.cli.output import Rate
from adaptergit.durable import disk_errors
from adaptergit.errors import NotFoundError, ReleaseError, StorageError, TransportError, UsageError
from adaptergit.progress import Progress
from adaptergit.publish import publish, yank
from adaptergit.rotate import rotate
from adaptergit.splice import adapters
from adaptergit.trust import SigningKey

Source = Callable[..., Path]
COMMAND = [sys.executable, "-m", "adaptergit"]


def said(*argv: str) -> str:
    result = CliRunner().invoke(main, list(argv))
    assert result.exit_code == 2
    return result.stderr.splitlines()[-1]


# --- near misses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "meant"),
    [
        (["publsh"], "Did you mean 'publish'?"),
        (["VERIFY"], "Did you mean 'verify'?"),
        (["index", "ad"], "Did you mean 'add'?"),
        (["trust", "revok"], "Did you mean 'revoke'?"),
        (["card", "rendr"], "Did you mean 'render'?"),
        (["store", "prun"], "Did you mean 'prune'?"),
        (["bundle", "exprt"], "Did you mean 'export'?"),
        (["prune"], "Did you mean 'store prune'?"),
        (["ls"], "Did you mean 'index ls' or 'store ls' or 'trust ls'?"),
        (["push"], "Did you mean 'publish'?"),
        (["-q", "downlod"], "No such command 'downlod'."),
        (["load", "a/b@c", "--refrsh"], "--refresh"),
    ],
)
def test_a_misspelt_command_is_recognised(argv: list[str], meant: str) -> None:
    assert meant.replace("'", "") in said(*argv).replace("'", "")


def test_nothing_is_suggested_for_what_is_like_nothing() -> None:
    assert said("xyzzy") == "Error: No such command 'xyzzy'."


def test_every_group_and_every_alias_is_real() -> None:
    for name in _COMMANDS:
        command = main.get_command(click.Context(main), name)
        assert isinstance(command, Group) is isinstance(command, click.Group)
    assert set(_ALIASES.values()) <= set(_COMMANDS)
    assert not set(_ALIASES) & set(_COMMANDS)


def test_a_misspelt_adapter_of_a_repository_is_recognised(hub: Hub, source: Source) -> None:
    publish(source(), clone=hub.clone, key=hub.key.path)
    publish(source(folder="b", name="ner-german"), clone=hub.clone, key=hub.key.path)
    hub.trust()
    with pytest.raises(NotFoundError, match="did you mean 'sst2'"):
        adaptergit.fetch(f"{hub.url}@sst")
    with pytest.raises(NotFoundError, match="it has ner-german, sst2"):
        adaptergit.resolve(f"{hub.url}@qa")


def test_a_misspelt_adapter_to_yank_is_recognised_and_versions_are_named(hub: Hub, source: Source) -> None:
    for version in ("1.0.0", "1.9.0", "1.10.0"):
        publish(source(version.encode()), clone=hub.clone, key=hub.key.path, version=version)
    with pytest.raises(ReleaseError, match="did you mean 'sst2'"):
        yank("sst", "1.0.0", reason="x", clone=hub.clone)
    with pytest.raises(ReleaseError, match="it has sst2"):
        yank("unlike", "1.0.0", reason="x", clone=hub.clone)
    with pytest.raises(ReleaseError, match=r"released: 1\.0\.0, 1\.9\.0, 1\.10\.0"):
        yank("sst2", "2.0.0", reason="x", clone=hub.clone)


def test_misspelt_names_in_a_panel_and_in_a_config_string_are_recognised() -> None:
    panel = adapters(tiny_model("bert"))
    panel.add("german", "seq_bn")
    with pytest.raises(UsageError, match="did you mean 'german'"):
        panel.active = "germn"
    with pytest.raises(UsageError, match="adapters: german"):
        panel.active = "x"
    with pytest.raises(UsageError, match="did you mean 'seq_bn'"):
        panel.add("b", "seqbn")
    with pytest.raises(UsageError, match="did you mean 'reduction_factor'"):
        panel.add("b", "seq_bn[reduction_facter=4]")


def test_a_misspelt_setting_is_recognised(home: Path) -> None:
    (home / "config").mkdir()
    (home / "config" / "config.toml").write_text("[base_model]\n")
    assert "did you mean 'base_models'" in CliRunner().invoke(main, ["load", "a/b@c"]).stderr


def test_what_train_lacks_is_named_with_what_to_write(tmp_path: Path) -> None:
    data = tmp_path / "train.tsv"
    data.write_text("text\tlabel\n")
    lacking = CliRunner().invoke(main, ["train", "--base", "x", "--train", str(data)])
    assert lacking.exit_code == 2
    assert "hint: name held-out examples with --eval dev.csv, or a file of runs with --runs" in lacking.stderr
    nowhere = CliRunner().invoke(main, ["train", "--base", "x", "--train", str(tmp_path / "nowhere.tsv")])
    assert nowhere.exit_code == 5
    assert "nowhere.tsv: no such file" in nowhere.stderr


def test_eval_takes_its_file_under_the_name_that_predict_has() -> None:
    said = CliRunner().invoke(main, ["eval", "nowhere", "--file", "dev.tsv"])
    assert said.exit_code == 5
    assert "No such option" not in said.stderr


# --- hints ------------------------------------------------------------------------------------------------------------


def test_offline_and_refresh_contradict_each_other(hub: Hub, source: Source) -> None:
    publish(source(), clone=hub.clone, key=hub.key.path)
    hub.trust()
    adaptergit.fetch(f"{hub.url}@sst2")
    for run in (adaptergit.fetch, adaptergit.resolve):
        with pytest.raises(UsageError, match="contradict each other"):
            run(f"{hub.url}@sst2", refresh=True, offline=True)


def test_where_nothing_can_be_stored_what_is_stored_is_pointed_at(
    hub: Hub, source: Source, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(source(), clone=hub.clone, key=hub.key.path)
    hub.trust()
    monkeypatch.setenv("ADAPTERGIT_CACHE_DIR", str(small_disk))
    adaptergit.fetch(f"{hub.url}@sst2")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StorageError, match="--offline, or offline=True, loads what is stored"):
        adaptergit.fetch(f"{hub.url}@sst2", refresh=True)
    assert adaptergit.fetch(f"{hub.url}@sst2", offline=True).version == "1.0.0"


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (
            ["index", "add", "/no/such/folder/", "--root", "sha256:" + "0" * 64],
            "/no/such/folder/: there is no such folder",
        ),
        (["index", "add", "dist"], "its maintainers tell it"),
        (["card", "edit", "out/missing", "license=MIT"], "name a card.yaml, or the folder it lies in"),
        (["card", "edit", ".", "license=MIT"], "neither a package folder nor a checkpoint"),
        (["publish", "out/missing"], "name the folder that 'adaptergit train' wrote"),
        (["load", "file:///tmp/missing.git"], "name an adapter in it: file:///tmp/missing.git@adapter"),
        (["load", "https://github.com/a/b"], "name an adapter in it: https://github.com/a/b@adapter"),
        (["load", "file:///tmp/missing.git@x"], "check the address"),
        (
            ["index", "add", "http://127.0.0.1:1/", "--root", "sha256:" + "0" * 64],
            "check the address and the network",
        ),
        (["card", "make", "nofolder"], "nofolder: no such folder"),
        (["convert", "nofolder", "out", "--to", "peft"], "nofolder: no such file or folder"),
    ],
)
def test_an_error_says_what_to_do(argv: list[str], hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hint in CliRunner().invoke(main, argv).stderr


def test_what_an_error_says_of_a_clone_and_its_keys(hub: Hub, source: Source, other_key: SigningKey) -> None:
    def error(*argv: object) -> str:
        done = CliRunner().invoke(main, [*map(str, argv)])
        assert done.exit_code != 0
        return done.stderr

    folder, clone = source(), ("--repo", hub.clone)
    publish(folder, clone=hub.clone, key=hub.key.path)
    hub.trust()
    released = hub.clone / "adapters" / "sst2"
    (released / "card.yaml").write_text("x")
    assert f"git restore {released}/card.yaml, or publish the folder as a new" in error("verify", released)
    assert f"hint: git -C '{hub.clone}' remote add upstream URL" in error(
        "publish", folder, *clone, "--remote", "upstream"
    )
    rotate(other_key.path, key=hub.key.path, clone=hub.clone)
    named = f"name the file of a key that counts with --key: the one of {other_key.public.fingerprint}"
    assert named in error("publish", folder, *clone, "--key", hub.key.path, "--version", "2.0.0")
    (folder / "card.yaml").unlink()
    assert "weights alone do not say what they are of" in error("publish", folder, *clone)
    said = error("trust", "add", "a.example/b/c", other_key.path)
    assert "this is a private key" in said
    assert "BEGIN" not in said


def test_a_dry_run_tells_no_digest_that_will_be_another(hub: Hub, source: Source) -> None:
    argv = ["publish", str(source()), "--repo", str(hub.clone), "--key", str(hub.key.path), "--dry-run"]
    text = CliRunner().invoke(main, argv)
    assert text.stdout.splitlines()[-1] == f"would publish {hub.url}@sst2==1.0.0"
    assert "sha256" not in text.stderr
    told = json.loads(CliRunner().invoke(main, [*argv, "--json"]).stdout)
    assert (told["digest"], told["reference"]) == ("", f"{hub.url}@sst2==1.0.0")


def test_a_second_key_in_one_place_is_refused_with_what_to_do() -> None:
    assert CliRunner().invoke(main, ["keygen"]).exit_code == 0
    again = CliRunner().invoke(main, ["keygen"])
    assert again.exit_code == 2
    assert "hint: sign with it (--key" in again.stderr


@pytest.mark.parametrize("room", [0, 4096])  # bytes: for no file, for the private key only
def test_a_key_for_which_there_is_no_room_leaves_nothing(small_disk: Path, room: int) -> None:
    (small_disk / "full").write_bytes(b"x" * (shutil.disk_usage(small_disk).free - room))
    full = CliRunner().invoke(main, ["keygen", str(small_disk / "signing_key")])
    assert (full.exit_code, sorted(small_disk.iterdir())) == (StorageError.exit_code, [small_disk / "full"])
    assert f"{small_disk / 'signing_key'}: cannot write to the key: No space left on device" in full.stderr
    assert "free some space" in full.stderr
    (small_disk / "full").unlink()
    assert CliRunner().invoke(main, ["keygen", str(small_disk / "signing_key")]).exit_code == 0


def test_permission_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    for number, hint in ((errno.EACCES, "look at who may write there, or x"), (errno.ENOSPC, "free some space, or x")):
        with pytest.raises(StorageError) as caught, disk_errors("the store", tmp_path, "free some space, or x"):
            raise OSError(number, os.strerror(number))
        assert caught.value.hint == hint


def test_a_repository_that_is_not_there_is_hinted_at(hub: Hub, tmp_path: Path) -> None:
    for url in (hub.url.replace("adapters", "nothing"), (tmp_path / "nothing.git").as_uri()):
        with pytest.raises(TransportError, match="check the address"):
            adaptergit.fetch(f"{url}@sst2")


def test_a_push_to_a_repository_of_the_other_object_format_says_so(tmp_path: Path) -> None:
    from adaptergit.git.pushing import push
    from adaptergit.git.runner import Git

    subprocess.run(["git", "init", "-q", "--bare", "--object-format=sha256", tmp_path / "bare"], check=True)
    subprocess.run(["git", "init", "-q", tmp_path / "clone"], check=True)
    subprocess.run(["git", "-C", tmp_path / "clone", "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    with pytest.raises(TransportError, match="SHA-256"):
        push(Git(tmp_path / "clone", trusted=True), str(tmp_path / "bare"), ["HEAD:refs/heads/main"])


# --- quiet, verbose ---------------------------------------------------------------------------------------------------


def test_quiet_leaves_the_result_alone(hub: Hub, source: Source) -> None:
    publish(source(), clone=hub.clone, key=hub.key.path)
    hub.trust()
    CliRunner().invoke(main, ["load", f"{hub.url}@sst2"])  # from here on it is in the store
    loud = CliRunner().invoke(main, ["load", f"{hub.url}@sst2"])
    quiet = CliRunner().invoke(main, ["--quiet", "load", f"{hub.url}@sst2"])
    assert "found in the store" not in quiet.stderr
    assert loud.stderr
    assert quiet.stdout == loud.stdout
    assert "error: " in CliRunner().invoke(main, ["-q", "info", "nowhere"]).stderr


@pytest.mark.parametrize("option", ["-q", "--quiet", "-v", "--verbose"])
def test_a_switch_means_the_same_before_and_behind_a_command(option: str, home: Path) -> None:
    for command in (["info", "nowhere"], ["store", "ls"], ["index", "ls"]):
        before, behind = (CliRunner().invoke(main, argv) for argv in ([option, *command], [*command, option]))
        assert (before.exit_code, before.stdout) == (behind.exit_code, behind.stdout)
        traced = [one for one in (before, behind) if "Traceback" in one.stderr]
        assert len(traced) == (2 if "-v" in option and command[0] == "info" else 0)
    assert "did you mean" in said("info", "nowhere", "--qiet").lower() or "--qiet" in said("info", "nowhere", "--qiet")


def test_json_is_answered_wherever_it_is_asked_for(home: Path) -> None:
    for argv in (["--json", "store", "ls"], ["store", "ls", "--json"], ["-q", "--json", "store", "ls"]):
        command = [sys.executable, "-m", "adaptergit", *argv]
        assert json.loads(subprocess.run(command, capture_output=True, check=True).stdout) == {"packages": []}


def test_verbose_says_where_an_error_comes_from() -> None:
    plain = CliRunner().invoke(main, ["info", "nowhere"])
    verbose = CliRunner().invoke(main, ["-v", "info", "nowhere"])
    assert "Traceback" not in plain.stderr
    assert "Traceback" in verbose.stderr
    assert "local.py" in verbose.stderr
    assert verbose.stderr.endswith(plain.stderr)
    assert verbose.exit_code == plain.exit_code == 5


# --- colours ----------------------------------------------------------------------------------------------------------


def on_a_terminal(*argv: str, **variables: str) -> str:
    """Run with a terminal for stdout and stderr, and return what it was sent."""
    pty = pytest.importorskip("pty")
    outer, inner = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    process = subprocess.Popen(
        [*COMMAND, *argv], stdout=inner, stderr=inner, stdin=inner, env={**environment, "TERM": "xterm", **variables}
    )
    os.close(inner)
    sent = b""
    while True:
        try:
            block = os.read(outer, 1 << 16)
        except OSError:  # the other side is closed
            break
        if not block:
            break
        sent += block
    os.close(outer)
    process.wait()
    return sent.decode()


def test_colours_are_for_terminals_and_for_those_who_want_them() -> None:
    assert "\x1b[31m" in on_a_terminal("info", "nowhere")
    assert "\x1b[3" not in on_a_terminal("info", "nowhere", NO_COLOR="1")
    assert "\x1b" not in CliRunner().invoke(main, ["info", "nowhere"]).stderr


# --- completion -------------------------------------------------------------------------------------------------------


@pytest.fixture
def program(tmp_path: Path) -> dict[str, str]:
    """An environment in which adaptergit is on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "adaptergit").write_text(f'#!/bin/sh\nexec {sys.executable} -m adaptergit "$@"\n')
    (folder / "adaptergit").chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("adaptergit pub", {"publish"}),
        ("adaptergit card ", {"make", "edit", "validate", "render"}),
        ("adaptergit export x y --to ", {"vllm", "peft", "adapterhub"}),
        ("adaptergit load --off", {"--offline"}),
    ],
)
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_options_and_values(program: dict[str, str], line: str, wanted: set[str]) -> None:
    script = (
        'eval "$(adaptergit completion bash)"\n'
        f"COMP_WORDS=({line.rstrip()}{' ' + chr(39) * 2 if line.endswith(' ') else ''})\n"
        "COMP_CWORD=$((${#COMP_WORDS[@]} - 1))\n"
        "_adaptergit_completion adaptergit\nprintf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(["bash", "-c", script], env=program, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == wanted, done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_every_shell(shell: str) -> None:
    done = CliRunner().invoke(main, ["completion", shell])
    assert "_ADAPTERGIT_COMPLETE" in done.stdout
    found = json.loads(CliRunner().invoke(main, ["completion", shell, "--json"]).stdout)
    assert found == {"shell": shell, "script": done.stdout.removesuffix("\n")}
    if (path := shutil.which(shell)) is not None and shell != "fish":
        subprocess.run([path, "-n"], input=done.stdout, text=True, check=True)
    assert "'powershell'" in said("completion", "powershell")


def test_a_download_says_how_fast_it_is_and_how_long_it_will_take() -> None:
    rate = Rate()

    def told(done: int, total: int | None, now: float) -> str:
        return rate.told(Progress("a server", done, total), now)

    assert told(0, 4_000_000, 10.0) == "0.0 of 4.0 MB"
    assert told(1_000_000, 4_000_000, 11.0) == "1.0 of 4.0 MB, 1.0 MB/s, 3 s left"
    assert told(1_000_000, None, 11.0) == "1.0 MB, 1.0 MB/s"
    for second in range(12, 30):
        told(1_000_000, 4_000_000, float(second))
    assert told(1_000_000, 4_000_000, 30.0) == "1.0 of 4.0 MB"  # it stands still, and nobody knows for how long
    assert told(10, 100, 31.0) == "0.0 of 0.0 MB"  # the next file


def test_what_is_no_download_is_counted() -> None:
    rate = Rate()
    assert rate.told(Progress("diff", 0, 1200, "tensors"), 1.0) == "0 of 1,200 tensors"
    assert rate.told(Progress("diff", 400, 1200, "tensors"), 3.0) == "400 of 1,200 tensors, 200 tensors/s, 4 s left"


def test_on_a_narrow_terminal_the_note_gives_way_not_the_numbers() -> None:
    script = (
        "from adaptergit.cli.output import progress\n"
        "with progress() as bar:\n"
        "    bar('training sst2-seq_bn', 1200, 1234, 'loss 0.4312, dev accuracy 0.9123, and more of it')\n"
    )
    narrow = os.environ | {"COLUMNS": "80", "TTY_COMPATIBLE": "1", "TERM": "xterm"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=narrow, check=True)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", done.stderr)
    drawn = [line.rstrip() for line in re.split(r"[\r\n]+", plain) if line.strip()]
    assert "1200/1234" in drawn[-1]
    assert drawn[-1].endswith("…")
    assert max(map(len, drawn)) <= 80
