"""What one adapter out of many costs on the wire and in time, against what people would do by hand. Run: make bench.

``python benchmarks/fetch.py [--quick] [ADAPTERS]``: one of 3.5 MB in a repository of 1 GiB with 200 (quick: 40, and as
much less). The 10,000 releases are ``scale.py``'s.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy
from results import save
from safetensors.numpy import save as tensor_file

from adaptergit.git import GitServer
from adaptergit.judge import Asked, judged
from adaptergit.lock import lock, sync
from adaptergit.package import Card, read_package
from adaptergit.package.folder import check_file
from adaptergit.pins import pin_key
from adaptergit.publish import publish_all
from adaptergit.reference import Reference
from adaptergit.resolve import fetch
from adaptergit.settings import load_settings
from adaptergit.trust import generate_key

SIZE, ROUNDS, BATCH = 3_500_000, 5, 20
WANTED = 7
OTHERS = (2**30 - SIZE) // 199
"""Bytes of every other adapter: with 200, the repository has 1 GiB."""


def main() -> None:
    warnings.simplefilter("ignore")
    quick = "--quick" in sys.argv
    given = [int(value) for value in sys.argv[1:] if value != "--quick"]
    adapters = given[0] if given else 40 if quick else 200
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ |= {"HOME": folder, "ADAPTERGIT_CONFIG_DIR": f"{folder}/config", "GIT_CONFIG_NOSYSTEM": "1"}
        (root / ".gitconfig").write_text("[user]\nname = b\nemail = b@example.org\n[init]\ndefaultBranch = main\n")
        (root / "server").mkdir()
        with GitServer(root / "server") as server:
            result = measure(root, server, adapters)
    for name, row in result.items():
        print(f"{name:<52} {row['seconds']:8.3f} s  {row['bytes']:>13,} bytes  {row['requests']:>3} requests")
    save("fetch", {"adapters": adapters, "rows": result}, quick=quick)


def measure(root: Path, server: GitServer, adapters: int) -> dict[str, dict[str, float]]:
    url = server.create("acme/adapters")
    bare = root / "server" / "acme" / "adapters.git"
    subprocess.run(["git", "-C", str(bare), "config", "uploadpack.allowFilter", "true"], check=True)
    key = generate_key(root / "key")
    subprocess.run(["git", "clone", "-q", url, str(root / "clone")], check=True, capture_output=True)
    for start in range(0, adapters, BATCH):
        numbers = range(start, min(start + BATCH, adapters))
        folders = [package(root / f"out{i}", f"a{i}", SIZE if i == WANTED else OTHERS) for i in numbers]
        publish_all(folders, clone=root / "clone", key=key.path)
        for folder in folders:
            shutil.rmtree(folder)
    pin_key("127.0.0.1/acme/adapters", key.public.line)
    os.environ["ADAPTERGIT_CACHE_DIR"] = str(root / "cache")
    wanted = f"{url}@a{WANTED}"
    lock([wanted], path=root / "adaptergit.lock")

    def forgetting(action: Callable[[], object]) -> Callable[[], object]:
        def run() -> object:
            shutil.rmtree(root / "cache", ignore_errors=True)
            return action()

        return run

    def clone(*options: str) -> None:
        shutil.rmtree(root / "copy", ignore_errors=True)
        subprocess.run(["git", "clone", "-q", *options, url, str(root / "copy")], check=True)

    def sparse() -> None:
        clone("--filter=blob:none", "--depth=1", "--sparse")
        subprocess.run(["git", "-C", str(root / "copy"), "sparse-checkout", "set", f"adapters/a{WANTED}"], check=True)

    cases: dict[str, Callable[[], object]] = {
        "adaptergit, newest": forgetting(lambda: fetch(wanted)),
        "adaptergit, exact version": forgetting(lambda: fetch(f"{wanted}==1.0.0")),
        "adaptergit, locked": forgetting(lambda: fetch(wanted, lock=root / "adaptergit.lock")),
        "adaptergit, locked, and asked whether it was yanked": forgetting(lambda: sync(path=root / "adaptergit.lock")),
        "adaptergit, again": lambda: fetch(wanted),
        "git clone, blobless and sparse": sparse,
        "git clone --depth 1": lambda: clone("--depth", "1"),
        "git clone": clone,
    }
    result = {}
    for name, action in cases.items():
        times = []
        for _ in range(ROUNDS if "clone" not in name or "sparse" in name else 2):
            server.reset()
            started = time.perf_counter()
            action()
            times.append(time.perf_counter() - started)
        traffic = server.traffic
        result[name] = {
            "seconds": round(statistics.median(times), 4),
            "bytes": traffic.sent + traffic.received,
            "requests": len(traffic.requests),
        }
    checked = statistics.median(pinned(wanted, root / "adaptergit.lock") for _ in range(4 * ROUNDS))
    return result | {"signature and checksums, pinned": {"seconds": round(checked, 5), "bytes": 0, "requests": 0}}


def pinned(wanted: str, locked: Path) -> float:
    """Time what a pinned load does for trust: the signature, and the checksum of every byte."""
    path = fetch(wanted, lock=locked).path
    settings, reference = load_settings(), Reference.parse(wanted)
    started = time.perf_counter()
    package = read_package(path)
    verdict = judged(package.manifest_bytes, package.signatures, str(path), Asked(settings, reference=reference))
    for file in verdict.manifest.files:
        check_file(path / file.path, file)
    return time.perf_counter() - started


def package(folder: Path, name: str, size: int = SIZE) -> Path:
    folder.mkdir()
    card = {
        "name": name, "version": "1.0.0", "description": "Random bytes.", "task": {"type": "other"},
        "base_model": {"id": "acme/tiny", "model_type": "bert", "fingerprint": "fp1:2x32:" + "0" * 32 + ":"},
        "adapter": {"format": "adaptergit", "method": "seq_bn", "config": {}}, "license": "CC0-1.0",
    }  # fmt: skip
    (folder / "card.yaml").write_bytes(Card(card).to_yaml())
    weights = numpy.frombuffer(os.urandom(size), dtype=numpy.uint8)
    (folder / "adapter.safetensors").write_bytes(tensor_file({"blocks.0.ffn.down.weight": weights}))
    return folder


if __name__ == "__main__":
    main()
