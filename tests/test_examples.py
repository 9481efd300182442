"""The examples, played through."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.slow
def test_the_community_index(tmp_path: Path) -> None:
    play = runpy.run_path(str(EXAMPLES / "community-index" / "run.py"))["main"]
    facts = play(tmp_path / "example")
    assert [name.split("/")[1] for name in facts["listed"]] == ["amharic-nlp", "bantu-lab", "quechua-group"]
    assert facts["search"] == "127.0.0.1/amharic-nlp/adapters@sentiment"
    assert facts["loaded"] == "sentiment 1.0.0, vouched by the index community"
    assert facts["after rotation"] == "sentiment 1.1.0, vouched by the index community"
    assert "no version of 'sentiment'" in facts["after yank"]
    assert "revoked: stolen laptop (the index community)" in facts["after revocation"]
    assert facts["pages"] > 10
