"""What an index of a given size costs: building, fetching, searching, updating. Run: make bench.

``python benchmarks/index.py [--quick] [RELEASES …]`` (default 10000 100000, quick 10000; 1000000 takes a quarter of an
hour and 6 GB of disk). Entries are synthetic, 200 to a source, with words of a Zipf distribution and excerpts of cards;
keys, signatures, shards, HTTP server and database are real. Sizes that were measured before are kept.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import statistics
import string
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from results import folder_of, save

from adaptergit.index.build import build
from adaptergit.index.entry import Entry, Metric
from adaptergit.index.maintain import init_index, sign_snapshot
from adaptergit.index.repository import IndexRepository
from adaptergit.index.repository import replace as write
from adaptergit.index.site import build_site
from adaptergit.index.sources import SourceFile, SourceKey
from adaptergit.index.words import Query
from adaptergit.indexes import client
from adaptergit.settings import load_settings
from adaptergit.trust import generate_key

PER_SOURCE = 200
WITH_PAGES = 10_000
"""Releases up to which the pages are measured as well."""
TASKS = [f"text-classification/{n}" for n in ("sst2", "imdb", "mnli", "qqp", "hate")] + [
    "token-classification/ner",
    "qa/squad",
]
BASES = ["FacebookAI/roberta-base", "google-bert/bert-base-uncased", "sentence-transformers/all-MiniLM-L6-v2"]
BASES += [f"org{n}/model-{n}" for n in range(60)]
METHODS, LICENSES = ["seq_bn", "lora", "double_seq_bn", "ia3", "prefix_tuning"], ["Apache-2.0", "MIT", "CC-BY-4.0"]
LANGUAGES = ["en", "de", "sw", "zh", "ar", "hi", "fr", "yo", "am", "qu"]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


def words(rng: random.Random) -> list[str]:
    return ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 10))) for _ in range(20_000)]


def entries(rng: random.Random, vocabulary: list[str], source: int, key: str) -> list[Entry]:
    principal = f"github.com/org{source % 4000}/adapters{source // 4000}"

    def text(count: int) -> list[str]:
        return [vocabulary[min(int(rng.paretovariate(0.6)) - 1, len(vocabulary) - 1)] for _ in range(count)]

    found = []
    for number in range(PER_SOURCE):
        said = text(14)
        base = rng.choice(BASES)
        found.append(
            Entry(
                id=f"{principal}@{said[0]}-{number}",
                url=f"https://{principal}.git",
                version="1.0.0",
                manifest_sha256=f"{rng.getrandbits(256):064x}",
                tree=f"{rng.getrandbits(160):040x}",
                size=rng.randint(10_000, 4_000_000),
                method=rng.choice(METHODS),
                task=rng.choice(TASKS),
                base_model=base,
                license=rng.choice(LICENSES),
                description=" ".join(said),
                languages=(rng.choice(LANGUAGES),),
                keywords=tuple(said[1:3]),
                signers=(key,),
                published=f"20{rng.randint(21, 26)}-{rng.randint(1, 12):02}-01T00:00:00Z",
                first_seen="2026-11-01T00:00:00Z",
                metrics=(Metric("dev", "accuracy", round(rng.random(), 4)),),
                fingerprint=f"fp1:12x768:{hashlib.sha256(base.encode()).hexdigest()[:32]}:",
                head="classification: negative, positive" if rng.random() < 0.5 else "",
                training=f"{said[3]}; {rng.randint(1, 99) * 1000:,} samples; learning_rate=0.0001, "
                f"epochs={rng.randint(1, 9)}; seed {rng.randint(0, 99)}; torch 2.9.0, transformers 5.0.0"
                if rng.random() < 0.6
                else "",
                limitations=" ".join(text(rng.randint(8, 40))) if rng.random() < 0.3 else "",
            )
        )
    return found


def measure(releases: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ |= {"ADAPTERGIT_CONFIG_DIR": f"{folder}/config", "ADAPTERGIT_CACHE_DIR": f"{folder}/cache"}
        rng, vocabulary = random.Random(1), words(random.Random(0))
        maintainer, online = generate_key(root / "maintainer"), generate_key(root / "online")
        index = IndexRepository(root / "index")
        public = [maintainer.public]
        first = init_index(
            index.root, "bench", maintainers=public, online=[online.public], threshold=1, keys=[maintainer]
        )
        sources = max(1, releases // PER_SOURCE)
        for number in range(sources):
            listed = entries(rng, vocabulary, number, online.public.fingerprint)
            principal = listed[0].principal
            source = SourceFile(principal, listed[0].url, (SourceKey(online.public),), "a@example.org")
            write(index.root / source.path, source.to_yaml())
            index.write_entries(principal, listed)
        print(f"{releases:,} releases of {sources:,} sources are written", flush=True)
        dist, now = root / "dist", datetime.now(UTC)
        result: dict[str, Any] = {"releases": releases, "sources": sources, "load": round(os.getloadavg()[0], 1)}
        result |= apart(_build, index.root, dist, now - timedelta(minutes=5))
        sign_snapshot(index, dist, online)
        if releases <= WITH_PAGES:
            result |= {"site_seconds": apart(_site, index.root, root / "pages")["site_seconds"]}
        handler = type(
            "Handler",
            (Quiet,),
            {"__init__": lambda s, *a, **k: SimpleHTTPRequestHandler.__init__(s, *a, directory=str(dist), **k)},
        )
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        user = client(load_settings())
        before = time.perf_counter()
        update = user.add(url, f"sha256:{first.digest}")
        result |= {
            "add_seconds": round(time.perf_counter() - before, 1),
            "add_bytes": update.received,
            "database_bytes": (root / "cache/indexes/bench/search.sqlite").stat().st_size,
        }
        principal = entries(random.Random(1), vocabulary, 0, "")[5].principal
        result |= queries(user, vocabulary, principal)
        for number in range(min(50, sources)):
            listed = index.entries(f"github.com/org{number % 4000}/adapters{number // 4000}")
            newer = replace(listed[0], version="1.1.0", manifest_sha256=f"{rng.getrandbits(256):064x}")
            index.write_entries(newer.principal, [*listed, newer])
        build(index, dist, root=first, now=now)
        sign_snapshot(index, dist, online)
        before = time.perf_counter()
        update = user.update("bench")
        assert update.refused == ()
        result |= {"update_50_seconds": round(time.perf_counter() - before, 2), "update_50_bytes": update.received}
        shutil.rmtree(root / "config")
        shutil.rmtree(root / "cache")
        before = time.perf_counter()
        lazy = client(load_settings())
        received = lazy.add(url, f"sha256:{first.digest}", lazy=True).received
        (known,) = lazy.known("github.com/org0/adapters0")
        shard = sum(path.stat().st_size for path in (root / "cache/indexes/bench/shards").rglob("*.zst"))
        result |= {
            "resolve_cold_bytes": received + shard,
            "resolve_cold_seconds": round(time.perf_counter() - before, 2),
        }
        assert known.entries()
        server.shutdown()
        return result


def apart(step: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """Do a step in a process of its own, whose memory is only the step's."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(step, arguments)


def _build(folder: Path, dist: Path, now: datetime) -> dict[str, float]:
    index, before = IndexRepository(folder), time.perf_counter()
    build(index, dist, root=index.current_root(), now=now)
    seconds = time.perf_counter() - before
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"build_seconds": round(seconds, 1), "peak_memory_mib": memory}


def _site(folder: Path, dist: Path) -> dict[str, float]:
    index, before = IndexRepository(folder), time.perf_counter()
    build_site(index, dist, root=index.current_root())
    return {"site_seconds": round(time.perf_counter() - before, 1)}


def queries(user: Any, vocabulary: list[str], principal: str) -> dict[str, dict[str, float]]:
    """Return the 95th percentiles, by the clock and of the processor alone: others may use the machine, too."""
    rng, database = random.Random(2), user.database("bench")
    five = (
        ("task", "sst2"),
        ("language", "de"),
        ("base_model", "roberta-base"),
        ("method", "lora"),
        ("license", "MIT"),
    )
    kinds = {
        "id": lambda: database.get(principal, "x"),
        "word": lambda: database.search(Query(rng.choice(vocabulary[:2000]))),
        "common word": lambda: database.search(Query(vocabulary[0])),
        "two facets": lambda: database.search(Query("", (("task", "ner"), ("language", "sw")))),
        "five facets and a word": lambda: database.search(Query(rng.choice(vocabulary[:50]), five)),
        "prefix": lambda: database.search(Query(rng.choice(vocabulary[:2000])[: rng.randint(2, 8)])),
        "no hit": lambda: database.search(Query("qqqqqqq zzzzzz", five)),
        "newest first": lambda: database.search(Query(rng.choice(vocabulary[:2000]), (), "newest")),
        "smallest first, common word": lambda: database.search(Query(vocabulary[0], (), "smallest")),
    }
    clock, processor = {}, {}
    for kind, ask in kinds.items():
        ask()
        times = []
        for _ in range(100):
            before = time.perf_counter(), time.process_time()
            ask()
            times.append((1000 * (time.perf_counter() - before[0]), 1000 * (time.process_time() - before[1])))
        clock[kind], processor[kind] = (
            round(statistics.quantiles(one, n=20)[-1], 2) for one in zip(*times, strict=True)
        )
    database.close()
    return {"queries_p95_ms": clock, "queries_p95_cpu_ms": processor}


def main() -> None:
    quick = "--quick" in sys.argv
    given = [int(value) for value in sys.argv[1:] if value != "--quick"]
    path = folder_of(quick) / "index.json"
    results = {str(one["releases"]): one for one in (json.loads(path.read_text())["sizes"] if path.exists() else [])}
    for size in given or ([10_000] if quick else [10_000, 100_000]):
        results[str(size)] = found = measure(size)
        print(json.dumps(found, indent=1), flush=True)
    save("index", {"sizes": [results[key] for key in sorted(results, key=int)]}, quick=quick)


if __name__ == "__main__":
    main()
