"""``diff`` and ``summary``."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from adaptergit.cli.load import named, offline_option
from adaptergit.cli.output import clean, json_option, print_json, waiting

if TYPE_CHECKING:
    from adaptergit.diff import Diff, FieldDiff, TensorDiff

_WIDTH = 60
_policy = click.option(
    "--policy",
    type=click.Choice(["enforce", "tofu", "digest", "unsigned"]),
    default="unsigned",
    help="Whose word is enough; default: anybody's, since nothing is loaded.",
)


@click.command()
@click.argument("a")
@click.argument("b")
@click.option("--exit-code", is_flag=True, help="Exit with 1 if anything differs.")
@_policy
@offline_option
@json_option
def diff(a: str, b: str, exit_code: bool, policy: str, offline: bool, as_json: bool) -> None:
    """Show what differs between the adapters A and B: tensors, configuration, card and scores.

    References or folders, ours or of others. Every byte of a release is compared with its manifest; who signed it is
    for load and verify to judge, unless --policy says otherwise. No base model is needed.

    \b
    Example:
      adaptergit diff acme/adapters@sst2==1.0.0 acme/adapters@sst2==1.1.0
      adaptergit diff acme/adapters@sst2 ./out/sst2 --exit-code
    """
    from adaptergit.diff import diff as run

    with waiting("comparing", quiet=as_json):
        found = run(named(a), named(b), policy=policy, offline=offline)
    if as_json:
        fields = {name: getattr(found, name) for name in ("a", "b", "formats", "tensors", "config", "card", "scores")}
        print_json({"same": found.same, **fields})
    else:
        _show(found)
    if exit_code and not found.same:
        sys.exit(1)


@click.command()
@click.argument("reference")
@_policy
@offline_option
@json_option
def summary(reference: str, policy: str, offline: bool, as_json: bool) -> None:
    """Say what the adapter REFERENCE is: method, parameters, where it acts, head, sizes. A folder will do, too.

    In Python, adaptergit.summary(model) says the same of all adapters in a model.

    \b
    Example:
      adaptergit summary acme/adapters@sst2
      adaptergit summary ./peft-checkpoint --json
    """
    from adaptergit.summary import summary as run

    with waiting(f"looking at {reference}", quiet=as_json):
        found = run(named(reference), policy=policy, offline=offline)
    if as_json:
        print_json(found)
    else:
        click.echo("\n".join(clean(line) for line in str(found).split("\n")))


def _show(found: Diff) -> None:
    if found.same:
        click.echo(f"the same: {len(found.tensors)} tensors, configuration, card and scores")
        return
    click.echo(f"--- {clean(found.a)}\n+++ {clean(found.b)}")
    counts: dict[str, int] = {}
    for one in found.tensors:
        counts[one.state] = counts.get(one.state, 0) + 1
    words = {"equal": "equal", "changed": "changed", "dtype": "of another dtype", "shape": "of another shape",
             "only_a": "only in A", "only_b": "only in B"}  # fmt: skip
    click.echo(f"tensors: {', '.join(f'{counts[state]} {word}' for state, word in words.items() if state in counts)}")
    if found.formats[0] != found.formats[1] and counts.keys() <= {"only_a", "only_b"}:
        a, b = found.formats
        click.echo(f"the formats differ, so no names are alike: convert {a} to {b} first (adaptergit convert --to {b})")
    shown = [one for one in found.tensors if one.state != "equal"]
    width = min(max((len(one.name) for one in shown), default=0), _WIDTH)
    for one in shown:
        click.echo(f"  {clean(_line(one, width))}")
    for title, fields in (("configuration", found.config), ("card", found.card)):
        if fields:
            click.echo(f"{title}:")
        for field in fields:
            click.echo(f"  {clean(_change(field))}")
    if found.scores:
        click.echo("scores:")
    for field in found.scores:
        click.echo(f"  {clean(_change(field))}{_gain(field)}")


def _line(one: TensorDiff, width: int) -> str:
    name = one.name.ljust(width)
    if one.b is None:
        return f"- {name}  {one.a}"
    if one.a is None:
        return f"+ {name}  {one.b}"
    kind = one.a if one.a == one.b else f"{one.a} -> {one.b}"
    if one.state == "shape":
        return f"~ {name}  {kind}"
    most, relative = ("not finite" if x is None else f"{x:.2e}" for x in (one.max_difference, one.relative))
    return f"~ {name}  {kind}  max |Δ| {most}, relative {relative}"


def _change(one: FieldDiff) -> str:
    if one.a is None:
        return f"+ {one.field}: {_short(one.b)}"
    if one.b is None:
        return f"- {one.field}: {_short(one.a)}"
    return f"~ {one.field}: {_short(one.a)} -> {_short(one.b)}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"


def _gain(one: FieldDiff) -> str:
    return "" if one.a is None or one.b is None else f" ({one.b - one.a:+.4g})"
