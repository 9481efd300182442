"""``train``."""

from __future__ import annotations

from pathlib import Path

import click

from adaptergit.cli.output import json_option, print_json, progress, quiet_transformers, step, waiting
from adaptergit.errors import UsageError


@click.command()
@click.option("--base", required=True, help="Folder or Hugging Face id of the base model.")
@click.option("--base-id", help="What the card calls the base model, where --base is a folder.")
@click.option("--task", default="text-classification", show_default=True, help="What to learn.")
@click.option("--train", "train_file", required=True, type=click.Path(path_type=Path), help="CSV, TSV or JSONL file.")
@click.option(
    "--eval", "eval_file", required=True, type=click.Path(path_type=Path), help="Held-out examples, same columns."
)
@click.option("--text-column", default="text", show_default=True)
@click.option("--label-column", default="label", show_default=True)
@click.option("--adapter", default="seq_bn", show_default=True, help="Method, as a config string.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Package folder to write.")
@click.option("--name", help="Adapter name; default: the output folder's.")
@click.option("--epochs", default=3.0, show_default=True)
@click.option("--learning-rate", default=5e-4, show_default=True)
@click.option("--batch-size", default=32, show_default=True)
@click.option("--max-length", default=128, show_default=True, help="Tokens; longer texts are cut.")
@click.option("--seed", default=42, show_default=True)
@click.option("--resume", is_flag=True, help="Go on from the last finished epoch of an interrupted run.")
@click.option("--overwrite", is_flag=True, help="Replace an adapter that is in the output folder.")
@click.option("--license", default="LicenseRef-Unspecified", show_default=True, help="SPDX expression for the card.")
@click.option("--description", help="For the card.")
@click.option("--language", "languages", multiple=True, help="BCP 47 tag for the card; may be repeated.")
@click.option("--author", "authors", multiple=True, help="For the card; may be repeated.")
@click.option("--task-id", help="Name of the task for the card: sentiment, nli …")
@click.option(
    "--predictions", type=click.Path(path_type=Path), help="Also write the logits of every held-out example (JSONL)."
)
@json_option
def train(
    base: str,
    base_id: str | None,
    task: str,
    train_file: Path,
    eval_file: Path,
    text_column: str,
    label_column: str,
    adapter: str,
    output: Path,
    name: str | None,
    epochs: float,
    learning_rate: float,
    batch_size: int,
    max_length: int,
    seed: int,
    resume: bool,
    overwrite: bool,
    license: str,
    description: str | None,
    languages: tuple[str, ...],
    authors: tuple[str, ...],
    task_id: str | None,
    predictions: Path | None,
    as_json: bool,
) -> None:
    """Train an adapter and a head on a labelled file, evaluate it, and write a package folder with a filled-in card.

    \b
    Example:
      adaptergit train --base bert-base-uncased --train train.tsv --eval dev.tsv \\
          --text-column sentence --label-column label --adapter seq_bn --output out/sst2
    """
    if predictions is not None and not predictions.parent.is_dir():
        raise UsageError("no such folder", where=str(predictions.parent))
    with waiting("starting PyTorch and transformers"):
        quiet_transformers()
        from adaptergit.training import TrainSpec
        from adaptergit.training import train as run

    about = {
        "license": license,
        **({"description": description} if description else {}),
        **({"authors": list(authors)} if authors else {}),
        "task": {**({"languages": list(languages)} if languages else {}), **({"id": task_id} if task_id else {})},
    }
    spec = TrainSpec(
        base=base,
        base_id=base_id,
        task=task,
        train=train_file,
        eval=eval_file,
        text_column=text_column,
        label_column=label_column,
        adapter=adapter,
        output=output,
        name=name,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        max_length=max_length,
        seed=seed,
        resume=resume,
        overwrite=overwrite,
        about=about,
    )
    with progress() as bar:
        result = run(spec, lambda p: bar(p.stage, p.done, p.total, f"loss {p.loss:.3f}" if p.loss is not None else ""))
    if base_id is None and Path(base).is_dir():
        step(f"the card calls the base model {Path(base).resolve().name!r}: name it with --base-id if it is published")
    if predictions is not None:
        _write_predictions(predictions, result.logits.tolist())
    if as_json:
        print_json(result.to_json())
        return
    share = 100 * result.adapter_parameters / result.base_parameters
    scores = result.metrics
    click.echo(f"accuracy     {scores.accuracy:.4f}, macro F1 {scores.f1_macro:.4f} on {scores.samples} examples")
    click.echo(
        f"adapter      {result.method}, {result.adapter_parameters:,} parameters ({share:.1f} % of the base model)"
    )
    click.echo(f"written to   {result.output}   in {result.seconds:.0f} s")
    click.echo(f"next         adaptergit publish {result.output} --version 1.0.0")


def _write_predictions(path: Path, rows: list[list[float]]) -> None:
    import json

    path.write_text("".join(json.dumps({"logits": row}) + "\n" for row in rows), "utf-8")
