"""Real text in two languages with labels that do not depend on the language: the message catalogues of Django.

Django is translated by its community into a hundred languages. The same message exists in each of them, and what is
known of it is true in each of them: which component it belongs to, whether a template or Python code shows it, whether
it is a sentence.
"""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polib

TASKS = {
    "place": ("code", "template"),
    "sentence": ("no", "yes"),
    "component": ("account", "admin", "core", "other"),
}
"""Labels by task."""

_COMPONENTS = {"core": "core", "admin": "admin", "admindocs": "admin", "auth": "account"}


@dataclass(frozen=True)
class Message:
    """One message in both languages."""

    texts: dict[str, str]
    """By language."""
    labels: dict[str, str]
    """By task."""


def messages(language: str) -> tuple[list[Message], list[Message]]:
    """Return messages to train on and held-out ones, the same split every time; both languages of one are together.

    Args:
        language: Of the translation: ``de``, ``fr``, ``es`` …

    Raises:
        SystemExit: Django has no such language.
    """
    found = {message.texts["en"].casefold(): message for message in _read(language)}
    if not found:
        raise SystemExit(f"Django has no messages in {language!r}: name one of its languages, such as de, fr, es, nl")
    mixed = [found[key] for key in sorted(found)]
    random.Random(0).shuffle(mixed)  # noqa: S311 - a reproducible split, no secret
    held_out = len(mixed) // 3
    return mixed[held_out:], mixed[:held_out]


def _read(language: str) -> Iterator[Message]:
    spec = importlib.util.find_spec("django")
    if spec is None or spec.origin is None:
        raise SystemExit("Django is not installed: pip install 'adaptergit[examples]'")
    root = Path(spec.origin).parent
    for path in sorted(root.rglob(f"locale/{language}/LC_MESSAGES/django*.po")):
        parts = path.relative_to(root).parts
        component = _COMPONENTS.get(parts[1] if parts[0] == "contrib" else "core", "other")
        # Only the English catalogue says where a message is used.
        source = polib.pofile(str(path).replace(f"/{language}/LC_MESSAGES/", "/en/LC_MESSAGES/"))
        used = {(entry.msgctxt, entry.msgid): entry.occurrences for entry in source}
        for entry in polib.pofile(str(path)):
            translated = entry.msgstr or entry.msgstr_plural.get(0, "")
            places = used.get((entry.msgctxt, entry.msgid))
            if not translated or not places or entry.obsolete or entry.fuzzy:
                continue
            labels = {
                "component": component,
                "place": "code" if places[0][0].endswith((".py", ".js")) else "template",
                "sentence": "yes" if entry.msgid.rstrip().endswith((".", "?", "!")) else "no",
            }
            # Without the full stop, which would say which one is a sentence.
            texts = {
                name: " ".join(text.split()).rstrip(".?! ") for name, text in _both(entry.msgid, translated, language)
            }
            if all(texts.values()):
                yield Message(texts, labels)


def _both(english: str, translated: str, language: str) -> list[tuple[str, str]]:
    return [("en", english), (language, translated)]
