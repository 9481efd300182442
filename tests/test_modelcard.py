"""Cards become model cards of the Hugging Face Hub and come back; what people write by hand is taken where it fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import GOLDEN, card_data, tiny_model
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st

import adaptergit
from adaptergit.errors import AdaptergitWarning, PackageError
from adaptergit.package import Card
from adaptergit.package.modelcard import (
    card_fields,
    front_matter,
    front_matter_of,
    render_model_card,
    stated_base_id,
    told_front_matter,
    with_front_matter,
)
from adaptergit.package.readme import is_rendered, render_readme

WORDS = st.from_regex(r"[a-z][a-z0-9]{0,12}", fullmatch=True)
ROWS = st.fixed_dictionaries(
    {"dataset": WORDS, "metric": WORDS, "value": st.floats(0, 100, allow_nan=False) | st.integers(0, 100)},
    optional={"split": WORDS},
)
TASKS = st.fixed_dictionaries(
    {"type": WORDS.filter(lambda word: word != "other")},
    optional={
        "languages": st.lists(st.sampled_from(["en", "no", "de-CH", "on", "zh-Hans"]), min_size=1, unique=True),
        "dataset": st.lists(WORDS, min_size=1, max_size=3, unique=True).map(", ".join),
    },
)
LICENSES = st.sampled_from(["MIT", "Apache-2.0", "CC-BY-SA-4.0", "GPL-3.0", "LicenseRef-llama3.1", "EUPL-1.2", "0BSD"])


@pytest.mark.slow
@settings(deadline=None)
@given(task=TASKS, rows=st.lists(ROWS, max_size=4), license=LICENSES, keywords=st.lists(WORDS, max_size=4, unique=True))
def test_there_and_back(task: dict[str, Any], rows: list[dict[str, Any]], license: str, keywords: list[str]) -> None:
    own = {"adaptergit", "peft"}
    keywords = [word for word in keywords if word not in own]
    card = Card(card_data(task=task, evaluation=rows, license=license, keywords=keywords))
    text = render_model_card(card, "hf:acme/x@v1.0.0")
    told = card_fields(front_matter(text))
    assert told.get("task") == task
    assert told.get("evaluation", []) == rows
    assert told["license"] == license
    assert told.get("keywords", []) == keywords
    assert stated_base_id(front_matter(text)) == "acme/tiny"
    assert ModelCard(text.decode()).data.base_model == "acme/tiny"  # as the Hub's own library reads it
    assert is_rendered(text.decode())


@pytest.mark.parametrize(
    ("format", "library"), [("adaptergit", "adaptergit"), ("adapterhub", "adapter-transformers"), ("peft", "peft")]
)
def test_the_library_is_the_one_that_loads_the_weights(format: str, library: str) -> None:
    card = Card(card_data(adapter={"format": format, "method": "lora", "config": {}}))
    data = ModelCard(front_matter_of(card)).data
    assert data.library_name == library
    assert library in data.tags
    assert "adaptergit" in data.tags


@pytest.mark.parametrize(
    ("stated", "license"),
    [
        ("license: apache-2.0", "Apache-2.0"),
        ("license: openrail", "LicenseRef-openrail"),
        ("license: llama3.1", "LicenseRef-llama3.1"),
        ("license: other\nlicense_name: my own/terms", "LicenseRef-my-own-terms"),
        ("license: other\nlicense_name: mit", "MIT"),
        ("license: other", None),
        ("license: unknown", None),
        ("license: [mit, gpl-3.0]", None),
        ("license: ''", None),
        ("license: 7", None),
        ("license: '***'", None),
    ],
)
def test_licences_are_spdx_expressions_or_references(stated: str, license: str | None) -> None:
    fields = card_fields(front_matter(f"---\n{stated}\n---\n".encode()))
    assert fields.get("license") == license
    Card(card_data(**fields))


def test_what_does_not_fit_a_card_is_left_out() -> None:
    front: dict[str, Any] = {
        "pipeline_tag": "Text Classification",
        "language": ["en", "multilingual", 7, None, ""],
        "datasets": ["a b", "glue", {"x": 1}],
        "tags": ["adapterhub:x", "base_model:acme/x", "x" * 200, "license:mit", "fine", "fine"],
        "base_model": ["a/b", "c/d"],
        "model-index": [
            {
                "results": [
                    {
                        "dataset": {"name": "d"},
                        "metrics": [{"type": "f1", "value": "high"}, {"type": "f1", "value": True}],
                    },
                    {"dataset": "d", "metrics": [{"type": "f1", "value": 1}]},
                    {"dataset": {"name": "d", "split": 7}, "metrics": [{"type": "f1", "value": 0.5}, 8]},
                ]
            }
        ],
    }
    fields = card_fields(front)
    assert fields == {
        "task": {"languages": ["en"], "dataset": "glue"},
        "keywords": ["fine"],
        "evaluation": [{"dataset": "d", "metric": "f1", "value": 0.5}],
    }
    assert stated_base_id(front) is None


def test_a_readme_without_front_matter_says_nothing() -> None:
    for text in (
        b"",
        b"# Title\n",
        b"---",
        b"----\na: b\n----\n",
        b"text\n---\na: b\n---\n",
        b"---\n---\n",
        b"---\n\n---\n# T",
    ):
        assert front_matter(text) == {}
    assert front_matter(b"---\r\nlicense: mit\r\n---\r\n# T\r\n") == {"license": "mit"}


@pytest.mark.parametrize("yaml", ["a: &x 1\nb: *x", "!!python/name:os.system x", "a: 1\na: 2", "[" * 60, "a: b: c"])
def test_tricks_name_the_line_or_are_left_with_a_warning(yaml: str, tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"README\.md"):
        front_matter(f"---\n{yaml}\n---\n".encode())
    (tmp_path / "README.md").write_text(f"---\n{yaml}\n---\n")
    with pytest.warns(AdaptergitWarning, match="is not read"):
        assert told_front_matter(tmp_path) == {}


def test_a_model_card_of_ones_own_is_never_changed() -> None:
    card = Card(card_data())
    own = b"---\nlicense: mit\n---\n# Mine\n"
    assert with_front_matter(own, card) == own
    text = with_front_matter(b"# Mine\n", card)
    assert text.endswith(b"# Mine\n")
    assert front_matter(text)["license"] == "apache-2.0"
    assert not is_rendered(text.decode())
    rendered = render_model_card(card, "hf:acme/x").decode()
    assert not is_rendered(rendered.replace("license: apache-2.0", "license: mit"))
    assert is_rendered(render_readme(card, "github.com/acme/x"))


def test_describe_takes_what_the_readme_tells(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    for path in (GOLDEN / "public" / "bert__seq_bn" / "checkpoint" / "a").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "README.md").write_text("---\nlicense: mit\nlanguage: de\npipeline_tag: fill-mask\n---\n# Mine\n")
    card = adaptergit.describe(folder, base=tiny_model(), task={"type": "text-classification"})
    assert card.license == "MIT"
    assert card.data["task"] == {"type": "text-classification", "languages": ["de"]}  # what a person says goes first
