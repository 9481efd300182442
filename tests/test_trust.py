"""Whose signature is enough: allowed-signers files and the policy levels."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet

from adaptergit.errors import PackageError, TrustError
from adaptergit.package import BaseModel, File, Manifest, canonical
from adaptergit.pins import known_signers
from adaptergit.settings import load_settings
from adaptergit.trust import (
    AllowedSigner,
    Policy,
    PublicKey,
    SigningKey,
    evaluate,
    format_signer,
    parse_allowed_signers,
    parse_public_key,
    sign,
)

NOW = datetime(2026, 11, 23, tzinfo=UTC)
REPOSITORY = "github.com/acme/adapters"
MANIFEST = Manifest(
    repository=REPOSITORY, name="sst2", version="1.2.0", created="2026-11-23T09:00:00Z", license="MIT", method="seq_bn",
    base_model=BaseModel("acme/tiny", None, "fp1:2x32:" + "0" * 32 + ":"), files=(File("card.yaml", 1, "0" * 64),), previous=None,
).to_bytes()  # fmt: skip
KEY = parse_public_key("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJhPTNbBJtNu98OOEdqMa+anG2mVthyWfurOIs7SKm6x")


@pytest.fixture(scope="session")
def signed(key: SigningKey) -> dict[str, bytes]:
    return {"manifest.json.sig": sign(MANIFEST, key)}


def allowed(key: PublicKey, principals: str = REPOSITORY, **options: Any) -> AllowedSigner:
    return AllowedSigner(tuple(principals.split(",")), key, source="test", **options)


# --- allowed signers --------------------------------------------------------------------------------------------------


def parse(line: str) -> AllowedSigner:
    (signer,) = parse_allowed_signers(f"# comment\n\n{line}\n", source="file")
    return signer


def test_every_part_of_a_line_is_read() -> None:
    line = f'"github.com/a/*,!github.com/a/b" namespaces="manifest.v1@adaptergit",valid-after="20260101Z",valid-before="20270101120000Z" {KEY.line} alice'
    signer = parse(line)
    assert signer.principals == ("github.com/a/*", "!github.com/a/b")
    assert signer.namespaces == ("manifest.v1@adaptergit",)
    assert signer.valid_after == datetime(2026, 1, 1, tzinfo=UTC)
    assert signer.valid_before == datetime(2027, 1, 1, 12, tzinfo=UTC)
    assert signer.comment == "alice"
    assert signer.source == "file:3"


@pytest.mark.parametrize(
    "line",
    [
        "acme", "acme ssh-ed25519", "acme ssh-ed25519 ####", f"acme cert-authority {KEY.line}", f"acme namespaces= {KEY.line}",
        f"acme colour=\"red\" {KEY.line}", f"acme namespaces=\"a\",namespaces=\"b\" {KEY.line}", f'"acme {KEY.line}', f"a,,b {KEY.line}",
        f'acme valid-after="yesterday" {KEY.line}', f'acme valid-after="20261340" {KEY.line}', f'acme valid-before="2026" {KEY.line}',
        f'acme valid-after="00010101Z" {KEY.line}',
        "acme ssh-dss AAAA", f'acme namespaces="x",{KEY.line}', f"acme no-touch-required {KEY.line}",
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_understood_is_an_error_and_never_skipped(line: str) -> None:
    with pytest.raises(TrustError) as caught:
        parse(line)
    assert caught.value.where == "file:3"


MOMENTS = st.none() | st.datetimes(datetime(1990, 1, 1), datetime(2200, 1, 1)).map(
    lambda d: d.replace(microsecond=0, tzinfo=UTC)
)
PATTERNS = st.lists(st.from_regex(r"!?[a-z0-9./*?-]{1,20}", fullmatch=True), min_size=1, max_size=3).map(tuple)


@given(PATTERNS, st.just(()) | PATTERNS, MOMENTS, MOMENTS, st.from_regex(r"([a-z@.]+( [a-z@.]+)*)?", fullmatch=True))
def test_what_is_formatted_is_read_back(
    principals: Any, namespaces: Any, after: Any, before: Any, comment: str
) -> None:
    signer = AllowedSigner(principals, KEY, namespaces, after, before, comment, "x:1")
    assert parse_allowed_signers(format_signer(signer), source="x") == [signer]


def test_a_comment_ends_only_where_openssh_ends_it() -> None:
    """Other alphabets' line ends are text: what OpenSSH reads as a comment grants nothing here either."""
    for character in "\x0b\x0c\x1c\x85\u2028\r":
        assert parse_allowed_signers(f"# x{character}* {KEY.line}\n", source="file") == []
    with pytest.raises(TrustError):
        parse_allowed_signers(f"*\u00a0{KEY.line}\n", source="file")
    assert parse(f'"a, b" {KEY.line}').principals == ("a", " b")


def test_tabs_separate_as_in_openssh() -> None:
    signer = parse(f'acme\tnamespaces="x"\t{KEY.line.replace(" ", chr(9))}\tme')
    assert (signer.principals, signer.namespaces, signer.comment) == (("acme",), ("x",), "me")


def test_many_stars_cost_no_time() -> None:
    assert not allowed(KEY, "*a" * 30 + "b").names("a" * 200)


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (REPOSITORY, True), ("github.com/acme/*", True), ("*", True), ("github.com/*/adapters", True), ("github.com/acme/adapter?", True),
        ("github.com/acme", False), ("GITHUB.com/acme/adapters", False), (f"*,!{REPOSITORY}", False), ("!x", False), ("github.com/acme/[a]*", False),
    ],
)  # fmt: skip
def test_principals_are_openssh_patterns(patterns: str, names: bool) -> None:
    assert allowed(KEY, patterns).names(REPOSITORY) is names


def test_ssh_keygen_reads_what_we_write(tmp_path: Path, key: SigningKey, signed: dict[str, bytes]) -> None:
    signer = allowed(key.public, namespaces=("manifest.v1@adaptergit",), valid_after=NOW - timedelta(days=900))
    (tmp_path / "allowed").write_text(format_signer(signer) + "\n")
    (tmp_path / "sig").write_bytes(signed["manifest.json.sig"])
    argv = [
        "ssh-keygen",
        "-Y",
        "verify",
        "-f",
        str(tmp_path / "allowed"),
        "-I",
        REPOSITORY,
        "-n",
        "manifest.v1@adaptergit",
    ]
    done = subprocess.run([*argv, "-s", str(tmp_path / "sig")], input=MANIFEST, capture_output=True, check=False)
    assert done.returncode == 0, done


# --- evaluate ---------------------------------------------------------------------------------------------------------


def refused(
    why: str, policy: Policy, signatures: dict[str, bytes], manifest: bytes = MANIFEST, now: datetime = NOW
) -> None:
    with pytest.raises(TrustError, match=why):
        evaluate(manifest, signatures, policy, now)


def test_a_known_key_is_accepted(key: SigningKey, signed: dict[str, bytes]) -> None:
    verdict = evaluate(MANIFEST, signed, Policy(signers=(allowed(key.public),)), NOW)
    assert verdict.level == "enforce"
    assert verdict.signers == (key.public.fingerprint,)
    assert verdict.vouched_by == ("test",)
    assert verdict.digest == canonical.sha256(MANIFEST)
    assert verdict.pin is None


def test_an_unknown_key_is_refused_with_the_line_that_would_trust_it(key: SigningKey, signed: dict[str, bytes]) -> None:
    with pytest.raises(TrustError) as caught:
        evaluate(MANIFEST, signed, Policy(), NOW)
    assert caught.value.hint is not None
    assert key.public.line in caught.value.hint


def test_a_key_of_somebody_else_is_refused(key: SigningKey, other_key: SigningKey, signed: dict[str, bytes]) -> None:
    refused("only .* may sign", Policy(signers=(allowed(other_key.public),)), signed)
    refused("nobody you know", Policy(signers=(allowed(key.public, "github.com/other/*"),)), signed)


def test_an_unsigned_manifest_is_refused(key: SigningKey) -> None:
    for level in ("enforce", "tofu"):
        refused("not signed", Policy(level, signers=(allowed(key.public),)), {})


def test_a_key_counts_only_in_its_window_and_namespace(key: SigningKey, signed: dict[str, bytes]) -> None:
    day = timedelta(days=1)
    refused("only after", Policy(signers=(allowed(key.public, valid_after=NOW + day),)), signed)
    refused("only before", Policy(signers=(allowed(key.public, valid_before=NOW),)), signed)
    refused("allowed for git only", Policy(signers=(allowed(key.public, namespaces=("git",)),)), signed)
    windows = (allowed(key.public, valid_before=NOW - day), allowed(key.public, valid_after=NOW - day))
    assert evaluate(MANIFEST, signed, Policy(signers=windows), NOW).signers


@pytest.mark.parametrize("level", ["enforce", "tofu", "digest", "unsigned"])
def test_no_level_accepts_another_repository_name_version_or_digest(
    level: str, key: SigningKey, signed: dict[str, bytes]
) -> None:
    digest = canonical.sha256(MANIFEST)
    known = (allowed(key.public, "*"),)
    refused("belongs to", Policy(level, known, digest, repository="github.com/evil/adapters"), signed)
    refused("adapter 'other'", Policy(level, known, digest, name="other"), signed)
    refused("version", Policy(level, known, digest, specifier=SpecifierSet("==1.3.0")), signed)
    refused("you pinned", Policy(level, known, "0" * 64), signed)


@pytest.mark.parametrize("level", ["enforce", "tofu", "digest", "unsigned"])
def test_no_level_ignores_a_broken_signature(level: str, key: SigningKey, signed: dict[str, bytes]) -> None:
    broken = {**signed, "manifest.json.0123abcd.sig": b"-----BEGIN"}
    refused("armored", Policy(level, (allowed(key.public),), canonical.sha256(MANIFEST)), broken)


@pytest.mark.parametrize("level", ["enforce", "tofu", "unsigned"])
def test_no_level_accepts_a_signature_of_other_bytes(level: str, key: SigningKey, signed: dict[str, bytes]) -> None:
    changed = MANIFEST.replace(b'"license":"MIT"', b'"license":"BSD"')
    refused("does not fit", Policy(level, (allowed(key.public),)), signed, changed)


def test_tofu_pins_the_first_key_and_refuses_another(
    key: SigningKey, other_key: SigningKey, signed: dict[str, bytes]
) -> None:
    verdict = evaluate(MANIFEST, signed, Policy("tofu"), NOW)
    assert verdict.pin is not None
    assert verdict.pin.key == key.public
    assert verdict.pin.principals == (REPOSITORY,)
    again = evaluate(MANIFEST, signed, Policy("tofu", (verdict.pin,)), NOW)
    assert again.pin is None
    others = {"manifest.json.sig": sign(MANIFEST, other_key)}
    refused("only .* may sign", Policy("tofu", (verdict.pin,)), others)


def test_digest_needs_a_digest(signed: dict[str, bytes]) -> None:
    refused("needs a pinned digest", Policy("digest"), signed)
    assert evaluate(MANIFEST, {}, Policy("digest", digest=canonical.sha256(MANIFEST)), NOW).level == "digest"


def test_a_pinned_digest_does_not_weaken_enforce(signed: dict[str, bytes]) -> None:
    refused("nobody you know", Policy("enforce", digest=canonical.sha256(MANIFEST)), signed)


def test_unsigned_is_accepted_by_name_only_and_warns() -> None:
    verdict = evaluate(MANIFEST, {}, Policy("unsigned"), NOW)
    assert verdict.warnings
    assert not verdict.vouched_by


def test_an_unknown_level_is_refused(signed: dict[str, bytes]) -> None:
    refused("unknown policy level", Policy("relaxed"), signed)


def test_too_many_signatures_are_refused_before_any_is_read() -> None:
    refused("limit", Policy(), {f"manifest.json.{i:08x}.sig": b"" for i in range(17)})


@pytest.mark.parametrize("level", ["enforce", "tofu"])
def test_nothing_is_parsed_that_nobody_signed(level: str) -> None:
    for data in (b"[1", b'{"files":' + b"[" * 974 + b"]" * 974 + b"}"):
        refused("not signed", Policy(level), {}, data)


@pytest.mark.parametrize("depth", [65, 974, 30_000])
def test_what_is_nested_too_deeply_is_refused(depth: int, key: SigningKey) -> None:
    data = b'{"files":' + b"[" * depth + b"]" * depth + b"}"
    with pytest.raises(PackageError, match="nested too deeply"):
        evaluate(data, {"manifest.json.sig": sign(data, key)}, Policy(signers=(allowed(key.public, "*"),)), NOW)


def test_a_manifest_is_made_at_some_time() -> None:
    with pytest.raises(PackageError, match="created"):
        Manifest.from_bytes(MANIFEST.replace(b"2026-11-23T09:00:00Z", b"2026-99-99T99:99:99Z"))


def test_what_is_no_manifest_is_refused_whoever_signed_it(key: SigningKey) -> None:
    data = b"{}"
    with pytest.raises(PackageError):
        evaluate(data, {"manifest.json.sig": sign(data, key)}, Policy(signers=(allowed(key.public, "*"),)), NOW)


_PINNING = """
import errno, fcntl, sys
def refuse(*_):
    raise OSError(getattr(errno, sys.argv[2]), "no locks here")
fcntl.flock = refuse
from adaptergit.pins import pin_key
number = int(sys.argv[1])
for one in range(5):
    pin_key(f"example.org/p{number}/r{one}", sys.argv[3])
"""


@pytest.mark.skipif(os.name != "posix", reason="flock is POSIX")
@pytest.mark.parametrize("fault", ["ENOSYS", "ENOLCK", "EOPNOTSUPP"])
def test_no_pin_is_lost_where_a_file_system_cannot_lock(home: Path, key: SigningKey, fault: str) -> None:
    argv = [sys.executable, "-c", _PINNING]
    running = [subprocess.Popen([*argv, str(number), fault, key.public.line]) for number in range(6)]
    assert [one.wait() for one in running] == [0] * 6
    pinned = {principal for signer in known_signers(load_settings()) for principal in signer.principals}
    assert pinned == {f"example.org/p{number}/r{one}" for number in range(6) for one in range(5)}
