"""A Hugging Face Hub on loopback: the part of its documented HTTP API that huggingface_hub speaks, and hostile versions.

Real HTTP over a real socket, repositories in memory; only the faults are made up.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

TOKEN = "hf_secretsecretsecretsecretsecret"
GITATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.bin filter=lfs diff=lfs merge=lfs -text\n"

Answer = Callable[["Request"], None]


@dataclass
class Repository:
    """Commits are whole trees; the branch and the tags name them."""

    trees: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    @property
    def head(self) -> str:
        return self.refs["main"]

    @property
    def files(self) -> dict[str, bytes]:
        return self.trees[self.head]

    def commit(self, tree: dict[str, bytes], branch: str = "main") -> str:
        listed = "".join(f"{path} {hashlib.sha256(data).hexdigest()}\n" for path, data in sorted(tree.items()))
        oid = hashlib.sha1(f"{self.refs.get(branch)}{len(self.trees)}{listed}".encode()).hexdigest()
        self.trees[oid] = dict(tree)
        self.refs[branch] = oid
        return oid

    def write(self, files: dict[str, bytes], branch: str = "main") -> str:
        """What a person does with ``hf upload``."""
        return self.commit({**self.trees[self.refs.get(branch, self.head)], **files}, branch)

    def remove(self, *paths: str) -> str:
        return self.commit({path: data for path, data in self.files.items() if path not in paths})

    def resolve(self, revision: str) -> str | None:
        return revision if revision in self.trees else self.refs.get(revision)


class HubServer:
    """Serves ``repositories``; ``faults`` answer in place of it, by a part of the path."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.faults: dict[str, list[Answer]] = {}
        self.page = 1000
        self.listed: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] = lambda entries: entries
        """Changes what is listed."""
        handler = type("Handler", (Request,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    @property
    def elsewhere(self) -> str:
        """The same under another name: large files come from another host than the Hub's."""
        return f"http://localhost:{self.server.server_address[1]}"

    def create(self, name: str, files: dict[str, bytes] | None = None, **options: Any) -> Repository:
        made = self.repositories[name] = Repository(**options)
        made.commit({".gitattributes": GITATTRIBUTES, **(files or {})})
        return made

    def count(self, part: str = "") -> int:
        return sum(part in path for _, path, _ in self.asked)

    def __enter__(self) -> HubServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".bin"))


def blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Request(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    hub: HubServer

    def do_GET(self) -> None:
        self._handle("GET")

    def do_HEAD(self) -> None:
        self._handle("HEAD")

    def do_POST(self) -> None:
        self._handle("POST")

    def do_PUT(self) -> None:
        self._handle("PUT")

    def _handle(self, method: str) -> None:
        self.hub.asked.append((method, unquote(self.path), dict(self.headers.items())))
        self.body = self._read()
        for part, faults in self.hub.faults.items():
            if part in f"{method} {unquote(self.path)}" and faults:
                faults.pop(0)(self)
                return
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        self.route(method, [unquote(part) for part in parts.path.strip("/").split("/")])

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def route(self, method: str, path: list[str]) -> None:
        match method, path:
            case "POST", ["api", "validate-yaml"]:
                self.json({"errors": [], "warnings": []})
            case "POST", ["api", "repos", "create"]:
                self.create()
            case "GET", ["api", "models", org, repo]:
                self.info(f"{org}/{repo}", "main")
            case "GET", ["api", "models", org, repo, "revision", revision]:
                self.info(f"{org}/{repo}", revision)
            case "GET", ["api", "models", org, repo, "refs"]:
                self.refs(f"{org}/{repo}")
            case "GET", ["api", "models", org, repo, "tree", revision, *folder]:
                self.tree(f"{org}/{repo}", revision, "/".join(folder))
            case "POST", ["api", "models", org, repo, "preupload", _]:
                self.preupload(f"{org}/{repo}")
            case "POST", ["api", "models", org, repo, "commit", branch]:
                self.commit(f"{org}/{repo}", branch)
            case "POST", ["api", "models", org, repo, "tag", revision]:
                self.tag(f"{org}/{repo}", revision)
            case "POST", [_, _, "info", "lfs", "objects", "batch"]:
                self.batch()
            case "PUT", ["lfs", oid]:
                self.hub.objects[oid] = self.body
                self.json({})
            case "POST", ["verify"]:
                oid = json.loads(self.body)["oid"]
                right = hashlib.sha256(self.hub.objects.get(oid, b"")).hexdigest() == oid
                self.json({}) if right else self.refuse(422, "", "the object is another one")
            case (("GET" | "HEAD"), ["cdn", digest]):
                self.cdn(digest)
            case (("GET" | "HEAD"), [org, repo, "resolve", revision, *file]):
                self.resolve(f"{org}/{repo}", revision, "/".join(file))
            case _:
                self.refuse(404, "", "no such page")

    # --- reading ------------------------------------------------------------------------------------------------------

    def found(self, name: str, revision: str = "main") -> tuple[Repository, str] | None:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self.authorised):
            self.refuse(404 if self.authorised else 401, "RepoNotFound", "Repository not found")
            return None
        if repository.gated and not self.authorised:
            self.refuse(403, "GatedRepo", "Access is restricted")
            return None
        oid = repository.resolve(revision)
        if oid is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repository, oid

    @property
    def authorised(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def info(self, name: str, revision: str) -> None:
        if (found := self.found(name, revision)) is None:
            return
        siblings = [{"rfilename": path} for path in found[0].trees[found[1]]]
        whole = {"_id": "1", "id": name, "sha": found[1], "siblings": siblings, "tags": [], "private": False}
        wanted = self.query.get("expand")
        self.json({key: value for key, value in whole.items() if not wanted or key in ("_id", "id", *wanted)})

    def refs(self, name: str) -> None:
        if (found := self.found(name)) is None:
            return
        kinds = {"branches": ("heads", False), "tags": ("tags", True)}
        listed = {
            kind: [
                {"name": ref, "ref": f"refs/{folder}/{ref}", "targetCommit": oid}
                for ref, oid in found[0].refs.items()
                if (ref != "main") is tagged
            ]
            for kind, (folder, tagged) in kinds.items()
        }
        self.json({**listed, "converts": []})

    def tree(self, name: str, revision: str, folder: str) -> None:
        if (found := self.found(name, revision)) is None:
            return
        inside = f"{folder}/" if folder else ""
        entries: dict[str, dict[str, Any]] = {}
        for path, data in found[0].trees[found[1]].items():
            first, _, rest = path.removeprefix(inside).partition("/")
            if not path.startswith(inside):
                continue
            if rest:
                entries[first] = {"type": "directory", "path": inside + first, "oid": blob(first.encode()), "size": 0}
                continue
            entry = {"type": "file", "path": path, "oid": blob(data), "size": len(data)}
            if is_large(path):
                oid = hashlib.sha256(data).hexdigest()
                self.hub.objects.setdefault(oid, data)
                entry |= {"oid": blob(oid.encode()), "lfs": {"oid": oid, "size": len(data), "pointerSize": 134}}
            entries[first] = entry
        if not entries:
            self.refuse(404, "EntryNotFound", f"{folder} does not exist")
            return
        listed = self.hub.listed(list(entries.values()))
        start = int(self.query.get("cursor", ["0"])[0])
        rest = urlsplit(self.path).path
        headers = {}
        if start + self.hub.page < len(listed):
            headers["Link"] = f'<{self.hub.url}{rest}?cursor={start + self.hub.page}>; rel="next"'
        self.json(listed[start : start + self.hub.page], headers)

    def resolve(self, name: str, revision: str, file: str) -> None:
        if (found := self.found(name, revision)) is None:
            return
        data = found[0].trees[found[1]].get(file)
        if data is None:
            self.refuse(404, "EntryNotFound", f"{file} does not exist", {"X-Repo-Commit": found[1]})
            return
        headers = {"X-Repo-Commit": found[1]}
        if not is_large(file):
            self.answer(200, data, {**headers, "ETag": f'"{blob(data)}"'})
            return
        oid = hashlib.sha256(data).hexdigest()
        self.hub.objects.setdefault(oid, data)
        headers |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{oid}"', "ETag": f'"{blob(oid.encode())}"'}
        self.answer(302, b"", {**headers, "Location": f"{self.hub.elsewhere}/cdn/{oid}"})

    def cdn(self, digest: str) -> None:
        data = self.hub.objects[digest]
        self.answer(200, data, {"ETag": f'"{digest}"'})

    # --- writing ------------------------------------------------------------------------------------------------------

    def may_write(self) -> bool:
        if not self.authorised:
            self.refuse(401, "", "Invalid username or password.")
        return self.authorised

    def create(self) -> None:
        if not self.may_write():
            return
        wanted = json.loads(self.body)
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.hub.repositories:
            self.json({"error": "exists", "url": f"{self.hub.url}/{name}"}, status=409)
            return
        self.hub.create(name)
        self.json({"url": f"{self.hub.url}/{name}", "id": name})

    def preupload(self, name: str) -> None:
        if not self.may_write() or (found := self.found(name)) is None:
            return
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if is_large(file["path"]) else "regular",
                "shouldIgnore": False,
                "oid": blob(found[0].files[file["path"]]) if file["path"] in found[0].files else None,
            }
            for file in json.loads(self.body)["files"]
        ]
        self.json({"files": files, "commitOid": found[1]})

    def batch(self) -> None:
        objects = []
        for one in json.loads(self.body)["objects"]:
            actions = {
                "upload": {"href": f"{self.hub.url}/lfs/{one['oid']}", "header": {}},
                "verify": {"href": f"{self.hub.url}/verify", "header": {}},
            }
            objects.append({**one} if one["oid"] in self.hub.objects else {**one, "actions": actions})
        self.json({"transfer": "basic", "objects": objects})

    def commit(self, name: str, branch: str) -> None:
        if not self.may_write() or (found := self.found(name, branch)) is None:
            return
        repository, head = found
        lines = [json.loads(line) for line in self.body.splitlines()]
        parent = lines[0]["value"].get("parentCommit")
        if parent is not None and parent != head:
            self.refuse(412, "", "A commit has happened since. Please refresh and try again.")
            return
        tree = dict(repository.trees[head])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                tree[value["path"]] = self.hub.objects[value["oid"]]
            else:
                tree.pop(value["path"])
        oid = repository.commit(tree, branch)
        self.json({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}"})

    def tag(self, name: str, revision: str) -> None:
        if not self.may_write() or (found := self.found(name, revision)) is None:
            return
        wanted = json.loads(self.body)["tag"]
        if wanted in found[0].refs:
            self.refuse(409, "", f"Tag reference exists already: {wanted}")
            return
        found[0].refs[wanted] = found[1]
        self.json({})

    # --- answers ------------------------------------------------------------------------------------------------------

    def json(self, value: Any, headers: dict[str, str] | None = None, *, status: int = 200) -> None:
        self.answer(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def refuse(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        named = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
        self.json({"error": message}, named, status=status)

    def answer(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, *, length: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def served(monkeypatch: pytest.MonkeyPatch, scratch: Path) -> Iterator[HubServer]:
    """Give a Hub that this process asks: what huggingface_hub read from the environment when it was imported is undone."""
    from huggingface_hub import constants, file_download

    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    # Xet is another protocol, with servers of its own; the Hub speaks plain HTTP to whoever has it not.
    off = {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True, "HF_HUB_DISABLE_TELEMETRY": True}
    for name, value in off.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(scratch / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(scratch / "hub"))
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        # Of versions before 1.0.
        monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        yield server


def says(status: int, body: bytes = b"", **headers: str) -> Answer:
    """Answer with something else."""
    return lambda request: request.answer(status, body, {k.replace("_", "-"): v for k, v in headers.items()})


def endless(request: Request) -> None:
    """Never stop sending."""
    request.send_response(200)
    request.send_header("Transfer-Encoding", "chunked")
    request.end_headers()
    try:
        for _ in range(300):
            request.wfile.write(b"%x\r\n" % (1 << 20) + b"x" * (1 << 20) + b"\r\n")
    except OSError:
        pass
    request.close_connection = True
