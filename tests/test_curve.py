"""How a training went: kept in the card, drawn in the package, shown by its README and by the page of an index."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from conftest import card_data
from test_package import NOW
from test_site import begin, listed

from adaptergit.errors import PackageError
from adaptergit.index.entry import Entry, entry_of
from adaptergit.index.site import build_site
from adaptergit.package import Card, Manifest, check_files, pack, read_package
from adaptergit.package.curve import MOST, PICTURE, is_drawn, picture, series_of, thinned
from adaptergit.package.readme import render_readme

LOSS = [[20, 0.693], [40, 0.41], [60, 0.25]]
CURVE: dict[str, Any] = {"loss": LOSS, "score": [[1.0, 0.7], [2.0, 0.85]], "metric": "accuracy"}


def card(curve: Mapping[str, Any] | None = CURVE) -> Card:
    return Card(card_data(training={"samples": 80, **({"curve": dict(curve)} if curve is not None else {})}))


def packed(source: Path, target: Path, made: Card) -> Manifest:
    target.mkdir()
    return Manifest.from_bytes(pack(source, target, made, repository="github.com/acme/a", previous=None, created=NOW))


def test_a_curve_has_a_bounded_number_of_points_that_are_means() -> None:
    points = [(float(step), float(step % 2)) for step in range(1, 1001)]
    few = thinned(points)
    assert len(few) <= MOST
    assert few[-1][0] == 1000
    assert {value for _, value in few[:-1]} == {0.5}
    assert thinned(points[:MOST]) == [list(point) for point in points[:MOST]], "few points are kept as they are"
    assert thinned([]) == []


def test_a_card_with_a_curve_is_valid_and_short(tmp_path: Path) -> None:
    again = Card.from_yaml(card().to_yaml())
    assert again == card()
    assert b"- [20, 0.693]\n" in card().to_yaml()
    full = card({"loss": [[20 * n, 1 / n] for n in range(1, MOST + 1)]})
    assert len(full.to_yaml()) - len(card(None).to_yaml()) < 3000


@pytest.mark.parametrize(
    ("curve", "why"),
    [
        ({"loss": [[n, 0.5] for n in range(MOST + 1)]}, "loss"),
        ({"loss": [[1, 0.5, 2]]}, "loss"),
        ({"loss": [[1, "low"]]}, "loss"),
        ({"loss": [[1, 10**400]]}, "loss"),
        ({"losses": LOSS}, "losses"),
    ],
)
def test_a_curve_that_is_none_is_refused(curve: dict[str, Any], why: str) -> None:
    with pytest.raises(PackageError, match=f"training.curve.*{why}"):
        card(curve)


def test_the_picture_is_a_function_of_the_card_and_says_in_words_what_it_shows() -> None:
    drawn = picture(series_of(card().data))
    assert drawn == picture(series_of(Card.from_yaml(card().to_yaml()).data))
    svg = ElementTree.fromstring(drawn)
    space = "{http://www.w3.org/2000/svg}"
    lines = [line.attrib["points"].split() for line in svg.iter(f"{space}polyline")]
    assert [len(line) for line in lines] == [3, 2]
    heights = [float(point.split(",")[1]) for point in lines[0]]
    assert heights == sorted(heights), "a loss that falls is drawn from top to bottom"
    assert svg.findtext(f"{space}title") == (
        "training loss 0.693 at step 20, 0.25 at 60; accuracy 0.7 at epoch 1, 0.85 at 2"
    )
    flat = picture(series_of(card({"loss": [[1, 0.5], [2, 0.5]]}).data))
    assert "nan" not in flat
    hostile = picture(series_of(card({**CURVE, "metric": "<script>&x"}).data))
    assert "<script>" not in hostile
    ElementTree.fromstring(hostile)


def test_a_package_holds_the_picture_and_its_readme_shows_it(tmp_path: Path, source: Callable[..., Path]) -> None:
    folder = source()
    manifest = packed(folder, tmp_path / "package", card())
    assert PICTURE in {file.path for file in manifest.files}
    check_files(read_package(tmp_path / "package"), manifest)
    data = (tmp_path / "package" / PICTURE).read_bytes()
    assert is_drawn(data)
    ElementTree.fromstring(data)
    readme = (tmp_path / "package" / "README.md").read_text()
    assert f"![training loss 0.693 at step 20, 0.25 at 60; accuracy 0.7 at epoch 1, 0.85 at 2]({PICTURE})" in readme


def test_a_package_that_is_packed_again_has_the_picture_of_its_card(
    tmp_path: Path, source: Callable[..., Path]
) -> None:
    packed(source(), tmp_path / "one", card())
    packed(tmp_path / "one", tmp_path / "same", card())
    assert (tmp_path / "one" / PICTURE).read_bytes() == (tmp_path / "same" / PICTURE).read_bytes()
    packed(tmp_path / "one", tmp_path / "other", card({"loss": [[1, 3], [2, 1]]}))
    assert b"3 at step 1" in (tmp_path / "other" / PICTURE).read_bytes()
    without = packed(tmp_path / "one", tmp_path / "without", card(None))
    assert PICTURE not in {file.path for file in without.files}, "an old drawing is not taken along"


def test_a_picture_of_the_publishers_own_is_published_as_it_is(tmp_path: Path, source: Callable[..., Path]) -> None:
    folder = source()
    (folder / PICTURE).write_bytes(b"<svg/>")
    packed(folder, tmp_path / "package", card())
    assert (tmp_path / "package" / PICTURE).read_bytes() == b"<svg/>"


@pytest.mark.parametrize("curve", [None, {}, {"loss": []}, {"loss": [[20, 0.7]]}])
def test_nothing_is_drawn_where_there_is_no_line(
    tmp_path: Path, source: Callable[..., Path], curve: dict[str, Any] | None
) -> None:
    manifest = packed(source(), tmp_path / "package", card(curve))
    assert PICTURE not in {file.path for file in manifest.files}
    assert PICTURE not in render_readme(card(curve), "acme/a")


def test_the_page_of_an_index_draws_the_loss(tmp_path: Path, source: Callable[..., Path]) -> None:
    manifest = packed(source(), tmp_path / "package", card({"loss": [[n, 1 / n] for n in range(1, MOST + 1)]}))
    made = Card.from_yaml((tmp_path / "package" / "card.yaml").read_bytes())
    index, root, signer = begin(tmp_path)
    url = "https://github.com/acme/a.git"
    entry = entry_of(manifest, made, digest="1" * 64, url=url, tree="2" * 40, signers=[signer], first_seen="2026-11-01T00:00:00Z")  # fmt: skip
    assert 2 <= len(entry.curve.split()) <= 16
    assert Entry.from_line(entry.to_line(), where="x") == entry
    nonsense = replace(entry, id="github.com/acme/a@odd", curve="1:2 <b> 1:nan 1e999:3")
    listed(index, "github.com/acme/a", [replace(entry, id="github.com/acme/a@sst2"), nonsense])
    build_site(index, tmp_path / "dist", root=root)
    pages = {path.stem: path.read_text() for path in (tmp_path / "dist").rglob("*.html") if "acme" in str(path)}
    (page,) = [text for name, text in pages.items() if "sst2" in name or "<h1>sst2" in text]
    (odd,) = [text for name, text in pages.items() if "odd" in name or "<h1>odd" in text]
    assert page.count("<polyline") == 1
    assert "training loss" in page
    assert "<polyline" not in odd
    assert "<b>" not in odd


@pytest.mark.slow
def test_training_writes_the_curve_into_the_card(tmp_path: Path) -> None:
    from test_predict import golden, moods

    from adaptergit.training import TrainSpec, train

    rows = [{"text": f"the film was {word}", "label": label} for word, label in moods(60)]
    files = [tmp_path / "train.jsonl", tmp_path / "eval.jsonl"]
    for file in files:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = golden("bert", tmp_path / "base")
    spec = TrainSpec(base=str(base), train=files[0], eval=files[1], output=tmp_path / "out", epochs=12, batch_size=8, max_length=8, learning_rate=1e-2, patience=12)  # fmt: skip
    result = train(spec)
    data = Card.from_yaml((tmp_path / "out" / "card.yaml").read_bytes()).data
    curve = data["training"]["curve"]
    assert len(result.losses) > MOST >= len(curve["loss"])
    assert curve["loss"][-1][0] == len(result.losses)
    assert curve["loss"][-1][1] < curve["loss"][0][1]
    assert curve["metric"] == "accuracy"
    assert [epoch for epoch, _ in curve["score"]] == [float(n) for n in range(1, 13)]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"card.yaml", "adapter.safetensors"}
