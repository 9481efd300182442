"""Keys and releases that no longer count, and releases that several must sign."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import Hub, git, machine_of
from hypothesis import given
from hypothesis import strategies as st

from adaptergit.cli import main
from adaptergit.errors import AdaptergitError, AdaptergitWarning, TrustError, UsageError
from adaptergit.judge import Asked, take_over, verified
from adaptergit.pins import known_revocations, known_signers, pin_key, revoke
from adaptergit.publish import publish
from adaptergit.resolve import fetch, parse_reference
from adaptergit.settings import Settings, cache_dir, load_settings
from adaptergit.trust import Revocation, SigningKey, parse_revocations, sign

Source = Callable[..., Path]
PRINCIPAL = "127.0.0.1/acme/adapters"


def release(hub: Hub, folder: Path, **options: object) -> Any:
    hub.trust()
    return publish(folder, clone=hub.clone, key=hub.key.path, **options)  # type: ignore[arg-type]


def test_a_revoked_key_no_longer_counts(hub: Hub, source: Source, home: Path) -> None:
    release(hub, source())
    fetch(f"{hub.url}@sst2")
    revoke(hub.key.public.fingerprint, reason="stolen laptop")
    for reference in (f"{hub.url}@sst2", f"{hub.url}@sst2==1.0.0"):
        with pytest.raises(TrustError, match=r"revoked: stolen laptop .*revoked\.jsonl"):
            fetch(reference)
        with pytest.raises(TrustError, match="revoked"):
            fetch(reference, offline=True)


@pytest.mark.slow
def test_what_was_seen_before_a_key_was_stolen_still_counts(hub: Hub, source: Source) -> None:
    release(hub, source())
    fetch(f"{hub.url}@sst2==1.0.0")
    time.sleep(1.1)
    revoke(hub.key.public.fingerprint, since=datetime.now(UTC))
    assert fetch(f"{hub.url}@sst2==1.0.0").from_store
    with machine_of("thief"):  # who may write any date into it
        release(hub, source(b"later"), version="1.1.0")
    with pytest.raises(TrustError, match="revoked since"):
        fetch(f"{hub.url}@sst2==1.1.0")
    with pytest.raises(TrustError, match="revoked since"):
        fetch(f"{hub.url}@sst2", refresh=True)


def test_a_revoked_release_is_refused_at_every_level(hub: Hub, source: Source) -> None:
    published = release(hub, source())
    release(hub, source(b"mended"), version="1.0.1")
    revoke(f"sha256:{published.digest}", reason="poisoned data")
    for policy in ("enforce", "tofu", "unsigned"):
        with pytest.raises(TrustError, match="this release is revoked: poisoned data"):
            fetch(f"{hub.url}@sst2==1.0.0", policy=policy)
    with pytest.raises(TrustError, match="this release is revoked"):
        fetch(f"{hub.url}@sst2==1.0.0#sha256:{published.digest}", policy="digest")
    assert fetch(f"{hub.url}@sst2").version == "1.0.1"


def test_a_warning_is_given_at_every_load(hub: Hub, source: Source) -> None:
    published = release(hub, source())
    revoke(hub.key.public.fingerprint, severity="warn", reason="will be replaced")
    revoke(f"sha256:{published.digest}", severity="warn", reason="old data")
    for _ in range(2):
        with pytest.warns(AdaptergitWarning) as caught:
            fetch(f"{hub.url}@sst2")
        text = " ".join(str(one.message) for one in caught)
        assert "will be replaced" in text
        assert "old data" in text


def test_more_keys_than_one_must_sign(hub: Hub, source: Source, other_key: SigningKey) -> None:
    settings = Settings(policy=((PRINCIPAL, "enforce", 2),))
    release(hub, source())
    with pytest.raises(TrustError, match="2 different keys must sign"):
        fetch(f"{hub.url}@sst2", settings=settings)
    pin_key(PRINCIPAL, other_key.public.line)
    release(hub, source(b"both"), version="1.1.0", cosigners=[other_key.path])
    found = fetch(f"{hub.url}@sst2", settings=settings, refresh=True)
    assert set(found.verdict.signers) == {hub.key.public.fingerprint, other_key.public.fingerprint}
    # One of the two was stolen: one is left, and one is not enough.
    revoke(other_key.public.fingerprint)
    with pytest.raises(TrustError, match="2 different keys must sign"):
        fetch(f"{hub.url}@sst2==1.1.0", settings=settings)
    with pytest.warns(AdaptergitWarning, match="is revoked"):
        assert fetch(f"{hub.url}@sst2==1.1.0").verdict.signers == (hub.key.public.fingerprint,)


def test_the_same_key_twice_is_one_key(hub: Hub, source: Source) -> None:
    settings = Settings(policy=((PRINCIPAL, "enforce", 2),))
    release(hub, source(), cosigners=[hub.key.path])
    with pytest.raises(TrustError, match="2 different keys must sign"):
        fetch(f"{hub.url}@sst2", settings=settings)


def test_no_first_use_where_several_must_sign(hub: Hub, source: Source) -> None:
    publish(source(), clone=hub.clone, key=hub.key.path)
    settings = Settings(policy=((PRINCIPAL, "tofu", 2),))
    with pytest.raises(TrustError, match="nobody you know"):
        fetch(f"{hub.url}@sst2", settings=settings)


@pytest.mark.parametrize("threshold", ["0", "17", '"2"', "true", "1.5"])
def test_a_threshold_is_a_small_number(home: Path, threshold: str) -> None:
    (home / "config").mkdir(exist_ok=True)
    (home / "config" / "config.toml").write_text(
        f'[[policy]]\nmatch = "*"\nlevel = "enforce"\nthreshold = {threshold}\n'
    )
    with pytest.raises(UsageError, match="threshold"):
        load_settings()


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        "[]",
        '{"key": "SHA256:abc"}',
        '{"manifest_sha256": "00"}',
        '{"key": "SHA256:' + "a" * 43 + '", "manifest_sha256": "' + "0" * 64 + '"}',
        '{"key": "SHA256:' + "a" * 43 + '", "severity": "maybe"}',
        '{"key": "SHA256:' + "a" * 43 + '", "since": "yesterday"}',
        '{"key": "SHA256:' + "a" * 43 + '", "since": 5}',
        '{"key": "SHA256:' + "a" * 43 + '", "more": "x"}',
        '{"key": "SHA256:' + "a" * 43 + '", "key": "SHA256:' + "b" * 43 + '"}',
    ],
)
def test_a_revocation_that_is_not_understood_stops_everything(hub: Hub, source: Source, home: Path, line: str) -> None:
    """It may be the one that matters."""
    release(hub, source())
    (home / "config" / "revoked.jsonl").write_text("\n" + line + "\n")
    with pytest.raises(AdaptergitError, match=r"revoked\.jsonl:2"):
        fetch(f"{hub.url}@sst2")


@given(st.binary(max_size=200))
def test_any_bytes_are_revocations_or_a_clear_error(data: bytes) -> None:
    with contextlib.suppress(AdaptergitError):
        parse_revocations(data, source="x")


@given(
    st.datetimes(min_value=datetime(2000, 1, 1), timezones=st.just(UTC)),
    st.sampled_from(["refuse", "warn"]),
    st.text(st.characters(codec="utf-8"), max_size=30),
)
def test_a_revocation_survives_its_line(since: datetime, severity: str, reason: str) -> None:
    one = Revocation("SHA256:" + "a" * 43, None, since.replace(microsecond=0), severity, reason, "x")
    (again,) = parse_revocations(one.line().encode(), source="x")
    assert again == one
    assert one.since is not None
    assert one.covers("SHA256:" + "a" * 43, PRINCIPAL, None)
    assert one.covers("SHA256:" + "a" * 43, PRINCIPAL, one.since)
    assert not one.covers("SHA256:" + "a" * 43, PRINCIPAL, one.since - timedelta(seconds=1))
    assert not one.covers("SHA256:" + "b" * 43, PRINCIPAL, None)
    (of_one,) = parse_revocations(replace(one, repository=PRINCIPAL).line().encode(), source="x")
    assert of_one.covers("SHA256:" + "a" * 43, PRINCIPAL, None)
    assert not of_one.covers("SHA256:" + "a" * 43, f"{PRINCIPAL}-other", None)
    (of_some,) = parse_revocations(replace(one, repository=f"{PRINCIPAL}-*").line().encode(), source="x")
    assert of_some.covers("SHA256:" + "a" * 43, f"{PRINCIPAL}-other", None)
    assert not of_some.covers("SHA256:" + "a" * 43, PRINCIPAL, None)


@pytest.mark.parametrize("since", ["0001-01-01T00:00:00+14:00", "0999-01-01T00:00:00Z", "9999-12-31T23:59:59-14:00"])
def test_times_that_no_file_can_hold_are_no_times(since: str) -> None:
    line = json.dumps({"key": "SHA256:" + "a" * 43, "since": since}).encode()
    with pytest.raises(TrustError, match="no time"):
        parse_revocations(line, source="x")


@pytest.mark.parametrize(
    "repository",
    ["", "github.com/acme/adapters.git", "https://github.com/acme/a", "GitHub.com/acme/a", "*.git", "!a/b", "a/b "],
)
def test_a_revocation_for_no_repository_is_an_error(repository: str) -> None:
    line = json.dumps({"key": "SHA256:" + "a" * 43, "repository": repository}).encode()
    with pytest.raises(TrustError, match="no repository"):
        parse_revocations(line, source="x")


def test_a_revocation_is_added_on_a_line_of_its_own(key: SigningKey, other_key: SigningKey, home: Path) -> None:
    (home / "config").mkdir(exist_ok=True)
    (home / "config" / "revoked.jsonl").write_text(json.dumps({"key": key.public.fingerprint}))
    revoke(other_key.public.fingerprint)
    assert {one.key for one in known_revocations(load_settings())} == {
        key.public.fingerprint,
        other_key.public.fingerprint,
    }


@pytest.mark.slow
def test_looking_at_a_release_is_not_having_seen_it_signed(
    hub: Hub, source: Source, other_key: SigningKey, tmp_path: Path
) -> None:
    """Looked at before the key was stolen, signed with it afterwards."""
    publish(source(), clone=hub.clone, key=other_key.path)
    hub.trust()
    with pytest.warns(AdaptergitWarning, match="unsigned"):
        path = fetch(f"{hub.url}@sst2==1.0.0", policy="unsigned").path
    time.sleep(1.1)
    revoke(hub.key.public.fingerprint, since=datetime.now(UTC))
    manifest = (path / "manifest.json").read_bytes()
    tree = {file.name: hub.git("hash-object", "-w", str(file)) for file in path.iterdir()}
    (tmp_path / "sig").write_bytes(sign(manifest, hub.key))
    tree["manifest.json.sig"] = hub.git("hash-object", "-w", str(tmp_path / "sig"))
    listing = "".join(f"100644 blob {oid}\t{name}\n" for name, oid in sorted(tree.items()))
    oid = git(hub.clone, "mktree", stdin=listing)
    commit = hub.git("commit-tree", oid, "-m", "x")
    hub.git("push", "-qf", "origin", f"{commit}:refs/tags/adapters/sst2/1.0.0")
    shutil.rmtree(cache_dir() / "packages")
    with pytest.raises(TrustError, match="revoked since"):
        fetch(f"{hub.url}@sst2==1.0.0")


@pytest.mark.slow
def test_what_was_revoked_is_said_to_be_so_when_nobody_else_can_be_asked(hub: Hub, source: Source, home: Path) -> None:
    release(hub, source())
    fetch(f"{hub.url}@sst2")
    revoke(hub.key.public.fingerprint, reason="stolen laptop")
    hub.server.__exit__(None, None, None)
    for reference in (f"{hub.url}@sst2", f"{hub.url}@sst2==1.0.0"):
        with pytest.raises(TrustError, match="stolen laptop"):
            fetch(reference)


@pytest.mark.parametrize("file", ["revoked.jsonl", "known_publishers"])
def test_a_file_of_ours_that_is_not_understood_is_not_the_servers_fault(
    hub: Hub, source: Source, home: Path, file: str
) -> None:
    release(hub, source())
    fetch(f"{hub.url}@sst2")
    (home / "config" / file).write_text("what?\n")
    for reference in (f"{hub.url}@sst2", f"{hub.url}@sst2==1.0.0"):
        with pytest.raises(Exception, match=file) as refused:
            fetch(reference, refresh=reference.endswith("sst2"))
        assert hub.url not in str(refused.value)


def test_explain_tells_what_takes_a_keys_word_away(key: SigningKey, other_key: SigningKey, home: Path) -> None:
    def told() -> tuple[str, Any]:
        plain, as_json = (CliRunner().invoke(main, ["trust", "explain", "acme/adapters", *o]) for o in ([], ["--json"]))
        return plain.output, json.loads(as_json.output)["signers"]

    (home / "config").mkdir(exist_ok=True)
    (home / "config" / "known_publishers").write_text(
        f'github.com/acme/adapters namespaces="git" {key.public.line}\n'
        f'github.com/acme/* valid-before="20200101Z" {other_key.public.line}\n'
    )
    text, signers = told()
    assert text.count("may not sign") == 2
    assert ["git only" in signers[0]["limits"][0], "only before 2020" in signers[1]["limits"][0]] == [True, True]
    assert CliRunner().invoke(main, ["trust", "ls"]).output.count("only") == 2
    pin_key("acme/adapters", key.public.line)
    for severity in ("refuse", "warn"):
        revoke(key.public.fingerprint, severity=severity, reason=severity)
    text, signers = told()
    assert f"may not sign {key.public.fingerprint}" in text
    assert text.index("refuse (") < text.index("warn (")


@pytest.mark.parametrize("name", ["GitHub.com/acme/adapters", "github.com/acme/adapters.git"])
def test_a_pin_is_written_as_repositories_are_named(key: SigningKey, name: str) -> None:
    assert pin_key(name, key.public.line).principals == ("github.com/acme/adapters",)


def test_pinning_a_revoked_key_is_told(key: SigningKey) -> None:
    revoke(key.public.fingerprint, reason="stolen laptop")
    with pytest.warns(AdaptergitWarning, match=r"stolen laptop .*does not count, pinned or not"):
        pin_key("github.com/acme/adapters", key.public.line)


@pytest.mark.parametrize(
    "name",
    [
        "acme/adapters",
        "github.com/acme/adapters",
        "https://github.com/acme/adapters.git",
        "git@github.com:acme/adapters",
    ],
)
def test_explain_understands_every_name_of_a_repository(key: SigningKey, name: str) -> None:
    pin_key("acme/adapters", key.public.line)
    assert f"may sign     {key.public.fingerprint}" in CliRunner().invoke(main, ["trust", "explain", name]).output


def test_of_two_keys_that_are_met_first_at_once_one_is_pinned(hub: Hub, source: Source, other_key: SigningKey) -> None:
    publish(source(), clone=hub.clone, key=hub.key.path)
    publish(source(b"x" * 5000, name="other"), clone=hub.clone, key=other_key.path)
    wanted = replace(load_settings(), policy=(("*", "tofu", 1),))
    verdicts = []
    for name in ("sst2", "other"):  # as two processes would: both look before one of them remembers
        reference = parse_reference(f"{hub.url}@{name}", wanted)
        verdicts.append(verified(hub.clone / "adapters" / name, Asked(wanted, reference=reference))[0])
    with pytest.warns(AdaptergitWarning, match="first use"):
        take_over(verdicts[0], wanted)
    with pytest.raises(TrustError, match=r"was pinned for 127\.0\.0\.1/acme/adapters a moment ago"):
        take_over(verdicts[1], wanted)
    assert [one.key for one in known_signers(wanted)] == [hub.key.public]


@pytest.mark.slow
def test_pins_are_not_lost_where_the_cache_cannot_be_written(
    home: Path, key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "file").write_text("no folder")
    monkeypatch.setenv("ADAPTERGIT_CACHE_DIR", str(home / "file" / "cache"))
    adding = [sys.executable, "-m", "adaptergit", "trust", "add"]
    every = [subprocess.Popen([*adding, f"github.com/acme/a{number}", key.public.line]) for number in range(6)]
    assert [one.wait(120) for one in every] == [0] * 6
    assert len(known_signers(load_settings())) == 6


def test_pins_that_are_a_link_stay_one(home: Path, key: SigningKey) -> None:
    pins, real = load_settings().pins_path, home / "dotfiles" / "publishers"
    for folder in (pins.parent, real.parent):
        folder.mkdir(parents=True, exist_ok=True)
    real.touch()
    pins.symlink_to(real)
    pin_key("github.com/acme/adapters", key.public.line)
    assert pins.is_symlink()
    assert key.public.line in real.read_text()
