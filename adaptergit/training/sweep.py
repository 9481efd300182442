"""Several trainings in one call: over adapters, their fields, seeds and files; at the end a table and a plot."""

from __future__ import annotations

import re
import statistics
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from adaptergit.errors import UsageError, did_you_mean, no_file
from adaptergit.package.schemas import field
from adaptergit.training.resume import begun
from adaptergit.training.spec import TrainSpec
from adaptergit.training.train import Progress, TrainResult, train

_PATHS = ("train", "eval", "output", "validation", "deepspeed")
PLOT = "sweep.svg"
_LISTS = {"adapters": list[str], "seeds": list[int], "sweep": Mapping[str, list[Any]]}
"""What a run in a file may have besides."""
_WORDS = {
    str: "a text",
    Path: "a path",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list of such",
    Mapping: "a table",
}


@dataclass(frozen=True)
class Summary:
    """The runs that differ in nothing but their seed."""

    task: str
    data: str
    adapter: str
    """Config string."""
    metric: str
    runs: int
    mean: float
    deviation: float
    """Standard deviation over seeds; 0 of one run."""
    adapter_parameters: int
    adapter_bytes: int
    seconds: float
    """Mean training time."""


@dataclass(frozen=True)
class Sweep:
    """What came of several trainings."""

    results: tuple[TrainResult, ...]
    summaries: tuple[Summary, ...]
    plot: Path | None

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data; the last key holds the evaluation metrics."""
        return {
            "plot": str(self.plot) if self.plot else None,
            "runs": [result.to_json() for result in self.results],
            "metrics": [vars(summary) for summary in self.summaries],
        }


def variations(
    spec: TrainSpec, *, adapters: Sequence[str] = (), seeds: Sequence[int] = (), over: Mapping[str, Sequence[str]] = {}
) -> list[TrainSpec]:
    """Return a specification for every combination, each with a folder of its own inside the output folder.

    Args:
        spec: What they have in common.
        adapters: Config strings; default: that of ``spec``.
        seeds: Default: that of ``spec``.
        over: Fields of the method and their values, ``{"reduction_factor": ["2", "16"]}``.

    Raises:
        UsageError: A config string that is not one.
    """
    strings = [
        with_field(adapter, dict(zip(over, values, strict=True)))
        for adapter in adapters or (spec.adapter,)
        for values in product(*over.values())
    ]
    chosen = [(adapter, seed) for adapter in strings for seed in seeds or (spec.seed,)]
    if len(chosen) == 1:
        return [replace(spec, adapter=chosen[0][0], seed=chosen[0][1])]
    made = []
    for adapter, seed in chosen:
        parts = [
            spec.adapter_name,
            *((slug(adapter),) if len(strings) > 1 else ()),
            *((f"s{seed}",) * (len(seeds) > 1)),
        ]
        made.append(replace(spec, adapter=adapter, seed=seed, output=spec.output / "-".join(parts)[:64], name=None))
    return made


def read_runs(path: Path) -> list[TrainSpec]:
    """Read specifications from a TOML file: keys of :class:`TrainSpec` for all runs, and a ``[[run]]`` for each.

    A run may have ``adapters`` and ``seeds`` (lists) and ``sweep`` (a table of lists). Paths are seen from the file.

    Raises:
        NotFoundError, UsageError: No such file, or a key that is none.
    """
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise no_file(path) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(
            f"not valid TOML: {error}", where=str(path), hint='a text is in quotes: task = "text-classification"'
        ) from error
    common, runs = {k: v for k, v in raw.items() if k != "run"}, raw.get("run")
    if not isinstance(runs, list) or not runs or not all(isinstance(run, dict) for run in runs):
        raise UsageError("there are no runs", where=str(path), hint="[[run]] and below it train, eval, output")
    known = {f.name for f in fields(TrainSpec)}
    specs: list[TrainSpec] = []
    for number, run in enumerate(runs, 1):
        options = {**common, **run}
        more: dict[str, Any] = {key: options.pop(key) for key in _SEVERAL if key in options}
        where = f"{path}: run {number}"
        if unknown := sorted(set(options) - known):
            raise UsageError(f"unknown key {unknown[0]!r}", where=where, hint=_instead(unknown[0], known))
        if missing := sorted({"base", "train", "eval", "output"} - set(options)):
            raise UsageError(
                f"{missing[0]!r} is missing",
                where=where,
                hint=f'write {missing[0]} = "…" below its [[run]], or once above the first',
            )
        _check_kinds({**options, **more}, where)
        options |= {key: path.parent / options[key] for key in _PATHS if isinstance(options.get(key), str)}
        over = {key: [str(value) for value in values] for key, values in more.get("sweep", {}).items()}
        specs += variations(
            TrainSpec(**options), adapters=more.get("adapters", ()), seeds=more.get("seeds", ()), over=over
        )
    return specs


_SEVERAL = ("adapters", "seeds", "sweep")
"""What makes several runs of one."""


def _instead(key: str, known: Collection[str]) -> str:
    if field("card", (key,)) is not None:
        return f'the card says that: about.{key} = "…"'
    every = sorted({*known, *_SEVERAL})
    return did_you_mean(key, every) or f"known: {', '.join(every)}"


def _check_kinds(options: Mapping[str, Any], where: str) -> None:
    """Refuse a value that is of another kind than what it is for."""
    for key, hint in {**get_type_hints(TrainSpec), **_LISTS}.items():
        kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        if key in options and not any(_is_kind(options[key], kind) for kind in kinds):
            wanted = _WORDS[get_origin(kinds[0]) or kinds[0]]
            raise UsageError(f"{key!r} holds {options[key]!r}, expected {wanted}", where=where)


def _is_kind(value: Any, kind: Any) -> bool:
    if (container := get_origin(kind)) is not None:
        parts = value.values() if isinstance(value, dict) else value
        inner = get_args(kind)[-1]
        return isinstance(value, dict if container is Mapping else list) and all(_is_kind(one, inner) for one in parts)
    if kind is Any:
        return True
    taken = {Path: str, float: int | float}.get(kind, kind)
    return isinstance(value, taken) and isinstance(value, bool) == (kind is bool)


def train_all(
    specs: Sequence[TrainSpec],
    *,
    plot: Path | None = None,
    report: Callable[[TrainSpec, Progress], None] = lambda *_: None,
) -> Sweep:
    """Train one after the other. All are looked at before the first is trained.

    To resume several is to take what is finished, go on with what was interrupted, and begin the rest.

    Args:
        specs: With outputs of their own.
        plot: SVG file for score against size.
        report: Called with the specification and its progress.

    Raises:
        UsageError: A specification that cannot be trained, or two with one output.
        AdaptergitError: Whatever :func:`train` raises; what was trained before is kept.
    """
    outputs = [spec.output.resolve() for spec in specs]
    if twice := next((output for output in outputs if outputs.count(output) > 1), None):
        raise UsageError("two runs would write one folder", where=str(twice), hint="give each an output of its own")
    for spec in specs:
        spec.check()
    if len(specs) > 1:
        specs = [replace(spec, resume=spec.resume and begun(spec)) for spec in specs]
    results = [train(spec, _reporting(report, spec)) for spec in specs]
    summaries = summarised(specs, results)
    if plot is not None:
        draw(summaries, plot)
    return Sweep(tuple(results), summaries, plot)


def summarised(specs: Sequence[TrainSpec], results: Sequence[TrainResult]) -> tuple[Summary, ...]:
    """Put together what differs in the seed only, in the order of the runs."""
    groups: dict[tuple[str, str, str], list[TrainResult]] = {}
    for spec, result in zip(specs, results, strict=True):
        groups.setdefault((spec.task, spec.train.name, spec.adapter), []).append(result)
    made = []
    for (task, data, adapter), members in groups.items():
        scores, first = [one.metrics.first for one in members], members[0]
        made.append(
            Summary(
                task,
                data,
                adapter,
                first.metrics.main,
                len(members),
                round(statistics.fmean(scores), 6),
                round(statistics.stdev(scores), 6) if len(scores) > 1 else 0.0,
                first.adapter_parameters,
                first.adapter_bytes,
                round(statistics.fmean(one.seconds for one in members), 1),
            )
        )
    return tuple(made)


def draw(summaries: Sequence[Summary], path: Path) -> None:
    """Draw score against number of parameters, one colour for each task and file."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "adaptergit", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        for task, data in dict.fromkeys((one.task, one.data) for one in summaries):
            mine = sorted(
                (one for one in summaries if (one.task, one.data) == (task, data)), key=lambda s: s.adapter_parameters
            )
            sizes = [one.adapter_parameters for one in mine]
            label = f"{data} ({mine[0].metric})"
            axes.errorbar(
                sizes, [s.mean for s in mine], [s.deviation for s in mine], marker="o", capsize=3, label=label
            )
            for one in mine:
                at = (one.adapter_parameters, one.mean)
                axes.annotate(one.adapter, at, xytext=(4, 5), textcoords="offset points", fontsize=8)
        axes.set_xscale("log")
        axes.set_xlabel("trained parameters of the adapter")
        axes.set_ylabel("score; bars: one standard deviation over seeds")
        axes.grid(alpha=0.3)
        axes.legend()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})


def with_field(adapter: str, values: Mapping[str, str]) -> str:
    """Return a config string with some fields set.

    >>> with_field("seq_bn", {"reduction_factor": "8"})
    'seq_bn[reduction_factor=8]'
    >>> with_field("lora[r=8]", {"alpha": "16"})
    'lora[r=8, alpha=16]'
    """
    if not values:
        return adapter
    added = ", ".join(f"{key}={value}" for key, value in values.items())
    return f"{adapter[:-1]}, {added}]" if adapter.endswith("]") else f"{adapter}[{added}]"


def slug(adapter: str) -> str:
    """Return a config string as part of a name.

    >>> slug("seq_bn[reduction_factor=8]")
    'seq_bn-reduction_factor-8'
    """
    return re.sub(r"[^a-z0-9._]+", "-", adapter.lower()).strip("-.")


def _reporting(report: Callable[[TrainSpec, Progress], None], spec: TrainSpec) -> Callable[[Progress], None]:
    return lambda progress: report(spec, progress)
