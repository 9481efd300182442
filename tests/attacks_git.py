"""Attacks through references, repositories and git servers."""

from __future__ import annotations

import socket
import zlib
from pathlib import Path

from attacks_table import (
    ADDRESS,
    CHANGED,
    PICKLE,
    REPLAY,
    SECRETS,
    SIGNATURE,
    SILENT,
    TREE,
    WEB,
    Scene,
    Strike,
    attack,
    attacks,
    content_of,
    entries_of,
    put_commit,
    put_object,
    put_tree,
    retag,
    rewritten,
    tag_of,
)
from conftest import git
from forge_simulator import Request, body, slowly, status

from adaptergit.errors import NotFoundError, PackageError, TransportError, TrustError, UsageError
from adaptergit.git import Remote, fetch_release, list_versions
from adaptergit.reference import Source
from adaptergit.resolve import fetch
from adaptergit.settings import Limits, Settings, load_settings
from adaptergit.trust import sign

# --- addresses ---------------------------------------------------------------------------------------------------------


@attacks(
    ADDRESS,
    UsageError,
    {
        "option-as-a-repository": (r"'--upload-pack=touch' is not a repository", "--upload-pack=touch@sst2"),
        "option-as-an-organisation": (r"'-oProxyCommand=x/y' is not a repository", "-oProxyCommand=x/y@sst2"),
        "option-as-a-repository-name": (r"'--upload-pack' is not a valid name", "acme/--upload-pack@sst2"),
        "option-as-an-adapter": (r"'--upload-pack=x' is not an adapter name", "acme/adapters@--upload-pack=x"),
        "ext-transport": (r"'ext::sh%20-c%20id' is not a repository", "ext::sh%20-c%20id@sst2"),
        "ext-transport-behind-a-host": (r"'host/ext::sh' is not a repository", "host/ext::sh@sst2"),
        "fd-transport": (r"'fd::17' is not a repository", "fd::17@sst2"),
        "ext-as-a-scheme": (r"the protocol 'ext' is not allowed", "ext://sh/c@sst2"),
        "git-daemon": (r"the protocol 'git' is not allowed", "git://host.example/acme/adapters@sst2"),
        "ftp": (r"the protocol 'ftp' is not allowed", "ftp://host.example/acme/adapters@sst2"),
        "svn-helper": (r"the protocol 'svn' is not allowed", "svn://host.example/acme/adapters@sst2"),
        "file-url-with-a-host": (r"write file:///absolute/path", "file://evil.example/srv/repo@sst2"),
        "password-in-a-url": (r"never holds credentials", "https://me:s3cret@host.example/acme/adapters@sst2"),
        "token-in-a-url": (r"never holds credentials", "https://ghp_token@host.example/acme/adapters@sst2"),
        "password-in-an-ssh-url": (r"never holds credentials", "ssh://git:s3cret@host.example/acme/adapters@sst2"),
        "newline-in-a-url": (r"is not a repository", "https://host.example/acme\n/adapters@sst2"),
        "header-injection-in-a-url": (r"is not a repository", "https://host.example/a\r\nHost:evil/b@sst2"),
        "nul-in-a-url": (r"is not a repository", "https://host.example/acme\0/adapters@sst2"),
        "nul-in-a-path": (r"is not a repository", "./acme\0@sst2"),
        "escape-sequence-in-a-url": (r"is not a repository", "https://host.example/\x1b[2J/adapters@sst2"),
        "delete-character-in-org-repo": (r"is not a repository", "acme/adap\x7fters@sst2"),
        "newline-after-the-adapter": (r"'\\n' after the adapter name", "acme/adapters@sst2\n"),
        "host-that-is-an-option": (r"expected https://host/path", "https://-oProxyCommand/acme/adapters@sst2"),
        "ssh-host-that-is-an-option": (r"expected ssh://host/path", "ssh://-oProxyCommand/acme/adapters@sst2"),
        "ssh-user-that-is-an-option": (r"'-oProxyCommand' is not a user", "ssh://-oProxyCommand@h/a/b@sst2"),
        "scp-host-that-is-an-option": (r"is not a valid name", "git@-host:acme/adapters@sst2"),
        "scp-path-that-is-an-option": (r"'-x' cannot be part of a repository's path", "git@host.example:-x@sst2"),
        "path-segment-that-is-an-option": (r"'-x' cannot be part", "https://host.example/-x/adapters@sst2"),
        "parent-in-a-url": (r"'\.\.' cannot be part", "https://host.example/acme/../evil/adapters@sst2"),
        "parent-in-an-scp-path": (r"'\.\.' cannot be part", "git@host.example:../../etc/repo@sst2"),
        "parent-in-org-repo": (r"'\.\.' is not a valid name", "acme/..@sst2"),
        "encoded-slash": (r"'acme%2fevil' cannot be part", "https://host.example/acme%2fevil/adapters@sst2"),
        "encoded-parent": (r"'%2e%2e' cannot be part", "https://host.example/acme/%2e%2e/adapters@sst2"),
        "encoded-nul": (r"'acme%00' cannot be part", "https://host.example/acme%00/adapters@sst2"),
        "backslash-in-a-url": (r"cannot be part", "https://host.example/acme\\evil/adapters@sst2"),
        "double-slash-in-a-url": (r"'' cannot be part", "https://host.example/acme//adapters@sst2"),
        "look-alike-slash-in-a-host": (r"not a valid URL", "https://host.example\uff0fevil.example/a/b@sst2"),
        "look-alike-slash-in-org-repo": (r"is not a valid name", "acme\u2215evil/adapters@sst2"),
        "look-alike-slash-in-a-url": (r"cannot be part", "https://host.example/acme\u2215evil/adapters@sst2"),
        "right-to-left-override-in-a-url": (r"is not a repository|cannot be part", "https://h.example/a\u202e/b@sst2"),
        "line-separator-in-an-scp-path": (r"is not a repository|cannot be part", "git@host.example:a\u2028b@sst2"),
        "look-alike-letter-in-a-host": (r"expected https://host/path", "https://g\u0456thub.com/acme/adapters@sst2"),
        "look-alike-letter-in-a-short-host": (r"is not a host name", "g\u0456thub.com/acme/adapters@sst2"),
        "query-in-a-url": (r"has no '\?' or '#'", "https://host.example/a/b?service=x@sst2"),
        "port-out-of-range": (r"not a valid URL: its host, port", "https://host.example:99999/a/b@sst2"),
        "adapter-with-a-parent": (r"'\.\./x' is not an adapter name", "acme/adapters@../x"),
        "adapter-with-a-slash": (r"'/b' after the adapter name", "acme/adapters@a/b"),
        "adapter-that-is-no-tag": (r"cannot be part of a git tag", "acme/adapters@a..b"),
        "adapter-named-like-a-lock": (r"cannot be part of a git tag", "acme/adapters@main.lock"),
        "arbitrary-equality": (r"'===1' is not a version specifier", "acme/adapters@sst2===1"),
        "version-of-ten-thousand-digits": (r"is not a version specifier", f"acme/adapters@sst2=={'9' * 10000}"),
        "digest-of-another-algorithm": (r"after '#' a reference holds sha256", f"acme/adapters@sst2#md5:{'0' * 64}"),
        "digest-in-upper-case": (r"after '#' a reference holds sha256", f"acme/adapters@sst2#sha256:{'A' * 64}"),
        "plain-http-beyond-loopback": (r"loopback only", "http://host.example/acme/adapters@sst2==1.0.0"),
        "half-a-surrogate-in-a-path": (r"is not a repository", "./\ud800@sst2"),
    },
)
def reference(scene: Scene, text: str) -> Strike:
    return lambda: fetch(text)


@attacks(
    ADDRESS,
    UsageError,
    {
        "settings-with-an-ext-mirror": (r"mirrors\.\*: .*is not a repository", 'ext::sh -c "touch owned"'),
        "settings-with-an-option-as-a-mirror": (r"mirrors\.\*: .*is not a repository", "--upload-pack=x"),
        "settings-with-a-password-in-a-mirror": (r"mirrors\.\*: .*never holds cred", "https://me:pw@host.example/a/b"),
    },
)
def mirror_in_the_settings(scene: Scene, url: str) -> Strike:
    (scene.home / "config").mkdir()
    (scene.home / "config" / "config.toml").write_text(f"[mirrors]\n'*' = ['{url}']\n")
    return load_settings


# --- trees -------------------------------------------------------------------------------------------------------------

PLAIN = "100644"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 12345\n" % (b"0" * 64)


@attacks(
    TREE,
    PackageError,
    {
        "tree-with-a-symlink": (r"this is a link", [(b"README.md", "120000", b"/etc/passwd")]),
        "tree-with-a-submodule": (r"this is a submodule", [(b"sub", "160000", b"")]),
        "tree-with-an-executable": (r"this is an executable", [(b"README.md", "100755", b"#!/bin/sh")]),
        "tree-with-a-folder": (r"this is a folder", [(b"sub", "40000", b"x")]),
        "tree-with-gitmodules": (r"'\.gitmodules' is not a file name", [(b".gitmodules", PLAIN, b"")]),
        "tree-with-gitattributes": (r"'\.gitattributes' is not a file", [(b".gitattributes", PLAIN, b"* filter=x")]),
        "tree-with-a-backslash": (r"is not a file name", [(rb"..\evil.txt", PLAIN, b"x")]),
        "tree-with-a-drive-letter": (r"'c:evil' is not a file name", [(b"c:evil", PLAIN, b"x")]),
        "tree-with-a-data-stream": (r"is not a file name", [(b"README.md::$DATA", PLAIN, b"x")]),
        "tree-with-a-windows-device": (r"'CON' is not a file name", [(b"CON", PLAIN, b"x")]),
        "tree-with-a-device-and-extension": (r"'aux\.safetensors' is", [(b"aux.safetensors", PLAIN, b"x")]),
        "tree-with-a-trailing-dot": (r"'README\.md\.' is not a file", [(b"README.md.", PLAIN, b"x")]),
        "tree-with-a-trailing-space": (r"'README\.md ' is not a file", [(b"README.md ", PLAIN, b"x")]),
        "tree-with-a-newline-in-a-name": (r"is not a file name", [(b"a\nb", PLAIN, b"x")]),
        "tree-with-an-escape-sequence-in-a-name": (r"is not a file name", [(b"a\x1b[2J", PLAIN, b"x")]),
        "tree-with-a-name-like-an-option": (r"'--help' is not a file", [(b"--help", PLAIN, b"x")]),
        "tree-with-a-name-that-is-no-utf-8": (r"is not a file name", [(b"caf\xe9", PLAIN, b"x")]),
        "tree-with-two-unicode-forms-of-a-name": (
            r"is not a file name",
            [("caf\u00e9".encode(), PLAIN, b"x"), ("cafe\u0301".encode(), PLAIN, b"y")],
        ),
        "tree-with-a-case-collision": (r"differ only in case", [(b"CARD.yaml", PLAIN, b"x")]),
        "tree-with-an-overlong-name": (r"is not a file name", [(b"a" * 200, PLAIN, b"x")]),
        "tree-with-too-many-files": (r"more than 64 files", [(b"f%d" % i, PLAIN, b"x") for i in range(70)]),
        "tree-that-is-far-too-large": (
            r"tree is far too large",
            [(b"f" * 100 + b"%d" % i, PLAIN, b"x") for i in range(600)],
        ),
        "file-beside-the-manifest": (r"does not list this file", [(b"more.txt", PLAIN, b"x")]),
        "signature-file-in-other-case": (r"differ only in case", [(b"manifest.json.SIG", PLAIN, b"x")]),
        "lfs-pointer-instead-of-weights": (r"git-lfs pointer", [(b"adapter.safetensors", PLAIN, LFS)]),
        "card-of-another": (r"card\.yaml.*the file was changed", [(b"card.yaml", PLAIN, b"name: other\n")]),
    },
)
def tree(scene: Scene, entries: list[tuple[bytes, str, bytes]]) -> Strike:
    hub = scene.hub()
    rewritten(hub.bare, entries)
    return lambda: fetch(f"{hub.url}@sst2==1.0.0")


@attacks(
    TREE,
    PackageError,  # git's own checks come first: such a tree never arrives
    {
        "tree-with-a-git-folder": (r"hasDotgit|contains '\.git'", [(b".git", "40000", b"x")]),
        "tree-with-a-disguised-git-folder": (r"hasDotgit|contains '\.git'", [(b"GIT~1", "40000", b"x")]),
        "tree-with-a-parent-entry": (r"hasDotdot|contains '\.\.'", [(b"..", PLAIN, b"x")]),
        "tree-with-a-path-in-a-name": (r"fullPathname|full pathnames", [(b"../../evil", PLAIN, b"x")]),
        "tree-with-gitmodules-that-is-a-link": (r"gitmodulesSymlink", [(b".gitmodules", "120000", b"/etc/passwd")]),
    },
)
def tree_that_git_refuses(scene: Scene, entries: list[tuple[bytes, str, bytes]]) -> Strike:
    return tree(scene, entries)


@attacks(
    PICKLE,
    PackageError,
    {
        f"tree-with-a-pickle-{suffix}": (r"holds no pickle", f"weights.{suffix}")
        for suffix in ("bin", "pt", "PTH", "pkl", "ckpt")
    },
)
def pickle_in_a_tree(scene: Scene, name: str) -> Strike:
    return tree(scene, [(name.encode(), PLAIN, b"\x80\x04cos\nsystem\n.")])


@attack("tree-with-an-entry-twice", TREE, PackageError, r"duplicateEntries|duplicate file entries")
def entry_twice(scene: Scene) -> Strike:
    hub = scene.hub()
    listed = [(name, mode, oid) for name, (mode, oid) in entries_of(hub.bare).items()]
    twice = [*listed, (b"card.yaml", PLAIN, put_object(hub.bare, b"x"))]
    retag(hub.bare, put_commit(hub.bare, put_tree(hub.bare, twice)))
    return lambda: fetch(f"{hub.url}@sst2==1.0.0")


@attacks(
    CHANGED,
    PackageError,
    {
        "tree-without-a-manifest": (r"there is no manifest\.json", (b"manifest.json",)),
        "tree-without-a-listed-file": (r"the file is missing, but the manifest lists it", (b"README.md",)),
        "empty-tree": (r"there is no manifest\.json", tuple(b"README.md card.yaml adapter.safetensors manifest.json manifest.json.sig".split())),
    },
)  # fmt: skip
def tree_without(scene: Scene, names: tuple[bytes, ...]) -> Strike:
    hub = scene.hub()
    rewritten(hub.bare, [], without=names)
    return lambda: fetch(f"{hub.url}@sst2==1.0.0")


@attack("tree-without-a-signature", SIGNATURE, TrustError, r"is not signed")
def tree_without_a_signature(scene: Scene) -> Strike:
    return tree_without(scene, (b"manifest.json.sig",))


@attack("tree-signed-by-another-key", SIGNATURE, TrustError, r"only SHA256:.* may sign for 127\.0\.0\.1/acme")
def tree_signed_by_another(scene: Scene) -> Strike:
    hub = scene.hub()
    return tree(scene, [(b"manifest.json.sig", PLAIN, sign(content_of(hub.bare, "manifest.json"), scene.other))])


@attack("tree-with-one-changed-byte", CHANGED, PackageError, r"adapter\.safetensors\): the file was changed: sha256")
def one_changed_byte(scene: Scene) -> Strike:
    weights = bytearray(content_of(scene.hub().bare, "adapter.safetensors"))
    weights[-1] ^= 1
    return tree(scene, [(b"adapter.safetensors", PLAIN, bytes(weights))])


@attacks(
    TREE,
    PackageError,
    {
        "file-larger-than-the-limit": (r"the limit for one file is 300", Limits(file_bytes=300)),
        "package-larger-than-the-limit": (r"the limit for a package is 1500", Limits(package_bytes=1500)),
        "more-files-than-the-limit": (r"more than 3 files", Limits(files=3)),
    },
)
def over_a_limit(scene: Scene, limits: Limits) -> Strike:
    hub = scene.hub()
    return lambda: fetch(f"{hub.url}@sst2==1.0.0", settings=Settings(limits=limits))


@attack("pack-larger-than-the-limit", TREE, TransportError, r"more than the limit allows")
def pack_over_the_limit(scene: Scene) -> Strike:
    import os

    hub = scene.hub()
    rewritten(hub.bare, [(b"more.txt", PLAIN, os.urandom(3 << 20))])  # noise does not compress
    limits = Limits(package_bytes=100_000, file_bytes=100_000)
    return lambda: fetch(f"{hub.url}@sst2==1.0.0", settings=Settings(limits=limits))


@attack("tree-with-a-million-times-compressed-file", TREE, PackageError, r"the limit for one file is 1048576")
def compressed_bomb(scene: Scene) -> Strike:
    """40 KB on the wire; judged by its size before it is unpacked."""
    hub = scene.hub()
    rewritten(hub.bare, [(b"adapter.safetensors", PLAIN, b"\0" * (40 << 20))])
    return lambda: fetch(f"{hub.url}@sst2==1.0.0", settings=Settings(limits=Limits(file_bytes=1 << 20)))


# --- tags --------------------------------------------------------------------------------------------------------------


def tagged(scene: Scene, target: str, version: str = "1.0.0") -> Strike:
    hub = scene.hub()
    retag(hub.bare, target, version)
    return lambda: fetch(f"{hub.url}@sst2=={version}")


@attack("tag-of-a-blob", TREE, PackageError, r"has no files")
def tag_of_a_blob(scene: Scene) -> Strike:
    return tagged(scene, put_object(scene.hub().bare, b"x"))


def tag_object(bare: Path, target: str, kind: str) -> str:
    text = f"object {target}\ntype {kind}\ntag x\ntagger x <x@example.org> 1700000000 +0000\n\nx\n"
    return put_object(bare, text.encode(), "tag")


@attack("tags-of-tags-around-a-changed-release", CHANGED, PackageError, r"README\.md\): the file was changed")
def tags_of_tags(scene: Scene) -> Strike:
    bare = scene.hub().bare
    rewritten(bare, [(b"README.md", PLAIN, b"changed")])
    target, kind = git(bare, "rev-parse", tag_of()), "commit"
    for _ in range(20):
        target, kind = tag_object(bare, target, kind), "tag"
    return tagged(scene, target)


@attack(
    "changed-release-with-the-honest-one-as-its-parent", CHANGED, PackageError, r"README\.md\): the file was changed"
)
def changed_on_top(scene: Scene) -> Strike:
    bare = scene.hub().bare
    honest = git(bare, "rev-parse", tag_of())
    tree_oid = rewritten(bare, [(b"README.md", PLAIN, b"changed")])
    return tagged(scene, put_commit(bare, tree_oid, honest))


@attack(
    "old-release-under-a-newer-tag", REPLAY, TrustError, r"asked for version ==1\.1\.0, but the manifest is of 1\.0"
)
def old_under_new(scene: Scene) -> Strike:
    return tagged(scene, tag_of("1.0.0"), "1.1.0")


@attack("old-release-under-a-tag-of-the-future", REPLAY, TrustError, r"asked for version ==9\.0\.0")
def old_under_future(scene: Scene) -> Strike:
    return tagged(scene, tag_of("1.0.0"), "9.0.0")


@attack(
    "release-under-another-name", REPLAY, TrustError, r"asked for the adapter 'mnli', but the manifest is of 'sst2'"
)
def under_another_name(scene: Scene) -> Strike:
    hub = scene.hub()
    git(hub.bare, "update-ref", "refs/tags/adapters/mnli/1.0.0", tag_of())
    return lambda: fetch(f"{hub.url}@mnli==1.0.0")


@attack("release-copied-to-another-repository", REPLAY, TrustError, r"asked for 127\.0\.0\.1/evil/adapters, but")
def copied(scene: Scene) -> Strike:
    import shutil

    from adaptergit.pins import pin_key

    hub = scene.hub()
    pin_key("127.0.0.1/*", scene.key.public.line)
    shutil.copytree(hub.bare, hub.bare.parents[1] / "evil" / "adapters.git")
    return lambda: fetch(f"{hub.server.url}/evil/adapters.git@sst2==1.0.0")


@attack("branch-instead-of-a-lost-tag-is-older", REPLAY, NotFoundError, r"the branch has no sst2>=2")
def branch_is_older(scene: Scene) -> Strike:
    hub = scene.hub()
    for version in ("1.0.0", "1.1.0"):
        git(hub.bare, "update-ref", "-d", tag_of(version))
    return lambda: fetch(f"{hub.url}@sst2>=2")


@attack("tag-that-is-no-version", TREE, NotFoundError, r"has no adapter 'other'")
def odd_tag(scene: Scene) -> Strike:
    hub = scene.hub()
    for name in ("1.0.0--x", "$(touch)", "v1", "01.0", "1.0-1"):
        git(hub.bare, "update-ref", f"refs/tags/adapters/other/{name}", tag_of())
    return lambda: fetch(f"{hub.url}@other")


# --- objects -----------------------------------------------------------------------------------------------------------


@attack(
    "stored-object-that-is-another",
    CHANGED,
    TransportError,
    r"corrupt|mismatch|did not send|did not receive|bad object|missing",
)
def other_object(scene: Scene) -> Strike:
    """The server's disk holds other bytes under the blob's oid."""
    bare = scene.hub().bare
    oid = entries_of(bare)[b"README.md"][1]
    rewritten(bare, [(b"README.md", PLAIN, b"unpacked")])  # a loose object of our own
    oid = entries_of(bare)[b"README.md"][1]
    path = bare / "objects" / oid[:2] / oid[2:]
    path.chmod(0o644)
    path.write_bytes(zlib.compress(b"blob 8\0tampered"))
    return tagged(scene, tag_of())


@attack("server-without-the-pinned-tree", TREE, TransportError, r"not our ref|did not send|remote error|no adapter")
def missing_tree(scene: Scene) -> Strike:
    """An index names a tree that the server does not have, and no tag either."""
    hub = scene.hub()
    empty = scene.tmp / "empty"
    empty.mkdir()
    remote = Remote.of(Source.parse(hub.url))
    return lambda: fetch_release(remote, "sst2", empty, tree="1" * 40, limits=Limits())


@attack("tree-oid-that-is-an-option", ADDRESS, UsageError, r"'--upload-pack=x' is not an object id")
def oid_option(scene: Scene) -> Strike:
    return lambda: fetch_release(
        Remote("https://host.example/a", ("https",)), "x", scene.tmp, tree="--upload-pack=x", limits=Limits()
    )


@attacks(
    ADDRESS,
    TransportError,
    {
        "ext-url-past-the-grammar": (r"transport 'ext' not allowed", "ext::sh -c touch% {owned}"),
        "option-url-past-the-grammar": (r"strange|does not appear|not found|not exist", "--upload-pack=touch {owned}"),
        "fd-url-past-the-grammar": (r"transport 'fd' not allowed", "fd::0"),
        "file-url-where-https-was-said": (r"transport 'file' not allowed", "file:///etc"),
    },
)
def past_the_grammar(scene: Scene, url: str) -> Strike:
    """Were the grammar of references to fail, git must still not run it."""
    return lambda: list_versions(Remote(url.format(owned=scene.tmp / "owned"), ("https",)), "x", Limits())


# --- servers that speak something else ---------------------------------------------------------------------------------


def hasty(seconds: float = 2.0) -> Settings:
    return Settings(limits=Limits(fetch_seconds=seconds))


class Elsewhere:
    """Notes who called."""

    def __init__(self, scene: Scene) -> None:
        self.forge = scene.forge()

    @property
    def called(self) -> bool:
        return bool(self.forge.asked)


def redirected(scene: Scene, location: str) -> Strike:
    forge = scene.forge()
    forge.faults["/info/refs"] = [status(302, Location=location)] * 20
    return lambda: fetch(f"{forge.url}/acme/adapters.git@sst2==1.0.0", settings=hasty())


@attacks(
    WEB,
    TransportError,
    {
        "git-redirect-to-a-file": (r"returned error: 302|[Pp]rotocol \"?file", "file:///etc/passwd"),
        "git-redirect-to-ftp": (r"returned error: 302|[Pp]rotocol \"?ftp", "ftp://127.0.0.1/x"),
        "git-redirect-to-gopher": (r"returned error: 302|[Pp]rotocol \"?gopher", "gopher://127.0.0.1/x"),
    },
)
def git_redirect(scene: Scene, location: str) -> Strike:
    return redirected(scene, location)


@attack("git-redirect-to-plain-http-beyond-loopback", WEB, TransportError, r"returned error: 302")
def git_redirect_beyond_loopback(scene: Scene) -> Strike:
    """0.0.0.0 is not loopback by the rules of references, and still reaches a server that tells whether it was asked."""
    other = Elsewhere(scene)
    location = other.forge.url.replace("127.0.0.1", "0.0.0.0") + "/acme/adapters.git/info/refs?service=git-upload-pack"
    strike = redirected(scene, location)

    def run() -> object:
        try:
            return strike()
        finally:
            assert not other.called, "a host was asked that nobody named"

    return run


@attack("dumb-server-with-alternates-elsewhere", WEB, TransportError, r"Unable to find [0-9a-f]{40} under")
def dumb_alternates(scene: Scene) -> Strike:
    """The dumb protocol can send a client to other hosts for objects."""
    import subprocess

    hub, other, forge = scene.hub(), Elsewhere(scene), scene.forge()
    bare = forge.root / "acme" / "adapters.git"
    subprocess.run(["git", "clone", "-q", "--bare", str(hub.bare), str(bare)], check=True)
    git(bare, "update-server-info")
    tree_oid = git(bare, "rev-parse", f"{tag_of()}^{{tree}}")
    for pack in (bare / "objects").rglob("*"):
        if pack.is_file() and "info" not in pack.parts:
            pack.unlink()
    (bare / "objects" / "info").mkdir(exist_ok=True)
    (bare / "objects" / "info" / "http-alternates").write_text(f"{other.forge.url}/acme/adapters.git/objects\n")
    (bare / "objects" / "info" / "packs").write_text("")
    empty = scene.tmp / "empty"
    empty.mkdir()
    remote = Remote(f"{forge.url}/acme/adapters.git", ("http",))

    def run() -> object:
        try:
            return fetch_release(remote, "sst2", empty, tree=tree_oid, limits=Limits(fetch_seconds=20))
        finally:
            assert not other.called, "a host was asked that nobody named"

    return run


@attack("server-that-never-answers", SILENT, TransportError, r"no end within 1 s")
def silent(scene: Scene) -> Strike:
    listening = scene.running.enter_context(socket.socket())
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/acme/adapters.git"
    return lambda: list_versions(Remote(url, ("http",)), "sst2", Limits(fetch_seconds=1.0))


@attack("server-of-a-byte-now-and-then", SILENT, TransportError, r"no end within 1 s")
def slow(scene: Scene) -> Strike:
    forge = scene.forge()
    forge.faults["/info/refs"] = [slowly] * 20
    return lambda: fetch(f"{forge.url}/acme/adapters.git@sst2==1.0.0", settings=hasty(1.0))


def endless_refs(request: Request) -> None:
    """A list of refs without an end, at a pace that spares the machine."""
    import time

    request.send_response(200)
    request.send_header("Content-Type", "application/x-git-upload-pack-advertisement")
    request.end_headers()
    line = b"003d" + b"1" * 40 + b" refs/heads/aaaaa\n"
    try:
        request.wfile.write(b"001e# service=git-upload-pack\n0000")
        for _ in range(4000):
            request.wfile.write(line * 100)
            time.sleep(0.001)
    except OSError:
        pass
    request.close_connection = True


@attack("server-with-an-endless-list-of-refs", SILENT, TransportError, r"no end within 1 s")
def endless(scene: Scene) -> Strike:
    forge = scene.forge()
    forge.faults["/info/refs"] = [endless_refs] * 20
    return lambda: fetch(f"{forge.url}/acme/adapters.git@sst2==1.0.0", settings=hasty(1.0))


@attack("server-that-sends-a-web-page", WEB, TransportError, r"info/refs not valid: is this a git repository")
def web_page(scene: Scene) -> Strike:
    forge = scene.forge()
    forge.faults["/info/refs"] = [body(b"<html>\n<p>please log in</p>\n</html>\n")] * 20
    return lambda: fetch(f"{forge.url}/acme/adapters.git@sst2==1.0.0", settings=hasty(5.0))


# A server that speaks git's protocol v0 and says what it likes.


def packet(data: bytes) -> bytes:
    return b"%04x" % (len(data) + 4) + data


def speaking(scene: Scene, oid: str, answer: bytes) -> Strike:
    forge = scene.forge()

    def refs(request: Request) -> None:
        caps = b"\0side-band-64k shallow allow-tip-sha1-in-want allow-reachable-sha1-in-want"
        told = packet(b"# service=git-upload-pack\n") + b"0000"
        told += packet(oid.encode() + b" " + tag_of().encode() + caps + b"\n") + b"0000"
        request.answer(200, told, {"Content-Type": "application/x-git-upload-pack-advertisement"})

    def post(request: Request) -> None:
        asked = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        shallow = packet(b"shallow " + oid.encode()) + b"0000"
        request.answer(
            200,
            shallow + (answer if b"0009done" in asked else b""),
            {"Content-Type": "application/x-git-upload-pack-result"},
        )

    forge.faults["/info/refs"] = [refs] * 20
    forge.faults["/archive/"] = [status(404)] * 20  # else the honest release would be had from there
    forge.server.RequestHandlerClass.do_POST = post  # type: ignore[attr-defined]
    return lambda: fetch(f"{forge.url}/acme/adapters.git@sst2==1.0.0", settings=hasty(10.0))


@attack("server-that-sends-another-commit", TREE, TransportError, r"did not send|bad object|missing|not our|lacks")
def another_commit(scene: Scene) -> Strike:
    import subprocess

    bare = scene.hub().bare
    wanted = "2" * 40
    other = git(bare, "rev-parse", tag_of())
    argv = ["git", "-C", str(bare), "pack-objects", "--revs", "--stdout", "-q"]
    pack = subprocess.run(argv, input=f"{other}\n".encode(), capture_output=True, check=True).stdout
    return speaking(scene, wanted, packet(b"NAK\n") + packet(b"\x01" + pack) + b"0000")


@attack("server-that-sends-a-broken-pack", TREE, TransportError, r"pack|early EOF|protocol error")
def broken_pack(scene: Scene) -> Strike:
    return speaking(scene, "2" * 40, packet(b"NAK\n") + packet(b"\x01PACK\0\0\0\x02\xff\xff\xff\xff") + b"0000")


@attack("server-whose-complaint-drives-the-terminal", SECRETS, TransportError, r"^[^\x00-\x09\x0b-\x1f\x7f-\x9f]*$")
def escape_sequences(scene: Scene) -> Strike:
    """What a server says ends up in the error's text: it must hold nothing that a terminal obeys."""
    said = packet(b"\x02\x1b[2J\x1b]0;owned\x07all is well\n") + packet(b"\x03\x1b[31mgone\n")
    return speaking(scene, "2" * 40, packet(b"NAK\n") + said + b"0000")


@attack("password-from-a-server-s-redirect-in-an-error", SECRETS, TransportError, r"^(?!.*s3cret)")
def secret_in_an_error(scene: Scene) -> Strike:
    """git names the address it was sent to; a password in it must not reach logs."""
    port = scene.forge().url.rpartition(":")[2]
    return redirected(scene, f"http://me:s3cret@127.0.0.1:{port}/acme/x.git/info/refs?service=git-upload-pack")
