"""Generations as the API shows them: with their files, their lineage, a verdict in one sentence, and differences.

What this does not do: read the files (see generation_files/comparing.py), or decide anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from edgepd_daemon.generations import Generations
from edgepd_profiles.registry import Generation

Json = dict[str, Any]

# What a state means to the user; the reason follows.
_VERDICTS = {
    "training": "it is being trained",
    "candidate": "it waits to be used",
    "rejected": "it was rejected and does not serve",
    "retired": "it has served before and can serve again",
    "stale": "it was taught what has been forgotten since, so it never serves again and its files are gone",
    "deleted": "it was deleted, its files are gone",
}


def described(generations: Generations, generation: Generation) -> Json:
    """Return all that the registry has on a generation, with its own file and whether it is pending."""
    path = generations.own_file(generation)
    try:
        size = path.stat().st_size if path else None
    except FileNotFoundError:
        path, size = None, None
    file = str(path) if path else None
    return asdict(generation) | {"pending": generation.pending, "bytes": size, "file": file}


def shown(generations: Generations, generation: Generation) -> Json:
    """Return a generation with what it stands on, what stands on it, and the verdict."""
    family = {g.id: g for g in generations.listing()}
    lineage: list[int] = []
    step = generation.parent
    while step is not None and step in family:
        lineage.append(step)
        step = family[step].parent
    adapter = generations.adapter_path(generation)
    return {
        "generation": described(generations, generation),
        "lineage": lineage,
        "children": [g.id for g in family.values() if g.parent == generation.id],
        "verdict": verdict(generation),
        "example_count": len(generation.example_ids),
        "model": {"path": str(generations.model_path(generation)), "sha256": _model_sha256(generation, family)},
        "adapter": {"path": str(adapter), "sha256": generation.file_sha256} if adapter else None,
    }


def verdict(generation: Generation) -> str:
    """Say in one sentence what became of a generation and why."""
    if generation.kind == "base":
        state = "it serves" if generation.state == "active" else "it can serve again"
        return f"the base model itself, which has learned nothing; {state}"
    if generation.state == "active":
        trust = "is pending until it has answered in good health" if generation.pending else "is confirmed"
        state = f"it serves and {trust}"
    else:
        state = _VERDICTS[generation.state]
    return f"{state}: {generation.reason}" if generation.reason else state


def differences(a: Generation, b: Generation) -> Json:
    """Return what the registry has on `b` and not on `a`, and the other way round. Ids keep their order."""
    before, after = set(a.example_ids), set(b.example_ids)
    return {
        "a": a.id,
        "b": b.id,
        "examples": {
            "added": [example for example in b.example_ids if example not in before],
            "removed": [example for example in a.example_ids if example not in after],
            "kept": len(before & after),
        },
        "config": _changed(a.config, b.config),
        "scores": _changed(a.scores, b.scores),
    }


def _changed(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {key: [a.get(key), b.get(key)] for key in dict.fromkeys((*a, *b)) if a.get(key) != b.get(key)}


def _model_sha256(generation: Generation, family: Mapping[int, Generation]) -> str | None:
    """Return the hash of a generation's model file; None where it was never known, as that of a run that failed."""
    if generation.model_file is None and generation.kind != "baked":
        return generation.base_sha256
    of = [g.file_sha256 for g in family.values() if g.kind == "baked" and g.model_file == generation.model_file]
    return next((sha256 for sha256 in of if sha256), None)
