"""What a user writes: load by reference, swap the language, fuse, drop. Started by run.py, which explains.

``python use.py URL LANGUAGE HELD_OUT.json`` prints JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import transformers

import adaptergit
from adaptergit.training import predict_logits, score

FUSE = "Fuse(place, sentence, component)"


def main(url: str, language: str, held_out: Path) -> dict[str, Any]:
    """Return scores and logits."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    rows = json.loads(held_out.read_text("utf-8"))
    both = ("en", language)
    scores: dict[str, dict[str, float]] = {}
    logits: dict[str, Any] = {}
    facts: dict[str, Any] = {"samples": len(rows), "scores": scores, "logits": logits, "dropped": []}

    model = adaptergit.load(f"{url}@component")  # brings the English adapter that it was trained on top of
    panel = adaptergit.adapters(model)
    facts["came along"] = sorted(panel.names)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model.config._name_or_path)

    def says(language: str) -> Any:
        return predict_logits(model, tokenizer, [row["texts"][language] for row in rows])

    def accuracy(task: str, found: Any, head: str | None = None) -> float:
        labels = panel.head_config(head or task).labels
        return score(found, [labels.index(row["labels"][task]) for row in rows]).accuracy

    def in_both(name: str, task: str, head: str | None = None) -> None:
        scores[name] = {one: accuracy(task, says(one), head) for one in both}

    commonest = Counter(row["labels"]["component"] for row in rows).most_common(1)[0][1]
    scores["component: majority"] = dict.fromkeys(both, round(commonest / len(rows), 6))
    logits["component"] = says("en").tolist()
    in_both(f"component: {panel.active}", "component")

    # Zero-shot: the other language below the same task adapter, which has never seen a word of it.
    swapped = adaptergit.load(f"{url}@component", dependencies=False)
    adaptergit.load(f"{url}@{language}", swapped)
    other = adaptergit.adapters(swapped)
    other.active = facts["swapped"] = f"Stack({language}, component)"
    found = {one: predict_logits(swapped, tokenizer, [row["texts"][one] for row in rows]) for one in both}
    scores[f"component: {other.active}"] = {one: accuracy("component", found[one]) for one in both}
    other.active = "component"
    found = {one: predict_logits(swapped, tokenizer, [row["texts"][one] for row in rows]) for one in both}
    scores["component: no language adapter"] = {one: accuracy("component", found[one]) for one in both}

    # Adapters in the upper blocks only: less to compute.
    facts["blocks"] = blocks = model.config.num_hidden_layers
    for lowest in range(blocks):
        panel.activate("Stack(en, component)", skip_layers=range(lowest))
        started = time.perf_counter()
        found_dropped = says("en")
        seconds = round(time.perf_counter() - started, 3)
        facts["dropped"].append(
            {"blocks": lowest, "accuracy": accuracy("component", found_dropped), "seconds": seconds}
        )

    # The fusion's head needs the fusion, which needs three tasks, which need English: all come along.
    model = adaptergit.load(f"{url}@fused")
    panel = adaptergit.adapters(model)
    facts["came along with the fusion"] = sorted(panel.names)
    panel.activate(f"Stack(en, {FUSE})", head="fused")
    logits["fused"] = says("en").tolist()
    in_both("component: fused, on en", "component", "fused")
    adaptergit.load(f"{url}@{language}", model, activate=False)
    panel.activate(f"Stack({language}, {FUSE})", head="fused")
    in_both(f"component: fused, on {language}", "component", "fused")

    # The other two tasks, each loaded as the first was.
    for task in ("place", "sentence"):
        model = adaptergit.load(f"{url}@{task}")
        panel = adaptergit.adapters(model)
        commonest = Counter(row["labels"][task] for row in rows).most_common(1)[0][1]
        scores[f"{task}: majority"] = dict.fromkeys(both, round(commonest / len(rows), 6))
        logits[task] = says("en").tolist()
        in_both(f"{task}: {panel.active}", task)
        adaptergit.load(f"{url}@{language}", model, activate=False)
        panel.active = f"Stack({language}, {task})"
        in_both(f"{task}: {panel.active}", task)
    return facts


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))))
