"""``train`` and ``eval``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptergit.base_place import place_of
from adaptergit.cli.load import index_option, lock_option, named_adapter, offline_option, policy_option, refresh_option
from adaptergit.cli.output import json_option, print_json, progress, quiet_transformers, step, waiting
from adaptergit.errors import StorageError, UsageError, no_file
from adaptergit.package.card import UNSPECIFIED, is_language, wrong_license

if TYPE_CHECKING:
    from adaptergit.training import TrainResult, TrainSpec
    from adaptergit.training.sweep import Sweep

_file = click.Path(path_type=Path)
_text_column = click.option("--text-column", help="Column of the text; default: the task's own name for it.")
_pair_column = click.option("--pair-column", help="Column of a second text.")
_label_column = click.option("--label-column", help="Column of the label; default: the task's own name for it.")
_WIDE = 1000
_MISSING = {
    "--base": "name the base model with --base bert-base-uncased",
    "--train": "name examples with --train train.csv",
    "--eval": "name held-out examples with --eval dev.csv",
    "--output": "name the folder to write with --output out/sst2",
}
_columns = click.option(
    "--column", "columns", multiple=True, help="Any other column, as ROLE=NAME: question=q; may be repeated."
)


@click.command()
@click.option("--base", help="Folder of the base model, or its id: in the settings, or of Hugging Face.")
@click.option(
    "--base-id", help="What the card calls the base model, where --base is a folder; default: the settings' id."
)
@click.option("--task", default="text-classification", show_default=True, help="What to learn: see above.")
@click.option("--train", "train_file", type=_file, help="Data file, or folder of images.")
@click.option("--eval", "eval_file", type=_file, help="Held-out examples, same columns.")
@_text_column
@_pair_column
@_label_column
@_columns
@click.option(
    "--adapter", "adapters", multiple=True, help="Method, as a config string; may be repeated.  [default: seq_bn]"
)
@click.option("--output", type=_file, help="Package folder to write; of several runs, the folder of their folders.")
@click.option("--name", help="Adapter name; default: the output folder's.")
@click.option(
    "--epochs",
    type=click.FloatRange(0, min_open=True),
    default=3.0,
    show_default=True,
    help="Times that every example is seen; 0.5 will do, too.",
)
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), help="Default: that of the method's paper.")
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="Examples for one step, on all processes together.",
)
@click.option(
    "--max-length",
    type=click.IntRange(1),
    default=128,
    show_default=True,
    help="Tokens; longer texts are cut, or come in pieces.",
)
@click.option("--seed", "seeds", type=int, multiple=True, help="May be repeated.  [default: 42]")
@click.option("--sweep", multiple=True, help="FIELD=V1,V2: train with each value of a method's field; may be repeated.")
@click.option(
    "--early-stopping", "patience", type=click.IntRange(1), help="Stop after so many epochs without a better score."
)
@click.option("--validation", type=_file, help="What early stopping looks at; default: a tenth of --train.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help="What is computed in; the adapter itself stays fp32.",
)
@click.option("--fsdp", is_flag=True, help="Shard the model over the processes of torchrun or accelerate launch.")
@click.option("--deepspeed", type=_file, help="DeepSpeed's configuration file, passed on.")
@click.option("--runs", type=_file, help="TOML file with several runs, in place of the options above.")
@click.option("--resume", is_flag=True, help="Go on with interrupted runs from their last finished epoch.")
@click.option("--overwrite", is_flag=True, help="Replace an adapter that is in the output folder.")
@click.option("--license", default=UNSPECIFIED, show_default=True, help="SPDX expression for the card.")
@click.option("--description", help="For the card.")
@click.option("--language", "languages", multiple=True, help="BCP 47 tag for the card; may be repeated.")
@click.option("--author", "authors", multiple=True, help="For the card; may be repeated.")
@click.option("--task-id", help="Name of the task for the card: sentiment, nli …")
@click.option("--predictions", type=_file, help="Also write what the model says to every held-out example (JSONL).")
@json_option
def train(
    base: str | None,
    base_id: str | None,
    task: str,
    train_file: Path | None,
    eval_file: Path | None,
    text_column: str | None,
    pair_column: str | None,
    label_column: str | None,
    columns: tuple[str, ...],
    adapters: tuple[str, ...],
    output: Path | None,
    name: str | None,
    epochs: float,
    learning_rate: float | None,
    batch_size: int,
    max_length: int,
    seeds: tuple[int, ...],
    sweep: tuple[str, ...],
    patience: int | None,
    validation: Path | None,
    precision: str,
    fsdp: bool,
    deepspeed: Path | None,
    runs: Path | None,
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
    """Train an adapter and a head on a file, evaluate it, and write a package folder with a filled-in card.

    \b
    Tasks and what their files hold (CSV, TSV, JSONL and):
      text-classification         text, label (--pair-column: two texts)
      multi-label-classification  text, label (a list, or with | between labels)
      text-regression             text, label (a number)
      token-classification        tokens, tags; CoNLL (.conll), CoNLL-U (.conllu)
      question-answering          question, context, answers; SQuAD's .json
      multiple-choice             text, choices, label
      fill-mask, text-generation  text; .txt: language adapters
      text2text-generation        text, target
      image-classification        image, label; a folder of folders of images

    \b
    Example:
      adaptergit train --base bert-base-uncased --train train.tsv --eval dev.tsv \\
          --text-column sentence --label-column label --adapter seq_bn --output out/sst2
      adaptergit train --base bert-base-uncased --train train.tsv --eval dev.tsv \\
          --sweep reduction_factor=2,16,64 --seed 1 --seed 2 --output out/sweep
      torchrun --nproc-per-node 2 -m adaptergit train … (the same options)
    """
    if predictions is not None and not predictions.parent.is_dir():
        raise UsageError("no such folder", where=str(predictions.parent), hint="make it, or name a file elsewhere")
    read = [one.resolve() for one in (train_file, eval_file, validation, runs) if one is not None]
    if predictions is not None and predictions.resolve() in read:
        what = "this file is read: --predictions would write over it"
        raise UsageError(what, where=str(predictions), hint="name another")
    if (wrong := wrong_license(license)) is not None:
        raise UsageError(f"--license {wrong}")
    for tag in languages:
        if not is_language(tag):
            raise UsageError(f"--language {tag!r} is no BCP 47 tag", hint="en, de, sr-Latn: one option for each")
    check_there(train_file, eval_file, validation, deepspeed, runs)
    given = {"--base": base, "--train": train_file, "--eval": eval_file, "--output": output}
    if runs is None and (missing := [option for option, value in given.items() if value is None]):
        raise UsageError(f"{missing[0]} is missing", hint=f"{_MISSING[missing[0]]}, or a file of runs with --runs")
    with waiting("starting PyTorch and transformers"):
        quiet_transformers()
        from adaptergit.training import TrainSpec
        from adaptergit.training.sweep import PLOT, read_runs, train_all, variations

    if runs is not None:
        specs, plot = read_runs(runs), runs.with_suffix(".svg")
        specs = [replace(s, resume=s.resume or resume, overwrite=s.overwrite or overwrite) for s in specs]
    else:
        assert base is not None
        assert train_file is not None
        assert eval_file is not None
        assert output is not None
        spec = TrainSpec(
            base=base,
            base_id=base_id,
            task=task,
            train=train_file,
            eval=eval_file,
            columns=chosen_columns(columns, text=text_column, pair=pair_column, label=label_column),
            output=output,
            name=name,
            epochs=epochs,
            learning_rate=learning_rate,
            batch_size=batch_size,
            max_length=max_length,
            patience=patience,
            validation=validation,
            precision=precision,
            fsdp=fsdp,
            deepspeed=deepspeed,
            resume=resume,
            overwrite=overwrite,
            about={
                "license": license,
                **({"description": description} if description else {}),
                **({"authors": list(authors)} if authors else {}),
                "task": {
                    **({"languages": list(languages)} if languages else {}),
                    **({"id": task_id} if task_id else {}),
                },
            },
        )
        specs, plot = variations(spec, adapters=adapters, seeds=seeds, over=_swept(sweep)), output / PLOT
    if predictions is not None and len(specs) > 1:
        raise UsageError(
            "--predictions is for one run",
            hint=f"afterwards, of each run: adaptergit predict FOLDER --file {specs[0].eval} --json-lines",
        )
    # stdout is for the answer; DeepSpeed writes there, too.
    with redirect_stdout(sys.stderr), progress(quiet=not _first()) as bar, _going_on(specs):
        several = len(specs) > 1
        result = train_all(
            specs,
            plot=plot if several else None,
            report=lambda spec, p: bar(
                f"{spec.adapter_name}: {p.stage}" if several else p.stage,
                p.done,
                p.total,
                f"loss {p.loss:.3f}" if p.loss is not None else "",
            ),
        )
    if not _first():
        return
    if base_id is None and base is not None and place_of(base).id is None:
        step(f"the card calls the base model {Path(base).resolve().name!r}: name it with --base-id if it is published")
    if predictions is not None and not result.results[0].answers:
        hint = f"adaptergit predict {specs[0].output} --file {specs[0].eval} --json-lines"
        raise UsageError(
            "the run was finished before: its answers were not kept", where=str(specs[0].output), hint=hint
        )
    if predictions is not None:
        kind = specs[0].task_class.of({}, None)
        _write_predictions(predictions, [kind.plain(answer) for answer in result.results[0].answers])
    if as_json:
        print_json(result.to_json() if several else result.results[0].to_json())
    elif several:
        _show_sweep(result)
    else:
        _show(result.results[0], specs[0])


@click.command("eval")
@click.argument("reference")
@click.option("--data", "--file", "data", required=True, type=_file, help="Held-out examples.")
@_text_column
@_pair_column
@_label_column
@_columns
@click.option("--base", help="Folder of the base model; default: the settings', or the id in the card.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Examples at once.")
@policy_option
@offline_option
@refresh_option
@index_option
@lock_option
@json_option
def evaluate(
    reference: str,
    data: Path,
    text_column: str | None,
    pair_column: str | None,
    label_column: str | None,
    columns: tuple[str, ...],
    base: str | None,
    batch_size: int,
    policy: str | None,
    offline: bool,
    refresh: bool,
    index: Path | None,
    lock: Path | None,
    as_json: bool,
) -> None:
    """Score the adapter REFERENCE on a file, and say whether its card's numbers are reproduced.

    Columns and length are those it was trained with, unless you say otherwise. Where the file is the very one that the
    card names by its sha256, the exit code is 8 if a number is not reproduced.

    \b
    Example:
      adaptergit eval acme/adapters@sst2 --data dev.tsv
    """
    check_there(data)
    reference = named_adapter(reference)
    with waiting("starting PyTorch and transformers"):
        quiet_transformers()
        from adaptergit.evaluation import evaluate as run

    with progress(quiet=as_json) as bar:
        found = run(
            reference,
            data,
            columns=chosen_columns(columns, text=text_column, pair=pair_column, label=label_column),
            base=base,
            batch_size=batch_size,
            policy=policy,
            offline=offline,
            refresh=refresh,
            index=index,
            lock=lock,
            report=lambda done, total: bar("evaluating", done, total, ""),
        )
    if as_json:
        print_json(found.to_json())
    else:
        click.echo(str(found.metrics))
        click.echo(found.verdict)
    if found.reproduced is False:
        raise SystemExit(8)


def check_there(*paths: Path | None) -> None:
    """Say that a file is missing before PyTorch starts.

    Raises:
        NotFoundError: One is.
    """
    for path in paths:
        if path is not None and not path.exists():
            raise no_file(path)


def chosen_columns(pairs: Sequence[str], **named: str | None) -> dict[str, str]:
    """Return columns by role from options."""
    found = {role: column for role, column in named.items() if column is not None}
    for pair in pairs:
        role, equals, column = pair.partition("=")
        if not equals or not role or not column:
            raise UsageError(f"--column {pair!r}", hint="write ROLE=NAME, for example question=q")
        found[role] = column
    return found


@contextmanager
def _going_on(specs: Sequence[TrainSpec]) -> Iterator[None]:
    """Whoever stops a training is told how it goes on, if there is something to go on from."""
    try:
        yield
    except (KeyboardInterrupt, StorageError) as stopped:
        from adaptergit.training.resume import begun, last_checkpoint

        if any(begun(spec) if len(specs) > 1 else last_checkpoint(spec) for spec in specs):
            stopped.add_note("'adaptergit train … --resume' goes on from the last finished epoch")
        raise


def _swept(options: Sequence[str]) -> dict[str, list[str]]:
    found = {}
    for option in options:
        name, equals, values = option.partition("=")
        if not equals or not name or not all(value.strip() for value in values.split(",")):
            raise UsageError(f"--sweep {option!r}", hint="write FIELD=V1,V2, for example reduction_factor=2,16,64")
        found[name] = [value.strip() for value in values.split(",")]
    return found


def _show(result: TrainResult, spec: TrainSpec) -> None:
    share = 100 * result.adapter_parameters / result.base_parameters
    click.echo(f"scores       {result.metrics}")
    click.echo(
        f"adapter      {result.method}, {result.adapter_parameters:,} parameters ({share:.1f} % of the base model)"
    )
    for note in result.notes:
        click.echo(f"note         {note}")
    click.echo(f"written to   {result.output}   in {result.seconds:.0f} s")
    click.echo(f"next         adaptergit publish {shlex.quote(str(result.output))} --version 1.0.0")


def _show_sweep(result: Sweep) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("task", "data", "adapter", "metric"):
        table.add_column(title)
    for title in ("score", "± seeds", "parameters", "bytes", "seconds"):
        table.add_column(title, justify="right")
    for one in result.summaries:
        numbers = (f"{one.adapter_parameters:,}", f"{one.adapter_bytes:,}", f"{one.seconds:.0f}")
        deviation = f"{one.deviation:.4f}" if one.runs > 1 else ""
        table.add_row(one.task, one.data, one.adapter, one.metric, f"{one.mean:.4f}", deviation, *numbers)
    # Numbers are not cut where nobody looks at columns.
    Console(width=None if sys.stdout.isatty() else _WIDE).print(table)
    click.echo(f"plot         {result.plot}")


def _write_predictions(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    import json

    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def _first() -> bool:
    import os

    return int(os.environ.get("RANK", "0")) == 0
