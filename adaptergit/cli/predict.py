"""``predict``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from adaptergit.cli.load import index_option, lock_option, named_adapter, offline_option, policy_option, refresh_option
from adaptergit.cli.output import clean, json_option, print_json, progress, quiet_transformers, waiting
from adaptergit.cli.train import check_there, chosen_columns
from adaptergit.errors import UsageError

_SHOWN = 100
"""Characters of what was asked."""


@click.command()
@click.argument("reference")
@click.argument("more", metavar="[TEXT]...", nargs=-1)
@click.option("--text", "texts", multiple=True, help="The same as TEXT; may be repeated.")
@click.option("--pair", "pairs", multiple=True, help="What goes with each text: second text, context, choices (a|b).")
@click.option("--file", "file", type=click.Path(path_type=Path), help="File of any kind that training reads.")
@click.option("--stdin", "suffix", default="txt", show_default=True, help="What standard input is: jsonl, tsv, conll …")
@click.option("--text-column", help="Column of the text; default: the one in training.")
@click.option("--pair-column", help="Column of a second text; default: the one in training.")
@click.option("--label-column", help="Also score the predictions against this column.")
@click.option("--column", "columns", multiple=True, help="Any other column, as ROLE=NAME: question=q; may be repeated.")
@click.option("--score", is_flag=True, help="Also score them against the column that training learnt from.")
@click.option("--top-k", type=click.IntRange(1), help="Guesses for each [MASK].  [default: 5]")
@click.option(
    "--max-new-tokens", type=click.IntRange(1), help="The most tokens to write.  [default: 32, or as in training]"
)
@click.option("--base", help="Folder of the base model; default: the settings', or the id in the card.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Texts at once.")
@policy_option
@offline_option
@refresh_option
@index_option
@lock_option
@json_option
@click.option("--json-lines", is_flag=True, help="Print one JSON object a line, one for each row.")
def predict(
    reference: str,
    more: tuple[str, ...],
    texts: tuple[str, ...],
    pairs: tuple[str, ...],
    file: Path | None,
    suffix: str,
    text_column: str | None,
    pair_column: str | None,
    label_column: str | None,
    columns: tuple[str, ...],
    score: bool,
    top_k: int | None,
    max_new_tokens: int | None,
    base: str | None,
    batch_size: int,
    policy: str | None,
    offline: bool,
    refresh: bool,
    index: Path | None,
    lock: Path | None,
    as_json: bool,
    json_lines: bool,
) -> None:
    """Load the adapter REFERENCE and answer every TEXT, line of standard input, or row of a file.

    What is asked depends on the adapter's task: a text, a pair, a sentence, question and context, text and choices, a
    text with [MASK] in it, a beginning to go on from, the path of an image. On a line, tabs stand between texts; empty
    lines are left out.

    \b
    Example:
      adaptergit predict acme/adapters@sentiment "a moving, beautifully shot film"
      adaptergit predict acme/adapters@squad "Who wrote it?" --pair "It was written by Ada."
      adaptergit predict acme/adapters@ner --file dev.conll --score --json
      cat reviews.txt | adaptergit predict acme/adapters@sentiment --json-lines
    """
    chosen = chosen_columns(columns, text=text_column, pair=pair_column, label=label_column)
    if label_column is not None and (more or texts):
        raise UsageError("--label-column needs --file, or standard input with columns")
    source = _source((*more, *texts), pairs, file, suffix)
    reference = named_adapter(reference)
    with waiting("starting PyTorch and transformers"):
        quiet_transformers()
        from adaptergit.predict import predict as run

    # A few texts show that something is going on, a file how far it is.
    with waiting(f"loading {reference}", quiet=file is not None), progress(quiet=file is None) as bar:
        result = run(
            reference,
            **source,
            columns=chosen,
            score=score,
            top_k=top_k,
            max_new_tokens=max_new_tokens,
            base=base,
            batch_size=batch_size,
            policy=policy,
            offline=offline,
            refresh=refresh,
            index=index,
            lock=lock,
            report=lambda done, total: bar("predicting", done, total, ""),
        )
    if as_json:
        print_json(result.to_json())
        return
    for asked, said in zip(result.asked, result.said, strict=True):
        if json_lines:
            print_json(said.to_json(), indent=None)
            continue
        for row in said.rows(" ".join(asked.split())[:_SHOWN]):
            click.echo("\t".join(clean(field) for field in row))
    if result.metrics is not None:
        click.echo(str(result.metrics), err=True)


def _source(texts: Sequence[str], pairs: Sequence[str], file: Path | None, suffix: str) -> dict[str, Any]:
    """Return where questions come from, as the function takes it."""
    if list(texts) == ["-"]:
        texts = ()
    if texts and file is not None:
        raise UsageError("give either texts or --file")
    if pairs and len(pairs) != len(texts):
        raise UsageError(f"{len(pairs)} times --pair for {len(texts)} texts", hint="one for each, in their order")
    if texts:
        return {"texts": list(zip(texts, pairs, strict=True)) if pairs else list(texts)}
    if file is not None and str(file) != "-":
        check_there(file)
        return {"file": file}
    content = b"" if sys.stdin.isatty() else sys.stdin.buffer.read()
    if not content.strip():
        raise UsageError("there is nothing to answer", hint="give texts, --file, or lines on standard input")
    return {"content": (f".{suffix.lstrip('.')}", content)}
