"""A plain web server on loopback that misbehaves on request: a forge's archives, a static mirror, and hostile versions.

Real HTTP over a real socket; only the faults are made up.
"""

from __future__ import annotations

import hashlib
import subprocess
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

Answer = Callable[["Request"], None]


def tag_of(body: bytes) -> str:
    """What tells one document from another."""
    return f'"{hashlib.sha256(body).hexdigest()[:16]}"'


class Request(BaseHTTPRequestHandler):
    """One request; faults answer in its place."""

    protocol_version = "HTTP/1.1"
    forge: Forge

    def do_GET(self) -> None:
        self.forge.asked.append((self.path, dict(self.headers.items())))
        for prefix, faults in self.forge.faults.items():
            if prefix in self.path and faults:
                faults.pop(0)(self)
                return
        body = self.forge.find(unquote(urlsplit(self.path).path))
        if body is None:
            self.answer(404, b"no")
            return
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        tag = tag_of(body)
        if self.headers.get("If-None-Match") == tag:
            self.answer(304, b"", {"ETag": tag})
        elif start and self.forge.ranges and self.headers.get("If-Range") == tag:
            self.answer(206, body[start:], {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"})
        else:
            self.answer(200, body, {"ETag": tag})

    def answer(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, *, length: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Forge:
    """Serves ``root`` as files, and ``/<repo>/archive/…`` as archives of the bare repositories in ``repositories``."""

    def __init__(self, root: Path, repositories: Path | None = None) -> None:
        self.root, self.repositories = root, repositories
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.faults: dict[str, list[Answer]] = {}
        self.ranges = True
        handler = type("Handler", (Request,), {"forge": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def find(self, path: str) -> bytes | None:
        if self.repositories is not None and "/archive/" in path:
            name, _, tag = path.strip("/").partition("/archive/")
            bare = self.repositories / f"{name}.git"
            done = subprocess.run(
                [
                    "git",
                    "-C",
                    str(bare),
                    "archive",
                    "--format=tar.gz",
                    "--prefix=adapters-1/",
                    tag.removesuffix(".tar.gz"),
                ],
                capture_output=True,
                check=False,
            )
            return done.stdout if done.returncode == 0 else None
        file = self.root / path.strip("/")
        return file.read_bytes() if file.is_file() else None

    def __enter__(self) -> Forge:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def status(code: int, **headers: str) -> Answer:
    """Answer with a status only."""
    return lambda request: request.answer(code, b"", {k.replace("_", "-"): v for k, v in headers.items()})


def cut_after(number: int, instead: bytes | None = None) -> Answer:
    """Send the first bytes of the file, or of another one, promise all, and hang up."""

    def answer(request: Request) -> None:
        body = instead or request.forge.find(unquote(urlsplit(request.path).path)) or b""
        request.answer(200, body[:number], {"ETag": tag_of(body)}, length=len(body))
        request.close_connection = True
        request.wfile.flush()
        request.connection.close()

    return answer


def endless(request: Request) -> None:
    """Never stop sending."""
    request.send_response(200)
    request.end_headers()
    try:
        for _ in range(4000):
            request.wfile.write(b"x" * (1 << 20))
    except OSError:
        pass
    request.close_connection = True


def slowly(request: Request) -> None:
    """Send a byte now and then."""
    request.send_response(200)
    request.send_header("Content-Length", "100000")
    request.end_headers()
    try:
        for _ in range(200):
            request.wfile.write(b"x")
            request.wfile.flush()
            time.sleep(0.05)
    except OSError:
        pass
    request.close_connection = True


def body(content: bytes) -> Answer:
    """Send something else."""
    return lambda request: request.answer(200, content)
