"""``adaptergit inspect``: where adapters go in a model, without its weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers
from click.testing import CliRunner
from conftest import GOLDEN

import adaptergit
from adaptergit.cli import main
from adaptergit.errors import ModelError, NotFoundError
from adaptergit.splice import Site, adapters, anatomy_of


def run(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["inspect", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_blocks_and_their_branches_are_shown() -> None:
    text = run(str(GOLDEN / "bases" / "bert"))
    assert "blocks 0 … 1: A'+F'" in text
    assert "encoder.layer.0.output.dropout" in text
    assert "blocks.0.attention.q" in text


def test_an_encoder_and_a_decoder(tmp_path: Path) -> None:
    config = transformers.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2, vocab_size=20)
    config.save_pretrained(tmp_path)
    found = json.loads(run(str(tmp_path), "--json"))
    assert [block["pattern"] for block in found["blocks"]] == ["A+F", "A+F", "A+X+F", "A+X+F"]
    assert found["sites"][0]["key"] == "blocks.0.attention"


def test_a_folder_that_holds_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no model can be made"):
        adaptergit.inspect(tmp_path)


def test_places_by_hand() -> None:
    model = transformers.AutoModel.from_pretrained(GOLDEN / "bases" / "gpt2")
    known = anatomy_of(model).sites
    panel = adapters(model, sites=known[1:2])
    panel.add("a", "seq_bn")
    assert [site.key for site in panel.sites_of("a")] == ["blocks.0.ffn"]
    wrong = Site(block=0, branch="ffn", output="h.0.nowhere", residual="h.0.ln_2", norm=None)
    with pytest.raises(ModelError, match=r"h\.0\.nowhere"):
        anatomy_of(model, sites=[wrong])
