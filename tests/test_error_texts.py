"""What every class of errors looks like to whoever runs into it: what happened, where, and what mends it."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from conftest import GOLDEN, Hub, tiny_model
from test_legacy import Archive, archive  # noqa: F401 - a fixture

import adaptergit
import adaptergit.lock
from adaptergit import errors
from adaptergit.cli import main
from adaptergit.publish import publish

sys.path.insert(0, str(Path(__file__).parent.parent / "docs"))
from reference_pages import error_classes

Request = pytest.FixtureRequest
Case = Callable[[Request], list[str]]
CASES: dict[str, tuple[Case, str]] = {}


def case(name: str, text: str) -> Callable[[Case], Case]:
    """Say what a person sees who is brought to an error: ``…`` is anything."""

    def add(make: Case) -> Case:
        CASES[name] = make, text
        return make

    return add


def released(request: Request) -> Hub:
    hub: Hub = request.getfixturevalue("hub")
    publish(request.getfixturevalue("source")(), clone=hub.clone, key=hub.key.path)
    return hub


@case(
    "UsageError",
    "error: 'acme/adapters@sst2==one': '==one' is not a version specifier\n  hint: write ==1.2.0, >=1,<2 or ~=1.2\n",
)
def usage(_: Request) -> list[str]:
    return ["load", "acme/adapters@sst2==one"]


@case(
    "PackageError",
    "error: …/card.yaml:…: card: 'license' is a required property\n  hint: adaptergit card edit … license=…\n",
)
def package(request: Request) -> list[str]:
    folder: Path = request.getfixturevalue("tmp_path")
    raw = yaml.safe_load((request.getfixturevalue("source")() / "card.yaml").read_text())
    (folder / "card.yaml").write_text(yaml.safe_dump({key: value for key, value in raw.items() if key != "license"}))
    return ["card", "validate", str(folder)]


@case(
    "TrustError",
    "error: http://…/acme/adapters.git: signed by SHA256:…, which nobody you know vouches for as 127.0.0.1/acme/adapters\n"
    "  hint: check the fingerprint with the publisher, then: adaptergit trust add 127.0.0.1/acme/adapters 'ssh-ed25519 …'\n",
)
def trust(request: Request) -> list[str]:
    return ["load", f"{released(request).url}@sst2"]


@case("NotFoundError", "error: http://…/acme/adapters.git has no adapter 'sst-2'\n  hint: did you mean 'sst2'?\n")
def not_found(request: Request) -> list[str]:
    return ["load", f"{released(request).url}@sst-2"]


@case(
    "TransportError",
    "error: http://127.0.0.1:9/acme/adapters.git: …\n"
    "  hint: check the address and the network, and the proxy, if there is one (https_proxy, git config http.proxy)\n",
)
def transport(request: Request) -> list[str]:
    return ["load", "http://127.0.0.1:9/acme/adapters.git@sst2"]


@case(
    "StorageError", "error: …/signing_key: cannot write to the key: No space left on device\n  hint: free some space…\n"
)
def storage(request: Request) -> list[str]:
    disk: Path = request.getfixturevalue("small_disk")
    (disk / "full").write_bytes(b"x" * shutil.disk_usage(disk).free)
    return ["keygen", str(disk / "signing_key")]


@case(
    "ModelError",
    "error: this is another base model than the one the adapter was trained in: it has 1 blocks of hidden size 48, "
    "not 2 of 32\n  hint: give it tiny: its folder or id with --base, in Python the model itself: load(…, model)\n",
)
def model(request: Request) -> list[str]:
    folder: Path = request.getfixturevalue("tmp_path")
    panel = adaptergit.adapters(tiny_model())
    panel.add("a", "lora[r=2]")
    panel.save("a", folder / "a", license="MIT", name="a", base_model={"id": "tiny"})
    import transformers

    config = transformers.BertConfig(
        vocab_size=99, hidden_size=48, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertModel(config).save_pretrained(folder / "other")
    return ["convert", str(folder / "a"), str(folder / "b"), "--to", "peft", "--base", str(folder / "other")]


@case(
    "DataError",
    "error: …/train.tsv:1: there is no column 'text'\n"
    "  hint: columns: words, label; name another with --text-column, --label-column …, in Python columns=…\n",
)
def data(request: Request) -> list[str]:
    folder: Path = request.getfixturevalue("tmp_path")
    (folder / "train.tsv").write_text("words\tlabel\na fine film\tgood\n")
    return [
        "train",
        "--base",
        str(GOLDEN / "bases" / "bert"),
        "--task",
        "text-classification",
        "--train",
        str(folder / "train.tsv"),
        "--eval",
        str(folder / "train.tsv"),
        "--output",
        str(folder / "out"),
    ]


@case(
    "ReleaseError",
    "error: sst2 1.0.0 was released already, and releases never change\n  hint: choose a higher --version; if it is yours, of a push that was interrupted: git pull\n",
)
def release(request: Request) -> list[str]:
    hub = released(request)
    return [
        "publish",
        str(request.getfixturevalue("source")(b"other")),
        "--repo",
        str(hub.clone),
        "--key",
        str(hub.key.path),
        "--no-push",
    ]


@case(
    "LegacyError",
    "error: http://…/files/sst.zip: github.com/adapter-hub/Hub@ukp-sst is a file of an archive that nobody signed, not a release\n"
    '  hint: in Python, adaptergit.load("github.com/adapter-hub/Hub@ukp-sst==1#sha256:…", policy="digest") takes exactly the file with this sha256\n',
)
def legacy(request: Request) -> list[str]:
    found: Archive = request.getfixturevalue("archive")
    return ["load", found.reference.partition("#")[0]]


@pytest.mark.parametrize("name", CASES)
def test_the_text(name: str, request: Request) -> None:
    make, text = CASES[name]
    done = CliRunner().invoke(main, make(request))
    error: type[errors.AdaptergitError] = next(one for one in error_classes() if one.__name__ == name)
    assert done.exit_code == error.exit_code, done.stderr
    assert "error: " in done.stderr, done.stderr
    assert re.fullmatch(".+?".join(map(re.escape, text.split("…"))), done.stderr[done.stderr.index("error: ") :]), (
        done.stderr
    )


def test_every_class_has_its_text_here() -> None:
    """But for the one that all others are made of, which nothing raises, and for warnings."""
    assert {*CASES, "AdaptergitError", "AdaptergitWarning"} == {one.__name__ for one in error_classes()}


@pytest.mark.parametrize(
    "one", [c for c in error_classes() if issubclass(c, errors.AdaptergitError)], ids=lambda c: str(c.__name__)
)
def test_what_has_no_hint_of_its_own_ends_with_that_of_its_class(
    one: type[errors.AdaptergitError], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise one("it broke", where="here")

    monkeypatch.setattr(sys.modules["adaptergit.lock"], "sync", broken)
    monkeypatch.setattr("adaptergit.housekeeping.stored", broken)
    for argv, command in ((["sync"], "sync"), (["store", "ls"], "store ls")):
        done = CliRunner().invoke(main, argv)
        said, _, hint = done.stderr.rpartition("\n  hint: ")
        assert (said, done.exit_code) == ("error: here: it broke", one.exit_code)
        assert (f" {command} --help" in hint) == (one is errors.UsageError), hint
        assert len(hint) > 20
