"""Every task: from its own kind of file to a package whose numbers ``evaluate`` reproduces."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from test_training import BASE, needs_model

import adaptergit
from adaptergit.errors import AdaptergitError, AdaptergitWarning, DataError, UsageError
from adaptergit.training import TASKS, Metrics, TrainResult, TrainSpec, measures, read_rows, train
from adaptergit.training.measures import measured

GOOD, BAD = ("good", "great", "superb", "lovely"), ("bad", "awful", "dull", "boring")


def json_lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(task: str, tmp_path: Path, files: tuple[Path, Path], base: str = BASE, **options: Any) -> TrainResult:
    chosen: dict[str, Any] = {"epochs": 6, "learning_rate": 3e-3, "batch_size": 8, "max_length": 24, **options}
    spec = TrainSpec(base=base, task=task, train=files[0], eval=files[1], output=tmp_path / "out", **chosen)
    result = train(spec)
    assert result.losses[-1] < result.losses[0]
    return result


def halves(tmp_path: Path, rows: Sequence[dict[str, Any]]) -> tuple[Path, Path]:
    cut = len(rows) * 3 // 4
    return json_lines(tmp_path / "train.jsonl", rows[:cut]), json_lines(tmp_path / "eval.jsonl", rows[cut:])


def reproduced(tmp_path: Path, file: Path, base: str = BASE) -> bool | None:
    return adaptergit.evaluate(tmp_path / "out", file, base=base).reproduced


@pytest.mark.slow
@needs_model
def test_several_labels_for_a_text(tmp_path: Path) -> None:
    draw = random.Random(0)
    kinds = [(draw.random() < 0.5, draw.random() < 0.5) for _ in range(64)]
    rows = [
        {"text": f"{draw.choice(GOOD) if nice else ''} {draw.choice(BAD) if nasty else ''} film", "label": [label for label, there in (("nice", nice), ("nasty", nasty)) if there]}
        for nice, nasty in kinds
    ]  # fmt: skip
    files = halves(tmp_path, rows)
    result = run("multi-label-classification", tmp_path, files)
    assert result.metrics.f1_micro > 0.8
    assert result.labels == ("nasty", "nice")
    assert reproduced(tmp_path, files[1])


@pytest.mark.slow
@needs_model
def test_a_number_for_a_text(tmp_path: Path) -> None:
    draw = random.Random(0)
    counts = [draw.randint(0, 5) for _ in range(64)]
    files = halves(tmp_path, [{"text": " ".join(["good"] * n + ["bad"] * (5 - n)), "label": n / 5} for n in counts])
    result = run("text-regression", tmp_path, files)
    assert result.metrics.pearson > 0.8
    assert result.metrics.main == "pearson"
    assert reproduced(tmp_path, files[1])


@pytest.mark.slow
@needs_model
def test_pairs_of_texts(tmp_path: Path) -> None:
    draw = random.Random(0)
    words = ("cat", "dog", "sun", "car")
    pairs = [(draw.choice(words), draw.choice(words)) for _ in range(24)] + [(w, w) for w in words] * 6
    draw.shuffle(pairs)
    rows = [{"a": a, "b": b, "same": "yes" if a == b else "no"} for a, b in pairs]
    files = halves(tmp_path, rows)
    columns = {"text": "a", "pair": "b", "label": "same"}
    result = run("text-classification", tmp_path, files, columns=columns, epochs=4)
    assert set(result.labels) == {"yes", "no"}
    assert reproduced(tmp_path, files[1]), "the card knows the columns"


CITIES, NAMES = ("London", "Paris", "Rome"), ("Alice", "Bob", "Carol", "Dave")


@pytest.mark.slow
@needs_model
@pytest.mark.parametrize("suffix", ["jsonl", "conll", "conllu"])
def test_tags_of_words(tmp_path: Path, suffix: str) -> None:
    draw = random.Random(0)
    sentences = [
        (["mr", draw.choice(NAMES), "lives", "in", draw.choice(CITIES)], ["O", "B-PER", "O", "O", "B-LOC"]) for _ in range(48)
    ]  # fmt: skip
    files = (tmp_path / f"train.{suffix}", tmp_path / f"eval.{suffix}")
    for file, part in zip(files, (sentences[:36], sentences[36:]), strict=True):
        if suffix == "jsonl":
            json_lines(file, [{"tokens": tokens, "tags": tags} for tokens, tags in part])
        elif suffix == "conll":
            file.write_text(
                "-DOCSTART- O\n\n" + "\n\n".join("\n".join(map(" ".join, zip(*one, strict=True))) for one in part)
            )
        else:
            lines = [
                "\n".join(f"{i}\t{w}\t_\t{t}\t_\t_\t0\t_\t_\t_" for i, (w, t) in enumerate(zip(*one, strict=True), 1))
                for one in part
            ]
            file.write_text("# text = …\n1-2\tof\t_\t_\t_\t_\t_\t_\t_\t_\n" + "\n\n".join(lines) + "\n")
    # Six tokens: every sentence comes in pieces, and no word is lost.
    columns = {"label": "upos"} if suffix == "conllu" else {}
    result = run("token-classification", tmp_path, files, max_length=6, epochs=8, columns=columns)
    assert result.metrics.f1 > 0.8
    assert set(result.metrics.values) == {"f1", "precision", "recall", "accuracy"}
    assert all(len(tags) == 5 for tags in result.answers)
    assert reproduced(tmp_path, files[1])


@needs_model
@pytest.mark.slow
def test_answers_in_texts_that_come_in_pieces(tmp_path: Path) -> None:
    draw = random.Random(0)
    questions = []
    for number in range(64):
        name, city = draw.choice(NAMES), draw.choice(CITIES)
        context = "It rains a lot there. " * (number % 4) + f"{name} lives in {city} with a cat."
        answer = {"text": city, "answer_start": context.index(city)}
        questions.append((context, {"id": str(number), "question": f"Where does {name} live?", "answers": [answer]}))
    files = (tmp_path / "train.json", tmp_path / "eval.json")
    for file, part in zip(files, (questions[:48], questions[48:]), strict=True):
        paragraphs = [{"context": context, "qas": [question]} for context, question in part]
        file.write_text(json.dumps({"data": [{"title": "x", "paragraphs": paragraphs}]}))
    result = run("question-answering", tmp_path, files, epochs=6, max_length=32)
    assert result.metrics.f1 > 0.8
    assert result.metrics.main == "f1"
    assert all(isinstance(answer, str) for answer in result.answers)
    assert reproduced(tmp_path, files[1])


@pytest.mark.slow
@needs_model
def test_one_of_several_choices(tmp_path: Path) -> None:
    draw = random.Random(0)
    drawn = [draw.choice([(word, 0) for word in GOOD] + [(word, 1) for word in BAD]) for _ in range(48)]
    rows = [
        {"text": f"it was {word}", "choices": ["i liked it", "i hated it"], "label": label} for word, label in drawn
    ]
    files = halves(tmp_path, rows)
    result = run("multiple-choice", tmp_path, files, epochs=8)
    assert result.metrics.accuracy > 0.7
    assert reproduced(tmp_path, files[1])


@pytest.mark.slow
@needs_model
def test_a_language_adapter_of_a_base_without_output_layer(tmp_path: Path) -> None:
    """MiniLM has none: one is trained along, scored with, and left behind, and the card claims nothing of it."""
    draw = random.Random(0)
    lines = [f"the {draw.choice(GOOD)} film was {draw.choice(GOOD)}" for _ in range(120)]
    files = (tmp_path / "train.txt", tmp_path / "eval.txt")
    files[0].write_text("\n".join(lines[:90]))
    files[1].write_text("\n".join(lines[90:]))
    result = run("fill-mask", tmp_path, files, adapter="seq_bn_inv", epochs=3)
    assert 1 < result.metrics.perplexity < 30522
    assert result.notes
    model = adaptergit.load(tmp_path / "out", transformers.AutoModel.from_pretrained(BASE))
    assert not adaptergit.adapters(model).heads
    assert "evaluation" not in adaptergit.adapters(model).about("out").card.data
    with pytest.warns(AdaptergitWarning, match="no output layer for fill-mask"):
        assert reproduced(tmp_path, files[1]) is None


# --- bases made here -------------------------------------------------------------------------------------------------


def tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = ["[PAD]", "[UNK]", "[EOS]", *GOOD, *BAD, "the", "film", "was", "is", "a"]
    core = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = Whitespace()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="[UNK]", pad_token="[PAD]", eos_token="[EOS]"
    )
    made.save_pretrained(folder)
    return made


def made_base(folder: Path, config: Any, auto: str) -> str:
    torch.manual_seed(0)
    getattr(transformers, auto).from_config(config).save_pretrained(folder)
    return str(folder)


def texts(tmp_path: Path, rows: Sequence[dict[str, str]]) -> tuple[Path, Path]:
    return halves(tmp_path, rows)


def test_causal_language_models(tmp_path: Path) -> None:
    draw = random.Random(0)
    base = tmp_path / "base"
    size = len(tokenizer(base))
    config = transformers.GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    made_base(base, config, "AutoModelForCausalLM")
    files = texts(tmp_path, [{"text": f"the film was {draw.choice(GOOD)}"} for _ in range(80)])
    result = run("text-generation", tmp_path, files, str(base), learning_rate=1e-2, batch_size=2)
    assert result.metrics.perplexity < size
    assert not result.metrics.higher_is_better
    assert reproduced(tmp_path, files[1], str(base))


def test_masked_language_models_keep_their_output_layer(tmp_path: Path) -> None:
    draw = random.Random(0)
    base = tmp_path / "base"
    made = tokenizer(base)
    made.add_special_tokens({"mask_token": "[MASK]"})
    made.save_pretrained(base)
    config = transformers.BertConfig(
        vocab_size=len(made), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    made_base(base, config, "AutoModelForMaskedLM")
    files = texts(tmp_path, [{"text": f"the film was {draw.choice(GOOD)}"} for _ in range(80)])
    result = run("fill-mask", tmp_path, files, str(base), learning_rate=1e-2, batch_size=2)
    assert not result.notes
    assert reproduced(tmp_path, files[1], str(base))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_texts_become_texts(tmp_path: Path) -> None:
    draw = random.Random(0)
    base = tmp_path / "base"
    size = len(tokenizer(base))
    config = transformers.T5Config(
        vocab_size=size, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    made_base(base, config, "AutoModelForSeq2SeqLM")
    words = [draw.choice(GOOD + BAD) for _ in range(80)]
    files = texts(tmp_path, [{"text": f"the film was {word}", "target": word} for word in words])
    result = run("text2text-generation", tmp_path, files, str(base), learning_rate=1e-2, max_length=6)
    assert set(result.metrics.values) == {"chrf", "bleu", "exact_match"}
    assert all(isinstance(answer, str) for answer in result.answers)
    assert reproduced(tmp_path, files[1], str(base))


@pytest.mark.slow
def test_pictures(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    base = tmp_path / "base"
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=16, patch_size=8
    )
    made_base(base, config, "AutoModel")
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(base)
    for split, count in (("train", 24), ("eval", 8)):
        for number in range(count):
            label, colour = (("red", (200, 20, 20)), ("blue", (20, 20, 200)))[number % 2]
            path = tmp_path / split / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(number).integers(-20, 20, (20, 20, 3))
            image.fromarray((np.asarray(colour) + noise).clip(0, 255).astype("uint8")).save(path)
    files = (tmp_path / "train", tmp_path / "eval")
    result = run("image-classification", tmp_path, files, str(base), learning_rate=1e-2)
    assert result.metrics.accuracy == 1.0
    assert result.labels == ("blue", "red")
    assert reproduced(tmp_path, files[1], str(base))
    (tmp_path / "eval" / "red" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="not an image"):
        adaptergit.evaluate(tmp_path / "out", files[1], base=str(base))


# --- early stopping, sweeps, eval ------------------------------------------------------------------------------------


@pytest.fixture
def moods(tmp_path: Path) -> tuple[Path, Path]:
    draw = random.Random(0)
    drawn = [draw.choice([(word, "pos") for word in GOOD] + [(word, "neg") for word in BAD]) for _ in range(60)]
    return halves(tmp_path, [{"text": f"a {word} film", "label": label} for word, label in drawn])


@pytest.mark.slow
@needs_model
def test_training_stops_when_nothing_gets_better(tmp_path: Path, moods: tuple[Path, Path]) -> None:
    steps: list[int] = []
    spec = TrainSpec(
        base=BASE, train=moods[0], eval=moods[1], output=tmp_path / "out", epochs=30, learning_rate=5e-3, batch_size=8, max_length=16, patience=2,
    )  # fmt: skip
    result = train(spec, lambda p: steps.append(p.done) if p.stage == "training" else None)
    assert max(steps) < 30 * 5, "a tenth is set aside, so an epoch has five steps"
    assert result.metrics.accuracy > 0.8
    card = adaptergit.adapters(adaptergit.load(tmp_path / "out", transformers.AutoModel.from_pretrained(BASE)))
    hyper = card.about("out").card.data["training"]
    assert hyper["samples"] == 41
    assert hyper["hyperparameters"]["early_stopping_patience"] == 2


@needs_model
@pytest.mark.slow
def test_a_sweep_ends_with_a_table_and_a_plot(tmp_path: Path, moods: tuple[Path, Path]) -> None:
    from adaptergit.training.sweep import train_all, variations

    spec = TrainSpec(
        base=BASE, train=moods[0], eval=moods[1], output=tmp_path / "sweep", epochs=1, learning_rate=5e-3, batch_size=8, max_length=16
    )  # fmt: skip
    specs = variations(spec, seeds=(1, 2), over={"reduction_factor": ["8", "32"]})
    assert [one.output.name for one in specs] == [
        f"sweep-seq_bn-reduction_factor-{factor}-s{seed}" for factor in (8, 32) for seed in (1, 2)
    ]
    found = train_all(specs, plot=tmp_path / "plot.svg")
    assert [one.adapter for one in found.summaries] == ["seq_bn[reduction_factor=8]", "seq_bn[reduction_factor=32]"]
    assert all(one.runs == 2 for one in found.summaries)
    assert found.summaries[0].adapter_parameters > found.summaries[1].adapter_parameters
    assert found.summaries[0].mean == pytest.approx(np.mean([one.metrics.first for one in found.results[:2]]), abs=1e-6)
    svg = (tmp_path / "plot.svg").read_text()
    assert "reduction_factor=8" in svg
    assert list(found.to_json())[-1] == "metrics"


def test_runs_are_read_from_a_file(tmp_path: Path) -> None:
    from adaptergit.training.sweep import read_runs

    path = tmp_path / "runs.toml"
    path.write_text(
        'base = "/models/x"\nepochs = 2\n'
        '[[run]]\ntrain = "a.tsv"\neval = "b.tsv"\noutput = "out/a"\nseeds = [1, 2]\n'
        '[[run]]\ntask = "text-regression"\ntrain = "c.tsv"\neval = "d.tsv"\noutput = "out/c"\nsweep = {reduction_factor = [2, 4]}\n'
    )
    specs = read_runs(path)
    assert [(one.task, one.train, one.seed, one.adapter) for one in specs] == [
        ("text-classification", tmp_path / "a.tsv", 1, "seq_bn"),
        ("text-classification", tmp_path / "a.tsv", 2, "seq_bn"),
        ("text-regression", tmp_path / "c.tsv", 42, "seq_bn[reduction_factor=2]"),
        ("text-regression", tmp_path / "c.tsv", 42, "seq_bn[reduction_factor=4]"),
    ]
    for wrong, why in (
        ('[[run]]\ntrain = "a"', "missing"),
        ("epochs = 2", "no runs"),
        ("x", "TOML"),
        ('base = "b"\n[[run]]\ntrian = "a"', "trian"),
    ):
        path.write_text(wrong)
        with pytest.raises(UsageError, match=why):
            read_runs(path)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('epochs = "many"', "'epochs' holds 'many', expected a number"),
        ("epochs = true", "'epochs' holds True"),
        ("base = 5", "'base' holds 5, expected a text"),
        ("train = ['a']", "'train' holds"),
        ('batch_size = "8"', "expected a whole number"),
        ("batch_size = 8.5", "expected a whole number"),
        ("patience = 1.5", "expected a whole number"),
        ('overwrite = "no"', "expected true or false"),
        ('columns = "text"', "expected a table"),
        ("columns = { text = 5 }", "expected a table"),
        ('seeds = "a"', "expected a list"),
        ('seeds = ["a"]', "expected a list"),
        ("seeds = 1", "expected a list"),
        ('adapters = "lora"', "expected a list"),
        ("sweep = { r = 8 }", "expected a table"),
    ],
)
def test_a_value_of_the_wrong_kind_in_a_file_of_runs_is_refused_by_name(tmp_path: Path, line: str, why: str) -> None:
    from adaptergit.training.sweep import read_runs

    options = {"base": '"b"', "train": '"a.tsv"', "eval": '"a.tsv"', "output": '"out"'}
    options.pop(line.split(" = ")[0], None)
    path = tmp_path / "runs.toml"
    path.write_text("[[run]]\n" + "".join(f"{key} = {value}\n" for key, value in options.items()) + line)
    with pytest.raises(UsageError, match=why) as caught:
        read_runs(path)
    assert caught.value.where == f"{path}: run 1"


@pytest.mark.slow
@needs_model
def test_eval_tells_when_a_card_exaggerates(tmp_path: Path, moods: tuple[Path, Path]) -> None:
    result = run("text-classification", tmp_path, moods)
    honest = adaptergit.evaluate(tmp_path / "out", moods[1], base=BASE)
    assert honest.reproduced
    assert honest.metrics.values == result.metrics.values
    assert adaptergit.evaluate(tmp_path / "out", moods[0], base=BASE).reproduced is None
    card = tmp_path / "out" / "card.yaml"
    stated = f"value: {result.metrics.accuracy}"
    assert stated in card.read_text()
    card.write_text(card.read_text().replace(stated, "value: 1.25", 1))
    found = adaptergit.evaluate(tmp_path / "out", moods[1], base=BASE)
    assert found.reproduced is False
    assert "1.25" in found.verdict


# --- data that does not fit ------------------------------------------------------------------------------------------

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("multi-label-classification", {"text": "x", "label": {"a": 1}}, "a list"),
    ("text-regression", {"text": "x", "label": float("nan")}, "holds nan, expected a number"),
    ("multi-label-classification", {"text": "x", "label": []}, "no row has a label"),
    ("multi-label-classification", {"text": "x", "label": [float("nan")]}, "something else than texts"),
    ("text-regression", {"text": "x", "label": "many"}, "a number"),
    ("text-regression", {"text": "x", "label": "nan"}, "a number"),
    ("token-classification", {"tokens": ["a"], "tags": ["O", "O"]}, "1 words and 2 tags"),
    ("token-classification", {"tokens": [], "tags": []}, "without words"),
    ("token-classification", {"tokens": "a b", "tags": ["O"]}, "a list"),
    ("question-answering", {"question": "q", "context": "abc", "answers": [{"text": "b", "answer_start": 0}]}, "not the answer"),
    ("question-answering", {"question": "q", "context": "abc", "answers": ["b"]}, "text and answer_start"),
    ("multiple-choice", {"text": "x", "choices": ["a"], "label": 0}, "1 choices"),
    ("multiple-choice", {"text": "x", "choices": ["a", "b"], "label": 2}, "none of the choices"),
    ("multiple-choice", {"text": "x", "choices": ["a", "b"], "label": "²"}, "none of the choices"),
    ("text2text-generation", {"text": "x", "target": ""}, "empty"),
    ("fill-mask", {"words": "x"}, "no column 'text'"),
    ("image-classification", {"image": "x.png", "label": "a"}, "nothing to learn"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "row", "why"), WRONG, ids=[f"{task}-{why}" for task, _, why in WRONG])
def test_a_row_that_does_not_fit_names_its_line(tmp_path: Path, task: str, row: dict[str, Any], why: str) -> None:
    data = read_rows(json_lines(tmp_path / "a.jsonl", [row]))
    with pytest.raises(DataError, match=why):
        TASKS[task].learn(TASKS[task].with_columns({}), data)


@pytest.mark.parametrize(
    ("content", "sentences"),
    [
        ("10\u00a0000 B\nkm\u202f2 O\n", [["10\u00a0000", "km\u202f2"]]),
        ("  a   O \nb O\n", [["a", "b"]]),
        ("# id 5628baa8\tdomain=en\na _ _ O\nb _ _ O\n\n# id 7\nc _ _ O\n", [["a", "b"], ["c"]]),
        ("# text = a b\n# sent_id = 1\na O\nb O\n", [["a", "b"]]),
        ("# O\n1 O\n\na O\n# id\n", [["#", "1"], ["a", "#"]]),
        ("# Foreign=Yes\na Foreign=No\n", [["#", "a"]]),
    ],
)
def test_words_of_conll_are_what_stands_between_spaces(
    tmp_path: Path, content: str, sentences: list[list[str]]
) -> None:
    (tmp_path / "a.conll").write_text(content, "utf-8")
    assert [row.texts("tokens") for row in read_rows(tmp_path / "a.conll")] == sentences


def test_columns_that_do_not_fit_say_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text("a O\nNew York O\n")
    with pytest.raises(DataError, match="3 columns") as caught:
        read_rows(tmp_path / "a.conll")
    assert "one token a line" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.conll", "a O\nb\n", "1 columns, the line before has 2"),
        ("a.conll", "a\n\n", "no tag"),
        ("a.conllu", "1\ta\n", "CoNLL-U has 10"),
        ("a.json", "{", "not JSON"),
        ("a.json", '{"data": [{}]}', "SQuAD"),
        ("a.txt", "\n \n", "no examples"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, name: str, content: str, why: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=why):
        read_rows(tmp_path / name)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"task": "text-clasification"}, "did you mean 'text-classification'"),
        ({"columns": {"txt": "a"}}, "it has text, pair, label"),
        ({"precision": "fp8"}, "precision"),
        ({"validation": Path("x")}, "patience"),
    ],
)
def test_a_specification_that_cannot_be_is_refused(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    spec = TrainSpec(base="x", train=Path("a"), eval=Path("b"), output=tmp_path / "out", **changes)
    with pytest.raises(AdaptergitError, match=why):
        spec.check()


# --- measures --------------------------------------------------------------------------------------------------------


def values(found: Sequence[measures.Measure], samples: int) -> Metrics:
    return measured(found, samples, resamples=200)


def test_measures_are_those_of_the_libraries_for_them() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    stats = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(0)
    gold, found = draw.integers(0, 4, 200), draw.integers(0, 4, 200)
    ours = values(measures.classification(found.tolist(), gold.tolist(), 5), 200)
    assert ours.accuracy == pytest.approx(metrics.accuracy_score(gold, found), abs=1e-6)
    assert ours.f1_macro == pytest.approx(metrics.f1_score(gold, found, average="macro"), abs=1e-6)
    many_gold, many = draw.integers(0, 2, (50, 3)), draw.integers(0, 2, (50, 3))
    ours = values(measures.multi_label(many, many_gold), 50)
    assert ours.f1_micro == pytest.approx(metrics.f1_score(many_gold, many, average="micro"), abs=1e-6)
    assert ours.f1_macro == pytest.approx(metrics.f1_score(many_gold, many, average="macro"), abs=1e-6)
    x, y = draw.normal(size=80), draw.normal(size=80)
    ours = values(measures.regression(x.tolist(), y.tolist()), 80)
    assert ours.pearson == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-6)
    assert ours.spearman == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-6)
    tags = ("O", "B-A", "I-A", "B-B")
    said, right = ([[tags[i] for i in draw.integers(0, 4, 9)] for _ in range(20)] for _ in range(2))
    theirs = pytest.importorskip("seqeval.metrics")
    assert values(measures.spans(said, right), 20).f1 == pytest.approx(theirs.f1_score(right, said), abs=1e-6)


def test_no_score_is_made_of_rounding() -> None:
    """One text in two batches gives numbers a few last digits apart."""
    draw = np.random.default_rng(0)
    said, gold = draw.integers(0, 4, 24) * 0.25 - 0.4, draw.integers(0, 4, 24) * 1.0
    found = [measures.regression((said + draw.normal(0, 1e-7, 24)).tolist(), gold.tolist()) for _ in range(5)]
    first, *others = (values(one, 24) for one in [measures.regression(said.tolist(), gold.tolist()), *found])
    assert -1 < first.spearman < 1
    assert all(one == first for one in others)
    flat = values(measures.regression((0.3 + draw.normal(0, 1e-7, 24)).tolist(), gold.tolist()), 24)
    assert (flat.pearson, flat.spearman) == (0, 0)


def test_many_different_numbers_are_no_ties() -> None:
    stats = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(0)
    said = draw.normal(size=100_000)
    gold = said + draw.normal(size=100_000)
    ours = measured(measures.regression(said.tolist(), gold.tolist()), 100_000, resamples=2)
    assert ours.spearman == pytest.approx(stats.spearmanr(said, gold)[0], abs=1e-5)


def test_an_interval_is_as_wide_as_theory_says() -> None:
    hits = [1] * 80 + [0] * 20
    low, high = measured([measures.mean("accuracy", hits)], 100).intervals["accuracy"]
    assert low == pytest.approx(0.8 - 1.96 * 0.04, abs=0.015)
    assert high == pytest.approx(0.8 + 1.96 * 0.04, abs=0.015)


def test_questions_without_answers_and_articles_are_scored_as_squad_does() -> None:
    task = TASKS["question-answering"]({"question": "question", "context": "context", "answers": "answers"})
    rows: list[dict[str, Any]] = [
        {"question": "q", "context": "the cat", "answers": [{"text": "the cat", "answer_start": 0}]},
        {"question": "q", "context": "x", "answers": []},
        {"question": "q", "context": "a big dog", "answers": {"text": ["big dog"], "answer_start": [2]}},
    ]
    from adaptergit.training.rows import Data, Row

    data = Data(Path("x"), tuple(Row(row, str(i)) for i, row in enumerate(rows)), "")
    found = values(task.measures(["Cat!", "", "dog"], data), 3)
    assert found.exact_match == pytest.approx(2 / 3, abs=1e-6)
    assert found.f1 == pytest.approx((1 + 1 + 2 / 3) / 3, abs=1e-6)
