"""Scores, each with how far it would move if other examples had been held out.

A measure is computed from numbers that every example gives on its own, so that it can be computed for any sample of
them; its interval is the percentile bootstrap's (Efron & Tibshirani 1993, ch. 13) over whole examples.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Values = np.ndarray[Any, np.dtype[Any]]
RESAMPLES = 1000
SAME = 1e-5
"""Of the largest value: numbers closer than this are ties, a hundred times what float32 rounds off."""


@dataclass(frozen=True)
class Measure:
    """A score of some examples."""

    name: str
    of: Callable[[Values], float]
    """The score of the examples with these indices; one may be there twice."""
    higher_is_better: bool = True
    interval: tuple[float, float] | None = None
    """Where it was computed along with the score."""


@dataclass(frozen=True)
class Metrics:
    """Scores of a model on held-out examples."""

    values: Mapping[str, float]
    """By name, the one to look at first in front."""
    intervals: Mapping[str, tuple[float, float]]
    """95 % confidence intervals, by name."""
    samples: int
    """Examples that were scored."""
    main: str
    """The name of the first."""
    higher_is_better: bool = True
    """Of the first."""

    def __getattr__(self, name: str) -> float:
        values = self.__dict__.get("values", {})
        if name not in values:
            raise AttributeError(f"there is no score {name!r}; there is {', '.join(values)}")
        return float(values[name])

    @property
    def first(self) -> float:
        """The score to look at first."""
        return self.values[self.main]

    def to_json(self) -> dict[str, Any]:
        """Return scores, number of samples and intervals as plain data."""
        intervals = {name: list(interval) for name, interval in self.intervals.items()}
        return {**self.values, "samples": self.samples, "intervals": intervals}

    def __str__(self) -> str:
        parts = [f"{name} {value:.4f} [{low:.4f}, {high:.4f}]" for name, value, low, high in self._rows()]
        return f"{', '.join(parts)} on {self.samples} example{'' if self.samples == 1 else 's'}"

    def _rows(self) -> list[tuple[str, float, float, float]]:
        return [(name, value, *self.intervals.get(name, (value, value))) for name, value in self.values.items()]


def measured(measures: Sequence[Measure], samples: int, *, resamples: int = RESAMPLES) -> Metrics:
    """Compute scores and their intervals; the same examples give the same numbers every time."""
    everything = np.arange(samples)
    generator = np.random.default_rng(0)
    drawn = [generator.integers(0, samples, samples) for _ in range(resamples)] if samples > 1 else [everything]
    values, intervals = {}, {}
    for measure in measures:
        values[measure.name] = _rounded(measure.of(everything))
        if measure.interval is None:
            low, high = np.quantile([measure.of(indices) for indices in drawn], [0.025, 0.975])
        else:
            low, high = measure.interval
        intervals[measure.name] = (_rounded(low), _rounded(high))
    first = measures[0]
    return Metrics(values, intervals, samples, first.name, first.higher_is_better)


def classification(found: Sequence[int], gold: Sequence[int], classes: int) -> list[Measure]:
    """Accuracy, and the mean over classes of F1; classes that neither is nor was said do not count."""
    said, truth = np.asarray(found), np.asarray(gold)
    hits = said == truth
    one_said, one_truth = np.eye(classes, dtype=np.int64)[said], np.eye(classes, dtype=np.int64)[truth]

    def macro(indices: Values) -> float:
        return macro_f1(one_said[indices], one_truth[indices])

    return [Measure("accuracy", lambda indices: float(hits[indices].mean())), Measure("f1_macro", macro)]


def multi_label(found: Values, gold: Values) -> list[Measure]:
    """F1 over all labels of all examples, its mean over labels, and how often all labels of an example are right.

    Args:
        found: (samples, labels), 0 or 1.
        gold: The same.
    """
    exact = (found == gold).all(axis=1)

    def micro(indices: Values) -> float:
        return _f1(int((found[indices] & gold[indices]).sum()), int(found[indices].sum()), int(gold[indices].sum()))

    return [
        Measure("f1_micro", micro),
        Measure("f1_macro", lambda indices: macro_f1(found[indices], gold[indices])),
        Measure("exact_match", lambda indices: float(exact[indices].mean())),
    ]


def macro_f1(found: Values, gold: Values) -> float:
    """Return the mean F1 of columns of 0 and 1; columns that are empty in both do not count."""
    both, said, there = (found & gold).sum(axis=0), found.sum(axis=0), gold.sum(axis=0)
    counts = (said + there) > 0
    return float((2 * both[counts] / (said + there)[counts]).mean()) if counts.any() else 0.0


def regression(found: Sequence[float], gold: Sequence[float]) -> list[Measure]:
    """Pearson's and Spearman's correlation, and the mean squared error."""
    from scipy.stats import rankdata

    said, truth = np.asarray(found, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    tied = _with_ties(said)

    def correlation(left: Values, right: Values) -> float:
        return float(np.corrcoef(left, right)[0, 1]) if np.ptp(left) and np.ptp(right) else 0.0

    def pearson(i: Values) -> float:
        return correlation(said[i], truth[i]) if np.ptp(tied[i]) else 0.0

    def spearman(i: Values) -> float:
        return correlation(rankdata(tied[i]), rankdata(truth[i]))

    return [
        Measure("pearson", pearson),
        Measure("spearman", spearman),
        Measure("mse", lambda i: float(((said[i] - truth[i]) ** 2).mean()), higher_is_better=False),
    ]


def spans(found: Sequence[Sequence[str]], gold: Sequence[Sequence[str]]) -> list[Measure]:
    """Precision, recall and F1 of whole entities (Tjong Kim Sang & De Meulder 2003), from BIO tags of sentences."""
    from seqeval.metrics.sequence_labeling import get_entities

    counts = []
    for said, truth in zip(found, gold, strict=True):
        ours, theirs = set(get_entities(list(said))), set(get_entities(list(truth)))
        counts.append((len(ours & theirs), len(ours), len(theirs)))
    table = np.asarray(counts, dtype=np.int64).reshape(-1, 3)

    def part(index: int) -> Callable[[Values], float]:
        def ratio(indices: Values) -> float:
            total = table[indices].sum(axis=0)
            return float(total[0] / total[index]) if total[index] else 0.0

        return ratio

    def f1(indices: Values) -> float:
        return _f1(*(int(number) for number in table[indices].sum(axis=0)))

    return [Measure("f1", f1), Measure("precision", part(1)), Measure("recall", part(2))]


def per_token(found: Sequence[Sequence[int]], gold: Sequence[Sequence[int]]) -> Measure:
    """How many tokens have the right tag, over sentences of different lengths."""
    hits = [sum(a == b for a, b in zip(s, g, strict=True)) for s, g in zip(found, gold, strict=True)]
    return ratio("accuracy", hits, [len(sentence) for sentence in gold])


def ratio(name: str, above: Sequence[float], below: Sequence[float]) -> Measure:
    """The quotient of two sums."""
    numerator, denominator = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    return Measure(name, lambda i: float(numerator[i].sum() / max(denominator[i].sum(), 1e-12)))


def mean(name: str, values: Sequence[float]) -> Measure:
    """The mean of one number of every example."""
    numbers = np.asarray(values, dtype=np.float64)
    return Measure(name, lambda indices: float(numbers[indices].mean()))


def of_corpus(name: str, found: Sequence[str], gold: Sequence[str]) -> Measure:
    """BLEU (Papineni et al. 2002) or chrF (Popović 2015) of a whole corpus, by sacrebleu (Post 2018)."""
    import json

    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    metric = BLEU() if name == "bleu" else CHRF()
    several = len(found) > 1
    score = metric.corpus_score(list(found), [list(gold)], n_bootstrap=RESAMPLES if several else 1)
    told = json.loads(score.format(signature=str(metric.get_signature()), is_json=True))
    middle, half = told.get("confidence_mean", score.score), told.get("confidence_var", 0.0)
    return Measure(name, lambda _: float(score.score), interval=(middle - half, middle + half))


def perplexity(losses: Sequence[float], tokens: Sequence[int]) -> list[Measure]:
    """Perplexity and mean loss in nats, from summed losses and numbers of predicted tokens."""
    total, count = np.asarray(losses, dtype=np.float64), np.asarray(tokens, dtype=np.float64)

    def loss(indices: Values) -> float:
        return float(total[indices].sum() / max(count[indices].sum(), 1.0))

    return [
        Measure("perplexity", lambda indices: float(np.exp(loss(indices))), higher_is_better=False),
        Measure("loss", loss, higher_is_better=False),
    ]


def _with_ties(values: Values) -> Values:
    """Return the values with those equal that only rounding tells apart.

    One text in two batches gives two numbers, a few last digits apart, and ranks would make much of the order of these.
    """
    order = np.argsort(values, kind="stable")
    result, near = values.copy(), SAME * float(np.abs(values).max(initial=0.0))
    for one, after in itertools.pairwise(order):
        if values[after] - result[one] <= near:
            result[after] = result[one]
    return result


def _f1(both: int, said: int, there: int) -> float:
    return 2 * both / (said + there) if said + there else 0.0


def _rounded(value: Any) -> float:
    return round(float(value), 6)
