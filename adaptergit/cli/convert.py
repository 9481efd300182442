"""``convert`` and ``export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptergit.cli.load import index_option, lock_option, named, offline_option, policy_option
from adaptergit.cli.output import clean, json_option, print_json, quiet_transformers, step, waiting
from adaptergit.package.local import no_folder
from adaptergit.reference import expand, is_path

if TYPE_CHECKING:
    from adaptergit.convert import Converted

_base = click.option("--base", help="Folder or id of the base model; default: the settings', or what the source names.")
_model_class = click.option(
    "--model-class", help="Class of transformers that makes the base model: AutoModelForCausalLM …"
)
_name = click.option("--name", help="Name of the adapter; default: its own.")
_no_head = click.option("--no-head", is_flag=True, help="Leave heads out: PEFT has none beside the model.")
_pickle = click.option(
    "--allow-pickle", is_flag=True, help="Read pickled weights too, in a process of its own with limits."
)


@click.command()
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST", type=click.Path(path_type=Path))
@click.option(
    "--to", type=click.Choice(["adaptergit", "adapterhub", "peft", "vllm"]), required=True, help="Whose format."
)
@_base
@_model_class
@_name
@_no_head
@_pickle
@click.option("--license", help="SPDX expression for the card.")
@click.option("--description", help="For the card.")
@policy_option
@offline_option
@index_option
@lock_option
@json_option
def convert(
    source: str,
    target: Path,
    to: str,
    base: str | None,
    model_class: str | None,
    name: str | None,
    no_head: bool,
    allow_pickle: bool,
    license: str | None,
    description: str | None,
    policy: str | None,
    offline: bool,
    index: Path | None,
    lock: Path | None,
    as_json: bool,
) -> None:
    """Write the adapter, fusion, head or set-up in SRC to the new folder DST, in the format of another library.

    SRC is a reference, a package folder, a folder of AdapterHub's or PEFT's, or a zip file that AdapterHub served. What
    has no exact equivalent in the other format is refused, and nothing is written.

    \b
    Example:
      adaptergit convert ./old-checkpoint out/sst2 --to adaptergit --base bert-base-uncased --license Apache-2.0
      adaptergit convert pfeiffer.zip out/sst2 --to adaptergit --allow-pickle
      adaptergit convert out/sst2 for-peft --to peft --no-head
    """
    about = {key: value for key, value in (("license", license), ("description", description)) if value is not None}
    fetching = {"policy": policy, "offline": offline, "index": index, "lock": lock}
    options = {
        "base": base,
        "model_class": model_class,
        "name": name,
        "head": not no_head,
        "allow_pickle": allow_pickle,
    }
    _run(source, target, to, as_json, {**options, "about": about, **fetching})


@click.command()
@click.argument("source", metavar="REFERENCE")
@click.argument("target", metavar="DST", type=click.Path(path_type=Path))
@click.option(
    "--to",
    type=click.Choice(["vllm", "peft", "adapterhub"]),
    required=True,
    help="Who will read it; adapterhub: the adapters library.",
)
@_base
@_model_class
@_name
@_no_head
@policy_option
@offline_option
@index_option
@lock_option
@json_option
def export(
    source: str,
    target: Path,
    to: str,
    base: str | None,
    model_class: str | None,
    name: str | None,
    no_head: bool,
    policy: str | None,
    offline: bool,
    index: Path | None,
    lock: Path | None,
    as_json: bool,
) -> None:
    """Write the adapter REFERENCE, or a package folder, to the new folder DST, for another library to use.

    The same as convert, for what is published: a release is fetched and verified first.

    \b
    Example:
      adaptergit export acme/adapters@chat --to vllm chat-lora
      adaptergit export acme/adapters@sst2 --to adapterhub for-adapters
    """
    fetching = {"policy": policy, "offline": offline, "index": index, "lock": lock}
    options = {"base": base, "model_class": model_class, "name": name, "head": not no_head}
    _run(source, target, to, as_json, {**options, **fetching})


def _run(source: str, target: Path, to: str, as_json: bool, options: dict[str, Any]) -> None:
    source = named(source)
    if is_path(source) and not expand(source).exists():
        raise no_folder(expand(source))
    with waiting("starting PyTorch and transformers", quiet=as_json):
        quiet_transformers()
        from adaptergit.convert import convert as run
    with waiting(f"converting {source}", quiet=as_json):
        done = run(source, target, to=to, **options)
    sizes = {name: (done.path / name).stat().st_size for name in done.files}
    then = _next(done, options["base"])
    if as_json:
        held = {"adapters": done.adapters, "fusions": done.fusions, "heads": done.heads}
        print_json({"path": done.path, "format": done.format, **held, "files": sizes, "next": then})
        return
    for name, size in sizes.items():
        click.echo(f"  {size:>12,}  {clean(name)}")
    click.echo(f"wrote {done.path} ({done.format})")
    step(f"next: {clean(then)}")


def _next(done: Converted, base: str | None) -> str:
    """Say what to do with what was written."""
    if done.format == "vllm":
        from adaptergit.formats.vllm import serve_command

        return serve_command(done.path, done.adapters[0], base)
    if done.format == "adaptergit":
        return f"adaptergit publish {done.path} --version 1.0.0"
    if done.format == "peft":
        return f'peft.PeftModel.from_pretrained(model, "{done.path}")'
    setup = (done.path / "adapter_setup.json").is_file()
    return f'model.load_{"adapter_setup" if setup else "adapter"}("{done.path}")'
