"""``load``, ``verify`` and ``info``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptergit.cli.checkpoint import show_checkpoint
from adaptergit.cli.output import clean, json_option, print_json, step, waiting
from adaptergit.errors import UsageError, counted
from adaptergit.reference import check_pinned_by, expand, is_folder, is_hub

if TYPE_CHECKING:
    from adaptergit.package import Card
    from adaptergit.resolve import Fetched
    from adaptergit.trust import Verdict

policy_option = click.option(
    "--policy",
    type=click.Choice(["enforce", "tofu", "digest", "unsigned"]),
    help="Whose word is enough; default: the settings'.",
)
offline_option = click.option("--offline", is_flag=True, help="Touch no network.")
index_option = click.option("--index", type=click.Path(path_type=Path), help="Index file that pins the release.")
lock_option = click.option("--lock", type=click.Path(path_type=Path), help="Lock file that names the release.")
refresh_option = click.option("--refresh", is_flag=True, help="Ask the repository for new versions now.")


@click.command()
@click.argument("reference")
@policy_option
@offline_option
@index_option
@lock_option
@refresh_option
@json_option
def load(
    reference: str,
    policy: str | None,
    offline: bool,
    index: Path | None,
    lock: Path | None,
    refresh: bool,
    as_json: bool,
) -> None:
    """Fetch the adapter REFERENCE, verify it, and say what it is and where it lies.

    In Python, adaptergit.load(REFERENCE) does the same and splices it into the model.

    \b
    Example:
      adaptergit load acme/adapters@sst2
      adaptergit load "acme/adapters@ner>=1.2,<2" --policy tofu
      adaptergit load hf:acme/bert-sst2 --policy tofu
    """
    reference = named(reference)
    check_pinned_by(reference, index, lock)
    if is_folder(reference):
        _show_folder(expand(reference), policy, as_json, weights=True)
        return
    found = _fetched(
        reference, policy=policy, offline=offline, index=index, lock=lock, refresh=refresh, as_json=as_json
    )
    if found is None:
        return
    if as_json:
        verdict = _verdict(found.verdict)
        print_json({"path": found.path, "from_store": found.from_store, "verdict": verdict, "card": found.card.data})
        return
    step("found in the store" if found.from_store else f"fetched from {found.served_by}")
    _explain(found.verdict)
    _describe(found.card)
    click.echo(f"files        {found.path}")


@click.command()
@click.argument("reference")
@policy_option
@offline_option
@lock_option
@refresh_option
@click.option(
    "--model-signing-key",
    type=click.Path(path_type=Path),
    help="PEM file of a public key: verify the OpenSSF bundle (model.sig) too.",
)
@json_option
def verify(
    reference: str,
    policy: str | None,
    offline: bool,
    lock: Path | None,
    refresh: bool,
    model_signing_key: Path | None,
    as_json: bool,
) -> None:
    """Verify the release REFERENCE means, or a package folder, step by step.

    Exit code 4 if the signature or the policy refuses it, 3 if a byte was changed.

    \b
    Example:
      adaptergit verify ./adapters/sst2
      adaptergit verify acme/adapters@sst2==1.0.0
      adaptergit verify hf:acme/bert-sst2
    """
    from adaptergit.errors import PackageError, TrustError
    from adaptergit.package import MANIFEST
    from adaptergit.package.local import local_card
    from adaptergit.resolve import verify as check
    from adaptergit.trust.oms import verify_bundle

    reference = named(reference)
    check_pinned_by(reference, None, lock)
    steps: tuple[str, ...] = ()
    try:
        if is_folder(reference):
            folder = expand(reference)
            if not (folder / MANIFEST).is_file():
                local_card(folder)  # says what it is, if it is no package at all
            verdict = check(folder, policy=policy)
        else:
            found = _fetched(reference, policy=policy, offline=offline, lock=lock, refresh=refresh, as_json=as_json)
            if found is None:
                return
            folder, verdict = found.path, found.verdict
        steps = verdict.steps
        signed = verify_bundle(folder, expand(model_signing_key)) if model_signing_key is not None else ()
    except (TrustError, PackageError) as error:
        error.steps = error.steps or steps
        if not as_json:
            for line in error.steps:
                click.echo(f"  ok  {clean(line)}")
            click.echo(f"  no  {clean(error.what)}")
        raise
    if as_json:
        print_json(_verdict(verdict) | ({"model_signing": signed} if signed else {}))
        return
    _explain(verdict)
    if signed:
        click.echo(f"model.sig    of {counted(len(signed), 'file')}, by the key you named")


@click.command()
@click.argument("reference")
@offline_option
@lock_option
@refresh_option
@json_option
def info(reference: str, offline: bool, lock: Path | None, refresh: bool, as_json: bool) -> None:
    """Show the card of REFERENCE, or of a local package folder, whoever signed it.

    Every byte is compared with the manifest; whether to trust its signer is for load and verify to decide.

    \b
    Example:
      adaptergit info acme/adapters@sst2
      adaptergit info ./out/sst2
    """
    reference = named(reference)
    check_pinned_by(reference, None, lock)
    if is_folder(reference):
        _show_folder(expand(reference), None, as_json)
        return
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what load warns of, this command is for
        found = _fetched(reference, policy="unsigned", offline=offline, lock=lock, refresh=refresh, as_json=as_json)
    if found is None:
        return
    if as_json:
        signers = found.verdict.signers
        print_json({"path": found.path, "digest": found.digest, "signers": signers, "card": found.card.data})
        return
    _describe(found.card)
    click.echo(f"signed by    {', '.join(found.verdict.signers) or 'nobody'}")
    click.echo(f"digest       sha256:{found.digest}")
    click.echo(f"files        {found.path}")


def named(reference: str) -> str:
    """Return the reference that was meant: a bare name is looked up in the indexes, on the command line only."""
    from adaptergit.indexes import any_index, full_name
    from adaptergit.settings import load_settings

    if not reference.strip():
        raise UsageError("the reference is empty", hint="write org/repo@adapter, or . for the folder you are in")
    if "@" in reference or "/" in reference or is_hub(reference) or Path(reference).exists() or not any_index():
        return reference
    return full_name(reference, load_settings())


def named_adapter(reference: str) -> str:
    """Return :func:`named`; a folder that is not there is said before PyTorch is started.

    Raises:
        NotFoundError: There is none.
    """
    from adaptergit.package.local import no_folder

    meant = named(reference)
    if is_folder(meant) and not expand(meant).is_dir():
        raise no_folder(expand(meant))
    return meant


def _fetched(reference: str, *, as_json: bool, **options: Any) -> Fetched | None:
    """Fetch a release. An unsigned checkpoint is shown right away: None."""
    from adaptergit.hf import Checkpoint, fetch_hub
    from adaptergit.resolve import fetch

    if is_hub(reference):
        options = {name: value for name, value in options.items() if name not in ("index", "lock")}
    with waiting(f"fetching {reference}", quiet=as_json):
        found = fetch_hub(reference, **options) if is_hub(reference) else fetch(reference, **options)
    if isinstance(found, Checkpoint):
        show_checkpoint(found, as_json)
        return None
    return found


def _show_folder(folder: Path, policy: str | None, as_json: bool, *, weights: bool = False) -> None:
    """A folder the person named: what it is, and whether it still is what its manifest says."""
    from adaptergit.package import MANIFEST, canonical
    from adaptergit.package.local import local_card
    from adaptergit.resolve import verify as check

    verdict = check(folder, policy=policy) if policy is not None else None
    card = local_card(folder)
    if weights:
        _check_weights(folder)
    manifest = folder / MANIFEST
    digest = canonical.sha256(manifest.read_bytes()) if manifest.is_file() else None
    if as_json:
        print_json({"path": folder, "digest": digest, "verdict": verdict and _verdict(verdict), "card": card.data})
        return
    _describe(card)
    click.echo(f"digest       {f'sha256:{digest}' if digest else 'none: not packed or signed yet'}")
    click.echo(f"files        {folder}")


def _check_weights(folder: Path) -> None:
    """Refuse weights that are none, also where no manifest says which they are."""
    from adaptergit.package import WEIGHTS
    from adaptergit.package.weights import files_of, opened

    for path in [path for path in files_of(folder) if path.suffix == ".safetensors"] or [folder / WEIGHTS]:
        with opened(path):
            pass


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
        click.echo(f"  ok  {clean(line)}")
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
            click.echo(f"{title:<12} {clean(text)}")
