"""The table that test_attacks.py runs: every attack has a name, a row of docs/security.md, and an error of its own.

An attack builds something hostile and returns the call that walks into it. The call must be refused, and must leave the
home folder (store, what is remembered, pins, settings) and the model exactly as they were.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from conftest import Hub, card_data, git, snapshot, tensor_file, tiny_model
from forge_simulator import Forge
from test_sshsig import PLAIN_KEY, PRIVATE, armor, blob, signed_data

from adaptergit.errors import AdaptergitError
from adaptergit.git import GitServer
from adaptergit.package import Card, pack
from adaptergit.pins import pin_key
from adaptergit.publish import publish
from adaptergit.reference import Reference
from adaptergit.resolve import verify
from adaptergit.trust import SigningKey, sign
from adaptergit.trust.wire import string

# --- the rows of the threat table in docs/security.md ------------------------------------------------------------------

CHANGED = "changes weights or card on the host, in transit, on a mirror, in the cache"
SIGNATURE = "removes or breaks a signature, signs with another key"
REPLAY = "uses a signature for another name, version, repository or kind of document"
WEAK_SIGNATURE = "weak signatures (SHA-1, MD5, short RSA, untouched security key)"
TAKEOVER = "takes over the account or the repository's name"
SWAPPED = "publishes another package under a version that is locked or pinned"
STOLEN = "stole a publisher's key"
BAD_RELEASE = "a release turned out bad"
BUNDLE = "gives you a bundle with keys of others"
ADDRESS = "hostile git URL or reference"
TREE = "hostile tree"
ARCHIVE = "hostile archive"
WEB = "hostile web server"
SILENT = "server that never answers, or dies in the middle"
PARSERS = "hostile JSON, YAML, safetensors"
PICKLE = "pickled weights"
SECRETS = "reads what it should not"

PRINCIPAL = "host.example/acme/adapters"
ON_HUB = "127.0.0.1/acme/adapters"
NOW = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)

Strike = Callable[[], object]


@dataclass(frozen=True)
class Attack:
    """One line of the table."""

    name: str
    row: str
    error: type[AdaptergitError]
    match: str
    build: Callable[[Scene], Strike]


TABLE: list[Attack] = []


def attack(
    name: str, row: str, error: type[AdaptergitError], match: str
) -> Callable[[Callable[[Scene], Strike]], Callable[[Scene], Strike]]:
    """Enter one attack into the table."""

    def enter(build: Callable[[Scene], Strike]) -> Callable[[Scene], Strike]:
        TABLE.append(Attack(name, row, error, match, build))
        return build

    return enter


def attacks(
    row: str, error: type[AdaptergitError], cases: Mapping[str, tuple[str, Any]]
) -> Callable[[Callable[[Scene, Any], Strike]], Callable[[Scene, Any], Strike]]:
    """Enter a family: name → (what the error says, what makes the case special)."""

    def enter(build: Callable[[Scene, Any], Strike]) -> Callable[[Scene, Any], Strike]:
        for name, (match, value) in cases.items():
            TABLE.append(Attack(name, row, error, match, lambda scene, value=value: build(scene, value)))
        return build

    return enter


# --- what attacks are built from ---------------------------------------------------------------------------------------


@dataclass
class Scene:
    """A user's home, a publisher who is trusted, and whatever an attack needs, made when it is asked for."""

    tmp: Path
    home: Path
    attic: Path
    """Templates that are dear to make; every case works on a copy."""
    key: SigningKey
    other: SigningKey
    running: ExitStack
    hosted: Any = None
    host_model: Any = None
    _servers: list[Hub] = field(default_factory=list)

    # packages

    def package(self, **changes: Any) -> Path:
        """A signed package of PRINCIPAL whose key the user trusts; with changes to its card, a new one."""
        self.trust()
        target = self.tmp / f"package{len(list(self.tmp.glob('package*')))}"
        if changes:
            return self.made(target, changes)
        if not (self.attic / "package").exists():
            self.made(self.attic / "package", {})
        shutil.copytree(self.attic / "package", target)
        return target

    def made(self, target: Path, changes: Mapping[str, Any]) -> Path:
        source = self.tmp / f"source-{target.name}"
        source.mkdir()
        (source / "card.yaml").write_bytes(Card(card_data(**changes)).to_yaml())
        (source / "adapter.safetensors").write_bytes(tensor_file(b"w" * 3000))
        return self.packed(source, target)

    def packed(self, source: Path, target: Path) -> Path:
        """Pack and sign, as the publisher would."""
        target.mkdir()
        card = Card.from_yaml((source / "card.yaml").read_bytes())
        pack(source, target, card, repository=PRINCIPAL, previous=None, created=NOW)
        return self.resign(target)

    def resign(self, folder: Path, manifest: bytes | None = None) -> Path:
        """Sign the manifest that is there, or another one: a signature alone must not make it believed."""
        if manifest is not None:
            (folder / "manifest.json").write_bytes(manifest)
        (folder / "manifest.json.sig").write_bytes(sign((folder / "manifest.json").read_bytes(), self.key))
        return folder

    def relist(self, folder: Path) -> Path:
        """Let the manifest tell the truth of the files, and sign it: the publisher is the attacker."""
        raw = json.loads((folder / "manifest.json").read_bytes())
        names = sorted(p.name for p in folder.iterdir() if not p.name.startswith("manifest.json"))
        contents = {name: (folder / name).read_bytes() for name in names}
        raw["files"] = [
            {"path": n, "size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in contents.items()
        ]
        return self.resign(folder, json.dumps(raw).encode())

    def trust(self, *lines: str) -> None:
        """Trust the publisher; or, instead, exactly these allowed-signers lines."""
        if not lines:
            pin_key(PRINCIPAL, self.key.public.line)
            return
        (self.home / "config").mkdir(exist_ok=True)
        (self.home / "config" / "known_publishers").write_text("".join(f"{line}\n" for line in lines))

    def check(self, folder: Path, **options: Any) -> Any:
        """Verify a folder as the release that was asked for."""
        options = {"reference": Reference.parse(f"{PRINCIPAL}@sst2==1.0.0"), "version": "1.0.0"} | options
        return verify(folder, **options)

    # servers

    def hub(self) -> Hub:
        """Two releases of sst2, 1.0.0 and 1.1.0, on a git server of this case's own."""
        pin_key(ON_HUB, self.key.public.line)
        if self._servers:
            return self._servers[0]
        root = self.tmp / "server"
        if not (self.attic / "hub").exists():
            self._publish(self.attic)
        shutil.copytree(self.attic / "hub", root)
        server = self.running.enter_context(GitServer(root))
        bare = root / "acme" / "adapters.git"
        self._servers.append(Hub(server, f"{server.url}/acme/adapters.git", bare, self.tmp / "no-clone", self.key))
        return self._servers[0]

    def _publish(self, attic: Path) -> None:
        (self.tmp / "making").mkdir()
        with GitServer(self.tmp / "making") as server:
            url, clone = server.create("acme/adapters"), self.tmp / "clone"
            git(self.tmp, "clone", "-q", url, str(clone))
            for version, weights in (("1.0.0", b"w"), ("1.1.0", b"fixed")):
                source = self.tmp / f"out-{version}"
                source.mkdir()
                (source / "card.yaml").write_bytes(Card(card_data(version=version)).to_yaml())
                (source / "adapter.safetensors").write_bytes(tensor_file(weights * 600))
                publish(source, clone=clone, key=self.key.path)
        shutil.move(self.tmp / "making", attic / "hub")

    def forge(self) -> Forge:
        """A web server that serves the folder www, and archives of the hub's repositories."""
        (self.tmp / "www").mkdir(exist_ok=True)
        return self.running.enter_context(Forge(self.tmp / "www", self.tmp / "server"))

    # models

    def weights(self) -> Path:
        """An unpublished folder with the weights of a small adapter."""
        if not (self.attic / "weights").exists():
            import torch

            from adaptergit.splice import adapters

            torch.manual_seed(0)
            model = tiny_model("bert")
            adapters(model).add("sst2", "seq_bn")
            adapters(model).save("sst2", self.attic / "weights", name="sst2", license="MIT")
        target = self.tmp / "weights"
        shutil.copytree(self.attic / "weights", target)
        return target

    def model(self) -> Any:
        """A model that must stay as it is."""
        self.host_model = self.hosted()
        assert not hasattr(self.host_model, "adaptergit")
        return self.host_model

    def state(self) -> tuple[object, ...]:
        """All that a refused attack must leave alone."""
        kept = {n: b for n, b in snapshot(self.home).items() if not n.startswith(("cache/locks/", "cache/tmp/"))}
        for name in [n for n in kept if n.startswith("cache/resolved/")]:
            fetched = json.loads(kept[name])["fetched"]  # which versions a repository says it has may be remembered
            kept[name] = json.dumps(fetched, sort_keys=True).encode()
            if not fetched:
                del kept[name]
        model = None
        if self.host_model is not None:
            model = (hasattr(self.host_model, "adaptergit"), model_digest(self.host_model))
        left = sorted(str(p) for p in (self.home / "cache" / "tmp").glob("*"))
        return kept, left, model, (self.tmp / "owned").exists()


def model_digest(model: Any) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


# --- git objects that git itself would not write -----------------------------------------------------------------------

Entries = dict[bytes, tuple[str, str]]
"""Mode and oid by name."""


def put_object(bare: Path, content: bytes, kind: str = "blob") -> str:
    argv = ["git", "-C", str(bare), "hash-object", "-t", kind, "-w", "--literally", "--stdin"]
    return subprocess.run(argv, input=content, capture_output=True, check=True).stdout.decode().strip()


def put_tree(bare: Path, entries: list[tuple[bytes, str, str]]) -> str:
    ordered = sorted(entries, key=lambda e: e[0] + (b"/" if e[1] == "40000" else b""))
    return put_object(bare, b"".join(m.encode() + b" " + n + b"\0" + bytes.fromhex(o) for n, m, o in ordered), "tree")


def put_commit(bare: Path, tree: str, *parents: str) -> str:
    who = "x <x@example.org> 1700000000 +0000"
    lines = [f"tree {tree}", *(f"parent {p}" for p in parents), f"author {who}", f"committer {who}", "", "x", ""]
    return put_object(bare, "\n".join(lines).encode(), "commit")


def tag_of(version: str = "1.0.0") -> str:
    return f"refs/tags/adapters/sst2/{version}"


def entries_of(bare: Path, version: str = "1.0.0") -> Entries:
    lines = [line.partition("\t") for line in git(bare, "ls-tree", tag_of(version)).splitlines()]
    return {name.encode(): (fields.split()[0], fields.split()[2]) for fields, _, name in lines}


def content_of(bare: Path, name: str, version: str = "1.0.0") -> bytes:
    argv = ["git", "-C", str(bare), "cat-file", "blob", f"{tag_of(version)}:{name}"]
    return subprocess.run(argv, capture_output=True, check=True).stdout


def retag(bare: Path, target: str, version: str = "1.0.0") -> None:
    git(bare, "update-ref", tag_of(version), target)


def rewritten(bare: Path, more: list[tuple[bytes, str, bytes]], without: tuple[bytes, ...] = ()) -> str:
    """Move the tag to a tree with other files: name, mode, and content or, for a submodule and a folder, nothing."""
    entries = {n: v for n, v in entries_of(bare).items() if n not in without and n not in {name for name, _, _ in more}}
    listed = [(name, mode, oid) for name, (mode, oid) in entries.items()]
    for name, mode, content in more:
        oid = "1" * 40 if mode == "160000" else put_object(bare, content)
        listed.append((name, mode, put_tree(bare, [(b"inner", "100644", oid)]) if mode == "40000" else oid))
    tree = put_tree(bare, listed)
    retag(bare, put_commit(bare, tree))
    return tree


# --- signatures made by hand -------------------------------------------------------------------------------------------

HAND_LINE = f"ssh-ed25519 {base64.b64encode(PLAIN_KEY).decode()}"
NAMESPACE = "manifest.v1@adaptergit"


def by_hand(message: bytes, *, namespace: str = NAMESPACE, algorithm: str = "sha512", **changes: Any) -> bytes:
    """A good signature by a key of our own, unless something is changed."""
    raw = PRIVATE.sign(signed_data(message, namespace.encode(), algorithm))
    changes = {"namespace": namespace.encode(), "algorithm": algorithm.encode()} | changes
    return armor(blob(PLAIN_KEY, string(b"ssh-ed25519") + string(raw), **changes))
