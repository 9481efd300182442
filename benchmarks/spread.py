"""What many samples say: quartiles, and the ratio of two series with an interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy

_RESAMPLES = 2000


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile."""
    low, middle, high = numpy.quantile(numpy.asarray(values, dtype=float), [0.25, 0.5, 0.75])
    return float(low), float(middle), float(high)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Return the median of the ratios of each round, and the ends of its 95 % bootstrap interval."""
    ratios = numpy.asarray(ours, dtype=float) / numpy.asarray(theirs, dtype=float)
    chosen = numpy.random.default_rng(0).integers(0, len(ratios), (_RESAMPLES, len(ratios)))
    low, high = numpy.quantile(numpy.median(ratios[chosen], axis=1), [0.025, 0.975])
    return float(numpy.median(ratios)), float(low), float(high)
