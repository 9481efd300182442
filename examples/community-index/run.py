"""A community index from nothing to a served site: three publishers, two indexes, a rotation, a yank, a revocation.

The second index is a company's: it speaks for the company's own repositories, and lists a copy of one that the first
index knows, which is asked when the original is gone.

Run: ``python examples/community-index/run.py [FOLDER]``. Everything is real (git over HTTP on loopback, keys made by
ssh-keygen, a web server); everybody has a home of their own and talks to the others only through servers. With a
folder, everything stays there to be looked at, and the site is served until you press Ctrl-C.
"""

from __future__ import annotations

import functools
import json
import sys
import tempfile
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy
from safetensors.numpy import save_file

from adaptergit.demo.people import Person
from adaptergit.errors import AdaptergitError
from adaptergit.git import GitServer
from adaptergit.package import Card


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder and says nothing."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def main(folder: Path, *, stay: bool = False) -> dict[str, Any]:
    """Play it through and return what a user found at the end."""
    facts: dict[str, Any] = {}
    (folder / "server").mkdir(parents=True)
    with GitServer(folder / "server") as server:
        publishers = {name: publisher(folder, server, name) for name in ("amharic-nlp", "bantu-lab", "quechua-group")}
        community = maintained(folder, server, "community", server.create("community/index"))
        corporate = maintained(folder, server, "corporate", server.create("corporate/index"))

        say("three publishers release adapters, and a company one for itself")
        for name, person in publishers.items():
            release(person, name, "sentiment", "1.0.0")
        company = publisher(folder, server, "corporate-ml")
        release(company, "corporate-ml", "sentiment", "1.0.0")

        say("each proposes its repository to the community's index: one pull request, once")
        for name, person in publishers.items():
            done = person.adaptergit("index", "submit", "--to", community["url"], cwd=person.home / "adapters")
            merge(community, done["branch"])
            facts[f"{name} proposed"] = done["address"]

        say("the company's index lists its own repository, and its copy of one that the community lists")
        proposed = [
            (company.home / "adapters", ()),
            (copied(company, server, "bantu-lab"), ("--tracks", "127.0.0.1/bantu-lab/adapters")),
        ]
        for clone, options in proposed:
            merge(
                corporate,
                company.adaptergit("index", "submit", "--to", corporate["url"], *options, cwd=clone)["branch"],
            )

        say("the maintainers crawl, build, sign and serve; nobody had to be asked")
        publish(community)
        facts["listed"] = sorted(one["id"] for one in found(community, "sentiment"))
        publish(corporate)

        say("a user adds both indexes: the company's speaks for the company's repositories, and nobody else does")
        user = Person(folder / "user")
        add_both(user, community, corporate)
        hit = user.adaptergit("search", "sentiment", "--language", "am")["entries"][0]
        facts["search"] = hit["id"]
        facts["both"] = sorted(one["id"] for one in user.adaptergit("search", "sentiment")["entries"])
        facts["private"] = user.adaptergit("index", "explain", "127.0.0.1/corporate-ml/adapters")["asked"]
        facts["loaded"] = load(user, server, "amharic-nlp")

        say("bantu-lab replaces its key; the old one says so, and everybody follows")
        lab = publishers["bantu-lab"]
        lab.adaptergit("keygen", str(lab.home / "new_key"))
        time.sleep(1.1)  # a rotation's time has seconds: what was signed before must be before
        lab.adaptergit("rotate", str(lab.home / "new_key"), cwd=lab.home / "adapters")
        release(lab, "bantu-lab", "sentiment", "1.1.0", key=lab.home / "new_key")
        done = lab.adaptergit(
            "index", "submit", "--to", community["url"], "--sign-with", str(lab.home / "new_key"),
            cwd=lab.home / "adapters",
        )  # fmt: skip
        merge(community, done["branch"])

        say("quechua-group withdraws a release that was trained on its test set")
        group = publishers["quechua-group"]
        group.adaptergit(
            "yank", "sentiment", "1.0.0", "--reason", "trained on the test set", cwd=group.home / "adapters"
        )

        say("amharic-nlp's key is stolen; the maintainers revoke it")
        stolen = community["home"].adaptergit("show", f"{url_of(server, 'amharic-nlp')}@sentiment")["signers"][0]
        community["home"].adaptergit("index", "revoke", stolen, "--reason", "stolen laptop", cwd=community["clone"])
        commit(community["home"], community["clone"], "revoke a stolen key")
        publish(community)
        copied(company, server, "bantu-lab")
        publish(corporate)
        user.adaptergit("index", "update")
        facts["after rotation"] = load(user, server, "bantu-lab")
        facts["after yank"] = refused(user, server, "quechua-group")
        facts["after revocation"] = refused(user, server, "amharic-nlp")
        facts["shown"] = sorted(hit["id"] for hit in user.adaptergit("search", "sentiment")["entries"])

        say("bantu-lab's server is gone; somebody new gets its adapter from the company's copy")
        (folder / "server" / "bantu-lab").rename(folder / "server" / "gone")
        newcomer = Person(folder / "newcomer")
        add_both(newcomer, community, corporate)
        facts["from the copy"] = load(newcomer, server, "bantu-lab")
        for index in (community, corporate):
            facts[f"pages of {index['name']}"] = len(list((index["clone"] / "dist").rglob("*.html")))
        print(json.dumps(facts, indent=2))
        if stay:
            say(f"the sites are at {community['site']}index.html and {corporate['site']}index.html; Ctrl-C ends them")
            threading.Event().wait()
        return facts


def publisher(folder: Path, server: GitServer, name: str) -> Person:
    """Somebody with a repository, a key, and the key announced in the repository."""
    person = Person(folder / name)
    identify(person, name)
    person.run("git", "clone", "-q", server.create(f"{name}/adapters"), "adapters")
    person.adaptergit("keygen")
    clone = person.home / "adapters"
    person.adaptergit("init", cwd=clone)
    person.run("git", "add", "-A", cwd=clone)
    person.run("git", "commit", "-qm", "announce the key", cwd=clone)
    person.run("git", "push", "-q", "origin", "HEAD", cwd=clone)
    return person


def release(person: Person, name: str, adapter: str, version: str, key: Path | None = None) -> None:
    """Publish a (tiny, untrained) adapter."""
    language = {"amharic-nlp": "am", "bantu-lab": "sw", "quechua-group": "qu", "corporate-ml": "de"}[name]
    out = person.home / f"out-{version}"
    out.mkdir()
    save_file({"blocks.0.ffn.down.weight": numpy.ones((4, 8), numpy.float32)}, out / "adapter.safetensors")
    card = {
        "name": adapter,
        "version": version,
        "description": f"Sentiment of reviews, by {name}.",
        "task": {"type": "text-classification", "id": "sentiment", "languages": [language], "dataset": "reviews"},
        "base_model": {"id": "acme/tiny", "model_type": "bert", "fingerprint": f"fp1:1x8:{'0' * 32}:"},
        "adapter": {"format": "adaptergit", "method": "seq_bn", "config": {}},
        "license": "Apache-2.0",
        "evaluation": [{"dataset": "reviews", "metric": "accuracy", "value": 0.8 + len(name) / 100}],
        "limitations": "Trained on *nothing*: this is an example.",
    }
    (out / "card.yaml").write_bytes(Card(card).to_yaml())
    options = ("--key", str(key)) if key else ()
    person.adaptergit("publish", str(out), *options, cwd=person.home / "adapters")


def maintained(folder: Path, server: GitServer, name: str, url: str) -> dict[str, Any]:
    """An index with two maintainers, both of whom must sign its root, and an online key."""
    person = Person(folder / name)
    identify(person, name)
    for key in ("alice", "bob", "online"):
        person.adaptergit("keygen", str(person.home / key))
    clone = person.home / "index"
    pub = {key: (person.home / f"{key}.pub").read_text().strip() for key in ("alice", "bob", "online")}
    maintainers = [part for key in ("alice", "bob") for part in ("--maintainer", pub[key])]
    made = person.adaptergit(
        "index", "init", str(clone), "--name", name, *maintainers, "--threshold", "2", "--online", pub["online"],
        "--key", str(person.home / "alice"), "--key", str(person.home / "bob"),
    )  # fmt: skip
    person.run("git", "init", "-q", "-b", "main", cwd=clone)
    person.run("git", "remote", "add", "origin", url, cwd=clone)
    commit(person, clone, "begin")
    (clone / "dist").mkdir()
    handler = functools.partial(Quiet, directory=str(clone / "dist"))
    web = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    site = f"http://127.0.0.1:{web.server_address[1]}/"
    return {"name": name, "home": person, "clone": clone, "url": url, "site": site, "root": made["root"]}


def merge(index: dict[str, Any], branch: str) -> None:
    """Check a proposal with the index's rules, as data, and merge it."""
    person, clone = index["home"], index["clone"]
    person.run("git", "fetch", "-q", "origin", branch, cwd=clone)
    person.adaptergit("index", "check", "--base", "main", "--head", "FETCH_HEAD", cwd=clone)
    person.run("git", "merge", "-q", "-m", f"merge {branch}", "FETCH_HEAD", cwd=clone)
    person.run("git", "push", "-q", "origin", "main", cwd=clone)


def publish(index: dict[str, Any]) -> None:
    """What the index's CI does every few hours."""
    person = index["home"]
    person.adaptergit("index", "publish", "--key", str(person.home / "online"), "--dist-branch", "", cwd=index["clone"])


def copied(person: Person, server: GitServer, name: str) -> Path:
    """Copy somebody's repository, branches and tags, to a place of one's own; return a clone of the copy."""
    clone = person.home / f"{name}-copy"
    if not clone.exists():
        person.run("git", "clone", "-q", "--mirror", url_of(server, name), f"{name}.git")
        url = server.create(f"{person.home.name}/{name}-copy")
        person.run("git", "remote", "set-url", "--push", "origin", url, cwd=person.home / f"{name}.git")
        person.run("git", "push", "-q", "--mirror", cwd=person.home / f"{name}.git")
        person.run("git", "clone", "-q", url, clone.name)
    else:
        person.run("git", "fetch", "-q", cwd=person.home / f"{name}.git")
        person.run("git", "push", "-q", "--mirror", cwd=person.home / f"{name}.git")
    return clone


def add_both(user: Person, community: dict[str, Any], corporate: dict[str, Any]) -> None:
    """Add both indexes; what is private is asked of the company's alone."""
    for index, options in ((community, ("--priority", "1")), (corporate, ("--scope", "127.0.0.1/corporate-ml/*"))):
        user.adaptergit("index", "add", index["site"], "--root", index["root"], *options)


def found(index: dict[str, Any], text: str) -> list[dict[str, Any]]:
    """Search as the maintainers themselves."""
    person = index["home"]
    person.adaptergit("index", "add", index["site"], "--root", index["root"])
    entries: list[dict[str, Any]] = person.adaptergit("search", text)["entries"]
    return entries


def load(user: Person, server: GitServer, name: str) -> str:
    """Fetch and verify as a user who trusts the index, and nobody else."""
    done = user.adaptergit("load", f"{url_of(server, name)}@sentiment")
    verdict = done["verdict"]
    return f"{verdict['name']} {verdict['version']}, vouched by {', '.join(verdict['vouched_by'])}"


def refused(user: Person, server: GitServer, name: str) -> str:
    """What a user is told."""
    try:
        return load(user, server, name)
    except AdaptergitError as error:
        return json.loads(str(error)[str(error).index("{") :])["error"]["what"]  # type: ignore[no-any-return]


def url_of(server: GitServer, name: str) -> str:
    """Where a publisher's repository is."""
    return f"{server.url}/{name}/adapters.git"


def identify(person: Person, name: str) -> None:
    """Tell git who somebody is."""
    (person.home / ".gitconfig").write_text(
        f"[user]\nname = {name}\nemail = {name}@example.org\n[init]\ndefaultBranch = main\n"
    )


def commit(person: Person, clone: Path, message: str) -> None:
    """Commit what changed, and push."""
    person.run("git", "add", "-A", cwd=clone)
    person.run("git", "commit", "-q", "--allow-empty", "-m", message, cwd=clone)
    person.run("git", "push", "-q", "origin", "main", cwd=clone)


def say(text: str) -> None:
    """Say what happens."""
    print(f"· {text}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]).resolve(), stay=True)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary) / "example")
