"""How long `import adaptergit` and `adaptergit --help` take, against starting Python itself. Run: make bench."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 20
CASES = {
    "python": ["-c", "pass"],
    "import adaptergit": ["-c", "import adaptergit"],
    "adaptergit --help": ["-m", "adaptergit", "--help"],
    "import transformers": ["-c", "import transformers"],
}


def seconds(arguments: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    times: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(ROUNDS):  # in turn, so that a busy moment hits all alike
        for name, arguments in CASES.items():
            times[name].append(seconds(arguments))
    base = statistics.median(times["python"])
    result = {}
    for name, values in times.items():
        median = statistics.median(values)
        result[name] = {"median_ms": round(1000 * median, 1), "above_python_ms": round(1000 * (median - base), 1)}
        print(f"{name:<22} {1000 * median:8.1f} ms   {1000 * (median - base):+8.1f} ms above python")
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "startup.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
