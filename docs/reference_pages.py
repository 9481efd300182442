"""The pages of the reference as Markdown, made from the code: what is not in the code cannot be in them.

mkdocs adds them to the site (``hooks.py``); the tests read them without mkdocs.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

import adaptergit
from adaptergit import errors, training
from adaptergit.cli import main

_ROOT = Path(__file__).parent.parent

# A name that is in no group stops the build.
_API = {
    "Load and look": (
        "load adapters inspect summary diff resolve fetch verify fetch_hub "
        "Reference HubReference Checkpoint Verdict watching Progress"
    ),
    "Publish": "publish publish_all yank rotate edit_card render_card",
    "Convert": "convert describe export",
    "Find": "search show",
    "Lock, carry and keep": "lock check_lock sync mirror export_bundle import_bundle stored prune verify_store",
    "Answer, measure and mend": "predict evaluate doctor",
    "Methods": "Bottleneck LoRA MTLLoRA VeRA IA3 PrefixTuning PromptTuning ReFT ClassificationHead",
    "Compositions": "Stack Fuse Split BatchSplit Parallel Average MultiTask Route",
    "Errors": (
        "AdaptergitError UsageError PackageError TrustError NotFoundError TransportError ModelError DataError "
        "ReleaseError AdaptergitWarning"
    ),
}
_PANEL = """
## The panel

What `adaptergit.adapters(model)` returns.

::: adaptergit.splice.panel.Panel
    options:
      inherited_members: true
"""
_TRAINING = {
    "Train": "train TrainSpec TrainResult Progress",
    "Trainers": "AdapterTrainer AdapterSeq2SeqTrainer AdapterCallback",
    "Tasks and data": "Task TASKS Examples read_examples read_rows",
    "Score": "score predict_logits answers_of replies_of Metrics",
}
_DOCUMENTS = ("manifest", "lock", "source", "policy", "root", "snapshot", "index", "rotation", "recovery")


@functools.cache
def pages() -> dict[str, str]:
    """Return every generated page by its path below ``docs/``."""
    return {
        "reference/python.md": _python("Python", "adaptergit", adaptergit.__all__, _API) + _PANEL,
        "reference/training.md": _python("Python: training", "adaptergit.training", training.__all__, _TRAINING),
        "reference/cli.md": command_page(),
        "reference/card.md": schema_page("card"),
        "reference/documents.md": "# Documents\n\nWhat else is signed, listed or written down, field by field.\n\n"
        + "\n".join(schema_page(name, level=2) for name in _DOCUMENTS),
        "reference/errors.md": error_page(),
        "examples.md": examples_page(),
    }


# --- Python -----------------------------------------------------------------------------------------------------------


def _python(title: str, module: str, names: list[str], groups: dict[str, str]) -> str:
    grouped = [name for group in groups.values() for name in group.split()]
    public = set(names) - {"__version__"}
    if sorted(grouped) != sorted(public):
        raise ValueError(f"{__file__} groups other names than {module}.__all__ has: {set(grouped) ^ public}")
    lines = [f"# {title}", "", f"Everything public of `{module}`."]
    for group, members in groups.items():
        lines += ["", f"## {group}"]
        for name in members.split():
            lines += ["", f"::: {target(module, name)}"]
    if "__version__" in names:
        lines += ["", "## Version", "", f"`{module}.__version__` is the version as a string."]
    return "\n".join(lines) + "\n"


def target(module: str, name: str) -> str:
    """Return where a public name is to be read: a module of the same name, which only we do not see, would hide it."""
    if importlib.util.find_spec(f"{module}.{name}") is None:
        return f"{module}.{name}"
    return f"{getattr(importlib.import_module(module), name).__module__}.{name}"


# --- command line -----------------------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[click.Context, click.Command]]:
    """Yield the program, every command and every command of a group, in the order of ``--help``."""
    yield from _below(click.Context(main, info_name="adaptergit"), main)


def _below(context: click.Context, command: click.Command) -> Iterator[tuple[click.Context, click.Command]]:
    yield context, command
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None and not child.hidden:
                yield from _below(click.Context(child, info_name=name, parent=context), child)


def command_page() -> str:
    """Return the page of every command with every option."""
    lines = ["# Command line", "", "On your machine: `adaptergit COMMAND --help`. Every command has `--json`."]
    for context, command in commands():
        depth = context.command_path.count(" ")
        usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
        lines += ["", f"{'#' * min(depth + 2, 3)} {context.command_path}"]
        lines += ["", "```text", usage, "```", "", *_help(command)]
        options = [record for parameter in command.params if (record := parameter.get_help_record(context))]
        if options:
            lines += ["", "| option | |", "|---|---|"]
            lines += [f"| `{_cell(name)}` | {_cell(_escape(text))} |" for name, text in options]
    return "\n".join(lines) + "\n"


def _help(command: click.Command) -> Iterator[str]:
    """Yield a help text as Markdown: blocks that click leaves as they are become code."""
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        head, marker, block = paragraph.partition("\b\n")
        if not marker:
            yield from (_escape(paragraph), "")
            continue
        first, *rest = block.rstrip().splitlines()
        if not first.endswith(":"):
            yield from (head, *(f"{_escape(line)}<br>" for line in (first, *rest)), "")
            continue
        yield from (head, _escape(first), "", "```text", *inspect.cleandoc("\n".join(rest)).splitlines(), "```", "")


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("<", "&lt;").replace("*", "\\*").replace("[", "\\[").replace("_", "\\_")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


# --- documents --------------------------------------------------------------------------------------------------------


def schema_page(name: str, *, level: int = 1) -> str:
    """Return every field of one kind of document, from ``schema/NAME.schema.json``."""
    schema = json.loads((_ROOT / "schema" / f"{name}.schema.json").read_text("utf-8"))
    about = f"{_prose(schema.get('description', ''))} Schema: `schema/{name}.schema.json`.".strip()
    lines = [f"{'#' * level} The {name}", "", about, "", "| field | kind | meaning |", "|---|---|---|"]
    for path, field, required in fields(schema, schema):
        kind = _kind(field) + (", required" if required else "")
        lines.append(f"| `{_cell(path)}` | {_cell(kind)} | {_cell(_prose(field.get('description', '')))} |")
    return "\n".join(lines) + "\n"


def _prose(text: str) -> str:
    """Return a description as Markdown: `<repo>` in it is no tag, and stays as it is between backticks."""
    return re.sub(r"(`[^`]*`)|<", lambda found: found[1] or "&lt;", text)


def fields(
    schema: dict[str, Any], root: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Yield every field below an object: its dotted path, its schema, and whether it must be there."""
    for name, field in schema.get("properties", {}).items():
        field = _resolved(field, root)
        path = f"{prefix}{name}"
        yield path, field, name in schema.get("required", ())
        items = _resolved(field.get("items", {}), root)
        yield from fields(field, root, f"{path}.")
        yield from fields(items, root, f"{path}[].")


def _resolved(field: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    target = field.get("$ref", "")
    if not target.startswith("#/"):
        return field
    found = root
    for step in target[2:].split("/"):
        found = found[step]
    return found | {key: value for key, value in field.items() if key != "$ref"}


def _kind(field: dict[str, Any]) -> str:
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    kind = field.get("type", "any")
    words = " or ".join(kind) if isinstance(kind, list) else str(kind)
    items = field.get("items", {})
    return f"list of {items['type']}s" if words == "array" and isinstance(items.get("type"), str) else words


# --- examples ---------------------------------------------------------------------------------------------------------


def examples_page() -> str:
    """Return every example, notebooks first, with its code: what CI runs is what is shown."""
    folder = _ROOT / "examples"
    notebooks = sorted(folder.glob("notebooks/*.ipynb"), key=lambda path: (path.stem != "quickstart", path.stem))
    lines = ["# Examples", "", "All of them are in the repository, under `examples/`, and are run at every change."]
    for path in notebooks:
        first, *cells = json.loads(path.read_text("utf-8"))["cells"]
        title, _, about = "".join(first["source"]).removeprefix("# ").partition("\n")
        lines += [
            "",
            f"## {title} {{ #{path.stem} }}",
            "",
            f"A notebook: `{path.relative_to(_ROOT).as_posix()}`.",
            about,
        ]
        lines += ["", '??? example "The notebook"', ""]
        for cell in cells:
            text = re.sub(r"\]\(([\w-]+)\.ipynb\)", r"](#\1)", "".join(cell["source"])).replace("](../../docs/", "](")
            shown = (
                f"```python\n{text}\n```"
                if cell["cell_type"] == "code"
                else re.sub(r"^#+ (.*)$", r"**\1**", text, flags=re.M)
            )
            lines += [*(f"    {line}".rstrip() for line in shown.splitlines()), ""]
    for path in sorted(folder.rglob("*.py"), key=lambda path: (len(path.parts), path)):
        code = path.read_text("utf-8")
        title, _, about = (ast.get_docstring(ast.parse(code)) or "").replace("``", "`").partition("\n\n")
        lines += ["", f"## `{path.relative_to(folder).as_posix()}`", "", title, "", about]
        lines += ["", '??? example "The script"', "", "    ```python"]
        lines += [*(f"    {line}".rstrip() for line in code.splitlines()), "    ```"]
    return "\n".join(lines) + "\n"


# --- errors -----------------------------------------------------------------------------------------------------------


def error_classes() -> list[type[Exception]]:
    """Return every class of ``adaptergit.errors``, in the order of the file, and those that live beside their code."""
    found = [one for one in vars(errors).values() if inspect.isclass(one) and issubclass(one, Exception)]
    names = {one.__name__ for one in found}
    for file, tree in _sources():
        for node in tree.body:
            derived = isinstance(node, ast.ClassDef) and {ast.unparse(base) for base in node.bases} & names
            if derived and node.name not in names:
                module = ".".join(file.relative_to(_ROOT).with_suffix("").parts)
                found.append(getattr(importlib.import_module(module), node.name))
    return found


@functools.cache
def _sources() -> list[tuple[Path, ast.Module]]:
    files = sorted((_ROOT / "adaptergit").rglob("*.py"))
    return [(file, ast.parse(file.read_text("utf-8"))) for file in files]


def error_page() -> str:
    """Return the catalogue: each class with its meaning, cause, remedy, and every message in the code."""
    said = messages()
    lines = [
        "# Errors",
        "",
        "Each message says what happened and where, and, where that is not plain from it, what to do next. The command "
        "line prints it without a traceback and ends with the exit code of its class; `adaptergit -v …` adds where it "
        "comes from. In Python, catch `AdaptergitError`, or the class that you can mend. What differs from "
        "case to case is in braces. Where a message has no hint of its own, the command line ends it with the remedy "
        "of its class, in short.",
    ]
    for one in error_classes():
        code = getattr(one, "exit_code", None)
        text = inspect.cleandoc(one.__doc__ or "").partition("\n\nArgs:")[0]
        text = text.replace("``", "`").replace("Cause: ", "**Cause:** ").replace("Remedy: ", "**Remedy:** ")
        facts = [f"Exit code {code}."] if code else []
        if one.__module__ != errors.__name__:
            facts.append(f"Of `{one.__module__}`, a `{one.__bases__[0].__name__}`.")
        lines += ["", f"## {one.__name__}", "", *([" ".join(facts), ""] if facts else []), text]
        if pairs := said[one.__name__]:
            lines += ["", f'??? note "Its messages ({len(pairs)})"', "", "    | message | hint |", "    |---|---|"]
            lines += [f"    | {_literal(what)} | {_literal(hint)} |" for what, hint in pairs]
    return "\n".join(lines) + "\n"


@functools.cache
def messages() -> dict[str, list[tuple[str, str]]]:
    """Return, by class, every pair of message and hint that is written out in the code, also of warnings."""
    found: dict[str, set[tuple[str, str]]] = {one.__name__: set() for one in error_classes()}
    written = [node for _, tree in _sources() for node in tree.body if isinstance(node, ast.Assign)]
    imported = {name: value for name, value in _assigned(written).items() if not name.startswith("_")}
    for _, tree in _sources():
        shared = imported | _assigned(node for node in tree.body if isinstance(node, ast.Assign))
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        for scope in functions:
            names = {**shared, **_assigned(ast.walk(scope))}
            for node in ast.walk(scope):
                if isinstance(node, ast.Call) and node.args:
                    kind = _kind_of(node)
                    what = _text(node.args[0], names)
                    # What is put together elsewhere is at least known to be there.
                    hint = next((_text(one.value, names) or "{…}" for one in node.keywords if one.arg == "hint"), "")
                    if what and kind in found:
                        found[kind].add((what, hint))
    return {name: sorted(pairs) for name, pairs in found.items()}


def _kind_of(call: ast.Call) -> str:
    """Return the class of an error that is made, or of a warning that is given."""
    if isinstance(call.func, ast.Attribute) and call.func.attr in ("warn", "warn_explicit") and len(call.args) > 1:
        return ast.unparse(call.args[1])
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _assigned(nodes: Iterable[ast.AST]) -> dict[str, list[ast.expr]]:
    """Return what names stand for, as far as it is written out."""
    found: dict[str, list[ast.expr]] = {}
    for node in nodes:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            found.setdefault(node.targets[0].id, []).append(node.value)
    return found


def _text(node: ast.expr, names: Mapping[str, list[ast.expr]]) -> str:
    """Return a string of the code with its placeholders in braces; empty for what is computed."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(
                str(part.value) if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}"
                for part in parts
                if isinstance(part, ast.Constant | ast.FormattedValue)
            )
        case ast.IfExp(body=one, orelse=other):
            return _either([one, other], names)
        case ast.BoolOp(values=several):
            return _either(several, names)
        case ast.Name(id=name):
            return _either(names.get(name, []), {})
    return ""


def _either(nodes: Iterable[ast.expr], names: Mapping[str, list[ast.expr]]) -> str:
    return " — or: ".join(dict.fromkeys(text for node in nodes if (text := _text(node, names))))


def _literal(text: str) -> str:
    return f"`` {_cell(text)} ``" if text else ""
