"""Keys that come after keys, and histories that contradict themselves."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import Hub, git, machine_of, push_as_it_is, snapshot
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adaptergit.bundle import export_bundle, import_bundle
from adaptergit.cli import main
from adaptergit.errors import AdaptergitWarning, PackageError, ReleaseError, StorageError, TrustError, UsageError
from adaptergit.git import Clone, Remote, push_rotation
from adaptergit.git.worktree import commit_time
from adaptergit.ladder import rotations_at
from adaptergit.locks import exclusively
from adaptergit.mirror import mirror
from adaptergit.package import BaseModel, File, Manifest, canonical
from adaptergit.pins import known_revocations, known_rotation, known_signers, pin_key, revoke, unpin_key
from adaptergit.publish import publish, yank
from adaptergit.reference import Source
from adaptergit.resolve import fetch, verify
from adaptergit.rotate import rotate as rotate_here
from adaptergit.settings import Limits, cache_dir, load_settings
from adaptergit.trust import (
    ROTATION_NAMESPACE,
    AllowedSigner,
    Change,
    Past,
    Policy,
    PublicKey,
    Rotation,
    SignedRotation,
    SigningKey,
    evaluate,
    follow,
    generate_key,
    sign,
)
from adaptergit.trust.rotation import extending

REPO = "github.com/acme/adapters"
NOW = datetime(2026, 11, 24, tzinfo=UTC)


def rotate(*args: Any, **options: Any) -> Rotation:
    """Rotate on the publisher's machine, which is not the user's."""
    with machine_of("publisher"):
        return rotate_here(*args, **options)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> list[SigningKey]:
    folder = tmp_path_factory.mktemp("chain")
    return [generate_key(folder / f"key-{number}") for number in range(5)]


def written(
    signers: Sequence[SigningKey],
    add: Sequence[SigningKey],
    remove: Sequence[SigningKey] = (),
    *,
    after: SignedRotation | None = None,
    days: int = -1,
    repository: str = REPO,
    namespace: str = ROTATION_NAMESPACE,
) -> SignedRotation:
    data = Rotation(
        repository,
        tuple(one.public for one in add),
        tuple(one.public.fingerprint for one in remove),
        NOW + timedelta(days=days),
        after.digest if after else None,
    ).to_bytes()
    return SignedRotation(data, {f"{n}.sig": sign(data, one, namespace=namespace) for n, one in enumerate(signers)})


def knowing(*keys: SigningKey) -> list[AllowedSigner]:
    return [AllowedSigner((REPO,), key.public, source="test") for key in keys]


# --- the rule -----------------------------------------------------------------------------------------------------------


def counting(change: Change, *before: SigningKey) -> set[PublicKey]:
    gone = {one.key for one in change.removed}
    keys = {one.public for one in before} | {signer.key for signer in change.added}
    return {key for key in keys if key.fingerprint not in gone}


def test_a_chain_of_rotations_is_followed_in_any_order_from_wherever_one_comes_in(keys: list[SigningKey]) -> None:
    a, b, c, d, _ = keys
    one = written([a], [b], [a], days=-3)
    two = written([b], [c], [b], after=one, days=-2)
    three = written([c], [d], [c], after=two, days=-1)
    for chain in ([three, one, two], [one, two, three]):
        change = follow(chain, REPO, knowing(a), (), NOW)
        assert [s.key for s in change.added] == [b.public, c.public, d.public]
        assert [one.key for one in change.removed] == [key.public.fingerprint for key in (a, b, c)]
        assert change.path == (one, two, three)
        for known in (a, b, c, d):
            assert counting(follow(chain, REPO, knowing(known), (), NOW), known) == {d.public}
    # What it comes after may be hidden: then it says nothing.
    assert not follow([two, three], REPO, knowing(b), (), NOW)


@pytest.mark.parametrize(
    "case", ["stranger", "namespace", "repository", "future", "changed", "revoked", "nobody", "later"]
)
def test_a_rotation_that_does_not_count_is_passed_over(keys: list[SigningKey], case: str) -> None:
    a, b, c, *_ = keys
    known, revocations = knowing(a), []
    good = written([a], [b], [a])
    document = {
        "stranger": written([c], [b]),
        "namespace": written([a], [b], [a], namespace="manifest.v1@adaptergit"),
        "repository": written([a], [b], [a], repository="github.com/acme/other"),
        "future": written([a], [b], [a], days=1),
        "changed": replace(good, data=good.data.replace(b"2026-11-23", b"2026-11-22")),
        "later": written([a], [b], [a], after=good),
    }.get(case, good)
    if case == "revoked":
        revocations = [revoke(a.public.fingerprint, reason="stolen")]
    if case == "nobody":
        known = []
    assert document != good or case in ("revoked", "nobody")
    assert not follow([document], REPO, known, revocations, NOW)
    assert follow([good, document], REPO, knowing(a), (), NOW)


def test_a_retired_key_says_nothing_more_whatever_date_it_states(keys: list[SigningKey]) -> None:
    a, b, thief, *_ = keys
    one = written([a], [b], [a])
    first = follow([one], REPO, knowing(a), (), NOW)
    for forged in (written([a], [thief], [a, b], days=-300), written([a], [thief], [b], after=one)):
        later = follow([one, forged], REPO, [*knowing(a), *first.added], first.removed, NOW)
        assert not later
        assert counting(follow([one, forged], REPO, knowing(b), (), NOW), b) == {b.public}
    # After its own removal, it adds nobody for those who meet both at once either.
    after = written([a], [thief], after=one)
    assert counting(follow([one, after], REPO, knowing(a), (), NOW), a) == {b.public}


def test_where_two_follow_the_same_one_nothing_is_followed(keys: list[SigningKey]) -> None:
    a, b, c, thief, _ = keys
    one = written([a], [b], [a], days=-9)
    for forged in (written([a], [thief], [a]), written([a], [thief]), written([a], [thief], [a], days=-300)):
        change = follow([one, forged], REPO, knowing(a), (), NOW)
        assert not change
        assert forged.mark in change.contradiction
    # The thief has a key that came later: who knows the first one only is not led to that either.
    two, forged = written([b], [c], [b], after=one), written([b], [thief], [b], after=one)
    change = follow([one, two, forged], REPO, knowing(a), (), NOW)
    assert not change
    assert change.path == (one,)
    # Who knows what came after cannot be misled.
    assert counting(follow([one, two, forged], REPO, knowing(c), (), NOW), c) == {c.public}
    three = written([c], [thief], after=two)
    assert extending([one, two], [forged, one, three]) == [one, three]


def test_a_removed_key_is_not_added_again(keys: list[SigningKey]) -> None:
    """C, which A added, was stolen and taken away; who signs later brings nobody back."""
    a, b, c, d, e = keys
    one = written([a, b], [c, a, b])
    two = written([c, b], [d, b], [c], after=one)
    three = written([a, b, d], [e, b, d], [a], after=two)
    for known in ((a, b), (a,), (b,), (a, b, c), (b, d)):
        change = follow([one, two, three], REPO, knowing(*known), (), NOW)
        assert counting(change, *known) == {b.public, d.public, e.public}
    again = written([e], [c], after=three)
    assert c.public not in counting(follow([one, two, three, again], REPO, knowing(a, b), (), NOW), a, b)


def test_each_of_several_keys_that_must_sign_is_replaced_in_turn(keys: list[SigningKey]) -> None:
    a, b, c, d, e = keys
    one = written([a, b], [c, b], [a])
    two = written([b, c], [d, c], [b], after=one)
    three = written([d, c], [e, c], [d], after=two)
    for order in ([one, two, three], [three, two, one]):
        change = follow(order, REPO, knowing(a, b), (), NOW, threshold=2)
        assert counting(change, a, b) == {c.public, e.public}
    assert not follow([written([a], [c], [a])], REPO, knowing(a, b), (), NOW, threshold=2)
    assert not follow([replace(one, signatures={})], REPO, knowing(a, b), (), NOW, threshold=2)
    alone = written([a], [c], [a])
    twice = replace(alone, signatures={**alone.signatures, "again.sig": alone.signatures["0.sig"]})
    assert not follow([twice], REPO, knowing(a, b), (), NOW, threshold=2)
    # Half of the signatures is in the repository, half in an index.
    halves = [replace(one, signatures={name: data}) for name, data in one.signatures.items()]
    assert follow(halves, REPO, knowing(a, b), (), NOW, threshold=2).added


def test_a_rotation_from_before_there_were_any_is_none(keys: list[SigningKey]) -> None:
    with pytest.raises(PackageError, match="effective"):
        written([keys[0]], [keys[1]], [keys[0]], days=-365 * 1000)


def test_junk_leaves_room_for_a_rotation_that_counts(keys: list[SigningKey]) -> None:
    a, b, stranger, *_ = keys
    junk = [written([stranger], [stranger], days=-number - 2) for number in range(100)]
    change = follow([*junk, written([a], [b])], REPO, knowing(a), (), NOW)
    assert [s.key for s in change.added] == [b.public]


def test_a_rotation_says_nothing_of_strangers_keys_nor_of_other_repositories(keys: list[SigningKey]) -> None:
    a, b, honest, *_ = keys
    change = follow([written([a], [b], [a, honest], days=-9000)], REPO, knowing(a), (), NOW)
    (removed,) = change.removed
    assert removed.covers(a.public.fingerprint, REPO, None)
    assert not removed.covers(a.public.fingerprint, "github.com/acme/other", None)
    assert not removed.covers(honest.public.fingerprint, REPO, None)
    other = [*knowing(a), AllowedSigner(("github.com/acme/other",), a.public, source="test")]
    assert follow([written([a], [b], [a])], REPO, other, change.removed, NOW).added == ()


@dataclass
class History:
    """An honest owner's: who signed when, and which keys the repository announced after each step."""

    chain: list[SignedRotation]
    announced: list[set[str]]
    retired: list[str]


@st.composite
def histories(draw: st.DrawFn, *, threshold: int) -> History:
    standing = [f"k{n}" for n in range(threshold + draw(st.integers(0, 1)))]
    found = History([], [set(standing)], [])
    for step in range(draw(st.integers(1, 4))):
        signers = draw(st.permutations(standing))[: max(threshold, len(standing) - draw(st.integers(0, 1)))]
        new, keep = f"n{step}", draw(st.booleans())
        removed = [] if keep else [signers[0]]
        staying = [one for one in standing if one not in removed]
        after = found.chain[-1] if found.chain else None
        found.chain.append(quickly(signers, [new, *staying], removed, after))
        standing = [*staying, new]
        found.announced.append(set(standing))
        found.retired += removed
    return found


def quickly(signers: Sequence[str], add: Sequence[str], remove: Sequence[str], after: SignedRotation | None) -> Any:
    return written(
        [many(one) for one in signers], [many(one) for one in add], [many(one) for one in remove], after=after
    )


@cache
def many(name: str) -> SigningKey:
    return generate_key(Path(tempfile.mkdtemp(prefix="adaptergit-keys-")) / name)


@given(st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whoever_knew_the_keys_at_some_time_comes_to_those_of_today_and_no_thief_stops_him(data: st.DataObject) -> None:
    threshold = data.draw(st.sampled_from([1, 1, 2, 3]))
    history = data.draw(histories(threshold=threshold))
    today = {many(one).public for one in history.announced[-1]}
    known = [[many(one) for one in sorted(names)] for names in history.announced]
    for before in known:
        change = follow(history.chain, REPO, knowing(*before), (), NOW, threshold=threshold)
        assert counting(change, *before) == today
    # A thief has keys that were replaced, fewer than must sign or those of one repository of old, and can write anywhere.
    stolen = [*data.draw(st.lists(st.sampled_from(history.retired or ["x"]), unique=True, max_size=2)), "thief"]
    forged: list[SignedRotation] = []
    for _ in range(data.draw(st.integers(1, 3))):
        after = data.draw(st.sampled_from([None, *history.chain, *forged]))
        remove = data.draw(st.lists(st.sampled_from(sorted(history.announced[-1])), unique=True, max_size=2))
        forged.append(quickly(stolen, ["thief"], remove, after))
    thief = many("thief").public
    for before in known:
        change = follow([*forged, *history.chain], REPO, knowing(*before), (), NOW, threshold=threshold)
        assert thief not in counting(change, *before)
    assert counting(
        follow([*forged, *history.chain], REPO, knowing(*known[-1]), (), NOW, threshold=threshold), *known[-1]
    ) >= today  # fmt: skip


# --- for real -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_users_follow_a_publisher_to_a_new_key(
    hub: Hub, source: Callable[..., Path], other_key: SigningKey, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    publish(source(), clone=hub.clone, key=hub.key.path)
    hub.trust()
    first = fetch(f"{hub.url}@sst2")
    time.sleep(1.1)  # a rotation's time has seconds
    with machine_of("publisher"):
        argv = ["rotate", str(other_key.path), "--key", str(hub.key.path), "--repo", str(hub.clone)]
        done = CliRunner().invoke(main, argv)
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


@pytest.mark.slow
def test_a_repository_cannot_take_away_the_keys_of_another(
    hub: Hub, source: Callable[..., Path], other_key: SigningKey, home: Path, tmp_path: Path
) -> None:
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
    push_rotation(Clone.at(clone), "origin", files, f"* {new.public.line}\n".encode(), SignedRotation(data, {}).mark)
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
    with pytest.raises(Exception, match=r"has commits that this clone has not"):
        rotate(other_key.path, key=hub.key.path, clone=hub.clone)
    assert hub.git("rev-parse", "HEAD") == head
    assert snapshot(hub.clone / "adapters") == before
    assert hub.git("status", "--porcelain") == ""


ACME = "127.0.0.1/acme/adapters"


def announce(hub: Hub, *keys: SigningKey) -> None:
    (hub.clone / ".adaptergit").mkdir(exist_ok=True)
    (hub.clone / ".adaptergit/allowed_signers").write_text("".join(f"* {one.public.line}\n" for one in keys))
    hub.git("add", ".adaptergit")
    hub.git("commit", "-qm", "keys")
    hub.git("push", "-q", "origin", "HEAD")


@pytest.mark.slow
def test_a_stolen_key_that_was_replaced_stays_replaced(
    hub: Hub, source: Callable[..., Path], keys: list[SigningKey]
) -> None:
    a, b, c, d, e = keys
    announce(hub, a, b)
    pin_key(ACME, a.public.line)
    pin_key(ACME, b.public.line)
    publish(source(), clone=hub.clone, key=a.path)
    fetch(f"{hub.url}@sst2")
    rotate(c.path, key=a.path, cosigners=[b.path], keep=True, clone=hub.clone)
    rotate(d.path, key=c.path, cosigners=[b.path], clone=hub.clone)
    rotate(e.path, key=a.path, cosigners=[b.path, d.path], clone=hub.clone)
    publish(source(b"x" * 5000, version="1.1.0"), clone=hub.clone, key=e.path)
    with pytest.warns(AdaptergitWarning, match="new key"):
        fetch(f"{hub.url}@sst2", refresh=True)
    assert {one.key for one in known_revocations(load_settings())} == {a.public.fingerprint, c.public.fingerprint}
    hub.git("rm", "-q", ".adaptergit/allowed_signers")
    hub.git("commit", "-qm", "a thief's")
    rotated = git(hub.bare, "for-each-ref", "--format=%(objectname) %(refname)", "refs/tags/adapters-rotations/")
    with machine_of("thief"):  # whose program looks at no rotations
        for line in rotated.splitlines():
            hub.git("tag", "-d", line.partition("refs/tags/")[2])
            git(hub.bare, "update-ref", "-d", line.partition(" ")[2])
        publish(source(b"evil" * 2000, version="1.2.0"), clone=hub.clone, key=c.path)
    for line in rotated.splitlines():
        git(hub.bare, "update-ref", *reversed(line.split()))
    with pytest.raises(TrustError, match=r"replaced by its owner|only"):
        fetch(f"{hub.url}@sst2", refresh=True)


@pytest.mark.slow
def test_three_keys_of_which_two_must_sign_are_replaced_in_turn(
    hub: Hub, source: Callable[..., Path], keys: list[SigningKey], home: Path
) -> None:
    one, two, three, four, five = keys
    six = generate_key(home / "six")
    announce(hub, one, two, three)
    for key in (one, two, three):
        pin_key(ACME, key.public.line)
    wanted = replace(load_settings(), policy=((ACME, "enforce", 2),))
    publish(source(), clone=hub.clone, key=one.path, cosigners=[two.path])
    fetch(f"{hub.url}@sst2", settings=wanted)
    rotate(four.path, key=three.path, cosigners=[one.path, two.path], clone=hub.clone)
    rotate(five.path, key=one.path, cosigners=[four.path, two.path], clone=hub.clone)
    rotate(six.path, key=two.path, cosigners=[four.path, five.path], clone=hub.clone)
    publish(source(b"x" * 5000, version="1.1.0"), clone=hub.clone, key=four.path, cosigners=[five.path, six.path])
    with pytest.warns(AdaptergitWarning, match="new key"):
        assert fetch(f"{hub.url}@sst2", settings=wanted, refresh=True).version == "1.1.0"


@pytest.mark.slow
def test_a_rotation_of_unknown_keys_is_no_base_for_the_next(
    hub: Hub, source: Callable[..., Path], keys: list[SigningKey], home: Path
) -> None:
    """Whoever signs the next one vouches for it."""
    a, b, mate, thief, new = keys
    third = generate_key(home / "third")
    announce(hub, a, b, mate)
    publish(source(), clone=hub.clone, key=a.path)
    rotate(b.path, key=mate.path, keep=True, clone=hub.clone)
    with pytest.raises(UsageError, match="comes first") as refused:
        rotate_here(new.path, key=a.path, clone=hub.clone)
    assert f"adaptergit trust add {ACME}" in refused.value.hint
    pin_key(ACME, mate.public.line)
    done = rotate_here(new.path, key=a.path, clone=hub.clone)
    assert done.previous is not None
    with pytest.raises(UsageError, match="replaced before"):
        rotate_here(a.path, key=new.path, clone=hub.clone)
    # A thief of the key that was replaced says something else at the same place.
    push_as_it_is(hub, replace(done, add=(thief.public,)).to_bytes(), a)
    with pytest.warns(AdaptergitWarning, match="may sign for|replaced by its owner"):
        pin_key(ACME, a.public.line)
    with pytest.raises(UsageError, match="follow the same one") as refused:
        rotate_here(third.path, key=new.path, clone=hub.clone)
    assert "git push origin :refs/tags/adapters-rotations/" in refused.value.hint
    unpin_key(a.public.fingerprint)
    assert rotate_here(third.path, key=new.path, clone=hub.clone).previous == SignedRotation(done.to_bytes(), {}).digest


@pytest.mark.slow
def test_a_thief_who_takes_a_rotations_tag_away_is_followed_by_nobody(
    hub: Hub, source: Callable[..., Path], keys: list[SigningKey]
) -> None:
    """Users remember what they followed, and owners what they signed: nothing else comes after it."""
    a, b, c, thief, _ = keys
    pin_key(ACME, a.public.line)
    with machine_of("publisher"):
        pin_key(ACME, a.public.line)
    publish(source(), clone=hub.clone, key=a.path)
    first = rotate(b.path, key=a.path, clone=hub.clone)
    publish(source(b"x" * 5000, version="1.1.0"), clone=hub.clone, key=b.path)
    with pytest.warns(AdaptergitWarning, match="new key"):
        fetch(f"{hub.url}@sst2", refresh=True)
    mark = SignedRotation(first.to_bytes(), {}).mark
    hub.git("push", "-q", "origin", f":refs/tags/adapters-rotations/{mark}")
    forged = Rotation(ACME, (thief.public,), (), datetime(2026, 11, 1, tzinfo=UTC))
    push_as_it_is(hub, forged.to_bytes(), a)
    with pytest.raises(UsageError, match="is not among") as refused:
        rotate(c.path, key=b.path, clone=hub.clone)
    assert "git push origin refs/tags" in refused.value.hint
    # An owner without a memory vouches for the thief; who followed the first one does not.
    with machine_of("new"):
        pin_key(ACME, a.public.line)
        told: list[str] = []
        rotate_here(c.path, key=b.path, clone=hub.clone, report=told.append)
        assert thief.public.fingerprint in told[0]
    publish(source(b"y" * 5000, version="1.2.0"), clone=hub.clone, key=c.path)
    with pytest.raises(TrustError) as not_followed:
        fetch(f"{hub.url}@sst2", refresh=True)
    assert "is not among" in not_followed.value.hint
    # A person decides: the new key is trusted by hand, and what was followed is forgotten.
    with pytest.warns(AdaptergitWarning, match=f"{re.escape(b.public.fingerprint)} may sign for {ACME} too"):
        pin_key(ACME, c.public.line)
    assert fetch(f"{hub.url}@sst2", refresh=True).version == "1.2.0"
    assert known_rotation(load_settings(), ACME) is None


def test_what_one_owner_of_two_signed_alone_is_no_base_for_what_both_sign(
    hub: Hub, source: Callable[..., Path], keys: list[SigningKey]
) -> None:
    a, b, c, mole, _ = keys
    announce(hub, a, b)
    publish(source(), clone=hub.clone, key=a.path)
    with machine_of("a"):
        rotate_here(mole.path, key=a.path, keep=True, clone=hub.clone)
    with machine_of("b"):
        with pytest.raises(UsageError, match="fewer than 2"):
            rotate_here(c.path, key=b.path, cosigners=[mole.path], clone=hub.clone)
        folder = load_settings().pins_path.parent
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.toml").write_text(f'[[policy]]\nmatch = "{ACME}"\nlevel = "enforce"\nthreshold = 2\n')
        with pytest.raises(UsageError, match="2 keys must sign"):
            rotate_here(c.path, key=b.path, clone=hub.clone)


def test_whoever_followed_goes_on_from_there_though_the_new_key_did_not_sign(
    hub: Hub, source: Callable[..., Path], keys: list[SigningKey], tmp_path: Path
) -> None:
    """The new key's public half alone is at hand; its owner has followed as a user."""
    a, b, c, *_ = keys
    pin_key(ACME, a.public.line)
    (tmp_path / "b.pub").write_text(b.public.line + "\n")
    publish(source(), clone=hub.clone, key=a.path)
    first = rotate(tmp_path / "b.pub", key=a.path, clone=hub.clone)
    publish(source(b"x" * 5000, version="1.1.0"), clone=hub.clone, key=b.path)
    with pytest.warns(AdaptergitWarning, match="new key"):
        fetch(f"{hub.url}@sst2", refresh=True)
    done = rotate_here(c.path, key=b.path, clone=hub.clone)
    assert done.previous == SignedRotation(first.to_bytes(), {}).digest


def test_a_clock_that_is_fast_forks_no_chain(hub: Hub, source: Callable[..., Path], keys: list[SigningKey]) -> None:
    a, b, c, *_ = keys
    publish(source(), clone=hub.clone, key=a.path)
    soon = datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=5)
    early = Rotation(ACME, (b.public,), (), soon)
    push_as_it_is(hub, early.to_bytes(), a, b)
    assert rotate(c.path, key=a.path, clone=hub.clone).previous == SignedRotation(early.to_bytes(), {}).digest


@pytest.mark.slow
def test_a_protected_branch_keeps_nobody_from_rotating(
    hub: Hub, source: Callable[..., Path], keys: list[SigningKey]
) -> None:
    a, b, *_ = keys
    pin_key(ACME, a.public.line)
    publish(source(), clone=hub.clone, key=a.path)
    fetch(f"{hub.url}@sst2")
    hook = hub.bare / "hooks" / "update"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text('#!/bin/sh\n[ "$1" != refs/heads/main ] || { echo protected >&2; exit 1; }\n')
    hook.chmod(0o755)
    head = hub.git("rev-parse", "HEAD")
    with pytest.raises(ReleaseError) as refused:
        rotate(b.path, key=a.path, clone=hub.clone)
    assert "--pull-request" in refused.value.hint
    rotate(b.path, key=a.path, clone=hub.clone, pull_request=True)
    assert hub.git("rev-parse", "HEAD") == head
    (branch,) = hub.git("ls-remote", "origin", "refs/heads/rotate/*").splitlines()
    hub.git("fetch", "-q", "origin", branch.split("\t")[1])
    assert b.public.line in hub.git("show", "FETCH_HEAD:.adaptergit/allowed_signers")
    hook.unlink()
    hub.git("merge", "-q", "FETCH_HEAD")
    publish(source(b"x" * 5000, version="1.1.0"), clone=hub.clone, key=b.path)
    with pytest.warns(AdaptergitWarning, match="new key"):
        assert fetch(f"{hub.url}@sst2", refresh=True).version == "1.1.0"


def test_a_load_that_brings_nothing_waits_for_nobodys_lock(
    hub: Hub, source: Callable[..., Path], keys: list[SigningKey]
) -> None:
    pin_key(ACME, keys[0].public.line)
    publish(source(), clone=hub.clone, key=keys[0].path)
    fetch(f"{hub.url}@sst2==1.0.0")
    settings = load_settings()
    with exclusively(cache_dir() / "locks", str(settings.revocations_path)), ThreadPoolExecutor(1) as pool:
        found = pool.submit(fetch, f"{hub.url}@sst2==1.0.0", offline=True).result(timeout=60)
    assert found.from_store


def test_a_contradiction_is_told(hub: Hub, source: Callable[..., Path], keys: list[SigningKey]) -> None:
    a, b, thief, *_ = keys
    pin_key(ACME, a.public.line)
    publish(source(), clone=hub.clone, key=a.path)
    fetch(f"{hub.url}@sst2")
    done = rotate(b.path, key=a.path, clone=hub.clone)
    push_as_it_is(hub, replace(done, add=(thief.public,)).to_bytes(), a)
    publish(source(b"x" * 5000, version="1.1.0"), clone=hub.clone, key=b.path)
    before = known_signers(load_settings())
    with pytest.raises(TrustError) as refused:
        fetch(f"{hub.url}@sst2", refresh=True)
    assert "follow the same one" in refused.value.hint
    assert known_signers(load_settings()) == before
    assert known_revocations(load_settings()) == []


def test_junk_beside_a_rotation_takes_nothing_from_it(
    hub: Hub, source: Callable[..., Path], keys: list[SigningKey]
) -> None:
    a, b, *_ = keys
    pin_key(ACME, a.public.line)
    publish(source(), clone=hub.clone, key=a.path)
    fetch(f"{hub.url}@sst2")
    head = hub.git("rev-parse", "HEAD")
    rotate(b.path, key=a.path, clone=hub.clone)
    publish(source(b"x" * 5000, version="1.1.0"), clone=hub.clone, key=b.path)
    hub.git("push", "-q", "origin", f"{head}:refs/tags/adapters-rotations/junk")
    with pytest.warns(AdaptergitWarning, match="new key"):
        assert fetch(f"{hub.url}@sst2", refresh=True).version == "1.1.0"


def test_work_on_the_announced_keys_is_not_lost(hub: Hub, source: Callable[..., Path], keys: list[SigningKey]) -> None:
    a, b, *_ = keys
    announce(hub, a)
    publish(source(), clone=hub.clone, key=a.path)
    path = hub.clone / ".adaptergit/allowed_signers"
    path.write_text(text := path.read_text() + "# a note\n")
    with pytest.raises(ReleaseError, match="uncommitted"):
        rotate(b.path, key=a.path, clone=hub.clone)
    assert path.read_text() == text
    hub.git("commit", "-qam", "a note")
    rotate(b.path, key=a.path, clone=hub.clone)
    assert "# a note" in path.read_text()


@pytest.mark.slow
def test_where_the_settings_disk_is_full_all_is_remembered_or_nothing(
    hub: Hub, source: Callable[..., Path], keys: list[SigningKey], small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, *_ = keys
    monkeypatch.setenv("ADAPTERGIT_CONFIG_DIR", str(small_disk))
    (small_disk / "allowed_signers").write_text(f"{ACME} {a.public.line}\n")
    publish(source(), clone=hub.clone, key=a.path)
    fetch(f"{hub.url}@sst2")
    rotate(b.path, key=a.path, clone=hub.clone)
    publish(source(b"x" * 5000, version="1.1.0"), clone=hub.clone, key=b.path)
    for room in (0, 1):
        disk = os.statvfs(small_disk)
        (small_disk / "fill").write_bytes(b"x" * ((disk.f_bavail - room) * disk.f_bsize))
        before = snapshot(small_disk)
        with pytest.raises(StorageError, match="No space"):
            fetch(f"{hub.url}@sst2", refresh=True)
        assert snapshot(small_disk) == before
        (small_disk / "fill").unlink()
    with pytest.warns(AdaptergitWarning, match="new key"):
        assert fetch(f"{hub.url}@sst2", refresh=True).version == "1.1.0"
    assert [one.key for one in known_revocations(load_settings())] == [a.public.fingerprint]


# --- histories ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
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


@pytest.mark.slow
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


def follow_to(hub: Hub, source: Callable[..., Path], a: SigningKey, b: SigningKey, *, keep: bool = False) -> None:
    """Have a release that A signed, and follow the rotation to B, who signed the next."""
    pin_key(ACME, a.public.line)
    publish(source(), clone=hub.clone, key=a.path)
    fetch(f"{hub.url}@sst2")
    with machine_of("publisher"):
        rotate(b.path, key=a.path, keep=keep, clone=hub.clone)
        publish(source(b"x" * 5000, version="1.1.0"), clone=hub.clone, key=b.path)
    with pytest.warns(AdaptergitWarning, match="new key"):
        fetch(f"{hub.url}@sst2", refresh=True)


def test_a_key_that_was_removed_by_hand_is_not_brought_back(
    hub: Hub, source: Callable[..., Path], keys: list[SigningKey]
) -> None:
    a, b, *_ = keys
    follow_to(hub, source, a, b)
    assert unpin_key(b.public.fingerprint) == 1
    with pytest.raises(TrustError, match="removed by hand"):
        fetch(f"{hub.url}@sst2", refresh=True)
    assert b.public not in {one.key for one in known_signers(load_settings())}
    pin_key(ACME, b.public.line)  # a person decides anew, and is not told that it does not count
    assert fetch(f"{hub.url}@sst2", refresh=True).version == "1.1.0"


@pytest.mark.parametrize("other", ["127.0.0.1/acme/*", "127.0.0.1/*/adapters", ACME])
def test_a_key_that_was_removed_from_many_repositories_is_not_brought_back_in_one(
    hub: Hub, source: Callable[..., Path], keys: list[SigningKey], other: str
) -> None:
    a, b, *_ = keys
    pin_key(other, a.public.line)
    pin_key("127.0.0.1/acme/*", b.public.line)
    unpin_key(b.public.fingerprint)
    publish(source(), clone=hub.clone, key=a.path)
    rotate(b.path, key=a.path, clone=hub.clone)
    with machine_of("publisher"):
        publish(source(b"x" * 5000, version="1.1.0"), clone=hub.clone, key=b.path)
    with pytest.raises(TrustError, match="removed by hand"):
        fetch(f"{hub.url}@sst2")
    assert [one.key for one in known_signers(load_settings())] == [a.public]
    pin_key(ACME, b.public.line)
    assert fetch(f"{hub.url}@sst2").version == "1.1.0"


@pytest.mark.slow
@pytest.mark.parametrize("written", [1, 2])
def test_a_machine_that_stops_while_a_rotation_is_remembered_follows_it_the_next_time(
    hub: Hub, source: Callable[..., Path], keys: list[SigningKey], written: int, home: Path
) -> None:
    a, b, *_ = keys
    pin_key(ACME, a.public.line)
    publish(source(), clone=hub.clone, key=a.path)
    fetch(f"{hub.url}@sst2")
    (home / "b.pub").write_text(b.public.line)  # the new key did not sign its own rotation
    with machine_of("publisher"):
        rotate(home / "b.pub", key=a.path, clone=hub.clone)
        publish(source(b"x" * 5000, version="1.1.0"), clone=hub.clone, key=b.path)
    script = (
        "import os, sys, contextlib, adaptergit.pins as pins\n"
        "real, count = pins.prepared_file, []\n"
        "@contextlib.contextmanager\n"
        "def prepared(*args, **options):\n"
        "    with real(*args, **options) as put:\n"
        "        def stop():\n"
        "            put(); count.append(1)\n"
        "            if len(count) == int(sys.argv[2]): os._exit(9)\n"
        "        yield stop\n"
        "pins.prepared_file = prepared\n"
        "from adaptergit.resolve import fetch; fetch(sys.argv[1], refresh=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, f"{hub.url}@sst2", str(written)], check=False)
    assert done.returncode == 9
    with pytest.warns(AdaptergitWarning, match="new key"):
        assert fetch(f"{hub.url}@sst2", refresh=True).version == "1.1.0"
    assert {one.key for one in known_revocations(load_settings())} == {a.public.fingerprint}


def test_a_key_that_was_replaced_signs_no_release(
    hub: Hub, source: Callable[..., Path], keys: list[SigningKey]
) -> None:
    a, b, *_ = keys
    announce(hub, a)
    publish(source(), clone=hub.clone, key=a.path)
    rotate_here(b.path, key=a.path, clone=hub.clone, pull_request=True)  # the branch still announces the old one
    before = git(hub.bare, "for-each-ref")
    with pytest.raises(ReleaseError, match="replaced by its owner") as refused:
        publish(source(b"x" * 5000, version="1.1.0"), clone=hub.clone, key=a.path)
    assert b.public.fingerprint in refused.value.hint
    assert git(hub.bare, "for-each-ref") == before


def test_what_one_key_signed_is_a_base_for_more_once_its_keys_are_known(
    hub: Hub, source: Callable[..., Path], keys: list[SigningKey], home: Path
) -> None:
    a, b, c, d, _ = keys
    announce(hub, a, c)
    (home / "b.pub").write_text(b.public.line)
    publish(source(), clone=hub.clone, key=a.path)
    with machine_of("first"), pytest.warns(AdaptergitWarning, match="let them sign this rotation too"):
        first = rotate_here(home / "b.pub", key=a.path, clone=hub.clone)
    with machine_of("second"):
        with pytest.raises(UsageError, match="fewer than 2") as refused:
            rotate_here(d.path, key=b.path, cosigners=[c.path], clone=hub.clone)
        assert f"adaptergit trust add {ACME} '{a.public.line}'" in refused.value.hint
        pin_key(ACME, a.public.line)
        done = rotate_here(d.path, key=b.path, cosigners=[c.path], clone=hub.clone)
    assert done.previous == SignedRotation(first.to_bytes(), {}).digest


def test_strange_keys_are_named_before_anybody_vouches_for_them(
    hub: Hub, source: Callable[..., Path], keys: list[SigningKey]
) -> None:
    a, b, c, mole, new = keys
    announce(hub, a, b, c)
    publish(source(), clone=hub.clone, key=a.path)
    with machine_of("a"):
        rotate_here(mole.path, key=a.path, keep=True, clone=hub.clone)
    with machine_of("b"):
        with pytest.raises(UsageError, match="fewer than 2") as refused:
            rotate_here(new.path, key=b.path, cosigners=[c.path], clone=hub.clone)
        assert mole.public.line in refused.value.hint
        assert a.public.line in refused.value.hint
        for key in (mole, a):
            pin_key(ACME, key.public.line)
        assert rotate_here(new.path, key=b.path, cosigners=[c.path], clone=hub.clone).previous is not None


def test_of_two_owners_who_rotate_at_once_by_pull_request_the_second_is_told(
    hub: Hub, source: Callable[..., Path], keys: list[SigningKey], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, _, d, _ = keys
    publish(source(), clone=hub.clone, key=a.path)
    other = home / "other"
    git(home, "clone", "-q", hub.url, str(other))
    rotating = sys.modules["adaptergit.rotate"]  # the package has a function of that name
    looked = rotating._rotations

    def slow(*args: Any, **options: Any) -> Any:
        found = looked(*args, **options)
        monkeypatch.setattr(rotating, "_rotations", looked)
        with machine_of("other"):  # somebody else is faster
            rotate_here(d.path, key=a.path, clone=other, pull_request=True)
        return found

    monkeypatch.setattr(rotating, "_rotations", slow)
    with pytest.raises(ReleaseError, match="at the same time") as told:
        rotate_here(b.path, key=a.path, clone=hub.clone, pull_request=True)
    marks = [name.rpartition("/")[2] for name in hub.git("ls-remote", "origin", "adapters-rotations/*").split()[1::2]]
    assert len(marks) == 2  # nobody but people knows which one is to stay
    assert all(mark in str(told.value) for mark in marks)
    assert known_rotation(load_settings(), ACME) is None


@pytest.mark.slow
def test_mirrors_and_bundles_bring_rotations_to_those_who_know_a_key_of_before(
    hub: Hub, source: Callable[..., Path], keys: list[SigningKey], home: Path
) -> None:
    a, b, *_ = keys
    copy = hub.server.create("copies/adapters")
    with machine_of("online"):
        pin_key(ACME, a.public.line)
        publish(source(), clone=hub.clone, key=a.path)
        rotate_here(b.path, key=a.path, clone=hub.clone)
        publish(source(b"x" * 5000, version="1.1.0"), clone=hub.clone, key=b.path)
        export_bundle(home / "all.tar", [f"{hub.url}@sst2"])
        mirror([f"{hub.url}@sst2"], to=home / "mirror")
        mirror([f"{hub.url}@sst2"], to=copy)
        mirror([f"{hub.url}@sst2"], to=copy)  # a second time is no different
    hub.bare.rename(hub.bare.with_name("gone.git"))
    for name, mirrors in {"static": f"{home / 'mirror'}/", "git": copy}.items():
        with machine_of(name):
            pin_key(ACME, a.public.line)
            wanted = replace(load_settings(), mirrors=((ACME, (mirrors,)),))
            with pytest.warns(AdaptergitWarning, match="new key"):
                assert fetch(f"{hub.url}@sst2", settings=wanted).version == "1.1.0"
            assert b.public in {one.key for one in known_signers(load_settings())}
    with machine_of("air"):
        pin_key(ACME, a.public.line)
        with pytest.warns(AdaptergitWarning, match="new key"):
            assert [one.version for one in import_bundle(home / "all.tar")] == ["1.1.0"]
    with machine_of("stranger"), pytest.raises(TrustError, match="nobody you know"):
        import_bundle(home / "all.tar")


def test_a_rotation_of_too_few_keys_that_takes_others_away_is_no_base(
    hub: Hub, source: Callable[..., Path], keys: list[SigningKey], home: Path
) -> None:
    """Whoever stole one key of three could use the other owners to take a fourth away."""
    a, b, c, new, _ = keys
    fourth = generate_key(home / "fourth")
    announce(hub, a, b, c, fourth)
    for key in (a, b, c, fourth):
        pin_key(ACME, key.public.line)
    publish(source(), clone=hub.clone, key=a.path, cosigners=[b.path])
    stolen = Rotation(ACME, (c.public,), (fourth.public.fingerprint,), datetime(2026, 11, 1, tzinfo=UTC))
    push_as_it_is(hub, stolen.to_bytes(), c)
    with pytest.raises(UsageError, match="fewer than 2") as refused:
        rotate_here(new.path, key=a.path, cosigners=[b.path], clone=hub.clone)
    assert f":refs/tags/adapters-rotations/{SignedRotation(stolen.to_bytes(), {}).mark}" in refused.value.hint


def test_what_one_thief_signs_at_the_same_time_does_not_trouble_owners_who_are_two(
    hub: Hub, source: Callable[..., Path], keys: list[SigningKey], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c, new, thief = keys
    announce(hub, a, b)
    for key in (a, b, c):
        pin_key(ACME, key.public.line)
    publish(source(), clone=hub.clone, key=a.path, cosigners=[b.path])
    rotating = sys.modules["adaptergit.rotate"]
    looked = rotating._rotations

    def slow(*args: Any, **options: Any) -> Any:
        found = looked(*args, **options)
        push_as_it_is(hub, Rotation(ACME, (thief.public,), (), datetime(2026, 11, 1, tzinfo=UTC)).to_bytes(), c)
        return found

    monkeypatch.setattr(rotating, "_rotations", slow)
    rotate_here(new.path, key=a.path, cosigners=[b.path], clone=hub.clone, pull_request=True)
    assert len(hub.git("ls-remote", "origin", "adapters-rotations/*").splitlines()) == 2


@pytest.mark.slow
def test_a_key_that_was_removed_stays_removed_after_another_was_added(
    hub: Hub, source: Callable[..., Path], keys: list[SigningKey]
) -> None:
    a, b, c, *_ = keys
    follow_to(hub, source, a, b, keep=True)
    with pytest.warns(AdaptergitWarning, match="may sign for"):
        pin_key(ACME, c.public.line)
    unpin_key(b.public.fingerprint)
    with pytest.raises(TrustError, match="removed by hand"):
        fetch(f"{hub.url}@sst2", refresh=True)
    # A person may have edited the file, and it is the person who adds the key again.
    path = load_settings().revocations_path
    lines = [json.dumps(json.loads(line), separators=(",", ":")) for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines))
    pin_key(ACME, b.public.line)
    assert fetch(f"{hub.url}@sst2", refresh=True).version == "1.1.0"
    revoke(b.public.fingerprint, reason="removed by hand")  # for everything: nobody takes that back unasked
    with pytest.warns(AdaptergitWarning, match="does not count"):
        pin_key("*", b.public.line)


def test_what_a_mirror_calls_a_signature_is_no_path(
    hub: Hub, source: Callable[..., Path], keys: list[SigningKey], home: Path
) -> None:
    a, b, *_ = keys
    pin_key(ACME, a.public.line)
    publish(source(), clone=hub.clone, key=a.path)
    fetch(f"{hub.url}@sst2")
    copy, root = hub.server.create("copies/adapters"), home / "lying"
    mirror([f"{hub.url}@sst2"], to=root)
    victim = home / "victim"
    victim.write_text("as it was")
    good = Rotation(ACME, (b.public,), (), datetime(2026, 11, 1, tzinfo=UTC)).to_bytes()
    signed = sign(good, a, namespace=ROTATION_NAMESPACE).decode()
    lines = [
        {"rotation": "x", "signatures": {str(victim): "evil"}},
        {"rotation": good.decode(), "signatures": {f"../../../../{victim}": signed, str(victim): "evil"}},
    ]
    path = root / "rotations" / f"{ACME}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    hub.bare.rename(hub.bare.with_name("gone.git"))
    settings = replace(load_settings(), mirrors=((ACME, (f"{root}/",)),))
    mirror([f"{hub.url}@sst2==1.0.0"], to=copy, settings=settings)
    assert victim.read_text() == "as it was"
    names = git(
        hub.server.root / "copies" / "adapters.git",
        "ls-tree",
        "--name-only",
        "-r",
        f"refs/tags/adapters-rotations/{SignedRotation(good, {}).mark}",
    )
    assert all(re.fullmatch(r"rotation\.json(\.[0-9a-f]{8}\.sig)?", name) for name in names.split())


@pytest.mark.slow
def test_junk_beside_rotations_is_in_no_copy_and_what_is_gone_goes(
    hub: Hub, source: Callable[..., Path], keys: list[SigningKey], home: Path
) -> None:
    a, b, *_ = keys
    pin_key(ACME, a.public.line)
    publish(source(), clone=hub.clone, key=a.path)
    other = Rotation("127.0.0.1/acme/other", (b.public,), (), datetime(2026, 11, 1, tzinfo=UTC))
    own = replace(other, repository=ACME)
    copy = hub.server.create("copies/adapters")
    push_as_it_is(hub, b"\xff\xfe", a)
    push_as_it_is(hub, other.to_bytes(), a)
    push_as_it_is(hub, own.to_bytes(), a)
    for expected in (1, 0):
        mirror([f"{hub.url}@sst2"], to=home / "mirror")
        mirror([f"{hub.url}@sst2"], to=copy)
        export_bundle(home / "all.tar", [f"{hub.url}@sst2"])
        lines = (home / "mirror" / "rotations" / f"{ACME}.jsonl").read_text().splitlines()
        there = git(hub.server.root / "copies" / "adapters.git", "tag", "--list", "adapters-rotations/*").split()
        assert (len(lines), len(there)) == (expected, expected)
        hub.git(
            "push", "-q", "origin", f":refs/tags/adapters-rotations/{SignedRotation(own.to_bytes(), {}).mark}"
        ) if expected else None


@pytest.mark.slow
def test_a_mirror_that_refuses_deletions_keeps_what_is_gone_and_takes_what_is_new(
    hub: Hub, source: Callable[..., Path], keys: list[SigningKey]
) -> None:
    a, b, *_ = keys
    pin_key(ACME, a.public.line)
    publish(source(), clone=hub.clone, key=a.path)
    yank("sst2", "1.0.0", reason="too early", clone=hub.clone)
    own = Rotation(ACME, (b.public,), (), datetime(2026, 11, 1, tzinfo=UTC))
    push_as_it_is(hub, own.to_bytes(), a)
    copy, bare = hub.server.create("copies/adapters"), hub.server.root / "copies" / "adapters.git"
    with pytest.warns(AdaptergitWarning, match="yanked"):
        mirror([f"{hub.url}@sst2==1.0.0"], to=copy)
    gone = [
        f"refs/tags/adapters-rotations/{SignedRotation(own.to_bytes(), {}).mark}",
        "refs/tags/adapters-yanked/sst2/1.0.0",
    ]
    assert set(gone) <= set(git(bare, "for-each-ref", "--format=%(refname)").split())
    hub.git("push", "-q", "origin", *(f":{ref}" for ref in gone))
    publish(source(b"x" * 5000, version="1.1.0"), clone=hub.clone, key=a.path)
    references = [f"{hub.url}@sst2==1.0.0", f"{hub.url}@sst2==1.1.0"]
    hook = bare / "hooks" / "update"  # receive.denyDeletes speaks of branches only; forges protect tags
    hook.parent.mkdir(exist_ok=True)
    hook.write_text('#!/bin/sh\ncase "$3" in *[!0]*) ;; *) echo "tags are protected" >&2; exit 1 ;; esac\n')
    hook.chmod(0o755)
    with pytest.warns(AdaptergitWarning, match="lets nobody remove") as told:
        assert [one.new for one in mirror(references, to=copy)] == [False, True]
    assert all(any(f":{ref}" in str(one.message) for one in told) for ref in gone)
    assert set(gone) < set(git(bare, "for-each-ref", "--format=%(refname)").split())
    hook.unlink()
    assert [one.new for one in mirror(references, to=copy)] == [False, False]
    assert set(gone).isdisjoint(git(bare, "for-each-ref", "--format=%(refname)").split())


@pytest.mark.slow
def test_in_a_git_mirror_of_many_repositories_each_finds_its_own_rotations(
    hub: Hub, source: Callable[..., Path], keys: list[SigningKey]
) -> None:
    a, b, *_ = keys
    copy, made = hub.server.create("copies/adapters"), ""
    for number in range(65):
        other = Rotation(
            f"127.0.0.1/acme/other-{number}", (b.public,), (), datetime(2026, 11, 1, tzinfo=UTC)
        ).to_bytes()
        made += f"commit refs/tags/adapters-rotations/{SignedRotation(other, {}).mark}\ncommitter a <a@b> 0 +0000\n"
        made += f"data 0\nM 100644 inline rotation.json\ndata {len(other)}\n{other.decode()}\n"
    git(hub.server.root / "copies" / "adapters.git", "fast-import", "--quiet", stdin=made)
    with machine_of("keeper"):
        pin_key(ACME, a.public.line)
        publish(source(), clone=hub.clone, key=a.path)
        rotate_here(b.path, key=a.path, clone=hub.clone)
        publish(source(b"x" * 5000, version="1.1.0"), clone=hub.clone, key=b.path)
        mirror([f"{hub.url}@sst2"], to=copy)
    hub.bare.rename(hub.bare.with_name("gone.git"))
    pin_key(ACME, a.public.line)
    with pytest.warns(AdaptergitWarning, match="new key"):
        found = fetch(f"{hub.url}@sst2", settings=replace(load_settings(), mirrors=((ACME, (copy,)),)))
    assert found.version == "1.1.0"


@pytest.mark.slow
def test_what_is_no_rotation_is_removed_from_a_git_mirror(
    hub: Hub, source: Callable[..., Path], keys: list[SigningKey]
) -> None:
    a, b, *_ = keys
    pin_key(ACME, a.public.line)
    publish(source(), clone=hub.clone, key=a.path)
    own = Rotation(ACME, (b.public,), (), datetime(2026, 11, 1, tzinfo=UTC))
    push_as_it_is(hub, own.to_bytes(), a)
    copy, bare = hub.server.create("copies/adapters"), hub.server.root / "copies" / "adapters.git"
    there = replace(hub, clone=hub.clone.with_name("copy-clone"))
    git(hub.clone.parent, "clone", "-q", copy, str(there.clone))
    others = replace(own, repository="127.0.0.1/acme/other").to_bytes()
    for data in (b"\xff\xfe", b"[]", b'{"repository": []}', b"[" * 50_000, others):
        push_as_it_is(there, data, a)
    blob = git(bare, "hash-object", "-w", "--stdin", stdin="junk")
    git(bare, "update-ref", "refs/tags/adapters-rotations/junk", blob)
    good = [f"refs/tags/adapters-rotations/{SignedRotation(data, {}).mark}" for data in (own.to_bytes(), others)]
    git(bare, "update-ref", "refs/tags/adapters-rotations/0123456789abcdef", good[1])
    mirror([f"{hub.url}@sst2"], to=copy)
    listed = git(bare, "for-each-ref", "--format=%(refname)", "refs/tags/adapters-rotations").split()
    assert listed == sorted(good)


@pytest.mark.slow
def test_of_two_mirrors_the_one_that_knows_more_is_heard(
    hub: Hub, source: Callable[..., Path], keys: list[SigningKey], home: Path
) -> None:
    a, b, *_ = keys
    with machine_of("keeper"):
        pin_key(ACME, a.public.line)
        publish(source(), clone=hub.clone, key=a.path)
        mirror([f"{hub.url}@sst2"], to=home / "old")
        rotate_here(b.path, key=a.path, clone=hub.clone)
        publish(source(b"x" * 5000, version="1.1.0"), clone=hub.clone, key=b.path)
        mirror([f"{hub.url}@sst2==1.1.0"], to=home / "new")
    hub.bare.rename(hub.bare.with_name("gone.git"))
    pin_key(ACME, a.public.line)
    settings = replace(load_settings(), mirrors=((ACME, (f"{home / 'old'}/", f"{home / 'new'}/")),))
    with pytest.warns(AdaptergitWarning, match="new key"):
        assert fetch(f"{hub.url}@sst2==1.1.0", settings=settings).version == "1.1.0"


@pytest.mark.slow
def test_what_stands_in_the_place_of_a_rotation_in_a_git_mirror_is_replaced_at_once(
    hub: Hub, source: Callable[..., Path], keys: list[SigningKey]
) -> None:
    a, b, *_ = keys
    pin_key(ACME, a.public.line)
    publish(source(), clone=hub.clone, key=a.path)
    own = Rotation(ACME, (b.public,), (), datetime(2026, 11, 1, tzinfo=UTC)).to_bytes()
    push_as_it_is(hub, own, a)
    copy, bare = hub.server.create("copies/adapters"), hub.server.root / "copies" / "adapters.git"
    mirror([f"{hub.url}@sst2"], to=copy)
    ref = f"refs/tags/adapters-rotations/{SignedRotation(own, {}).mark}"
    right = git(bare, "rev-parse", f"{ref}^{{tree}}")
    blob = git(bare, "hash-object", "-w", "--stdin", stdin="junk")
    for junk in (blob, git(bare, "rev-parse", "refs/tags/adapters/sst2/1.0.0")):
        git(bare, "update-ref", ref, junk)
        mirror([f"{hub.url}@sst2"], to=copy)
        assert git(bare, "rev-parse", f"{ref}^{{tree}}") == right


@pytest.mark.slow
def test_a_signature_that_a_rotation_got_later_reaches_git_mirrors(
    hub: Hub, source: Callable[..., Path], keys: list[SigningKey]
) -> None:
    a, b, c, *_ = keys
    pin_key(ACME, a.public.line)
    publish(source(), clone=hub.clone, key=a.path)
    own = Rotation(ACME, (b.public,), (), datetime(2026, 11, 1, tzinfo=UTC)).to_bytes()
    push_as_it_is(hub, own, a)
    copy, bare = hub.server.create("copies/adapters"), hub.server.root / "copies" / "adapters.git"
    mirror([f"{hub.url}@sst2"], to=copy)
    git(hub.bare, "update-ref", "-d", f"refs/tags/adapters-rotations/{SignedRotation(own, {}).mark}")
    push_as_it_is(hub, own, a, c)
    mirror([f"{hub.url}@sst2"], to=copy)
    (rotation,) = rotations_at(Remote.of(Source.parse(copy), allow_http=True), Limits(), of=ACME)
    assert rotation.signers() == {a.public, c.public}
    before = git(bare, "for-each-ref")
    mirror([f"{hub.url}@sst2"], to=copy)
    assert git(bare, "for-each-ref") == before


def test_a_clone_that_has_not_heard_of_a_rotation_signs_with_no_replaced_key(
    hub: Hub, source: Callable[..., Path], keys: list[SigningKey]
) -> None:
    a, b, *_ = keys
    pin_key(ACME, a.public.line)
    publish(source(), clone=hub.clone, key=a.path)
    other = hub.clone.with_name("other-clone")
    git(hub.clone.parent, "clone", "-q", hub.url, str(other))
    with machine_of("a colleague"):
        pin_key(ACME, a.public.line)
        rotate_here(b.path, key=a.path, clone=other, pull_request=True)
    git(hub.clone, "pull", "-q")
    before = git(hub.bare, "for-each-ref")
    with pytest.raises(ReleaseError, match="replaced"):
        publish(source(b"x" * 5000, version="1.1.0"), clone=hub.clone, key=a.path)
    assert git(hub.bare, "for-each-ref") == before


def test_tags_with_names_of_no_rotation_stand_in_nobodys_way(
    hub: Hub, source: Callable[..., Path], keys: list[SigningKey]
) -> None:
    a, b, *_ = keys
    pin_key(ACME, a.public.line)
    publish(source(), clone=hub.clone, key=a.path)
    hub.bare.joinpath("packed-refs").write_text(
        "# pack-refs with: peeled fully-peeled sorted \n"
        + "".join(
            f"{git(hub.bare, 'rev-parse', 'HEAD')} refs/tags/adapters-rotations/{number:02}{'x' * 60_000}\n"
            for number in range(60)
        )
    )
    with machine_of("a colleague"):
        pin_key(ACME, b.public.line)
        with pytest.raises(TrustError, match=r"may sign for 127\.0\.0\.1"):
            fetch(f"{hub.url}@sst2==1.0.0")


@pytest.mark.parametrize("setting", ["push.gpgSign=true", "push.followTags=true", "log.showSignature=true"])
def test_settings_of_git_do_not_stand_in_the_way_of_publishers(
    hub: Hub, source: Callable[..., Path], keys: list[SigningKey], setting: str
) -> None:
    a, b, *_ = keys
    pin_key(ACME, a.public.line)
    git(hub.clone, "config", *setting.split("="))
    publish(source(), clone=hub.clone, key=a.path)
    yank("sst2", "1.0.0", reason="x", clone=hub.clone)
    rotate_here(b.path, key=a.path, clone=hub.clone)
    assert commit_time(hub.clone)
