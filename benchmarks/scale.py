"""How publishing and loading grow with the releases a repository already has.

Run: ``python benchmarks/scale.py [--quick]``.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

from fetch import package
from results import save

from adaptergit.git import GitServer
from adaptergit.pins import pin_key
from adaptergit.publish import publish
from adaptergit.resolve import fetch
from adaptergit.trust import SigningKey, generate_key

SIZES, QUICK_SIZES, ROUNDS = (100, 1_000, 10_000), (100, 1_000), 5


def main() -> None:
    warnings.simplefilter("ignore")
    rows, quick = {}, "--quick" in sys.argv
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ |= {"HOME": folder, "ADAPTERGIT_CONFIG_DIR": f"{folder}/config", "GIT_CONFIG_NOSYSTEM": "1"}
        os.environ["ADAPTERGIT_CACHE_DIR"] = f"{folder}/cache"
        (root / ".gitconfig").write_text("[user]\nname = b\nemail = b@example.org\n[init]\ndefaultBranch = main\n")
        (root / "server").mkdir()
        key = generate_key(root / "key")
        with GitServer(root / "server") as server:
            for number in QUICK_SIZES if quick else SIZES:
                rows[number] = row = measure(root, server, key, number)
                print(f"{number:>7,} releases  " + "  ".join(f"{name} {value:,}" for name, value in row.items()))
    save("scale", {"sizes": rows}, quick=quick)


def measure(root: Path, server: GitServer, key: SigningKey, number: int) -> dict[str, float]:
    url = server.create(f"acme/n{number}")
    fill(root / "server" / "acme" / f"n{number}.git", number)
    clone = root / f"clone{number}"
    subprocess.run(["git", "clone", "-q", url, str(clone)], check=True, capture_output=True)
    pin_key(f"127.0.0.1/acme/n{number}", key.public.line)
    folder = package(root / f"out{number}", "new")
    publishing = []
    for patch in range(ROUNDS):
        started = time.perf_counter()
        publish(folder, clone=clone, key=key.path, version=f"1.0.{patch}")
        publishing.append(time.perf_counter() - started)
    loading, bytes_ = [], 0
    for patch in range(ROUNDS):
        server.reset()
        started = time.perf_counter()
        fetch(f"{url}@new==1.0.{patch}")
        loading.append(time.perf_counter() - started)
        bytes_ = server.traffic.sent + server.traffic.received
    server.reset()
    fetch(f"{url}@new", refresh=True)
    return {
        "publish s": round(statistics.median(publishing), 3),
        "load s": round(statistics.median(loading), 3),
        "load bytes": bytes_,
        "newest bytes": server.traffic.sent + server.traffic.received,
    }


def fill(bare: Path, number: int) -> None:
    """Write many small releases with fast-import: branch and tags."""
    stream = []
    for i in range(number):
        data, who = (
            f"release {i} ".encode() * 20,
            b"committer b <b@example.org> %d +0000\ndata 1\nx\n" % (1_700_000_000 + i),
        )
        parent = b"from :%d\n" % (2 * i - 1) if i else b""
        file = b" inline %s\ndata %d\n%s\n"
        stream.append(
            b"commit refs/heads/main\nmark :%d\n" % (2 * i + 1) + who + parent
            + b"M 100644" + file % (b"adapters/a%05d/card.yaml" % i, len(data), data)
            + b"commit refs/tags/adapters/a%05d/1.0.0\nmark :%d\n" % (i, 2 * i + 2) + who
            + b"M 100644" + file % (b"card.yaml", len(data), data)
        )  # fmt: skip
    subprocess.run(["git", "-C", str(bare), "fast-import", "--quiet"], input=b"".join(stream), check=True)
    subprocess.run(["git", "-C", str(bare), "pack-refs", "--all"], check=True)


if __name__ == "__main__":
    main()
