"""One bounded way to download: https, limits on bytes and time, retries that go on where the last attempt stopped.

Credentials come from ``~/.netrc`` alone (requests looks them up by host, so that a redirect to another host does not
carry them along), and no URL with credentials in it is ever asked for.
"""

from __future__ import annotations

import ipaddress
import random
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from adaptergit._version import __version__
from adaptergit.errors import NotFoundError, TransportError, UsageError

_REDIRECTS = 5
_ATTEMPTS = 4
_BLOCK = 1 << 18
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class Download:
    """Rules of a download."""

    allow_http: Collection[str] = ()
    """Hosts besides loopback that plain http is spoken to."""
    seconds: float = 600.0
    """Until it is given up, retries and all."""

    def read(self, url: str, limit: int) -> bytes:
        """Return a small document.

        Raises:
            NotFoundError: The server says that there is none.
            TransportError: It cannot be had, or is larger than ``limit``.
        """
        parts: list[bytes] = []
        self._run(url, limit, parts.append, lambda: sum(map(len, parts)))
        return b"".join(parts)

    def save(self, url: str, path: Path, limit: int) -> None:
        """Write a document to a new file.

        Raises:
            NotFoundError, TransportError: See :meth:`read`.
        """
        with path.open("xb") as file:
            self._run(url, limit, file.write, file.tell)

    def _run(self, url: str, limit: int, write: Any, written: Any) -> None:
        deadline = time.monotonic() + self.seconds
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return self._attempt(url, limit, write, written, deadline)
            except _TransientError as again:
                pause = max(again.wait, random.uniform(0.5, 1.0) * 2 ** (attempt - 1))  # noqa: S311 - politeness
                last = attempt == (2 if again.unreachable else _ATTEMPTS)
                if last or time.monotonic() + pause > deadline:
                    raise TransportError(again.what, where=url, hint="try again later") from again
                time.sleep(pause)
        raise AssertionError("unreachable")

    def _attempt(self, url: str, limit: int, write: Any, written: Any, deadline: float) -> None:
        start = written()
        headers = {"User-Agent": f"adaptergit/{__version__}", "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        try:
            with requests.Session() as session, self._get(session, url, headers) as response:
                if response.status_code in (404, 410, 451):
                    raise NotFoundError(f"the server answered {response.status_code}", where=url)
                if response.status_code in _TRANSIENT:
                    after = response.headers.get("Retry-After", "")
                    raise _TransientError(
                        f"the server answered {response.status_code}", float(after) if after.isdigit() else 0
                    )
                if response.status_code not in (200, 206):
                    raise TransportError(f"the server answered {response.status_code}", where=url)
                skip = start if start and response.status_code == 200 else 0  # it knows no ranges: all of it again
                ranged = response.headers.get("Content-Range", "")
                if response.status_code == 206 and not ranged.startswith(f"bytes {start}-"):
                    raise TransportError(f"the server answered another range: {ranged!r}", where=url)
                expected = int(response.headers.get("Content-Length") or -1)
                got = 0
                # What has arrived, not whole blocks: a byte now and then must not outlive the deadline.
                while block := response.raw.read1(_BLOCK):
                    got += len(block)
                    if start - skip + got > limit:
                        raise TransportError(f"more than the limit of {limit} bytes", where=url)
                    if time.monotonic() > deadline:
                        raise TransportError(f"no end within {self.seconds:.0f} s", where=url)
                    write(block[skip:] if skip < len(block) else b"")
                    skip = max(0, skip - len(block))
                if 0 <= expected != got:
                    raise _TransientError(f"{got} of {expected} bytes arrived")
        except (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as error:
            raise _TransientError(f"no answer: {type(error).__name__}", unreachable=written() == start) from error
        except requests.RequestException as error:
            raise TransportError(f"cannot be asked for: {type(error).__name__}", where=url) from error

    def _get(self, session: requests.Session, url: str, headers: dict[str, str]) -> requests.Response:
        """Follow redirects by hand: each is judged, and each looks up credentials for its own host."""
        for _ in range(_REDIRECTS + 1):
            self.check(url)
            response = session.get(url, headers=headers, stream=True, allow_redirects=False, timeout=(20, 60))
            if not response.is_redirect:
                return response
            target = urljoin(url, response.headers["Location"])
            response.close()
            if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
                raise TransportError(f"redirected to {urlsplit(target).scheme}", where=url)
            url = target
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
        raise UsageError(f"{url}: only https is allowed", hint=f'or list "{host}" under allow_http in the settings')


class _TransientError(Exception):
    """Worth another attempt."""

    def __init__(self, what: str, wait: float = 0.0, *, unreachable: bool = False) -> None:
        super().__init__(what)
        self.what, self.wait, self.unreachable = what, min(wait, 30.0), unreachable


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
