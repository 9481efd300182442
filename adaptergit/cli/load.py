"""``load``, ``verify`` and ``info``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptergit.cli.output import json_option, print_json, step, waiting
from adaptergit.reference import is_folder

if TYPE_CHECKING:
    from adaptergit.package import Card
    from adaptergit.trust import Verdict

policy_option = click.option(
    "--policy",
    type=click.Choice(["enforce", "tofu", "digest", "unsigned"]),
    help="Whose word is enough; default: the settings'.",
)
offline_option = click.option("--offline", is_flag=True, help="Touch no network.")
index_option = click.option("--index", type=click.Path(path_type=Path), help="Index file that pins the release.")
_refresh = click.option("--refresh", is_flag=True, help="Ask the repository for new versions now.")


@click.command()
@click.argument("reference")
@policy_option
@offline_option
@index_option
@_refresh
@json_option
def load(reference: str, policy: str | None, offline: bool, index: Path | None, refresh: bool, as_json: bool) -> None:
    """Fetch the adapter REFERENCE, verify it, and say what it is and where it lies.

    In Python, adaptergit.load(REFERENCE) does the same and splices it into the model.

    \b
    Example:
      adaptergit load acme/adapters@sst2
      adaptergit load "acme/adapters@ner>=1.2,<2" --policy tofu
    """
    from adaptergit.package import CARD, Card
    from adaptergit.resolve import resolve
    from adaptergit.resolve import verify as check

    with waiting(f"fetching {reference}", quiet=as_json):
        resolved = resolve(reference, offline=offline, refresh=refresh, index=index)
    if not as_json:
        step("found in the store" if resolved.from_store else f"fetched {resolved.reference.source.url}")
    verdict = check(resolved.path, policy=policy, reference=resolved.reference)
    card = Card.from_yaml((resolved.path / CARD).read_bytes())
    if as_json:
        print_json(
            {"path": resolved.path, "from_store": resolved.from_store, "verdict": _verdict(verdict), "card": card.data}
        )
        return
    _explain(verdict)
    _describe(card)
    click.echo(f"files        {resolved.path}")


@click.command()
@click.argument("path")
@policy_option
@json_option
def verify(path: str, policy: str | None, as_json: bool) -> None:
    """Verify a package folder, or the stored package of a reference, step by step.

    Exit code 4 if the signature or the policy refuses it, 3 if a byte was changed.

    \b
    Example:
      adaptergit verify ./adapters/sst2
      adaptergit verify acme/adapters@sst2==1.0.0
    """
    from adaptergit.resolve import resolve
    from adaptergit.resolve import verify as check

    if not is_folder(path):
        with waiting(f"fetching {path}", quiet=as_json):
            resolved = resolve(path)
        verdict = check(resolved.path, policy=policy, reference=resolved.reference)
    else:
        verdict = check(path, policy=policy)
    if as_json:
        print_json(_verdict(verdict))
        return
    _explain(verdict)


@click.command()
@click.argument("reference")
@offline_option
@_refresh
@json_option
def info(reference: str, offline: bool, refresh: bool, as_json: bool) -> None:
    """Show the card of REFERENCE, or of a local package folder. Nothing is verified but the bytes' digests.

    \b
    Example:
      adaptergit info acme/adapters@sst2
      adaptergit info ./out/sst2
    """
    from adaptergit.package import CARD, MANIFEST, Card, canonical
    from adaptergit.package.card import MAX_BYTES
    from adaptergit.package.folder import read_bounded

    path = Path(reference) if is_folder(reference) else _fetched(reference, offline, refresh, as_json)
    card = Card.from_yaml(read_bounded(path / CARD, MAX_BYTES), where=str(path / CARD))
    manifest = path / MANIFEST
    digest = canonical.sha256(manifest.read_bytes()) if manifest.is_file() else None
    if as_json:
        print_json({"path": path, "digest": digest, "card": card.data})
        return
    _describe(card)
    click.echo(f"digest       {f'sha256:{digest}' if digest else 'none: not packed or signed yet'}")
    click.echo(f"files        {path}")


def _fetched(reference: str, offline: bool, refresh: bool, quiet: bool) -> Path:
    from adaptergit.resolve import fetch

    with waiting(f"fetching {reference}", quiet=quiet):
        return fetch(reference, offline=offline, refresh=refresh)


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "accepted": True,
        "level": verdict.level,
        "digest": verdict.digest,
        "repository": verdict.manifest.repository,
        "name": verdict.manifest.name,
        "version": verdict.manifest.version,
        "signers": verdict.signers,
        "vouched_by": verdict.vouched_by,
        "steps": verdict.steps,
        "warnings": verdict.warnings,
    }


def _explain(verdict: Verdict) -> None:
    for line in verdict.steps:
        click.echo(f"  ✓ {line}")
    click.echo(f"  ✓ {len(verdict.manifest.files)} files are exactly those that were signed")
    click.echo(f"accepted     {verdict.level}: {', '.join(verdict.signers) or 'nobody vouches for it'}")


def _describe(card: Card) -> None:
    data = card.data
    rows = [
        ("adapter", f"{card.name} {card.version}"),
        ("description", str(data["description"]).strip()),
        ("task", " / ".join(str(data["task"][k]) for k in ("type", "id", "dataset") if data["task"].get(k))),
        ("languages", ", ".join(data["task"].get("languages", ()))),
        ("base model", card.base_model.id),
        ("method", f"{card.method}, {data['adapter'].get('parameters', 0):,} parameters"),
        ("labels", ", ".join(data.get("head", {}).get("labels", ()))),
        ("evaluation", "; ".join(f"{e['metric']} {e['value']} on {e['dataset']}" for e in data.get("evaluation", ()))),
        ("licence", card.license),
    ]
    for title, text in rows:
        if text:
            click.echo(f"{title:<12} {text}")
