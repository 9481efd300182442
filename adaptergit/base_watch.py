"""How far transformers has come with a base model: what it downloads, and what of it is loaded."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from adaptergit.progress import Progress, Watcher, watcher


@contextmanager
def told_of(base: str) -> Iterator[dict[str, Any]]:
    """Tell whoever is watching of a base model that is loaded inside; give options for its ``from_pretrained``.

    Both are told by transformers' own progress bars, seen or not. A release that lets nobody listen, or nobody who
    watches: nothing is told.

    Args:
        base: What it is called, for people.
    """
    report = watcher()
    if report is None:
        yield {}
        return
    bars = importlib.import_module("transformers.utils.logging")
    hub = importlib.import_module("transformers.utils.hub")
    takes_class = "tqdm_class" in inspect.signature(hub.cached_files).parameters
    set_hook: Callable[[Any], Any] = getattr(bars, "set_tqdm_hook", lambda _: None)
    before = set_hook(lambda factory, given, options: _Counting(factory(*given, **options), given, base, report))
    try:
        yield {"tqdm_class": _downloads(base, report)} if takes_class else {}
    finally:
        set_hook(before)


def _downloads(base: str, report: Watcher) -> Any:
    bar: Any = importlib.import_module("huggingface_hub.utils").tqdm

    class Download(bar):  # type: ignore[misc]  # of Any: the class is not exported with its types
        def __init__(self, *given: Any, **options: Any) -> None:
            self._arrived, self._all, self._bytes = options.get("initial") or 0, options.get("total"), "unit" in options
            super().__init__(*given, **options)

        def update(self, n: float | None = 1) -> Any:
            self._arrived += int(n or 0)
            if self._bytes:  # others count files
                report(Progress(base, self._arrived, self._all))
            return super().update(n)

    return Download


class _Counting:
    """A progress bar of transformers' that also tells how many tensors are loaded."""

    def __init__(self, bar: Any, given: tuple[Any, ...], base: str, report: Watcher) -> None:
        self._bar, self._base, self._report = bar, base, report
        self._total = len(given[0]) if given and hasattr(given[0], "__len__") else None

    def __iter__(self) -> Iterator[Any]:
        for done, item in enumerate(self._bar):
            self._report(Progress(self._base, done, self._total, "tensors"))
            yield item
        if self._total is not None:
            self._report(Progress(self._base, self._total, self._total, "tensors"))

    def __enter__(self) -> Any:
        return self._bar.__enter__()

    def __exit__(self, *raised: object) -> Any:
        return self._bar.__exit__(*raised)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bar, name)
