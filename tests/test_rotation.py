"""Keys that come after keys, and histories that contradict themselves."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import Hub, git, snapshot

from adaptergit.cli import main
from adaptergit.errors import AdaptergitWarning, PackageError, ReleaseError, TrustError, UsageError
from adaptergit.package import BaseModel, File, Manifest, canonical
from adaptergit.pins import known_signers, pin_key, revoke
from adaptergit.publish import publish
from adaptergit.resolve import fetch, verify
from adaptergit.rotate import rotate
from adaptergit.settings import load_settings
from adaptergit.trust import (
    ROTATION_NAMESPACE,
    AllowedSigner,
    Past,
    Policy,
    Rotation,
    SignedRotation,
    SigningKey,
    evaluate,
    follow,
    generate_key,
    sign,
)
from adaptergit.trust.rotation import signed_in_a_chain

REPO = "github.com/acme/adapters"
NOW = datetime(2026, 11, 24, tzinfo=UTC)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> list[SigningKey]:
    folder = tmp_path_factory.mktemp("chain")
    return [generate_key(folder / f"key-{number}") for number in range(5)]


def signed(
    old: SigningKey, new: SigningKey, *, days: int = -1, repository: str = REPO, keep: bool = False, **options: str
) -> SignedRotation:
    removed = () if keep else (old.public.fingerprint,)
    data = Rotation(repository, (new.public,), removed, NOW + timedelta(days=days)).to_bytes()
    return SignedRotation(data, {"rotation.json.sig": sign(data, old, **({"namespace": ROTATION_NAMESPACE} | options))})


def knowing(*keys: SigningKey) -> list[AllowedSigner]:
    return [AllowedSigner((REPO,), key.public, source="test") for key in keys]


# --- the rule -----------------------------------------------------------------------------------------------------------


def test_a_chain_of_rotations_is_followed_in_any_order(keys: list[SigningKey]) -> None:
    a, b, c, d, _ = keys
    chain = [signed(c, d, days=-1), signed(a, b, days=-3), signed(b, c, days=-2)]
    change = follow(chain, REPO, knowing(a), (), NOW)
    assert [s.key for s in change.added] == [b.public, c.public, d.public]
    assert [one.key for one in change.removed] == [key.public.fingerprint for key in (a, b, c)]


@pytest.mark.parametrize("case", ["stranger", "namespace", "repository", "future", "changed", "revoked", "nobody"])
def test_a_rotation_that_does_not_count_is_passed_over(keys: list[SigningKey], case: str) -> None:
    a, b, c, *_ = keys
    known, revocations = knowing(a), []
    good = signed(a, b)
    document = {
        "stranger": signed(c, b),
        "namespace": signed(a, b, namespace="manifest.v1@adaptergit"),
        "repository": signed(a, b, repository="github.com/acme/other"),
        "future": signed(a, b, days=1),
        "changed": SignedRotation(good.data.replace(b"2026-11-23", b"2026-11-22"), good.signatures),
    }.get(case, good)
    if case == "revoked":
        revocations = [revoke(a.public.fingerprint, reason="stolen")]
    if case == "nobody":
        known = []
    assert not follow([document], REPO, known, revocations, NOW)
    assert follow([good], REPO, knowing(a), (), NOW)


def test_a_retired_key_names_no_successor_whatever_date_it_states(keys: list[SigningKey]) -> None:
    a, b, thief, *_ = keys
    first = follow([signed(a, b)], REPO, knowing(a), (), NOW)
    backdated = signed(a, thief, days=-300)
    later = follow([signed(a, b), backdated], REPO, [*knowing(a), *first.added], first.removed, NOW)
    assert thief.public not in {s.key for s in later.added}


def test_a_key_with_two_successors_was_stolen_and_neither_is_followed(keys: list[SigningKey]) -> None:
    a, b, thief, *_ = keys
    assert not follow([signed(a, b), signed(a, thief, days=-300)], REPO, knowing(a), (), NOW)


def written(old: SigningKey, add: Sequence[SigningKey], remove: Sequence[SigningKey], days: int = -1) -> SignedRotation:
    data = Rotation(
        REPO, tuple(k.public for k in add), tuple(k.public.fingerprint for k in remove), NOW + timedelta(days=days)
    ).to_bytes()
    return SignedRotation(data, {"rotation.json.sig": sign(data, old, namespace=ROTATION_NAMESPACE)})


def test_a_retired_key_adds_nobody_beside_its_successor_either(keys: list[SigningKey]) -> None:
    a, b, thief, *_ = keys
    for backdated in (written(a, [thief], [], -300), written(a, [thief], [], -0)):
        change = follow([signed(a, b), backdated], REPO, knowing(a), (), NOW)
        assert [s.key for s in change.added] == [b.public]
    # Who removes the successor as well cannot be told from its owner: neither is followed.
    assert not follow([signed(a, b), written(a, [thief], [b, a], -300)], REPO, knowing(a), (), NOW)
    assert not follow([written(b, [b], [a]), written(a, [thief], [b], -300)], REPO, knowing(a, b), (), NOW)
    # The owner of another key of the repository takes away one that was stolen.
    change = follow([written(b, [b], [a]), written(a, [thief], [], -300)], REPO, knowing(a, b), (), NOW)
    assert (change.added, [one.key for one in change.removed]) == ((), [a.public.fingerprint])


def cosigned(
    old: Sequence[SigningKey], add: Sequence[SigningKey], remove: Sequence[SigningKey], days: int
) -> SignedRotation:
    one = written(old[0], add, remove, days)
    more = {f"rotation.json.{n}.sig": sign(one.data, k, namespace=ROTATION_NAMESPACE) for n, k in enumerate(old[1:])}
    return replace(one, signatures={**one.signatures, **more})


def test_what_comes_after_a_rotation_does_not_contradict_it(keys: list[SigningKey]) -> None:
    a, b, c, d, e = keys
    chain = [cosigned([a, b], [c, b], [a], -3), cosigned([b, c], [d, c], [b], -2), cosigned([d, c], [e, c], [d], -1)]
    for order in (chain, chain[::-1]):
        change = follow(order, REPO, knowing(a, b), (), NOW, threshold=2)
        assert {s.key for s in change.added} == {c.public, d.public, e.public}
    kept = [cosigned([a, b], [c], [], -3), cosigned([a, c], [d, c], [a], -2)]
    change = follow(kept, REPO, knowing(a, b), (), NOW, threshold=2)
    assert {s.key for s in change.added} == {c.public, d.public}


def test_many_rotations_of_one_owner_are_followed_in_little_time(keys: list[SigningKey]) -> None:
    a, b, *_ = keys
    many = [written(a, [a, b], [], -number - 1) for number in range(200)]
    assert [s.key for s in follow(many, REPO, knowing(a), (), NOW).added] == [b.public]


def test_a_key_that_stays_and_does_not_sign_the_rotation_is_told(
    hub: Hub, source: Callable[..., Path], other_key: SigningKey, home: Path
) -> None:
    publish(source(), clone=hub.clone, key=hub.key.path)
    rotate(other_key.path, key=hub.key.path, clone=hub.clone, keep=True)
    with pytest.warns(AdaptergitWarning, match=re.escape(f"will not accept {other_key.public.fingerprint}")):
        rotate(generate_key(home / "third").path, key=hub.key.path, clone=hub.clone)


def test_of_two_chains_from_one_key_neither_is_followed(keys: list[SigningKey]) -> None:
    """The owner adds a key, with which he takes the old one away; a thief who has the old one names his own."""
    a, b, thief, *_ = keys
    kept, over = written(a, [b], [], -5), written(b, [b], [a], -3)
    for days in (-300, -4, -1):
        assert not follow([kept, over, written(a, [thief], [a], days)], REPO, knowing(a), (), NOW)
    assert follow([kept, over, written(a, [thief], [a], -9)], REPO, knowing(b), (), NOW).added == ()


def test_a_rotation_from_before_there_were_any_is_none(keys: list[SigningKey]) -> None:
    with pytest.raises(PackageError, match="effective"):
        written(keys[0], [keys[1]], [keys[0]], -365 * 1000)


def test_junk_leaves_room_for_a_rotation_that_counts(keys: list[SigningKey]) -> None:
    a, b, stranger, *_ = keys
    junk = [written(stranger, [stranger], [], -number - 2) for number in range(100)]
    assert [s.key for s in follow([*junk, signed(a, b)], REPO, knowing(a), (), NOW).added] == [b.public]
    assert signed_in_a_chain([*junk, signed(a, b)], REPO, [a.public], NOW) == [signed(a, b)]


def test_a_key_that_was_added_and_stays_is_named_when_the_old_one_goes(keys: list[SigningKey]) -> None:
    a, b, c, *_ = keys
    kept, over = written(a, [b], [], -5), written(a, [c, b], [a], -1)
    for known in (knowing(a), knowing(a, b)):
        change = follow([kept, over], REPO, known, (), NOW)
        assert {s.key for s in (*known, *change.added)} == {a.public, b.public, c.public}
        assert [one.key for one in change.removed] == [a.public.fingerprint]


def test_a_rotation_says_nothing_of_strangers_keys_nor_of_other_repositories(keys: list[SigningKey]) -> None:
    a, b, honest, *_ = keys
    change = follow([written(a, [b], [a, honest], -9000)], REPO, knowing(a), (), NOW)
    (removed,) = change.removed
    assert removed.covers(a.public.fingerprint, REPO, None)
    assert not removed.covers(a.public.fingerprint, "github.com/acme/other", None)
    assert not removed.covers(honest.public.fingerprint, REPO, None)
    other = [*knowing(a), AllowedSigner(("github.com/acme/other",), a.public, source="test")]
    assert follow([written(a, [b], [a])], REPO, other, change.removed, NOW).added == ()


def test_more_keys_than_one_must_sign_where_more_are_asked_for(keys: list[SigningKey]) -> None:
    a, b, c, *_ = keys
    one = signed(a, c, keep=True)
    assert not follow([one], REPO, knowing(a, b), (), NOW, threshold=2)
    both = replace(
        one,
        signatures={**one.signatures, "rotation.json.12345678.sig": sign(one.data, b, namespace=ROTATION_NAMESPACE)},
    )
    assert follow([both], REPO, knowing(a, b), (), NOW, threshold=2)
    twice = replace(
        one, signatures={**one.signatures, "rotation.json.12345678.sig": one.signatures["rotation.json.sig"]}
    )
    assert not follow([twice], REPO, knowing(a, b), (), NOW, threshold=2)


# --- for real -----------------------------------------------------------------------------------------------------------


def test_users_follow_a_publisher_to_a_new_key(
    hub: Hub, source: Callable[..., Path], other_key: SigningKey, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    publish(source(), clone=hub.clone, key=hub.key.path)
    hub.trust()
    first = fetch(f"{hub.url}@sst2")
    time.sleep(1.1)  # a rotation's time has seconds
    done = CliRunner().invoke(
        main, ["rotate", str(other_key.path), "--key", str(hub.key.path), "--repo", str(hub.clone)]
    )
    assert done.exit_code == 0, done.output
    assert hub.git("status", "--porcelain") == ""
    announced = (hub.clone / ".adaptergit/allowed_signers").read_text()
    assert other_key.public.line in announced
    assert hub.key.public.line not in announced
    publish(source(b"x" * 5000, version="1.1.0"), clone=hub.clone, key=other_key.path)
    with pytest.warns(AdaptergitWarning, match="new key"):
        second = fetch(f"{hub.url}@sst2", refresh=True)
    assert (second.version, second.verdict.signers) == ("1.1.0", (other_key.public.fingerprint,))
    # What it had from the old key stays, what it had not does not; the new key needs no more asking.
    assert fetch(f"{hub.url}@sst2=={first.version}").from_store
    assert fetch(f"{hub.url}@sst2==1.1.0", offline=True).from_store
    monkeypatch.setenv("ADAPTERGIT_CONFIG_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("ADAPTERGIT_CACHE_DIR", str(tmp_path / "elsewhere-store"))
    pin_key("127.0.0.1/acme/adapters", other_key.public.line)
    assert fetch(f"{hub.url}@sst2==1.1.0").version == "1.1.0"
    with pytest.raises(TrustError, match="only"):
        fetch(f"{hub.url}@sst2==1.0.0")


def test_one_of_two_keys_that_must_sign_is_replaced(
    hub: Hub, source: Callable[..., Path], other_key: SigningKey, home: Path
) -> None:
    principal = "127.0.0.1/acme/adapters"
    settings = replace(load_settings(), policy=((principal, "enforce", 2),))
    hub.trust()
    pin_key(principal, other_key.public.line)
    publish(source(), clone=hub.clone, key=hub.key.path, cosigners=[other_key.path])
    fetch(f"{hub.url}@sst2", settings=settings)
    new = generate_key(home / "new")
    rotation = rotate(new.path, key=hub.key.path, cosigners=[other_key.path], clone=hub.clone)
    assert set(rotation.add) == {new.public, other_key.public}
    announced = (hub.clone / ".adaptergit/allowed_signers").read_text()
    assert [other_key.public.line in announced, new.public.line in announced] == [True, True]
    publish(source(b"x" * 5000, version="1.1.0"), clone=hub.clone, key=new.path, cosigners=[other_key.path])
    with pytest.warns(AdaptergitWarning, match="new key"):
        found = fetch(f"{hub.url}@sst2", settings=settings, refresh=True)
    assert set(found.verdict.signers) == {new.public.fingerprint, other_key.public.fingerprint}


def test_nobody_rotates_back(hub: Hub, source: Callable[..., Path], other_key: SigningKey) -> None:
    publish(source(), clone=hub.clone, key=hub.key.path)
    rotate(other_key.path, key=hub.key.path, clone=hub.clone)
    with pytest.raises(UsageError, match="replaced before"):
        rotate(hub.key.path, key=other_key.path, clone=hub.clone)


def test_a_folder_needs_as_many_keys_as_its_repository(
    hub: Hub, source: Callable[..., Path], other_key: SigningKey
) -> None:
    principal = "127.0.0.1/acme/adapters"
    hub.trust()
    pin_key(principal, other_key.public.line)
    publish(source(), clone=hub.clone, key=hub.key.path)
    path = fetch(f"{hub.url}@sst2").path
    settings = replace(load_settings(), policy=((principal, "enforce", 2),))
    with pytest.raises(TrustError, match="2 different keys"):
        verify(path, settings=settings)


def test_a_repository_cannot_take_away_the_keys_of_another(
    hub: Hub, source: Callable[..., Path], other_key: SigningKey, home: Path, tmp_path: Path
) -> None:
    from adaptergit.git import Clone, push_rotation

    hub.trust()
    publish(source(), clone=hub.clone, key=hub.key.path)
    fetch(f"{hub.url}@sst2")
    url, clone = hub.server.create("evil/x"), tmp_path / "evil"
    subprocess.run(["git", "clone", "-q", url, str(clone)], check=True, capture_output=True)
    publish(source(folder="evil-out"), clone=clone, key=other_key.path)
    pin_key("127.0.0.1/evil/x", other_key.public.line)
    fetch(f"{url}@sst2")
    new = generate_key(home / "new")
    doomed = (other_key.public.fingerprint, hub.key.public.fingerprint)
    data = Rotation("127.0.0.1/evil/x", (new.public,), doomed, datetime(2001, 1, 1, tzinfo=UTC)).to_bytes()
    files = {name: tmp_path / name for name in ("rotation.json", "rotation.json.sig")}
    files["rotation.json"].write_bytes(data)
    files["rotation.json.sig"].write_bytes(sign(data, other_key, namespace=ROTATION_NAMESPACE))
    push_rotation(Clone.at(clone), "origin", files, f"* {new.public.line}\n".encode(), "0" * 16)
    publish(source(b"x" * 5000, version="1.1.0", folder="evil-out"), clone=clone, key=new.path)
    with pytest.warns(AdaptergitWarning, match="new key"):
        fetch(f"{url}@sst2", refresh=True)
    with pytest.raises(TrustError, match="revoked since 2001"):
        fetch(f"{url}@sst2==1.0.0")
    publish(source(b"x" * 5000, version="1.1.0"), clone=hub.clone, key=hub.key.path)
    assert fetch(f"{hub.url}@sst2", refresh=True).version == "1.1.0"


def test_whoever_takes_over_the_repository_cannot_rotate(
    hub: Hub, source: Callable[..., Path], other_key: SigningKey, home: Path
) -> None:
    publish(source(), clone=hub.clone, key=hub.key.path)
    hub.trust()
    fetch(f"{hub.url}@sst2")
    # The thief can push what he likes, but signs with his own key only.
    (hub.clone / ".adaptergit").mkdir(exist_ok=True)
    rotate(generate_key(home / "third").path, key=other_key.path, clone=hub.clone, repository="127.0.0.1/acme/adapters")
    publish(source(b"x" * 5000, version="1.1.0"), clone=hub.clone, key=home / "third")
    before = snapshot(home)
    with pytest.raises(TrustError, match="only") as refused:
        fetch(f"{hub.url}@sst2==1.1.0")
    assert any("valid signature" in step for step in refused.value.steps)
    assert snapshot(home / "config") == {
        name.removeprefix("config/"): data for name, data in before.items() if name.startswith("config/")
    }
    assert [s.key for s in known_signers(load_settings())] == [hub.key.public]


def test_a_rotation_that_cannot_be_pushed_changes_nothing(
    hub: Hub, source: Callable[..., Path], other_key: SigningKey
) -> None:
    publish(source(), clone=hub.clone, key=hub.key.path)
    before, head = snapshot(hub.clone / "adapters"), hub.git("rev-parse", "HEAD")
    with pytest.raises(UsageError, match="the key there is"):
        rotate(hub.key.path, key=hub.key.path, clone=hub.clone)
    other = hub.clone.parent / "other"
    subprocess.run(["git", "clone", "-q", hub.url, str(other)], check=True)
    (other / "a").write_text("a")
    git(other, "add", "a")
    git(other, "commit", "-qm", "a")
    git(other, "push", "-q")
    with pytest.raises(Exception, match=r"rejected|fetch first"):
        rotate(other_key.path, key=hub.key.path, clone=hub.clone)
    assert hub.git("rev-parse", "HEAD") == head
    assert snapshot(hub.clone / "adapters") == before
    assert hub.git("status", "--porcelain") == ""


# --- histories ----------------------------------------------------------------------------------------------------------


def test_a_version_with_two_digests_and_a_forked_chain_are_refused(
    hub: Hub, source: Callable[..., Path], tmp_path: Path
) -> None:
    publish(source(), clone=hub.clone, key=hub.key.path)
    hub.trust()
    first = fetch(f"{hub.url}@sst2")
    # The publisher's key signs a second history: other bytes under the same version, and another second release.
    hub.git("tag", "-d", "adapters/sst2/1.0.0")
    hub.git("push", "-q", "origin", ":refs/tags/adapters/sst2/1.0.0")
    hub.git("checkout", "-q", "--orphan", "fresh")
    hub.git("rm", "-rfq", ".")
    hub.git("commit", "-q", "--allow-empty", "-m", "again")
    hub.git("push", "-qf", "origin", "fresh:main")
    hub.git("branch", "-M", "main")
    publish(source(b"y" * 5000), clone=hub.clone, key=hub.key.path)
    with pytest.raises(TrustError, match="releases never change"):
        fetch(f"{hub.url}@sst2==1.0.0", refresh=True)
    publish(source(b"z" * 5000, version="1.1.0"), clone=hub.clone, key=hub.key.path)
    forked = fetch(f"{hub.url}@sst2==1.1.0")  # follows a release that this machine never had: nothing to compare
    hub.git("tag", "-d", "adapters/sst2/1.1.0")
    hub.git("push", "-q", "origin", ":refs/tags/adapters/sst2/1.1.0")
    hub.git("reset", "-q", "--hard", "HEAD~1")
    hub.git("push", "-qf", "origin", "main")
    publish(source(b"z" * 5000, version="1.2.0"), clone=hub.clone, key=hub.key.path)
    with pytest.raises(TrustError, match="forked"):
        fetch(f"{hub.url}@sst2==1.2.0")
    assert verify(first.path).manifest.version == "1.0.0"
    assert forked.version == "1.1.0"


def test_a_repository_that_no_longer_lists_the_newest_is_a_rollback(hub: Hub, source: Callable[..., Path]) -> None:
    publish(source(), clone=hub.clone, key=hub.key.path)
    publish(source(b"x" * 5000, version="1.1.0"), clone=hub.clone, key=hub.key.path)
    hub.trust()
    assert fetch(f"{hub.url}@sst2").version == "1.1.0"
    git(hub.bare, "update-ref", "-d", "refs/tags/adapters/sst2/1.1.0")
    with pytest.raises(TrustError, match=r"this machine had 1\.1\.0"):
        fetch(f"{hub.url}@sst2", refresh=True)
    assert fetch(f"{hub.url}@sst2==1.0.0").version == "1.0.0"


def test_what_was_only_looked_at_stands_in_nobodys_way(
    hub: Hub, source: Callable[..., Path], other_key: SigningKey
) -> None:
    hub.trust()
    publish(source(), clone=hub.clone, key=hub.key.path)
    fetch(f"{hub.url}@sst2")
    honest = hub.git("rev-parse", "HEAD")
    publish(source(b"x" * 5000, version="1.1.0"), clone=hub.clone, key=other_key.path)
    with pytest.raises(TrustError):
        fetch(f"{hub.url}@sst2==1.1.0")
    with pytest.warns(AdaptergitWarning, match="unsigned"):
        fetch(f"{hub.url}@sst2==1.1.0", policy="unsigned")
    # The owner has the repository back.
    hub.git("push", "-q", "origin", ":refs/tags/adapters/sst2/1.1.0")
    hub.git("tag", "-d", "adapters/sst2/1.1.0")
    hub.git("reset", "-q", "--hard", honest)
    hub.git("push", "-qf", "origin", "HEAD")
    assert fetch(f"{hub.url}@sst2", refresh=True).version == "1.0.0"
    publish(source(b"y" * 5000, version="1.1.0"), clone=hub.clone, key=hub.key.path)
    found = fetch(f"{hub.url}@sst2", refresh=True)
    assert found.version == "1.1.0"
    with pytest.warns(AdaptergitWarning, match="unsigned"):
        fetch(f"{hub.url}@sst2==1.1.0", policy="unsigned")
    assert fetch(f"{hub.url}@sst2==1.1.0", offline=True).digest == found.digest


@pytest.mark.parametrize(
    ("version", "previous", "message"),
    [("1.5.0", "2.0.0", "follow 2.0.0, which is newer"), ("2.0", None, "the digest"), ("2.1.0", "2.0.0", None)],
)
def test_a_history_goes_one_way(version: str, previous: str | None, message: str | None, key: SigningKey) -> None:
    past = Past("2.0.0", "2" * 64, "1" * 64)
    manifest = Manifest(
        repository=REPO, name="sst2", version=version, created="2026-11-23T09:00:00Z", license="MIT", method="seq_bn",
        base_model=BaseModel("acme/tiny", None, "fp1:2x32:" + "0" * 32 + ":"), files=(File("card.yaml", 1, "0" * 64),),
        previous=None if previous is None else past.digest,
    ).to_bytes()  # fmt: skip
    policy, signatures = (
        Policy(signers=tuple(knowing(key)), history=(past,)),
        {"manifest.json.sig": sign(manifest, key)},
    )
    if message is None:
        evaluate(manifest, signatures, policy, NOW)
    else:
        with pytest.raises(TrustError, match=message):
            evaluate(manifest, signatures, policy, NOW)


def test_who_pins_a_digest_has_chosen_between_two_histories(
    hub: Hub, source: Callable[..., Path], key: SigningKey
) -> None:
    publish(source(), clone=hub.clone, key=hub.key.path)
    data = (hub.clone / "adapters/sst2/manifest.json").read_bytes()
    signatures = {"manifest.json.sig": (hub.clone / "adapters/sst2/manifest.json.sig").read_bytes()}
    signers = (AllowedSigner(("*",), key.public, source="test"),)
    past = (Past("1.0.0", "0" * 64, None),)
    with pytest.raises(TrustError, match="releases never change"):
        evaluate(data, signatures, Policy(signers=signers, history=past), NOW)
    evaluate(data, signatures, Policy(signers=signers, history=past, digest=canonical.sha256(data)), NOW)


# --- protected branches, other tools, explanations ------------------------------------------------------------------


def test_a_protected_branch_is_published_to_by_pull_request(hub: Hub, source: Callable[..., Path]) -> None:
    publish(source(), clone=hub.clone, key=hub.key.path)
    hub.trust()
    hook = hub.bare / "hooks" / "update"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text('#!/bin/sh\n[ "$1" != refs/heads/main ]\n')
    hook.chmod(0o755)
    with pytest.raises(ReleaseError, match=r"--pull-request"):
        publish(source(version="1.1.0"), clone=hub.clone, key=hub.key.path)
    head = hub.git("rev-parse", "HEAD")
    second = publish(source(version="1.1.0"), clone=hub.clone, key=hub.key.path, pull_request=True)
    assert hub.git("rev-parse", "HEAD") == head
    assert hub.git("status", "--porcelain") == ""
    assert "publish/sst2-1.1.0" in str(second.pull_request)
    assert fetch(f"{hub.url}@sst2", refresh=True).version == "1.1.0"  # the tag alone is the release
    third = publish(source(version="1.2.0"), clone=hub.clone, key=hub.key.path, pull_request=True)
    assert third.previous is not None
    assert fetch(f"{hub.url}@sst2", refresh=True).version == "1.2.0"


def test_an_openssf_bundle_is_written_and_read(hub: Hub, source: Callable[..., Path], tmp_path: Path) -> None:
    private, public = tmp_path / "ec.pem", tmp_path / "ec.pub"
    subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(private)], check=True)
    subprocess.run(
        ["openssl", "ec", "-in", str(private), "-pubout", "-out", str(public)], check=True, capture_output=True
    )
    publish(source(), clone=hub.clone, key=hub.key.path, model_signing_key=private)
    hub.trust()
    found = fetch(f"{hub.url}@sst2")
    assert (found.path / "model.sig").is_file()
    done = CliRunner().invoke(main, ["verify", str(found.path), "--model-signing-key", str(public)])
    assert (done.exit_code, "model.sig" in done.output) == (0, True), done.output
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in found.path.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "manifest.json.sig").write_bytes(b"x")
    from adaptergit.trust.oms import verify_bundle

    with pytest.raises(TrustError, match=r"manifest\.json\.sig was changed"):
        verify_bundle(copy, public)
    (copy / "more").write_bytes(b"x")
    (copy / "manifest.json.sig").write_bytes((found.path / "manifest.json.sig").read_bytes())
    with pytest.raises(TrustError, match="more is not listed"):
        verify_bundle(copy, public)
    (copy / "more").unlink()
    bundle = json.loads((copy / "model.sig").read_text())
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = "AAAA"
    (copy / "model.sig").write_text(json.dumps(bundle))
    with pytest.raises(TrustError, match="does not fit"):
        verify_bundle(copy, public)


@pytest.mark.parametrize("change", ["subject", "no subject", "method", "ignored", "link", "folder"])
def test_an_openssf_bundle_speaks_of_every_file(tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from adaptergit.trust import oms

    private, public, folder = tmp_path / "ec.pem", tmp_path / "ec.pub", tmp_path / "package"
    subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(private)], check=True)
    subprocess.run(
        ["openssl", "ec", "-in", str(private), "-pubout", "-out", str(public)], check=True, capture_output=True
    )
    folder.mkdir()
    (folder / "a").write_bytes(b"a")
    statement = oms._statement("x", oms._digests(folder))
    if change == "subject":
        statement["subject"][0]["digest"]["sha256"] = "0" * 64
    elif change == "no subject":
        statement["subject"] = []
    elif change == "method":
        statement["predicate"]["serialization"]["method"] = "shards"
    elif change == "ignored":
        statement["predicate"]["serialization"]["ignore_paths"] = ["a"]
    monkeypatch.setattr(oms, "_statement", lambda *_: statement)
    (folder / "model.sig").write_bytes(oms.sign_bundle(folder, "x", private))
    if change == "link":
        (tmp_path / "elsewhere").write_bytes(b"a")
        (folder / "a").unlink()
        (folder / "a").symlink_to(tmp_path / "elsewhere")
    elif change == "folder":
        (folder / "b").mkdir()
    with pytest.raises(TrustError):
        oms.verify_bundle(folder, public)


def test_verify_shows_how_far_it_came(hub: Hub, source: Callable[..., Path], other_key: SigningKey) -> None:
    publish(source(), clone=hub.clone, key=hub.key.path)
    pin_key("127.0.0.1/acme/adapters", other_key.public.line)
    folder = str(hub.clone / "adapters" / "sst2")
    done = CliRunner().invoke(main, ["verify", folder])
    assert done.exit_code == 4
    assert "ok  manifest.json.sig: valid signature" in done.output
    assert "no  signed by" in done.output
