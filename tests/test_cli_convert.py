"""``convert`` and ``export``: what people have becomes what others read, hostile files are refused, and nothing is left."""

from __future__ import annotations

import io
import json
import os
import pickle
import shlex
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from conftest import GOLDEN, Hub, snapshot, tiny_model
from safetensors.torch import load_file

import adaptergit
from adaptergit.cli import main
from adaptergit.errors import UsageError
from adaptergit.package import CARD
from adaptergit.publish import publish
from adaptergit.splice import ClassificationHead, adapters
from adaptergit.splice.methods import LoRA, TunedParameters, Union

IDS = torch.randint(5, 60, (2, 7), generator=torch.Generator().manual_seed(3))
CAUSAL = "AutoModelForCausalLM"


def run(*argv: object, code: int = 0) -> Result:
    done = CliRunner().invoke(main, [str(part) for part in argv])
    assert done.exit_code == code, done.output + repr(done.exception)
    return done


def made(base: str, config: str, auto: str = "AutoModel", labels: int = 0) -> Any:
    """A tiny model with an adapter "a" that does something."""
    model = tiny_model(base, auto)
    panel = adapters(model)
    panel.add("a", config)
    if labels:
        panel.add_head("a", ClassificationHead(num_labels=labels))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in panel.module("a").parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    panel.active = "a"
    return model


def answer(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS)[0]


@pytest.fixture
def lora(tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """PEFT's folder of a LoRA of a causal language model, with a README of its own, and what the model says with it."""
    model = made("llama", "lora[r=4, attn_matrices=['q', 'v']]", CAUSAL)
    folder = tmp_path / "peft"
    adaptergit.export(model, "a", folder, to="peft")
    (folder / "README.md").write_text("# Mine\n")
    return folder, answer(model)


@pytest.fixture
def bottleneck(tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """AdapterHub's folder of an adapter with a head."""
    model = made("bert", "seq_bn[reduction_factor=4]", labels=3)
    folder = tmp_path / "hub"
    adaptergit.export(model, "a", folder, to="adapterhub")
    return folder, answer(model)


def pickled(folder: Path, target: Path) -> Path:
    """The same checkpoint as older versions of the library wrote it."""
    target.mkdir()
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            (target / path.name).write_bytes(path.read_bytes())
    names = {"adapter": "pytorch_adapter.bin", "model_head": "pytorch_model_head.bin"}
    for stem, name in names.items():
        torch.save(load_file(folder / f"{stem}.safetensors"), target / name)
    return target


# --- there and back ---------------------------------------------------------------------------------------------------


def test_a_checkpoint_becomes_a_package_with_the_card_fields_that_were_given(
    bottleneck: tuple[Path, torch.Tensor], tmp_path: Path
) -> None:
    folder, wanted = bottleneck
    out = tmp_path / "ours"
    options = ("--license", "Apache-2.0", "--description", "Of a film.", "--name", "film", "--json")
    said = run("convert", folder, out, "--to", "adaptergit", "--base", GOLDEN / "bases" / "bert", *options)
    found = json.loads(said.stdout)
    assert found["adapters"] == found["heads"] == ["film"]
    assert found["files"] == {name: (out / name).stat().st_size for name in ("adapter.safetensors", CARD)}
    assert found["next"] == f"adaptergit publish {out} --version 1.0.0"
    card = json.loads(run("info", out, "--json").stdout)["card"]
    assert (card["name"], card["license"], card["description"]) == ("film", "Apache-2.0", "Of a film.")
    assert torch.equal(answer(adaptergit.load(out, tiny_model("bert"))), wanted)


def test_a_head_is_left_out_where_peft_has_none(tmp_path: Path) -> None:
    model = made("bert", "lora[r=4]", labels=3)
    adapters(model).save("a", tmp_path / "ours", license="MIT")
    options = (tmp_path / "ours", tmp_path / "theirs", "--to", "peft", "--base", GOLDEN / "bases" / "bert")
    refused = CliRunner().invoke(main, ["convert", *map(str, options)])
    assert refused.exit_code != 0
    assert "--no-head" in refused.output
    run("convert", *options, "--no-head")
    assert (tmp_path / "theirs" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("task", ["CAUSAL_LM", None])
def test_tokens_of_peft_become_a_package_for_the_class_that_it_was_used_with(tmp_path: Path, task: str | None) -> None:
    model = tiny_model("llama", CAUSAL)
    adapters(model).add("a", Union((LoRA(), TunedParameters((), {"model.embed_tokens": (5, 7)}))))
    adaptergit.export(model, "a", tmp_path / "theirs", to="peft")
    config = tmp_path / "theirs" / "adapter_config.json"
    more = {"task_type": task, "auto_mapping": {"base_model_class": "LlamaForCausalLM"}}
    config.write_text(json.dumps(json.loads(config.read_text()) | more))
    run("convert", tmp_path / "theirs", tmp_path / "ours", "--to", "adaptergit", "--base", GOLDEN / "bases" / "llama")
    assert adapters(adaptergit.load(tmp_path / "ours", tiny_model("llama", CAUSAL))).names == ["theirs"]


def test_a_package_with_a_copy_of_the_class_own_head_finds_its_class(tmp_path: Path) -> None:
    model = tiny_model("bert", "AutoModelForSequenceClassification")
    panel = adapters(model)
    panel.add("a", "seq_bn")
    panel.train("a")
    panel.save("a", tmp_path / "ours")
    argv = ("convert", tmp_path / "ours", tmp_path / "out", "--to", "adapterhub", "--base", GOLDEN / "bases" / "bert")
    assert "'static' cannot be written" in run(*argv, code=2).stderr  # and not: the model has no such head


def test_the_written_files_name_the_base_model_as_the_source_did(
    lora: tuple[Path, torch.Tensor], tmp_path: Path
) -> None:
    folder, _ = lora
    config = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": "acme/tiny-llama"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    base = GOLDEN / "bases" / "llama"
    run("convert", folder, tmp_path / "ours", "--to", "adaptergit", "--base", base, "--model-class", CAUSAL)
    card = json.loads(run("info", tmp_path / "ours", "--json").stdout)["card"]
    assert card["base_model"]["id"] == "acme/tiny-llama"
    run("convert", tmp_path / "ours", tmp_path / "again", "--to", "peft", "--base", base, "--model-class", CAUSAL)
    again = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert again["base_model_name_or_path"] == "acme/tiny-llama"


def test_the_base_model_is_found_where_the_settings_say(
    bottleneck: tuple[Path, torch.Tensor], tmp_path: Path, home: Path
) -> None:
    folder, _ = bottleneck
    config = json.loads((folder / "adapter_config.json").read_text()) | {"model_name": "acme/tiny-bert"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    argv = ("convert", folder, tmp_path / "ours", "--to", "adaptergit", "--offline")
    assert "[base_models]" in run(*argv, code=5).stderr
    (home / "config").mkdir()
    (home / "config" / "config.toml").write_text(f'[base_models]\n"acme/tiny-bert" = "{GOLDEN / "bases" / "bert"}"\n')
    run(*argv)
    assert json.loads(run("info", tmp_path / "ours", "--json").stdout)["card"]["base_model"]["id"] == "acme/tiny-bert"


def test_a_lora_goes_to_vllm_and_is_still_pefts(lora: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    folder, wanted = lora
    base = GOLDEN / "bases" / "llama"
    run("convert", folder, tmp_path / "ours", "--to", "adaptergit", "--base", base, "--model-class", CAUSAL)
    out = tmp_path / "for vllm"
    said = run("export", tmp_path / "ours", "--to", "vllm", out, "--base", base, "--name", "chat")
    line = said.stderr.splitlines()[-1].partition("next: ")[2]
    assert shlex.split(line) == [
        *("vllm", "serve", str(base), "--enable-lora", "--max-lora-rank", "8"),
        *("--lora-modules", f"chat={out}"),
    ]  # fmt: skip
    assert {path.name for path in out.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert torch.equal(answer(adaptergit.load(out, tiny_model("llama", CAUSAL))), wanted)


def test_what_vllm_would_not_compute_is_refused(tmp_path: Path) -> None:
    model = made("llama", "dora[r=4]", CAUSAL)
    adapters(model).save("a", tmp_path / "ours")
    argv = ("export", tmp_path / "ours", tmp_path / "a" / "b", "--to", "vllm", "--base", GOLDEN / "bases" / "llama")
    assert "without DoRA, gates or biases\n  hint: train with --adapter lora" in run(*argv, code=2).stderr
    panel = adapters(made("llama", "seq_bn", CAUSAL))
    with pytest.raises(UsageError, match="this is seq_bn\n  hint: train with --adapter lora; adaptergit predict runs"):
        adaptergit.export(panel.model, "a", tmp_path / "b", to="vllm")
    assert {path.name for path in tmp_path.iterdir()} == {"home", "ours"}


def test_ranks_that_only_some_layers_have_are_not_served(tmp_path: Path) -> None:
    """A fused layer has one for each part, and vLLM reads one for all layers."""
    for config, fits in (("lora[r=4]", True), ("lora[r=4, intermediate_lora=True]", False)):
        model, folder = made("gpt2", config, CAUSAL), tmp_path / str(fits)
        if fits:
            adaptergit.export(model, "a", folder, to="vllm")
        else:
            with pytest.raises(UsageError, match="rank or an alpha of their own"):
                adaptergit.export(model, "a", folder, to="vllm")
        assert folder.is_dir() == fits


# --- as they are ------------------------------------------------------------------------------------------------------


def published(hub: Hub, folder: Path, base: str, *options: object) -> str:
    """Describe a folder of others, publish it, and return the reference."""
    before = snapshot(folder)
    adaptergit.describe(folder, base=GOLDEN / "bases" / base, name="a", license="MIT")
    publish(folder, clone=hub.clone, key=hub.key.path, version="1.0.0")
    hub.trust()
    after = snapshot(folder)
    assert after.pop(CARD)
    assert after == before
    return f"{hub.url}@a"


def test_a_peft_folder_is_published_as_it_is_and_comes_back_to_the_byte(
    hub: Hub, lora: tuple[Path, torch.Tensor], tmp_path: Path
) -> None:
    folder, wanted = lora
    original = snapshot(folder)
    reference = published(hub, folder, "llama")
    assert torch.equal(answer(adaptergit.load(reference, tiny_model("llama", CAUSAL))), wanted)
    run("export", reference, tmp_path / "back", "--to", "peft")
    assert snapshot(tmp_path / "back") == original
    run("export", reference, tmp_path / "served", "--to", "vllm", "--base", GOLDEN / "bases" / "llama")
    assert torch.equal(answer(adaptergit.load(tmp_path / "served", tiny_model("llama", CAUSAL))), wanted)


def test_an_adapterhub_folder_is_published_as_it_is_and_comes_back_to_the_byte(
    hub: Hub, bottleneck: tuple[Path, torch.Tensor], tmp_path: Path
) -> None:
    folder, wanted = bottleneck
    original = snapshot(folder)
    reference = published(hub, folder, "bert")
    assert torch.equal(answer(adaptergit.load(reference, tiny_model("bert"))), wanted)
    run("export", reference, tmp_path / "back", "--to", "adapterhub")
    assert snapshot(tmp_path / "back") == original


def test_what_a_card_says_stays_said(lora: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    base = GOLDEN / "bases" / "llama"
    adaptergit.describe(
        lora[0], base=base, name="a", version="2.0.0", license="MIT", authors=["Ada"], task={"type": "text-generation"}
    )
    argv = ("convert", lora[0], tmp_path / "ours", "--to", "adaptergit", "--base", base, "--description", "Mine.")
    run(*argv, "--model-class", CAUSAL)
    card = json.loads(run("info", tmp_path / "ours", "--json").stdout)["card"]
    assert (card["name"], card["version"], card["license"], card["authors"]) == ("a", "2.0.0", "MIT", ["Ada"])
    assert (card["description"], card["task"]["type"], card["adapter"]["format"]) == (
        "Mine.", "text-generation", "adaptergit",
    )  # fmt: skip


def test_what_an_adapter_was_trained_on_top_of_stays_a_package_of_its_own(
    lora: tuple[Path, torch.Tensor], tmp_path: Path
) -> None:
    base = GOLDEN / "bases" / "llama"
    adaptergit.describe(lora[0], base=base, name="a", dependencies=[{"reference": "acme/adapters@language"}])
    out = tmp_path / "ours"
    run("convert", lora[0], out, "--to", "adaptergit", "--base", base, "--model-class", CAUSAL, "--offline")
    card = json.loads(run("info", out, "--json").stdout)["card"]
    assert card["dependencies"] == [{"reference": "acme/adapters@language"}]
    assert card["adapter"]["method"] == "lora"


def test_what_lies_in_the_working_folder_takes_no_references_place(
    bottleneck: tuple[Path, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "acme").mkdir()
    bottleneck[0].rename(tmp_path / "acme" / "adapters@sst2")
    monkeypatch.chdir(tmp_path)
    argv = ("acme/adapters@sst2", "out", "--to", "adapterhub")
    assert "not in the store" in run("convert", *argv, "--offline", code=5).stderr
    run("convert", f"./{argv[0]}", *argv[1:])
    with zipfile.ZipFile("a@b", "w") as archive:
        archive.writestr("x", "")
    assert "no checkpoints" in run("convert", "./a@b", "other", "--to", "peft", code=2).stderr


@pytest.mark.filterwarnings("always::adaptergit.errors.AdaptergitWarning")
@pytest.mark.parametrize("policy", ["enforce", "tofu", "unsigned"])
def test_a_release_is_verified_once_by_the_policy_that_was_asked_for(
    hub: Hub, bottleneck: tuple[Path, torch.Tensor], tmp_path: Path, policy: str
) -> None:
    reference = published(hub, bottleneck[0], "bert")
    argv = ("convert", reference, tmp_path / "out", "--to", "adaptergit", "--base", GOLDEN / "bases" / "bert")
    said = run(*argv, "--policy", policy).stderr
    assert said.count("warning: ") == (policy == "unsigned")
    assert torch.equal(answer(adaptergit.load(tmp_path / "out", tiny_model("bert"))), bottleneck[1])


def test_a_release_nobody_vouches_for_is_not_converted(
    hub: Hub, bottleneck: tuple[Path, torch.Tensor], tmp_path: Path
) -> None:
    adaptergit.describe(bottleneck[0], base=GOLDEN / "bases" / "bert", name="a")
    publish(bottleneck[0], clone=hub.clone, key=hub.key.path, version="1.0.0")
    run("export", f"{hub.url}@a", tmp_path / "out", "--to", "adapterhub", code=4)
    assert not (tmp_path / "out").exists()


# --- pickles and zip files --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_pickled_weights_are_read_only_when_that_was_asked_for(
    bottleneck: tuple[Path, torch.Tensor], tmp_path: Path
) -> None:
    old = pickled(bottleneck[0], tmp_path / "old")
    before = snapshot(old)
    argv = ("convert", old, tmp_path / "x" / "new", "--to", "adaptergit", "--base", GOLDEN / "bases" / "bert")
    said = run(*argv, code=3).stderr
    assert "pickle" in said
    assert "--allow-pickle" in said
    assert not (tmp_path / "x").exists()
    run(*argv, "--allow-pickle")
    assert torch.equal(answer(adaptergit.load(tmp_path / "x" / "new", tiny_model("bert"))), bottleneck[1])
    assert snapshot(old) == before


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, (f"touch {self.path}",))


def saved(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda mark: saved({"a": Touch(mark)}), "calls for posix.system"),
        (lambda mark: pickle.dumps(Touch(mark), protocol=2), "calls for posix.system"),
        (lambda mark: saved({"a": 1}), "more than tensors by name"),
        (lambda mark: b"", "cannot be made safetensors"),
        (lambda mark: saved({"a": torch.zeros(1).expand(10**6, 10**6)}), "memory"),
    ],
    ids=["code in a value", "code", "numbers", "empty", "a number said to be a huge matrix"],
)
def test_a_hostile_pickle_runs_nothing_and_leaves_nothing(
    make: Any, why: str, bottleneck: tuple[Path, torch.Tensor], tmp_path: Path
) -> None:
    mark = tmp_path / "it-ran"
    old = pickled(bottleneck[0], tmp_path / "old")
    (old / "pytorch_adapter.bin").write_bytes(make(mark))
    argv = ("convert", old, tmp_path / "new", "--to", "adaptergit", "--base", GOLDEN / "bases" / "bert")
    said = run(*argv, "--allow-pickle", code=3).stderr
    assert said.startswith(f"error: {old / 'pytorch_adapter.bin'}: the pickle cannot be made safetensors: ")
    assert why in said
    assert {path.name for path in tmp_path.iterdir()} == {"home", "hub", "old"}


@pytest.mark.slow
def test_modules_that_lie_in_the_working_folder_are_not_imported(
    bottleneck: tuple[Path, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = pickled(bottleneck[0], tmp_path / "old")
    for name in ("torch.py", "resource.py", "adaptergit.py"):
        (old / name).write_text(f"open({str(tmp_path / 'it-ran')!r}, 'w')\n")
    monkeypatch.chdir(old)
    out = tmp_path / "new"
    run("convert", ".", out, "--to", "adaptergit", "--allow-pickle", "--base", GOLDEN / "bases" / "bert")
    assert out.is_dir()
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.slow
def test_a_zip_file_as_adapterhub_served_it(bottleneck: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    old = pickled(bottleneck[0], tmp_path / "old")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in old.iterdir():
            archive.write(path, f"deep/er/{path.name}")
    argv = ("convert", tmp_path / "a.zip", tmp_path / "new", "--to", "adaptergit", "--allow-pickle")
    run(*argv, "--base", GOLDEN / "bases" / "bert")
    assert torch.equal(answer(adaptergit.load(tmp_path / "new", tiny_model("bert"))), bottleneck[1])


def zipped(path: Path, *entries: tuple[str, bytes]) -> bytes:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path.read_bytes()


def understated(data: bytes, size: int) -> bytes:
    """Say everywhere that a file of this size is one of ten bytes."""
    return data.replace(size.to_bytes(4, "little"), (10).to_bytes(4, "little"))


CONFIG = ("adapter_config.json", b"{}")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda p: zipped(p, CONFIG, ("../outside", b"x")), "outside of the archive"),
        (lambda p: zipped(p, CONFIG, ("a/../../outside", b"x")), "outside of the archive"),
        (lambda p: zipped(p, CONFIG, ("/tmp/outside-by-adaptergit", b"x")), "outside of the archive"),
        (lambda p: zipped(p, CONFIG, ("..\\outside", b"x")), "outside of the archive"),
        (lambda p: zipped(p, *((f"f{i}", b"") for i in range(1001))), "more than 1000 files"),
        (lambda p: zipped(p, CONFIG, CONFIG), "cannot be read"),
        (lambda p: zipped(p, ("a", b"x"), ("a/b", b"x")), "cannot be read"),
        (lambda p: understated(zipped(p, CONFIG, ("big", b"0" * 0x1234567)), 0x1234567), "cannot be read|larger than"),
        (lambda p: zipped(p, CONFIG)[:-30], "neither a folder nor a zip file"),
        (lambda p: zipped(p, ("readme", b"x")), "no checkpoints"),
        (lambda p: zipped(p, ("a/adapter_config.json", b"{}"), ("b/adapter_config.json", b"{}")), "2 checkpoints"),
        (lambda p: b"PK\x03\x04" + b"\0" * 100, "neither a folder nor a zip file"),
    ],
    ids=["up", "up and up", "absolute", "windows", "many", "twice", "a file and a folder", "a bomb", "cut", "other", "two", "no zip"],
)  # fmt: skip
def test_a_hostile_zip_file_is_refused(make: Any, why: str, tmp_path: Path) -> None:
    import re

    (tmp_path / "a.zip").write_bytes(make(tmp_path / "a.zip"))
    done = CliRunner().invoke(main, ["convert", str(tmp_path / "a.zip"), str(tmp_path / "new"), "--to", "peft"])
    assert done.exit_code in (2, 3), done.output
    assert re.search(why, done.stderr), done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"home", "a.zip"}
    assert not Path("/tmp/outside-by-adaptergit").exists()


def test_a_zip_file_that_would_fill_the_disk_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            with archive.open(f"f{number}", "w", force_zip64=True) as stream:
                for _ in range(64):
                    stream.write(bytes(1 << 20))
    # Three files, each said to be of 1 GiB: the sum is what counts.
    data = path.read_bytes().replace((64 << 20).to_bytes(8, "little"), (1 << 30).to_bytes(8, "little"))
    path.write_bytes(data.replace((64 << 20).to_bytes(4, "little"), (1 << 30).to_bytes(4, "little")))
    assert "2 GiB" in run("convert", path, tmp_path / "new", "--to", "peft", code=3).stderr


# --- wrong use --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "code", "why"),
    [
        (["nowhere", "out", "--to", "peft"], 5, "no such file"),
        ([".", "out", "--to", "peft"], 5, "neither a package nor a checkpoint"),
        (["acme/adapters@x", "out", "--to", "peft", "--offline"], 5, "offline"),
        (["hub", "out", "--to", "paft"], 2, "'paft'"),
        (["hub", "out", "--to", "adapterhub", "--license", "MIT"], 2, "no card"),
        (["hub", "hub", "--to", "adaptergit"], 2, "something already"),
        (["hub", "hub/adapter_config.json", "--to", "adaptergit"], 2, "something already"),
        (["hub", "out", "--to", "adaptergit", "--base", "BASE", "--license", "M I T"], 3, "SPDX"),
        (["hub", "out", "--to", "adaptergit", "--base", "BASE", "--model-class", "AutoNothing"], 2, "AutoNothing"),
        (["hub", "out", "--to", "adaptergit", "--base", "hub"], 5, "cannot be loaded"),
        (["hub", "out", "--to", "peft", "--base", "BASE"], 2, "no exact equivalent"),
        (["hub", "out", "--to", "vllm", "--base", "BASE"], 2, ""),
    ],
)
def test_wrong_use_is_one_clear_error_and_leaves_nothing(
    argv: list[str], code: int, why: str, bottleneck: tuple[Path, torch.Tensor], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    before = snapshot(bottleneck[0])
    said = run("convert", *(str(GOLDEN / "bases" / "bert") if one == "BASE" else one for one in argv), code=code)
    assert "rror: " in said.stderr
    assert why in said.stderr
    assert "Traceback" not in said.output
    assert {path.name for path in tmp_path.iterdir()} == {"home", "hub"}
    assert snapshot(bottleneck[0]) == before
