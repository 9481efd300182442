"""The command line, as people and scripts run it."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from conftest import Hub, snapshot

from adaptergit import errors
from adaptergit.cli import _COMMANDS, main
from adaptergit.publish import publish
from adaptergit.settings import cache_dir

Source = Callable[..., Path]
GROUPS = {"index": ["add"], "trust": ["add", "ls", "remove", "revoke", "explain"], "bundle": ["export", "import"]}
GROUPS["card"] = ["make", "edit", "validate", "render"]
GROUPS["store"] = ["ls", "du", "verify", "prune"]
LEAVES = [[name] for name in _COMMANDS if name not in GROUPS] + [
    [g, name] for g, names in GROUPS.items() for name in names
]


def run(*argv: str, code: int = 0, cwd: Path | None = None) -> str:
    """Run in a process of its own, as a person does; no traceback ever."""
    done = subprocess.run(
        [sys.executable, "-m", "adaptergit", *argv], capture_output=True, text=True, check=False, cwd=cwd
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr + done.stdout


@pytest.mark.parametrize("command", LEAVES, ids=" ".join)
def test_every_command_explains_itself_with_an_example(command: list[str]) -> None:
    result = CliRunner().invoke(main, [*command, "--help"])
    assert result.exit_code == 0
    assert f"adaptergit {command[0]}" in result.output.split("Example:")[1]
    assert "--json" in result.output


def test_every_listed_command_exists_and_help_lists_it() -> None:
    listing = CliRunner().invoke(main, ["--help"]).output
    for name in _COMMANDS:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        assert command.help
        assert f"  {name} " in listing


def test_exit_codes_are_documented_where_people_look() -> None:
    text = CliRunner().invoke(main, ["--help"]).output
    codes = {
        c.exit_code for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.AdaptergitError)
    }
    assert codes == set(range(1, 10))
    assert all(f"{code} " in text for code in codes)


@pytest.mark.slow
def test_from_keygen_to_search(hub: Hub, source: Source, tmp_path: Path) -> None:
    key = json.loads(run("keygen", "--comment", "me", "--json"))
    assert Path(key["path"]).exists()
    run("init", cwd=hub.clone)
    hub.git("add", "-A")
    hub.git("commit", "-qm", "init")
    plan = json.loads(run("publish", str(source()), "--dry-run", "--json", cwd=hub.clone))
    assert plan["dry_run"]
    published = json.loads(run("publish", str(source()), "--json", cwd=hub.clone))
    assert "released already" in run("publish", str(source()), code=9, cwd=hub.clone)
    reference = f"{hub.url}@sst2"

    assert "nobody you know" in run("load", reference, code=4)
    refused = json.loads(run("load", reference, "--json", code=4))
    assert refused["error"]["type"] == "TrustError"
    run("trust", "add", "127.0.0.1/acme/*", key["public_key"])
    assert key["fingerprint"] in run("trust", "ls")
    loaded = json.loads(run("load", reference, "--json"))
    assert loaded["verdict"]["digest"] == published["digest"]
    assert loaded["card"]["name"] == "sst2"
    assert "accepted" in run("verify", reference)
    assert "accepted" in run("verify", loaded["path"])
    assert "Apache-2.0" in run("info", reference, "--offline")

    index = tmp_path / "index.json"
    run("index", "list", str(index), reference)
    before = index.read_bytes()
    run("index", "list", str(index), reference)
    assert index.read_bytes() == before
    found = json.loads(run("search", "sst2", "--index", str(index), "--json"))
    assert [e["id"] for e in found["entries"]] == ["127.0.0.1/acme/adapters@sst2"]
    assert json.loads(run("search", "nothing", "--index", str(index), "--json")) == {"entries": []}
    assert json.loads(run("search", "--method", "seq", "--base-model", "tiny", "--index", str(index), "--json"))[
        "entries"
    ]
    hub.server.reset()
    assert "fetched" in run("load", reference, "--index", str(index), "--refresh") or hub.server.traffic.requests
    run("trust", "remove", key["fingerprint"])
    run("load", reference, code=4)


@pytest.mark.slow
def test_verify_says_how_far_it_came(hub: Hub, source: Source, tmp_path: Path) -> None:
    hub.trust()
    publish(source(), clone=hub.clone, key=hub.key.path)
    folder = hub.clone / "adapters" / "sst2"
    assert "files are exactly those" in run("verify", str(folder))
    assert "files are exactly those" in json.loads(run("verify", str(folder), "--json"))["steps"][-1]
    public = tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{public}.key"], check=True
    )
    subprocess.run(
        ["openssl", "ec", "-in", f"{public}.key", "-pubout", "-out", str(public)], check=True, capture_output=True
    )
    said = run("verify", str(folder), "--model-signing-key", str(public), code=4)
    assert "  ok  3 files are exactly those" in said
    assert "  no  there is no model.sig" in said
    weights = folder / "adapter.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"X")
    said = run("verify", str(folder), code=3)
    assert f"valid signature by ssh-ed25519 {hub.key.public.fingerprint}" in said
    assert "  no  the file was changed" in said
    refused = json.loads(run("verify", str(folder), "--json", code=3))["error"]
    assert any("valid signature" in step for step in refused["passed"])


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["nonsense"], 2), (["load"], 2), (["load", "acme"], 5), (["load", "acme/adapters@BAD"], 2), (["load", "a/b@c#sha256:12"], 2),
        (["load", "a/b@c", "--policy", "maybe"], 2), (["load", "http://example.org/a/b@c"], 2), (["load", "a/b@c", "--offline"], 5),
        (["load", "http://127.0.0.1:1/a/b.git@c"], 6), (["load", "./nowhere@c"], 6), (["verify", "nowhere"], 5), (["verify", "."], 5),
        (["info", "nowhere"], 5), (["info", "a/b@"], 2), (["search", "x"], 2), (["search", "x", "--index", "nowhere.json"], 5),
        (["trust", "add", "acme", "key"], 2), (["trust", "add", "github.com/a/b", "nowhere.pub"], 5),
        (["trust", "add", "github.com/a/b", "ssh-ed25519 AAAA"], 4), (["trust", "add", "https://github.com/a/b", "x y"], 2),
        (["trust", "remove", "SHA256:x"], 5), (["publish", "nowhere"], 5), (["publish", "."], 5), (["init"], 2),
        (["index", "list", "i.json"], 2), (["index", "add", "i.json", "nope"], 2), (["predict", "x"], 2),
        (["predict", "nowhere", "--text", "x"], 5), (["predict", "a/b@c", "--file", "nowhere.tsv"], 5),
        (["predict", "a/b@c", "--text", "x", "--label-column", "y"], 2), (["train", "--base", "x"], 2),
        (["train", "--base", "x", "--train", "a.tsv", "--eval", "b.tsv", "--output", "out"], 5),
        (["train", "--base", "x", "--train", "a.tsv", "--eval", "b.tsv", "--output", "out", "--epochs", "many"], 2),
        (["train", "--base", "x", "--train", __file__, "--eval", __file__, "--output", "out", "--adapter", "seq_bn["], 2),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_error_and_leaves_nothing_behind(
    argv: list[str], code: int, tmp_path: Path, home: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    said = run(*argv, code=code, cwd=work)
    assert "rror: " in said
    assert snapshot(work) == {}
    assert {n for n in snapshot(home) if "locks/" not in n} == {".gitconfig"}


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"schema": "x", "entries": []}', '{"schema": "adaptergit.index/1", "entries": [{"id": "x"}]}', "\xff"],
)
def test_a_malformed_index_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "index.json").write_text(content, "latin-1")
    assert "index.json" in run("search", "x", "--index", str(tmp_path / "index.json"), code=3)


@pytest.mark.parametrize(
    "content",
    [
        "default_host = 3",
        "colour = 'red'",
        "= x",
        "[[policy]]\nmatch = '*'",
        "[[policy]]\nmatch = '*'\nlevel = 'lax'",
        "policy = 3",
        "[base_models]\nx = 1",
    ],
)
def test_malformed_settings_are_refused(home: Path, content: str) -> None:
    (home / "config").mkdir()
    (home / "config" / "config.toml").write_text(content)
    assert "config.toml" in run("load", "a/b@c", "--offline", code=2)


@pytest.mark.parametrize("content", ["github.com/a/b", "* ssh-ed25519 x", "a cert-authority ssh-ed25519 AAAA"])
def test_a_malformed_allowed_signers_file_is_refused_with_its_line(
    hub: Hub, source: Source, home: Path, content: str
) -> None:
    from adaptergit.publish import publish

    publish(source(), clone=hub.clone, key=hub.key.path)
    (home / "config").mkdir(exist_ok=True)
    (home / "config" / "allowed_signers").write_text(f"# mine\n{content}\n")
    assert "allowed_signers:2" in run("load", f"{hub.url}@sst2", code=4)


def test_an_allowed_signers_line_without_a_key_is_answered_with_an_example(
    hub: Hub, source: Source, home: Path
) -> None:
    publish(source(), clone=hub.clone, key=hub.key.path)
    (home / "config").mkdir(exist_ok=True)
    (home / "config" / "allowed_signers").write_text("garbage\n")
    said = run("load", f"{hub.url}@sst2", code=4)
    assert "no key on this line" in said
    assert "github.com/acme/adapters ssh-ed25519 AAAA" in said


@pytest.mark.parametrize("damage", ["empty", "truncated", "gone"])
def test_a_folder_without_whole_weights_is_not_shown_as_an_adapter(source: Source, damage: str) -> None:
    folder = source()
    assert "none: not packed" in run("load", str(folder))
    weights = folder / "adapter.safetensors"
    whole = weights.read_bytes()
    weights.unlink()
    if damage != "gone":
        weights.write_bytes(b"" if damage == "empty" else whole[:-1])
    assert "adapter.safetensors" in run("load", str(folder), code=6 if damage == "gone" else 3)


@pytest.mark.parametrize("command", ["load", "summary", "publish"])
def test_weights_that_were_cut_off_are_to_be_had_once_more(hub: Hub, source: Source, command: str) -> None:
    folder = source()
    weights = folder / "adapter.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    options = ["--key", str(hub.key.path)] if command == "publish" else []
    said = run(command, str(folder), *options, code=3, cwd=hub.clone)
    assert "the file is damaged or cut off: get it once more" in said


@pytest.mark.slow
def test_what_is_wrong_with_a_key_file_is_said_with_what_mends_it(hub: Hub, source: Source, tmp_path: Path) -> None:
    key = tmp_path / "key"
    publishing = ("publish", str(source()), "--key", str(key))
    key.write_text("no key\n")
    for mode in (0o644, 0o600):
        key.chmod(mode)
        assert "this is no OpenSSH private key" in run(*publishing, code=4, cwd=hub.clone)
    key.unlink()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    key.chmod(0o644)
    assert f"chmod 600 {key}" in run(*publishing, code=4, cwd=hub.clone)
    for half in (key, key.with_name("key.pub")):
        half.unlink()
    for name in ("", str(tmp_path)):
        assert "this is a folder" in run("publish", str(source()), "--key", name, code=5, cwd=hub.clone)
        assert "this is a folder" in run("keygen", name, code=2)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(key)], check=True)
    key.with_name("key.pub").unlink()
    assert f"ssh-keygen -y -f {key} > {key}.pub" in run(*publishing, code=4, cwd=hub.clone)


@pytest.mark.parametrize(
    ("argv", "said", "code"),
    [
        (["convert", "old.zip", "out", "--to", "adaptergit"], "old.zip: no such file", 5),
        (["load", "https://git.example/a/b@sst2@1.0.0"], "a version is written https://git.example/a/b@sst2==1.0.0", 2),
    ],
)
def test_what_was_meant_is_said(home: Path, argv: list[str], said: str, code: int) -> None:
    assert said in run(*argv, code=code)


@pytest.mark.slow
def test_a_damaged_entry_of_the_store_is_mended_by_what_the_error_says(hub: Hub, source: Source) -> None:
    from adaptergit.pins import pin_key

    publish(source(), clone=hub.clone, key=hub.key.path)
    pin_key("*", str(hub.key.path.with_suffix(".pub")))
    found = json.loads(run("info", f"{hub.url}@sst2", "--json"))
    (weights,) = (cache_dir() / "packages").rglob("adapter.safetensors")
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    said = run("load", f"{hub.url}@sst2", "--offline", code=3)
    mending = re.search(r"adaptergit (info \S+)", said)
    assert mending is not None
    assert json.loads(run(*mending[1].split(), "--json")) == found
    run("load", f"{hub.url}@sst2", "--offline")


@pytest.mark.slow
def test_a_new_release_is_listed_at_once(hub: Hub, source: Source, tmp_path: Path) -> None:
    from adaptergit.pins import pin_key

    publish(source(), clone=hub.clone, key=hub.key.path)
    pin_key("*", str(hub.key.path.with_suffix(".pub")))
    listing = ("index", "list", str(tmp_path / "index.json"), f"{hub.url}@sst2", "--json")
    before = json.loads(run(*listing))["entries"][0]["version"]
    publish(source(version="9.0.0"), clone=hub.clone, key=hub.key.path)
    assert [before, json.loads(run(*listing))["entries"][0]["version"]] == ["1.0.0", "9.0.0"]


def test_what_is_no_fingerprint_is_a_mistake_of_the_command(home: Path) -> None:
    said = run("trust", "revoke", "SHA256:abc", "--reason", "x", code=2)
    assert "'SHA256:abc': not a key's fingerprint" in said
    assert "revoked.jsonl" not in said


def test_the_wrong_level_of_a_policy_is_named(home: Path) -> None:
    (home / "config").mkdir()
    (home / "config" / "config.toml").write_text('[[policy]]\nmatch = "*"\nlevel = "tofuu"\n')
    assert "policy rule 1: there is no level 'tofuu'" in run("load", "a/b@c", "--offline", code=2)


def test_an_unknown_index_is_said_once(home: Path) -> None:
    assert run("index", "update", "nope", code=2).count("there is no index 'nope'") == 1


def test_a_lock_that_is_no_json_says_what_to_do(home: Path, tmp_path: Path) -> None:
    (tmp_path / "adaptergit.lock").write_text("{")
    told = run("sync", cwd=tmp_path, code=3)
    assert "delete it (rm 'adaptergit.lock'), and write it anew: adaptergit lock 'org/repo@adapter'" in told


def test_a_card_cannot_drive_the_terminal(tmp_path: Path) -> None:
    from conftest import card_data

    from adaptergit.package import Card

    (tmp_path / "card.yaml").write_bytes(Card(card_data(description="\x1b[2Jnice\nlicence      MIT")).to_yaml())
    said = run("info", str(tmp_path))
    assert "\x1b" not in said
    assert said.count("\nlicence ") == 1


def test_an_operating_systems_error_is_one_line(tmp_path: Path) -> None:
    assert "Traceback" not in run("verify", "x" * 400, code=6)


def test_what_is_wrong_at_first_sight_is_said_before_torch_starts(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("text\tlabel\n")
    train = "train --base x --train a.tsv --eval a.tsv --output out"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        cases = {
            "eval x --data nix.tsv": "no such file",
            "predict x --file nix.tsv": "no such file",
            "search --base-of nix": "no such model folder",
            "card make nix": "no such folder",
            "convert nix out --to peft": "no such file or folder",
            f"{train} --epochs 0": "--epochs",
            f"{train} --license MITT": "not an SPDX expression",
            f"{train} --early-stopping 1 --validation nix.tsv": "no such file",
            f"serve x --port {taken.getsockname()[1]}": "in use",
        }
        script = (
            "import json, sys; from click.testing import CliRunner; from adaptergit.cli import main\n"
            "print(json.dumps([(CliRunner().invoke(main, line.split()).stderr, 'torch' in sys.modules) for line in sys.argv[1:]]))"
        )
        command = [sys.executable, "-c", script, *cases]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    for (line, said), (stderr, started) in zip(cases.items(), json.loads(done.stdout), strict=True):
        assert said in stderr, line
        assert not started, line


def test_importing_and_help_start_no_torch(home: Path) -> None:
    script = "import sys, adaptergit, adaptergit.cli; print([m for m in ('torch', 'transformers', 'git', 'jsonschema', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_distribution_commands_start_no_torch(hub: Hub, source: Source) -> None:
    from adaptergit.publish import publish

    publish(source(), clone=hub.clone, key=hub.key.path)
    hub.trust()
    script = f"import sys; sys.argv = ['adaptergit', 'load', '{hub.url}@sst2']\nfrom adaptergit.cli import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
