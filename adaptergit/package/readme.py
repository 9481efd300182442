"""The ``README.md`` of a package, rendered from its card so that every forge shows it."""

from __future__ import annotations

import functools
import hashlib
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adaptergit.package.card import Card

# ruff: noqa: E501 - a table row is one line of Markdown

_FRONT = re.compile(r"---[ \t]*\r?\n(?:.*\n)*?---[ \t]*(?:\r?\n|\Z)")
_MARK = "<!-- rendered from card.yaml by adaptergit, {digest} -->\n"

_TEMPLATE = """\
# {{ card.name }} {{ card.version }}

{{ card.description }}

| | |
|---|---|
| Task | {{ card.task.type }}{% if card.task.id %} · {{ card.task.id }}{% endif %} |
{% if card.task.dataset %}| Data | {{ card.task.dataset }} |
{% endif %}{% if card.task.languages %}| Languages | {{ card.task.languages | join(", ") }} |
{% endif %}| Base model | `{{ card.base_model.id }}` |
| Method | `{{ card.adapter.method }}`{% if card.adapter.parameters %}, {{ "{:,}".format(card.adapter.parameters) }} parameters{% endif %} |
{% if card.head %}| Head | {{ card.head.type }}{% if card.head.labels %}: {{ card.head.labels | join(", ") }}{% endif %} |
{% endif %}| Licence | {{ card.license }} |

```python
import adaptergit

model = adaptergit.load("{{ reference }}")
```
{% if card.evaluation %}
## Evaluation

| data | split | metric | value | samples |
|---|---|---|---|---|
{% for row in card.evaluation %}| {{ row.dataset }} | {{ row.split or "" }} | {{ row.metric }} | {{ row.value }} | {{ row.samples or "" }} |
{% endfor %}{% endif %}{% if card.limitations %}
## Limitations

{{ card.limitations }}
{% endif %}{% if card.citation %}
## Citation

```bibtex
{{ card.citation }}
```
{% endif %}"""


def render_readme(card: Card, address: str) -> str:
    """Render the card as Markdown; the same text for the same card. ``address`` is what people load it from."""
    return render_with(card, f"{address}@{card.name}=={card.version}")


def render_with(card: Card, reference: str, front: str = "") -> str:
    """Render the card as Markdown behind some front matter. ``reference`` is what people load."""
    body = str(_template().render(card=card.data, reference=reference))
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


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode("utf-8")).hexdigest()[:16]


@functools.cache
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    class _Optional(StrictUndefined):
        """Optional card fields are tested before they are shown; anything else undefined is an error."""

        def __bool__(self) -> bool:  # type: ignore[override]  # the base class only ever raises
            return False

    # Markdown, not HTML: escaping would corrupt code and citations.
    return Environment(undefined=_Optional, autoescape=False, keep_trailing_newline=True).from_string(_TEMPLATE)  # noqa: S701
