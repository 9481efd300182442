"""Results that have a form of their own, for the report, with what was promised."""

from __future__ import annotations

from typing import Any

from results import Result, Row

_ADAPTER_BYTES = 3_500_000


def fetched(raw: dict[str, Any]) -> Result:
    """Return what one adapter out of many costs on the wire."""
    rows = raw["rows"]
    result = _result("fetch", f"Fetching one adapter of 3.5 MB out of {raw['adapters']}", raw)
    for name, row in rows.items():
        who = "git" if name.startswith("git") else "ours"
        facts = {"requests": row["requests"]}
        result.rows.append(Row("time", who, name, row["seconds"], "s"))
        result.rows.append(Row("on the wire", who, name, row["bytes"], "bytes", facts=facts))
    result.rows.sort(key=lambda row: row.group, reverse=True)
    locked, newest = rows["adaptergit, locked"], rows["adaptergit, newest"]
    clone, sparse = rows["git clone"], rows["git clone, blobless and sparse"]
    result.target("bytes on the wire, pinned, against the adapter's", locked["bytes"] / _ADAPTER_BYTES, 1.005, "x")
    result.target("requests, pinned", locked["requests"], 2, "requests")
    for name, row in (("pinned", locked), ("newest", newest)):
        result.target(f"time against a full clone, {name}", row["seconds"] / clone["seconds"], 1 / 50, "x")
        what = f"time against a blobless sparse clone, {name} and verified"
        result.target(what, row["seconds"] / sparse["seconds"], 1, "x")
    again = rows["adaptergit, again"]
    result.target("again, from the store: requests", again["requests"], 0, "requests")
    result.target("again, from the store", again["seconds"], 0.010, "s")
    checked = rows.get("signature and checksums, pinned")
    found = None if checked is None else checked["seconds"]
    result.target("pinned, from the store: signature and checksums of 3.5 MB", found, 0.010, "s")
    return result


def scaled(raw: dict[str, Any]) -> Result:
    """Return how publishing and loading grow with the releases of a repository."""
    sizes = {int(size): row for size, row in raw["sizes"].items()}
    result = _result("scale", "A repository with many releases", raw)
    for name, unit in (("publish s", "s"), ("load s", "s"), ("load bytes", "bytes"), ("newest bytes", "bytes")):
        for size, row in sizes.items():
            title = name.removesuffix(" s").removesuffix(" bytes")
            what = {"s": "time", "bytes": "bytes on the wire"}[unit]
            shown = "load the newest" if title == "newest" else title
            result.rows.append(Row(f"{size:,} releases", "ours", f"{shown}: {what}", row[name], unit, x=size))
    least, most = min(sizes), max(sizes)
    grown = {name: sizes[most][name] / sizes[least][name] for name in ("load bytes", "load s")}
    result.target(f"bytes with {most:,} releases against {least:,}", grown["load bytes"], 1.005, "x")
    result.target(f"time with {most:,} releases against {least:,}", grown["load s"], 2, "x")
    return result


def indexed(raw: dict[str, Any]) -> Result:
    """Return what an index of a given size costs."""
    result = _result("index", "An index of many releases", raw)
    names = {
        "build_seconds": ("build", "s"),
        "site_seconds": ("pages", "s"),
        "add_seconds": ("add: fetch and make the database", "s"),
        "update_50_seconds": ("update after 50 changes", "s"),
        "peak_memory_mib": ("memory", "bytes"),
        "database_bytes": ("database", "bytes"),
        "add_bytes": ("add: bytes", "bytes"),
        "update_50_bytes": ("update after 50 changes: bytes", "bytes"),
        "resolve_cold_bytes": ("resolve one, nothing there: bytes", "bytes"),
    }
    for size in raw["sizes"]:
        count = size["releases"]
        for key, (title, unit) in names.items():
            if key not in size:
                continue
            value = size[key] * 2**20 if key.endswith("mib") else size[key]
            result.rows.append(Row(f"{count:,} releases", "ours", title, value, unit, x=count))
        for kind, milliseconds in size["queries_p95_ms"].items():
            title = f"query, 95th percentile: {kind}"
            result.rows.append(Row(f"{count:,} releases", "ours", title, milliseconds / 1000, "s", x=count))
    largest = max(raw["sizes"], key=lambda size: size["releases"])
    if largest["releases"] < 1_000_000:
        return result
    result.target("10⁶ releases: build", largest["build_seconds"], 600, "s")
    result.target("10⁶ releases: memory", largest["peak_memory_mib"] * 2**20, 2 * 2**30, "bytes")
    result.target("10⁶ releases: add", largest["add_seconds"], 180, "s")
    for kind, milliseconds in largest["queries_p95_ms"].items():
        result.target(f"10⁶ releases: query, 95th percentile, {kind}", milliseconds / 1000, 0.010, "s")
    result.target("10⁶ releases: update after 50 changes", largest["update_50_seconds"], 10, "s")
    result.target("10⁶ releases: update after 50 changes, bytes", largest["update_50_bytes"], 2_000_000, "bytes")
    result.target("10⁶ releases: resolve one, nothing there", largest["resolve_cold_bytes"], 300_000, "bytes")
    return result


def stressed(raw: dict[str, Any]) -> Result:
    """Return what many processes, kill -9 and attackers left behind."""
    result = _result("stress", "Many processes, kill -9 and attackers", raw)
    crowd, fetches, publications, attacks = raw["crowd"], *(raw["kills"][one] for one in _KILLED), raw["attacks"]
    group = f"{crowd['processes']} processes load {crowd['adapters']} adapters"
    for name in ("downloads", "failed", "damaged"):
        result.rows.append(Row(group, "ours", name, crowd[name], _TIMES))
    for title, row in (("fetches", fetches), ("publications", publications)):
        for name, value in row.items():
            shown = name.replace("_", " ")
            result.rows.append(Row(f"{row['tried']} {title}, kill -9 at random", "ours", shown, value, _TIMES))
    for name, value in attacks.items():
        result.rows.append(Row("attacks of the test suite", "ours", name, value, _TIMES))
    result.target(f"{group}: downloads", crowd["downloads"], crowd["adapters"], "downloads")
    result.target(f"{group}: errors, or a damaged store", crowd["failed"] + crowd["damaged"], 0, _TIMES)
    half = fetches["half_written"] + fetches["unusable_after"]
    result.target(f"{fetches['killed']} killed fetches: half written, or unusable after", half, 0, _TIMES)
    wrong = sum(publications[name] for name in ("fsck_failed", "torn", "unusable_after"))
    what = f"{publications['killed']} killed publications: git fsck, branch without tag, unusable releases"
    result.target(what, wrong, 0, _TIMES)
    result.target(f"{attacks['tried']} attacks: not refused", attacks["tried"] - attacks["refused"], 0, _TIMES)
    return result


def trained(raw: dict[str, Any]) -> Result:
    """Return what each method reaches, at which size and in which time."""
    given = raw["settings"]
    result = _result("quality", "What is reached in training", raw)
    result.versions = {"ours": given["frameworks"]}
    result.notes.append(
        f"MiniLM on {given['train']:,} sentences of Rotten Tomatoes, {given['eval']:,} held out; "
        f"{given['epochs']} epochs, batches of {given['batch_size']}, {given['max_length']} tokens, "
        f"{given['threads']} threads. "
        "Accuracy: mean over the seeds, with the lowest and the highest."
    )
    for name, row in raw["rows"].items():
        who = "adapters" if "by adapters" in name else "transformers" if name.startswith("full") else "ours"
        scores = [run["accuracy"] for run in row["runs"].values()]
        shown = f"{name}, {len(scores)} seed{'s' if len(scores) > 1 else ''}"
        result.rows.append(Row("accuracy", who, shown, row["accuracy"], "%", min(scores), max(scores)))
        result.rows.append(Row("trained parameters", who, name, row["parameters"], "parameters"))
        result.rows.append(Row("on disk, with the head", who, name, row["bytes"], "bytes"))
        result.rows.append(Row("training", who, name, row["seconds"], "s"))
    kinds = ("accuracy", "trained parameters", "on disk, with the head", "training")
    result.rows.sort(key=lambda row: kinds.index(row.group))
    apart = raw["difference"]
    if apart is not None:
        what = "accuracy of seq_bn, distance from `adapters`"
        result.target(
            what, abs(apart["mean"]), apart["wanted"], "%", f"ours less theirs: {100 * apart['mean']:+.2f} points"
        )
    return result


def served(raw: dict[str, Any]) -> Result:
    """Return how many adapters of one model answer under load."""
    given, rows = raw["options"], raw["rows"]
    title = f"Serving {given['requests']:,} requests over {given['adapters']} adapters"
    result = _result("serve", title, raw)
    wanted = (("requests a second", "per_second", "a second", 1), ("95th percentile", "p95_ms", "s", 1e-3))
    for group, key, unit, factor in (*wanted, ("median", "p50_ms", "s", 1e-3), ("wrong answers", "wrong", _TIMES, 1)):
        for name, row in rows.items():
            result.rows.append(Row(group, "ours", name, factor * row[key], unit))
    mixed, alone = rows["mixed batches"], rows["one adapter per batch"]
    result.target("answers of a wrong adapter", sum(row["wrong"] for row in rows.values()), 0, _TIMES)
    what = "against one adapter per batch"
    result.target(f"95th percentile of mixed batches {what}", mixed["p95_ms"] / alone["p95_ms"], 1, "x")
    result.target(f"time per request of mixed batches {what}", alone["per_second"] / mixed["per_second"], 1, "x")
    return result


_KILLED, _TIMES = ("fetch", "publish"), "times"
FORMS = {"fetch": fetched, "scale": scaled, "index": indexed, "stress": stressed, "quality": trained, "serve": served}


def _result(name: str, title: str, raw: dict[str, Any]) -> Result:
    result = Result(name, title, raw.get("mode", "full"), {}, date=raw["date"], machine=raw.get("machine", {}))
    result.versions = raw.get("versions", {})
    return result
