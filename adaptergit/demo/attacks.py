"""What somebody who controls the server, or mixes up base models, can try."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from adaptergit.demo.people import Person

_WRONG_BASE = """
import sys, transformers
transformers.utils.logging.set_verbosity_error()
transformers.set_seed(1)
config = transformers.AutoConfig.from_pretrained(sys.argv[1])
transformers.AutoModel.from_config(config).save_pretrained(sys.argv[2])
"""


def attack(
    bare: Path, publisher: Person, user: Person, reference: str, release: Mapping[str, Any], base: Path
) -> dict[str, Any]:
    """Three attacks, each on a user who has nothing stored, and the server mended after each."""
    good = publisher.run("git", "-C", str(bare), "rev-parse", release["tag"]).strip()
    results = {}

    user.new_cache("flipped")
    _move_tag(
        publisher,
        bare,
        release["tag"],
        {"adapter.safetensors": lambda data: data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]},
    )
    results["one byte of the weights flipped on the server"] = user.refused("load", reference)

    user.new_cache("resigned")
    publisher.run("git", "-C", str(bare), "update-ref", release["tag"], good)
    mallory = Person(user.home.parent / "mallory")
    mallory.adaptergit("keygen")
    manifest = mallory.home / "manifest.json"
    manifest.write_bytes(_blob(publisher, bare, f"{release['tag']}:manifest.json"))
    mallory.run(
        "ssh-keygen",
        "-q",
        "-Y",
        "sign",
        "-f",
        str(mallory.config / "signing_key"),
        "-n",
        "manifest.v1@adaptergit",
        str(manifest),
    )
    signature = manifest.with_name("manifest.json.sig").read_bytes()
    _move_tag(publisher, bare, release["tag"], {"manifest.json.sig": lambda _: signature})
    results["the signature replaced with another key's"] = user.refused("load", reference)

    user.new_cache("wrong-base")
    publisher.run("git", "-C", str(bare), "update-ref", release["tag"], good)
    wrong = user.home / "wrong-base"
    user.run(sys.executable, "-c", _WRONG_BASE, str(base), str(wrong))
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(base / name, wrong / name)
    results["loaded into another base model of the same shape"] = user.refused(
        "predict", reference, "--text", "a fine film", "--base", str(wrong)
    )
    return results


def _move_tag(person: Person, bare: Path, tag: str, changes: Mapping[str, Callable[[bytes], bytes]]) -> None:
    """Do what somebody who controls the server can do: rewrite a release under its tag."""
    work = Path(f"{bare}-work")
    work.mkdir(exist_ok=True)
    lines = []
    for line in person.run("git", "-C", str(bare), "ls-tree", tag).splitlines():
        fields, _, name = line.partition("\t")
        mode, kind, oid = fields.split()
        if name in changes:
            (work / name).write_bytes(changes[name](_blob(person, bare, f"{tag}:{name}")))
            oid = person.run("git", "-C", str(bare), "hash-object", "-w", "--no-filters", str(work / name)).strip()
        lines.append(f"{mode} {kind} {oid}\t{name}")
    done = subprocess.run(
        ["git", "-C", str(bare), "mktree"],
        input="\n".join(lines) + "\n",
        env=person.settings,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    commit = person.run("git", "-C", str(bare), "commit-tree", done.stdout.strip(), "-m", "attack").strip()
    person.run("git", "-C", str(bare), "update-ref", tag, commit)


def _blob(person: Person, bare: Path, name: str) -> bytes:
    return subprocess.run(
        ["git", "-C", str(bare), "cat-file", "blob", name], env=person.settings, capture_output=True, check=True
    ).stdout
