"""``predict``."""

from __future__ import annotations

from pathlib import Path

import click

from adaptergit.cli.load import index_option, offline_option, policy_option
from adaptergit.cli.output import json_option, print_json, progress, quiet_transformers, waiting
from adaptergit.errors import UsageError


@click.command()
@click.argument("reference")
@click.option("--text", "texts", multiple=True, help="A text; may be repeated.")
@click.option("--file", "file", type=click.Path(path_type=Path), help="CSV, TSV or JSONL file with texts.")
@click.option("--text-column", default="text", show_default=True)
@click.option("--label-column", help="Also score the predictions against this column.")
@click.option("--base", help="Folder of the base model; default: the settings', or the id in the card.")
@click.option("--batch-size", default=32, show_default=True)
@policy_option
@offline_option
@index_option
@json_option
def predict(
    reference: str,
    texts: tuple[str, ...],
    file: Path | None,
    text_column: str,
    label_column: str | None,
    base: str | None,
    batch_size: int,
    policy: str | None,
    offline: bool,
    index: Path | None,
    as_json: bool,
) -> None:
    """Load the adapter REFERENCE with its head and run it over texts.

    \b
    Example:
      adaptergit predict acme/adapters@sentiment --text "a moving, beautifully shot film"
      adaptergit predict acme/adapters@sentiment --file dev.tsv --label-column label --json
    """
    if bool(texts) == (file is not None):
        raise UsageError("give either --text or --file")
    if label_column is not None and file is None:
        raise UsageError("--label-column needs --file")
    with waiting("starting PyTorch and transformers"):
        quiet_transformers()
        from adaptergit.predict import predict as run

    # One text shows that something is going on, a file how far it is.
    with waiting(f"loading {reference}", quiet=file is not None), progress(quiet=file is None) as bar:
        result = run(
            reference,
            texts=list(texts) or None,
            file=file,
            text_column=text_column,
            label_column=label_column,
            base=base,
            batch_size=batch_size,
            policy=policy,
            offline=offline,
            index=index,
            report=lambda done, total: bar("predicting", done, total, ""),
        )
    if as_json:
        print_json(result.to_json())
        return
    for text, label, probability in zip(result.texts, result.labels, result.probabilities, strict=True):
        shown = " ".join(text.split())
        click.echo(f"{label}\t{probability:.3f}\t{shown[:100]}")
    if result.metrics is not None:
        scores = result.metrics
        text = f"accuracy {scores.accuracy:.4f}, macro F1 {scores.f1_macro:.4f} on {scores.samples} examples"
        click.echo(text, err=True)
