"""Hardened git: the only room that starts it.

``runner.py`` is the one way to run a command; ``fetch.py`` brings one release from any server without ever checking
out; ``release.py`` writes one with plumbing, ``copies.py`` to mirrors; ``server.py`` serves repositories over HTTP on
loopback.
"""

from adaptergit.git.copies import push_copies
from adaptergit.git.fetch import (
    Fetched,
    Listing,
    Remote,
    fetch_file,
    fetch_files,
    fetch_release,
    fetch_rotations,
    list_all,
    list_versions,
    yank_reason,
)
from adaptergit.git.release import Plan, plan_release, publish_releases, push_rotation, yank_release
from adaptergit.git.runner import Git
from adaptergit.git.server import GitServer
from adaptergit.git.worktree import Clone, commit_time

__all__ = [
    "Clone",
    "Fetched",
    "Git",
    "GitServer",
    "Listing",
    "Plan",
    "Remote",
    "commit_time",
    "fetch_file",
    "fetch_files",
    "fetch_release",
    "fetch_rotations",
    "list_all",
    "list_versions",
    "plan_release",
    "publish_releases",
    "push_copies",
    "push_rotation",
    "yank_reason",
    "yank_release",
]
