"""``demo``."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from adaptergit.cli.output import print_json, quiet_transformers, waiting


@click.command()
@click.option(
    "--folder", type=click.Path(path_type=Path), help="Empty folder to work in and keep; default: a temporary one."
)
@click.option(
    "--report",
    "report_file",
    type=click.Path(path_type=Path),
    default=Path("demo-report.json"),
    show_default=True,
    help="Where the numbers go, as JSON.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON instead of tables.")
def demo(folder: Path | None, report_file: Path, as_json: bool) -> None:
    """Train, publish, load and attack an adapter, for real, on this machine.

    Starts a git server on loopback, trains a Pfeiffer adapter over MiniLM on Rotten Tomatoes sentences, publishes it
    signed, loads it in a fresh process, and shows three attacks refused. Takes about five minutes on 2 cores and needs
    the packages of adaptergit[demo]. Exit code 1 if any promise does not hold.

    \b
    Example:
      adaptergit demo --folder demo-out
    """
    from rich.console import Console

    from adaptergit.demo import failures, run_demo

    with waiting("starting PyTorch and transformers", quiet=as_json):
        quiet_transformers()
    console = Console(stderr=True, highlight=False)
    with tempfile.TemporaryDirectory(prefix="adaptergit-demo-") as temporary:
        result = run_demo(folder or Path(temporary) / "demo", lambda line: console.print(f"[bold cyan]▸[/] {line}"))
    broken = failures(result)
    result["failures"] = broken
    report_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if as_json:
        print_json(result)
    else:
        _show(result, report_file)
    if broken:
        for promise in broken:
            console.print(f"[bold red]not held:[/] {promise}")
        sys.exit(1)


def _show(result: dict[str, Any], report_file: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    quality = Table(title=f"Accuracy on {result['samples']:,} held-out sentences", title_justify="left")
    quality.add_column("")
    quality.add_column("accuracy", justify="right")
    quality.add_row("majority class", f"{result['baseline_majority']:.3f}")
    quality.add_row("untrained adapter and head", f"{result['baseline_untrained']:.3f}")
    quality.add_row("loaded in a fresh process", f"[bold]{result['accuracy']:.3f}[/]")
    console.print(quality)
    console.print(
        f"  the trainer's logits and the fresh process's differ by {result['logits_max_difference']:.1e} at most\n"
    )

    sizes = Table(title="Bytes", title_justify="left")
    sizes.add_column("")
    sizes.add_column("bytes", justify="right")
    sizes.add_column("share", justify="right")
    base, repository = result["base_bytes"], result["repository_bytes"]
    sizes.add_row("base model", f"{base:,}", "")
    sizes.add_row(
        "adapter package",
        f"{result['adapter_bytes']:,}",
        f"{100 * result['adapter_bytes'] / base:.2f} % of the base model",
    )
    sizes.add_row("repository on the server", f"{repository:,}", "")
    sizes.add_row(
        "on the wire, first load",
        f"{result['wire_bytes']:,}",
        f"{100 * result['wire_bytes'] / repository:.1f} % of the repository, {result['wire_requests']} requests",
    )
    sizes.add_row("on the wire, second load", f"{result['second_load_wire_bytes']:,}", "")
    console.print(sizes)

    attacks = Table(title="Attacks", title_justify="left")
    attacks.add_column("what was done")
    attacks.add_column("answer")
    attacks.add_column("why", overflow="fold")
    for name, attack in result["refusals"].items():
        answer = f"[green]refused[/] ({attack['type']})" if attack["refused"] else "[bold red]accepted[/]"
        attacks.add_row(name, answer, str(attack["message"]))
    console.print(attacks)

    times = Table(title="Time", title_justify="left")
    times.add_column("step")
    times.add_column("seconds", justify="right")
    for name, seconds in result["seconds"].items():
        times.add_row(name.replace("_", " "), f"{seconds:.1f}")
    times.add_row("adaptergit.load, first", f"{result['load_seconds']:.2f}")
    times.add_row("adaptergit.load, second", f"{result['second_load_seconds']:.2f}")
    console.print(times)
    console.print(f"report written to {report_file}")
