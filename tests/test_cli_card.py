"""``card``: made, changed, checked and shown; and the README of a package, which is signed with it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from conftest import GOLDEN, Hub, card_data, snapshot, tensor_file, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

import adaptergit
from adaptergit.cli import main
from adaptergit.errors import UsageError
from adaptergit.package import Card, pack
from adaptergit.package.editing import edit_card, write_card
from adaptergit.package.fields import parse_fields
from adaptergit.package.readme import is_rendered, render_readme
from adaptergit.publish import publish
from adaptergit.resolve import fetch
from adaptergit.splice import adapters


def run(*argv: object, code: int = 0, **options: Any) -> Result:
    done = CliRunner().invoke(main, [str(part) for part in argv], **options)
    assert done.exit_code == code, done.output + repr(done.exception)
    return done


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A package folder whose card somebody wrote by hand."""
    folder = tmp_path / "out"
    folder.mkdir()
    text = Card(card_data(keywords=["films"])).to_yaml().decode()
    (folder / "card.yaml").write_text("# ours\n" + text.replace("license: Apache-2.0", "license: Apache-2.0  # agreed"))
    (folder / "adapter.safetensors").write_bytes(tensor_file(b"w" * 100))
    return folder


def card(folder: Path) -> dict[str, Any]:
    return Card.from_yaml((folder / "card.yaml").read_bytes()).data


# --- edit -------------------------------------------------------------------------------------------------------------


def test_fields_change_and_comments_stay(out: Path) -> None:
    assert (
        "changed" in run("card", "edit", out, "description=Of films.", "task.languages=en", "task.languages=de").stdout
    )
    assert (card(out)["description"], card(out)["task"]["languages"]) == ("Of films.", ["en", "de"])
    text = (out / "card.yaml").read_text()
    assert text.startswith("# ours\n")
    assert "license: Apache-2.0  # agreed\n" in text
    assert {path.name for path in out.iterdir()} == {"card.yaml", "adapter.safetensors"}


@pytest.mark.parametrize(
    ("assignments", "path", "value"),
    [
        (["description=a=b # c: 'd'"], ("description",), "a=b # c: 'd'"),
        (["description=1.0"], ("description",), "1.0"),
        (["keywords=one"], ("keywords",), ["one"]),
        (['keywords=["a, b", "c"]'], ("keywords",), ["a, b", "c"]),
        (["training.seed=7"], ("training", "seed"), 7),
        (["training.hyperparameters.lr=5e-4"], ("training", "hyperparameters", "lr"), 5e-4),
        (["training.hyperparameters.scheduler=linear"], ("training", "hyperparameters", "scheduler"), "linear"),
        (["base_model.revision=abc"], ("base_model", "revision"), "abc"),
        (["x-mine=true"], ("x-mine",), True),
        (["task.dataset=[x]"], ("task", "dataset"), "[x]"),
        (["dependencies=[{\"reference\": \"a/b@c\"}]"], ("dependencies", 0, "reference"), "a/b@c"),
        (["evaluation[0].dataset=d", "evaluation[0].metric=f1", "evaluation[0].value=0.5"], ("evaluation", 0, "value"), 0.5),
        (["authors=Ada", "authors=Grace"], ("authors",), ["Ada", "Grace"]),
        (["description=two\nlines\nand more"], ("description",), "two\nlines\nand more"),
    ],
)  # fmt: skip
def test_a_value_becomes_what_the_schema_says_it_is(
    out: Path, assignments: list[str], path: tuple[str | int, ...], value: Any
) -> None:
    found: Any = edit_card(out, assignments).data
    for step in path:
        found = found[step]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("argv", "code", "why"),
    [
        (["licence=MIT"], 2, "did you mean 'license'?"),
        (["task.kind=ner"], 2, "no field 'task.kind'"),
        (["description"], 2, "FIELD=VALUE"),
        (["[0]=x"], 2, "not a card field"),
        (["task..type=x"], 2, "no field|not a card field"),
        (["description=a", "description=b"], 2, "said 2 times"),
        (["version=one"], 3, "card.yaml:3: version"),
        (["name=SST 2"], 3, "card.yaml:2: name"),
        (["training.seed=many"], 3, "training.seed"),
        (["evaluation[3].value=1"], 2, "not there"),
        (["evaluation[0].value=1"], 3, "evaluation"),
        (["name.first=x"], 2, "no field 'name.first'"),
        (["keywords[0].x=1"], 2, "no field"),
        (["license=MIT", "--unset", "task"], 3, "task"),
        (["--unset", "limitations"], 2, "not there"),
        (["x-bad=NaN"], 3, "nan"),
        ([f"description={'x' * 70000}"], 3, "limit"),
    ],
)
def test_what_would_not_be_valid_is_not_written(out: Path, argv: list[str], code: int, why: str) -> None:
    import re

    before = snapshot(out)
    said = run("card", "edit", out, *argv, code=code).stderr
    assert re.search(re.escape(why) if "|" not in why else why, said), said
    assert snapshot(out) == before


@pytest.mark.parametrize("change", ["adapter.method=lora", "adapter.config.reduction_factor=8"])
def test_what_the_weights_are_is_not_edited(out: Path, change: str) -> None:
    before = (out / "card.yaml").read_bytes()
    assert "was written with them" in run("card", "edit", out, change, code=2).stderr
    assert (out / "card.yaml").read_bytes() == before


def test_a_field_is_taken_out(out: Path) -> None:
    run("card", "edit", out / "card.yaml", "--unset", "keywords", "license=MIT")
    assert "keywords" not in card(out)
    assert card(out)["license"] == "MIT"


def test_what_is_said_again_changes_nothing(out: Path) -> None:
    before = snapshot(out)
    assert run("card", "edit", out, "license=Apache-2.0").stdout == "nothing changed\n"
    assert json.loads(run("card", "edit", out, "license=Apache-2.0", "--json").stdout)["changed"] is False
    assert snapshot(out) == before


def test_an_edit_that_somebody_else_overtook_is_refused(out: Path) -> None:
    before = (out / "card.yaml").read_bytes()
    edit_card(out, ["description=Theirs."])
    with pytest.raises(UsageError, match="changed meanwhile"):
        write_card(out / "card.yaml", before.replace(b"A test.", b"Ours."), before=before)
    assert card(out)["description"] == "Theirs."


def test_a_stored_card_is_not_edited(hub: Hub, out: Path) -> None:
    publish(out, clone=hub.clone, key=hub.key.path)
    hub.trust()
    stored = fetch(f"{hub.url}@sst2").path
    assert "never changes" in run("card", "edit", stored, "license=MIT", code=2).stderr
    assert "as it is" in run("card", "edit", hub.clone / "adapters" / "sst2", "license=MIT").stderr


def editor(tmp_path: Path, script: str) -> dict[str, str]:
    """An editor that does to the file in sys.argv[1] what a line of Python says."""
    path = tmp_path / "editor.py"
    path.write_text(f"import sys, pathlib\nfile = pathlib.Path(sys.argv[1])\ntext = file.read_text()\n{script}\n")
    return {"VISUAL": "", "EDITOR": f"{sys.executable} {path}", "TMPDIR": str(tmp_path)}


def test_without_fields_the_card_opens_in_the_editor(out: Path, tmp_path: Path) -> None:
    env = editor(tmp_path, "file.write_text(text.replace('A test.', 'By hand.'))")
    run("card", "edit", out, env=env)
    assert card(out)["description"] == "By hand."
    assert run("card", "edit", out, env=editor(tmp_path, "pass")).stdout == "nothing changed\n"


def test_a_text_that_is_no_card_is_kept_beside_and_not_written(out: Path, tmp_path: Path) -> None:
    before = snapshot(out)
    env = editor(tmp_path, "file.write_text(text.replace('version: 1.0.0', 'version: one'))")
    done = subprocess.run(
        [sys.executable, "-m", "adaptergit", "card", "edit", str(out)],
        env={**os.environ, **env}, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert "version: 'one' is not a PEP 440 version" in done.stderr
    kept = Path(done.stderr.rpartition("your text is kept: ")[2].strip())
    assert "version: one" in kept.read_text()
    assert snapshot(out) == before


def test_a_name_that_is_none_is_refused_with_what_one_is(out: Path) -> None:
    said = run("card", "edit", out, "name=Not A Name", code=3).stderr
    assert "name: 'Not A Name' is not an adapter name; use 1 to 64 of a-z 0-9 . _ -" in said


@pytest.mark.parametrize(
    ("field", "meant"),
    [("task.typ=x", "'task.type'"), ("language=de", "'task.languages'"), ("licence=MIT", "'license'")],
)
def test_a_misspelt_field_is_recognised_with_its_whole_name(out: Path, field: str, meant: str) -> None:
    assert f"did you mean {meant}?" in run("card", "edit", out, field, code=2).stderr


def test_without_fields_and_terminal_no_editor_is_started(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VISUAL", "EDITOR"):
        monkeypatch.delenv(name, raising=False)
    assert "hint: name fields: FIELD=VALUE" in run("card", "edit", out, code=2).stderr


def test_an_editor_that_fails_changes_nothing(out: Path, tmp_path: Path) -> None:
    before = snapshot(out)
    assert "is kept" not in run("card", "edit", out, env=editor(tmp_path, "sys.exit(1)"), code=2).stderr
    run("card", "edit", out, env={"VISUAL": "", "EDITOR": "/no/such/editor"}, code=2)
    said = run("card", "edit", out, env=editor(tmp_path, "file.write_text('mine'); sys.exit(1)"), code=2).stderr
    kept = Path(said.partition("your text is kept: ")[2].strip())
    assert kept.read_text() == "mine"
    assert snapshot(out) == before


# --- validate ---------------------------------------------------------------------------------------------------------


def test_every_problem_is_told_with_file_line_and_field(out: Path, tmp_path: Path) -> None:
    assert run("card", "validate", out).stdout == f"{out}: the card of sst2 1.0.0 is valid\n"
    bad = tmp_path / "bad.yaml"
    bad.write_text((out / "card.yaml").read_text().replace("version: 1.0.0", "version: one") + "colour: red\nhead: 1\n")
    said = run("card", "validate", out, bad, code=3)
    lines = bad.read_text().splitlines()
    for field in ("colour", "head"):
        number = next(at for at, line in enumerate(lines, 1) if line.startswith(f"{field}:"))
        assert f"{bad}:{number}: {field}: " in said.stderr
    assert f"{out}: the card of sst2 1.0.0 is valid" in said.stdout
    found = json.loads(run("card", "validate", out, bad, "--json", code=3).stdout)["cards"]
    assert found[0] == {"path": str(out), "error": None}
    assert found[1]["error"]["where"].startswith(str(bad))
    assert "no card" in run("card", "validate", tmp_path / "nowhere", code=5).stderr


# --- make -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """AdapterHub's folder of a small adapter."""
    model = tiny_model("bert")
    adapters(model).add("film", "seq_bn")
    adaptergit.export(model, "film", tmp_path / "hub", to="adapterhub")
    return tmp_path / "hub"


def test_a_card_is_made_for_a_checkpoint_of_others_and_nothing_else_changes(checkpoint: Path) -> None:
    before = snapshot(checkpoint)
    base = GOLDEN / "bases" / "bert"
    said = run("card", "make", checkpoint, "--base", base, "license=MIT", "task.languages=en")
    assert "description=… task.type=…" in said.stderr
    assert "license=…" not in said.stderr
    after = snapshot(checkpoint)
    assert after.pop("card.yaml")
    assert after == before
    made = card(checkpoint)
    assert (made["name"], made["license"], made["adapter"]["format"]) == ("film", "MIT", "adapterhub")
    assert made["task"] == {"type": "other", "languages": ["en"]}
    assert "a card already" in run("card", "make", checkpoint, "--base", base, code=2).stderr


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        (["license=M I T"], 3),
        (["colour=red"], 2),
        (["description="], 3),
        (["evaluation[0].value=1"], 2),
        (["task=[]"], 3),
    ],
)
def test_a_card_that_would_not_be_valid_is_not_made(checkpoint: Path, fields: list[str], code: int) -> None:
    before = snapshot(checkpoint)
    run("card", "make", checkpoint, "--base", GOLDEN / "bases" / "bert", *fields, code=code)
    assert snapshot(checkpoint) == before


# --- render -----------------------------------------------------------------------------------------------------------


def tables(text: str) -> list[list[list[str]]]:
    """The cells of every table, as forges read them."""
    found: list[list[list[str]]] = []
    for token in (tokens := iter(MarkdownIt("commonmark").enable("table").parse(text))):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("td_open", "th_open"):
            inline = next(tokens)
            found[-1][-1].append("".join(child.content for child in inline.children or ()))
    return found


FULL = card_data(
    description="What people *say* of films.",
    task={"type": "text-classification", "id": "sentiment", "dataset": "movie-reviews", "languages": ["en"]},
    head={"type": "classification", "config": {}, "labels": ["neg", "pos"]},
    adapter={"format": "peft", "method": "lora", "config": {}, "parameters": 12345},
    evaluation=[
        {"dataset": "dev", "split": "test", "metric": "accuracy", "value": 0.8123456789, "samples": 1066},
        {"dataset": "dev", "metric": "f1", "value": 1},
    ],
    training={"data": "train.tsv", "samples": 9596, "hyperparameters": {"lr": 5e-4, "optimiser": {"name": "adamw"}},
              "seed": 3, "duration_seconds": 3725.4, "frameworks": {"torch": "2.6"}},
    authors=["Ada", "Grace"], citation="@article{a,\n  title = {A}\n}", limitations="Only films.",
    dependencies=[{"reference": "acme/adapters@de"}], keywords=["films"],
)  # fmt: skip


def test_a_readme_says_what_a_reader_asks_first() -> None:
    text = render_readme(Card(FULL), "acme/adapters", size=3_600_000)
    facts, scores, training = tables(text)
    assert dict(map(tuple, facts)) == {
        "": "",
        "Task": "text-classification · sentiment",
        "Data": "movie-reviews",
        "Languages": "en",
        "Base model": "acme/tiny",
        "Method": "lora, 12,345 parameters",
        "Head": "classification: neg, pos",
        "Size": "3.6 MB",
        "Licence": "Apache-2.0",
        "Authors": "Ada, Grace",
        "Keywords": "films",
        "Signed": "by its publisher; adaptergit verify acme/adapters@sst2==1.0.0 checks it",
    }
    assert scores == [
        ["data", "split", "metric", "value", "samples"],
        ["dev", "test", "accuracy", "0.812346", "1066"],
        ["dev", "", "f1", "1", ""],
    ]
    assert ["optimiser.name", "adamw"] in training
    assert ["Time", "1 h 2 min"] in training
    for part in ('adaptergit.load("acme/adapters@sst2==1.0.0")', "predict", "PEFT", "--to peft", "@de", "Only films."):
        assert part in text
    assert "```bibtex\n@article{a,\n  title = {A}\n}\n```" in text
    assert "http" not in text  # nothing is asked of anybody


def test_a_small_card_has_a_small_readme() -> None:
    text = render_readme(Card(card_data()), "acme/adapters")
    assert [line for line in text.splitlines() if line.startswith("#")] == ["# sst2 1.0.0"]
    assert "\n\n\n" not in text
    assert text.endswith('(`policy="tofu"`).\n')


HOSTILE = st.text(st.sampled_from("ab`|\\\n<>*_[](){}#-!&;~ \t"), min_size=1, max_size=40).filter(str.strip)


@settings(max_examples=200, deadline=None)
@given(HOSTILE, HOSTILE, HOSTILE)
def test_no_text_breaks_out_of_its_cell_or_its_fence(text: str, other: str, citation: str) -> None:
    data = card_data(
        task={"type": "other", "dataset": text, "id": other},
        authors=[text, other],
        citation=citation,
        evaluation=[{"dataset": text, "metric": other, "value": 1.0}],
        base_model={**card_data()["base_model"], "id": other},
    )
    readme = render_readme(Card(data), "acme/adapters")
    facts, scores = tables(readme)
    assert {len(row) for row in facts} == {2}
    assert [len(row) for row in scores] == [3, 3]
    assert scores[1][2] == "1"
    fences = [token.content for token in MarkdownIt("commonmark").parse(readme) if token.type == "fence"]
    assert fences[-1].strip() == citation.strip()


def test_the_readme_is_the_same_for_the_same_card_and_is_known_as_rendered() -> None:
    text = render_readme(Card(FULL), "acme/adapters", size=1)
    assert text == render_readme(Card.from_yaml(Card(FULL).to_yaml()), "acme/adapters", size=1)
    assert is_rendered(text)
    assert not is_rendered(text + "and words of mine\n")


def test_render_shows_what_publishing_writes(out: Path, tmp_path: Path) -> None:
    target = tmp_path / "packed"
    target.mkdir()
    written = Card.from_yaml((out / "card.yaml").read_bytes())
    options: Any = {"repository": "github.com/acme/adapters", "previous": None, "created": datetime.now(UTC)}
    pack(out, target, written, address="acme/adapters", **options)
    shown = run("card", "render", out, "--address", "acme/adapters").stdout
    assert shown == (target / "README.md").read_text()
    run("card", "render", out, "--address", "acme/adapters", "--output", tmp_path / "README.md")
    assert (tmp_path / "README.md").read_text() == shown
    assert json.loads(run("card", "render", out, "--address", "acme/adapters", "--json").stdout)["text"] == shown


def test_render_does_not_drive_the_terminal(out: Path) -> None:
    edit_card(out, ["description=\x1b[2Jnice"])
    assert "\x1b" not in run("card", "render", out).stdout


def test_cards_start_no_torch(out: Path) -> None:
    script = (
        f"import sys; sys.argv = ['adaptergit', 'card', 'render', {str(out)!r}]\nfrom adaptergit.cli import main\n"
        "try: main()\nfinally: assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30))
def test_any_assignment_is_understood_or_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert len(parse_fields([text])) == 1


def test_a_misspelt_key_of_a_card_is_recognised(out: Path) -> None:
    path = out / "card.yaml"
    path.write_text(path.read_text().replace("license:", "licence:").replace("method:", "methd:"))
    said = run("card", "validate", out, code=3).stderr
    assert "licence: 'licence' was unexpected; did you mean 'license'?" in said
    assert "adapter.methd: 'methd' was unexpected; did you mean 'method'?" in said
