"""The pages of an index, in a real browser where there is one, and as files everywhere."""

from __future__ import annotations

import functools
import json
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import pytest
from conftest import snapshot

from adaptergit.index.entry import Entry, Metric
from adaptergit.index.maintain import init_index
from adaptergit.index.repository import IndexRepository, replace
from adaptergit.index.site import build_site
from adaptergit.index.sources import SourceFile, SourceKey
from adaptergit.trust import generate_key

HOSTILE = "<script>window.hacked = true</script><img src=x onerror=alert(1)>"
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    key = generate_key(folder / "key")
    root = init_index(
        folder / "index", "community", maintainers=[key.public], online=[key.public], threshold=1, keys=[key]
    )
    index = IndexRepository(folder / "index")
    source = SourceFile(
        "github.com/acme/adapters", "https://github.com/acme/adapters.git", (SourceKey(key.public),), "a@b.c"
    )
    replace(index.root / source.path, source.to_yaml())
    entries = [
        Entry(
            f"{source.repository}@{name}", source.url, version, f"{number:064x}", "2" * 40, size, method,
            "text-classification/sentiment", "sentence-transformers/all-MiniLM-L6-v2", "Apache-2.0", description,
            languages=("de", "en"), keywords=("reviews",), dataset="rotten-tomatoes", signers=(key.public.fingerprint,),
            published="2026-11-01T00:00:00Z", first_seen=f"2026-11-0{number}T00:00:00Z",
            metrics=(Metric("rotten-tomatoes", "accuracy", 0.8 + number / 100),), authors=("Ada",),
            citation="@article{x, title={A <b>}}", dependencies=(f"{source.repository}@german",), parameters=1000,
        )
        for number, (name, version, size, method, description) in enumerate(
            [
                ("german", "1.0.0", 90_000, "lora", "Sentiment of German reviews."),
                ("german", "1.1.0", 91_000, "lora", "Sentiment of German reviews, more of them."),
                ("hostile", "1.0.0", 1_000_000, "seq_bn", HOSTILE),
                ("plain", "1.0.0", 3_000_000, "seq_bn", "Sentiment\n\nof reviews."),
            ],
            1,
        )
    ]  # fmt: skip
    index.write_entries(source.repository, entries)
    assert build_site(index, folder / "dist", root=root) == 3
    before = snapshot(folder / "dist")
    build_site(index, folder / "dist", root=root)
    assert snapshot(folder / "dist") == before, "the same bytes whoever builds it"
    return folder / "dist"


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Below a path, as on a forge's pages."""

    class Handler(SimpleHTTPRequestHandler):
        def translate_path(self, path: str) -> str:
            return super().translate_path(path.removeprefix("/some/where") if path.startswith("/some/where") else "/no")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/some/where"
    server.shutdown()


def pages(site: Path) -> list[Path]:
    return sorted(site.rglob("*.html"))


def test_every_page_is_valid_html(site: Path) -> None:
    html5lib = pytest.importorskip("html5lib")
    for page in pages(site):
        html5lib.HTMLParser(strict=True).parse(page.read_text())


def test_no_link_is_broken_and_none_leads_elsewhere(site: Path) -> None:
    for page in pages(site):
        for link in re.findall(r'(?:href|src|data-search)="([^"]*)"', page.read_text()):
            parts = urlsplit(link)
            assert not parts.scheme, (page, link)
            assert not parts.netloc, (page, link)
            if parts.path:
                assert (page.parent / unquote(parts.path)).resolve().is_file(), (page, link)


def test_a_card_cannot_write_into_a_page(site: Path) -> None:
    text = (site / "adapters/github-com/acme/adapters/hostile.html").read_text()
    assert "<script>window" not in text
    assert "&lt;script&gt;window" in text
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text


def test_a_page_says_what_there_is_to_say(site: Path) -> None:
    text = (site / "adapters/github-com/acme/adapters/german.html").read_text()
    for part in ("1.1.0", "1.0.0", "0.82", "SHA256:", "Apache-2.0", "@article{x", "Ada", "rotten-tomatoes", "91 kB"):
        assert part in text, part
    assert 'adaptergit.load("github.com/acme/adapters@german")' in text.replace("&#34;", '"')
    assert (site / "tasks/sentiment.html").is_file()
    assert "accuracy on rotten-tomatoes" in (site / "tasks/sentiment.html").read_text()


def test_the_feed_is_one(site: Path) -> None:
    feed = ElementTree.fromstring((site / "feed.xml").read_text())
    space = "{http://www.w3.org/2005/Atom}"
    assert len(feed.findall(f"{space}entry")) == 3
    assert feed.findtext(f"{space}updated") == "2026-11-04T00:00:00Z"


def test_the_search_knows_everything(site: Path) -> None:
    parts = json.loads((site / "search/index.json").read_text())["parts"]
    rows = [row for part in parts for row in json.loads((site / "search" / part).read_text())]
    assert {row[1] for row in rows} == {"german", "hostile", "plain"}
    assert all((site / row[0]).is_file() for row in rows)


# --- in a browser ----------------------------------------------------------------------------------------------------

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    opened = context.new_page()
    problems: list[str] = []
    opened.on(
        "console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None
    )
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("request", lambda r: problems.append(f"asked {r.url}") if not r.url.startswith(address) else None)
    opened.on("response", lambda r: problems.append(f"{r.status} {r.url}") if r.status >= 400 else None)
    yield opened
    context.close()
    assert problems == []


@needs_browser
def test_searching_and_copying_in_a_browser(page: Any, address: str) -> None:
    page.goto(f"{address}/index.html")
    page.get_by_label("Search 3 adapters").fill("german senti")
    page.get_by_text("1 found").wait_for()
    page.get_by_role("link", name="german", exact=True).first.click()
    page.wait_for_url("**/german.html")
    page.get_by_role("button", name="Copy").first.click()
    page.get_by_role("button", name="Copied").wait_for()
    assert 'adaptergit.load("github.com/acme/adapters@german")' in page.evaluate("navigator.clipboard.readText()")
    page.get_by_role("link", name="Base models").first.click()
    assert "all-MiniLM-L6-v2" in page.inner_text("main")


@needs_browser
def test_nothing_a_card_says_runs(page: Any, address: str) -> None:
    page.goto(f"{address}/adapters/github-com/acme/adapters/hostile.html")
    page.goto(f"{address}/index.html?q=hostile")
    page.get_by_text("1 found").wait_for()
    assert page.evaluate("window.hacked") is None


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    "path", ["index.html", "adapters/github-com/acme/adapters/german.html", "tasks/sentiment.html", "rules.html"]
)
def test_everybody_can_use_it(browser: Any, address: str, path: str, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    # axe is put into the page, which its own rules forbid to strangers.
    context = browser.new_context(color_scheme=scheme, bypass_csp=True)
    opened = context.new_page()
    opened.goto(f"{address}/{path}")
    found = Axe().run(opened).response["violations"]
    context.close()
    assert [(one["id"], [node["html"][:120] for node in one["nodes"]]) for one in found] == []


@needs_browser
@pytest.mark.parametrize("width", [360, 1280])
def test_no_page_is_wider_than_the_screen(browser: Any, address: str, width: int) -> None:
    opened = browser.new_page(viewport={"width": width, "height": 800})
    for path in ("index.html", "adapters/github-com/acme/adapters/german.html", "tasks/sentiment.html"):
        opened.goto(f"{address}/{path}")
        assert opened.evaluate("document.documentElement.scrollWidth") <= width, path
    opened.close()


@needs_browser
def test_it_reads_without_javascript(browser: Any, address: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    opened = context.new_page()
    opened.goto(f"{address}/index.html")
    opened.get_by_role("link", name="sentiment").first.click()
    opened.get_by_role("link", name="german").first.click()
    assert "Sentiment of German reviews" in opened.inner_text("main")
    context.close()
