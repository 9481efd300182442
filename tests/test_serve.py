"""``adaptergit serve``: a real server, asked over real sockets by many clients at once."""

from __future__ import annotations

import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
import transformers
import uvicorn
from click.testing import CliRunner
from conftest import GOLDEN, Hub
from serving import KINDS, WORDS, Server, base_folder, model_of, save_adapters, serving, shake

import adaptergit
from adaptergit.cli import main
from adaptergit.errors import AdaptergitError, ModelError, NotFoundError, UsageError
from adaptergit.package.editing import edit_card
from adaptergit.publish import publish
from adaptergit.serve.app import Limits, create_app
from adaptergit.serve.names import split_name
from adaptergit.serve.service import Service, open_service, service_of
from adaptergit.splice import ClassificationHead, adapters


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_folder(tmp_path_factory.mktemp("serve") / "base")


@pytest.fixture(scope="module")
def packages(base: Path) -> list[Path]:
    return save_adapters(base, base.parent / "out")


@pytest.fixture(scope="module")
def server(base: Path, packages: list[Path]) -> Iterator[Server]:
    home = base.parent / "home"
    places = {"HOME": home, "ADAPTERGIT_CONFIG_DIR": home / "config", "ADAPTERGIT_CACHE_DIR": home / "cache"}
    with serving(packages, "--base", str(base), env={name: str(path) for name, path in places.items()}) as running:
        yield running


def alone(base: Path, package: Path) -> Any:
    """A function that answers as the adapter does alone in its model, one text at a time."""
    model, tokenizer = adaptergit.load(package, model_of(base)), transformers.AutoTokenizer.from_pretrained(base)

    def answer(text: str, pair: str | None = None) -> Any:
        with torch.no_grad():
            return model(**tokenizer(text, pair, truncation=True, max_length=24, return_tensors="pt"))

    return answer


def labels_of(name: str) -> list[str]:
    head: Any = KINDS[name][1]
    return list(head.labels) or [str(i) for i in range(head.num_labels)]


@pytest.mark.slow
def test_many_clients_at_once_each_get_their_adapters_own_answers(server: Server, base: Path) -> None:
    names = ["two", "five", "same", "prefix", "inverted", "number", "many", "prompted"]
    rng = random.Random(7)
    wanted = [
        (rng.choice(names), [" ".join(rng.choices(WORDS, k=rng.randint(1, 22))) for _ in range(rng.randint(1, 3))])
        for _ in range(150)
    ]
    before = server.metrics()
    with ThreadPoolExecutor(12) as clients:
        found = list(clients.map(lambda one: server.predict(adapter=one[0], texts=one[1]), wanted))
    models = {name: alone(base, base.parent / "out" / name) for name in names}
    for (name, texts), response in zip(wanted, found, strict=True):
        assert response.status_code == 200
        assert response.json()["adapter"] == name
        for text, prediction in zip(texts, response.json()["predictions"], strict=True):
            logits = models[name](text).logits[0]
            if name == "number":
                assert prediction["value"] == pytest.approx(float(logits), abs=1e-4)
                continue
            expected = dict(
                zip(labels_of(name), (logits.sigmoid() if name == "many" else logits.softmax(0)).tolist(), strict=True)
            )
            given = dict(zip(prediction["labels"], prediction["scores"], strict=True))
            assert given == pytest.approx(expected, abs=1e-4)
            assert prediction["scores"] == sorted(prediction["scores"], reverse=True)
    after = server.metrics()
    grown = {name: after[name] - before.get(name, 0.0) for name in after}
    assert sum(v for k, v in grown.items() if k.startswith("adaptergit_requests_total") and "status=200" in k) == 150
    assert grown["adaptergit_request_seconds_count"] == 150
    assert grown["adaptergit_batch_rows_sum"] == sum(len(texts) for _, texts in wanted)
    assert grown["adaptergit_batch_adapters_sum"] > grown["adaptergit_batch_adapters_count"]  # they did share batches
    assert after["adaptergit_queue_rows"] == 0


def test_tags_are_told_word_by_word_with_their_places(server: Server, base: Path) -> None:
    text = "  w3 w4,w5 w6\tw7"
    words = server.predict(adapter="tags", text=text).json()["predictions"][0]["words"]
    assert [word["text"] for word in words] == ["w3", "w4", ",", "w5", "w6", "w7"]
    assert all(text[word["start"] : word["end"]] == word["text"] for word in words)
    scores = alone(base, base.parent / "out" / "tags")(text).logits[0, 1:-1].softmax(-1)
    assert [word["score"] for word in words] == pytest.approx(scores.amax(-1).tolist(), abs=1e-4)
    assert [word["label"] for word in words] == ["OBI"[i] for i in scores.argmax(-1).tolist()]


def test_tags_behind_a_prompt_are_the_texts_own(server: Server, base: Path) -> None:
    words = server.predict(adapter="prompt", text="w3 w4 w5").json()["predictions"][0]["words"]
    scores = alone(base, base.parent / "out" / "prompt")("w3 w4 w5").logits[0, -4:-1].softmax(-1)
    assert [word["score"] for word in words] == pytest.approx(scores.amax(-1).tolist(), abs=1e-4)


def test_a_question_is_answered_with_a_part_of_the_context(server: Server, base: Path) -> None:
    question, context = "w1 w2", "w3 w4 w5 w6 w7"
    found = server.predict(adapter="answers", text=question, text_pair=context, top_k=50).json()["predictions"][0]
    output = alone(base, base.parent / "out" / "answers")(question, context)
    first, last = (logits[0, [0, *range(4, 9)]].softmax(0) for logits in (output.start_logits, output.end_logits))
    words = context.split()
    expected = {" ".join(words[a - 1 : b]): float(first[a] * last[b]) for a in range(1, 6) for b in range(a, 6)}
    assert {one["text"]: one["score"] for one in found["answers"]} == pytest.approx(expected, abs=1e-4)
    assert found["no_answer"] == pytest.approx(float(first[0] * last[0]), abs=1e-4)
    assert all(context[one["start"] : one["end"]] == one["text"] for one in found["answers"])
    assert found["answers"][0]["score"] == max(one["score"] for one in found["answers"])
    best = server.predict(adapter="answers", text=question, text_pair=context).json()["predictions"][0]
    assert best["answers"] == found["answers"][:1]


def test_the_best_few_labels_can_be_asked_for(server: Server) -> None:
    whole = server.predict(adapter="five", text="w1 w2").json()["predictions"][0]
    best = server.predict(adapter="five", text="w1 w2", top_k=2).json()["predictions"][0]
    assert best == {"labels": whole["labels"][:2], "scores": whole["scores"][:2]}
    assert len(server.predict(adapter="five", text="w1", top_k=99).json()["predictions"][0]["labels"]) == 5


WRONG: list[tuple[dict[str, Any] | bytes, int, str, str]] = [
    ({"adapter": "too", "text": "w1"}, 404, "unknown-adapter", "two"),
    ({"adapter": "x", "text": "w1"}, 404, "unknown-adapter", "/v1/adapters"),
    ({"adapter": "\ud800", "text": "w1"}, 422, "invalid-input", "adapter"),
    ({"adapter": "two"}, 422, "invalid-input", "text"),
    ({"adapter": "two", "text": "w1", "texts": ["w1"]}, 422, "invalid-input", "text"),
    ({"adapter": "two", "texts": []}, 422, "invalid-input", "texts"),
    ({"adapter": "two", "texts": ["w1"] * 65}, 422, "invalid-input", "texts"),
    ({"adapter": "two", "texts": ["w1", 2]}, 422, "invalid-input", "texts.1"),
    ({"adapter": "two", "texts": ["w1", "w" * 20_001]}, 422, "invalid-input", "texts.1"),
    ({"adapter": "two", "text": "\udc00"}, 422, "invalid-input", "text"),
    ({"adapter": "two", "texts": ["w1", "w2"], "text_pairs": ["w1"]}, 422, "invalid-input", "text_pairs"),
    ({"adapter": "two", "text": "w1", "text_pairs": ["w1"]}, 422, "invalid-input", "text_pairs"),
    ({"adapter": "two", "texts": ["w1"], "text_pair": "w1"}, 422, "invalid-input", "text_pair"),
    ({"adapter": "two", "text": "w1", "top_k": 0}, 422, "invalid-input", "top_k"),
    ({"adapter": "two", "text": "w1", "top_k": True}, 422, "invalid-input", "top_k"),
    ({"adapter": "number", "text": "w1", "top_k": 1}, 422, "invalid-input", "top_k"),
    ({"adapter": "two", "text": "w1", "model": "x"}, 422, "invalid-input", "model: there is no such field"),
    ({"text": "w1"}, 422, "invalid-input", "adapter: is missing"),
    ({"adapter": "two", "text": 3}, 422, "invalid-input", "text: is no text"),
    ({"adapter": "two", "texts": "w1"}, 422, "invalid-input", "texts: is no list"),
    ({"adapter": "two", "text": "w1", "top_k": "3"}, 422, "invalid-input", "top_k: is no whole number"),
    ({"adapter": "answers", "text": "w1"}, 422, "invalid-input", "text_pair"),
    ({"adapter": "choice", "text": "w1"}, 422, "not-served", "adapter"),
    (b"", 422, "invalid-input", "body"),
    (b"{", 422, "invalid-input", "body"),
    (b"[]", 422, "invalid-input", "body: is no JSON object"),
    (b"\xff\xfe", 422, "invalid-input", "body"),
    (b"[" * 100_000, 400, "invalid-input", "body"),
    (b'{"adapter": "two", "text": "' + b"w" * (4 << 20) + b'"}', 413, "too-large", "4,194,304"),
]


@pytest.mark.parametrize(("body", "status", "code", "named"), WRONG, ids=lambda value: str(value)[:40])
def test_what_is_wrong_is_named_and_harms_nobody(
    server: Server, body: dict[str, Any] | bytes, status: int, code: str, named: str
) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = requests.post(f"{server.url}/v1/predict", data=data, headers={"Content-Type": "application/json"})
    problem = response.json()
    assert (response.status_code, problem["status"], problem["code"]) == (status, status, code)
    assert response.headers["Content-Type"] == "application/problem+json"
    assert named in response.text
    assert server.predict(adapter="two", text="w1").status_code == 200


@pytest.mark.slow
def test_a_second_text_goes_to_adapters_that_were_trained_on_pairs(
    base: Path, packages: list[Path], tmp_path: Path
) -> None:
    for name, columns in (("one", {"text": "review"}), ("both", {"text": "premise", "pair": "hypothesis"})):
        shutil.copytree(packages[0], tmp_path / name)
        edit_card(tmp_path / name / "card.yaml", [f"training.hyperparameters.columns={json.dumps(columns)}"])
    with serving([f"{name}={tmp_path / name}" for name in ("one", "both")], "--base", str(base)) as server:
        pair = {"text": "w1", "text_pair": "w2"}
        assert server.predict(adapter="one", text="w1").status_code == 200
        assert server.predict(adapter="both", **pair).status_code == 200
        one, both = server.predict(adapter="one", **pair), server.predict(adapter="both", text="w1")
    assert (one.status_code, "trained on one text" in one.text) == (422, True)
    assert (both.status_code, "reads two texts" in both.text) == (422, True)


def test_who_asks_for_nothing_is_told_what_there_is(server: Server) -> None:
    for path in ("/", "/v1", "/v1/predict"):
        assert server.get(path).json()["hint"].startswith("POST /v1/predict answers texts")


def test_a_body_that_is_not_said_to_be_json_is_answered_with_what_to_send(server: Server) -> None:
    response = requests.post(f"{server.url}/v1/predict", data=b'{"adapter": "two", "text": "w1"}')
    assert (response.status_code, response.json()["hint"]) == (422, "send Content-Type: application/json")


def test_a_body_without_a_length_is_limited_too(server: Server) -> None:
    pieces = (b"w" * 65536 for _ in range(80))
    response = requests.post(f"{server.url}/v1/predict", data=pieces, headers={"Content-Type": "application/json"})
    assert response.status_code == 413


def test_a_client_that_goes_away_harms_nobody(server: Server) -> None:
    body = json.dumps({"adapter": "two", "texts": [" ".join(WORDS)] * 64}).encode()
    port = int(server.url.rpartition(":")[2])
    for sent in (body[:100], body):
        with socket.create_connection(("127.0.0.1", port)) as client:
            head = f"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + sent)
    assert server.predict(adapter="two", text="w1").status_code == 200


def test_adapters_are_listed_with_what_they_answer(server: Server) -> None:
    listed = server.get("/v1/adapters").json()
    assert listed["adapters"] == server.facts["adapters"]
    assert [one["name"] for one in listed["adapters"]] == list(KINDS)
    by_name = {one["name"]: one for one in listed["adapters"]}
    assert by_name["two"] | {"reference": ""} == {
        "name": "two", "reference": "", "version": "0.1.0", "digest": None, "signers": [], "task": "classification",
        "labels": ["no", "yes"], "description": by_name["two"]["description"],
    }  # fmt: skip
    assert by_name["number"]["task"] == "regression"
    assert by_name["choice"]["task"] is None


def test_health_and_interface_are_told(server: Server) -> None:
    assert server.get("/healthz").json() == {"status": "ok", "adapters": len(KINDS)}
    described = server.get("/openapi.json").json()
    assert set(described["paths"]) == {"/v1/predict", "/v1/adapters", "/healthz", "/metrics"}
    assert "Problem" in described["components"]["schemas"]
    missing = server.get("/v1/predictions")
    assert (missing.status_code, missing.json()["code"]) == (404, "not-found")


def test_errors_are_counted_by_their_code(server: Server) -> None:
    before = server.metrics()
    server.predict(adapter="two")
    after = server.metrics()
    for name in ("adaptergit_errors_total,code=invalid-input", "adaptergit_requests_total,adapter=two,status=422"):
        assert after[name] == before.get(name, 0.0) + 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=str)
def test_a_server_that_is_stopped_answers_what_was_begun(
    packages: list[Path], base: Path, number: signal.Signals
) -> None:
    with serving(packages[:2], "--base", str(base), "--max-batch", "1") as server, ThreadPoolExecutor(8) as clients:
        texts = [" ".join(WORDS[i : i + 20]) for i in range(40)] + ["w1"] * 24
        asked = [clients.submit(server.predict, adapter="two", texts=texts) for _ in range(8)]
        while True:  # until all are with the server, and not all are answered
            seen = server.metrics()
            done = seen.get("adaptergit_requests_total,adapter=two,status=200", 0.0)
            if done * len(texts) + seen["adaptergit_queue_rows"] == 8 * len(texts):
                break
        assert done < 8
        server.process.send_signal(number)
        answers = [one.result() for one in asked]
        assert [answer.status_code for answer in answers] == [200] * 8
        assert len({answer.text for answer in answers}) == 1
        assert server.process.wait() == 0
        with pytest.raises(requests.ConnectionError):
            server.get("/healthz")


def half_sent(port: int) -> socket.socket:
    """A client that stops in the middle of its body."""
    client = socket.create_connection(("127.0.0.1", port))
    client.sendall(
        b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
    )
    return client


@pytest.mark.slow
def test_a_half_sent_request_keeps_no_server_from_stopping(
    packages: list[Path], base: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with (
        serving(packages[:1], "--base", str(base), "--grace", "1") as server,
        half_sent(int(server.url.rpartition(":")[2])),
    ):
        assert server.predict(adapter="two", text="w1").status_code == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait() == 0
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_a_server_that_is_killed_leaves_no_client_waiting(packages: list[Path], base: Path) -> None:
    with serving(packages[:1], "--base", str(base), "--max-batch", "1") as server, ThreadPoolExecutor(4) as clients:
        asked = [clients.submit(server.predict, adapter="two", texts=["w1 w2"] * 64) for _ in range(4)]
        while not server.metrics()["adaptergit_queue_rows"]:
            pass
        server.process.kill()
        failed = [one.exception() for one in asked]
        assert any(isinstance(error, requests.ConnectionError) for error in failed)
        assert all(error is None or isinstance(error, requests.ConnectionError) for error in failed)


@pytest.fixture
def small(base: Path) -> Iterator[tuple[str, Service]]:
    """A server in this process with little room, whose model can be held up."""
    model = model_of(base)
    panel = adapters(model)
    panel.add("a", "seq_bn")
    panel.add_head("a", ClassificationHead(num_labels=2))
    shake(panel.head_module("a"), 1)
    service = service_of(model, transformers.AutoTokenizer.from_pretrained(base))
    app = create_app(service, max_batch=4, max_wait_ms=0, limits=Limits(texts=4, queue=6, seconds=0.5))
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}", service
        finally:
            server.should_exit = True
            thread.join()


def test_when_too_much_waits_clients_are_told_to_come_again(small: tuple[str, Service]) -> None:
    url, service = small
    go = threading.Event()
    held = service.model.register_forward_pre_hook(lambda *_: go.wait() and None)

    def ask(count: int) -> requests.Response:
        return requests.post(f"{url}/v1/predict", json={"adapter": "a", "texts": ["w1"] * count})

    with ThreadPoolExecutor(2) as clients:
        begun = [clients.submit(ask, 3) for _ in range(2)]
        while "adaptergit_queue_rows 6.0" not in requests.get(f"{url}/metrics").text:
            pass
        refused = ask(1)
        assert (refused.status_code, refused.json()["code"]) == (503, "busy")
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert requests.get(f"{url}/healthz").status_code == 200  # busy is not ill
        go.set()
        assert [one.result().status_code for one in begun] == [200, 200]
    held.remove()
    assert ask(4).status_code == 200


def test_a_body_that_does_not_arrive_is_refused(small: tuple[str, Service]) -> None:
    url, _ = small
    with half_sent(int(url.rpartition(":")[2])) as client, client.makefile("rb") as answer:
        said = answer.read().decode()  # to the end: the server closes the connection
    assert said.startswith("HTTP/1.1 408 ")
    assert '"code":"too-slow"' in said
    assert requests.post(f"{url}/v1/predict", json={"adapter": "a", "text": "w1"}).status_code == 200


def test_a_model_that_fails_is_an_answer_too_and_the_next_one_is_answered(small: tuple[str, Service]) -> None:
    url, service = small

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    held = service.model.register_forward_pre_hook(fail)
    failed = requests.post(f"{url}/v1/predict", json={"adapter": "a", "texts": ["w1", "w2"]})
    assert (failed.status_code, failed.json()["code"]) == (500, "failed")
    assert "memory" not in failed.text
    held.remove()
    assert requests.post(f"{url}/v1/predict", json={"adapter": "a", "text": "w1"}).status_code == 200


def refused(*argv: str | Path, code: int) -> str:
    """Run to a refusal; whatever the port was, nobody is on it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "adaptergit", "serve", *map(str, argv), "--port", str(port)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "serving" not in done.stdout
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", port)) != 0
    return done.stderr


@pytest.mark.slow
def test_adapters_of_two_base_models_are_refused_by_name(packages: list[Path], base: Path, tmp_path: Path) -> None:
    other = save_adapters(base_folder(tmp_path / "other", "roberta"), tmp_path / "out", {"stray": KINDS["two"]})
    said = refused(packages[0], packages[1], *other, "--base", base, code=7)
    assert "'two'" in said
    assert "'stray'" in said


def test_what_cannot_be_served_is_refused_by_name(packages: list[Path], base: Path, tmp_path: Path) -> None:
    headless = save_adapters(base, tmp_path / "out", {"headless": ("seq_bn", None)})
    cases: list[tuple[list[Any], dict[str, Any], type[AdaptergitError], str]] = [
        (
            [*packages[:1], *headless],
            {"base": base},
            ModelError,
            r"'headless' was published without a head.*\n.*add_head",
        ),
        (packages[:1] * 2, {"base": base}, UsageError, "called 'two'"),
        (packages[:1], {"base": GOLDEN / "bases" / "roberta"}, ModelError, r"another base model[^$]*with --base"),
        ([packages[0], tmp_path / "nowhere"], {"base": base}, NotFoundError, "nowhere"),
        (packages[:1], {"base": tmp_path / "nowhere"}, NotFoundError, "no such folder"),
        (packages[:1], {"offline": True}, NotFoundError, "acme/tiny"),  # neither a base nor a mapping
        (packages[:1], {"base": base, "device": "toaster"}, UsageError, "toaster"),
        ([], {}, UsageError, "nothing to serve"),
    ]
    for references, options, error, said in cases:
        with pytest.raises(error, match=said):
            open_service([str(reference) for reference in references], **options)


@pytest.mark.parametrize("option", ["--max-batch=0", "--max-wait-ms=-1", "--port=65536", "--policy=lax", "--grace=0"])
def test_options_without_a_meaning_are_refused(packages: list[Path], option: str) -> None:
    assert CliRunner().invoke(main, ["serve", str(packages[0]), option]).exit_code == 2


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(packages: list[Path], base: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        command = [sys.executable, "-m", "adaptergit", "serve", str(packages[0]), "--base", str(base)]
        port = str(taken.getsockname()[1])
        done = subprocess.run([*command, "--port", port], capture_output=True, text=True, check=False)
    assert done.returncode == 6
    assert port in done.stderr
    assert "verifying" not in done.stderr


@pytest.mark.slow
def test_one_adapter_under_two_names(packages: list[Path], base: Path) -> None:
    with serving([packages[0], f"again={packages[0]}"], "--base", str(base)) as server:
        one, other = (server.predict(adapter=name, text="w1 w2").json() for name in ("two", "again"))
        assert one["predictions"] == other["predictions"]
        assert other["adapter"] == "again"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("acme/adapters@ner", (None, "acme/adapters@ner")),
        ("acme/adapters@ner==1.2.0", (None, "acme/adapters@ner==1.2.0")),
        ("ner==1.2.0", (None, "ner==1.2.0")),
        ("x=acme/adapters@ner==1.2.0", ("x", "acme/adapters@ner==1.2.0")),
        ("x=./out=1", ("x", "./out=1")),
        ("./x=y", (None, "./x=y")),
        ("x=", (None, "x=")),
    ],
)
def test_another_name_is_told_from_a_version(text: str, expected: tuple[str | None, str]) -> None:
    assert split_name(text) == expected


@pytest.mark.slow
def test_a_release_is_served_only_if_its_signer_is_known(
    hub: Hub, packages: list[Path], base: Path, home: Path
) -> None:
    published = publish(packages[0], clone=hub.clone, key=hub.key.path)
    reference = f"{hub.url}@two"
    (home / "config").mkdir()
    (home / "config" / "config.toml").write_text(f'[base_models]\n"acme/tiny" = {json.dumps(str(base))}\n')
    assert "nobody you know" in refused(packages[1], reference, code=4)
    hub.trust()
    adaptergit.lock([reference], path=home / "adaptergit.lock")
    options = ("--lock", str(home / "adaptergit.lock"), "--offline")
    hub.server.reset()
    with serving([f"first={reference}", packages[1]], *options) as server:
        signed, plain = server.get("/v1/adapters").json()["adapters"]
        assert (signed["name"], signed["reference"], signed["version"]) == ("first", reference, "0.1.0")
        assert signed["digest"] == published.digest
        assert len(signed["signers"]) == 1
        assert plain["signers"] == []
        assert server.facts["base_model"] == "acme/tiny"
        assert server.predict(adapter="first", text="w1").status_code == 200
    assert not hub.server.traffic.requests


@pytest.mark.slow
def test_without_the_extra_it_is_said_what_to_install(packages: list[Path]) -> None:
    script = "import sys; sys.modules['fastapi'] = None; from adaptergit.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "serve", str(packages[0])], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert f"{sys.executable} -m pip install 'adaptergit[serve]'" in done.stderr
