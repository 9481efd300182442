"""Open pull requests through a forge's REST API: list them, comment, and merge exactly the commit that was looked at.

Sources: GitHub REST API 2022-11-28 (pulls, issue comments, merge); GitLab API v4 (merge requests, notes, merge); Gitea
and Forgejo API v1 (pulls, issue comments, merge).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from adaptergit.errors import ReleaseError, TransportError, UsageError
from adaptergit.web.download import Download
from adaptergit.web.forges import KINDS, ask, split_address

_PER_PAGE = 50
_PAGES = 40
_BOTS = {"github": "github-actions[bot]", "gitea": "forgejo-actions"}
"""Who the tokens of CI jobs are, where they may not ask."""


@dataclass(frozen=True)
class Open:
    """A pull request that is open."""

    number: int
    head: str
    """Commit."""


@dataclass(frozen=True)
class Comment:
    """A comment on a pull request."""

    author: str
    created: datetime
    """By the forge's clock."""
    body: str


@dataclass(frozen=True)
class Reviews:
    """The pull requests of one repository."""

    repository: str
    """URL, ``https://host/owner/name.git``."""
    kind: str
    token: str | None
    download: Download

    def open(self) -> list[Open]:
        """Return what is open.

        Raises:
            UsageError: An unknown kind of forge.
            ReleaseError: The forge refuses.
            TransportError: It cannot be reached, or answers something else.
        """
        state = "opened" if self.kind == "gitlab" else "open"
        found = []
        for one in self._list(self._pulls, f"state={state}"):
            if self.kind == "gitlab":
                found.append(Open(int(one["iid"]), str(one["sha"])))
            else:
                found.append(Open(int(one["number"]), str(one["head"]["sha"])))
        return found

    def comments(self, number: int) -> list[Comment]:
        """Return the comments on a pull request, oldest first.

        Raises:
            ReleaseError, TransportError: See :meth:`open`.
        """
        found = []
        for one in self._list(self._comments(number), "sort=asc" if self.kind == "gitlab" else ""):
            author = one["author"]["username"] if self.kind == "gitlab" else one["user"]["login"]
            created = datetime.fromisoformat(str(one["created_at"]).replace("Z", "+00:00"))
            found.append(Comment(str(author), created.astimezone(UTC), str(one["body"])))
        return sorted(found, key=lambda comment: comment.created)

    def comment(self, number: int, body: str) -> None:
        """Write a comment.

        Raises:
            ReleaseError, TransportError: See :meth:`open`.
        """
        self._ask("POST", self._comments(number), {"body": body})

    def merge(self, number: int, head: str) -> None:
        """Merge a pull request, if this is still its commit.

        Raises:
            ReleaseError: Something was pushed in between, or it cannot be merged.
            TransportError: See :meth:`open`.
        """
        if self.kind == "github":
            self._ask("PUT", f"{self._pulls}/{number}/merge", {"sha": head, "merge_method": "squash"})
        elif self.kind == "gitlab":
            self._ask("PUT", f"{self._pulls}/{number}/merge", {"sha": head, "squash": True})
        else:
            self._ask("POST", f"{self._pulls}/{number}/merge", {"Do": "squash", "head_commit_id": head})

    def me(self) -> str:
        """Return whose token it is.

        Raises:
            ReleaseError, TransportError: See :meth:`open`.
        """
        try:
            found = self._ask("GET", f"{self._api}/user", None)
            return str(found["username" if self.kind == "gitlab" else "login"])
        except (ReleaseError, KeyError):
            if self.kind not in _BOTS:
                raise
            return _BOTS[self.kind]

    @property
    def _api(self) -> str:
        base, _ = split_address(self.repository)
        if self.kind == "github":
            return "https://api.github.com" if base == "https://github.com" else f"{base}/api/v3"
        if self.kind in KINDS:
            return f"{base}/api/{'v4' if self.kind == 'gitlab' else 'v1'}"
        raise UsageError(f"unknown kind of forge {self.kind!r}", hint=f"--forge {' or '.join(KINDS)}")

    @property
    def _pulls(self) -> str:
        _, path = split_address(self.repository)
        if self.kind == "gitlab":
            return f"{self._api}/projects/{quote(path, safe='')}/merge_requests"
        return f"{self._api}/repos/{path}/pulls"

    def _comments(self, number: int) -> str:
        if self.kind == "gitlab":
            return f"{self._pulls}/{number}/notes"
        return f"{self._pulls.removesuffix('/pulls')}/issues/{number}/comments"

    def _list(self, url: str, query: str) -> Iterator[dict[str, Any]]:
        size = "limit" if self.kind == "gitea" else "per_page"
        for page in range(1, _PAGES + 1):
            asked = "&".join(part for part in (query, f"{size}={_PER_PAGE}", f"page={page}") if part)
            answer = self._ask("GET", f"{url}?{asked}", None)
            if not isinstance(answer, list):
                raise TransportError("the forge gave no list", where=url, hint="--forge says of which kind it is")
            try:
                yield from (dict(one) for one in answer)
            except (KeyError, TypeError, ValueError) as error:
                raise TransportError("the forge's answer cannot be understood", where=url) from error
            if len(answer) < _PER_PAGE:
                return

    def _ask(self, method: str, url: str, data: dict[str, Any] | None) -> Any:
        headers = {}
        if self.token is not None:
            headers = {
                "github": {"Authorization": f"Bearer {self.token}"},
                "gitlab": {"PRIVATE-TOKEN": self.token},
                "gitea": {"Authorization": f"token {self.token}"},
            }[self.kind]
        return ask(method, url, data, headers, self.download)
