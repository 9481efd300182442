"""The application: what each address answers."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adaptergit._version import __version__
from adaptergit.errors import UsageError
from adaptergit.serve.batching import Batcher, Refused
from adaptergit.serve.encoding import Row, encode
from adaptergit.serve.messages import AdapterInfo, AdapterList, Health, PredictRequest, PredictResponse, Problem, Wrong
from adaptergit.serve.metrics import CONTENT_TYPE, Metrics
from adaptergit.serve.mixing import Mixer, Scores
from adaptergit.serve.problems import MEDIA_TYPE, BodyLimit, Refusal, install
from adaptergit.serve.service import Served, Service

_PREDICT = "/v1/predict"
_OVERHEAD, _OVERHEAD_OF_DEVICES = 32, 4096
"""What a batch costs besides its tokens, in tokens: little where each is computed by the core that asks."""
_ADAPTER = "adaptergit.adapter"
"""Where a call's scope says which adapter it is for."""


_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Limits:
    """How much one request may ask for, and all together."""

    texts: int = 64
    """In one request."""
    characters: int = 20_000
    """Of one text."""
    body: int = 4 << 20
    """Bytes of one request."""
    seconds: float = 30.0
    """Until they are all there."""
    queue: int = 1024
    """Texts of all requests that are not answered yet."""


def create_app(
    service: Service,
    *,
    max_batch: int = 32,
    max_wait_ms: float = 5.0,
    limits: Limits = Limits(),
    mixed: bool = True,
) -> FastAPI:
    """Make the application that serves adapters.

    Args:
        service: From :func:`~adaptergit.serve.service.open_service`; the model is this application's alone.
        max_batch: Most texts in a batch.
        max_wait_ms: For so long a text waits for others while the model is idle.
        limits: Of requests.
        mixed: Let different adapters share a batch; False to measure what that is good for.

    Raises:
        UsageError: A number makes no sense.
    """
    if min(limits.texts, limits.characters, limits.body) < 1 or not limits.seconds > 0 or limits.queue < limits.texts:
        raise UsageError("limits are positive, and the queue holds at least one request's texts")
    served = dict(service.adapters)
    if not mixed:
        served = {name: replace(one, lane=(one.lane, name)) for name, one in served.items()}
    metrics = Metrics(lambda: batcher.admitted)
    batcher: Batcher[Row, Scores] = Batcher(
        Mixer(service.model),
        max_batch=max_batch,
        max_wait=max_wait_ms / 1000,
        queue=limits.queue,
        overhead=_OVERHEAD if next(service.model.parameters()).device.type == "cpu" else _OVERHEAD_OF_DEVICES,
        observe=metrics.batch,
    )
    # A tokenizer is for one thread at a time, and need not wait for the model.
    tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")

    @asynccontextmanager
    async def running(_app: FastAPI) -> AsyncIterator[None]:
        async with batcher:
            yield
        tokenizing.shutdown()

    app = FastAPI(
        title="adaptergit",
        version=__version__,
        description=f"{len(served)} adapters over {service.base_model}.",
        lifespan=running,
    )
    install(app, lambda code: metrics.errors.labels(code).inc())
    app.add_middleware(_Timed, metrics=metrics)
    app.add_middleware(BodyLimit, limit=limits.body, seconds=limits.seconds)

    @app.post(_PREDICT, response_model=PredictResponse, responses=_PROBLEMS, summary="Run an adapter over texts.")
    async def predict(request: PredictRequest, http: Request) -> Response:
        adapter = _named(served, request.adapter)
        http.scope[_ADAPTER] = adapter.name
        texts, pairs = _checked(request, adapter, limits)
        assert adapter.phrasing is not None
        try:
            with batcher.admit(len(texts)):
                loop = asyncio.get_running_loop()
                rows = await loop.run_in_executor(tokenizing, encode, adapter, texts, pairs)
                _check_rows(rows)
                scores = await batcher.answers(rows)
        except Refused as refused:
            raise _busy(refused) from refused
        predictions = [adapter.phrasing.phrase(*pair, request.top_k) for pair in zip(rows, scores, strict=True)]
        found = PredictResponse(adapter=adapter.name, task=adapter.phrasing.task, predictions=predictions)
        return Response(found.model_dump_json(), media_type="application/json")

    @app.get("/v1/adapters", summary="List what is served.")
    async def adapters() -> AdapterList:
        return AdapterList(base_model=service.base_model, adapters=[about(one) for one in served.values()])

    @app.get("/healthz", responses={503: {"model": Health}}, summary="Tell whether requests are answered.")
    async def healthz(response: Response) -> Health:
        if not batcher.running:
            response.status_code = 503
        return Health(status="ok" if batcher.running else "stopping", adapters=len(served))

    @app.get("/metrics", response_class=Response, summary="Numbers for Prometheus.")
    async def numbers() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    return app


def about(served: Served) -> AdapterInfo:
    """Return what is told of an adapter."""
    return AdapterInfo(
        name=served.name,
        reference=served.reference,
        version=served.version,
        digest=served.digest,
        signers=list(served.signers),
        task=served.phrasing.task if served.phrasing is not None else None,
        labels=list(served.labels),
        description=served.description,
    )


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
    for status, text in (
        (404, "No such adapter."),
        (408, "The body did not arrive in time."),
        (413, "The body is too long."),
        (422, "The request is not valid, or not for this adapter."),
        (503, "Too much to do, or stopping; Retry-After says when to try again."),
    )
}
_PROBLEMS[500] = {"model": Problem, "description": "The model failed."}


def _named(served: dict[str, Served], name: str) -> Served:
    if name not in served:
        close = get_close_matches(name, served, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "GET /v1/adapters lists them"
        raise Refusal(404, "unknown-adapter", f"there is no adapter {name!r}", hint=hint)
    return served[name]


def _checked(request: PredictRequest, adapter: Served, limits: Limits) -> tuple[list[str], list[str] | None]:
    """Return the texts and their pairs, if the adapter can answer them."""
    if (request.text is None) == (request.texts is None):
        raise _invalid("text", "give either text or texts")
    if request.text_pair is not None and request.text is None:
        raise _invalid("text_pair", "text_pair goes with text, text_pairs with texts")
    if request.text_pairs is not None and request.texts is None:
        raise _invalid("text_pairs", "text_pairs goes with texts, text_pair with text")
    one = request.text is not None
    texts = [request.text] if request.text is not None else request.texts or []
    pairs = [request.text_pair] if request.text_pair is not None else request.text_pairs
    if len(texts) > limits.texts:
        raise _invalid("texts", f"{len(texts)} texts; a request has at most {limits.texts}")
    if pairs is not None and len(pairs) != len(texts):
        raise _invalid("text_pairs", f"{len(pairs)} for {len(texts)} texts")
    for field, values in (("text", texts), ("text_pair", pairs or [])):
        for index, value in enumerate(values):
            where = field if one else f"{field}s.{index}"
            if len(value) > limits.characters:
                raise _invalid(where, f"{len(value):,} characters; a text has at most {limits.characters:,}")
            if _SURROGATE.search(value):
                raise _invalid(where, "half of a surrogate pair is no character")
    phrasing = adapter.phrasing
    if phrasing is None:
        raise _invalid("adapter", f"the head of {adapter.name!r} is of a kind that is not served", "not-served")
    if phrasing.pairs and pairs is None:
        second = "a context" if phrasing.task == "question_answering" else "the text that goes with text"
        raise _invalid("text_pair", f"{adapter.name!r} reads two texts: give {second} as text_pair")
    if phrasing.pairs is False and pairs is not None:
        raise _invalid("text_pair", f"{adapter.name!r} was trained on one text: it reads no text_pair")
    if request.top_k is not None and not phrasing.ranked:
        raise _invalid("top_k", f"{phrasing.task} has one answer")
    return texts, pairs


def _check_rows(rows: Sequence[Row]) -> None:
    for index, row in enumerate(rows):
        if not row.length:
            raise _invalid(f"texts.{index}", "nothing is left of the text when it is cut into tokens")


def _invalid(where: str, what: str, code: str = "invalid-input") -> Refusal:
    return Refusal(422, code, f"{where}: {what}", wrong=[Wrong(where=where, what=what)])


def _busy(refused: Refused) -> Refusal:
    if refused.seconds is None:
        return Refusal(503, "stopping", "the server is stopping", headers={"Retry-After": "5"})
    return Refusal(
        503,
        "busy",
        "too many texts wait for an answer",
        hint=f"try again in {refused.seconds} s",
        headers={"Retry-After": str(refused.seconds)},
    )


class _Timed:
    """Count requests for predictions and time them."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and look at the status."""
        if scope["type"] != "http" or scope["path"] != _PREDICT:
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            self._metrics.latency.observe(time.perf_counter() - started)
            self._metrics.requests.labels(scope.get(_ADAPTER, ""), status).inc()
