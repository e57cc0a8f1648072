"""What differs between the tensors of two generations.

The idea: on one model file only their adapters can differ; on two, the model files are compared and, if the adapters
are not the same, those too. What this does not do: say which generation is better.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from edgepd_daemon.generations import Generations
from edgepd_daemon.known import LOADABLE
from edgepd_profiles.registry import Generation
from edgepd_profiles.rows import finite
from edgepd_quant.adapter_file import Adapter, read_adapter
from edgepd_quant.difference import Difference, compare_adapters, compare_models

SHOWN = 20


def changed_tensors(generations: Generations, a: Generation, b: Generation) -> list[dict[str, Any]]:
    """Return the tensors that differ most, the largest relative change first; none if files are gone.

    Raises AdapterError or FormatError for files that cannot be read.
    """
    if a.state not in LOADABLE or b.state not in LOADABLE:
        return []
    found: list[Difference] = []
    if a.model_file != b.model_file:
        found += compare_models(generations.model_path(a), generations.model_path(b))
    if a.adapter_file != b.adapter_file:
        found += compare_adapters(_adapter(generations, a), _adapter(generations, b))
    found.sort(key=lambda difference: (-difference.relative, difference.tensor))
    return [dict(finite(asdict(difference))) for difference in found[:SHOWN]]


def _adapter(generations: Generations, generation: Generation) -> Adapter | None:
    path = generations.adapter_path(generation)
    return read_adapter(path) if path else None
