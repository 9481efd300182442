"""What one adapter out of many costs on the wire and in time, against cloning the repository. Run: make bench."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from adaptergit.git import GitServer
from adaptergit.package import Card
from adaptergit.pins import pin_key
from adaptergit.publish import publish
from adaptergit.resolve import fetch
from adaptergit.trust import generate_key

ADAPTERS, SIZE, ROUNDS = 20, 3_500_000, 5


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ |= {"HOME": folder, "ADAPTERGIT_CONFIG_DIR": f"{folder}/config", "GIT_CONFIG_NOSYSTEM": "1"}
        (root / ".gitconfig").write_text("[user]\nname = b\nemail = b@example.org\n[init]\ndefaultBranch = main\n")
        (root / "server").mkdir()
        with GitServer(root / "server") as server:
            result = measure(root, server)
    for name, row in result.items():
        print(f"{name:<22} {row['seconds']:8.3f} s  {row['bytes']:>12,} bytes  {row['requests']:>3} requests")
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "fetch.json").write_text(json.dumps(result, indent=1) + "\n")


def measure(root: Path, server: GitServer) -> dict[str, dict[str, float]]:
    url = server.create("acme/adapters")
    key = generate_key(root / "key")
    subprocess.run(["git", "clone", "-q", url, str(root / "clone")], check=True, capture_output=True)
    for index in range(ADAPTERS):
        publish(package(root / f"out{index}", f"a{index}"), clone=root / "clone", key=key.path)
    pin_key("127.0.0.1/acme/adapters", key.public.line)
    os.environ["ADAPTERGIT_CACHE_DIR"] = str(root / "cache")

    def cold() -> None:
        shutil.rmtree(root / "cache", ignore_errors=True)
        fetch(f"{url}@a7")

    def warm() -> None:
        fetch(f"{url}@a7")

    def clone(*options: str) -> None:
        shutil.rmtree(root / "copy", ignore_errors=True)
        subprocess.run(["git", "clone", "-q", *options, url, str(root / "copy")], check=True)

    cases = {
        "adaptergit, first": cold,
        "adaptergit, again": warm,
        "git clone --depth 1": lambda: clone("--depth", "1"),
        "git clone": clone,
    }
    result = {}
    for name, action in cases.items():
        times = []
        for _ in range(ROUNDS):
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
    return result


def package(folder: Path, name: str) -> Path:
    folder.mkdir()
    card = {
        "name": name, "version": "1.0.0", "description": "Random bytes.", "task": {"type": "other"},
        "base_model": {"id": "acme/tiny", "model_type": "bert", "fingerprint": "fp1:2x32:" + "0" * 32 + ":"},
        "adapter": {"format": "adaptergit", "method": "seq_bn", "config": {}}, "license": "CC0-1.0",
    }  # fmt: skip
    (folder / "card.yaml").write_bytes(Card(card).to_yaml())
    (folder / "adapter.safetensors").write_bytes(os.urandom(SIZE))
    return folder


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    main()
