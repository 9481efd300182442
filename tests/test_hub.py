"""The main job over real git servers: publish from a clone, load somewhere else, and everything that can go wrong."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Hub, card_data, git, machine_of, snapshot, tensor_file

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
from adaptergit.git import GitServer
from adaptergit.mirror import mirror
from adaptergit.package import Card, canonical
from adaptergit.pins import pin_key
from adaptergit.prepare import initialise
from adaptergit.publish import publish, yank
from adaptergit.resolve import fetch, verify
from adaptergit.rotate import rotate
from adaptergit.settings import Limits, Settings
from adaptergit.trust import SigningKey, generate_key

Source = Callable[..., Path]


def release(hub: Hub, folder: Path, **options: object) -> object:
    """Publish as the hub's publisher, whom the user trusts."""
    hub.trust()
    return publish(folder, clone=hub.clone, key=hub.key.path, **options)  # type: ignore[arg-type]


def state(hub: Hub) -> tuple[str, dict[str, bytes], str]:
    """Everything of a clone that a person would notice: refs, files, status."""
    refs = hub.git("for-each-ref")
    files = {n: b for n, b in snapshot(hub.clone).items() if not n.startswith(".git/")}
    return refs, files, hub.git("status", "--porcelain")


# --- the way through --------------------------------------------------------------------------------------------------


def test_what_is_published_is_loaded(hub: Hub, source: Source) -> None:
    published = release(hub, source())
    hub.trust()
    resolved = fetch(f"{hub.url}@sst2")
    verdict = resolved.verdict
    assert resolved.digest == published.digest
    assert resolved.tree == published.tree
    assert not resolved.from_store
    assert (resolved.path / "adapter.safetensors").read_bytes().endswith(b"w" * 5000)
    assert verdict.signers == (hub.key.public.fingerprint,)


def test_the_release_is_on_the_branch_and_under_its_tag(hub: Hub, source: Source) -> None:
    published = release(hub, source())
    assert git(hub.bare, "rev-parse", "main:adapters/sst2") == published.tree
    assert git(hub.bare, "rev-parse", "adapters/sst2/1.0.0^{tree}") == published.tree
    assert git(hub.bare, "rev-list", "--count", "adapters/sst2/1.0.0") == "1"
    assert hub.git("status", "--porcelain") == ""
    assert hub.git("rev-parse", "HEAD") == git(hub.bare, "rev-parse", "main")
    assert (hub.clone / "adapters/sst2/card.yaml").exists()


def test_git_never_changes_a_published_byte(hub: Hub, source: Source) -> None:
    """autocrlf and filters of the publisher would; plumbing does not ask them."""
    hub.git("config", "core.autocrlf", "true")
    (hub.clone / ".gitattributes").write_text("* text eol=crlf\n")
    release(hub, source(weights=b"a\r\nb\nc\r" * 100))
    hub.trust()
    path = fetch(f"{hub.url}@sst2").path
    assert (path / "adapter.safetensors").read_bytes().endswith(b"a\r\nb\nc\r" * 100)
    verify(path)


@pytest.mark.slow
def test_only_this_adapters_bytes_are_fetched(hub: Hub, source: Source) -> None:
    for index in range(5):
        release(hub, source(os.urandom(200_000), name=f"other{index}"))
    release(hub, source(os.urandom(300_000)))
    hub.server.reset()
    path = fetch(f"{hub.url}@sst2").path
    package = sum(p.stat().st_size for p in path.iterdir())
    wire = hub.server.traffic.sent + hub.server.traffic.received
    assert package <= wire <= package + 16_000


def test_the_newest_version_costs_the_same_however_many_other_tags_there_are(hub: Hub, source: Source) -> None:
    release(hub, source(os.urandom(300_000)))
    costs = []
    for number in (0, 3000):
        commit = git(hub.bare, "rev-parse", "main")
        created = "".join(f"create refs/tags/adapters/other{i}/1.0.0 {commit}\n" for i in range(number))
        git(hub.bare, "update-ref", "--stdin", stdin=created)
        hub.server.reset()
        path = fetch(f"{hub.url}@sst2", refresh=True).path
        costs.append(hub.server.traffic.sent + hub.server.traffic.received)
        assert len(hub.server.traffic.requests) == 3  # one for the list, two for what the tag is of
    package = sum(p.stat().st_size for p in path.iterdir())
    assert package <= costs[0] <= package + 12_000
    assert abs(costs[1] - costs[0]) < 1000


def test_a_pinned_tree_is_fetched_in_two_requests_or_by_its_tag(hub: Hub, source: Source, tmp_path: Path) -> None:
    from adaptergit.git import Remote, fetch_release
    from adaptergit.reference import Source as Repository

    published = release(hub, source())
    remote = Remote.of(Repository.parse(hub.url))
    for number, (tree, version, requests) in enumerate(((published.tree, None, 2), ("1" * 40, "1.0.0", None))):
        hub.server.reset()
        target = tmp_path / f"target{number}"
        target.mkdir()
        found = fetch_release(remote, "sst2", target, tree=tree, version=version, limits=Limits())
        assert found.tree == published.tree
        assert snapshot(target) == snapshot(hub.clone / "adapters" / "sst2")
        assert requests is None or len(hub.server.traffic.requests) == requests
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(TransportError):
        fetch_release(remote, "sst2", empty, tree="1" * 40, limits=Limits())
    assert list(empty.iterdir()) == []


@pytest.mark.slow
def test_what_the_list_says_of_a_tag_is_fetched_or_else_the_tag(hub: Hub, source: Source, tmp_path: Path) -> None:
    """The list may be a moment old, and a server of protocol v0 gives what has a name."""
    from adaptergit.git import Remote, fetch_release
    from adaptergit.reference import Source as Repository

    published = release(hub, source())
    remote = Remote.of(Repository.parse(hub.url))
    commit = git(hub.bare, "rev-parse", "refs/tags/adapters/sst2/1.0.0")
    for oid, requests, yanked in ((commit, 2, None), ("1" * 40, 5, False), ("1" * 64, None, False)):
        hub.server.reset()
        target = tmp_path / oid
        target.mkdir()
        found = fetch_release(remote, "sst2", target, version="1.0.0", tagged=oid, limits=Limits())
        assert (found.tree, found.yanked) == (published.tree, yanked)
        assert snapshot(target) == snapshot(hub.clone / "adapters" / "sst2")
        assert requests is None or len(hub.server.traffic.requests) == requests


@pytest.mark.slow
def test_a_second_load_touches_no_network_and_starts_no_process(
    hub: Hub, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    release(hub, source())
    hub.trust()
    for reference in (f"{hub.url}@sst2", f"{hub.url}@sst2==1.0.0", f"{hub.url}@sst2>=1"):
        first = fetch(reference)
        hub.server.reset()
        script = (
            "import sys\n"
            "def deny(event, args):\n"
            "    if event in ('subprocess.Popen', 'os.system', 'os.posix_spawn', 'os.fork', 'socket.connect', 'socket.getaddrinfo'):\n"
            "        raise SystemExit(f'{event} {args}')\n"
            "sys.addaudithook(deny)\n"
            "from adaptergit.resolve import fetch\n"
            "found = fetch(sys.argv[1])\n"
            "assert found.from_store; print(found.verdict.digest)"
        )
        done = subprocess.run([sys.executable, "-c", script, reference], capture_output=True, text=True, check=False)
        assert done.stdout.strip() == first.digest, done.stderr
        assert hub.server.traffic.requests == []


@pytest.mark.slow
def test_versions_are_chosen_by_pep_440(hub: Hub, source: Source) -> None:
    for version in ("1.0.0", "1.9.0", "1.10.0", "2.0.0rc1"):
        release(hub, source(version=version))
    for wanted, version in (
        ("", "1.10.0"),
        ("<1.10", "1.9.0"),
        ("==1.0.0", "1.0.0"),
        ("~=1.9", "1.10.0"),
        (">=2.0.0rc1", "2.0.0rc1"),
    ):
        assert fetch(f"{hub.url}@sst2{wanted}").version == version
    with pytest.raises(NotFoundError, match=">=3") as caught:
        fetch(f"{hub.url}@sst2>=3")
    assert "1.10.0" in str(caught.value.hint)


def test_each_version_names_the_manifest_before_it(hub: Hub, source: Source) -> None:
    first = release(hub, source())
    second = release(hub, source(b"other"), version="1.1.0")
    assert (first.previous, second.previous) == (None, first.digest)


def test_a_new_release_is_seen_when_asked_for(hub: Hub, source: Source) -> None:
    release(hub, source())
    assert fetch(f"{hub.url}@sst2").version == "1.0.0"
    with machine_of("the publisher"):
        release(hub, source(), version="1.1.0")
    assert fetch(f"{hub.url}@sst2").version == "1.0.0"
    assert fetch(f"{hub.url}@sst2", refresh=True).version == "1.1.0"
    assert fetch(f"{hub.url}@sst2", settings=Settings(resolution_max_age=0)).version == "1.1.0"


def test_a_pinned_digest_finds_the_package_in_the_store(hub: Hub, source: Source) -> None:
    published = release(hub, source())
    fetch(f"{hub.url}@sst2")
    shutil.rmtree(hub.bare)
    assert fetch(f"{hub.url}@sst2#sha256:{published.digest}").from_store


def test_offline_answers_from_the_store_or_not_at_all(
    hub: Hub, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    release(hub, source())
    with pytest.raises(NotFoundError, match="offline"):
        fetch(f"{hub.url}@sst2", offline=True)
    fetch(f"{hub.url}@sst2")
    hub.server.reset()
    monkeypatch.setenv("ADAPTERGIT_OFFLINE", "1")
    assert fetch(f"{hub.url}@sst2").from_store
    with pytest.raises(NotFoundError, match="offline"):
        fetch(f"{hub.url}@other")
    assert hub.server.traffic.requests == []


@pytest.mark.parametrize("yes", ["1", "on", "True", "YES"])
def test_offline_is_for_publishers_too(
    hub: Hub, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, yes: str
) -> None:
    release(hub, source())
    hub.server.reset()
    monkeypatch.setenv("ADAPTERGIT_OFFLINE", yes)
    before = snapshot(hub.clone)
    new = generate_key(tmp_path / "new").path
    for forbidden in (
        lambda: publish(source(), clone=hub.clone, key=hub.key.path, version="1.1.0"),
        lambda: yank("sst2", "1.0.0", reason="old", clone=hub.clone),
        lambda: rotate(new, key=hub.key.path, clone=hub.clone),
        lambda: mirror([f"{hub.url}@sst2"], to=hub.url),
    ):
        with pytest.raises((UsageError, NotFoundError), match=r"offline|ADAPTERGIT_OFFLINE"):
            forbidden()
    assert hub.server.traffic.requests == []
    assert snapshot(hub.clone) == before
    publish(
        source(), clone=hub.clone, key=hub.key.path, version="1.1.0", remote=None, repository="127.0.0.1/acme/adapters"
    )


def test_offline_that_says_neither_yes_nor_no_is_an_error(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.server.reset()
    monkeypatch.setenv("ADAPTERGIT_OFFLINE", "ja")
    with pytest.raises(UsageError, match="ADAPTERGIT_OFFLINE is 'ja'"):
        fetch(f"{hub.url}@sst2")
    assert hub.server.traffic.requests == []


# --- other transports -------------------------------------------------------------------------------------------------


def test_over_a_local_path_and_a_file_url(hub: Hub, source: Source) -> None:
    release(hub, source())
    hub.trust()
    for reference in (f"{hub.bare}@sst2", f"file://{hub.bare}@sst2"):
        assert fetch(reference, refresh=True).verdict.manifest.repository == "127.0.0.1/acme/adapters"


def test_publishing_to_a_local_path_needs_a_name(tmp_path: Path, source: Source, key: SigningKey) -> None:
    bare, clone = tmp_path / "bare.git", tmp_path / "clone2"
    git(tmp_path, "init", "-q", "--bare", str(bare))
    git(tmp_path, "clone", "-q", str(bare), str(clone))
    with pytest.raises(UsageError, match="public name"):
        publish(source(), clone=clone, key=key.path)
    published = publish(source(), clone=clone, key=key.path, repository="git.example/acme/adapters")
    pin_key("git.example/acme/adapters", key.public.line)
    assert fetch(f"{bare}@sst2").verdict.digest == published.digest
    with pytest.raises(
        ReleaseError, match=r"sst2 1.0.0 is of git.example/acme/adapters[^$]*--repository git.example/acme"
    ):
        publish(source(), clone=clone, key=key.path, version="1.1.0", repository="git.example/acme/adaptres")
    publish(source(), clone=clone, key=key.path, version="1.1.0", repository="git.example/acme/adapters")


def test_a_repository_that_moved_is_what_its_url_says(hub: Hub, source: Source) -> None:
    publish(source(), clone=hub.clone, key=hub.key.path, repository="git.example/acme/old")
    told: list[str] = []
    publish(source(), clone=hub.clone, key=hub.key.path, version="1.1.0", report=told.append)
    assert (
        "note: sst2 was of git.example/acme/old so far: whoever trusts that has to trust 127.0.0.1/acme/adapters anew"
        in told
    )


def test_a_sha256_repository(tmp_path: Path, source: Source, key: SigningKey) -> None:
    bare, clone = tmp_path / "bare.git", tmp_path / "clone2"
    git(tmp_path, "init", "-q", "--bare", "--object-format=sha256", str(bare))
    git(tmp_path, "init", "-q", "--object-format=sha256", str(clone))
    git(clone, "remote", "add", "origin", str(bare))
    published = publish(source(), clone=clone, key=key.path, repository="git.example/acme/adapters")
    assert published.tree is not None
    assert len(published.tree) == 64
    pin_key("git.example/acme/adapters", key.public.line)
    assert fetch(f"{bare}@sst2").digest == published.digest


def certificate(folder: Path) -> Path:
    """A self-signed certificate for localhost, with its key, in one file."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(private.public_key()).serial_number(1)
        .not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )  # fmt: skip
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "tls.pem").write_bytes(built.public_bytes(serialization.Encoding.PEM) + pem)
    return folder / "tls.pem"


def test_over_https_with_the_certificate_the_user_trusts(
    tmp_path: Path, home: Path, source: Source, key: SigningKey
) -> None:
    import ssl

    from adaptergit.git.runner import transport_settings

    pem = certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pem)
    (tmp_path / "root").mkdir()
    with GitServer(tmp_path / "root", tls=tls) as server:
        url = server.create("acme/adapters")
        transport_settings.cache_clear()
        with pytest.raises(TransportError, match="certificate") as refused:
            fetch(f"{url}@sst2")
        assert "http.sslCAInfo" in str(refused.value.hint)
        with (home / ".gitconfig").open("a") as file:
            file.write(f"[http]\nsslCAInfo = {pem}\n")
        transport_settings.cache_clear()
        git(tmp_path, "clone", "-q", url, "clone2")
        published = publish(source(), clone=tmp_path / "clone2", key=key.path)
        assert published.repository == "localhost/acme/adapters"
        pin_key("localhost/acme/adapters", key.public.line)
        assert fetch(f"{url}@sst2").digest == published.digest
        transport_settings.cache_clear()


@pytest.fixture
def ssh_server(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A real sshd on loopback, with keys of its own."""
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if sshd is None:
        pytest.skip("sshd is not installed (Debian: openssh-server)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path / "ssh"
    folder.mkdir(mode=0o700)
    for name in ("host", "client"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    shutil.copy(folder / "client.pub", folder / "authorized_keys")
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized_keys\n"
        f"PidFile {folder}/pid\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n"
    )
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen([sshd, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=(folder / "log").open("wb"))
    known = folder / "known_hosts"
    monkeypatch.setenv(
        "GIT_SSH_COMMAND",
        f"ssh -F none -i {folder}/client -o BatchMode=yes -o StrictHostKeyChecking=accept-new -o UserKnownHostsFile={known}",
    )
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait()


@pytest.mark.slow
@pytest.mark.parametrize("written", ["ssh://user@host:port/path", "user@host:path"])
def test_over_ssh(
    tmp_path: Path,
    source: Source,
    key: SigningKey,
    ssh_server: int,
    written: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bare, clone = tmp_path / "srv" / "adapters.git", tmp_path / "clone2"
    git(tmp_path, "init", "-q", "--bare", str(bare))
    url = f"ssh://{getpass.getuser()}@127.0.0.1:{ssh_server}{bare}"
    if not written.startswith("ssh"):  # as forges show it; it has no place for a port
        monkeypatch.setenv("GIT_SSH_COMMAND", f"{os.environ['GIT_SSH_COMMAND']} -p {ssh_server}")
        url = f"{getpass.getuser()}@127.0.0.1:{bare}"
    git(tmp_path, "clone", "-q", url, str(clone))
    published = publish(source(), clone=clone, key=key.path)
    assert published.repository == f"127.0.0.1{bare.with_suffix('')}"
    pin_key(published.repository, key.public.line)
    assert fetch(f"{url}@sst2").verdict.digest == published.digest


@pytest.mark.slow
def test_a_large_adapter_over_ssh_from_a_server_that_filters(
    tmp_path: Path, source: Source, key: SigningKey, ssh_server: int
) -> None:
    """A stock sshd speaks protocol v0, which filters, but gives no object that it did not advertise."""
    bare, clone = tmp_path / "srv" / "adapters.git", tmp_path / "clone2"
    git(tmp_path, "init", "-q", "--bare", str(bare))
    git(bare, "config", "uploadpack.allowFilter", "true")
    url = f"ssh://{getpass.getuser()}@127.0.0.1:{ssh_server}{bare}"
    git(tmp_path, "clone", "-q", url, str(clone))
    published = publish(source(os.urandom(400_000)), clone=clone, key=key.path)
    pin_key(published.repository, key.public.line)
    assert fetch(f"{url}@sst2").digest == published.digest


@pytest.mark.slow
def test_a_sha256_repository_over_ssh(tmp_path: Path, source: Source, key: SigningKey, ssh_server: int) -> None:
    """A stock sshd does not pass GIT_PROTOCOL on, so the server speaks protocol v0."""
    bare, clone = tmp_path / "srv" / "adapters.git", tmp_path / "clone2"
    git(tmp_path, "init", "-q", "--bare", "--object-format=sha256", str(bare))
    git(tmp_path, "init", "-q", "--object-format=sha256", str(clone))
    url = f"ssh://{getpass.getuser()}@127.0.0.1:{ssh_server}{bare}"
    git(clone, "remote", "add", "origin", url)
    published = publish(source(), clone=clone, key=key.path)
    pin_key(published.repository, key.public.line)
    assert fetch(f"{url}@sst2").digest == published.digest


def test_plain_http_beyond_loopback_is_refused(hub: Hub) -> None:
    with pytest.raises(UsageError, match="loopback"):
        fetch("http://git.example/acme/adapters@x")


# --- publishing: nothing is half done ---------------------------------------------------------------------------------


def test_a_dry_run_changes_nothing(hub: Hub, source: Source) -> None:
    release(hub, source())
    folder = source(version="1.1.0")
    before, objects = state(hub), hub.git("count-objects")
    said: list[str] = []
    plan = release(hub, folder, dry_run=True, report=said.append)
    assert plan.dry_run
    assert state(hub) == before
    assert hub.git("count-objects") == objects
    assert "dry run" in said[-1]
    assert hub.key.public.fingerprint in said[-1]
    (hub.clone / "adapters/sst2/README.md").write_text("mine")
    with pytest.raises(ReleaseError, match="uncommitted"):
        release(hub, folder, dry_run=True)


def test_a_failed_push_leaves_the_clone_as_it_was(hub: Hub, source: Source) -> None:
    release(hub, source())
    hook = hub.bare / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho 'no space for you' >&2; exit 1\n")
    hook.chmod(0o755)
    before = state(hub)
    with pytest.raises(ReleaseError, match="refused"):
        release(hub, source(b"new"), version="1.1.0")
    assert state(hub) == before
    hook.unlink()
    release(hub, source(b"new"), version="1.1.0")


def test_a_branch_that_moved_on_is_not_overwritten(hub: Hub, source: Source, tmp_path: Path) -> None:
    release(hub, source())
    other = tmp_path / "other-clone"
    git(tmp_path, "clone", "-q", hub.url, str(other))
    (other / "README").write_text("hello")
    git(other, "add", "README")
    git(other, "commit", "-qm", "hello")
    git(other, "push", "-q")
    before = state(hub)
    with pytest.raises(ReleaseError, match="pull"):
        release(hub, source(b"new"), version="1.1.0")
    assert state(hub)[1:] == before[1:]
    assert hub.git("tag") == "adapters/sst2/1.0.0"
    hub.git("pull", "-q", "--rebase")
    release(hub, source(b"new"), version="1.1.0")


def test_an_unreachable_server_leaves_the_clone_as_it_was(hub: Hub, source: Source) -> None:
    hub.git("remote", "set-url", "origin", "http://127.0.0.1:1/acme/adapters.git")
    before = state(hub)
    with pytest.raises(TransportError):
        release(hub, source())
    assert state(hub) == before


def test_a_version_is_released_once_and_versions_grow(hub: Hub, source: Source, tmp_path: Path) -> None:
    release(hub, source(version="1.1.0"))
    with pytest.raises(ReleaseError, match="released already"):
        release(hub, source(b"other", version="1.1.0"))
    with pytest.raises(ReleaseError, match="not newer"):
        release(hub, source(b"other", version="1.0.5"))
    # another clone that never saw the tag
    hub.git("tag", "-d", "adapters/sst2/1.1.0")
    with pytest.raises(ReleaseError, match="released already"):
        release(hub, source(b"other", version="1.1.0"))


def test_uncommitted_work_is_never_overwritten(hub: Hub, source: Source) -> None:
    release(hub, source())
    mine = hub.clone / "adapters/sst2/README.md"
    mine.write_text("my own words")
    before = state(hub)
    with pytest.raises(ReleaseError, match="uncommitted"):
        release(hub, source(), version="1.1.0")
    assert state(hub) == before


def test_work_elsewhere_in_the_clone_is_left_alone(hub: Hub, source: Source) -> None:
    release(hub, source())
    (hub.clone / "notes.txt").write_text("draft")
    (hub.clone / "staged.txt").write_text("staged")
    hub.git("add", "staged.txt")
    release(hub, source(), version="1.1.0")
    assert (hub.clone / "notes.txt").read_text() == "draft"
    assert hub.git("status", "--porcelain") == "A  staged.txt\n?? notes.txt"


def test_a_folder_inside_the_clone_can_be_published(hub: Hub, source: Source) -> None:
    folder = source()
    inside = hub.clone / "adapters" / "sst2"
    shutil.copytree(folder, inside)
    release(hub, inside)
    assert hub.git("status", "--porcelain") == ""
    assert (inside / "manifest.json.sig").exists()


def test_a_file_dropped_from_a_release_is_dropped_from_the_branch(hub: Hub, source: Source) -> None:
    folder = source()
    (folder / "notes.txt").write_text("v1")
    release(hub, folder)
    (folder / "notes.txt").unlink()
    release(hub, folder, version="1.1.0")
    assert not (hub.clone / "adapters/sst2/notes.txt").exists()
    assert hub.git("status", "--porcelain") == ""


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"version": "one"}, UsageError, "PEP 440"),
        ({"version": "1.0-rc.1"}, UsageError, "normal form"),
        ({"name": "SST2"}, UsageError, "not an adapter name"),
        ({"remote": "nowhere"}, UsageError, "no remote"),
        ({"key": "/nowhere"}, NotFoundError, "no such key"),
        ({"clone": "/"}, UsageError, "clone"),
    ],
)
def test_a_wrong_option_is_refused_and_nothing_changes(
    hub: Hub, source: Source, options: dict[str, str], error: type[AdaptergitError], why: str
) -> None:
    folder = source()
    before = state(hub)
    with pytest.raises(error, match=why):
        publish(folder, **{"clone": hub.clone, "key": hub.key.path, **options})  # type: ignore[arg-type]
    assert state(hub) == before


def test_publishing_without_a_key_says_how_to_make_one(hub: Hub, source: Source) -> None:
    with pytest.raises(UsageError, match="no signing key") as caught:
        publish(source(), clone=hub.clone)
    assert "keygen" in str(caught.value.hint)


def test_init_prepares_a_clone_once(hub: Hub) -> None:
    written = initialise(hub.clone, hub.key.path)
    assert {p.name for p in written} == {".gitattributes", "allowed_signers"}
    assert initialise(hub.clone, hub.key.path) == []
    assert hub.key.public.line in (hub.clone / ".adaptergit/allowed_signers").read_text()


@pytest.mark.slow
def test_a_file_of_the_persons_own_is_never_lost(hub: Hub, source: Source) -> None:
    release(hub, source())
    folder = hub.clone / "adapters" / "sst2"
    with (hub.clone / ".git/info/exclude").open("a") as file:
        file.write("notes.txt\n")
    (folder / "notes.txt").write_text("ignored by git, dear to me")
    before = state(hub)
    with pytest.raises(ReleaseError, match=r"notes\.txt"):
        release(hub, source(b"new"), version="1.1.0")
    assert state(hub) == before
    (folder / "notes.txt").unlink()
    (folder / "script.py").write_text("committed by hand")
    hub.git("add", "-A")
    hub.git("commit", "-qm", "mine")
    hub.git("push", "-q")
    before = state(hub)
    with pytest.raises(ReleaseError, match=r"script\.py"):
        release(hub, source(b"new"), version="1.1.0")
    assert state(hub) == before


def test_a_readme_of_the_publishers_own_is_published(hub: Hub, source: Source) -> None:
    inside = hub.clone / "adapters" / "sst2"
    shutil.copytree(source(), inside)
    (inside / "README.md").write_text("my own words")
    release(hub, inside)
    assert (inside / "README.md").read_text() == "my own words"
    assert (fetch(f"{hub.url}@sst2").path / "README.md").read_text() == "my own words"


def test_an_edited_readme_is_the_publishers_own_and_others_files_come_along(hub: Hub, source: Source) -> None:
    inside = hub.clone / "adapters" / "sst2"
    shutil.copytree(source(), inside)
    (inside / "notes.txt").write_text("part of the release")
    hub.git("add", "-A")
    hub.git("commit", "-qm", "by hand")
    release(hub, inside)
    with (inside / "README.md").open("a") as file:
        file.write("\nand some words of mine\n")
    release(hub, inside, version="1.0.1")
    assert "words of mine" in (inside / "README.md").read_text()
    assert "words of mine" in (fetch(f"{hub.url}@sst2").path / "README.md").read_text()
    assert hub.git("status", "--porcelain") == ""


def test_private_tags_stay_private(hub: Hub, source: Source) -> None:
    release(hub, source())
    hub.git("config", "push.followTags", "true")
    hub.git("tag", "-a", "private", "-m", "x")
    release(hub, source(b"new"), version="1.1.0")
    assert "private" not in git(hub.bare, "tag")


def test_a_name_that_is_no_unicode_survives_a_release(hub: Hub, source: Source) -> None:
    (Path(os.fsdecode(os.fsencode(hub.clone) + b"/caf\xe9.txt"))).write_text("x")
    hub.git("add", "-A")
    hub.git("commit", "-qm", "odd name")
    release(hub, source())
    assert hub.git("status", "--porcelain") == ""


def test_a_remote_given_relative_to_the_clone(
    tmp_path: Path, source: Source, key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare, clone = tmp_path / "bare.git", tmp_path / "clone2"
    git(tmp_path, "init", "-q", "--bare", str(bare))
    git(tmp_path, "init", "-q", str(clone))
    git(clone, "remote", "add", "origin", "../bare.git")
    monkeypatch.chdir("/")
    publish(source(), clone=clone, key=key.path, repository="git.example/a/b")
    assert git(bare, "tag") == "adapters/sst2/1.0.0"


def test_a_push_whose_answer_was_lost_is_a_release(hub: Hub, source: Source) -> None:
    hook = hub.bare / "hooks" / "post-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nkill -9 $PPID\n")
    hook.chmod(0o755)
    release(hub, source())
    assert git(hub.bare, "tag") == "adapters/sst2/1.0.0"
    assert hub.git("status", "--porcelain") == ""


def test_links_and_files_in_the_way_are_refused_before_the_push(hub: Hub, source: Source, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for block in (lambda p: p.symlink_to(outside), lambda p: p.write_text("a file")):
        block(hub.clone / "adapters")
        with pytest.raises(ReleaseError, match="not a folder"):
            release(hub, source())
        (hub.clone / "adapters").unlink()
    (hub.clone / ".git" / "index.lock").touch()
    with pytest.raises(ReleaseError, match="another git command"):
        release(hub, source())
    assert list(outside.iterdir()) == []
    assert git(hub.bare, "for-each-ref") == ""


@pytest.mark.parametrize("name", ["GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"])
def test_an_outer_git_cannot_redirect_a_release(
    hub: Hub, source: Source, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    git(tmp_path, "init", "-q", "elsewhere")
    other = tmp_path / "elsewhere" / ".git"
    before = snapshot(other)
    monkeypatch.setenv(name, str(other if name != "GIT_WORK_TREE" else tmp_path))
    release(hub, source())
    monkeypatch.delenv(name)
    assert snapshot(other) == before
    assert hub.git("status", "--porcelain") == ""


def test_only_announced_keys_sign(hub: Hub, source: Source, other_key: SigningKey) -> None:
    initialise(hub.clone, hub.key.path)
    hub.git("add", "-A")
    hub.git("commit", "-qm", "init")
    with pytest.raises(ReleaseError, match="announces"):
        publish(source(), clone=hub.clone, key=other_key.path)
    release(hub, source())


@pytest.mark.parametrize("content", [b"", b"junk", tensor_file(b"x")[:-1]])
def test_weights_that_nobody_can_open_are_not_published(hub: Hub, source: Source, content: bytes) -> None:
    folder = source()
    (folder / "adapter.safetensors").write_bytes(content)
    with pytest.raises(PackageError, match="safetensors"):
        release(hub, folder)


def test_a_card_that_counts_wrong_is_not_published(hub: Hub, source: Source) -> None:
    adapter = {"format": "adaptergit", "method": "seq_bn", "config": {}, "parameters": 5}
    with pytest.raises(PackageError, match=r"adapter\.parameters"):
        release(hub, source(adapter=adapter))


# --- hostile servers --------------------------------------------------------------------------------------------------


def rewrite(hub: Hub, change: Callable[[dict[str, tuple[str, bytes]]], None], version: str = "1.0.0") -> None:
    """Replace a release on the server: entries are (mode, content) by name."""
    tag = f"refs/tags/adapters/sst2/{version}"
    entries: dict[str, tuple[str, bytes]] = {}
    for line in git(hub.bare, "ls-tree", tag).splitlines():
        name = line.partition("\t")[2]
        show = subprocess.run(
            ["git", "-C", str(hub.bare), "cat-file", "blob", f"{tag}:{name}"], capture_output=True, check=True
        )
        entries[name] = ("100644", show.stdout)
    change(entries)
    lines = []
    for name, (mode, content) in entries.items():
        if mode == "160000":
            lines.append(f"{mode} commit {'1' * 40}\t{name}")
            continue
        (hub.bare / "blob").write_bytes(content)
        oid = git(hub.bare, "hash-object", "-w", "--no-filters", str(hub.bare / "blob"))
        if mode == "040000":
            oid = git(hub.bare, "mktree", stdin=f"100644 blob {oid}\tinner\n")
        lines.append(f"{mode} {'tree' if mode == '040000' else 'blob'} {oid}\t{name}")
    tree = git(hub.bare, "mktree", "--missing", stdin="\n".join(lines) + "\n")
    git(hub.bare, "-c", "user.name=x", "-c", "user.email=x@y", "update-ref", tag, git(hub.bare, "-c", "user.name=x", "-c", "user.email=x@y", "commit-tree", tree, "-m", "x"))  # fmt: skip


def put(name: str, content: bytes = b"x", mode: str = "100644") -> Callable[[dict[str, tuple[str, bytes]]], None]:
    return lambda entries: entries.update({name: (mode, content)})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda entries: put("adapter.safetensors", entries["adapter.safetensors"][1][:-1] + b"W")(entries), "changed"),
        (put("card.yaml", b"name: other"), "changed"),
        (put("extra.txt"), "does not list"),
        (lambda entries: entries.pop("README.md") and None, "missing"),
        (put("README.md", b"/etc/passwd", "120000"), "a link"),
        (put("sub", b"", "160000"), "a submodule"),
        (put("sub", b"x", "040000"), "a folder"),
        (put("README.md", b"#!/bin/sh", "100755"), "an executable"),
        (put("weights.bin"), "pickle"),
        (put("..x"), "not a file name"),
        (put("a b"), "not a file name"),
        (put("card.YAML"), "only in case"),
        (put("nul.txt"), "not a file name"),
    ],
)
def test_a_rewritten_release_is_refused_and_nothing_is_stored(
    hub: Hub, source: Source, home: Path, change: object, why: str
) -> None:
    release(hub, source())
    hub.trust()
    rewrite(hub, change)  # type: ignore[arg-type]
    with pytest.raises(PackageError, match=why):
        fetch(f"{hub.url}@sst2")
    assert [p for p in stored(home) if "packages" in p.parts] == []


def test_another_keys_signature_is_refused(hub: Hub, source: Source, other_key: SigningKey) -> None:
    from adaptergit.trust import sign

    release(hub, source())
    hub.trust()

    def resign(entries: dict[str, tuple[str, bytes]]) -> None:
        entries["manifest.json.sig"] = ("100644", sign(entries["manifest.json"][1], other_key))

    rewrite(hub, resign)
    with pytest.raises(TrustError, match="only"):
        fetch(f"{hub.url}@sst2")


def test_a_removed_signature_is_refused(hub: Hub, source: Source) -> None:
    release(hub, source())
    hub.trust()
    rewrite(hub, lambda entries: entries.pop("manifest.json.sig") and None)
    with pytest.raises(TrustError, match="not signed"):
        fetch(f"{hub.url}@sst2")


def test_an_old_release_under_a_new_tag_is_refused(hub: Hub, source: Source) -> None:
    """Rollback: the signature is good, the version inside is not the one asked for."""
    release(hub, source())
    release(hub, source(b"fixed"), version="1.1.0")
    hub.trust()
    git(hub.bare, "update-ref", "refs/tags/adapters/sst2/1.1.0", "refs/tags/adapters/sst2/1.0.0")
    with pytest.raises(TrustError, match=r"1\.1\.0"):
        fetch(f"{hub.url}@sst2==1.1.0")


def test_a_release_copied_to_another_repository_or_name_is_refused(hub: Hub, source: Source) -> None:
    release(hub, source())
    pin_key("127.0.0.1/*", hub.key.public.line)
    evil = hub.server.create("evil/adapters")
    git(hub.clone, "push", "-q", evil, "--tags")
    with pytest.raises(TrustError, match="belongs to"):
        fetch(f"{evil}@sst2")
    git(hub.bare, "update-ref", "refs/tags/adapters/mnli/1.0.0", "refs/tags/adapters/sst2/1.0.0")
    with pytest.raises(TrustError, match="mnli"):
        fetch(f"{hub.url}@mnli")


def test_a_release_larger_than_the_limit_is_refused(hub: Hub, source: Source) -> None:

    release(hub, source(os.urandom(3_000_000)))
    small = Settings(limits=Limits(package_bytes=500_000, file_bytes=500_000))
    with pytest.raises((TransportError, PackageError), match="limit"):
        fetch(f"{hub.url}@sst2", settings=small)


def test_a_server_that_never_answers_is_given_up(source: Source) -> None:
    from adaptergit.git import Remote, list_versions

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        remote = Remote(f"http://127.0.0.1:{silent.getsockname()[1]}/a.git", ("http",))
        with pytest.raises(TransportError, match="no end within 1 s"):
            list_versions(remote, "x", Limits(fetch_seconds=1))


@pytest.mark.slow
def test_a_helper_that_lives_on_holds_nobody_up(tmp_path: Path, home: Path) -> None:
    """The user's own ssh command is used, and what it leaves running is killed with git."""
    from adaptergit.git import Remote, list_versions
    from adaptergit.git.runner import transport_settings

    script = tmp_path / "ssh"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path}/called\n(sleep 30 <&- >&-)& exit 255\n")
    script.chmod(0o755)
    (home / "more").write_text(f"[core]\nsshCommand = {script}\n")
    with (home / ".gitconfig").open("a") as file:
        file.write("[include]\npath = more\n")
    transport_settings.cache_clear()
    started = time.monotonic()
    with pytest.raises(TransportError):
        list_versions(Remote("git@127.0.0.1:a/b", ("ssh",)), "x", Limits())
    transport_settings.cache_clear()
    assert (tmp_path / "called").exists()
    assert time.monotonic() - started < 25, "the sleeping helper was waited for"


def test_the_users_git_configuration_cannot_move_a_fetch(hub: Hub, source: Source, home: Path, tmp_path: Path) -> None:
    release(hub, source())
    with (home / ".gitconfig").open("a") as file:
        file.write(
            f'[url "file://{tmp_path}/elsewhere"]\n\tinsteadOf = {hub.url}\n[protocol "ext"]\n\tallow = always\n'
        )
    assert fetch(f"{hub.url}@sst2").version == "1.0.0"


@pytest.mark.parametrize(
    "name", ["GIT_DIR", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_NAMESPACE"]
)
def test_an_outer_git_cannot_redirect_a_fetch(
    hub: Hub, source: Source, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    release(hub, source())
    monkeypatch.setenv(name, str(tmp_path / "elsewhere"))
    assert fetch(f"{hub.url}@sst2").version == "1.0.0"
    assert not (tmp_path / "elsewhere").exists()


def test_a_git_too_old_to_be_hardened_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "git").write_text("#!/bin/sh\necho git version 2.31.8\n")
    (tmp_path / "bin" / "git").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "adaptergit", "load", "http://127.0.0.1:9/acme/adapters.git@sst2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 6
    assert "git 2.31.8 is too old" in done.stderr


def test_a_hostile_url_runs_nothing(tmp_path: Path) -> None:
    from adaptergit.git import Remote, list_versions

    for url in (
        f"ext::sh -c touch% {tmp_path}/owned",
        f"--upload-pack=touch {tmp_path}/owned",
        f"-u;touch {tmp_path}/owned",
    ):
        with pytest.raises(TransportError):
            list_versions(Remote(url, ("https",)), "x", Limits())
    assert not (tmp_path / "owned").exists()


def test_a_missing_adapter_and_a_missing_repository_are_told_apart(hub: Hub, source: Source) -> None:
    release(hub, source())
    with pytest.raises(NotFoundError, match="no adapter 'nope'"):
        fetch(f"{hub.url}@nope")
    with pytest.raises(TransportError, match="not found"):
        fetch(f"{hub.server.url}/acme/nothing.git@nope")
    with pytest.raises(NotFoundError, match=r"9\.9"):
        fetch(f"{hub.url}@sst2==9.9")


# --- trust, stored ----------------------------------------------------------------------------------------------------


def untrusted(hub: Hub, folder: Path) -> str:
    """Publish without the user knowing the key; return the reference."""
    publish(folder, clone=hub.clone, key=hub.key.path)
    return f"{hub.url}@sst2"


def stored(home: Path) -> list[Path]:
    """Files of packages in the store."""
    return [path for path in (home / "cache" / "packages").rglob("*") if path.is_file()]


def test_tofu_remembers(hub: Hub, source: Source, home: Path) -> None:
    reference = untrusted(hub, source())
    with pytest.raises(TrustError, match="nobody you know"):
        fetch(reference)
    with pytest.warns(AdaptergitWarning, match="pinned the key"):
        fetch(reference, policy="tofu")
    assert fetch(reference).verdict.level == "enforce"
    assert hub.key.public.line in (home / "config" / "known_publishers").read_text()


def test_a_local_path_earns_no_pin_and_chooses_no_weaker_rule(hub: Hub, source: Source, home: Path) -> None:
    """What a manifest from a path claims about its repository is a claim."""
    untrusted(hub, source())
    with pytest.raises(TrustError, match="names nobody"):
        fetch(f"{hub.bare}@sst2", policy="tofu")
    with pytest.raises(TrustError, match="nobody you know"):
        fetch(f"{hub.bare}@sst2", settings=Settings(policy=(("127.0.0.1/*", "unsigned", 1),)))
    assert not (home / "config" / "known_publishers").exists()


def test_what_is_refused_is_neither_stored_nor_remembered(hub: Hub, source: Source, home: Path) -> None:
    reference = untrusted(hub, source())
    with pytest.raises(TrustError):
        fetch(f"{reference}==1.0.0")
    assert stored(home) == []


def test_a_bad_answer_does_not_outlive_the_attack(hub: Hub, source: Source) -> None:
    """A server in between serves another release once; afterwards the honest one is asked again."""
    release(hub, source())
    good = git(hub.bare, "rev-parse", "refs/tags/adapters/sst2/1.0.0")
    rewrite(hub, lambda entries: entries.pop("manifest.json.sig") and None)
    with pytest.raises(TrustError):
        fetch(f"{hub.url}@sst2==1.0.0")
    git(hub.bare, "update-ref", "refs/tags/adapters/sst2/1.0.0", good)
    assert fetch(f"{hub.url}@sst2==1.0.0").verdict.signers


def test_a_copy_without_signatures_in_the_store_stands_in_nobodys_way(hub: Hub, source: Source) -> None:
    """The store's key is the manifest's digest, which a mirror without signatures shares."""
    release(hub, source())
    mirror = hub.server.create("mirror/adapters")
    git(hub.clone, "push", "-q", mirror, "--tags")
    rewrite(hub, lambda entries: entries.pop("manifest.json.sig") and None)
    with pytest.warns(AdaptergitWarning):
        fetch(f"{hub.url}@sst2==1.0.0", policy="unsigned")
    git(hub.bare, "fetch", "-q", "--force", mirror, "refs/tags/*:refs/tags/*")
    assert fetch(f"{hub.url}@sst2==1.0.0").verdict.level == "enforce"
    assert fetch(f"{hub.url}@sst2==1.0.0").from_store


def test_an_unsigned_load_warns_every_time(hub: Hub, source: Source) -> None:
    reference = untrusted(hub, source())
    for _ in range(3):
        with pytest.warns(AdaptergitWarning, match="nobody vouches"):
            fetch(reference, policy="unsigned")


def test_an_old_release_under_a_higher_tag_is_refused(hub: Hub, source: Source) -> None:
    """Somebody with push rights and no key tags an old, signed release as the newest."""
    release(hub, source())
    git(hub.bare, "update-ref", "refs/tags/adapters/sst2/2.0.0", "refs/tags/adapters/sst2/1.0.0")
    for wanted in ("", ">=1", "==2.0.0"):
        with pytest.raises(TrustError, match=r"2\.0\.0"):
            fetch(f"{hub.url}@sst2{wanted}")


def test_a_pinned_digest_of_another_version_says_so(hub: Hub, source: Source) -> None:
    first = release(hub, source())
    release(hub, source(b"new"), version="1.1.0")
    with pytest.raises(TrustError) as caught:
        fetch(f"{hub.url}@sst2#sha256:{first.digest}")
    assert "==" in str(caught.value.hint)
    assert fetch(f"{hub.url}@sst2==1.0.0#sha256:{first.digest}").digest == first.digest


def test_an_index_pins_a_release_and_hides_a_yanked_one(hub: Hub, source: Source, tmp_path: Path) -> None:
    import json

    from adaptergit.search import add_to_index

    release(hub, source())
    release(hub, source(b"new"), version="1.1.0")
    index = tmp_path / "index.json"
    for version in ("1.0.0", "1.1.0"):
        add_to_index(index, f"{hub.url}@sst2=={version}")
    assert fetch(f"{hub.url}@sst2", index=index).version == "1.1.0"
    raw = json.loads(index.read_text())
    raw["entries"][1]["yanked"] = "broken"
    index.write_text(json.dumps(raw))
    assert fetch(f"{hub.url}@sst2", index=index).version == "1.0.0"
    assert fetch(f"{hub.url}@sst2==1.1.0", index=index).version == "1.1.0"
    raw["entries"][0]["yanked"] = "broken too"
    index.write_text(json.dumps(raw))
    with pytest.raises(NotFoundError, match="no release that fits"):
        fetch(f"{hub.url}@sst2", index=index)
    raw["entries"][0] |= {"yanked": None, "manifest_sha256": "0" * 64}
    index.write_text(json.dumps(raw))
    with pytest.raises(TrustError, match="you pinned"):
        fetch(f"{hub.url}@sst2", index=index, refresh=True)


def test_a_package_that_fails_its_digests_is_never_pinned(hub: Hub, source: Source, home: Path) -> None:
    reference = untrusted(hub, source())
    rewrite(hub, put("README.md", b"changed"))
    with pytest.raises(PackageError):
        fetch(reference, policy="tofu")
    assert not (home / "config" / "known_publishers").exists()
    assert stored(home) == []


def test_the_policy_is_chosen_by_glob(hub: Hub, source: Source) -> None:
    reference = untrusted(hub, source())
    settings = Settings(policy=(("127.0.0.1/acme/*", "unsigned", 1), ("*", "enforce", 1)))
    with pytest.warns(AdaptergitWarning, match="nobody vouches"):
        fetch(reference, settings=settings)


def test_a_signature_is_one_ssh_keygen_verifies(hub: Hub, source: Source, tmp_path: Path) -> None:
    release(hub, source())
    path = fetch(f"{hub.url}@sst2").path
    (tmp_path / "allowed").write_text(f"acme {hub.key.public.line}\n")
    argv = ["ssh-keygen", "-Y", "verify", "-f", str(tmp_path / "allowed"), "-I", "acme", "-n", "manifest.v1@adaptergit"]
    done = subprocess.run(
        [*argv, "-s", str(path / "manifest.json.sig")],
        input=(path / "manifest.json").read_bytes(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0


def test_the_server_counts_what_it_sends(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    with GitServer(tmp_path / "root") as server:
        url = server.create("a/b")
        git(tmp_path, "ls-remote", url)
        assert server.traffic.sent > 100
        server.reset()
        assert server.traffic.requests == []


def test_a_card_of_another_name_is_renamed_for_the_release_only(hub: Hub, source: Source) -> None:
    folder = source()
    published = release(hub, folder, name="renamed", version="3.0.0")
    assert published.name == "renamed"
    assert Card.from_yaml((folder / "card.yaml").read_bytes()).name == "sst2"
    assert Card.from_yaml((hub.clone / "adapters/renamed/card.yaml").read_bytes()).version == "3.0.0"
    assert canonical.sha256((hub.clone / "adapters/renamed/manifest.json").read_bytes()) == published.digest
    assert card_data()["name"] == "sst2"
