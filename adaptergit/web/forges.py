"""Opening a pull request through a forge's REST API.

Sources: GitHub REST API 2022-11-28, "Create a pull request"; GitLab API v4, "Create MR"; Gitea and Forgejo API v1,
"Create a pull request".
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import requests
import urllib3

from adaptergit._version import __version__
from adaptergit.errors import ReleaseError, TransportError, UsageError, printable
from adaptergit.settings import check_online
from adaptergit.web.download import Download

KINDS = ("github", "gitlab", "gitea")
_HOSTS = {"github.com": "github", "gitlab.com": "gitlab", "codeberg.org": "gitea", "gitea.com": "gitea"}
_TIMEOUT = (20, 60)
_MAX_ANSWER = 2**23


@dataclass(frozen=True)
class PullRequest:
    """What is proposed."""

    repository: str
    """URL of the index's repository, ``https://host/owner/name.git``."""
    head: str
    """Branch that was pushed."""
    base: str
    """Branch it shall go into."""
    title: str
    body: str
    fork: str | None = None
    """URL of the fork the branch was pushed to; None: the repository itself."""


def kind_of(url: str) -> str | None:
    """Return what kind of forge a well-known host is; a token is sent to no other without being told."""
    return _HOSTS.get(urlsplit(split_address(url)[0]).hostname or "")


def open_pull_request(one: PullRequest, kind: str, token: str, download: Download) -> str:
    """Open it and return its address.

    Raises:
        UsageError: An unknown kind of forge, or an address that may not be asked.
        ReleaseError: The forge refuses: no permission, or one is open already.
        TransportError: The forge cannot be reached.
    """
    base, path = split_address(one.repository)
    owner = split_address(one.fork)[1].partition("/")[0] if one.fork else None
    head = f"{owner}:{one.head}" if owner else one.head
    if kind == "github":
        api = "https://api.github.com" if base == "https://github.com" else f"{base}/api/v3"
        data = {"title": one.title, "body": one.body, "head": head, "base": one.base}
        answer = _post(f"{api}/repos/{path}/pulls", data, {"Authorization": f"Bearer {token}"}, download)
        return _address(answer, "html_url")
    if kind == "gitea":
        data = {"title": one.title, "body": one.body, "head": head, "base": one.base}
        answer = _post(f"{base}/api/v1/repos/{path}/pulls", data, {"Authorization": f"token {token}"}, download)
        return _address(answer, "html_url")
    if kind == "gitlab":
        headers = {"PRIVATE-TOKEN": token}
        data = {
            "title": one.title,
            "description": one.body,
            "source_branch": one.head,
            "target_branch": one.base,
        }
        project = path
        if one.fork:
            target = ask("GET", f"{base}/api/v4/projects/{quote(path, safe='')}", None, headers, download)
            data["target_project_id"] = str(target.get("id", "") if isinstance(target, dict) else "")
            project = split_address(one.fork)[1]
        url = f"{base}/api/v4/projects/{quote(project, safe='')}/merge_requests"
        return _address(_post(url, data, headers, download), "web_url")
    raise UsageError(f"unknown kind of forge {kind!r}", hint=f"--forge {' or '.join(KINDS)}")


def page_for(one: PullRequest, kind: str | None) -> str:
    """Return the page on which a person opens it."""
    base, path = split_address(one.repository)
    owner = split_address(one.fork)[1].partition("/")[0] if one.fork else None
    if kind == "gitlab":
        project = split_address(one.fork)[1] if one.fork else path
        return f"{base}/{project}/-/merge_requests/new?merge_request[source_branch]={quote(one.head)}"
    head = f"{owner}:{one.head}" if owner else one.head
    return f"{base}/{path}/compare/{quote(one.base)}...{quote(head)}"


def split_address(url: str) -> tuple[str, str]:
    """Return ``https://host`` and ``owner/name`` of ``https://host/owner/name.git``; of ssh addresses likewise."""
    if "://" not in url:
        _, _, rest = url.partition("@")
        host, _, path = rest.partition(":")
        return f"https://{host}", path.strip("/").removesuffix(".git")
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "ssh":
        return f"https://{host}", parts.path.strip("/").removesuffix(".git")
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{host}{port}", parts.path.strip("/").removesuffix(".git")


def _post(url: str, data: dict[str, str], headers: dict[str, str], download: Download) -> dict[str, Any]:
    answer = ask("POST", url, data, headers, download)
    return answer if isinstance(answer, dict) else {}


def ask(method: str, url: str, data: dict[str, Any] | None, headers: dict[str, str], download: Download) -> Any:
    """Send a request to a forge's API and return its answer, an empty object where it gave none.

    Raises:
        UsageError: Nothing may be asked: the address is not one, or ``ADAPTERGIT_OFFLINE`` forbids it.
        ReleaseError: The forge refuses.
        TransportError: It cannot be asked.
    """
    check_online(url)
    download.check(url)
    headers = {"User-Agent": f"adaptergit/{__version__}", "Accept": "application/json", **headers}
    try:
        with requests.Session() as session:
            session.trust_env = False  # netrc would replace the token
            response = session.request(
                method, url, json=data, headers=headers, timeout=_TIMEOUT, allow_redirects=False, stream=True
            )
            body = response.raw.read(_MAX_ANSWER, decode_content=True)
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise TransportError(
            f"the forge cannot be asked: {type(error).__name__}",
            where=url,
            hint="check the network, or try again later",
        ) from error
    try:
        answer = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        answer = {}
    if not 200 <= response.status_code < 300:
        said = answer.get("message") or answer.get("error") if isinstance(answer, dict) else ""
        details = answer.get("errors") if isinstance(answer, dict) else None
        plain = printable(f"{said or ''} {details or ''}")[:300].strip()
        hint = "check the token and what it may do" if response.status_code in (401, 403, 404) else None
        raise ReleaseError(f"the forge answered {response.status_code}: {plain}", where=url, hint=hint)
    return answer


def _address(answer: dict[str, Any], key: str) -> str:
    found = answer.get(key)
    if not isinstance(found, str) or not found.startswith(("https://", "http://")) or not found.isprintable():
        raise TransportError("the forge gave no address of the pull request")
    return found
