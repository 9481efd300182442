"""Hardened git: the only room that starts it.

``runner.py`` is the one way to run a command, ``remote.py`` the one way to ask a server; ``listing.py`` says what is
there, ``fetch.py`` brings one release from any server without ever checking out (``objects.py``), ``files.py`` the
small things beside them; ``partial.py`` brings what a partial clone left out,
``previous.py`` knows what was released before, ``release.py`` writes a release with plumbing,
``copies.py`` to mirrors; ``server.py`` serves repositories over HTTP on loopback.
"""

from adaptergit.git.copies import push_copies
from adaptergit.git.fetch import Fetched, fetch_release
from adaptergit.git.files import fetch_file, fetch_files, fetch_rotations, rotations_in, yank_reason
from adaptergit.git.listing import Listing, list_all, list_versions, list_yanked
from adaptergit.git.objects import check_tree, tree_oid
from adaptergit.git.partial import complete
from adaptergit.git.previous import Last, last_releases
from adaptergit.git.release import Plan, moved_on, plan_release, publish_releases, push_rotation, yank_release
from adaptergit.git.remote import Remote
from adaptergit.git.runner import Git
from adaptergit.git.server import GitServer
from adaptergit.git.worktree import Clone, commit_time

__all__ = [
    "Clone",
    "Fetched",
    "Git",
    "GitServer",
    "Last",
    "Listing",
    "Plan",
    "Remote",
    "check_tree",
    "commit_time",
    "complete",
    "fetch_file",
    "fetch_files",
    "fetch_release",
    "fetch_rotations",
    "last_releases",
    "list_all",
    "list_versions",
    "list_yanked",
    "moved_on",
    "plan_release",
    "publish_releases",
    "push_copies",
    "push_rotation",
    "rotations_in",
    "tree_oid",
    "yank_reason",
    "yank_release",
]
