"""Rows of many adapters in one forward: each answer is the one that its adapter gives alone."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import Hub
from hf_server import served
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from serving import KINDS, WORDS, base_folder, model_of, save_adapters, shake, tokenizer_of

import adaptergit
from adaptergit.errors import AdaptergitWarning, ModelError, TrustError, UsageError
from adaptergit.serve.batching import Batcher, Refused, best_cuts
from adaptergit.serve.encoding import encode, padded
from adaptergit.serve.mixing import Mixer
from adaptergit.serve.service import Service, open_service, service_of
from adaptergit.splice import ClassificationHead, adapters

TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=30).map(" ".join)
SLOW = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Prefixes and prompts that a decoder has no room for are tested where they have one.
OF_DECODERS = ("two", "five", "same", "inverted", "number", "many", "tags", "answers")


@dataclass(frozen=True)
class Made:
    """What is served, and every adapter of it alone."""

    service: Service
    alone: dict[str, Callable[[str, str | None], dict[str, torch.Tensor]]]


@pytest.fixture(scope="module", params=["bert", "roberta", "gpt2", "llama"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp(request.param)
    base = base_folder(folder / "base", request.param)
    kinds = {n: k for n, k in KINDS.items() if request.param in ("bert", "roberta") or n in OF_DECODERS}
    packages = save_adapters(base, folder / "out", kinds)
    service = open_service([str(package) for package in packages], base=base)
    return Made(service, {p.name: alone(base, p, service.adapters[p.name].max_length) for p in packages})


def alone(base: Path, package: Path, length: int) -> Callable[[str, str | None], dict[str, torch.Tensor]]:
    """What an adapter answers in a model that holds nothing else, to one text without padding."""
    model, tokenizer = adaptergit.load(package, model_of(base)), transformers.AutoTokenizer.from_pretrained(base)

    def answer(text: str, pair: str | None) -> dict[str, torch.Tensor]:
        batch = tokenizer(text, pair, truncation=True, max_length=length, return_tensors="pt")
        with torch.no_grad():
            output = model(**batch)
        found = {name: output[name][0] for name in ("logits", "start_logits", "end_logits") if name in output}
        by_token = KINDS[package.name][1].type in ("tagging", "question_answering")
        return {name: value[-batch["input_ids"].shape[1] :] if by_token else value for name, value in found.items()}

    return answer


@pytest.mark.slow
@given(data=st.data())
@SLOW
def test_a_mixed_batch_answers_as_each_adapter_alone(made: Made, data: st.DataObject) -> None:
    answering = {name: one for name, one in made.service.adapters.items() if one.phrasing}
    lane = data.draw(st.sampled_from(sorted({one.lane for one in answering.values()}, key=str)))
    names = [name for name, one in answering.items() if one.lane == lane]
    wanted = data.draw(st.lists(st.tuples(st.sampled_from(names), TEXTS, TEXTS), min_size=1, max_size=12))
    rows = []
    for name, text, pair in wanted:
        rows += encode(answering[name], [text], [pair] if answering[name].phrasing.pairs else None)
    for (name, text, pair), row, scores in zip(wanted, rows, Mixer(made.service.model)(rows), strict=True):
        expected = made.alone[name](text, pair if row.pair is not None else None)
        assert set(scores) == set(expected)
        for field, values in expected.items():
            assert torch.allclose(scores[field], values, atol=1e-4), (name, field)


def test_adapters_that_can_share_a_batch_do(made: Made) -> None:
    lanes = {name: one.lane for name, one in made.service.adapters.items()}
    assert len({lanes[name] for name in OF_DECODERS}) == 1
    if "prompt" in lanes:
        assert lanes["prompt"] == lanes["prompted"] != lanes["two"]
        assert lanes["prefix"] == lanes["two"]


def test_padding_is_on_the_right_and_masked(made: Made) -> None:
    one = made.service.adapters["two"]
    batch = padded(encode(one, ["w1", "w1 w2 w3 w4"]), torch.device("cpu"))
    short, long = batch["attention_mask"].tolist()
    assert long == [1] * len(long)
    assert short == sorted(short, reverse=True)
    assert sum(long) - sum(short) == 3


def test_texts_are_cut_to_what_the_model_has_positions_for(made: Made) -> None:
    served = made.service
    rows = encode(served.adapters["two"], [" ".join(WORDS * 3)])
    assert rows[0].length == served.adapters["two"].max_length
    assert len(Mixer(served.model)(rows)) == 1


def test_a_set_up_is_served_as_one_adapter_and_mixed(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    model = model_of(base)
    panel = adapters(model)
    for seed, name in enumerate(("de", "task", "plain")):
        panel.add(name, "seq_bn")
        shake(panel.module(name), seed)
    for seed, name in enumerate(("task", "plain")):
        panel.add_head(name, ClassificationHead(num_labels=2))
        shake(panel.head_module(name), seed)
    panel.save_setup(
        tmp_path / "stack", "Stack(de, task)", heads=["task"], name="stack", base_model={"id": "acme/tiny"}
    )
    panel.save("plain", tmp_path / "plain", base_model={"id": "acme/tiny"})
    panel.save_setup(
        tmp_path / "split", "Parallel(de, task)", heads=["task"], name="split", base_model={"id": "acme/tiny"}
    )
    found = open_service([f"stacked={tmp_path / 'stack'}", str(tmp_path / "plain")], base=base)
    assert str(found.adapters["stacked"].composition) == "Stack(de, task)"
    rows = [*encode(found.adapters["stacked"], ["w1 w2"]), *encode(found.adapters["plain"], ["w1 w2 w3"])]
    both = Mixer(found.model)(rows)
    for row, composition, scores in zip(rows, ("Stack(de, task)", "plain"), both, strict=True):
        panel.activate(composition)
        with torch.no_grad():
            assert torch.allclose(model(**padded([row], torch.device("cpu"))).logits[0], scores["logits"], atol=1e-5)
    with pytest.raises(UsageError, match="shares out rows"):
        open_service([str(tmp_path / "split")], base=base)


def test_copies_of_a_classes_own_head_are_served_each_in_its_own_batches(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    model = model_of(base, "AutoModelForSequenceClassification", num_labels=2)
    panel = adapters(model)
    for seed, name in enumerate(("one", "other")):
        panel.add(name, "seq_bn")
        panel.train(name)
        shake(panel.module(name), seed)
        shake(panel.head_module(name), seed + 10)
        panel.save(name, tmp_path / name, base_model={"id": "acme/tiny"})
    save_adapters(base, tmp_path, {"two": KINDS["two"]})
    found = open_service([str(tmp_path / name) for name in ("two", "one", "other")], base=base)
    assert len({one.lane for one in found.adapters.values()}) == 3
    model.eval()
    for name in ("one", "other"):
        row = encode(found.adapters[name], ["w5 w6"])[0]
        panel.activate(name)
        with torch.no_grad():
            expected = model(**padded([row], torch.device("cpu"))).logits[0]
        assert torch.allclose(Mixer(found.model)([row])[0]["logits"], expected, atol=1e-5)


def peft_folder(folder: Path, seed: int) -> Path:
    """A classifier as PEFT saves it: LoRA on the queries, and the head of the model's class."""
    torch.manual_seed(seed)
    folder.mkdir()
    layer = "base_model.model.bert.encoder.layer.0.attention.self.query"
    tensors = {
        f"{layer}.lora_A.weight": torch.randn(2, 32),
        f"{layer}.lora_B.weight": torch.randn(32, 2),
        "base_model.model.classifier.weight": torch.randn(3, 32),
        "base_model.model.classifier.bias": torch.randn(3),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "SEQ_CLS", "r": 2, "lora_alpha": 4, "modules_to_save": ["classifier"]}
    config |= {"target_modules": ["layer.0.attention.self.query"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_heads_of_a_class_that_peft_saved_share_a_batch(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    text, expected = "w1 w2 w3", {}
    for seed, name in enumerate(("one", "other")):
        folder = peft_folder(tmp_path / name, seed)
        model = adaptergit.load(folder, model_of(base, "AutoModelForSequenceClassification", num_labels=3))
        with torch.no_grad():
            expected[name] = model(**tokenizer_of("bert")(text, return_tensors="pt")).logits[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error", AdaptergitWarning)
        found = open_service([str(tmp_path / "one"), str(tmp_path / "other")], base=base)
    assert not torch.allclose(expected["one"], expected["other"], atol=0.1)
    rows = [row for name in ("other", "one", "other") for row in encode(found.adapters[name], [text])]
    assert len({row.lane for row in rows}) == 1
    for row, scores in zip(rows, Mixer(found.model)(rows), strict=True):
        assert torch.allclose(scores["logits"], expected[row.served.name], atol=1e-5)


def test_a_checkpoint_on_the_hub_is_served_as_what_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    base = base_folder(tmp_path / "base")
    folder = peft_folder(tmp_path / "one", 1)
    model = adaptergit.load(folder, model_of(base, "AutoModelForSequenceClassification", num_labels=3))
    with served(monkeypatch, tmp_path / "hf") as hub:
        hub.create("acme/judge", {path.name: path.read_bytes() for path in folder.iterdir()})
        with pytest.raises(TrustError):
            open_service(["hf:acme/judge"], base=base)
        with pytest.warns(AdaptergitWarning):
            found = open_service(["hf:acme/judge", f"mine={folder}"], base=base, policy="tofu")
    assert list(found.adapters) == ["judge", "mine"]
    assert len(found.adapters["judge"].digest or "") == 64
    rows = [row for one in found.adapters.values() for row in encode(one, ["w1 w2 w3"])]
    with torch.no_grad():
        expected = model(**padded(rows[:1], torch.device("cpu"))).logits[0]
    assert all(torch.allclose(scores["logits"], expected, atol=1e-5) for scores in Mixer(found.model)(rows))


def test_what_an_adapter_was_trained_on_top_of_acts_with_it(hub: Hub, tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    model = model_of(base)
    panel = adapters(model)
    about = {"base_model": {"id": "acme/tiny"}, "license": "MIT"}
    for seed, name in enumerate(("en", "qa", "plain")):
        panel.add(name, "seq_bn")
        shake(panel.module(name), seed)
    for seed, name in enumerate(("qa", "plain")):
        panel.add_head(name, ClassificationHead(num_labels=2))
        shake(panel.head_module(name), seed)
    panel.save("en", tmp_path / "en", **about)
    panel.save("plain", tmp_path / "plain", **about)
    release = adaptergit.publish(tmp_path / "en", clone=hub.clone, key=hub.key.path)
    needed = [{"reference": f"{hub.url}@en", "digest": release.digest}]
    panel.save("qa", tmp_path / "qa", dependencies=needed, **about)
    adaptergit.publish(tmp_path / "qa", clone=hub.clone, key=hub.key.path)
    hub.trust()
    found = open_service([f"{hub.url}@qa", str(tmp_path / "plain")], base=base)
    rows = [row for one in found.adapters.values() for row in encode(one, ["w1 w2 w3"])]
    for composition, row, scores in zip(("Stack(en, qa)", "plain"), rows, Mixer(found.model)(rows), strict=True):
        assert str(row.served.composition) == composition
        panel.activate(composition)
        with torch.no_grad():
            assert torch.allclose(model(**padded([row], torch.device("cpu"))).logits[0], scores["logits"], atol=1e-5)


def test_where_padding_changes_answers_texts_are_run_one_at_a_time() -> None:
    torch.manual_seed(0)
    config = transformers.FNetConfig(
        vocab_size=72, hidden_size=32, num_hidden_layers=2, intermediate_size=64, max_position_embeddings=64
    )
    model = transformers.FNetModel(
        config
    ).eval()  # mixes tokens by a Fourier transform over all positions, masked or not
    panel = adapters(model)
    panel.add("a", "seq_bn")
    panel.add_head("a", ClassificationHead(num_labels=2))
    shake(panel.head_module("a"), 1)
    tokenizer = tokenizer_of("bert")
    tokenizer.model_input_names = ["input_ids", "token_type_ids"]
    with pytest.warns(AdaptergitWarning, match="one at a time"):
        service = service_of(model, tokenizer)
    rows = encode(service.adapters["a"], ["w1", "w1 w2 w3"])
    assert rows[0].lane != rows[1].lane


def test_what_can_be_mixed_is_mixed_without_a_warning(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    packages = save_adapters(base, tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("error", AdaptergitWarning)
        assert not any(one.alone for one in open_service([str(p) for p in packages], base=base).adapters.values())


@dataclass(frozen=True, eq=False)
class Number:
    """A row that stands for a number."""

    value: int
    lane: str = ""
    length: int = 1


def double(rows: Sequence[Number]) -> list[int]:
    return [2 * row.value for row in rows]


async def ask(batcher: Batcher[Number, int], *rows: Number) -> list[int]:
    with batcher.admit(len(rows)):
        return await batcher.answers(rows)


@given(
    requests=st.lists(
        st.lists(st.tuples(st.integers(), st.sampled_from("ab"), st.integers(1, 9)), min_size=1, max_size=5),
        max_size=20,
    ),
    max_batch=st.integers(1, 7),
)
@settings(deadline=None)
def test_every_request_gets_its_own_rows_back(requests: Any, max_batch: int) -> None:
    batches: list[Sequence[Number]] = []

    async def all_of_them() -> list[list[int]]:
        async with Batcher(
            double, max_batch=max_batch, max_wait=0.0, observe=lambda rows, _: batches.append(rows)
        ) as batcher:
            return await asyncio.gather(*(ask(batcher, *(Number(*row) for row in one)) for one in requests))

    found = asyncio.run(all_of_them())
    assert found == [[2 * value for value, _, _ in one] for one in requests]
    assert all(len(batch) <= max_batch and len({row.lane for row in batch}) == 1 for batch in batches)
    assert sum(map(len, batches)) == sum(map(len, requests))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=7), st.integers(1, 4), st.integers(0, 80))
@settings(deadline=None)
def test_no_other_way_of_cutting_rows_into_batches_costs_less(lengths: list[int], most: int, overhead: int) -> None:
    lengths.sort()

    def cost(cuts: Iterable[slice]) -> int:
        return sum(overhead + len(lengths[cut]) * max(lengths[cut]) for cut in cuts)

    ways = []
    for marks in itertools.product([False, True], repeat=len(lengths) - 1):
        ends = [0, *(i + 1 for i, cut in enumerate(marks) if cut), len(lengths)]
        ways.append([slice(a, b) for a, b in itertools.pairwise(ends)])
    found = best_cuts(lengths, most, overhead)
    assert found in ways
    assert cost(found) == min(cost(way) for way in ways if all(len(lengths[cut]) <= most for cut in way))


def test_rows_wait_for_each_other_and_the_longest_waiting_goes_first() -> None:
    batches: list[list[int]] = []
    go = threading.Event()

    def run(rows: Sequence[Number]) -> list[int]:
        go.wait()
        batches.append([row.value for row in rows])
        return double(rows)

    async def main() -> None:
        async with Batcher(run, max_batch=2, max_wait=0.0) as batcher:
            lengths = {0: 1, 1: 9, 2: 1, 3: 9, 4: 1}
            tasks = [asyncio.create_task(ask(batcher, Number(0)))]
            while not batcher.admitted:
                await asyncio.sleep(0)
            await asyncio.sleep(0.01)  # the first is with the model; the others come while it is busy
            tasks += [asyncio.create_task(ask(batcher, Number(i, length=lengths[i]))) for i in range(1, 5)]
            while batcher.admitted < 5:
                await asyncio.sleep(0)
            go.set()
            await asyncio.gather(*tasks)

    asyncio.run(main())
    assert batches == [[0], [1, 3], [2, 4]]


def test_a_row_that_fails_takes_no_other_with_it() -> None:
    def run(rows: Sequence[Number]) -> list[int]:
        if any(row.value == 13 for row in rows):
            raise RuntimeError("unlucky")
        return double(rows)

    async def main() -> list[Any]:
        async with Batcher(run, max_wait=0.01) as batcher:
            return await asyncio.gather(*(ask(batcher, Number(i)) for i in (12, 13, 14)), return_exceptions=True)

    first, failed, last = asyncio.run(main())
    assert (first, last) == ([24], [28])
    assert isinstance(failed, RuntimeError)


def test_results_that_are_too_few_are_given_to_nobody() -> None:
    async def main() -> list[Any]:
        async with Batcher(lambda rows: double(rows)[1:], max_wait=0.01) as batcher:
            return await asyncio.gather(*(ask(batcher, Number(i)) for i in range(3)), return_exceptions=True)

    assert all(isinstance(found, ModelError) for found in asyncio.run(main()))


def test_a_full_queue_refuses_at_once_and_says_when_to_come_again() -> None:
    go = threading.Event()

    def run(rows: Sequence[Number]) -> list[int]:
        go.wait()
        return double(rows)

    async def main() -> None:
        async with Batcher(run, queue=3, max_wait=0.0) as batcher:
            waiting = asyncio.create_task(ask(batcher, Number(1), Number(2)))
            while not batcher.admitted:
                await asyncio.sleep(0)
            with pytest.raises(Refused) as refused:
                await ask(batcher, Number(3), Number(4))
            assert 1 <= refused.value.seconds <= 60
            last = asyncio.create_task(ask(batcher, Number(5)))
            await asyncio.sleep(0)
            go.set()
            assert (await waiting, await last) == ([2, 4], [10])
            assert batcher.admitted == 0

    asyncio.run(main())


def test_closing_answers_what_was_begun_and_takes_nothing_new() -> None:
    go = threading.Event()

    def run(rows: Sequence[Number]) -> list[int]:
        go.wait()
        return double(rows)

    async def main() -> None:
        batcher = Batcher(run, max_batch=1, max_wait=10.0)
        await batcher.__aenter__()
        begun = [asyncio.create_task(ask(batcher, Number(i))) for i in range(4)]
        while batcher.admitted < 4:
            await asyncio.sleep(0)
        closing = asyncio.create_task(batcher.__aexit__())
        await asyncio.sleep(0)
        with pytest.raises(Refused) as refused:
            await ask(batcher, Number(9))
        assert refused.value.seconds is None
        go.set()
        await closing
        assert [await task for task in begun] == [[0], [2], [4], [6]]

    asyncio.run(main())


@pytest.mark.parametrize("sizes", [{"max_batch": 0}, {"max_wait": -1.0}, {"max_wait": float("nan")}])
def test_sizes_without_a_meaning_are_refused(sizes: Any) -> None:
    with pytest.raises(UsageError):
        Batcher(double, **sizes)
