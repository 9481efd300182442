"""Whoever watches is told how far everything that may take more than a second has come."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
import transformers
from conftest import Hub, git
from hf_server import HubServer, served
from safetensors.torch import save_file
from terminal import at_a_terminal
from test_index import Index, index, listed, people  # noqa: F401 - fixtures
from test_ladder import forget, release

import adaptergit
from adaptergit.bundle import export_bundle, import_bundle
from adaptergit.lock import lock, sync
from adaptergit.mirror import mirror
from adaptergit.progress import Progress, watching
from adaptergit.settings import load_settings

Source = Callable[..., Path]
BIG = os.urandom(3_000_000)


@pytest.fixture
def hf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with served(monkeypatch, tmp_path / "hf") as server:
        yield server


def heard(act: Callable[[], object]) -> list[Progress]:
    told: list[Progress] = []
    with watching(told.append):
        act()
    return told


def test_a_push_tells_what_is_sent(hub: Hub, source: Source) -> None:
    told = heard(lambda: release(hub, source(BIG)))
    sent = [one for one in told if one.total is not None]
    assert sent
    assert sent[-1].unit == "bytes"
    assert sent[-1].done == pytest.approx(len(BIG), rel=0.05)
    assert sent[-1].total == sent[-1].done  # compressed, it was a little less than was thought


def test_a_refused_push_says_why_and_not_how_far_it_was(hub: Hub, source: Source) -> None:
    hook = hub.bare / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho 'no room here' >&2\nexit 1\n")
    hook.chmod(0o755)
    with watching(lambda _: None), pytest.raises(adaptergit.ReleaseError) as caught:
        release(hub, source(BIG))
    assert "no room here" in str(caught.value)
    assert "objects" not in str(caught.value)


@pytest.mark.slow
def test_copies_are_counted_and_their_bytes_too(hub: Hub, source: Source, tmp_path: Path) -> None:
    release(hub, source(BIG))
    release(hub, source(BIG[::-1]), version="1.1.0")
    wanted = [f"{hub.url}@sst2=={version}" for version in ("1.0.0", "1.1.0")]
    told = heard(lambda: mirror(wanted, to=tmp_path / "folder"))
    releases = [(one.done, one.total) for one in told if one.unit == "releases"]
    assert releases == [(0, 2), (1, 2), (2, 2)] * 2  # fetched, then copied
    git(tmp_path, "init", "-q", "--bare", "copy.git")
    told = heard(lambda: mirror(wanted, to=(tmp_path / "copy.git").as_uri()))
    assert max(one.done for one in told if one.unit == "bytes") == pytest.approx(2 * len(BIG), rel=0.05)
    told = heard(lambda: export_bundle(tmp_path / "b.tar", wanted))
    packed = [one for one in told if one.what.endswith("packed")]
    assert packed[-1].done == packed[-1].total
    assert packed[-1].done >= 2 * len(BIG)
    forget()
    told = heard(lambda: import_bundle(tmp_path / "b.tar", trust_keys=True))
    unpacked = [one for one in told if one.unit == "bytes"]
    assert unpacked[-1].total == (tmp_path / "b.tar").stat().st_size
    assert [one.done for one in told if one.unit == "releases"] == [1, 2]


def test_locked_releases_are_counted(hub: Hub, source: Source, tmp_path: Path) -> None:
    release(hub, source())
    told = heard(lambda: lock([f"{hub.url}@sst2"], path=tmp_path / "l"))
    assert [(one.done, one.total) for one in told if one.unit == "releases"] == [(0, 1), (1, 1)]
    told = heard(lambda: sync(path=tmp_path / "l"))
    assert [(one.done, one.total) for one in told if one.unit == "releases"] == [(0, 1), (1, 1)]


def test_compared_tensors_are_counted(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        save_file({f"w{n}": torch.zeros(3) for n in range(5)}, tmp_path / name / "adapter_model.safetensors")
        (tmp_path / name / "adapter_config.json").write_text('{"peft_type": "LORA", "target_modules": ["q"]}')
    told = heard(lambda: adaptergit.diff(tmp_path / "a", tmp_path / "b"))
    assert told[-1] == Progress("tensors", 5, 5, "tensors")
    assert len(told) == 6


def test_an_index_is_built_source_by_source(listed: Index) -> None:  # noqa: F811 - fixture
    from adaptergit.index.build import build
    from adaptergit.index.crawl import crawl
    from adaptergit.index.site import build_site

    told = heard(lambda: build(listed.repository, listed.dist, root=listed.root, now=datetime.now(UTC)))
    assert [(one.done, one.total, one.unit) for one in told] == [(0, 1, "sources"), (1, 1, "sources")]
    told = heard(lambda: build_site(listed.repository, listed.dist, root=listed.root))
    assert told[-1] == Progress("pages", 1, 1, "adapters")
    told = heard(lambda: crawl(listed.repository, load_settings()))
    assert [one for one in told if one.unit == "sources"] == [Progress("sources", 1, 1, "sources")]


def tiny(folder: Path) -> Path:
    config = transformers.BertConfig(
        vocab_size=2000, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def load_of(name: str, *, offline: bool) -> list[Progress]:
    from adaptergit.bases import NamedBase, base_model, class_for
    from adaptergit.settings import load_settings

    return heard(lambda: base_model(NamedBase(name), class_for([]), load_settings(), offline))


hears = pytest.mark.skipif(
    not hasattr(transformers.utils.logging, "set_tqdm_hook"), reason="this transformers lets nobody listen"
)


@hears
def test_a_base_model_is_downloaded_and_loaded_in_sight(hf: HubServer, tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in tiny(tmp_path / "base").iterdir()}
    hf.create("acme/tiny-bert", files)
    told = load_of("acme/tiny-bert", offline=False)
    size = len(files["model.safetensors"])
    assert Progress("acme/tiny-bert", size, size) in told
    tensors = [one for one in told if one.unit == "tensors"]
    assert tensors
    assert {one.total for one in tensors} == {
        len(list(transformers.BertModel.from_pretrained(tmp_path / "base").parameters()))
    }
    told = load_of("acme/tiny-bert", offline=True)
    assert {one.unit for one in told} == {"tensors"}  # it is here


SLOWLY = """#!/bin/sh
{python} -c '
import os, time
while block := os.read(0, 1 << 16):
    os.write(1, block)
    time.sleep(0.03)
' | git receive-pack "$@"
"""


@pytest.mark.slow
def test_a_terminal_shows_a_slow_push_moving(hub: Hub, source: Source, tmp_path: Path) -> None:
    line = tmp_path / "slowly"
    line.write_text(SLOWLY.format(python=sys.executable))
    line.chmod(0o755)
    hub.git("config", "remote.origin.receivepack", str(line))
    hub.git("remote", "set-url", "origin", str(hub.bare))
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80"}
    argv = [
        "publish",
        str(source(BIG * 2)),
        "--repo",
        str(hub.clone),
        "--key",
        str(hub.key.path),
        "--repository",
        "host.example/acme/a",
    ]
    code, shown = at_a_terminal(argv, environment)
    assert code == 0, shown
    assert re.search(r"\r\x1b\[K  [0-9.]+ of 6\.0 MB, [0-9.]+ MB/s, [0-9]+ s left", shown), shown
    steps = [text for text in re.split(r"[\r\n]+(?:\x1b\[K)*", shown) if "the server has them" in text]
    assert steps == ["  the server has them"]  # on a line of its own
