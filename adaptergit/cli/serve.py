"""``serve``."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adaptergit.cli.load import named, offline_option, policy_option, refresh_option
from adaptergit.cli.output import clean, json_option, print_json, quiet_transformers, step, waiting

if TYPE_CHECKING:
    from adaptergit.serve import Started


@click.command()
@click.argument("references", nargs=-1, required=True)
@click.option("--base", help="Folder of the base model; default: the settings', or the id in the cards.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; there is no password.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: any that is free.")
@click.option(
    "--max-batch",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="Most texts that go through the model together.",
)
@click.option(
    "--max-wait-ms",
    type=click.FloatRange(0, 60_000),
    default=5.0,
    show_default=True,
    help="For so long a text waits for others.",
)
@click.option(
    "--grace",
    type=click.IntRange(1),
    default=60,
    show_default=True,
    help="For so many seconds, once told to stop, requests that were begun are waited for.",
)
@click.option("--lock", type=click.Path(path_type=Path), help="Lock file that names the releases.")
@click.option("--device", help="Where the model goes: cpu, cuda, cuda:1 …; default: cpu.")
@policy_option
@offline_option
@refresh_option
@json_option
def serve(
    references: tuple[str, ...],
    base: str | None,
    host: str,
    port: int,
    max_batch: int,
    max_wait_ms: float,
    grace: int,
    lock: Path | None,
    device: str | None,
    policy: str | None,
    offline: bool,
    refresh: bool,
    as_json: bool,
) -> None:
    """Serve the adapters REFERENCES, all of one base model, over HTTP; every request names its adapter.

    All are verified and loaded before the port opens. NAME=REFERENCE gives an adapter another name. Stop it with
    Ctrl-C or SIGTERM: requests that were begun are answered first.

    \b
    Example:
      adaptergit serve acme/adapters@sentiment "ner=acme/adapters@ner-de>=1.2"
      curl http://127.0.0.1:8080/v1/predict -H "Content-Type: application/json" \\
          -d '{"adapter": "sentiment", "text": "a moving, beautifully shot film"}'
    """
    from adaptergit.serve import serve as run
    from adaptergit.serve.server import bound

    bound(host, port).close()  # a port that is taken is said before anything is loaded
    with waiting("starting PyTorch and transformers", quiet=as_json):
        quiet_transformers()
    wanted = [_named(one) for one in references]
    with ExitStack() as loading:
        loading.enter_context(waiting("loading", quiet=as_json))

        def open_now(facts: Started) -> None:
            loading.close()
            _started(facts, as_json)

        run(
            wanted,
            base=base,
            host=host,
            port=port,
            max_batch=max_batch,
            max_wait_ms=max_wait_ms,
            grace=grace,
            policy=policy,
            offline=offline,
            refresh=refresh,
            lock=lock,
            device=device,
            report=(lambda _: None) if as_json else step,
            started=open_now,
        )
    if not as_json:
        step("stopped")


def _named(text: str) -> str:
    """Look up a bare name in the indexes, with or without another name in front."""
    from adaptergit.serve.names import split_name

    name, reference = split_name(text)
    return named(reference) if name is None else f"{name}={named(reference)}"


def _started(facts: Started, as_json: bool) -> None:
    from adaptergit.serve.app import about

    listed = [about(one) for one in facts.service.adapters.values()]
    if as_json:
        adapters = [one.model_dump() for one in listed]
        print_json({"url": facts.url, "base_model": facts.service.base_model, "adapters": adapters})
        return
    click.echo(f"base model   {clean(facts.service.base_model)}")
    for one in listed:
        kind = one.task or "not answered: its head is of a kind that is not served"
        by = f", signed by {', '.join(one.signers)}" if one.signers else ""
        click.echo(f"{one.name:<12} {clean(one.reference)} {one.version or ''}: {kind}{clean(by)}")
    click.echo(f"serving      {facts.url}   (POST /v1/predict; /docs, /metrics, /healthz)")
