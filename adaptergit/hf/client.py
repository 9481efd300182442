"""What is asked of a Hub, in our words: ``huggingface_hub`` sends every request, with its own credentials and settings.

Nothing that a Hub answers is believed for its form: sizes are bounded, names are looked up and never joined, and what
arrives is compared with what was listed.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import itertools
import os
import re
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptergit._version import __version__
from adaptergit.errors import AdaptergitWarning, NotFoundError, PackageError, ReleaseError, TransportError, printable
from adaptergit.hf.reference import DEFAULT_REVISION
from adaptergit.progress import Progress, watcher
from adaptergit.settings import Settings
from adaptergit.web.download import Download

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ENTRIES = 1000
_SLACK = 64 * 2**20
_CHANGED = "something on the way changed it: try again, and tell the publisher if it stays so"
_LOGIN = "if it is private, log in first: hf auth login"


@dataclass(frozen=True)
class Listed:
    """One file as the Hub lists it."""

    size: int
    """Bytes."""
    sha256: str | None
    """Of large files only."""
    blob: str
    """Git's oid of a small file's content."""


@dataclass(frozen=True)
class Listing:
    """One folder of one commit."""

    files: Mapping[str, Listed]
    """By name, without the folder's own."""
    folders: tuple[str, ...]
    """Names of folders inside."""


def offline_by_environment() -> bool:
    """Tell whether ``HF_HUB_OFFLINE`` (or ``TRANSFORMERS_OFFLINE``) forbids to ask a Hub."""
    stated = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return stated.upper() in ("1", "ON", "YES", "TRUE")


@dataclass(frozen=True)
class Hub:
    """A Hub at an address."""

    endpoint: str
    seconds: float
    """For one file."""

    @classmethod
    def of(cls, endpoint: str, settings: Settings) -> Hub:
        """Return the Hub at an address that may be asked.

        Raises:
            UsageError: Plain http to a host that is neither loopback nor opted in.
        """
        Download(settings.allow_http).check(endpoint)
        return cls(endpoint, settings.limits.fetch_seconds)

    def commit(self, repository: str, revision: str | None) -> str:
        """Return the commit that a branch or tag names now.

        Raises:
            NotFoundError: No such repository or revision, or none that may be seen.
            TransportError: The Hub cannot be asked.
        """
        with self._asking(repository, revision):
            info = self._api.model_info(repository, revision=revision or DEFAULT_REVISION, expand=["sha"])
        if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
            raise self._odd(repository, f"the commit {info.sha!r}")
        return info.sha

    def listing(self, repository: str, folder: str, commit: str) -> Listing:
        """List one folder of a commit.

        Raises:
            NotFoundError: No such folder.
            TransportError: The Hub cannot be asked, or lists what it should not.
        """
        inside = f"{folder}/" if folder else ""
        files: dict[str, Listed] = {}
        folders: list[str] = []
        with self._asking(repository, commit, folder):
            tree = self._api.list_repo_tree(repository, folder or None, revision=commit)
            for entry in itertools.islice(tree, _ENTRIES + 1):
                name = entry.path.removeprefix(inside)
                if not entry.path.startswith(inside) or "/" in name or not name:
                    continue  # nothing of this folder: it is not looked at
                if type(entry).__name__ == "RepoFolder":
                    folders.append(name)
                elif name in files:
                    raise self._odd(repository, f"{name!r} twice")
                else:
                    files[name] = self._listed(repository, entry)
        if len(files) + len(folders) > _ENTRIES:
            raise PackageError(f"more than {_ENTRIES} files", where=self.address(repository, folder))
        return Listing(files, tuple(folders))

    def save(self, repository: str, path: str, commit: str, listed: Listed, target: Path) -> str:
        """Download one file, compare it with what was listed, and return its sha256.

        Raises:
            NotFoundError, TransportError: It cannot be had.
            PackageError: Something else arrived.
        """
        from huggingface_hub import hf_hub_download

        where = self.address(repository, path)
        options: dict[str, Any] = {"tqdm_class": _bounded(listed.size, self.seconds, where)}
        if "tqdm_class" not in inspect.signature(hf_hub_download).parameters:
            options = {}  # before 1.1: what is too much is seen at the end
        with (
            tempfile.TemporaryDirectory(dir=target.parent, prefix=".hub-") as scratch,
            self._asking(repository, commit, path),
        ):
            got = Path(
                hf_hub_download(
                    repository,
                    path,
                    revision=commit,
                    endpoint=self.endpoint,
                    local_dir=scratch,
                    library_name="adaptergit",
                    library_version=__version__,
                    **options,
                )
            )
            digest = _compared(got, listed, where)
            got.replace(target)
        target.chmod(0o644)
        return digest

    def tags(self, repository: str) -> frozenset[str]:
        """Return the names of a repository's tags.

        Raises:
            NotFoundError, TransportError: The Hub cannot be asked.
        """
        with self._asking(repository):
            return frozenset(str(tag.name) for tag in self._api.list_repo_refs(repository).tags)

    def create(self, repository: str) -> None:
        """Make a repository, unless it is there.

        Raises:
            TransportError: The Hub refuses.
        """
        with self._asking(repository):
            self._api.create_repo(repository, exist_ok=True)

    def push(self, repository: str, files: Mapping[str, Path], gone: Iterable[str], message: str, parent: str) -> str:
        """Write files into the default branch in one commit, and return it.

        Args:
            repository: ``org/repo``.
            files: Local files by their path in the repository.
            gone: Paths to be removed.
            message: Of the commit.
            parent: Commit that the branch must be at.

        Raises:
            ReleaseError: Somebody else was faster, or the Hub refuses what is in it.
            TransportError: The Hub cannot be asked.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *(CommitOperationAdd(path, str(file)) for path, file in files.items()),
            *(CommitOperationDelete(path) for path in gone),
        ]
        with self._asking(repository), warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", UserWarning)
            done = self._api.create_commit(
                repository, operations, commit_message=message, parent_commit=parent, revision=DEFAULT_REVISION
            )
        for one in (one for one in told if one.category is UserWarning):  # what the Hub has to say of the README
            warnings.warn(f"{self.address(repository)}: {one.message}", AdaptergitWarning, stacklevel=2)
        return str(done.oid)

    def tag(self, repository: str, name: str, commit: str) -> None:
        """Tag a commit.

        Raises:
            ReleaseError: There is such a tag.
            TransportError: The Hub cannot be asked.
        """
        with self._asking(repository):
            self._api.create_tag(repository, tag=name, revision=commit)

    def address(self, repository: str, path: str = "") -> str:
        """Return where something is, for people."""
        return f"{self.endpoint}/{repository}{f'/{path}' if path else ''}"

    @property
    def _api(self) -> HfApi:
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.endpoint, library_name="adaptergit", library_version=__version__)

    def _listed(self, repository: str, entry: Any) -> Listed:
        digest = entry.lfs.sha256 if entry.lfs is not None else None
        size = entry.lfs.size if entry.lfs is not None else entry.size
        sound = type(size) is int and size >= 0 and isinstance(entry.blob_id, str)
        if not sound or not (digest is None or (isinstance(digest, str) and _SHA256.fullmatch(digest))):
            raise self._odd(repository, f"{entry.path!r} of the size {size!r} and the sha256 {digest!r}")
        return Listed(size, digest, entry.blob_id)

    def _odd(self, repository: str, what: str) -> TransportError:
        return TransportError(
            f"the server lists {what[:300]}: this is no Hub", where=self.address(repository), hint="check HF_ENDPOINT"
        )

    @contextmanager
    def _asking(self, repository: str, revision: str | None = None, path: str = "") -> Iterator[None]:
        """Say what went wrong in our words. A server's own are kept out of them: they could hold anything."""
        from huggingface_hub import errors

        where = self.address(repository, path)
        try:
            yield
        except errors.GatedRepoError as error:
            hint = f"accept its terms at {self.address(repository)}, then log in: hf auth login"
            raise NotFoundError(
                "the repository is open only to those who accept its terms", where=where, hint=hint
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise NotFoundError("no such repository, or you may not see it", where=where, hint=_LOGIN) from error
        except errors.RevisionNotFoundError as error:
            raise NotFoundError(
                f"no such branch, tag or commit: {revision}", where=where, hint="leave it out for what is newest"
            ) from error
        except errors.OfflineModeIsEnabled as error:
            raise TransportError("HF_HUB_OFFLINE is set", where=where, hint="unset it to ask the Hub") from error
        except errors.LocalEntryNotFoundError as error:
            raise TransportError("the Hub cannot be reached", where=where, hint="try again later") from error
        except errors.EntryNotFoundError as error:
            raise NotFoundError(
                "no such file or folder in the repository",
                where=where,
                hint=f"see what there is: {self.address(repository)}",
            ) from error
        except errors.HfHubHTTPError as error:
            raise _refused(getattr(error.response, "status_code", None), where) from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            if str(error).startswith("Invalid metadata in README.md"):
                hint = "correct the card, or the front matter of the README"
                raise PackageError(printable(str(error)[:500]), where=where, hint=hint) from error
            told = f"the Hub's answer cannot be understood: {type(error).__name__}"
            raise TransportError(told, where=where, hint="check HF_ENDPOINT") from error
        except RuntimeError as error:  # what is raised around the errors of uploads, and by Xet
            status = getattr(getattr(error.__cause__, "response", None), "status_code", None)
            if status is not None:
                raise _refused(status, where) from error
            raise TransportError("the transfer failed", where=where, hint="try again later") from error
        except _transport_errors() as error:
            hint = "check the network, and the proxy, if there is one (https_proxy); else try again later"
            raise TransportError(
                f"the Hub cannot be reached: {type(error).__name__}", where=where, hint=hint
            ) from error
        except OSError as error:
            if error.errno is not None:
                raise
            raise TransportError("the download broke off", where=where, hint="try again") from error


def _refused(status: int | None, where: str) -> TransportError | ReleaseError:
    if status in (401, 403):
        return TransportError(
            f"the Hub refuses ({status})", where=where, hint="log in with a token that may: hf auth login"
        )
    if status in (409, 412):
        return ReleaseError(
            f"somebody else published at the same time ({status}); nothing was changed",
            where=where,
            hint="publish again",
        )
    return TransportError(f"the Hub answered {status}", where=where, hint="try again later")


def _transport_errors() -> tuple[type[Exception], ...]:
    """The errors of the HTTP library in use: huggingface_hub has changed it twice."""
    from huggingface_hub import get_session

    library = importlib.import_module(type(get_session()).__module__.partition(".")[0])
    names = ("RequestException", "HTTPError", "InvalidURL", "StreamError")
    return tuple(found for name in names if isinstance(found := getattr(library, name, None), type))


def _compared(path: Path, listed: Listed, where: str) -> str:
    """Return the sha256 of a file that is what the Hub listed."""
    size = path.stat().st_size
    if size != listed.size:
        raise PackageError(f"{size} bytes arrived, the Hub lists {listed.size}", where=where, hint="try again")
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        stream.seek(0)
        if listed.sha256 is not None and digest != listed.sha256:
            told = f"sha256 {digest[:16]}… arrived, the Hub lists {listed.sha256[:16]}…"
            raise PackageError(told, where=where, hint=_CHANGED)
        blob = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        while listed.sha256 is None and (block := stream.read(1 << 20)):
            blob.update(block)
    if listed.sha256 is None and blob.hexdigest() != listed.blob:
        raise PackageError("the file is another one than the Hub lists", where=where, hint=_CHANGED)
    return digest


def _bounded(size: int, seconds: float, where: str) -> Any:
    """Make a progress bar that shows nothing and ends a download that goes on for too long.

    It is told what arrives on the wire, and that may be more than the file: how much it is, is compared at the end.
    """
    bar: Any = importlib.import_module("huggingface_hub.utils").tqdm
    deadline, report = time.monotonic() + seconds, watcher()

    class Bounded(bar):  # type: ignore[misc]  # of Any: the class is not exported with its types
        arrived = 0

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> Any:
            self.arrived += int(n or 0)
            if self.arrived > 2 * size + _SLACK:
                raise PackageError(f"far more than the {size} bytes that the Hub lists", where=where, hint=_CHANGED)
            if time.monotonic() > deadline:
                raise TransportError(f"no end within {seconds:.0f} s", where=where, hint="try again later")
            if report is not None:
                report(Progress(where, min(self.arrived, size), size))
            return super().update(n)

    return Bounded
