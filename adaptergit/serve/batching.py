"""Batching: rows wait a little, go through the model together, and come back to whoever asked.

One worker thread runs the model. The oldest row always goes next, with rows that may share its batch and are about as
long: padding costs as much as text. Where too many wait, a request is refused at once: a queue that only grows helps
nobody.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from adaptergit.errors import ModelError, UsageError

_LOG = logging.getLogger(__name__)


class Waiting(Protocol):
    """What a row must tell to be put into a batch."""

    @property
    def lane(self) -> Hashable:
        """Rows of one lane may share a batch."""

    @property
    def length(self) -> int:
        """Number of tokens; rows of one length need no padding."""


Row = TypeVar("Row", bound=Waiting)
Result = TypeVar("Result")


class Refused(Exception):  # noqa: N818 - not an error of ours: the caller decides what to answer
    """No more rows are taken.

    Args:
        seconds: When to try again; None: never, the batcher is closing.
    """

    def __init__(self, seconds: int | None) -> None:
        super().__init__("closing" if seconds is None else f"full, try again in {seconds} s")
        self.seconds = seconds


def check_sizes(max_batch: int, max_wait: float) -> None:
    """Refuse sizes of batches that make no sense.

    Raises:
        UsageError: Naming the size.
    """
    if max_batch < 1:
        raise UsageError(f"a batch holds at least one text, not {max_batch}", hint="--max-batch 32")
    if not 0 <= max_wait <= 60:
        raise UsageError(f"a text waits from 0 to 60 seconds for others, not {max_wait}", hint="--max-wait-ms 5")


def best_cuts(lengths: Sequence[int], most: int, overhead: int) -> list[slice]:
    """Cut rows into batches so that all of them together cost the least.

    Args:
        lengths: Of the rows, ascending; a batch costs as much as if all of its rows were as long as its last.
        most: Rows in a batch.
        overhead: What a batch costs besides.

    >>> best_cuts([5, 6, 6, 50, 51], most=32, overhead=32)
    [slice(0, 3, None), slice(3, 5, None)]
    """
    best: list[tuple[int, int]] = [(0, 0)]  # for the first i rows: what they cost, and where their last batch starts
    for stop in range(1, len(lengths) + 1):
        starts = range(max(0, stop - most), stop)
        costs = ((best[start][0] + overhead + (stop - start) * lengths[stop - 1], start) for start in starts)
        best.append(min(costs))
    cuts, stop = [], len(lengths)
    while stop:
        start = best[stop][1]
        cuts.append(slice(start, stop))
        stop = start
    return cuts[::-1]


@dataclass(frozen=True, eq=False)
class _Pending(Generic[Row, Result]):
    row: Row
    arrived: float
    answer: asyncio.Future[Result]


class Batcher(Generic[Row, Result]):
    """Gathers rows into batches; an asynchronous context manager.

    Args:
        run: Called in the worker thread with the rows of a batch; returns a result for each, in order.
        max_batch: Most rows in a batch.
        max_wait: Seconds for which the oldest row waits for others while the model is idle.
        queue: Most rows that are admitted and not answered yet.
        overhead: What a batch costs besides its rows, in tokens: the more, the more padding is worth a batch less.
        observe: Called after every batch with its rows and the seconds it took.

    Raises:
        UsageError: A number makes no sense.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Row]], Sequence[Result]],
        *,
        max_batch: int = 32,
        max_wait: float = 0.005,
        queue: int = 1024,
        overhead: int = 32,
        observe: Callable[[Sequence[Row], float], None] = lambda _rows, _seconds: None,
    ) -> None:
        check_sizes(max_batch, max_wait)
        self.queue = queue
        self._run, self._observe = run, observe
        self._max_batch, self._max_wait, self._overhead = max_batch, max_wait, overhead
        self._lanes: dict[Hashable, list[_Pending[Row, Result]]] = {}
        self._admitted = 0
        self._changed = asyncio.Event()
        self._closing = False
        self._seconds = 0.1  # of a batch, lately
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._worker: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Batcher[Row, Result]:
        self._worker = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Answer what was admitted, then stop."""
        self._closing = True
        self._changed.set()
        assert self._worker is not None
        await self._worker
        self._thread.shutdown()

    @property
    def running(self) -> bool:
        """Whether rows are taken and answered."""
        return self._worker is not None and not self._worker.done() and not self._closing

    @property
    def admitted(self) -> int:
        """Rows that are not answered yet."""
        return self._admitted

    @contextmanager
    def admit(self, count: int) -> Iterator[None]:
        """Hold places for rows until their answers are there.

        Raises:
            Refused: The queue is full, or the batcher is closing.
        """
        if not self.running:
            raise Refused(None)
        if self._admitted + count > self.queue:
            batches = self._admitted / self._max_batch
            raise Refused(min(60, max(1, math.ceil(batches * self._seconds))))
        self._admitted += count
        try:
            yield
        finally:
            self._admitted -= count

    async def answers(self, rows: Sequence[Row]) -> list[Result]:
        """Return the results of admitted rows, in order; whatever ``run`` raises for one of them alone is raised."""
        loop = asyncio.get_running_loop()
        pending = [_Pending(row, loop.time(), loop.create_future()) for row in rows]
        for one in pending:
            self._lanes.setdefault(one.row.lane, []).append(one)
        self._changed.set()
        await asyncio.wait([one.answer for one in pending])
        failed = [error for one in pending if (error := one.answer.exception()) is not None]
        if failed:
            raise failed[0]
        return [one.answer.result() for one in pending]

    async def _work(self) -> None:
        while True:
            if not self._lanes:
                if self._closing and not self._admitted:
                    return
                await self._change(0.05 if self._closing else None)
                continue
            oldest = min((lane[0] for lane in self._lanes.values()), key=lambda one: one.arrived)
            while (left := self._patience(oldest)) > 0:
                await self._change(left)
            await self._answer(self._take(oldest))

    def _patience(self, oldest: _Pending[Row, Result]) -> float:
        """Return for how long the oldest row still waits for others."""
        full = len(self._lanes[oldest.row.lane]) >= self._max_batch
        if full or self._closing:
            return 0.0
        return oldest.arrived + self._max_wait - asyncio.get_running_loop().time()

    async def _change(self, seconds: float | None) -> None:
        """Wait until something arrives or ends, or for so long."""
        self._changed.clear()
        try:
            await asyncio.wait_for(self._changed.wait(), seconds)
        except TimeoutError:
            return

    def _take(self, oldest: _Pending[Row, Result]) -> list[_Pending[Row, Result]]:
        """Take the oldest row and, of those that came soon after it, the ones that are best padded with it."""
        lane = self._lanes.pop(oldest.row.lane)
        window = sorted(lane[: 2 * self._max_batch], key=lambda one: one.row.length)
        cuts = best_cuts([one.row.length for one in window], self._max_batch, self._overhead)
        place = next(i for i, one in enumerate(window) if one is oldest)
        chosen = window[next(cut for cut in cuts if cut.start <= place < cut.stop)]
        taken = set(map(id, chosen))
        if rest := [one for one in lane if id(one) not in taken]:
            self._lanes[oldest.row.lane] = rest
        return chosen

    async def _answer(self, batch: list[_Pending[Row, Result]]) -> None:
        loop = asyncio.get_running_loop()
        rows, started = [one.row for one in batch], loop.time()
        done = loop.run_in_executor(self._thread, self._results, rows)
        await asyncio.wait([done])
        error = done.exception()
        if error is None:
            seconds = loop.time() - started
            self._seconds += 0.2 * (seconds - self._seconds)
            self._observe(rows, seconds)
            for one, result in zip(batch, done.result(), strict=True):
                one.answer.set_result(result)
        elif len(batch) > 1:  # what is wrong with one row is no other row's fault
            for one in batch:
                await self._answer([one])
        else:
            _LOG.error("a row could not be answered", exc_info=error)
            batch[0].answer.set_exception(error)

    def _results(self, rows: Sequence[Row]) -> Sequence[Result]:
        results = self._run(rows)
        if len(results) != len(rows):
            raise ModelError(f"{len(results)} results for {len(rows)} rows")
        return results
