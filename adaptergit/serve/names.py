"""``name=REF``: another name for what is served."""

from __future__ import annotations

import re

_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,99})=(?!=)(.+)", re.DOTALL)


def split_name(text: str) -> tuple[str | None, str]:
    """Tell ``name=REF`` from ``REF``, in which "=" may come after an adapter's name.

    >>> split_name("ner=acme/adapters@ner-de>=1.2"), split_name("acme/adapters@ner==1.2.0")
    (('ner', 'acme/adapters@ner-de>=1.2'), (None, 'acme/adapters@ner==1.2.0'))
    """
    match = _NAMED.fullmatch(text)
    return (match[1], match[2]) if match else (None, text)
