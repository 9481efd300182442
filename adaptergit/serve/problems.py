"""Errors as problem JSON (RFC 9457), whatever went wrong."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adaptergit.serve.messages import Problem, Wrong

MEDIA_TYPE = "application/problem+json"
_CODES = {404: "not-found", 405: "method-not-allowed", 400: "invalid-input", 413: "too-large"}
_ASKED = "POST /v1/predict answers texts, GET /v1/adapters lists what can answer, GET /openapi.json describes both"
_HINTS = {404: _ASKED, 405: _ASKED, 400: "send JSON in UTF-8; GET /openapi.json describes it"}
"""For what the framework refuses by itself."""
_SAID = {
    "missing": "is missing",
    "extra_forbidden": "there is no such field",
    "string_type": "is no text",
    "list_type": "is no list",
    "int_type": "is no whole number",
    "model_attributes_type": "is no JSON object",
}
"""Where the framework's words are about itself."""
_MOST = 20
"""Things that are wrong with one request and named."""
_DRAINED = 8
"""So many times the most that a body may have is read, and thrown away."""


class Refusal(HTTPException):
    """A request is not answered.

    Args:
        status: Of HTTP.
        code: What kind of problem it is.
        detail: What happened.
        hint: What to do.
        wrong: What is wrong with the request, by field.
        headers: More headers.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        hint: str | None = None,
        wrong: Sequence[Wrong] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, detail, dict(headers or {}))
        self.code, self.hint, self.wrong = code, hint, list(wrong)


def install(app: FastAPI, told: Callable[[str], None]) -> None:
    """Make an application answer every error with a problem.

    Args:
        app: The application.
        told: Called with the code of each.
    """

    def refused(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = getattr(error, "code", _CODES.get(error.status_code, "refused"))
        wrong = getattr(error, "wrong", None) or None
        hint = getattr(error, "hint", _HINTS.get(error.status_code))
        return _response(error.status_code, code, str(error.detail), hint, wrong, error.headers)

    def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        if request.method == "POST" and "json" not in request.headers.get("content-type", ""):
            hint = "send Content-Type: application/json"
            return _response(422, "invalid-input", "the body is not said to be JSON", hint)
        wrong = [_wrong(one) for one in error.errors()[:_MOST]]
        detail = f"{wrong[0].where}: {wrong[0].what}" if wrong else "the request is not valid"
        return _response(422, "invalid-input", detail, "GET /openapi.json describes requests", wrong)

    def failed(_request: Request, _error: Exception) -> Response:
        return _response(500, "failed", "the request could not be answered", "the server's log says why")

    def _response(
        status: int,
        code: str,
        detail: str,
        hint: str | None = None,
        wrong: list[Wrong] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        told(code)
        title = HTTPStatus(status).phrase
        problem = Problem(title=title, status=status, code=code, detail=detail, hint=hint, errors=wrong)
        return Response(
            problem.model_dump_json(exclude_none=True), status, media_type=MEDIA_TYPE, headers=dict(headers or {})
        )

    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, failed)


class BodyLimit:
    """Refuse bodies of more than so many bytes, however they are sent; nothing of what is too much is kept.

    So are bodies that take longer than so many seconds: who stops in the middle holds no connection for good.
    """

    def __init__(self, app: ASGIApp, limit: int, seconds: float) -> None:
        self._app, self._limit, self._seconds = app, limit, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count what is received."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seen, until = 0, asyncio.get_running_loop().time() + self._seconds
        complete = False

        async def received() -> Message:
            nonlocal seen, complete
            async with asyncio.timeout_at(None if complete else until):
                message = await receive()
            seen += len(message.get("body", b""))
            complete = complete or not message.get("more_body", False)
            return message

        async def counted() -> Message:
            try:
                message = await received()
            except TimeoutError as error:
                detail = f"the body did not arrive within {self._seconds:g} seconds"
                raise Refusal(408, "too-slow", detail, hint="send it again", headers={"Connection": "close"}) from error
            if seen <= self._limit:
                return message
            # A client that is still sending would not hear why; one that sends without end need not.
            with contextlib.suppress(TimeoutError):
                while not complete and seen < _DRAINED * self._limit:
                    await received()
            raise Refusal(413, "too-large", f"the body is longer than {self._limit:,} bytes", hint="send fewer texts")

        # Only a server that has waited long enough to stop cancels a request, and says so: no failure to be traced.
        with contextlib.suppress(asyncio.CancelledError):
            await self._app(scope, counted, send)


def _wrong(error: Mapping[str, Any]) -> Wrong:
    location = [part for part in error["loc"] if part != "body"]
    if error["type"] == "json_invalid":  # where it is, in characters
        return Wrong(where="body", what=f"not JSON, from character {location[0] if location else 0} on")
    said = _SAID.get(error["type"], str(error["msg"]))
    return Wrong(where=".".join(map(str, location)) or "body", what=said)
