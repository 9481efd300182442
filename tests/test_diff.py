"""``diff`` and ``summary``: what differs between two adapters, and what one is, without a base model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from conftest import GOLDEN, Hub, card_data, tiny_model
from hf_server import served
from safetensors.torch import load_file, save_file

import adaptergit
from adaptergit.cli import main
from adaptergit.errors import NotFoundError, PackageError, UsageError
from adaptergit.package import Card
from adaptergit.package.editing import edit_card
from adaptergit.publish import publish
from adaptergit.splice import ClassificationHead, adapters
from adaptergit.summary import ModelSummary, PackageSummary


def run(*argv: object, code: int = 0) -> Result:
    done = CliRunner().invoke(main, [str(part) for part in argv])
    assert done.exit_code == code, done.output + repr(done.exception)
    return done


def package(folder: Path, tensors: dict[str, torch.Tensor], **changes: Any) -> Path:
    folder.mkdir()
    (folder / "card.yaml").write_bytes(Card(card_data(**changes)).to_yaml())
    save_file(tensors, folder / "adapter.safetensors")
    return folder


A = {"blocks.0.ffn.down.weight": torch.tensor([[1.0, -2.0], [3.0, 0.0]]), "blocks.0.ffn.down.bias": torch.zeros(2)}


def states(found: Any) -> dict[str, str]:
    return {one.name: one.state for one in found.tensors}


# --- diff -------------------------------------------------------------------------------------------------------------


def test_an_adapter_is_the_same_as_its_copy(tmp_path: Path) -> None:
    a, b = package(tmp_path / "a", A), package(tmp_path / "b", A)
    found = adaptergit.diff(a, b)
    assert found.same
    assert set(states(found).values()) == {"equal"}
    assert run("diff", a, b, "--exit-code").stdout == "the same: 2 tensors, configuration, card and scores\n"


def test_a_changed_value_is_measured(tmp_path: Path) -> None:
    changed = A["blocks.0.ffn.down.weight"] + torch.tensor([[0.0, 0.5], [-1.0, 0.0]])
    b = package(tmp_path / "b", {**A, "blocks.0.ffn.down.weight": changed})
    found = adaptergit.diff(package(tmp_path / "a", A), b)
    assert not found.same
    (one,) = [one for one in found.tensors if one.state != "equal"]
    assert (one.name, one.state, one.a) == ("blocks.0.ffn.down.weight", "changed", "F32 [2, 2]")
    assert one.max_difference == 1.0
    assert one.relative == pytest.approx((1.25 / 14) ** 0.5)


@pytest.mark.parametrize(
    ("other", "state", "most"),
    [
        (torch.tensor([[1.0, -2.0], [3.0, 0.0]], dtype=torch.float16), "dtype", 0.0),
        (torch.tensor([[1.0, -2.0], [3.5, 0.0]], dtype=torch.bfloat16), "dtype", 0.5),
        (torch.tensor([[1.0, -2.0, 3.0, 0.0]]), "shape", None),
        (torch.tensor([[1.0, -2.0], [float("nan"), 0.0]]), "changed", None),
        (torch.tensor([[1.0, -2.0], [float("inf"), 0.0]]), "changed", None),
        (torch.tensor([[1, -2], [3, 4]], dtype=torch.int64), "dtype", 4.0),
        (torch.tensor([[1.0, -2.0], [3.0, -0.0]]), "changed", 0.0),
    ],
    ids=["half", "bf16", "shape", "nan", "inf", "int", "minus zero"],
)
def test_every_kind_of_difference(tmp_path: Path, other: torch.Tensor, state: str, most: float | None) -> None:
    name = "blocks.0.ffn.down.weight"
    a, b = package(tmp_path / "a", A), package(tmp_path / "b", {**A, name: other})
    (one,) = [one for one in adaptergit.diff(a, b).tensors if one.name == name]
    assert (one.state, one.max_difference) == (state, most)
    found = json.loads(run("diff", a, b, "--json").stdout, parse_constant=lambda text: pytest.fail(text))
    assert found["same"] is False
    assert run("diff", a, b, "--exit-code", code=1).stdout.count(name) == 1


@pytest.mark.parametrize(
    "value", [torch.tensor([float("nan")]), torch.zeros(0), torch.tensor(3.0), torch.zeros(1) + 1j]
)
def test_odd_tensors_equal_themselves(tmp_path: Path, value: torch.Tensor) -> None:
    assert adaptergit.diff(package(tmp_path / "a", {"x": value}), package(tmp_path / "b", {"x": value.clone()})).same


@pytest.mark.skipif(not hasattr(torch, "float4_e2m1fn_x2"), reason="torch has no such numbers")
def test_numbers_that_torch_cannot_compute_with_are_compared_by_their_bits(tmp_path: Path) -> None:
    a, b = (torch.tensor([1, last], dtype=torch.uint8).view(torch.float4_e2m1fn_x2) for last in (2, 3))
    left = package(tmp_path / "a", {"x": a})
    (one,) = adaptergit.diff(left, package(tmp_path / "b", {"x": b})).tensors
    assert (one.state, one.max_difference, one.relative) == ("changed", None, None)
    assert adaptergit.diff(left, left).same


def test_numbers_that_nobody_reads_are_refused(tmp_path: Path) -> None:
    header = json.dumps({"x": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}).encode()
    one = package(tmp_path / "a", A)
    (one / "adapter.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(3))
    with pytest.raises(PackageError, match="not a valid safetensors file"):
        adaptergit.diff(one, one)


def test_tensors_that_only_one_has(tmp_path: Path) -> None:
    a = package(tmp_path / "a", {**A, "old": torch.zeros(1)})
    b = package(tmp_path / "b", {**A, "new": torch.zeros(3)})
    found = states(adaptergit.diff(a, b))
    assert (found["old"], found["new"]) == ("only_a", "only_b")
    text = run("diff", a, b).stdout
    assert "tensors: 2 equal, 1 only in A, 1 only in B" in text
    assert "- old" in text
    assert "+ new" in text


def test_a_number_is_the_same_however_it_is_written(tmp_path: Path) -> None:
    def with_config(name: str, **config: object) -> Path:
        return package(tmp_path / name, A, adapter={"format": "adaptergit", "method": "seq_bn", "config": config})

    a, b = (with_config(name, reduction_factor=value, ln_before=True) for name, value in (("a", 16), ("b", 16.0)))
    assert adaptergit.diff(a, b).config == ()
    c = with_config("c", reduction_factor=16, ln_before=1)  # which is no yes
    assert [one.field for one in adaptergit.diff(a, c).config] == ["ln_before"]


def test_configuration_card_and_scores_are_told_apart(tmp_path: Path) -> None:
    score = {"dataset": "sst2", "split": "dev", "metric": "accuracy", "value": 0.9}
    a = package(tmp_path / "a", A, evaluation=[score], keywords=["x"])
    b = package(
        tmp_path / "b", A, version="1.1.0", evaluation=[{**score, "value": 0.92}, {**score, "metric": "f1"}],
        adapter={"format": "adaptergit", "method": "seq_bn", "config": {"reduction_factor": 8}},
    )  # fmt: skip
    found = adaptergit.diff(a, b)
    assert {(one.field, one.a, one.b) for one in found.config} == {("reduction_factor", None, 8)}
    assert [(one.field, one.a, one.b) for one in found.card] == [
        ("version", "1.0.0", "1.1.0"),
        ("keywords", ["x"], None),
    ]
    assert {one.field: one.b for one in found.scores} == {"accuracy on sst2 (dev)": 0.92, "f1 on sst2 (dev)": 0.9}
    text = run("diff", a, b).stdout
    assert "~ accuracy on sst2 (dev): 0.9 -> 0.92 (+0.02)" in text
    assert "~ version: 1.0.0 -> 1.1.0" in text


def test_two_releases_are_compared_whoever_signed_them(hub: Hub, tmp_path: Path) -> None:
    folder = package(tmp_path / "out", A)
    publish(folder, clone=hub.clone, key=hub.key.path)
    edit_card(folder, ["description=Better."])
    publish(folder, clone=hub.clone, key=hub.key.path, version="1.1.0")
    a, b = f"{hub.url}@sst2==1.0.0", f"{hub.url}@sst2==1.1.0"
    found = json.loads(run("diff", a, b, "--json").stdout)
    assert {one["field"] for one in found["card"]} == {"description", "version"}
    run("diff", a, b, "--policy", "enforce", code=4)
    assert adaptergit.diff(b, folder).card[0].field == "version"


def test_what_is_on_the_hub_is_compared_and_summed_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = tiny_model("bert")
    adapters(model).add("a", "seq_bn")
    adaptergit.export(model, "a", tmp_path / "a", to="adapterhub")
    with served(monkeypatch, tmp_path / "hf") as server:
        server.create("acme/x", {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()})
        assert adaptergit.diff("hf:acme/x", tmp_path / "a").same
        found = adaptergit.summary("hf:acme/x")
        assert isinstance(found, PackageSummary)
        assert found.placement == {"output": (0, 1)}
        assert len(found.digest or "") == 64
        run("summary", "hf:acme/x", "--policy", "enforce", code=4)
        with pytest.raises(UsageError, match="not for what is on the Hub"):
            adaptergit.summary("hf:acme/x", lock="adaptergit.lock")


def test_checkpoints_of_others_are_compared_by_their_own_names(tmp_path: Path) -> None:
    model = tiny_model("bert")
    panel = adapters(model)
    panel.add("a", "seq_bn")
    panel.add_head("a", ClassificationHead(num_labels=2))
    adaptergit.export(model, "a", tmp_path / "a", to="adapterhub")
    with torch.no_grad():
        next(panel.module("a").parameters()).add_(1)
    adaptergit.export(model, "a", tmp_path / "b", to="adapterhub")
    found = adaptergit.diff(tmp_path / "a", tmp_path / "b")
    assert [one.state for one in found.tensors].count("changed") == 1
    assert (found.config, found.card, found.scores) == ((), (), ())
    panel.add("l", "lora")
    adaptergit.export(model, "l", tmp_path / "l", to="peft")
    assert {one.field for one in adaptergit.diff(tmp_path / "a", tmp_path / "l").config} > {"peft_type", "model_name"}
    told = CliRunner().invoke(main, ["diff", str(tmp_path / "a"), str(tmp_path / "l")]).stdout
    assert "the formats differ, so no names are alike: convert adapterhub to peft first" in told


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_weights_are_read_one_pair_at_a_time(tmp_path: Path) -> None:
    """Two files of 96 MiB are compared by a process that may map them, and allocate half as much besides."""
    generator = torch.Generator().manual_seed(0)
    for side in "ab":
        package(tmp_path / side, {f"t{i}": torch.rand(1 << 20, generator=generator) for i in range(24)})
    script = (
        "import re, resource, sys, torch, adaptergit; from adaptergit.diff import diff\n"
        "torch.set_num_threads(1)\n"  # each has a stack, which would count
        "diff(sys.argv[3], sys.argv[3])\n"  # what is loaded once, is
        "has = int(re.search(r'VmData:\\s+(\\d+)', open('/proc/self/status').read())[1]) << 10\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (has + (288 << 20), has + (288 << 20)))\n"
        "found = diff(sys.argv[1], sys.argv[2]); assert not found.same"
    )
    small = package(tmp_path / "small", A)
    argv = [sys.executable, "-c", script, str(tmp_path / "a"), str(tmp_path / "b"), str(small)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda p: (p / "adapter.safetensors").write_bytes(b"no"), PackageError),
        (lambda p: (p / "adapter.safetensors").write_bytes(b"\xff" * 100), PackageError),
        (lambda p: (p / "adapter.safetensors").unlink(), NotFoundError),
        (lambda p: (p / "card.yaml").unlink(), NotFoundError),
        (lambda p: (p / "card.yaml").write_text("name: x"), PackageError),
        (lambda p: (p / "adapter_config.json").write_text("{"), PackageError),
        (lambda p: (p / "adapter_config.json").write_text("[]"), PackageError),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path: Path, spoil: Any, error: type[Exception]) -> None:
    a, b = package(tmp_path / "a", A), package(tmp_path / "b", A)
    spoil(b)
    for pair in ((a, b), (b, a)):
        with pytest.raises(error) as caught:
            adaptergit.diff(*pair)
        assert str(b) in str(caught.value)
    with pytest.raises(error):
        adaptergit.summary(b)
    with pytest.raises(NotFoundError):
        adaptergit.diff(a, tmp_path / "nowhere")


def test_pickled_weights_are_not_read_but_explained(tmp_path: Path) -> None:
    folder = package(tmp_path / "a", A)
    (folder / "card.yaml").unlink()
    (folder / "adapter.safetensors").rename(folder / "pytorch_adapter.bin")
    (folder / "adapter_config.json").write_text("{}")
    assert "--allow-pickle" in run("summary", folder, code=5).stderr


def test_what_differs_cannot_drive_the_terminal(tmp_path: Path) -> None:
    a = package(tmp_path / "a", A, description="\x1b[2Ja\nb")
    b = package(tmp_path / "b", {"x\x1b[2J": torch.zeros(1)})
    assert "\x1b" not in run("diff", a, b).stdout + run("summary", b).stdout


# --- summary ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def model() -> Any:
    model = tiny_model("bert")
    panel = adapters(model)
    panel.add("bn", "seq_bn[reduction_factor=4]")
    panel.add("lo", "lora[r=4]")
    panel.add_head("bn", ClassificationHead(num_labels=2, labels=("neg", "pos")))
    return model


def test_a_package_is_summed_up(model: Any, tmp_path: Path, home: Path) -> None:
    adapters(model).save("bn", tmp_path / "bn", license="MIT")
    found = adaptergit.summary(tmp_path / "bn")
    assert isinstance(found, PackageSummary)
    panel = adapters(model)
    assert found.parameters == found.parts["adapter"] == panel.parameters_of("bn")
    assert found.parts["head"] == sum(p.numel() for p in panel.head_module("bn").parameters())
    assert found.placement == {"ffn": (0, 1)}
    assert (found.method, found.format, found.head, found.labels) == (
        "seq_bn", "adaptergit", "classification", ("neg", "pos"),
    )  # fmt: skip
    assert found.bytes == sum(path.stat().st_size for path in (tmp_path / "bn").iterdir())
    assert found.base_parameters is None
    (home / "config").mkdir()
    (home / "config" / "config.toml").write_text(f'[base_models]\nbert = "{GOLDEN / "bases" / "bert"}"\n')
    assert found != (mapped := adaptergit.summary(tmp_path / "bn"))
    assert isinstance(mapped, PackageSummary)
    assert mapped.base_parameters == sum(t.numel() for t in load_file(GOLDEN / "bases/bert/model.safetensors").values())
    text = run("summary", tmp_path / "bn").stdout
    assert "acts at      blocks 0-1: ffn" in text
    assert "% of it" in text
    assert json.loads(run("summary", tmp_path / "bn", "--json").stdout)["placement"] == {"ffn": [0, 1]}


@pytest.mark.parametrize(
    ("base", "config", "to", "where"),
    [
        ("bert", "lora[r=4]", None, {"attention.q": (0, 1), "attention.v": (0, 1)}),
        ("bert", "seq_bn[leave_out=[0]]", None, {"ffn": (1,)}),
        ("bert", "compacter[reduction_factor=4]", None, {"attention": (0, 1), "ffn": (0, 1), "shared": ()}),
        ("bert", "lora[r=4, attn_matrices=[], output_lora=True, intermediate_lora=True]", None, {"ffn.down": (0, 1), "ffn.up": (0, 1)}),
        ("bert", "seq_bn_inv[reduction_factor=4]", None, {"embedding": (), "ffn": (0, 1)}),
        ("bert", "seq_bn|lora[r=4]", None, {"ffn": (0, 1), "attention.q": (0, 1), "attention.v": (0, 1)}),
        ("llama", "lora[r=4]", "peft", {"self_attn.q_proj": (0, 1), "self_attn.v_proj": (0, 1)}),
        ("gpt2", "seq_bn[reduction_factor=4]", "adapterhub", {"output_adapters": (0, 1)}),
    ],
)  # fmt: skip
def test_where_an_adapter_acts(base: str, config: str, to: str | None, where: Any, tmp_path: Path) -> None:
    model = tiny_model(base)
    panel = adapters(model)
    panel.add("a", config)
    if to is None:
        panel.save("a", tmp_path / "a")
        in_model = adaptergit.summary(model)
        assert isinstance(in_model, ModelSummary)
        if "shared" not in where:
            assert in_model.adapters[0].placement == where
    else:
        adaptergit.export(model, "a", tmp_path / "a", to=to)
    found = adaptergit.summary(tmp_path / "a")
    assert isinstance(found, PackageSummary)
    assert found.placement == where
    assert found.parameters == panel.parameters_of("a")


def test_folders_of_others_that_hold_no_adapter_or_several(model: Any, tmp_path: Path) -> None:
    panel = adapters(model)
    panel.active = "Stack(lo, bn)"  # with the head of bn
    panel.save_setup(tmp_path / "ours", name="both")
    adaptergit.convert(tmp_path / "ours", tmp_path / "theirs", to="adapterhub", base=tiny_model("bert"))
    ours, theirs = adaptergit.summary(tmp_path / "ours"), adaptergit.summary(tmp_path / "theirs")
    assert isinstance(ours, PackageSummary)
    assert isinstance(theirs, PackageSummary)
    assert (ours.method, theirs.method) == ("setup", "setup")
    assert ours.parts == theirs.parts
    assert ours.placement == {"attention.q": (0, 1), "attention.v": (0, 1), "ffn": (0, 1)}
    for path in tmp_path.glob("theirs/*/adapter*"):
        path.unlink()
    (head,) = (path.parent for path in tmp_path.glob("theirs/**/head_config.json"))
    found = adaptergit.summary(head)
    assert isinstance(found, PackageSummary)
    assert (found.method, found.parts) == ("head", {"head": ours.parts["head"]})


def test_a_model_is_summed_up(model: Any, tmp_path: Path) -> None:
    panel = adapters(model)
    panel.save("bn", tmp_path / "bn")
    adaptergit.load(tmp_path / "bn", model, name="loaded")
    panel.train("bn")
    panel.merge("lo")
    found = adaptergit.summary(model)
    assert isinstance(found, ModelSummary)
    assert found == adaptergit.summary(panel)
    by_name = {one.name: one for one in found.adapters}
    assert (by_name["bn"].active, by_name["bn"].training, by_name["lo"].merged) == (True, True, True)
    assert by_name["loaded"].source == f"bn 0.1.0, {tmp_path / 'bn'}"
    assert found.active == "bn" == found.active_head
    assert found.base_parameters == sum(p.numel() for p in tiny_model("bert").parameters())
    assert found.trainable == panel.parameters_of("bn") + found.heads["bn"]
    assert found.parameters == sum(p.numel() for p in model.parameters()) > found.base_parameters
    text = str(found)
    assert f"({100 * found.trainable / found.parameters:.2f} % of all)" in text
    assert "bn: seq_bn, " in text
    assert "active training" in text
    assert "blocks 0-1: ffn" in text


def test_a_plain_model_stays_plain() -> None:
    model = tiny_model("bert")
    found = adaptergit.summary(model)
    assert isinstance(found, ModelSummary)
    assert found.adapters == ()
    assert not hasattr(model, "adaptergit")
    assert "no adapter" in str(found)
    with pytest.raises(UsageError, match="neither a reference nor a model"):
        adaptergit.summary(3)  # type: ignore[arg-type]


def test_a_release_is_summed_up_with_its_digest(hub: Hub, tmp_path: Path) -> None:
    done = publish(package(tmp_path / "out", A), clone=hub.clone, key=hub.key.path)
    assert f"sha256:{done.digest}" in run("summary", f"{hub.url}@sst2").stdout


def test_a_base_model_is_not_an_adapter() -> None:
    assert "adaptergit inspect" in run("summary", GOLDEN / "bases" / "bert", code=5).stderr


def test_summary_starts_no_torch(tmp_path: Path) -> None:
    folder = package(tmp_path / "out", A)
    script = (
        f"import sys; sys.argv = ['adaptergit', 'summary', {str(folder)!r}]\nfrom adaptergit.cli import main\n"
        "try: main()\nfinally: assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
