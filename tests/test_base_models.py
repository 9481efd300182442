"""Where base models are found: what the settings map, what nobody is asked for, and what is said when one is missing."""

from __future__ import annotations

import io
import json
import logging
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import transformers
from click.testing import CliRunner, Result
from conftest import GOLDEN, tiny_model
from test_predict import golden

import adaptergit
from adaptergit.cli import main
from adaptergit.package import Card
from adaptergit.package.editing import read_card

ID = "acme/tiny-bert"


def map_base(home: Path, folder: Path) -> None:
    (home / "config").mkdir(exist_ok=True)
    (home / "config" / "config.toml").write_text(f'[base_models]\n"{ID}" = {json.dumps(str(folder))}\n')


def run(*argv: str) -> Result:
    return CliRunner().invoke(main, list(argv))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return golden("bert", tmp_path_factory.mktemp("bases") / "tiny")


def training(tmp_path: Path, base: str) -> list[str]:
    data = tmp_path / "data.tsv"
    data.write_text("text\tlabel\n" + "a good film\tpos\nan awful film\tneg\n" * 4)
    out = str(tmp_path / "out")
    return ["train", "--base", base, "--train", str(data), "--eval", str(data), "--output", out, "--epochs", "1", "--max-length", "8"]  # fmt: skip


def base_in_card(tmp_path: Path) -> str:
    return str(Card.from_yaml((tmp_path / "out" / "card.yaml").read_bytes()).data["base_model"]["id"])


# --- settings ---------------------------------------------------------------------------------------------------------


def test_train_takes_the_base_model_from_where_the_settings_map_it(home: Path, tmp_path: Path, bert: Path) -> None:
    map_base(home, bert)
    said = run(*training(tmp_path, ID))
    assert said.exit_code == 0, said.output
    assert base_in_card(tmp_path) == ID
    assert "--base-id" not in said.stderr


def test_a_folder_that_the_settings_map_is_called_by_its_id(home: Path, tmp_path: Path, bert: Path) -> None:
    map_base(home, bert)
    said = run(*training(tmp_path, str(bert)))
    assert said.exit_code == 0, said.output
    assert base_in_card(tmp_path) == ID
    assert "--base-id" not in said.stderr


def test_a_folder_that_nothing_maps_is_called_by_its_name(tmp_path: Path, bert: Path) -> None:
    said = run(*training(tmp_path, str(bert)))
    assert base_in_card(tmp_path) == "tiny"
    assert "--base-id" in said.stderr


def test_inspect_takes_a_model_from_where_the_settings_map_it(home: Path) -> None:
    map_base(home, GOLDEN / "bases" / "bert")
    assert "2 blocks" in run("inspect", ID).stdout


def test_a_mapping_to_nowhere_is_named(home: Path, tmp_path: Path) -> None:
    map_base(home, tmp_path / "nowhere")
    for argv in (["inspect", ID], training(tmp_path, ID)):
        said = run(*argv)
        assert said.exit_code == 5
        assert f"base_models maps {ID} to a folder that is not there" in said.stderr
        assert "config.toml" in said.stderr


# --- offline ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A Hub that has nothing, and what it was asked for."""
    from huggingface_hub import constants

    paths: list[str] = []

    class Nothing(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            paths.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Nothing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    yield paths
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("command", ["train", "inspect", "predict"])
def test_offline_asks_no_hub_for_a_base_model(
    command: str, asked: list[str], home: Path, tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = {"train": training(tmp_path, ID), "inspect": ["inspect", ID]}.get(command)
    if argv is None:
        map_base(home, bert)
        assert run(*training(tmp_path, ID)).exit_code == 0
        (home / "config" / "config.toml").unlink()
        argv = ["predict", str(tmp_path / "out"), "a good film"]
    assert run(*argv).exit_code == 5
    assert any(ID in path for path in asked)  # else the rest would say nothing
    asked.clear()
    monkeypatch.setenv("ADAPTERGIT_OFFLINE", "1")
    said = run(*argv)
    assert said.exit_code == 5
    assert asked == []
    assert "it is not on this machine, and offline was asked for" in said.stderr
    assert "[base_models]" in said.stderr


# --- no network -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["train", "inspect"])
def test_a_hub_that_does_not_answer_is_one_error(
    command: str, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)  # between its tries
    theirs, told = logging.getLogger("huggingface_hub"), io.StringIO()
    theirs.setLevel(logging.WARNING)
    handler = logging.StreamHandler(told)
    theirs.addHandler(handler)
    try:
        said = run(*{"train": training(tmp_path, ID), "inspect": ["inspect", ID]}[command])
    finally:
        theirs.removeHandler(handler)
    assert said.exit_code == 5
    assert told.getvalue() == ""
    assert "couldn't connect to 'http://127.0.0.1:9'" in said.stderr
    hint = said.stderr.splitlines()[-1]
    assert "hint: look at the network" in hint
    assert "[base_models]" in hint


def test_an_id_without_its_organisation_is_recognised(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "config").mkdir(exist_ok=True)
    (home / "config" / "config.toml").write_text('[base_models]\n"acme/tiny" = "/models/tiny"\n')
    monkeypatch.setenv("ADAPTERGIT_OFFLINE", "1")
    for name, hint in (
        ("tiny", "did you mean 'acme/tiny'?"),
        ("acme/tny", "did you mean 'acme/tiny'? If not, load it"),
    ):
        said = run("inspect", name)
        assert said.exit_code == 5
        assert f"hint: {hint}" in said.stderr


def test_a_saved_adapter_names_the_base_model_as_the_settings_call_its_folder(home: Path, tmp_path: Path) -> None:
    tiny_model("bert").save_pretrained(tmp_path / "model")
    base = transformers.AutoModel.from_pretrained(tmp_path / "model")
    adaptergit.adapters(base).add("a", "seq_bn")
    adaptergit.adapters(base).save("a", tmp_path / "before", license="MIT")
    (home / "config").mkdir(exist_ok=True)
    (home / "config" / "config.toml").write_text(f'[base_models]\n"acme/tiny" = "{(tmp_path / "model").as_posix()}"\n')
    adaptergit.adapters(base).save("a", tmp_path / "after", license="MIT")
    named = [read_card(tmp_path / name).base_model.id for name in ("before", "after")]
    assert named == ["model", "acme/tiny"]


def test_an_adapter_of_a_model_that_came_from_nowhere_names_its_type(tmp_path: Path) -> None:
    base = transformers.BertModel(tiny_model("bert").config.__class__(hidden_size=32, num_attention_heads=4))
    adaptergit.adapters(base).add("a", "seq_bn")
    adaptergit.adapters(base).save("a", tmp_path / "a", license="MIT")
    assert read_card(tmp_path / "a").base_model.id == "bert"
