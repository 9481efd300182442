"""Git over HTTP on loopback, through git's own ``http-backend``: for the demo, for tests, for trying things out.

Counts the bytes of every request, so that what a fetch costs on the wire can be measured and not guessed.
"""

from __future__ import annotations

import gzip
import os
import ssl
import subprocess
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit

from adaptergit.errors import TransportError

_MAX_REQUEST = 512 * 2**20


@dataclass
class Traffic:
    """Bytes and requests since the last reset, bodies and response headers."""

    received: int = 0
    """Bytes clients sent."""
    sent: int = 0
    """Bytes clients were sent."""
    requests: list[str] = field(default_factory=list)


class GitServer:
    """Serve every bare repository below ``root`` at ``http://127.0.0.1:<port>/<path>``, for reading and writing.

    With ``tls``, a server-side context, it is ``https://localhost:<port>/<path>``. Anybody who can reach the port may
    push: it binds to loopback only. Use as a context manager.
    """

    def __init__(self, root: Path, port: int = 0, *, tls: ssl.SSLContext | None = None) -> None:
        self.root = root.resolve()
        self.traffic = Traffic()
        handler = type("Handler", (_Handler,), {"server_state": self})
        self._server = _Server(("127.0.0.1", port), handler)
        self._tls = tls
        if tls is not None:
            # The handshake is left to the thread that reads the request: one slow client must not hold up the others.
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        """The server's root, without a final slash."""
        port = self._server.server_address[1]
        return f"https://localhost:{port}" if self._tls is not None else f"http://127.0.0.1:{port}"

    def create(self, path: str) -> str:
        """Make an empty bare repository ``path`` (such as ``acme/adapters``) that accepts pushes; return its URL."""
        target = self.root / f"{path}.git"
        for argv in (
            ["git", "init", "--quiet", "--bare", "--template=", "--initial-branch=main", str(target)],
            ["git", "-C", str(target), "config", "http.receivepack", "true"],
        ):
            done = subprocess.run(argv, capture_output=True, encoding="utf-8", errors="replace", check=False)
            if done.returncode != 0:
                raise TransportError(f"cannot create {target}: {done.stderr.strip()}")
        return f"{self.url}/{path}.git"

    def reset(self) -> None:
        """Start counting from zero."""
        self.traffic = Traffic()

    def __enter__(self) -> GitServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Stay silent: a client that hung up is no news."""


class _Handler(BaseHTTPRequestHandler):
    server_state: GitServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        body = self._body()
        if body is None:
            self.send_error(413)
            return
        self._serve(body)

    def _body(self) -> bytes | None:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts, total = [], 0
            while size := int(self.rfile.readline(32).split(b";")[0], 16):
                total += size
                if total > _MAX_REQUEST:
                    return None
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        length = int(self.headers.get("Content-Length") or 0)
        return None if length > _MAX_REQUEST else self.rfile.read(length)

    def _serve(self, body: bytes) -> None:
        traffic = self.server_state.traffic
        traffic.received += len(body)
        traffic.requests.append(f"{self.command} {self.path}")
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        url = urlsplit(self.path)
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "GIT_PROJECT_ROOT": str(self.server_state.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "REQUEST_METHOD": self.command,
            "PATH_INFO": unquote(url.path),
            "QUERY_STRING": url.query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "REMOTE_ADDR": self.client_address[0],
        }
        done = subprocess.run(["git", "http-backend"], input=body, env=environment, capture_output=True, check=False)
        header_block, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = [line.split(": ", 1) for line in header_block.decode("latin-1").splitlines() if ": " in line]
        status = next((int(value.split()[0]) for name, value in headers if name.lower() == "status"), 200)
        if done.returncode != 0 and not header_block:
            status = 500
        self.send_response(status)
        for name, value in headers:
            if name.lower() != "status":
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        # Response headers count as sent; send_response buffers them.
        traffic.sent += sum(len(line) for line in getattr(self, "_headers_buffer", ())) + len(content)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent: the terminal belongs to the caller."""
