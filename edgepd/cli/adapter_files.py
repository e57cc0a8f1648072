"""`edgepd adapters bake`, `import` and `export`: generations as files that other programs know.

The idea: the daemon reads what is imported, because it must check and keep it; what is exported this process copies by
itself, since both belong to the same user. The invariant: an exported file appears complete under its name or not at
all, and holds the very bytes whose SHA-256 the daemon keeps.
What this does not do: convert. A baked generation is an ordinary GGUF model, a live one an ordinary llama.cpp LoRA.
"""

from __future__ import annotations

import hashlib
import shlex
import shutil
from pathlib import Path
from typing import BinaryIO

import click

from edgepd.atomic import replacing
from edgepd.cli.adapter_text import size
from edgepd.cli.output import connect, json_option, show
from edgepd.cli.train import train
from edgepd.client import Json
from edgepd.errors import ConflictError, NotFoundError, RequestError, StoreError
from edgepd_quant.adapter_file import TYPE_OF_KIND
from edgepd_quant.reader import GGUFFile

COPY_BYTES = 1 << 20
SPARE_BYTES = 1 << 20  # what must stay free on the disk besides the copy

BAKEABLE = tuple(TYPE_OF_KIND[kind] for kind in ("scale", "shift", "gain"))  # what a block format can hold
READABLE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)


@click.command()
@click.option(
    "--delta", type=READABLE, metavar="FILE", help="Bake this scale, shift or gain adapter instead of training one."
)
@click.option("--wait/--no-wait", default=True, help="Wait for the verdict (default), or only start the run.")
@json_option
def bake(delta: Path | None, wait: bool, as_json: bool) -> None:
    """Make what was learned part of the model file, where it costs no speed.

    This trains from the original model on all feedback, proves the result and writes it into a copy of the model:
    the same as `edgepd train --baked`. Ends with 0 if the result went live, and with 7 if it did not.

    With --delta nothing is trained: a change that the model's own format can hold is baked into a copy of the base
    model, as a candidate that does not go live by itself.
    """
    if delta is None:
        click.get_current_context().invoke(train, baked=True, plan_only=False, wait=wait, as_json=as_json)
        return
    _check_delta(delta)
    _import(delta, as_json)


def _check_delta(path: Path) -> None:
    """Raise FormatError for what is no GGUF, and RequestError for what no block format can hold."""
    with GGUFFile.open(path) as file:
        role, kind = file.metadata.get("general.type"), file.metadata.get("adapter.type")
    if role != "adapter" or kind not in BAKEABLE:
        found = f"an adapter of type {kind!r}" if role == "adapter" else "not an adapter"
        raise RequestError(
            f"{path} is {found}, but only types {', '.join(BAKEABLE)} can be baked; "
            "edgepd adapters import takes LoRA adapters and whole models"
        )


@click.command("import")
@click.argument("file", type=READABLE)
@json_option
def import_file(file: Path, as_json: bool) -> None:
    """Take in an adapter or model FILE as a new generation, which does not go live by itself.

    FILE is a GGUF: a llama.cpp LoRA for the model that serves, a scale, shift or gain adapter of edgepd's, which is
    baked, or a whole model with the same tensors as the base. The daemon copies it, and opens it in a process of its
    own first; a file that does not fit or makes llama.cpp crash is refused.

    \b
    edgepd adapters import ~/style.gguf
    edgepd compare -b 8 "Thank Ann for the flowers."    # if it became generation 8
    edgepd adapters use 8
    """
    _import(file, as_json)


def _import(path: Path, as_json: bool) -> None:
    with connect() as client:
        made = client.import_generation(path.absolute())
    text = (
        f"generation {made['id']} ({made['kind']}) is a {made['state']}\n"
        f'see how it answers: edgepd compare -b {made["id"]} "a question"\n'
        f"make it live:       edgepd adapters use {made['id']}"
    )
    show({"generation": made}, text, as_json)


@click.command()
@click.argument("generation", type=click.IntRange(min=0), metavar="ID")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@json_option
def export(generation: int, file: Path, force: bool, as_json: bool) -> None:
    """Copy a generation to FILE, for any program that is built on llama.cpp.

    A baked generation becomes a whole GGUF model. A live one becomes a LoRA adapter, to be used on top of the model
    file that is named. The copy is checked against the SHA-256 that was noted when it was made.

    \b
    edgepd adapters export 5 mine.gguf && llama-cli -m mine.gguf
    """
    with connect() as client:
        shown = client.generation(generation)
    own = _own_file(shown)
    source, target = Path(own["path"]), file.absolute()
    _check_target(source, target, force=force)
    _copy(source, target, own["sha256"])
    done = _exported(shown, target, own["sha256"])
    show(done, _exported_text(done, shown), as_json)


def _own_file(shown: Json) -> Json:
    """Return {"path", "sha256"} of the file that a generation added. Raises RequestError, ConflictError."""
    generation, model = shown["generation"], shown["model"]
    if generation["kind"] == "base":
        raise RequestError(
            f"generation {generation['id']} is the base model itself and has no file of its own; it is {model['path']}"
        )
    own = model if generation["kind"] == "baked" else shown.get("adapter")
    if own is None or own["sha256"] is None or generation["state"] in ("training", "rejected", "deleted"):
        raise ConflictError(f"generation {generation['id']} is {generation['state']}; there is no file to export")
    return dict(own)


def _check_target(source: Path, target: Path, *, force: bool) -> None:
    """Raise NotFoundError without a source, ConflictError if the target may not be replaced, StoreError for no room."""
    if not source.is_file():
        raise NotFoundError(f"{source} is not there any more; restart the daemon, or go to another generation")
    if target.is_dir():
        raise RequestError(f"{target} is a folder; name the file to write in it, such as {target / source.name}")
    if target.exists() and target.samefile(source):
        raise ConflictError(f"{target} is the generation's own file; choose another name")
    if target.exists() and not force:
        raise ConflictError(f"{target} exists; choose another name, or replace it with --force")
    if not target.parent.is_dir():
        raise StoreError(f"{target.parent} is not a folder; make it first, or choose another name")
    needed, free = source.stat().st_size + SPARE_BYTES, shutil.disk_usage(target.parent).free
    if free < needed:
        raise StoreError(f"{target.parent} has {size(free)} free, but the copy needs {size(needed)}; make room first")


def _copy(source: Path, target: Path, sha256: str) -> None:
    """Copy a file. Raises StoreError, with nothing left behind, if the copy is not what the daemon has noted."""
    with replacing(target) as copy:
        try:
            with source.open("rb") as original:
                shutil.copyfileobj(original, copy, COPY_BYTES)
        except FileNotFoundError as error:  # cleaned up between the look and the copy
            raise NotFoundError(f"{source} is not there any more; it may just have been deleted") from error
        found = _written_sha256(copy)
        if found != sha256:
            raise StoreError(
                f"the copy of {source} has SHA-256 {found[:12]}…, not {sha256[:12]}… as noted when it was made; the "
                "file was changed or the disk is damaged, so nothing was exported"
            )


def _written_sha256(copy: BinaryIO) -> str:
    """Return the hash of what was written, read back from its beginning."""
    copy.flush()
    copy.seek(0)
    digest = hashlib.sha256()
    while piece := copy.read(COPY_BYTES):
        digest.update(piece)
    return digest.hexdigest()


def _exported(shown: Json, target: Path, sha256: str) -> Json:
    generation = shown["generation"]
    live = generation["kind"] == "live"
    model = Path(shown["model"]["path"]) if live else target
    command = ["llama-cli", "-m", str(model), *(("--lora", str(target)) if live else ())]
    return {
        "generation": generation["id"],
        "kind": generation["kind"],
        "file": str(target),
        "bytes": target.stat().st_size,
        "sha256": sha256,
        "model": str(model),
        "run": shlex.join(command),
    }


def _exported_text(done: Json, shown: Json) -> str:
    what = "a LoRA adapter" if done["kind"] == "live" else "a whole model"
    lines = [f"{done['file']}: generation {done['generation']}, {what}, {size(done['bytes'])}"]
    if done["kind"] == "live":
        lines.append(f"it goes with the model file {done['model']} and with no other")
        if shown["generation"].get("model_file"):
            lines.append("that one is a baked generation's, which edgepd may clean up one day; export it as well")
    return "\n".join([*lines, f"run it with: {done['run']}"])
