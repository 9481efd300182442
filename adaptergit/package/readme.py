"""The ``README.md`` of a package, rendered from its card so that every forge shows it.

It is signed with the rest, so it is a function of the card, the address and the size alone; and it asks no third party
for anything: its badges are words that forges draw in boxes, not pictures of somebody's server.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adaptergit.package.curve import PICTURE, series_of

if TYPE_CHECKING:
    from adaptergit.package.card import Card

_FRONT = re.compile(r"---[ \t]*\r?\n(?:.*\n)*?---[ \t]*(?:\r?\n|\Z)")
_MARK = "<!-- rendered from card.yaml by adaptergit, {digest} -->\n"
_OTHERS = {"adapterhub": "AdapterHub's `adapters`", "peft": "Hugging Face's PEFT"}


def render_readme(card: Card, address: str, *, size: int | None = None) -> str:
    """Render a card as Markdown; the same text for the same arguments.

    Args:
        card: What is rendered.
        address: What people load it from.
        size: Bytes of the weights.
    """
    return render_with(card, f"{address}@{card.name}=={card.version}", size=size)


def render_with(card: Card, reference: str, front: str = "", *, size: int | None = None) -> str:
    """Render a card as Markdown behind some front matter. ``reference`` is what people load."""
    body = "\n\n".join(section for section in _sections(card.data, reference, size) if section) + "\n"
    return front + _MARK.format(digest=_digest(front + body)) + body


def is_rendered(text: str) -> bool:
    """Tell whether a README is as it was rendered, untouched since: a line of it holds a hash of the others."""
    front, rest = split_front_matter(text)
    mark, newline, body = rest.partition("\n")
    return mark + newline == _MARK.format(digest=_digest(front + body))


def split_front_matter(text: str) -> tuple[str, str]:
    """Return the YAML between two lines of dashes that a README may start with, dashes included, and what follows.

    >>> split_front_matter("---\\nlicense: mit\\n---\\n# Title\\n")
    ('---\\nlicense: mit\\n---\\n', '# Title\\n')
    """
    found = _FRONT.match(text)
    return (found[0], text[found.end() :]) if found is not None else ("", text)


def _sections(data: Mapping[str, Any], release: str, size: int | None) -> Iterator[str]:
    yield f"# {data['name']} {data['version']}"
    yield " ".join(_code(one) for one in _badges(data, size) if one)
    yield str(data["description"]).strip()
    yield _table(("", ""), _facts(data, release, size))
    yield _loading(data, release)
    if rows := data.get("evaluation"):
        yield "## Evaluation"
        yield _scores(rows)
    rows, series = [row for row in _training(data.get("training", {})) if row[1]], series_of(data)
    if rows or series:
        yield "## Training"
        if series:
            told = "; ".join(one.told for one in series).replace("[", "(").replace("]", ")")
            yield f"![{_cell(told)}]({PICTURE})"
        yield _table(("", ""), rows)
    if parts := data.get("dependencies"):
        yield "## Built on"
        yield "\n".join(f"- {_code(part['reference'])}" for part in parts)
    if text := str(data.get("limitations", "")).strip():
        yield "## Limitations"
        yield text
    if text := str(data.get("citation", "")).strip():
        yield "## Citation"
        yield _fenced(text, "bibtex")


def _badges(data: Mapping[str, Any], size: int | None) -> Iterator[str]:
    yield "signed"
    yield str(data["license"])
    yield str(data["base_model"]["id"])
    yield str(data["adapter"]["method"])
    yield "" if size is None else _bytes(size)


def _facts(data: Mapping[str, Any], release: str, size: int | None) -> Iterator[tuple[str, str]]:
    task, adapter, head = data["task"], data["adapter"], data.get("head", {})
    yield "Task", _cell(" · ".join(str(task[key]) for key in ("type", "id", "subtask") if task.get(key)))
    yield "Data", _cell(task.get("dataset", ""))
    yield "Languages", _cell(", ".join(task.get("languages", ())))
    yield "Base model", _code(data["base_model"]["id"])
    count = adapter.get("parameters")
    yield "Method", _code(adapter["method"]) + (f", {count:,} parameters" if count else "")
    labels = ", ".join(head.get("labels", ())[:20]) + (" …" if len(head.get("labels", ())) > 20 else "")
    yield "Head", _cell(head.get("type", "") + (f": {labels}" if labels else ""))
    yield "Size", "" if size is None else _bytes(size)
    yield "Licence", _cell(data["license"])
    yield "Authors", _cell(", ".join(data.get("authors", ())))
    yield "Keywords", _cell(", ".join(data.get("keywords", ())))
    yield "Signed", f"by its publisher; {_code(f'adaptergit verify {release}')} checks it"


def _loading(data: Mapping[str, Any], release: str) -> str:
    parts = [_fenced(f'import adaptergit\n\nmodel = adaptergit.load("{release}")', "python")]
    if data["task"]["type"] == "text-classification" and "head" in data:
        parts.append(_fenced(f'$ adaptergit predict {release} --text "…"', "console"))
    parts.append(
        "The first time, say whose signature counts: add an index that lists it (`adaptergit index add`), or its "
        'publisher\'s key (`adaptergit trust add`), or believe the key that is seen first (`policy="tofu"`).'
    )
    if other := _OTHERS.get(data["adapter"]["format"]):
        command = _code(f"adaptergit export {release} --to {data['adapter']['format']} DIR")
        parts.append(f"The files are those of {other}, as they were written; {command} gets them without ours.")
    return "\n\n".join(parts)


def _scores(rows: Sequence[Mapping[str, Any]]) -> str:
    titles = {
        "dataset": "data",
        "split": "split",
        "metric": "metric",
        "value": "value",
        "interval": "95 %",
        "samples": "samples",
    }
    columns = [key for key in titles if any(row.get(key) is not None for row in rows)]
    shown = ([_number(row.get(key, "")) for key in columns] for row in rows)
    return _table([titles[key] for key in columns], shown, right={columns.index("value")})


def _training(training: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "Data", _cell(training.get("data", ""))
    yield "Samples", f"{training['samples']:,}" if "samples" in training else ""
    yield from ((_cell(key), _number(value)) for key, value in _flat(training.get("hyperparameters", {})))
    yield "Seed", str(training.get("seed", ""))
    yield "Hardware", _cell(training.get("hardware", ""))
    yield "Time", lasted(training["duration_seconds"]) if "duration_seconds" in training else ""
    yield "Software", _cell(", ".join(f"{name} {version}" for name, version in training.get("frameworks", {}).items()))


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> str:
    """Return a table of the rows that say something; empty if none does."""
    kept = [f"| {' | '.join(row)} |" for row in rows if row[-1] or len(row) > 2]
    rule = "".join("---:|" if number in right else "---|" for number in range(len(titles)))
    return "\n".join([f"| {' | '.join(titles)} |", f"|{rule}", *kept]) if kept else ""


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings with their dotted names."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _cell(text: object) -> str:
    return " ".join(str(text).split()).replace("|", "&#124;")


def _number(value: object) -> str:
    if isinstance(value, list | tuple):
        return " – ".join(map(_number, value))
    return f"{value:.6g}" if isinstance(value, float) else _cell(value)


def _code(text: str) -> str:
    """Return a code span that no text can end early, also inside a table."""
    line = " ".join(str(text).split()).replace("|", "\\|")
    fence = "`" * (_longest_run(line) + 1)
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}"


def _fenced(text: str, language: str) -> str:
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall(r"`+", text)), default=0)


def _bytes(size: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def lasted(seconds: float) -> str:
    """Return how long something took, as people say it."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode("utf-8")).hexdigest()[:16]
