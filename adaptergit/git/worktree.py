"""The publisher's own clone: what branch, what remote, what is in it. Runs with the user's configuration."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from adaptergit.durable import scratch_file
from adaptergit.errors import ReleaseError, StorageError, TransportError, UsageError, did_you_mean, quoted
from adaptergit.git.remote import Remote
from adaptergit.git.runner import Git, check_installed, transport_settings
from adaptergit.reference import Source

FOLDER = "adapters"
"""Where adapters lie on the branch."""
_EMPTY = ""
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|/|\.\.?/|~/|[\w.-]+@[\w.-]+:")
"""What is an address without being rewritten."""


@dataclass(frozen=True)
class Clone:
    """A repository with a work tree, on a branch."""

    root: Path
    git: Git
    branch: str
    """Full name, ``refs/heads/…``."""
    head: str | None
    """Commit oid, or None before the first commit."""

    @classmethod
    def at(cls, path: Path) -> Clone:
        """Open the clone that holds ``path``.

        Raises:
            UsageError: Not inside a clone, a bare repository, or a detached HEAD.
            TransportError: Git is not installed.
        """
        if not path.is_dir():
            what = "this is a file, and no folder" if path.is_file() else "no such folder"
            raise UsageError(what, where=str(path), hint="git clone the repository, and name its folder")
        check_installed()
        git = Git(path, trusted=True)
        try:
            root = Path(git.text("rev-parse", "--show-toplevel"))
        except TransportError as error:
            raise UsageError(
                "not inside a git clone",
                where=str(path),
                hint="name a clone of the repository you publish from with --repo, or cd into it",
            ) from error
        git = Git(root, trusted=True)
        try:
            branch = git.text("symbolic-ref", "HEAD")
        except TransportError as error:
            raise UsageError("HEAD is detached", where=str(root), hint="git switch BRANCH") from error
        try:
            head: str | None = git.text("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
        except TransportError:
            head = None
        return cls(root, git, branch, head)

    def has(self, commit: str) -> bool:
        """Tell whether a commit is part of the branch."""
        try:
            self.git.text("merge-base", "--is-ancestor", commit, self.head or "")
        except TransportError:  # it is not, or is not even here
            return False
        return True

    def remote_url(self, remote: str) -> str:
        """Return the URL that pushes to ``remote`` go to, as it is configured: it says whose repository that is.

        Where that is a short form, which only ``url.*.insteadOf`` makes an address of, it is the address.

        Raises:
            UsageError: There is no such remote.
        """
        try:
            rewritten = self.git.text("remote", "get-url", "--push", "--", remote)
        except TransportError as error:
            raise UsageError(
                f"the clone has no remote {remote!r}",
                where=str(self.root),
                hint=did_you_mean(remote, self.git.text("remote").split())
                or f"git -C {quoted(self.root)} remote add {remote} URL",
            ) from error
        for name in (f"remote.{remote}.pushurl", f"remote.{remote}.url"):
            with contextlib.suppress(TransportError, IndexError):
                configured = self.git.text("config", "--get-all", name).splitlines()[0]
                return configured if _ADDRESS.match(configured) else rewritten
        return rewritten

    def add_remote(self, remote: str, url: str) -> None:
        """Name a URL that this clone pushes to."""
        self.git.text("remote", "add", "--", remote, url)

    def remove_remote(self, remote: str) -> None:
        """Forget a remote, as far as it is known here."""
        self.git.text("remote", "remove", remote)

    def reached(self, source: Source) -> Remote:
        """Return how to reach what a remote's URL leads to: with this clone's settings, and as it does already."""
        remote = Remote.of(source, allow_http=(urlsplit(source.url).hostname or "",))
        # Rewritten, it is reached in another way: with a token, by ssh. Whose repository it is does not change.
        address = self.git.text("ls-remote", "--get-url", "--", source.url)
        protocols = remote.protocols if address == source.url else (_scheme(address, remote),)
        return replace(remote, protocols=protocols, settings=transport_settings(self.root))

    @property
    def checked_out(self) -> bool:
        """Tell whether there is an index: ``git clone --no-checkout`` makes none, and git takes all for deleted."""
        return self.head is None or (self.root / self.git.text("rev-parse", "--git-path", "index")).exists()

    def read(self, path: str) -> bytes | None:
        """Return a file of the last commit, or None."""
        if self.head is None or not self.git.text("ls-tree", "--full-tree", self.head, "--", path):
            return None
        try:
            return self.git.raw("cat-file", "blob", f"{self.head}:{path}")
        except StorageError:
            raise
        except TransportError as error:
            hint = f"in a partial clone, git show HEAD:{path} brings it"
            raise TransportError(error.what, where=str(self.root), hint=hint) from error

    def names_in(self, path: str) -> set[str]:
        """Return the names of the entries of a folder of the last commit."""
        if self.head is None or not self.git.text("ls-tree", "--full-tree", self.head, "--", path):
            return set()
        return set(self._entries(f"{self.head}:{path}"))

    def tree_of(self, path: str) -> str | None:
        """Return the oid of a folder of the last commit, or None."""
        listing = "" if self.head is None else self.git.text("ls-tree", "--full-tree", self.head, "--", path)
        return listing.split()[2] if listing else None

    def tree_before(self, path: str) -> dict[str, str]:
        """Return what a folder held before the last commit that changed it: oids by name; nothing if it is new."""
        if self.head is None:
            return {}
        changed = self.git.text("rev-list", "-1", self.head, "--", path)
        try:
            entries = self._entries(f"{changed}^:{path}")
        except StorageError:
            raise
        except TransportError:
            return {}
        return {name: oid for name, (_, _, oid, _) in entries.items()}

    def local_changes(self, path: str, *, ignore: Iterable[Path] = ()) -> list[str]:
        """Return what ``git status`` says about files below ``path``, but for the files in ``ignore``."""
        ignored = {p.resolve() for p in ignore}
        options = ("--porcelain=v1", "-z", "--untracked-files=all", "--ignored=matching", "--no-renames")
        output = self.git.raw("status", *options, "--", path)
        entries = [entry.decode("utf-8", "replace") for entry in output.split(b"\0") if entry]
        if not self.checked_out:
            entries = [entry for entry in entries if not entry.startswith("D ")]
        return [entry for entry in entries if (self.root / entry[3:]).resolve() not in ignored]

    def stage(self, folder: str, tree: str | None) -> None:
        """Let the index hold exactly the files of a flat tree in a folder. No object but the tree is read."""
        tracked = self.git.raw("ls-files", "-z", "--", folder).split(b"\0")
        none = "0" * (64 if tree is not None and len(tree) == 64 else 40)
        with scratch_file() as listing:
            listing.write(b"".join(f"0 {none}\t".encode() + path + b"\0" for path in tracked if path))
            for mode, kind, oid, name in self._entries(tree or _EMPTY).values():
                listing.write(f"{mode} {kind} {oid}\t{folder}/{name}\0".encode("utf-8", "surrogateescape"))
            listing.seek(0)
            self.git.text("update-index", "-z", "--index-info", stdin=listing)

    def store_files(self, files: Mapping[str, Path]) -> dict[str, str]:
        """Write files into the object database exactly as they are (no autocrlf, no filters); return their oids."""
        if not files:
            return {}
        paths = list(files.values())
        with scratch_file() as names:
            names.write("".join(f"{path}\n" for path in paths).encode())
            names.seek(0)
            output = self.git.text("hash-object", "-w", "--no-filters", "--stdin-paths", stdin=names)
        return dict(zip(files, output.split(), strict=True))

    def make_tree(self, entries: Iterable[tuple[str, str, str, str]]) -> str:
        """Write one tree of ``(mode, kind, oid, name)`` and return its oid."""
        with scratch_file() as listing:
            listing.write(
                b"".join(
                    f"{mode} {kind} {oid}\t{name}\0".encode("utf-8", "surrogateescape")
                    for mode, kind, oid, name in entries
                )
            )
            listing.seek(0)
            # What a partial clone left out is no mistake: names and oids come from its own trees.
            return self.git.text("mktree", "-z", "--missing", stdin=listing)

    def replace(self, path: str, kind: str, oid: str) -> str:
        """Return the last commit's root tree with ``path`` replaced; only the trees along the path are rewritten."""
        return self._replace(f"{self.head}^{{tree}}" if self.head else _EMPTY, path.split("/"), kind, oid)

    def _replace(self, tree: str, path: list[str], kind: str, oid: str) -> str:
        entries = self._entries(tree)
        name = path[0]
        if len(path) > 1:
            below = entries.get(name)
            if below is not None and below[1] != "tree":
                raise ReleaseError(
                    f"{name!r} in the repository is not a folder",
                    where=str(self.root),
                    hint=f"git mv {name} elsewhere, and commit",
                )
            oid, kind = self._replace(below[2] if below else _EMPTY, path[1:], kind, oid), "tree"
        mode = "040000" if kind == "tree" else "100644"
        entries[name] = (mode, kind, oid, name)
        return self.make_tree(entries.values())

    def _entries(self, tree: str) -> dict[str, tuple[str, str, str, str]]:
        if tree == _EMPTY:
            return {}
        entries = {}
        for entry in self.git.raw("ls-tree", "-z", tree).split(b"\0"):
            if entry:
                fields, _, raw_name = entry.partition(b"\t")
                mode, kind, oid = fields.decode().split()
                name = raw_name.decode("utf-8", "surrogateescape")
                entries[name] = (mode, kind, oid, name)
        return entries

    def commit(self, tree: str, message: str, parents: Iterable[str], env: Mapping[str, str] | None = None) -> str:
        """Write a commit object and return its oid; no ref changes.

        Raises:
            UsageError: Git knows no name and e-mail for the commit.
        """
        options = [part for parent in parents for part in ("-p", parent)]
        with _known():
            return self.git.text("commit-tree", tree, *options, "-m", message, env=env)

    def check_identity(self) -> None:
        """Refuse a clone in which nothing can be committed.

        Raises:
            UsageError: Git knows no name and e-mail for commits.
        """
        with _known():
            for who in ("GIT_AUTHOR_IDENT", "GIT_COMMITTER_IDENT"):
                self.git.text("var", who)


@contextmanager
def _known() -> Iterator[None]:
    try:
        yield
    except TransportError as error:
        if "empty ident" in error.what or "tell me who you are" in error.what or "identity" in error.what:
            raise UsageError(
                "git does not know who you are",
                hint='git config --global user.name "Your Name" && git config --global user.email you@example.org',
            ) from error
        raise


def _scheme(url: str, plain: Remote) -> str:
    """Return the protocol of a rewritten address: a safe one, or what it would be without.

    Raises:
        UsageError: Another one: ``ext::`` runs a program.
    """
    before, colon, _ = url.partition(":")
    scheme = url.partition("://")[0].lower() if "://" in url else "ssh" if colon and "/" not in before else "file"
    if "::" in url.partition("/")[0] or scheme not in ("https", "ssh", "file", *plain.protocols):
        raise UsageError(
            f"url.*.insteadOf makes {url[:200]!r} of {plain.url}: that is no way to push",
            hint="git config --get-regexp insteadof shows the rule",
        )
    return scheme


def commit_time(folder: Path) -> datetime:
    """Return when the commit that is checked out in a folder was made.

    Raises:
        UsageError: There is none.
    """
    try:
        return datetime.fromtimestamp(
            int(Git(folder, trusted=True).text("log", "-1", "--no-show-signature", "--format=%ct")), UTC
        )
    except TransportError as error:
        raise UsageError("there is no commit here", where=str(folder), hint="commit first: its time is used") from error
