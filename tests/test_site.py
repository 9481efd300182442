"""The pages of an index, in a real browser where there is one, and as files everywhere."""

from __future__ import annotations

import collections
import functools
import os
import random
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace as changed
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import pytest
from conftest import snapshot

from adaptergit.index.adapterhub import import_adapterhub
from adaptergit.index.entry import Entry, Metric
from adaptergit.index.maintain import init_index
from adaptergit.index.repository import IndexRepository, replace
from adaptergit.index.site import build_site
from adaptergit.index.site.markdown import plain, rendered
from adaptergit.index.site.model import PER_PAGE, page_of
from adaptergit.index.sources import SourceFile, SourceKey
from adaptergit.trust import Revocation, generate_key

HOSTILE = (
    "<script>window.hacked = true</script><img src=x onerror=alert(1)> [a](javascript:alert(1)) ![b](http://x/y.png)"
)
CARDS = Path(
    os.environ.get("ADAPTERGIT_ADAPTERHUB_CARDS", Path(__file__).parent.parent.parent / "shared" / "adapterhub-cards")
)
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PRINCIPAL = "github.com/acme/adapters"


def begin(folder: Path) -> tuple[IndexRepository, Any, str]:
    key = generate_key(folder / "key")
    root = init_index(
        folder / "index", "community", maintainers=[key.public], online=[key.public], threshold=1, keys=[key]
    )
    return IndexRepository(folder / "index"), root, key.public.fingerprint


def listed(index: IndexRepository, principal: str, entries: list[Entry]) -> None:
    key = index.current_root().online[0]
    source = SourceFile(principal, f"https://{principal}.git", (SourceKey(key),), "a@b.c")
    replace(index.root / source.path, source.to_yaml())
    index.write_entries(principal, entries)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    index, root, signer = begin(folder)
    entries = [
        Entry(
            f"{PRINCIPAL}@{name}", f"https://{PRINCIPAL}.git", version, f"{number:064x}", "2" * 40, size, method,
            "text-classification/sentiment", "sentence-transformers/all-MiniLM-L6-v2", "Apache-2.0", description,
            languages=("de", "en"), keywords=("reviews",), dataset="rotten-tomatoes", signers=(signer,),
            published="2026-11-01T00:00:00Z", first_seen=f"2026-11-0{number}T00:00:00Z",
            metrics=(Metric("rotten-tomatoes", "accuracy", 0.8 + number / 100),), authors=("Ada",),
            citation="@article{x, title={A <b>}}", dependencies=(f"{PRINCIPAL}@german",), parameters=1000,
            head="classification: negative, positive", training="reviews; 8,530 samples; seed 42",
            limitations="Trained on **short** sentences.",
        )
        for number, (name, version, size, method, description) in enumerate(
            [
                ("german", "1.0.0", 90_000, "lora", "Sentiment of German reviews."),
                ("german", "1.1.0", 91_000, "lora", "Sentiment of German reviews, more of them."),
                ("hostile", "1.0.0", 1_000_000, "seq_bn", HOSTILE),
                ("plain", "1.0.0", 3_000_000, "seq_bn", "Sentiment\n\n## Use\n\n* of *reviews*\n* and `code`"),
            ],
            1,
        )
    ]  # fmt: skip
    listed(index, PRINCIPAL, entries)
    assert build_site(index, folder / "dist", root=root) == 3
    before = snapshot(folder / "dist")
    build_site(index, folder / "dist", root=root)
    assert snapshot(folder / "dist") == before, "the same bytes whoever builds it"
    return folder / "dist"


def rich_index(folder: Path) -> Path:
    """What real cards are like: long names and citations, many in one place, several versions, and bad ones."""
    index, root, signer = begin(folder)
    rng = random.Random(0)
    bases = [
        "FacebookAI/xlm-roberta-base",
        "org/a.model_with-a-very-long-name-that-goes-on-and-on-multilingual-cased-v2.1",
    ]

    def entry(principal: str, name: str, version: str = "1.0.0", **changes: Any) -> Entry:
        made = Entry(
            f"{principal}@{name}", f"https://{principal}.git", version, f"{rng.getrandbits(256):064x}", "2" * 40,
            rng.randint(20_000, 4_000_000), rng.choice(["lora", "seq_bn", "double_seq_bn[non_linearity=gelu, reduction_factor=2]"]),
            "text-classification/sentiment/rotten-tomatoes", rng.choice(bases), "Apache-2.0",
            "Sentiment of reviews.\n\n## Use\n\n* one\n* two **bold**, see https://example.org/a-long-address/that/goes/on\n\n"
            "| a | b |\n|---|---|\n| 1 | 2 |\n\n```python\nmodel = load('x')  # a rather long line of code that does not fit on a phone at all\n```",
            languages=tuple(rng.sample(["de", "en", "sw", "zh-Hant", "am"], 2)), keywords=("reviews", "a" * 40), dataset="rotten-tomatoes",
            signers=(signer,), published="2026-10-01T00:00:00Z", first_seen=f"2026-11-{rng.randint(1, 20):02}T00:00:00Z",
            metrics=(
                Metric("rotten-tomatoes", "accuracy", round(rng.uniform(0.7, 0.95), 4)),
                Metric("rotten-tomatoes", "loss", round(rng.uniform(0.1, 0.5), 4)),
            ),
            authors=("Ada Lovelace", "Bob"), parameters=rng.randint(1000, 10**6), fingerprint="",
            citation="@inproceedings{x,\n  title = {" + "A Very Long Title " * 8 + "},\n  url = {https://www.aclanthology.org/2020.emnlp-main.55}\n}",
            head="classification: negative, positive", limitations="Not for *medical* text.", training="reviews; seed 1",
        )  # fmt: skip
        return changed(made, **changes)

    listed(index, PRINCIPAL, [entry(PRINCIPAL, f"sentiment-{n}") for n in range(120)])
    odd = "github.com/odd/names"
    listed(
        index,
        odd,
        [
            entry(odd, "x.y", description="the dotted one"),
            entry(odd, "x-y", description="the dashed one"),
            entry(odd, "a" * 64),
            entry(odd, "only-yanked", yanked="trained on the test set"),
            entry(odd, "only-beta", "1.0rc1"),
            entry(odd, "many", dependencies=(f"{odd}@x.y==1.0.0", "github.com/not/listed@z")),
            *(entry(odd, "many", f"1.{n}.0", dependencies=(f"{odd}@x.y==1.0.0",)) for n in range(1, 7)),
            entry(odd, "many", "1.7.0", yanked="oops"),
            entry(odd, "infinite", metrics=(Metric("d", "accuracy", float("inf")), Metric("d", "nan", float("nan")))),
            entry(odd, "stolen", signers=("SHA256:" + "S" * 43,), first_seen="2026-11-20T00:00:00Z"),
            entry(odd, "watched", signers=("SHA256:" + "W" * 43, signer)),
            entry(odd, "poisoned", manifest_sha256="9" * 64),
        ],
    )
    listed(index, "gitlab.com/a.b/c", [entry("gitlab.com/a.b/c", "n", description="of a.b")])
    listed(index, "gitlab.com/a-b/c", [entry("gitlab.com/a-b/c", "n", description="of a-b")])
    archive = SourceFile("github.com/old/Hub", "https://github.com/old/Hub.git", (), "x@example.org", legacy=True)
    replace(index.root / archive.path, archive.to_yaml())
    index.write_entries(
        archive.repository,
        [
            entry(
                archive.repository, f"ukp-bert-base-multilingual-cased-{code}-wiki_pfeiffer_relu-nd", "1", size=0, tree="",
                signers=(), published="", first_seen="", legacy=f"https://public.example.org/AdapterHub/text_lang/{code}/bert-base-multilingual-cased/pfeiffer/{code}_relu_nd.zip",
                task=f"language-modeling/wiki-{code}", languages=(code,), metrics=(), dataset="wiki",
            )
            for code in ("ar", "cdo", "ilo", "qu")
        ],
    )  # fmt: skip
    index.revoke(Revocation("SHA256:" + "S" * 43, None, None, "refuse", "stolen laptop", ""))
    index.revoke(Revocation("SHA256:" + "W" * 43, None, None, "warn", "an old key", ""))
    index.revoke(Revocation(None, "9" * 64, None, "refuse", "poisoned data", ""))
    build_site(index, folder / "dist", root=root)
    return folder / "dist"


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rich_index(tmp_path_factory.mktemp("rich"))


@pytest.fixture(
    scope="module",
    params=[
        "made",
        pytest.param(
            "archive", marks=pytest.mark.skipif(not CARDS.is_dir(), reason="the archive's cards are not here")
        ),
    ],
)
def realistic(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A realistic site: of made cards, and of those of the AdapterHub archive where they are."""
    if request.param == "made":
        return request.getfixturevalue("rich")
    folder = tmp_path_factory.mktemp("archive")
    index, root, _ = begin(folder)
    import_adapterhub(index, CARDS)
    build_site(index, folder / "dist", root=root)
    return folder / "dist"


def sample(site: Path) -> list[str]:
    """Pages of every sort, the longest of each: what is most likely to go wrong."""
    groups: dict[str, list[Path]] = collections.defaultdict(list)
    for page in pages(site):
        groups["/".join(page.relative_to(site).parts[:-1])[:24]].append(page)
    longest = [page for group in groups.values() for page in sorted(group, key=lambda p: -p.stat().st_size)[:2]]
    names = [page for group in groups.values() for page in sorted(group, key=lambda p: -len(p.name))[:1]]
    found = [str(page.relative_to(site)) for page in dict.fromkeys([*longest, *names])]
    return [*found, "index.html?q=sentiment"][:45]


@pytest.fixture(scope="module")
def served() -> Iterator[Any]:
    """Serve folders below a path, as on a forge's pages."""
    servers = []

    def serve(site: Path) -> str:
        class Handler(SimpleHTTPRequestHandler):
            def translate_path(self, path: str) -> str:
                inside = path.startswith("/some/where")
                return super().translate_path(path.removeprefix("/some/where") if inside else "/no")

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(site)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}/some/where"

    yield functools.cache(serve)
    for server in servers:
        server.shutdown()


@pytest.fixture
def address(site: Path, served: Any) -> str:
    found: str = served(site)
    return found


def pages(site: Path) -> list[Path]:
    return sorted(site.rglob("*.html"))


@pytest.mark.slow
def test_every_page_is_valid_html(site: Path, realistic: Path) -> None:
    html5lib = pytest.importorskip("html5lib")
    for page in (*pages(site), *pages(realistic)):
        text = page.read_text()
        html5lib.HTMLParser(strict=True).parse(text)
        ids = re.findall(r'\bid="([^"]+)"', text)
        assert len(set(ids)) == len(ids), page


def test_no_link_is_broken_and_none_leads_elsewhere(site: Path, realistic: Path) -> None:
    for page in (*pages(site), *pages(realistic)):
        for link in re.findall(r'(?:href|src|data-search|action)="([^"]*)"', page.read_text()):
            parts = urlsplit(link)
            assert not parts.scheme, (page, link)
            assert not parts.netloc, (page, link)
            if parts.path:
                assert (page.parent / unquote(parts.path)).resolve().is_file(), (page, link)


def test_a_card_cannot_write_into_a_page(site: Path) -> None:
    text = (site / page_of(f"{PRINCIPAL}@hostile")).read_text()
    assert "<script>window" not in text
    assert "&lt;script&gt;window" in text
    assert "<img" not in text
    assert "javascript:alert(1)" not in re.findall(r'href="([^"]*)"', text)
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text


def test_a_page_says_what_there_is_to_say(site: Path) -> None:
    text = (site / page_of(f"{PRINCIPAL}@german")).read_text()
    for part in (
        "1.1.0", "1.0.0", "0.82", "SHA256:", "Apache-2.0", "@article{x", "Ada", "rotten-tomatoes", "91 kB",
        "classification: negative, positive", "8,530 samples", "Trained on <strong>short</strong> sentences.",
    ):  # fmt: skip
        assert part in text, part
    snippet = 'import adaptergit\nmodel = adaptergit.load("github.com/acme/adapters@german")'
    assert snippet in text.replace("&#34;", '"')
    text = (site / page_of(f"{PRINCIPAL}@plain")).read_text()
    for part in ("<h2>Use</h2>", "<em>reviews</em>", "<code>code</code>", "<li>"):
        assert part in text, part
    assert "accuracy on rotten-tomatoes" in (site / "tasks/sentiment.html").read_text()


@pytest.mark.parametrize(
    ("text", "html", "words"),
    [
        ("a [b](http://x/?a=1&b)", "<p>a b (http://x/?a=1&amp;b)</p>", "a b (http://x/?a=1&b) "),
        ("<http://x/y>", "<p>http://x/y</p>", "http://x/y "),
        ("![alt](http://x/y.png)", "<p>alt</p>", "alt "),
        ("# one\n\ntwo", "<h2>one</h2>\n<p>two</p>", "one two "),
        ("<b onclick=x>y</b>", "<p>&lt;b onclick=x&gt;y&lt;/b&gt;</p>", "<b onclick=x>y</b> "),
    ],
)
def test_markdown_is_rendered_without_addresses(text: str, html: str, words: str) -> None:
    assert str(rendered(text)).strip() == html
    assert plain(text) == words


def test_every_adapter_has_a_page_of_its_own(rich: Path) -> None:
    odd = "github.com/odd/names"
    for id, said in (
        (f"{odd}@x.y", "the dotted one"),
        (f"{odd}@x-y", "the dashed one"),
        ("gitlab.com/a.b/c@n", "of a.b"),
        ("gitlab.com/a-b/c@n", "of a-b"),
        (f"{odd}@only-yanked", "All its releases were withdrawn: trained on the test set"),
        (f"{odd}@only-beta", "1.0rc1"),
        (f"{odd}@infinite", "inf"),
    ):
        assert said in (rich / page_of(id)).read_text(), id
    assert len({page_of(id) for id in ("h/a/b@c", "h/a-b@c", "h/a.b@c", "h/a~b@c", "h/.a@c", "h/~2Ea@c")}) == 6
    many = (rich / page_of(f"{odd}@many")).read_text()
    assert 'href="../../../adapters/github.com/odd/names@x.y.html"' in many, "what it is built on"
    assert "1.6.0</span></h1>" in many
    assert "yanked: oops" in many


def test_what_was_revoked_does_not_look_sound(rich: Path) -> None:
    odd = "github.com/odd/names"
    for name, why in (("stolen", "stolen laptop"), ("poisoned", "poisoned data")):
        text = (rich / page_of(f"{odd}@{name}")).read_text()
        assert 'class="badge bad"' in text
        assert "Do not use it" in text
        assert why in text
        assert 'class="badge good"' not in text
        assert "adaptergit.load" not in text
        assert f"odd/names@{name}.html" not in (rich / "tasks/sentiment.html").read_text()
        assert not any(f"names@{name}.html" in path.read_text() for path in (rich / "search").rglob("*.json"))
        assert f"<title>{name} " not in (rich / "feed.xml").read_text()
    watched = (rich / page_of(f"{odd}@watched")).read_text()
    assert "an old key" in watched
    assert 'class="badge warn"' in watched


def test_a_legacy_page_claims_nothing_that_nobody_checked(rich: Path) -> None:
    id = "github.com/old/Hub@ukp-bert-base-multilingual-cased-ar-wiki_pfeiffer_relu-nd"
    text = (rich / page_of(id)).read_text()
    for part in ("found and verified", "Digest of its manifest", "badge good"):
        assert part not in text
    for part in ("nobody signed it", "sha256 of the file", "policy=&#34;digest&#34;", "#sha256:"):
        assert part in text


def test_long_lists_are_shared_out_over_pages(rich: Path) -> None:
    for page in pages(rich):
        assert page.read_text().count('class="name"') <= PER_PAGE
        assert page.stat().st_size < 150_000
    first = (rich / "tasks/sentiment.html").read_text()
    assert 'href="../tasks/sentiment/2.html"' in first
    inside = [first, *(path.read_text() for path in sorted((rich / "tasks/sentiment").glob("*.html")))]
    shown = {link for text in inside for link in re.findall(r'class="name"><a href="[./]*([^"]+)"', text)}
    assert len(shown) >= 120


def test_the_feed_holds_releases(site: Path, rich: Path) -> None:
    space = "{http://www.w3.org/2005/Atom}"
    feed = ElementTree.fromstring((site / "feed.xml").read_text())
    titles = [entry.findtext(f"{space}title") for entry in feed.findall(f"{space}entry")]
    assert titles == ["plain 1.0.0", "hostile 1.0.0", "german 1.1.0", "german 1.0.0"]
    assert feed.findtext(f"{space}updated") == "2026-11-04T00:00:00Z"
    feed = ElementTree.fromstring((rich / "feed.xml").read_text())
    ids = [entry.findtext(f"{space}id") for entry in feed.findall(f"{space}entry")]
    assert len(set(ids)) == len(ids) == 100


def test_a_broken_source_does_not_stop_the_pages(tmp_path: Path) -> None:
    index, root, _ = begin(tmp_path)
    listed(index, PRINCIPAL, [])
    (index.root / "sources" / "broken.yaml").write_text("schema: [")
    assert build_site(index, tmp_path / "dist", root=root) == 0
    assert (tmp_path / "dist" / "index.html").is_file()


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
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    opened = context.new_page()
    problems: list[str] = []
    opened.on(
        "console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None
    )
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("request", lambda r: problems.append(f"asked {r.url}") if "/some/where/" not in r.url else None)
    opened.on("response", lambda r: problems.append(f"{r.status} {r.url}") if r.status >= 400 else None)
    yield opened
    context.close()
    assert problems == []


@pytest.mark.slow
@needs_browser
def test_searching_and_copying_in_a_browser(page: Any, address: str) -> None:
    page.goto(f"{address}/index.html")
    page.get_by_label("Search 3 adapters").fill("german senti")
    page.get_by_text("1 found").wait_for()
    page.get_by_role("link", name="german", exact=True).first.click()
    page.wait_for_url("**/adapters@german.html")
    page.get_by_role("button", name="Copy").first.click()
    page.get_by_role("button", name="Copied").wait_for()
    assert 'adaptergit.load("github.com/acme/adapters@german")' in page.evaluate("navigator.clipboard.readText()")
    page.get_by_label("Search all adapters").fill("plain")
    page.keyboard.press("Enter")
    page.wait_for_url("**/index.html?q=plain")
    page.get_by_text("1 found").wait_for()
    page.get_by_role("link", name="Base models").first.click()
    assert "all-MiniLM-L6-v2" in page.inner_text("main")


@pytest.mark.slow
@needs_browser
def test_filtering_in_a_browser(page: Any, rich: Path, served: Any) -> None:
    address = served(rich)
    page.goto(f"{address}/index.html")
    page.get_by_label("Language", exact=True).select_option("ilo")
    page.get_by_text("1 found").wait_for()
    page.get_by_label("Language", exact=True).select_option("sw")
    page.get_by_label("Method", exact=True).select_option("lora")
    page.get_by_label("Search").first.fill("reviews sentiment")
    page.wait_for_url("**language=sw**method=lora**q=reviews+sentiment**")
    # What was found before may stand there for a moment.
    page.wait_for_function("""() => {
        const found = [...document.querySelectorAll("#hits ul.tags")].map((tags) => tags.innerText.split("\\n"));
        return found.length && found.every((tags) => tags.includes("sw") && tags.includes("lora"));
    }""")
    # A link to a search is a search.
    page.goto(f"{address}/index.html?language=am&task=wiki-ar")
    page.get_by_text("Nothing found").wait_for()
    assert page.get_by_label("Language", exact=True).input_value() == "am"
    page.goto(f"{address}/index.html?base=FacebookAI/xlm-roberta-base")
    page.get_by_role("button", name="Show more").click()
    page.wait_for_function("document.querySelectorAll('#hits li .name').length > 30")


@needs_browser
def test_a_search_reads_only_what_it_needs(browser: Any, rich: Path, served: Any) -> None:
    address = served(rich)
    opened, asked = browser.new_page(), []
    opened.on("request", lambda r: asked.append(r.url))
    opened.goto(f"{address}/index.html?q=dotted")
    opened.get_by_text("1 found").wait_for()
    opened.close()
    read = [url.partition("/search/")[2] for url in asked if "/search/" in url]
    assert len([name for name in read if name.startswith("words/")]) == 1 < len(list((rich / "search/words").iterdir()))
    assert len([name for name in read if name.startswith("rows/")]) == 1 < len(list((rich / "search/rows").iterdir()))


@needs_browser
def test_nothing_a_card_says_runs(page: Any, address: str) -> None:
    page.goto(f"{address}/{page_of(f'{PRINCIPAL}@hostile')}")
    page.goto(f"{address}/index.html?q=hostile")
    page.get_by_text("1 found").wait_for()
    assert page.evaluate("window.hacked") is None


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_use_it(browser: Any, realistic: Path, served: Any, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    # axe is put into the page, which its own rules forbid to strangers.
    context = browser.new_context(color_scheme=scheme, bypass_csp=True)
    opened = context.new_page()
    found = []
    for path in sample(realistic):
        opened.goto(f"{served(realistic)}/{path}")
        if "?" in path:
            opened.locator("#hits li").first.wait_for()
        for one in Axe().run(opened).response["violations"]:
            found.append((path, one["id"], [node["html"][:120] for node in one["nodes"]][:3]))
    context.close()
    assert found == []


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1280])
def test_no_page_is_wider_than_the_screen(browser: Any, realistic: Path, served: Any, width: int) -> None:
    opened = browser.new_page(viewport={"width": width, "height": 800})
    wide, out = [], []
    for path in sample(realistic):
        opened.goto(f"{served(realistic)}/{path}")
        if "?" in path:
            opened.locator("#hits li").first.wait_for()
        if opened.evaluate("document.documentElement.scrollWidth") > width:
            wide.append(path)
        # Nothing sticks out of its card, and no text out of its heading.
        if opened.evaluate(
            "[...document.querySelectorAll('.cards > li, h1, h2, h3, .badge, .tags li, .facts dd')]"
            ".some((box) => box.scrollWidth > box.clientWidth + 1 && box.clientWidth > 0)"
        ):
            out.append(path)
    opened.close()
    assert (wide, out) == ([], [])


@needs_browser
def test_it_can_be_used_with_the_keyboard_alone(page: Any, address: str) -> None:
    page.goto(f"{address}/{page_of(f'{PRINCIPAL}@german')}")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.getElementById('content').contains(document.activeElement)")


@pytest.mark.slow
@needs_browser
def test_it_reads_without_javascript(browser: Any, address: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    opened = context.new_page()
    opened.goto(f"{address}/index.html")
    opened.get_by_role("link", name="sentiment").first.click()
    opened.get_by_role("link", name="german").first.click()
    assert "Sentiment of German reviews" in opened.inner_text("main")
    context.close()
