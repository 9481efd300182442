"""Cards and the model cards of the Hugging Face Hub: the YAML in front of a ``README.md``.

What a model card says is taken where it fits a card, and left where it does not: people write them by hand.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from adaptergit.errors import AdaptergitWarning, PackageError
from adaptergit.package import yamlfile
from adaptergit.package.card import Card, is_language
from adaptergit.package.folder import README, read_bounded
from adaptergit.package.readme import render_with, split_front_matter

MAX_BYTES = 64 * 1024
_MAX_README = 1 << 20

LIBRARIES = {"adaptergit": "adaptergit", "adapterhub": "adapter-transformers", "peft": "peft"}
"""Names of the library, and of the tag, by the format of the weights."""

_TASK = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
_TASK_TAG = re.compile(r"adapterhub:([^/\s]{1,100})/([^/\s]{1,100})")
_NO_KEYWORD = ("adapterhub:", "base_model:", "dataset:", "license:", "region:", "arxiv:", "doi:", "language:")

_LICENSES = """
afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
cdla-permissive-2.0 cdla-sharing-1.0 ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 gpl-2.0 gpl-3.0 isc
lgpl-2.1 lgpl-3.0 lppl-1.3c mit mpl-2.0 ms-pl ncsa ofl-1.1 osl-3.0 postgresql unlicense wtfpl zlib
"""
"""Names that the Hub knows; any other licence is ``other``, with a name."""
_YAML_1_1 = ("no", "yes", "on", "off", "y", "n")
"""What older readers take for true or false, Norwegian among them."""


def front_matter(readme: bytes, *, where: str = "README.md") -> dict[str, Any]:
    """Return what a README's front matter says; nothing if it has none.

    Raises:
        PackageError: Naming the line: too large, or YAML with tricks in it.
    """
    front, _ = split_front_matter(readme.decode("utf-8", "replace"))
    lines = front.splitlines(keepends=True)
    if not "".join(lines[1:-1]).strip():
        return {}
    # The first line stays, as the start of a YAML document: lines are counted as people count them.
    data = yamlfile.loads("".join(lines[:-1]).encode("utf-8"), where=where, limit=MAX_BYTES).data
    return data if isinstance(data, dict) else {}


def told_front_matter(folder: Path) -> dict[str, Any]:
    """Return what the README in a folder of others says in front; what cannot be read is left out, and told of."""
    path = folder / README
    try:
        return front_matter(read_bounded(path, _MAX_README), where=str(path)) if path.is_file() else {}
    except PackageError as error:
        warnings.warn(f"the front matter of a README is not read: {error}", AdaptergitWarning, stacklevel=2)
        return {}


def card_fields(front: Mapping[str, Any]) -> dict[str, Any]:
    """Return the card fields that front matter tells: license, task, keywords and evaluation."""
    fields: dict[str, Any] = {}
    if license := _license(front):
        fields["license"] = license
    task: dict[str, Any] = {}
    if isinstance(tag := front.get("pipeline_tag"), str) and _TASK.fullmatch(tag):
        task["type"] = tag
    tags = list(_texts(front.get("tags")))
    if found := next((match for tag in tags if (match := _TASK_TAG.fullmatch(tag))), None):
        task |= {"id": found[1], "subtask": found[2]}
    if languages := [text for text in _texts(front.get("language")) if is_language(text)]:
        task["languages"] = languages[:200]
    if datasets := ", ".join(text for text in _texts(front.get("datasets")) if _HUB_ID.fullmatch(text)):
        task["dataset"] = datasets[:300]
    if task:
        fields["task"] = task
    known = {*LIBRARIES.values(), str(front.get("library_name"))}
    if keywords := [tag for tag in tags if len(tag) <= 100 and tag not in known and not tag.startswith(_NO_KEYWORD)]:
        fields["keywords"] = list(dict.fromkeys(keywords))[:100]
    if evaluation := list(_evaluation(front.get("model-index"))):
        fields["evaluation"] = evaluation[:200]
    return fields


def stated_base_id(front: Mapping[str, Any]) -> str | None:
    """Return the base model that front matter names, if it is one."""
    found = [text for text in _texts(front.get("base_model")) if _HUB_ID.fullmatch(text)]
    return found[0] if len(found) == 1 else None


def render_model_card(card: Card, reference: str) -> bytes:
    """Render the card as a model card; the same bytes for the same card.

    Args:
        card: Of the adapter.
        reference: What people load.
    """
    return render_with(card, reference, front_matter_of(card)).encode("utf-8")


def with_front_matter(readme: bytes, card: Card) -> bytes:
    """Return a README of the publisher's own as a model card: as it is where it has front matter, else behind some."""
    front, _ = split_front_matter(readme.decode("utf-8", "replace"))
    return readme if front else front_matter_of(card).encode("utf-8") + readme


def front_matter_of(card: Card) -> str:
    """Return a card as front matter, dashes included."""
    return f"---\n{yamlfile.dumps(dict(_front(card))).decode('utf-8')}---\n"


def _front(card: Card) -> Iterator[tuple[str, Any]]:
    data, task = card.data, card.data["task"]
    library = LIBRARIES[str(data["adapter"]["format"])]
    topic = [f"adapterhub:{task['id']}/{task['subtask']}"] if task.get("id") and task.get("subtask") else []
    topic = [tag for tag in topic if _TASK_TAG.fullmatch(tag)]
    yield "library_name", library
    yield "tags", list(dict.fromkeys(["adaptergit", library, *topic, *data.get("keywords", ())]))
    if _HUB_ID.fullmatch(card.base_model.id):
        yield "base_model", card.base_model.id
        yield "base_model_relation", "adapter"
    if card.license.lower() in _LICENSES.split():
        yield "license", card.license.lower()
    else:
        yield "license", "other"
        yield "license_name", re.sub(r"[^a-z0-9.]+", "-", card.license.removeprefix("LicenseRef-").lower())
    if task.get("languages"):
        languages = (str(text) for text in task["languages"])
        yield "language", [DoubleQuotedScalarString(text) if text in _YAML_1_1 else text for text in languages]
    datasets = str(task.get("dataset", "")).split(", ")
    if all(_HUB_ID.fullmatch(text) for text in datasets):
        yield "datasets", datasets
    if task["type"] != "other":
        yield "pipeline_tag", task["type"]
    if data.get("evaluation"):
        yield (
            "model-index",
            [{"name": card.name, "results": [_result(task["type"], row) for row in data["evaluation"]]}],
        )


def _result(task: str, row: Mapping[str, Any]) -> dict[str, Any]:
    split = {"split": row["split"]} if row.get("split") else {}
    return {
        "task": {"type": task},
        "dataset": {"name": row["dataset"], "type": row["dataset"], **split},
        "metrics": [{"type": row["metric"], "value": row["value"]}],
    }


def _license(front: Mapping[str, Any]) -> str | None:
    stated = front.get("license")
    if stated in ("other", "unknown", None):
        stated = front.get("license_name")
    if not isinstance(stated, str) or not stated.strip() or len(stated) > 150:
        return None
    try:
        return str(canonicalize_license_expression(stated))
    except InvalidLicenseExpression:
        reference = re.sub(r"[^A-Za-z0-9.]+", "-", stated).strip("-")
        return f"LicenseRef-{reference}" if reference else None


def _evaluation(index: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a model index; what is not of its form is left out."""
    for model in _mappings(index):
        for result in _mappings(model.get("results")):
            about = next(_mappings([result.get("dataset")]), {})
            dataset = about.get("name") or about.get("type")
            for metric in _mappings(result.get("metrics")):
                name, value = metric.get("type"), metric.get("value")
                number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
                if not (_fits(dataset, 300) and _fits(name, 100) and number):
                    continue
                split = {"split": about["split"]} if _fits(about.get("split"), 100) else {}
                yield {"dataset": dataset, **split, "metric": name, "value": value}


def _fits(text: Any, limit: int) -> bool:
    return isinstance(text, str) and 0 < len(text) <= limit


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    return (item for item in value if isinstance(item, Mapping)) if isinstance(value, list) else iter(())


def _texts(value: Any) -> Iterable[str]:
    """One text or many: model cards write either."""
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str) and item]
