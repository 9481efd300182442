"""Cards: YAML both ways, byte for byte, and errors that say where."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import card_data
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adaptergit.errors import PackageError
from adaptergit.package import Card

# Everything YAML finds special: colons, hashes, quotes, indicators, numbers and words that look like other types.
TEXT = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=60),
    st.sampled_from(
        ["yes", "null", "1.0", "0x10", "1e3", "~", "- a", "a: b", "#x", " x ", "'", '"', "|", ">", "2026-11-23", "a\nb", "a\n\nb\n",
         "\n", "\ttab", "trailing \nspace", "x\n  indented\n", "{a: b}", "[x]", "&a", "*a", "!t", "%d", "@x", "`x`", "é", "漢字", "\u2028",
         "<<", "=", "---", "...", "a\r\nb", "\ufeff", "\x85", "\x00", "\x7f", "\u2029", "\U0001f600", "k" * 200, "line\n# not a comment\n", "  lead\nline\n", "12:30:45", "0o17", "1_000", ".inf", "on"],
    ),
)  # fmt: skip
JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), TEXT
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
CARDS = st.builds(
    lambda description, task_id, config, labels, hyper, value, citation, keywords, extra: card_data(
        description=description[:4000],
        task={"type": "text-classification", "id": task_id[:100], "languages": ["en", "sw-KE"]},
        adapter={"format": "adaptergit", "method": "seq_bn", "config": config},
        head={"type": "classification", "config": {"layers": 2}, "labels": labels},
        training={"hyperparameters": hyper, "seed": 1},
        evaluation=[{"dataset": "d", "metric": "accuracy", "value": value}],
        citation=citation,
        keywords=keywords,
        **{"x-extra": extra},
    ),
    TEXT, TEXT, st.dictionaries(TEXT, JSON, max_size=3), st.lists(TEXT, max_size=3, unique=True), st.dictionaries(TEXT, JSON, max_size=3),
    st.floats(allow_nan=False, allow_infinity=False), TEXT, st.lists(TEXT, max_size=2), JSON,
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(CARDS)
def test_any_valid_card_survives_write_read_write(data: dict[str, Any]) -> None:
    try:
        card = Card(data)
    except PackageError:  # hypothesis may build a card that does not validate
        return
    written = card.to_yaml()
    read = Card.from_yaml(written)
    assert read.data == data
    assert Card(read.data).to_yaml() == written
    assert read.to_yaml() == written


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_other_bytes_are_a_package_error(data: bytes) -> None:
    with pytest.raises(PackageError):
        Card.from_yaml(data)


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("abc:-[]{}&*!|>'\"#%@`,?\n \t0123.~"), max_size=200))
def test_any_yaml_like_text_is_a_package_error(text: str) -> None:
    with pytest.raises(PackageError):
        Card.from_yaml(text.encode())


def written(**changes: Any) -> str:
    return Card(card_data()).to_yaml().decode() + "".join(f"{k}: {v}\n" for k, v in changes.items())


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        (written().replace("version: 1.0.0", "version: 1.0"), None, None),
        (written().replace("version: 1.0.0", "version: one"), "card.yaml:2", "version"),
        (written().replace("version: 1.0.0", "version: 1.0.0-rc.1"), "card.yaml:2", "version"),
        (written().replace("name: sst2", "name: SST2"), "card.yaml:1", "name"),
        (written().replace("name: sst2", "name: a..b"), "card.yaml:1", "name"),
        (written().replace("license: Apache-2.0", "license: Apache 2"), "card.yaml:", "license"),
        (written(colour="red"), "card.yaml:", "colour"),
        (written(training="{seed: many}"), "card.yaml:", "training.seed"),
        (written(evaluation="[{dataset: d, metric: m, value: good}]"), "card.yaml:", "evaluation[0].value"),
        (written(head="{type: classification, config: {}, labels: [a, a]}"), "card.yaml:", "head.labels"),
        (written().replace("type: text-classification", "typ: x"), "card.yaml:", "task"),
        (written() + "name: again\n", "card.yaml:", "twice"),
        (written(keywords="&a [x]"), "card.yaml:", "anchors"),
        (written(keywords="[!!python/object x]"), "card.yaml:", "tags"),
        (written(keywords="[.nan]"), "card.yaml:", "nan"),
        (written(**{"x-deep": "[" * 30 + "]" * 30}), "card.yaml:", "deep"),
        (written() + "? [a]\n: b\n", "card.yaml:", "key"),
        ("", "card.yaml", "empty"),
        ("[]", "card.yaml:1", "card"),
        ("a: b: c", "card.yaml:1", "YAML"),
    ],
)
def test_an_error_names_file_line_and_field(text: str, where: str | None, what: str | None) -> None:
    if where is None:
        text = text.replace("version: 1.0\n", "version: '1.0'\n")
        assert Card.from_yaml(text.encode()).version == "1.0"
        return
    with pytest.raises(PackageError) as caught:
        Card.from_yaml(text.encode())
    assert caught.value.where is not None
    assert caught.value.where.startswith(where)
    assert what is not None
    assert what in caught.value.what


def test_the_line_is_the_right_one() -> None:
    text = written(training="\n  seed: 1\n  samples: lots")
    line = text.splitlines().index("  samples: lots") + 1
    with pytest.raises(PackageError) as caught:
        Card.from_yaml(text.encode(), where="out/card.yaml")
    assert caught.value.where == f"out/card.yaml:{line}"


def test_a_billion_laughs_cost_nothing() -> None:
    text = "a: &a [x]\n" + "".join(f"b{i}: &b{i} [*a, *a]\n" for i in range(50))
    with pytest.raises(PackageError, match="anchors"):
        Card.from_yaml(text.encode())


def test_a_large_card_is_refused() -> None:
    with pytest.raises(PackageError, match="limit"):
        Card.from_yaml(b"#" * 300_000)


def test_changing_a_field_keeps_comments() -> None:
    text = "# mine\n" + written().replace("license:", "license:  # as agreed\n ")
    card = Card.from_yaml(text.encode()).updated(version="2.0.0")
    assert card.version == "2.0.0"
    assert b"# mine" in card.to_yaml()
    assert b"# as agreed" in card.to_yaml()


def test_a_date_is_text() -> None:
    assert Card.from_yaml(written(**{"x-when": "2026-11-23"}).encode()).data["x-when"] == "2026-11-23"
