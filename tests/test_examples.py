"""The examples, played through."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import html5lib
import pytest
from test_training import needs_model

EXAMPLES = Path(__file__).parent.parent / "examples"
TRAINERS = {
    "plain_trainer": (),
    "seq2seq": (),
    "plain_loop": (),
    "lora_to_vllm": (),
    "lightning_module": ("lightning",),
    "trl_sft": ("trl", "datasets"),
}


def run(script: Path, tmp_path: Path, *options: str) -> str:
    """What a script prints, started as people start it."""
    environment = {**os.environ, "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, str(script), "--quick", *options]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def needs(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'adaptergit[examples]'")


NOTEBOOKS = sorted((EXAMPLES / "notebooks").glob("*.ipynb"))
_PLAYER = """
import json, sys
session = {"__name__": "__main__"}
for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), cell["id"], "exec"), session)
"""


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_its_first_cell_to_its_last(notebook: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-c", _PLAYER, str(notebook)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_what_a_run_left(notebook: Path) -> None:
    found = json.loads(notebook.read_text("utf-8"))
    assert (found["nbformat"], found["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in found["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in found["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


def test_there_is_a_notebook_for_each_first_question() -> None:
    names = {path.stem for path in NOTEBOOKS}
    assert names >= {"quickstart", "compositions", "adapter-fusion", "own-method", "own-architecture"}


@pytest.mark.slow
def test_the_community_index(tmp_path: Path) -> None:
    play = runpy.run_path(str(EXAMPLES / "community-index" / "run.py"))["main"]
    facts = play(tmp_path / "example")
    assert [name.split("/")[1] for name in facts["listed"]] == ["amharic-nlp", "bantu-lab", "quechua-group"]
    assert facts["search"] == "127.0.0.1/amharic-nlp/adapters@sentiment"
    assert [name.split("/")[1] for name in facts["both"]] == [
        "amharic-nlp", "bantu-lab", "corporate-ml", "quechua-group",
    ]  # fmt: skip
    assert facts["private"] == ["corporate"]
    assert facts["loaded"] == "sentiment 1.0.0, vouched by the index community"
    assert facts["after rotation"] == "sentiment 1.1.0, vouched by the index community"
    assert "no version of 'sentiment'" in facts["after yank"]
    assert "revoked: stolen laptop (the index community)" in facts["after revocation"]
    assert [name.split("/")[1] for name in facts["shown"]] == ["bantu-lab", "corporate-ml"]
    assert facts["from the copy"] == "sentiment 1.1.0, vouched by the index community"
    for name in ("community", "corporate"):
        assert facts[f"pages of {name}"] > 10
        dist = tmp_path / "example" / name / "index" / "dist"
        for page in dist.rglob("*.html"):
            html5lib.HTMLParser(strict=True).parse(page.read_text())
            for link in re.findall(r'(?:href|src)="([^"#?]+)"', page.read_text()):
                assert (page.parent / unquote(link)).resolve().is_file(), (page, link)
        assert (dist / "snapshot.json.sig").is_file()


@pytest.mark.slow
@needs_model
def test_languages_and_tasks_are_put_together(tmp_path: Path) -> None:
    needs("django", "polib")
    run(EXAMPLES / "cross-lingual" / "run.py", tmp_path, str(tmp_path / "example"))
    facts = json.loads((tmp_path / "example" / "report.json").read_text())
    assert facts["came along"] == ["component", "en"]
    assert facts["came along with the fusion"] == ["component", "en", "place", "sentence"]
    assert facts["swapped"] == "Stack(de, component)"
    assert {row["blocks"] for row in facts["dropped"]} == set(range(facts["blocks"]))
    assert len(facts["releases"]) == 7


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINERS)
def test_everybodys_trainer(name: str, tmp_path: Path) -> None:
    needs(*TRAINERS[name])
    said = run(EXAMPLES / "trainers" / f"{name}.py", tmp_path)
    expected = {
        "plain_trainer": "checkpoints with the adapter: ['checkpoint-2', 'checkpoint-4']",
        "seq2seq": "checkpoint: ['adapter_state.safetensors']\n",
        "plain_loop": "trained: 3,266 of 38,562",
        "lightning_module": "checkpoint: ",
        "lora_to_vllm": "serve it: vllm serve BASE --enable-lora --max-lora-rank 8",
        "trl_sft": "the adapter in the checkpoint: True",
    }
    assert expected[name] in said
    assert len((EXAMPLES / "trainers" / f"{name}.py").read_text().splitlines()) <= 80


@pytest.mark.slow
def test_a_data_set_is_answered_by_many_adapters(tmp_path: Path) -> None:
    needs("datasets")
    assert "rows: 500" in run(EXAMPLES / "batch-inference.py", tmp_path)
