"""Predict, for every task that can be learnt: what is asked, what is answered, and that ``eval`` scores the same."""

from __future__ import annotations

import json
import math
import random
import shutil
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import transformers
from click.testing import CliRunner
from conftest import GOLDEN, Hub, card_data

import adaptergit
from adaptergit.answering import opened
from adaptergit.cli import main
from adaptergit.errors import DataError, NotFoundError, UsageError
from adaptergit.package import Card
from adaptergit.predict import Predictions, predict
from adaptergit.training import TASKS, TrainSpec, read_rows, train
from adaptergit.training.tasks import Tools
from adaptergit.training.tasks.said import Choice, Filled, Label, Labels, Number, Span, Tags, Written

GOOD, BAD, PLAIN = ("good", "great", "lovely"), ("bad", "dull", "awful"), ("the", "film", "was", "it", "i", "who", "lives", "in", "Rome", "Bob", "?", "|")  # fmt: skip
SPECIAL = ("[PAD]", "[UNK]", "[EOS]", "[MASK]", "[CLS]", "[SEP]")
WORDS = [*SPECIAL, *GOOD, *BAD, *PLAIN, *(f"w{number}" for number in range(48))]  # the bases know 72


def golden(name: str, folder: Path) -> Path:
    """A tiny base with words of its own."""
    from tokenizers import Tokenizer, processors
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    shutil.copytree(GOLDEN / "bases" / name, folder)
    core = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = Whitespace()
    if name == "bert":
        core.post_processor = processors.BertProcessing(("[SEP]", 5), ("[CLS]", 4))
    names = {f"{one.strip('[]').lower()}_token": one for one in SPECIAL}
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=core, **names)
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {name: golden(name, folder / name) for name in ("bert", "gpt2", "bert2bert")}


def json_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Trained:
    """An adapter that has just been trained, and its held-out file."""

    def __init__(self, folder: Path, base: Path, task: str, rows: Sequence[Mapping[str, Any]], **options: Any) -> None:
        self.base, self.out = str(base), folder / "out"
        self.file = json_lines(folder / "eval.jsonl", rows[:9])
        train_file = json_lines(folder / "train.jsonl", rows)
        chosen: dict[str, Any] = {"epochs": 2, "learning_rate": 1e-2, "batch_size": 4, "max_length": 16, **options}
        train(TrainSpec(base=self.base, task=task, train=train_file, eval=self.file, output=self.out, **chosen))

    def predict(self, *texts: str | Sequence[str], **options: Any) -> Predictions:
        return predict(self.out, texts=list(texts) or None, base=self.base, **options)

    def scored(self) -> Predictions:
        """Answers to the held-out file, with scores, after checking that they are those of ``evaluate``."""
        found = self.predict(file=self.file, score=True)
        theirs = adaptergit.evaluate(self.out, self.file, base=self.base)
        assert found.metrics is not None
        assert found.metrics.values == theirs.metrics.values
        assert found.metrics.intervals == theirs.metrics.intervals
        assert theirs.reproduced
        return found

    def gold(self, column: str) -> list[Any]:
        return [json.loads(line)[column] for line in self.file.read_text().splitlines()]


def moods(count: int = 24) -> list[tuple[str, str]]:
    draw = random.Random(3)
    return [draw.choice([(word, "pos") for word in GOOD] + [(word, "neg") for word in BAD]) for _ in range(count)]


def accuracy(said: Sequence[Any], gold: Sequence[Any]) -> float:
    return sum(one == other for one, other in zip(said, gold, strict=True)) / len(gold)


@pytest.fixture(scope="module")
def mood(bases: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    rows = [{"sentence": f"the film was {word}", "label": label} for word, label in moods()]
    folder = tmp_path_factory.mktemp("mood")
    return Trained(folder, bases["bert"], "text-classification", rows, columns={"text": "sentence"})


@pytest.mark.slow
def test_a_label_for_each_text(mood: Trained) -> None:
    found = mood.scored()
    labels = [one.label for one in found.said if isinstance(one, Label)]
    assert found.metrics is not None
    assert accuracy(labels, mood.gold("label")) == pytest.approx(found.metrics.accuracy, abs=1e-6)
    one = mood.predict("the film was good").said[0]
    assert isinstance(one, Label)
    assert set(one.probabilities) == {"neg", "pos"}
    assert sum(one.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert one.probabilities[one.label] == one.probability == max(one.probabilities.values())


@pytest.mark.slow
def test_a_release_is_asked_for_once_and_anew_when_told(hub: Hub, mood: Trained) -> None:
    options: dict[str, Any] = {"clone": hub.clone, "key": hub.key.path}
    name = adaptergit.publish(mood.out, version="1.0.0", **options).name
    hub.trust()
    adaptergit.yank(name, "1.0.0", reason="a mistake", clone=hub.clone)
    ref, text, base = f"{hub.url}@{name}", "the film was good", mood.base
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        first = predict(f"{ref}==1.0.0", texts=[text], base=base)
    assert [str(one.message) for one in told if "yanked" in str(one.message)] == [
        f"{name} 1.0.0 was yanked by its publisher"
    ]
    assert first.said == mood.predict(text).said
    adaptergit.publish(mood.out, version="1.0.1", **options)
    hub.server.reset()
    assert predict(ref, texts=[text], base=base).said == first.said
    adaptergit.publish(mood.out, version="1.0.2", clone=hub.clone, key=hub.key.path)
    asked = len(hub.server.traffic.requests)
    predict(ref, texts=[text], base=base, refresh=True)
    assert len(hub.server.traffic.requests) > asked
    assert adaptergit.fetch(ref, offline=True).version == "1.0.2"


@pytest.mark.slow
def test_two_texts_where_the_adapter_reads_pairs(bases: Mapping[str, Path], tmp_path: Path) -> None:
    draw = random.Random(3)
    pairs = [(draw.choice(GOOD), draw.choice(GOOD)) for _ in range(20)]
    rows = [{"a": a, "b": b, "label": "yes" if a == b else "no"} for a, b in [*pairs, *zip(GOOD, GOOD, strict=True)]]
    made = Trained(tmp_path, bases["bert"], "text-classification", rows, columns={"text": "a", "pair": "b"})
    made.scored()
    parts, line = made.predict(("good", "great")), made.predict("good\tgreat")
    assert parts == line
    with pytest.raises(DataError, match="text and pair"):
        made.predict("good")


def test_an_adapter_of_one_text_is_given_no_second_one(mood: Trained) -> None:
    with pytest.raises(UsageError, match="trained on text alone: it reads no pair"):
        mood.predict(("good", "great"))
    result = CliRunner().invoke(main, ["predict", str(mood.out), "good", "--pair", "great", "--base", mood.base])
    assert (result.exit_code, "it reads no pair" in result.output) == (2, True)


@pytest.mark.slow
def test_several_labels_for_a_text(bases: Mapping[str, Path], tmp_path: Path) -> None:
    draw = random.Random(3)
    rows = [
        {"text": f"the film was {a} {b}", "label": [x for x, words in (("nice", GOOD), ("nasty", BAD)) if {a, b} & {*words}]}
        for a, b in ((draw.choice(GOOD + BAD), draw.choice(GOOD + BAD)) for _ in range(24))
    ]  # fmt: skip
    made = Trained(tmp_path, bases["bert"], "multi-label-classification", rows)
    for one in made.scored().said:
        assert isinstance(one, Labels)
        assert set(one.labels) == {label for label, probability in one.probabilities.items() if probability > 0.5}


@pytest.mark.slow
def test_a_number_for_a_text(bases: Mapping[str, Path], tmp_path: Path) -> None:
    draw = random.Random(3)
    counts = [draw.randint(0, 4) for _ in range(24)]
    rows = [{"text": " ".join(["good"] * n + ["bad"] * (4 - n)), "label": n / 4} for n in counts]
    made = Trained(tmp_path, bases["bert"], "text-regression", rows)
    found = made.scored()
    values = [one.value for one in found.said if isinstance(one, Number)]
    assert found.metrics is not None
    errors = [(value - gold) ** 2 for value, gold in zip(values, made.gold("label"), strict=True)]
    assert sum(errors) / len(errors) == pytest.approx(found.metrics.mse, abs=1e-5)


@pytest.fixture(scope="module")
def tagger(bases: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    rows = [{"tokens": ["Bob", "lives", "in", "Rome"], "tags": ["B-PER", "O", "O", "B-LOC"]}] * 12
    return Trained(tmp_path_factory.mktemp("tags"), bases["bert"], "token-classification", rows)


@pytest.mark.slow
def test_a_tag_for_each_word(tagger: Trained, tmp_path: Path) -> None:
    found = tagger.scored()
    tags = [tag for one in found.said if isinstance(one, Tags) for tag in one.tags]
    assert found.metrics is not None
    assert accuracy(tags, [tag for tags in tagger.gold("tags") for tag in tags]) == pytest.approx(
        found.metrics.accuracy, abs=1e-6
    )
    plain, words = tagger.predict("Bob lives in Rome"), tagger.predict(["Bob", "lives", "in", "Rome"])
    assert plain == words
    lines, conll = tmp_path / "lines.txt", tmp_path / "words.conll"
    lines.write_text("Bob lives in Rome\n")
    conll.write_text("Bob\nlives\nin\nRome\n")
    assert tagger.predict(file=lines).said == tagger.predict(file=conll).said == plain.said
    assert plain.said[0].rows("")[0] == ("Bob", tags[0])
    with pytest.raises(DataError, match="no tag"):
        tagger.predict(file=conll, score=True)


@pytest.mark.slow
def test_a_part_of_the_context_for_a_question(bases: Mapping[str, Path], tmp_path: Path) -> None:
    draw = random.Random(3)
    rows = []
    for _ in range(16):
        context = f"{draw.choice(GOOD)} Bob lives in Rome {draw.choice(BAD)}"
        answer = {"text": "Rome", "answer_start": context.index("Rome")}
        rows.append({"question": "who lives ?", "context": context, "answers": [answer]})
    made = Trained(tmp_path, bases["bert"], "question-answering", rows, epochs=4)
    found = made.scored()
    right = [one["answers"][0]["text"] for one in map(json.loads, made.file.read_text().splitlines())]
    said = [one.answer for one in found.said if isinstance(one, Span)]
    assert found.metrics is not None
    assert accuracy(said, right) == pytest.approx(found.metrics.exact_match, abs=1e-6)
    context = "it was Bob in Rome"
    one = made.predict(("who ?", context)).said[0]
    assert isinstance(one, Span)
    assert one.answer in context
    with pytest.raises(DataError, match="question and context"):
        made.predict("who ?")


def test_one_of_several_choices(bases: Mapping[str, Path], tmp_path: Path) -> None:
    rows = [
        {"text": f"it was {word}", "choices": ["good film", "bad film"], "label": int(label == "neg")}
        for word, label in moods()
    ]
    made = Trained(tmp_path, bases["bert"], "multiple-choice", rows)
    found = made.scored()
    assert found.metrics is not None
    indices = [one.index for one in found.said if isinstance(one, Choice)]
    assert accuracy(indices, made.gold("label")) == pytest.approx(found.metrics.accuracy, abs=1e-6)
    one = made.predict(("it was good", "great film | dull film")).said[0]
    assert isinstance(one, Choice)
    assert one.choice == ("great film", "dull film")[one.index]
    with pytest.raises(DataError, match="3 choices, expected 2"):
        made.predict(("it was good", "a|b|c"))


def test_words_for_masks(bases: Mapping[str, Path], tmp_path: Path) -> None:
    rows = [{"text": f"the film was {word}"} for word, _ in moods(40)]
    made = Trained(tmp_path, bases["bert"], "fill-mask", rows, epochs=4)
    one = made.predict("the film was [MASK] [MASK]", "the [MASK] was good", top_k=3).said[0]
    assert isinstance(one, Filled)
    assert [len(mask) for mask in one.masks] == [3, 3]
    assert one.masks[0][0].probability >= one.masks[0][1].probability
    assert one.text == f"the film was {one.masks[0][0].token} {one.masks[1][0].token}"
    with pytest.raises(DataError, match="no mask") as error:
        made.predict("the film was [MASK]", "the film was good")
    assert error.value.where == "text 2"
    with pytest.raises(UsageError, match="eval"):
        made.predict(file=made.file, score=True)


def test_a_guess_is_as_probable_as_the_loss_that_eval_scores(bases: Mapping[str, Path], tmp_path: Path) -> None:
    rows = [{"text": f"the film was {word}"} for word, _ in moods(40)]
    made = Trained(tmp_path, bases["bert"], "fill-mask", rows, max_length=22)
    tokenizer = transformers.AutoTokenizer.from_pretrained(made.base)
    file = json_lines(tmp_path / "one.jsonl", [{"text": " ".join(["the film was good"] * 5)}])
    block = TASKS["fill-mask"]({"text": "text"})._held_out(read_rows(file), Tools(tokenizer, 22))[0]  # type: ignore[attr-defined]
    hidden = [(token, label) for token, label in zip(block["input_ids"], block["labels"], strict=True) if label != -100]
    assert {token for token, _ in hidden} == {tokenizer.mask_token_id}, "this text's tokens are masked, none exchanged"
    said = made.predict(tokenizer.decode(block["input_ids"][1:-1]), top_k=72).said[0]
    assert isinstance(said, Filled)
    pairs = zip(said.masks, hidden, strict=True)
    found = [next(one.probability for one in mask if one.token == WORDS[label]) for mask, (_, label) in pairs]
    loss = adaptergit.evaluate(made.out, file, base=made.base).metrics.loss
    assert sum(-math.log(one) for one in found) / len(found) == pytest.approx(loss, rel=1e-3)


@pytest.fixture(scope="module")
def writer(bases: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    rows = [{"text": "the film was good"}] * 160
    return Trained(
        tmp_path_factory.mktemp("writer"),
        bases["gpt2"],
        "text-generation",
        rows,
        epochs=8,
        learning_rate=3e-2,
        adapter="lora",
    )


@pytest.mark.slow
def test_a_text_goes_on(writer: Trained) -> None:
    both = writer.predict("the film", "the", max_new_tokens=2)
    alone = [writer.predict(text, max_new_tokens=2).said[0] for text in ("the film", "the")]
    assert list(both.said) == alone, "what fills up a batch changes nothing"
    assert both.said[0] == Written("was good")
    assert both.said[1] == Written("film was")
    with pytest.raises(UsageError, match="30 new ones are more than the 24"):
        writer.predict("the film", max_new_tokens=30)
    with pytest.raises(UsageError, match="positive"):
        writer.predict("the film", max_new_tokens=0)
    with pytest.raises(UsageError, match="top_k means nothing to text-generation"):
        writer.predict("the film", top_k=3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_texts_become_texts(bases: Mapping[str, Path], tmp_path: Path) -> None:
    rows = [{"text": f"the film was {word}", "target": word} for word, _ in moods(40)]
    made = Trained(tmp_path, bases["bert2bert"], "text2text-generation", rows)
    found = made.scored()
    said = [one.text for one in found.said if isinstance(one, Written)]
    assert found.metrics is not None
    assert accuracy(said, made.gold("target")) == pytest.approx(found.metrics.exact_match, abs=1e-6)
    short = made.predict("the film was good", max_new_tokens=1).said[0]
    assert isinstance(short, Written)
    assert len(short.text.split()) <= 1


def test_a_label_for_each_picture(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    base = tmp_path / "base"
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=16, patch_size=8
    )
    transformers.ViTModel(config).save_pretrained(base)
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(base)
    rows = []
    for number in range(16):
        label, colour = (("red", (200, 20, 20)), ("blue", (20, 20, 200)))[number % 2]
        image.new("RGB", (20, 20), colour).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "label": label})
    made = Trained(tmp_path, base, "image-classification", rows, epochs=4)
    made.scored()
    found = made.predict(str(tmp_path / "0.png"), str(tmp_path / "1.png"))
    assert found.asked == (str(tmp_path / "0.png"), str(tmp_path / "1.png"))
    assert all(isinstance(one, Label) for one in found.said)
    with pytest.raises(DataError, match="there is no image"):
        made.predict("nowhere.png")


def test_an_adapter_whose_card_calls_the_task_otherwise_is_known_by_its_head(mood: Trained, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(mood.out, other)
    card = other / "card.yaml"
    card.write_text(card.read_text().replace("type: text-classification", "type: sentiment-analysis"))
    found = predict(other, texts=["the film was good"], base=mood.base)
    assert found.task == "text-classification"
    assert found.said == mood.predict("the film was good").said


@pytest.mark.parametrize(
    ("task", "head", "wanted"),
    [
        ("text-classification", {"type": "multilabel_classification", "config": {"num_labels": 2}}, "multi-label-classification"),
        ("text-classification", {"type": "classification", "config": {"num_labels": 1}}, "text-regression"),
        ("sts", {"type": "static", "config": {"model_class": "BertForSequenceClassification", "num_labels": 1}}, "text-regression"),
        ("ner", {"type": "static", "config": {"model_class": "BertForTokenClassification", "num_labels": 3}}, "token-classification"),
        ("pictures", {"type": "image_classification", "config": {"num_labels": 2}}, "image-classification"),
        ("fill-mask", None, "fill-mask"),
        ("text-generation", {"type": "causal_lm", "config": {}}, "text-generation"),
    ],
)  # fmt: skip
def test_the_head_says_what_is_answered(tmp_path: Path, task: str, head: dict[str, Any] | None, wanted: str) -> None:
    data = card_data(task={"type": task}, **({"head": head} if head is not None else {}))
    (tmp_path / "card.yaml").write_bytes(Card(data).to_yaml())
    assert opened(tmp_path).kind.name == wanted


def test_what_cannot_be_answered_is_refused(mood: Trained, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one of them"):
        mood.predict()
    with pytest.raises(UsageError, match="one of them"):
        mood.predict("x", file=mood.file)
    with pytest.raises(NotFoundError, match="no such file"):
        mood.predict(file=tmp_path / "nowhere.tsv")
    with pytest.raises(DataError, match="no column 'sentence'"):
        mood.predict(file=json_lines(tmp_path / "a.jsonl", [{"text": "x"}]))
    with pytest.raises(UsageError, match="what is right"):
        mood.predict("x", score=True)
    with pytest.raises(DataError, match="none of those that the training"):
        mood.predict(file=json_lines(tmp_path / "a.jsonl", [{"sentence": "x", "label": "?"}]), score=True)


# --- in a shell ------------------------------------------------------------------------------------------------------


def shell(*argv: str, given: str = "") -> str:
    result = CliRunner().invoke(main, ["predict", *argv], input=given, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_arguments_a_file_and_standard_input_are_answered_alike(mood: Trained, tmp_path: Path) -> None:
    asked = [str(mood.out), "--base", mood.base]
    file = tmp_path / "texts.txt"
    file.write_text("the film was good\nit was dull\n")
    argument = shell(*asked, "the film was good", "--text", "it was dull")
    assert argument == shell(*asked, "--file", str(file)) == shell(*asked, given=file.read_text())
    label, probability, text = argument.splitlines()[0].split("\t")
    assert label in ("pos", "neg")
    assert 0.5 <= float(probability) <= 1
    assert text == "the film was good"
    lines = shell(*asked, "--json-lines", "--stdin", "jsonl", given='{"sentence": "it was dull"}\n')
    whole = json.loads(shell(*asked, "it was dull", "--json"))
    assert [json.loads(line) for line in lines.splitlines()] == whole["predictions"]
    assert whole["task"] == "text-classification"
    assert whole["metrics"] is None


@pytest.mark.slow
def test_a_pipe_is_answered_by_a_process_of_its_own(tagger: Trained) -> None:
    command = [sys.executable, "-m", "adaptergit", "predict", str(tagger.out), "--base", tagger.base]
    done = subprocess.run(command, input="Bob lives\nin Rome\n", capture_output=True, text=True, check=True)
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["Bob", "lives", "", "in", "Rome", ""]


@pytest.mark.parametrize(
    ("argv", "given", "why"),
    [
        ((), "", "nothing to answer"),
        ((), " \n", "nothing to answer"),
        (("x", "--file", "y"), "", "either texts or --file"),
        (("x", "--pair", "a", "--pair", "b"), "", "2 times --pair for 1 texts"),
        (("x", "--label-column", "y"), "", "--label-column needs"),
    ],
)
def test_a_call_that_makes_no_sense_says_why(argv: tuple[str, ...], given: str, why: str) -> None:
    result = CliRunner().invoke(main, ["predict", "nowhere", *argv], input=given)
    assert result.exit_code == 2
    assert why in result.output
