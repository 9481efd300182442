"""What Prometheus reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from adaptergit.serve.encoding import Row

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The counters of one application.

    Args:
        waiting: Returns the rows that are admitted and not answered.
    """

    def __init__(self, waiting: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        own = self._registry
        self.requests = Counter("adaptergit_requests", "Requests for predictions.", ("adapter", "status"), registry=own)
        self.errors = Counter("adaptergit_errors", "Requests answered with a problem.", ("code",), registry=own)
        self.latency = Histogram(
            "adaptergit_request_seconds", "From a request to its answer.", buckets=_SECONDS, registry=own
        )
        self._rows = Histogram("adaptergit_batch_rows", "Texts in a batch.", buckets=_COUNTS, registry=own)
        self._adapters = Histogram(
            "adaptergit_batch_adapters", "Different adapters in a batch.", buckets=_COUNTS, registry=own
        )
        self._seconds = Histogram(
            "adaptergit_batch_seconds", "The model's time for a batch.", buckets=_SECONDS, registry=own
        )
        waiting_rows = Gauge("adaptergit_queue_rows", "Texts admitted and not answered yet.", registry=own)
        waiting_rows.set_function(waiting)

    def batch(self, rows: Sequence[Row], seconds: float) -> None:
        """Count a batch."""
        self._rows.observe(len(rows))
        self._adapters.observe(len({row.served.name for row in rows}))
        self._seconds.observe(seconds)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)
