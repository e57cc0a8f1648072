"""Several live generations become one.

The idea: the weighted sum of low-rank changes is itself one, whose rank is the sum of theirs or, recompressed, as small
as wanted (edgepd_quant.merge). What this does not do: judge the result, or make it live.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from edgepd.errors import ConflictError, RequestError
from edgepd_daemon.generation_files.checking import file_sha256
from edgepd_daemon.generations import Generations
from edgepd_daemon.known import LOADABLE
from edgepd_profiles.registry import Generation
from edgepd_quant.adapter_file import read_adapter, write_adapter
from edgepd_quant.merge import concatenate, recompress


def merge(
    generations: Generations, ids: Sequence[int], weights: Sequence[float] | None = None, rank: int | None = None
) -> Generation:
    """Merge live generations that stand on the same model file into a new candidate and return that.

    Without `weights` the result is their mean; without `rank` it is exact. Raises RequestError for numbers that do not
    belong together, NotFoundError, ConflictError for generations that cannot be merged, AdapterError or StoreError.
    """
    if len(ids) < 2 or len(set(ids)) < len(ids):
        raise RequestError(f"a merge takes at least two different generations, not {_joined(ids)}")
    used = [1.0 / len(ids)] * len(ids) if weights is None else list(weights)
    if len(used) != len(ids):
        raise RequestError(f"there are {len(ids)} generations but {len(used)} weights; give one for each, or none")
    parts = [generations.get(number) for number in ids]
    _check_together(parts)
    merged = concatenate([read_adapter(generations.directory / str(part.adapter_file)) for part in parts], used)
    if rank is not None:
        merged = recompress(merged, rank)
    path = generations.directory / f"merged-{secrets.token_hex(6)}.gguf"
    write_adapter(path, merged)
    try:
        return generations.add(
            parent=generations.active().id,
            kind="live",
            adapter_file=path.name,
            model_file=parts[0].model_file,
            file_sha256=file_sha256(path),
            example_ids=list(dict.fromkeys(example for part in parts for example in part.example_ids)),
            config={"origin": "merged", "merged": list(ids), "weights": used, "rank": rank},
            reason=f"merged from generations {_joined(ids)}; nobody has measured whether it helps",
        )
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _check_together(parts: Sequence[Generation]) -> None:
    for part in parts:
        if part.kind != "live" or part.state not in LOADABLE:
            raise ConflictError(
                f"generation {part.id} is {part.kind} and {part.state}; only live ones that still have their files "
                "can be merged"
            )
    if len({part.model_file for part in parts}) > 1:
        on = ", ".join(f"{part.id} on {part.model_file or 'the base'}" for part in parts)
        raise ConflictError(f"only generations on one model file can be merged, but these are {on}")


def _joined(ids: Sequence[int]) -> str:
    return " and ".join(str(number) for number in ids) or "none"
