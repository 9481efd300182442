"""The documentation: what is public is in it, its links lead somewhere, and what it tells people to type is there."""

from __future__ import annotations

import ast
import functools
import html
import http.server
import importlib
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

import adaptergit
from adaptergit import errors, training
from adaptergit.cli import main

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))

from reference_pages import commands, error_classes, messages, pages, target  # noqa: E402

WRITTEN = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in (ROOT / "README.md", *DOCS.rglob("*.md"))
}
PAGES = WRITTEN | {f"docs/{path}": text for path, text in pages().items()}
_BLOCK = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.M | re.S)


def blocks(*languages: str) -> list[tuple[str, str]]:
    """Every block in one of these languages, with the page and line it is at."""
    found = []
    for page, text in WRITTEN.items():
        for match in _BLOCK.finditer(text):
            if match[2] in languages:
                found.append((f"{page}:{text[: match.start()].count(chr(10)) + 1}", match[3]))
    return found


# --- what is public is there ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("page", "module"), [("python", adaptergit), ("training", training)])
def test_every_public_name_is_on_its_page_and_has_a_docstring(page: str, module: ModuleType) -> None:
    text = pages()[f"reference/{page}.md"]
    for name in set(module.__all__) - {"__version__"}:
        where = target(module.__name__, name)
        assert f"::: {where}\n" in text
        value = getattr(module, name)
        home, _, own = where.rpartition(".")
        assert getattr(importlib.import_module(home), own) is value
        module_file = ROOT.joinpath(*where.split(".")).with_suffix(".py")
        assert not module_file.exists(), f"{where} is a module, and would be shown in place of {name}"
        assert value.__doc__, f"{name} has no docstring"


def test_every_command_and_every_option_is_on_the_page() -> None:
    sections = dict(re.findall(r"^##+ (adaptergit[a-z -]*)\n(.*?)(?=^##|\Z)", pages()["reference/cli.md"], re.M | re.S))
    assert len(sections) > 50
    for context, command in commands():
        section = sections[context.command_path]
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert parameter.help or parameter.show_default, f"{context.command_path} {parameter.name} says nothing"
                for spelling in (*parameter.opts, *parameter.secondary_opts):
                    assert spelling in section, f"{context.command_path} {spelling}"


def test_every_command_has_an_example_and_speaks_json() -> None:
    for context, command in commands():
        if not isinstance(command, click.Group):
            assert "Example:" in (command.help or ""), context.command_path
            assert any("--json" in parameter.opts for parameter in command.params), context.command_path


def test_every_error_says_what_it_means_its_cause_and_its_remedy() -> None:
    text = pages()["reference/errors.md"]
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    assert set(sections) == {one.__name__ for one in error_classes()} >= {"TrustError", "StorageError", "LegacyError"}
    for one in error_classes():
        assert "**Cause:**" in sections[one.__name__]
        assert "**Remedy:**" in sections[one.__name__]
        assert "Args:" not in sections[one.__name__]
        if issubclass(one, errors.AdaptergitError):
            assert f"Exit code {one.exit_code}." in sections[one.__name__]


def test_the_catalogue_holds_the_messages_of_the_code() -> None:
    assert ("HEAD is detached", "git switch BRANCH") in messages()["UsageError"]
    assert sum(len(found) for found in messages().values()) > 500


def test_most_messages_say_what_mends_it() -> None:
    """The rest say it themselves, or nobody honest meets them."""
    met = ("UsageError", "NotFoundError", "TransportError", "ModelError", "DataError")
    hints = [hint for name, found in messages().items() if name in met for _, hint in found]
    assert sum(map(bool, hints)) / len(hints) > 0.69


def test_every_field_of_a_card_is_on_its_page() -> None:
    text = pages()["reference/card.md"]
    for field in (
        "name",
        "base_model.fingerprint",
        "adapter.sites[].branch",
        "evaluation[].interval",
        "embeddings.tokens",
    ):
        assert f"| `{field}` |" in text
    assert "| `name` | string, required |" in text
    assert "| `adapter.format` | `adaptergit` or `adapterhub` or `peft`, required |" in text


def undescribed(node: Any, path: str = "") -> Iterator[str]:
    """The properties, at any depth of a schema, that say nothing of themselves."""
    for name, field in node.get("properties", {}).items():
        if not str(field.get("description", "")).strip():
            yield f"{path}.{name}"
    for keyword, value in node.items():
        if keyword in ("properties", "patternProperties", "$defs"):
            parts = [(f"{path}.{name}", one) for name, one in value.items()]
        else:
            parts = [(path, one) for one in (value if isinstance(value, list) else [value])]
        for where, one in parts:
            if isinstance(one, dict):
                yield from undescribed(one, where)


def test_every_property_of_every_schema_is_described() -> None:
    found = sorted((ROOT / "schema").glob("*.schema.json"))
    assert len(found) >= 10
    said = {path.name: list(undescribed(json.loads(path.read_text("utf-8")))) for path in found}
    assert not {name: missing for name, missing in said.items() if missing}


def test_what_a_schema_says_is_text_on_its_page() -> None:
    text = pages()["reference/documents.md"]
    assert "sources/&lt;host>/&lt;org>/&lt;repo>.yaml" in text
    assert "| field | kind | meaning |" in text


# --- links ------------------------------------------------------------------------------------------------------------


def slugs(text: str) -> Iterator[str]:
    for heading in re.findall(r"^#+ (.+)$", _BLOCK.sub("", text), re.M):
        plain = re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        yield re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


@pytest.mark.parametrize("page", WRITTEN)
def test_every_relative_link_leads_to_a_file_and_a_heading(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", _BLOCK.sub("", WRITTEN[page])):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        found = (ROOT / page).parent.joinpath(path).resolve() if path else ROOT / page
        name = found.relative_to(ROOT).as_posix()
        assert name in PAGES or found.exists(), f"{page} links to {link}"
        if anchor:
            assert anchor in set(slugs(PAGES[name])), f"{page} links to {link}"


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8")
    for page in PAGES:
        assert page == "README.md" or f": {page.removeprefix('docs/')}\n" in navigation, page


# --- what people are told to type -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("place", "code"), blocks("python"), ids=lambda value: value if ".md:" in value else "")
def test_python_blocks_parse_and_use_names_that_are_there(place: str, code: str) -> None:
    tree = compile(code, place, "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "adaptergit":
            assert node.attr in adaptergit.__all__
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("adaptergit"):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                assert hasattr(module, alias.name)


def typed(code: str) -> Iterator[list[str]]:
    """The commands of ours in a block of a shell."""
    for line in re.sub(r"\$\((?:[^()]|\([^()]*\))*\)", "found", code.replace("\\\n", " ")).splitlines():
        words = shlex.split(line.strip().removeprefix("$ "), comments=True)
        while words:
            end = next((i for i, word in enumerate(words) if word in ("&&", "|", ";", ">", "<")), len(words))
            if words[:1] == ["adaptergit"]:
                yield words[1:end]
            words = words[end + 1 :]


@pytest.mark.parametrize(
    ("place", "code"), blocks("console", "bash"), ids=lambda value: value if ".md:" in value else ""
)
def test_commands_and_their_options_are_there(place: str, code: str) -> None:
    for words in typed(code):
        check(main, click.Context(main, info_name="adaptergit"), words)


def check(command: click.Command, context: click.Context, words: list[str]) -> None:
    """Parse as click does, without running anything: what is not there is refused by name."""
    _, rest, _ = command.make_parser(context).parse_args(list(words))
    if isinstance(command, click.Group) and rest:
        child = command.get_command(context, rest[0])
        assert child is not None, f"{context.command_path} has no command {rest[0]}"
        check(child, click.Context(child, info_name=rest[0], parent=context), rest[1:])
    else:
        assert not rest, f"{context.command_path} takes no {rest}"


def test_a_command_that_is_not_there_would_be_noticed() -> None:
    with pytest.raises(AssertionError, match="has no command publsh"):
        check(main, click.Context(main), ["publsh", "out"])
    with pytest.raises(click.NoSuchOption):
        check(main, click.Context(main), ["publish", "out", "--dry-rnu"])


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_badges_say_what_is_so() -> None:
    sys.path.insert(0, str(DOCS / "pictures"))
    import badges

    facts = badges.facts()
    for name in set(facts) - {"tests"}:
        drawn = (DOCS / "pictures" / f"badge-{name}.svg").read_text("utf-8")
        assert drawn == badges.badge(name, facts[name]), "run docs/pictures/badges.py"
    shown = re.search(r">([\d,]+)\+<", (DOCS / "pictures" / "badge-tests.svg").read_text("utf-8"))
    assert shown is not None
    assert 0 < int(shown[1].replace(",", "")) <= badges.tests()
    matrix = re.search(r"python: \[(.*)\]", (ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))
    assert matrix is not None
    versions = re.findall(r"[\d.]+", matrix[1])
    assert facts["python"] == f"{versions[0]} – {versions[-1]}"


def test_the_readme_leads_somewhere_where_nothing_lies_beside_it() -> None:
    sys.path.insert(0, str(DOCS))
    from absolute_links import absolute

    text = (ROOT / "README.md").read_text("utf-8")
    linked = re.findall(r"\]\(([^)]+)\)", text)
    led = re.findall(r"\]\(([^)]+)\)", absolute(text, "https://forge.example/a/b", "v1"))
    assert len(led) == len(linked) > 20
    for before, after in zip(linked, led, strict=True):
        if before.startswith(("https:", "#")):
            assert after == before
        else:
            assert re.fullmatch(r"https://forge.example/a/b/(raw|blob)/v1/(.*)", after)[2] == before  # type: ignore[index]
    assert "![A recording of adaptergit demo](https://forge.example/a/b/raw/v1/docs/pictures/demo.svg)" in absolute(
        text, "https://forge.example/a/b", "v1"
    )


# --- the site ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as people build it: a warning stops it."""
    for package in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        if importlib.util.find_spec(package.partition(".")[0]) is None:
            pytest.skip(f"{package} is not installed: pip install 'adaptergit[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(site: Path) -> None:
    python = html.unescape((site / "reference" / "python" / "index.html").read_text("utf-8"))
    for name in set(adaptergit.__all__) - {"__version__"}:
        assert f'id="{target("adaptergit", name)}"' in python, name
    for page in site.rglob("*.html"):
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?://', page.read_text("utf-8")), page


@pytest.mark.slow
def test_what_is_copied_from_a_page_is_what_is_typed(site: Path) -> None:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None or importlib.util.find_spec("playwright") is None:
        pytest.skip("there is no browser to look at the site")
    from playwright.sync_api import sync_playwright

    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, sync_playwright() as playwright:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_context(permissions=["clipboard-read", "clipboard-write"]).new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/tutorials/first-adapter/")
        block = page.locator("div.highlight", has_text="card validate")
        block.hover()
        block.locator("button").first.click()
        page.wait_for_function("navigator.clipboard.readText().then(text => text.length > 0)")
        copied = page.evaluate("navigator.clipboard.readText()")
        browser.close()
        server.shutdown()
    assert [line.split()[:3] for line in copied.splitlines()][1] == ["adaptergit", "card", "validate"]
    assert not re.search(r"^\$", copied, re.M)
