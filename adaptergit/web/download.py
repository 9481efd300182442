"""One bounded way to download: https, limits on bytes and time, retries that go on where the last attempt stopped.

Credentials come from ``~/.netrc`` alone (requests looks them up by host, so that a redirect to another host does not
carry them along), and no URL with credentials in it is ever asked for.
"""

from __future__ import annotations

import io
import ipaddress
import random
import re
import socket
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from adaptergit._version import __version__
from adaptergit.errors import AdaptergitError, NotFoundError, TransportError, UsageError
from adaptergit.progress import tell
from adaptergit.settings import check_online

_REDIRECTS = 5
_ATTEMPTS = 4
_BLOCK = 1 << 18
_NETWORK = "check the address and the network, and the proxy, if there is one (https_proxy)"
_SLOW = "check the network, or try again later"
_REASONS = {
    "Connection refused": "connection refused",
    "Failed to resolve|Name or service not known": "there is no such host",
    "timed out": "it took too long",
    "reset by peer|aborted": "the connection was lost",
    "CERTIFICATE|certificate": "its certificate is not one that is known here",
}
"""What people are told of errors of connections, whose texts are long."""
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class Download:
    """Rules of a download."""

    allow_http: Collection[str] = ()
    """Hosts besides loopback that plain http is spoken to."""
    seconds: float = 600.0
    """Until it is given up, retries and all."""
    latest: float | None = None
    """When all of several downloads must have ended, as ``time.monotonic`` tells it."""

    def read(self, url: str, limit: int) -> bytes:
        """Return a small document.

        Raises:
            NotFoundError: The server says that there is none.
            TransportError: It cannot be had, or is larger than ``limit``.
        """
        return self.read_changed(url, limit, "")[0] or b""

    def read_changed(self, url: str, limit: int, etag: str) -> tuple[bytes | None, str]:
        """Return a small document, or None if it still is the one with this ETag; and its ETag, if it has one.

        Raises:
            NotFoundError, TransportError: See :meth:`read`.
        """
        content, tag = io.BytesIO(), _Tag(etag)
        self._run(url, limit, content, tag=tag)
        return None if tag.same else content.getvalue(), tag.value

    def save(self, url: str, path: Path, limit: int, *, exceeded: type[AdaptergitError] = TransportError) -> None:
        """Write a document to a new file.

        Args:
            url: Its address.
            path: Of the file.
            limit: Bytes.
            exceeded: What to raise when there are more: where the size was stated, it is another document.

        Raises:
            NotFoundError, TransportError: See :meth:`read`.
        """
        with path.open("xb") as file:
            self._run(url, limit, file, exceeded)

    def post(self, url: str, question: bytes, limit: int, headers: Mapping[str, str]) -> bytes:
        """Send a question, once, and return the answer; redirects are not followed.

        Raises:
            NotFoundError, TransportError: See :meth:`read`.
        """
        content = io.BytesIO()
        try:
            self._attempt(url, limit, content, self._deadline(), TransportError, _Tag(), (question, headers))
        except _TransientError as error:
            raise TransportError(error.what, where=url, hint="try again later") from error
        return content.getvalue()

    def _run(
        self,
        url: str,
        limit: int,
        into: IO[bytes],
        exceeded: type[AdaptergitError] = TransportError,
        tag: _Tag | None = None,
    ) -> None:
        deadline, tag = self._deadline(), tag or _Tag()
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return self._attempt(url, limit, into, deadline, exceeded, tag)
            except _TransientError as again:
                pause = max(again.wait, random.uniform(0.5, 1.0) * 2 ** (attempt - 1))  # noqa: S311 - politeness
                last = attempt == (2 if again.unreachable else _ATTEMPTS)
                if last or time.monotonic() + pause > deadline:
                    hint = _NETWORK if again.unreachable else "try again later"
                    raise TransportError(again.what, where=url, hint=hint) from again
                time.sleep(pause)
        raise AssertionError("unreachable")

    def _deadline(self) -> float:
        own = time.monotonic() + self.seconds
        return own if self.latest is None else min(own, self.latest)

    def _attempt(
        self,
        url: str,
        limit: int,
        into: IO[bytes],
        deadline: float,
        exceeded: type[AdaptergitError],
        tag: _Tag,
        question: tuple[bytes, Mapping[str, str]] | None = None,
    ) -> None:
        start = into.tell()
        headers = {"User-Agent": f"adaptergit/{__version__}", "Accept-Encoding": "identity"}
        if start and tag.begun:
            # Two halves of different documents make none.
            headers |= {"Range": f"bytes={start}-", "If-Range": tag.begun}
        elif tag.value and not start:
            headers["If-None-Match"] = tag.value
        try:
            with (
                requests.Session() as session,
                _cut_off(session, deadline),
                self._sent(session, url, headers, deadline, question) as response,
            ):
                if response.status_code == 304 and "If-None-Match" in headers:
                    tag.same = True
                    return
                if response.status_code in (404, 410, 451):
                    raise NotFoundError(f"the server answered {response.status_code}", where=url)
                if response.status_code in _TRANSIENT:
                    after = response.headers.get("Retry-After", "")
                    wait = float(after) if after.isascii() and after.isdigit() else 0
                    raise _TransientError(f"the server answered {response.status_code}", wait)
                if response.status_code not in (200, 206):
                    raise TransportError(
                        f"the server answered {response.status_code}",
                        where=url,
                        hint="name and password go into ~/.netrc" if response.status_code in (401, 403) else None,
                    )
                tag.value = response.headers.get("ETag", "")[:200]
                tag.begun = tag.value if tag.value.startswith('"') else response.headers.get("Last-Modified", "")[:200]
                ranged = response.headers.get("Content-Range", "")
                if response.status_code == 206 and not ranged.startswith(f"bytes {into.tell()}-"):
                    raise TransportError(f"the server answered another range: {ranged!r}", where=url)
                if response.status_code == 200:  # all of it again
                    into.seek(0)
                    into.truncate()
                length = response.headers.get("Content-Length") or ""
                if length and not re.fullmatch("[0-9]{1,18}", length):
                    raise TransportError(f"the server says a length of {length[:40]!r}", where=url)
                expected = int(length) if length else -1
                total = into.tell() + expected if expected >= 0 else None
                got = 0
                # What has arrived, not whole blocks: a byte now and then must not outlive the deadline.
                while block := response.raw.read1(_BLOCK):
                    got += len(block)
                    if into.tell() + len(block) > limit:
                        raise exceeded(f"more than the limit of {limit} bytes", where=url)
                    if time.monotonic() > deadline:
                        raise TransportError(f"no end within {self.seconds:.0f} s", where=url, hint=_SLOW)
                    into.write(block)
                    tell(url, into.tell(), total)
                if time.monotonic() > deadline:  # the connection was cut, perhaps before there was a length
                    raise TransportError(f"no end within {self.seconds:.0f} s", where=url, hint=_SLOW)
                if 0 <= expected != got:
                    raise _TransientError(f"{got} of {expected} bytes arrived")
        except (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError, OSError) as error:
            if isinstance(error, OSError) and not isinstance(error, requests.RequestException | ConnectionError):
                raise
            if time.monotonic() > deadline:
                raise TransportError(f"no end within {self.seconds:.0f} s", where=url, hint=_SLOW) from error
            raise _TransientError(f"no answer: {_reason(error)}", unreachable=into.tell() == start) from error
        except requests.RequestException as error:
            raise TransportError(f"cannot be asked for: {type(error).__name__}", where=url, hint=_NETWORK) from error

    def _sent(
        self,
        session: requests.Session,
        url: str,
        headers: dict[str, str],
        deadline: float,
        question: tuple[bytes, Mapping[str, str]] | None,
    ) -> requests.Response:
        """Follow redirects by hand: each is judged, and each looks up credentials for its own host."""
        check_online(url)
        body, more = question or (None, {})
        options: Any = {"data": body, "headers": {**headers, **more}, "stream": True, "allow_redirects": False}
        for _ in range(_REDIRECTS + 1):
            self.check(url)
            left = max(0.1, deadline - time.monotonic())
            patience = (min(20.0, left), min(60.0, left))
            try:
                response = session.request("POST" if body is not None else "GET", url, timeout=patience, **options)
            except ValueError as error:
                if isinstance(error, requests.RequestException):
                    raise
                raise TransportError(f"the server's answer cannot be understood: {error}", where=url) from error
            if not response.is_redirect:
                return response
            response.close()
            if body is not None:
                raise TransportError("the server sends elsewhere", where=url, hint="name the address where it is now")
            try:
                target = urljoin(url, response.headers["Location"])
                urlsplit(target).port  # noqa: B018 - raises
            except ValueError as error:
                raise TransportError("redirected to something that is no address", where=url) from error
            if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
                raise TransportError(f"redirected to {urlsplit(target).scheme}", where=url)
            url = target
            try:
                self.check(url)
            except UsageError as error:  # the server's mistake
                raise TransportError(f"redirected to where nothing may be asked: {error.what}", where=url) from error
        raise TransportError(f"more than {_REDIRECTS} redirects", where=url)

    def check(self, url: str) -> None:
        """Refuse an address that may not be asked.

        Raises:
            UsageError: Not https, or with credentials in it.
        """
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.username is not None or parts.password is not None:
            raise UsageError(f"{parts.scheme}://…@{host}: an address never holds credentials", hint="use ~/.netrc")
        if parts.scheme == "https" or (parts.scheme == "http" and (is_loopback(host) or host in self.allow_http)):
            return
        if not parts.scheme:
            hint = "check the path, or write https://host/path"
            raise UsageError("neither a folder that is there nor an address", where=url, hint=hint)
        hint = f'or list "{host}" under allow_http in the settings' if host else "write https://host/path"
        raise UsageError(f"{url}: only https is allowed", hint=hint)


def _reason(error: Exception) -> str:
    said = str(error)
    found = (text for pattern, text in _REASONS.items() if re.search(pattern, said))
    return "it took too long" if isinstance(error, requests.Timeout) else next(found, type(error).__name__)


@dataclass
class _Tag:
    """The ETag of what is here, and then of what the server has."""

    value: str = ""
    same: bool = False
    begun: str = ""
    """What tells that the rest is of the same document as its beginning: an ETag that is exact, or its date."""


class _TransientError(Exception):
    """Worth another attempt."""

    def __init__(self, what: str, wait: float = 0.0, *, unreachable: bool = False) -> None:
        super().__init__(what)
        self.what, self.wait, self.unreachable = what, min(wait, 30.0), unreachable


class _Watched(HTTPAdapter):
    """Remembers its sockets, so that they can be closed while they are read."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        """Use connections that tell of their sockets."""
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = {
            scheme: _watched(pool, self.sockets) for scheme, pool in self.poolmanager.pool_classes_by_scheme.items()
        }


def _watched(pool: Any, sockets: list[socket.socket]) -> Any:
    class Connection(pool.ConnectionCls):  # type: ignore[misc]
        def connect(self) -> None:
            super().connect()
            sockets.append(self.sock)

    return type(pool.__name__, (pool,), {"ConnectionCls": Connection})


@contextmanager
def _cut_off(session: requests.Session, deadline: float) -> Iterator[None]:
    """Close the connection at the deadline: a server that sends a header line now and then must not outlive it."""
    adapter = _Watched()
    session.mount("https://", adapter)
    session.mount("http://", adapter)

    def close() -> None:
        for one in adapter.sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(max(0.0, deadline - time.monotonic()), close)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
