"""The server: everything is loaded and proven before the port opens; what was begun is finished before it closes."""

from __future__ import annotations

import errno
import importlib.util
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptergit.errors import TransportError, UsageError, installing

if TYPE_CHECKING:
    import uvicorn

    from adaptergit.serve.service import Service

_BACKLOG = 2048


@dataclass(frozen=True)
class Started:
    """A server that answers."""

    url: str
    service: Service


def serve(
    references: Sequence[str],
    *,
    base: str | Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8080,
    max_batch: int = 32,
    max_wait_ms: float = 5.0,
    mixed: bool = True,
    grace: int = 60,
    policy: str | None = None,
    offline: bool = False,
    refresh: bool = False,
    lock: str | Path | None = None,
    device: str | None = None,
    report: Callable[[str], None] = lambda _: None,
    started: Callable[[Started], None] = lambda _: None,
) -> None:
    """Serve adapters until a signal (SIGINT, SIGTERM) says to stop; requests that were begun are answered first.

    Those that are not answered within ``grace`` are given up.

    For the main thread, which signals come to.

    Args:
        references: See :func:`~adaptergit.serve.service.open_service`, as ``base``, ``policy``, ``offline``,
            ``refresh``, ``lock``, ``device`` and ``report``.
        host: Address to listen on. There is no authentication: others than loopback belong behind a proxy that has.
        port: 0 for any that is free.
        max_batch: See :func:`~adaptergit.serve.app.create_app`, as ``max_wait_ms`` and ``mixed``.
        grace: For so many seconds, once told to stop, the server waits for what was begun.
        started: Called when the port is open.

    Raises:
        UsageError: Wrong options, or the serve extra is not installed.
        TransportError: The address cannot be used.
        AdaptergitError: Something cannot be served; the port was never open.
    """
    _needs_extra()
    import uvicorn

    from adaptergit.serve.app import create_app
    from adaptergit.serve.batching import check_sizes
    from adaptergit.serve.service import open_service

    check_sizes(max_batch, max_wait_ms / 1000)
    if grace < 1:
        raise UsageError(f"grace must be positive, not {grace}")
    with bound(host, port) as sock:  # taken, so that nobody else has it when all is loaded; nobody is answered yet
        service = open_service(
            references,
            base=base,
            policy=policy,
            offline=offline,
            refresh=refresh,
            lock=lock,
            device=device,
            report=report,
        )
        app = create_app(service, max_batch=max_batch, max_wait_ms=max_wait_ms, mixed=mixed)
        options: dict[str, Any] = {"backlog": _BACKLOG, "timeout_graceful_shutdown": grace}
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", **options))
        # uvicorn raises the signal that stopped it once more: a server that stopped as it was told to has not failed.
        # One that comes before uvicorn listens for signals must not be lost.
        before = {number: signal.signal(number, _stopping(server)) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            sock.listen(_BACKLOG)
            started(Started(_url(sock), service))
            server.run(sockets=[sock])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _stopping(server: uvicorn.Server) -> Callable[[int, Any], None]:
    def stop(_number: int, _frame: Any) -> None:
        server.should_exit = True

    return stop


def _needs_extra() -> None:
    missing = [n for n in ("fastapi", "uvicorn", "prometheus_client") if importlib.util.find_spec(n) is None]
    if missing:
        raise UsageError(f"serving needs {', '.join(missing)}", hint=installing("adaptergit[serve]"))


def bound(host: str, port: int) -> socket.socket:
    """Take an address; nobody is answered there yet.

    Raises:
        UsageError: No port.
        TransportError: No such address, or somebody else has it.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"{port} is no port", hint="0 to 65535; 0 takes any that is free")
    ours = "--host 127.0.0.1, or another address of this machine"
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, number)
    except OSError as error:
        raise TransportError(f"no such address: {error.strerror}", where=host, hint=ours) from error
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        hint = "--port 0 takes any that is free" if error.errno != errno.EADDRNOTAVAIL else ours
        raise TransportError(f"cannot listen there: {error.strerror}", where=f"{host}:{port}", hint=hint) from error
    return sock


def _url(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if sock.family == socket.AF_INET6 else f"http://{host}:{port}"
