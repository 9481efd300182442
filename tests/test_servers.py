"""Servers that people run: nginx with git http-backend, git daemon; killed and restarted in the middle of a transfer."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Hub, git
from terminal import at_a_terminal

from adaptergit.errors import ReleaseError, TransportError, TrustError
from adaptergit.housekeeping import stored, verify_store
from adaptergit.pins import pin_key
from adaptergit.progress import Progress, watching
from adaptergit.publish import publish, yank
from adaptergit.resolve import fetch
from adaptergit.settings import cache_dir

Source = Callable[..., Path]
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
BACKEND = subprocess.run(["git", "--exec-path"], capture_output=True, text=True, check=True).stdout.strip()


def program(name: str, package: str) -> str:
    found = shutil.which(name, path=f"{PATH}:{BACKEND}")
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: {package})")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int) -> None:
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"nothing listens on {port}")


@dataclass
class Nginx:
    """One nginx with fcgiwrap, which can be killed and started again on its ports."""

    folder: Path
    port: int
    old_port: int
    """Here protocol v2 is not passed on."""
    running: list[subprocess.Popen[bytes]]

    def start(self) -> None:
        socket_path = self.folder / "fcgi.sock"
        socket_path.unlink(missing_ok=True)
        fcgi = [program("fcgiwrap", "fcgiwrap"), "-s", f"unix:{socket_path}", "-c", "4"]
        nginx = [program("nginx", "nginx-light"), "-c", str(self.folder / "nginx.conf"), "-g", "daemon off;"]
        self.running = [
            subprocess.Popen(argv, stderr=subprocess.DEVNULL, start_new_session=True) for argv in (fcgi, nginx)
        ]
        wait_for(self.port)

    def kill(self) -> None:
        for process in self.running:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


CONFIG = """
pid {folder}/nginx.pid; error_log {folder}/error.log; worker_processes 2; {user}
events {{ worker_connections 64; }}
http {{
  access_log {folder}/access.log; client_max_body_size 0; client_body_temp_path {folder}/tmp; fastcgi_temp_path {folder}/tmp2;
  proxy_temp_path {folder}/tmp3; uwsgi_temp_path {folder}/tmp4; scgi_temp_path {folder}/tmp5;
  server {{
    listen 127.0.0.1:{port};
    location ~ ^/private/ {{ auth_basic "git"; auth_basic_user_file {folder}/htpasswd; {fastcgi} }}
    location / {{ if (-f {folder}/busy) {{ return 503; }} {rate} {fastcgi} }}
  }}
  server {{ listen 127.0.0.1:{old_port}; location / {{ {old} }} }}
}}
"""
FASTCGI = (
    "fastcgi_pass unix:{folder}/fcgi.sock; fastcgi_param SCRIPT_FILENAME {backend}/git-http-backend;"
    " fastcgi_param GIT_PROJECT_ROOT {root}; fastcgi_param GIT_HTTP_EXPORT_ALL 1; fastcgi_param PATH_INFO $uri;"
    " fastcgi_param QUERY_STRING $query_string; fastcgi_param REQUEST_METHOD $request_method;"
    " fastcgi_param CONTENT_TYPE $content_type; fastcgi_param CONTENT_LENGTH $content_length;"
    " fastcgi_param GIT_PROTOCOL $http_git_protocol; fastcgi_param HTTP_CONTENT_ENCODING $http_content_encoding;"
    " fastcgi_param REMOTE_USER $remote_user;"
)


@pytest.fixture
def nginx(hub: Hub, tmp_path: Path) -> Iterator[Nginx]:
    folder, port, old_port = tmp_path / "nginx", free_port(), free_port()
    folder.mkdir()
    root = tmp_path / "server"
    fastcgi = FASTCGI.format(folder=folder, backend=BACKEND, root=root)
    old = fastcgi.replace("GIT_PROTOCOL $http_git_protocol;", 'HTTP_GIT_PROTOCOL "";')
    user = "user root;" if os.geteuid() == 0 else ""
    ports = {"port": port, "old_port": old_port}
    config = CONFIG.format(folder=folder, **ports, fastcgi=fastcgi, old=old, rate="limit_rate 2m;", user=user)
    (folder / "nginx.conf").write_text(config)
    (folder / "htpasswd").write_text("me:{PLAIN}secret\n")
    server = Nginx(folder, port, old_port, [])
    git(hub.bare, "config", "safe.directory", "*")
    server.start()
    yield server
    server.kill()


def published(hub: Hub, source: Source, size: int = 5000) -> None:
    hub.trust()
    publish(source(os.urandom(size)), clone=hub.clone, key=hub.key.path)


@pytest.mark.parametrize("filters", ["true", "false"])
def test_nginx_with_http_backend(hub: Hub, source: Source, nginx: Nginx, filters: str) -> None:
    git(hub.bare, "config", "uploadpack.allowFilter", filters)
    published(hub, source, 400_000)
    found = fetch(f"http://127.0.0.1:{nginx.port}/acme/adapters.git@sst2")
    assert found.version == "1.0.0"
    log = (nginx.folder / "access.log").read_text()
    assert "git-upload-pack" in log


@pytest.mark.parametrize("filters", ["true", "false"])
@pytest.mark.parametrize("wanted", ["sst2", "sst2==1.0.0"])
def test_a_large_adapter_from_a_server_of_protocol_v0(
    hub: Hub, source: Source, nginx: Nginx, filters: str, wanted: str
) -> None:
    """It filters, but gives no object that it did not advertise: what was kept back comes with the tag."""
    git(hub.bare, "config", "uploadpack.allowFilter", filters)
    published(hub, source, 400_000)
    assert fetch(f"http://127.0.0.1:{nginx.old_port}/acme/adapters.git@{wanted}").version == "1.0.0"
    assert verify_store() == {}


def test_a_repository_without_tags_at_a_server_of_protocol_v0(hub: Hub, source: Source, nginx: Nginx) -> None:
    git(hub.bare, "config", "uploadpack.allowFilter", "true")
    published(hub, source, 400_000)
    git(hub.bare, "tag", "-d", "adapters/sst2/1.0.0")
    assert fetch(f"http://127.0.0.1:{nginx.old_port}/acme/adapters.git@sst2").version == "1.0.0"


def test_a_sha256_repository_at_a_server_of_protocol_v0_is_asked_once_in_each_format(
    hub: Hub, source: Source, nginx: Nginx, tmp_path: Path
) -> None:
    """That the formats differ is no stumbling, although the server hangs up on it."""
    bare, clone = hub.bare.with_name("wide.git"), tmp_path / "wide"
    git(tmp_path, "init", "-q", "--bare", "--object-format=sha256", str(bare))
    git(bare, "config", "safe.directory", "*")
    git(tmp_path, "init", "-q", "--object-format=sha256", str(clone))
    git(clone, "remote", "add", "origin", str(bare))
    published = publish(source(), clone=clone, key=hub.key.path, repository="127.0.0.1/acme/wide")
    pin_key("127.0.0.1/acme/wide", hub.key.public.line)
    url = f"http://127.0.0.1:{nginx.old_port}/acme/wide.git"
    assert fetch(f"{url}@sst2==1.0.0").digest == published.digest
    asked = (nginx.folder / "access.log").read_text().count("GET /acme/wide.git/info/refs")
    assert asked == 2


def test_basic_authentication_through_gits_credential_helper_only(
    hub: Hub, source: Source, nginx: Nginx, home: Path, tmp_path: Path
) -> None:
    published(hub, source)
    private = tmp_path / "server" / "private"
    private.mkdir()
    shutil.copytree(hub.bare, private / "adapters.git")
    url = f"http://127.0.0.1:{nginx.port}/private/adapters.git"
    with pytest.raises(TransportError, match="credential helper"):
        fetch(f"{url}@sst2==1.0.0", policy="unsigned")
    helper = home / "helper.sh"
    helper.write_text("#!/bin/sh\necho username=me\necho password=secret\n")
    helper.chmod(0o755)
    with (home / ".gitconfig").open("a") as config:
        config.write(f"[credential]\nhelper = {helper}\n")
    from adaptergit.git import runner

    runner.transport_settings.cache_clear()
    pin_key("127.0.0.1/private/adapters", hub.key.public.line)
    for wanted in ("sst2", "sst2==1.0.0"):
        with pytest.raises(TrustError, match="belongs to 127") as caught:  # the manifest is of acme/adapters
            fetch(f"{url}@{wanted}")
        assert "secret" not in str(caught.value)
    runner.transport_settings.cache_clear()
    assert base64.b64encode(b"me:secret").decode() not in "".join(
        p.read_text("utf-8", "replace") for p in cache_dir().rglob("*") if p.is_file()
    )


def test_a_publisher_is_let_in_by_the_settings_of_the_clone(
    hub: Hub, source: Source, nginx: Nginx, tmp_path: Path
) -> None:
    """As continuous integration does it: a header with a token, in the clone's own configuration."""
    private = tmp_path / "server" / "private"
    private.mkdir()
    shutil.copytree(hub.bare, private / "adapters.git")
    git(private / "adapters.git", "config", "http.receivepack", "true")
    url = f"http://127.0.0.1:{nginx.port}/private/adapters.git"
    header = f"Authorization: Basic {base64.b64encode(b'me:secret').decode()}"
    clones = [tmp_path / "first", tmp_path / "behind"]
    for clone in clones:
        git(tmp_path, "-c", f"http.extraHeader={header}", "clone", "-q", url, str(clone))
        git(clone, "config", "http.extraHeader", header)
    first = publish(source(), clone=clones[0], key=hub.key.path, pull_request=True)
    second = publish(source(), clone=clones[1], key=hub.key.path, version="1.1.0", pull_request=True)
    assert second.previous == first.digest


@pytest.mark.parametrize("configured", ["http", "short"])
def test_a_publisher_is_let_in_by_a_rewritten_address_that_changes_no_name(
    hub: Hub, source: Source, nginx: Nginx, tmp_path: Path, configured: str
) -> None:
    """As continuous integration does it: ``url.….insteadOf`` puts a token into a clean address, or moves it."""
    private = tmp_path / "server" / "private"
    private.mkdir()
    shutil.copytree(hub.bare, private / "adapters.git")
    git(private / "adapters.git", "config", "http.receivepack", "true")
    rewrite = (f"url.http://me:secret@127.0.0.1:{nginx.port}/.insteadOf", f"http://localhost:{nginx.port}/")
    url = f"http://localhost:{nginx.port}/private/adapters.git"
    clones = [tmp_path / "first", tmp_path / "behind"]
    for clone in clones:
        git(tmp_path, "-c", "=".join(rewrite), "clone", "-q", url, str(clone))
        git(clone, "config", *rewrite)
        if configured == "short":
            git(clone, "config", "--unset", rewrite[0])
            git(clone, "config", "http.extraHeader", f"Authorization: Basic {base64.b64encode(b'me:secret').decode()}")
            git(clone, "config", f"url.{url.removesuffix('private/adapters.git')}.insteadOf", "lab:")
            git(clone, "remote", "set-url", "origin", "lab:private/adapters.git")
    said: list[str] = []
    first = publish(source(), clone=clones[0], key=hub.key.path, pull_request=True, report=said.append)
    assert first.repository == "localhost/private/adapters"
    second = publish(source(), clone=clones[1], key=hub.key.path, version="1.1.0", pull_request=True)
    assert second.previous == first.digest
    yank("sst2", "1.1.0", reason="no good", clone=clones[1])
    git(private / "adapters.git", "update-ref", "-d", "refs/heads/publish/sst2-1.0.0")
    with pytest.raises(ReleaseError) as caught:
        publish(source(), clone=clones[0], key=hub.key.path, version="1.1.0", pull_request=True)
    assert "secret" not in f"{caught.value} {said} {first} {second}"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="no list of processes to look at")
def test_no_secret_of_the_users_configuration_is_seen_in_the_list_of_processes(home: Path) -> None:
    from adaptergit.git import runner

    with socket.socket() as proxy:  # it takes the connection and says nothing
        proxy.bind(("127.0.0.1", 0))
        proxy.listen()
        with (home / ".gitconfig").open("a") as config:
            config.write(f"[http]\nproxy = http://me:s3cr3t@127.0.0.1:{proxy.getsockname()[1]}\n")
            config.write('[credential]\nhelper = "!f() { echo password=s3cr3t; }; f"\n')
        runner.transport_settings.cache_clear()
        seen: list[bytes] = []

        def look() -> None:
            peer, _ = proxy.accept()
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    seen.append(path.read_bytes())
            peer.close()
            proxy.close()  # who asks again is not kept waiting

        watching = threading.Thread(target=look)
        watching.start()
        with pytest.raises(TransportError) as caught:
            fetch("http://127.0.0.1:9/acme/adapters.git@sst2")
        watching.join()
        runner.transport_settings.cache_clear()
    assert any(b"git-remote-http" in line or b"remote-http" in line for line in seen)
    assert not [line for line in seen if b"s3cr3t" in line]
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("wanted", ["sst2", "sst2==1.0.0"])
def test_a_server_that_is_busy_for_a_moment_is_asked_again(hub: Hub, source: Source, nginx: Nginx, wanted: str) -> None:
    published(hub, source)
    busy = nginx.folder / "busy"
    busy.touch()
    threading.Timer(0.4, busy.unlink).start()
    assert fetch(f"http://127.0.0.1:{nginx.port}/acme/adapters.git@{wanted}").version == "1.0.0"
    assert " 503 " in (nginx.folder / "access.log").read_text()


@pytest.mark.slow
def test_a_server_that_dies_in_the_middle_is_asked_again(hub: Hub, source: Source, nginx: Nginx) -> None:
    published(hub, source, 6_000_000)  # three seconds at this server's rate
    revived = threading.Event()

    def murder() -> None:
        time.sleep(1.2)
        nginx.kill()
        time.sleep(0.3)
        nginx.start()
        revived.set()

    thread = threading.Thread(target=murder)
    thread.start()
    found = fetch(f"http://127.0.0.1:{nginx.port}/acme/adapters.git@sst2==1.0.0")
    thread.join()
    assert revived.is_set()
    assert (found.path / "adapter.safetensors").stat().st_size > 6_000_000
    assert verify_store() == {}


@pytest.mark.slow
def test_a_server_that_stays_dead_leaves_nothing(hub: Hub, source: Source, nginx: Nginx) -> None:
    published(hub, source, 6_000_000)
    threading.Timer(1.2, nginx.kill).start()
    with pytest.raises(TransportError):
        fetch(f"http://127.0.0.1:{nginx.port}/acme/adapters.git@sst2==1.0.0")
    assert stored() == []
    assert not list((cache_dir() / "tmp").iterdir())
    nginx.start()


def test_git_daemon_is_no_protocol_of_ours(hub: Hub, source: Source) -> None:
    """Unencrypted and unauthenticated: refused by name, whoever runs it."""
    with pytest.raises(Exception, match="protocol 'git' is not allowed"):
        fetch("git://127.0.0.1/acme/adapters@sst2")


# --- many processes, and processes that are killed --------------------------------------------------------------------

LOADER = """
import sys
from adaptergit.resolve import fetch
for reference in sys.argv[1:]:
    found = fetch(reference)
    print(found.digest, found.from_store)
"""


@pytest.mark.slow
def test_64_processes_and_8_adapters_are_8_downloads(hub: Hub, source: Source) -> None:
    hub.trust()
    from adaptergit.publish import publish_all

    folders = [source(os.urandom(50_000), folder=f"out{i}", name=f"a{i}") for i in range(8)]
    publish_all(folders, clone=hub.clone, key=hub.key.path)
    references = [f"{hub.url}@a{i}==1.0.0" for i in range(8)]
    hub.server.traffic.requests.clear()
    running = [
        subprocess.Popen(
            [sys.executable, "-c", LOADER, *(references[(n + i) % 8] for i in range(8))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(64)
    ]
    lines = []
    for process in running:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        lines += out.split("\n")
    downloads = [line for line in lines if line.endswith("False")]
    assert len(downloads) == 8
    assert len({line.split()[0] for line in lines if line}) == 8
    assert len([r for r in hub.server.traffic.requests if "git-upload-pack" in r and "POST" in r]) <= 16
    assert verify_store() == {}


KILLED = """
import os, sys
from adaptergit.progress import watching
from adaptergit.publish import publish, yank
from adaptergit.resolve import fetch
if sys.argv[1] == "fetch":
    fetch(sys.argv[2])
else:
    publish(sys.argv[2], clone=sys.argv[3], key=sys.argv[4], version=sys.argv[5])
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_nothing_half_written(hub: Hub, source: Source) -> None:
    """40 kills spread over a fetch and a publication; benchmarks/stress.py does 200."""
    hub.trust()
    folder = source(os.urandom(300_000))
    publish(folder, clone=hub.clone, key=hub.key.path)
    for step in range(20):
        shutil.rmtree(cache_dir(), ignore_errors=True)
        kill_after(0.05 + step * 0.03, "fetch", f"{hub.url}@sst2==1.0.0")
        assert verify_store() == {}
        assert all(one.manifest is not None for one in stored())
    assert fetch(f"{hub.url}@sst2==1.0.0").version == "1.0.0"
    for step in range(20):
        kill_after(0.1 + step * 0.03, "publish", str(folder), str(hub.clone), str(hub.key.path), f"1.{step + 1}.0")
        for where in (hub.bare, hub.clone):
            done = subprocess.run(
                ["git", "-C", str(where), "fsck", "--strict"], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
        # What the server has is whole: branch and tag came together or not at all.
        tags = set(git(hub.bare, "tag", "-l", f"adapters/sst2/1.{step + 1}.0").split())
        if tags:
            assert fetch(f"{hub.url}@sst2==1.{step + 1}.0").version == f"1.{step + 1}.0"
            lock = hub.clone / ".git" / "index.lock"
            lock.unlink(missing_ok=True)
            hub.git("fetch", "-q", "origin")
            hub.git("reset", "-q", "--hard", "origin/main")
    for path in (hub.clone / ".git").rglob("*.lock"):
        path.unlink()
    time.sleep(1)  # a server may finish what a killed client began
    hub.git("fetch", "-q", "origin")
    hub.git("reset", "-q", "--hard", "origin/main")
    publish(folder, clone=hub.clone, key=hub.key.path, version="2.0.0")
    assert fetch(f"{hub.url}@sst2==2.0.0").version == "2.0.0"


def kill_after(seconds: float, *argv: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, *argv],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


# --- how far it has come ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_who_watches_is_told_how_far_a_fetch_has_come(hub: Hub, source: Source, nginx: Nginx) -> None:
    """Of how many bytes, too, where the manifest comes first."""
    git(hub.bare, "config", "uploadpack.allowFilter", "true")
    published(hub, source, 6_000_000)
    seen: list[Progress] = []
    url = f"http://127.0.0.1:{nginx.port}/acme/adapters.git"
    with watching(seen.append):
        found = fetch(f"{url}@sst2==1.0.0")
    size = (found.path / "adapter.safetensors").stat().st_size
    told = [(one.done, one.total) for one in seen if one.what == url and one.done > 10_000]
    assert {total for _, total in told[:-1]} == {size}
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert len(told) >= 3
    assert told[-1][0] == pytest.approx(size, rel=0.01)
    assert told[-1][0] == told[-1][1]
    seen.clear()
    fetch(f"{url}@sst2==1.0.0", refresh=True)
    assert seen == []  # nobody watches


@pytest.mark.slow
def test_it_is_known_of_how_many_bytes_where_all_comes_at_once(hub: Hub, source: Source, nginx: Nginx) -> None:
    git(hub.bare, "config", "uploadpack.allowFilter", "false")
    published(hub, source, 6_000_000)
    url = f"http://127.0.0.1:{nginx.port}/acme/adapters.git"
    seen: list[Progress] = []
    with watching(seen.append):
        found = fetch(f"{url}@sst2==1.0.0")
    size = (found.path / "adapter.safetensors").stat().st_size
    told = [(one.done, one.total) for one in seen if one.what == url and one.total != one.done]
    assert len(told) >= 3
    assert all(total == pytest.approx(size, rel=0.01) for _, total in told)


@pytest.mark.slow
def test_a_terminal_shows_rate_and_remaining_time_on_one_line(hub: Hub, source: Source, nginx: Nginx) -> None:
    published(hub, source, 6_000_000)
    url = f"http://127.0.0.1:{nginx.port}/acme/adapters.git"
    code, shown = at_a_terminal(["load", f"{url}@sst2==1.0.0"], os.environ | {"TERM": "xterm", "COLUMNS": "70"})
    assert code == 0, shown
    assert re.search(r"fetching http://127[^\r\n]*…: [0-9.]+ of 6\.0 MB, [0-9.]+ MB/s, [0-9]+ s left", shown), shown


@pytest.mark.slow
def test_who_watches_can_end_it(hub: Hub, source: Source, nginx: Nginx) -> None:
    published(hub, source, 6_000_000)

    class EnoughError(Exception):
        pass

    def stop(one: Progress) -> None:
        if one.done > 1_000_000:
            raise EnoughError

    with watching(stop), pytest.raises(EnoughError):
        fetch(f"http://127.0.0.1:{nginx.port}/acme/adapters.git@sst2==1.0.0")
    assert stored() == []
    assert not list((cache_dir() / "tmp").iterdir())


@pytest.mark.slow
def test_a_failure_while_somebody_watches_says_what_failed(hub: Hub, source: Source, nginx: Nginx) -> None:
    published(hub, source, 6_000_000)
    threading.Timer(1.2, nginx.kill).start()
    with watching(lambda _: None), pytest.raises(TransportError) as caught:
        fetch(f"http://127.0.0.1:{nginx.port}/acme/adapters.git@sst2==1.0.0")
    assert str(caught.value).startswith(f"http://127.0.0.1:{nginx.port}/acme/adapters.git")
    nginx.start()
