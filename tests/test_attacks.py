"""What an attacker can try, one named case each: refused, with an error of its own, and nothing is left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attacks_git
import attacks_package
import attacks_trust
import attacks_web
import pytest
from attacks_table import ON_HUB, PRINCIPAL, TABLE, Attack, Scene, by_hand, model_digest, put_commit, retag, tag_of
from attacks_trust import HAND_LINE, TWO, locked, signed_with
from conftest import git, tiny_model

import adaptergit
from adaptergit.bundle import import_bundle
from adaptergit.pins import pin_key
from adaptergit.reference import Reference
from adaptergit.resolve import fetch
from adaptergit.settings import Limits, Settings
from adaptergit.splice import adapters
from adaptergit.trust import SigningKey, sign

FAMILIES = (attacks_git, attacks_package, attacks_trust, attacks_web)


@pytest.fixture(scope="session")
def attic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("attic")


@pytest.fixture(scope="session")
def host() -> Callable[[], Any]:
    """One model for all, until an attack gets through and it is lost."""
    made = [tiny_model("bert")]

    def give() -> Any:
        if hasattr(made[0], "adaptergit"):
            made[0] = tiny_model("bert")
        return made[0]

    return give


@pytest.fixture
def scene(
    tmp_path: Path, home: Path, attic: Path, key: SigningKey, other_key: SigningKey, host: Callable[[], Any]
) -> Iterator[Scene]:
    running = ExitStack()
    yield Scene(tmp_path, home, attic, key, other_key, running, host)
    threading.Thread(target=running.close).start()  # a server takes half a second to stop; nobody need wait for it


@pytest.mark.parametrize("attack", TABLE, ids=lambda one: one.name)
def test_an_attack_is_refused_and_leaves_nothing(attack: Attack, scene: Scene) -> None:
    strike = attack.build(scene)
    before = scene.state()
    with pytest.raises(attack.error, match=attack.match) as caught:
        strike()
    assert type(caught.value) is attack.error, "an error of its own"
    assert scene.state() == before, "something was left behind"


def test_the_table_is_long_and_its_names_are_its_own() -> None:
    twice = [name for name, count in Counter(one.name for one in TABLE).items() if count > 1]
    assert twice == []
    assert len(TABLE) >= 130


# --- controls: without the attack, each way is open ---------------------------------------------------------------------


def test_an_honest_package_is_verified(scene: Scene) -> None:
    assert scene.check(scene.package()).level == "enforce"
    assert scene.check(scene.relist(scene.package())).signers == (scene.key.public.fingerprint,)


def test_an_honest_signature_made_by_hand_is_accepted(scene: Scene) -> None:
    assert signed_with(scene, by_hand)().level == "enforce"  # type: ignore[attr-defined]
    assert by_hand(b"x", algorithm="sha256").startswith(b"-----BEGIN")


def test_an_honest_second_signer_is_enough_for_two(scene: Scene) -> None:
    folder = scene.package()
    scene.trust(*(f"{PRINCIPAL} {one.public.line}" for one in (scene.key, scene.other)), f"{PRINCIPAL} {HAND_LINE}")
    second = sign((folder / "manifest.json").read_bytes(), scene.other)
    (folder / "manifest.json.0123abcd.sig").write_bytes(second)
    assert len(scene.check(folder, settings=TWO).signers) == 2


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
def test_an_honest_server_is_believed(scene: Scene, version: str) -> None:
    hub = scene.hub()
    found = fetch(f"{hub.url}@sst2=={version}", settings=Settings(limits=Limits(fetch_seconds=60)))
    assert (found.version, found.verdict.manifest.repository) == (version, ON_HUB)


def test_an_honest_release_written_as_raw_objects_is_accepted(scene: Scene) -> None:
    hub = scene.hub()
    attacks_git.rewritten(hub.bare, [])
    assert fetch(f"{hub.url}@sst2==1.0.0").version == "1.0.0"


def test_an_honest_archive_is_accepted(scene: Scene) -> None:
    scene.hub()
    assert fetch(f"{scene.forge().url}/acme/adapters.git@sst2==1.0.0").tree == ""


def test_an_honest_mirror_is_believed(scene: Scene) -> None:
    hub, forge, _ = attacks_web.mirrored(scene)
    settings = Settings(mirrors=((ON_HUB, (f"{forge.url}/mirror/",)),))
    assert fetch(f"{hub.url}@sst2==1.0.0", settings=settings).served_by == f"{forge.url}/mirror/"


@pytest.mark.parametrize("trust_keys", [True, False])
def test_an_honest_bundle_is_taken_in(scene: Scene, trust_keys: bool) -> None:
    file = attacks_web.bundled(scene, lambda root: None)
    if not trust_keys:
        pin_key(ON_HUB, scene.key.public.line)
    assert [one.new for one in import_bundle(file, trust_keys=trust_keys)] == [True]


def test_an_honest_lock_is_followed(scene: Scene) -> None:
    hub, file, _ = locked(scene)
    assert fetch(f"{hub.url}@sst2==1.0.0", lock=file).version == "1.0.0"


def test_an_honest_adapter_is_loaded(scene: Scene) -> None:
    folder, _ = attacks_package.card_for(scene, lambda data: None)
    model = tiny_model("bert")
    assert model_digest(model) == model_digest(scene.hosted())
    adaptergit.load(folder, model, policy="enforce")
    assert adapters(model).names == ["sst2"]


def test_a_site_that_is_no_module_is_not_used(scene: Scene) -> None:
    """A card names modules of the model by their paths; one that is no path of a module reaches nothing."""

    def renamed(data: dict[str, Any]) -> None:
        data["adapter"]["sites"][0]["output"] = "__class__.__init__.__globals__"

    folder, _ = attacks_package.card_for(scene, renamed)
    model = tiny_model("bert")
    adaptergit.load(folder, model, policy="enforce")
    assert "__class__" not in str(adapters(model).sites_of("sst2"))


def test_an_honest_server_by_hand_is_understood(scene: Scene) -> None:
    """The server that speaks for itself is heard, so its lies are refused for what they are."""
    bare = scene.hub().bare
    oid = git(bare, "rev-parse", tag_of())
    argv = ["git", "-C", str(bare), "pack-objects", "--revs", "--stdout", "-q"]
    pack = subprocess.run(argv, input=f"{oid}\n".encode(), capture_output=True, check=True).stdout
    packets = (attacks_git.packet(b"\x01" + pack[i : i + 60_000]) for i in range(0, len(pack), 60_000))
    strike = attacks_git.speaking(scene, oid, attacks_git.packet(b"NAK\n") + b"".join(packets) + b"0000")
    assert strike().version == "1.0.0"  # type: ignore[attr-defined]


def test_an_address_past_the_grammar_is_asked_when_it_is_honest(scene: Scene) -> None:
    from adaptergit.git import Remote, list_versions
    from adaptergit.reference import Source

    assert set(list_versions(Remote.of(Source.parse(scene.hub().url)), "sst2", Limits()).versions) == {"1.0.0", "1.1.0"}
    assert Reference.parse(f"{PRINCIPAL}@sst2").source.principal == PRINCIPAL


# --- attacks that do not even get that far: the honest release is what arrives -------------------------------------------


def annotated(scene: Scene) -> None:
    bare = scene.hub().bare
    oid = git(bare, "rev-parse", tag_of())
    retag(bare, attacks_git.tag_object(bare, oid, "commit"))


def with_parents(scene: Scene) -> None:
    bare = scene.hub().bare
    retag(bare, put_commit(bare, git(bare, "rev-parse", f"{tag_of()}^{{tree}}"), git(bare, "rev-parse", "main")))


def replaced(scene: Scene) -> None:
    bare = scene.hub().bare
    blob = git(bare, "rev-parse", f"{tag_of()}:README.md")
    git(bare, "update-ref", f"refs/replace/{blob}", attacks_git.put_object(bare, b"replaced"))


def user_config(text: str) -> Any:
    def apply(scene: Scene) -> None:
        hub = scene.hub()
        with (scene.home / ".gitconfig").open("a") as file:
            file.write(text.format(url=hub.url, tmp=scene.tmp, owned=scene.tmp / "owned"))

    return apply


def hook(scene: Scene) -> None:
    for folder in (scene.home / "hooks", scene.hub().bare / "hooks"):
        folder.mkdir(exist_ok=True)
        for name in ("post-checkout", "reference-transaction", "post-merge", "fsmonitor-watchman"):
            (folder / name).write_text(f"#!/bin/sh\ntouch {scene.tmp}/owned\n")
            (folder / name).chmod(0o755)
    shutil.rmtree(scene.hub().bare / "hooks")  # only the user's: a server's own hooks are the server's business
    user_config("[core]\nhooksPath = {tmp}/home/hooks\n")(scene)


def template(scene: Scene) -> None:
    (scene.tmp / "template" / "hooks").mkdir(parents=True)
    (scene.tmp / "template" / "config").write_text(f"[core]\nsshCommand = touch {scene.tmp}/owned\n")
    os.environ["GIT_TEMPLATE_DIR"] = str(scene.tmp / "template")


def environment(name: str, value: str) -> Any:
    def apply(scene: Scene) -> None:
        os.environ[name] = value.format(tmp=scene.tmp, owned=scene.tmp / "owned")

    return apply


@pytest.mark.parametrize(
    "arrange",
    [
        pytest.param(annotated, id="annotated-tag"),
        pytest.param(with_parents, id="release-with-a-history"),
        pytest.param(replaced, id="replace-ref-on-the-server"),
        pytest.param(user_config('[url "file:///{tmp}/evil"]\ninsteadOf = {url}\n'), id="instead-of"),
        pytest.param(user_config('[protocol "ext"]\nallow = always\n[url "ext::touch {owned} "]\ninsteadOf = http://\n'), id="instead-of-with-a-program"),
        pytest.param(hook, id="hooks-of-the-user"),
        pytest.param(user_config("[core]\nfsmonitor = touch {owned}\n"), id="fsmonitor"),
        pytest.param(user_config('[filter "lfs"]\nsmudge = touch {owned}\nrequired = true\n'), id="smudge-filter"),
        pytest.param(user_config("[uploadpack]\npackObjectsHook = touch {owned}\n"), id="pack-objects-hook"),
        pytest.param(user_config('[remote "origin"]\nuploadpack = touch {owned};\n'), id="upload-pack-of-a-remote"),
        pytest.param(user_config("[fetch]\nfsckObjects = false\n[transfer]\nfsckObjects = false\n"), id="checks-switched-off"),
        pytest.param(template, id="template-folder"),
        pytest.param(environment("GIT_DIR", "{tmp}/evil"), id="outer-git-dir"),
        pytest.param(environment("GIT_ALTERNATE_OBJECT_DIRECTORIES", "{tmp}/evil"), id="outer-alternates"),
        pytest.param(environment("GIT_CONFIG_PARAMETERS", "'core.sshcommand=touch {owned}'"), id="outer-configuration"),
        pytest.param(environment("GIT_PROXY_COMMAND", "touch {owned}"), id="outer-proxy-command"),
        pytest.param(environment("GIT_EXTERNAL_DIFF", "touch {owned}"), id="outer-diff-program"),
        pytest.param(environment("GIT_ASKPASS", "{owned}"), id="outer-askpass"),
        pytest.param(environment("GIT_TRACE", "{owned}"), id="outer-trace"),
        pytest.param(environment("GIT_SSL_NO_VERIFY", "1"), id="outer-switch-for-tls"),
    ],
)  # fmt: skip
def test_what_surrounds_a_fetch_does_not_reach_it(arrange: Any, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    from adaptergit.git.runner import transport_settings

    for name in [n for n in os.environ if n.startswith("GIT_")]:
        monkeypatch.delenv(name)  # and so restored afterwards, whatever a case sets
    hub = scene.hub()
    before = dict(os.environ)
    try:
        arrange(scene)
        transport_settings.cache_clear()
        found = fetch(f"{hub.url}@sst2==1.0.0")
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        transport_settings.cache_clear()
    assert found.version == "1.0.0"
    assert (found.path / "README.md").read_bytes() != b"replaced"
    assert not (scene.tmp / "owned").exists()
    assert not (scene.tmp / "evil").exists()
