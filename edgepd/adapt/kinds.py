"""All deltas of a model together: made by the name of their kind, exported to an adapter, continued from one.

The idea: what concerns one weight is in delta.py; here is what a whole set of them needs to agree on, above all the one
alpha of an adapter file. The invariant: a set that is exported and loaded again means the same change.
What this does not do: decide which tensors get a delta (see decoder.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch

from edgepd.adapt.delta import Delta, LoRA, RowGain, Scale, Shift, VectorDelta
from edgepd.adapt.linear import QuantLinear
from edgepd.errors import TrainingError
from edgepd_quant.adapter_file import Adapter, LowRank, Vector

REFUSED_KINDS: Final = {
    "dora": "llama.cpp has no place for DoRA's magnitudes and refuses the file; train 'lora', or 'gain' for rows",
    "pissa": "PiSSA moves a part of the base into the adapter, but the base is quantised and shared; train 'lora'",
    "olora": "OLoRA moves a part of the base into the adapter, but the base is quantised and shared; train 'lora'",
    "loftq": "LoftQ quantises the base anew for its adapter, but the base is shared and stays as it is; train 'lora'",
}


def wrap(
    kind: str,
    linear: QuantLinear,
    *,
    rank: int,
    alpha: float,
    rs_lora: bool,
    generator: torch.Generator,
    block_size: int | None = None,
) -> Delta:
    """Return a fresh delta of this kind around a linear layer.

    `alpha` and `rs_lora` matter to 'lora' only, `block_size` (weights that share a number; None: the format's block) to
    'scale' and 'shift', `rank` to all but 'gain'. Raises TrainingError if the tensor's type cannot hold the kind, and
    with the reason for kinds that no adapter file can hold.
    """
    if rank < 1:
        raise TrainingError(f"the rank for tensor '{linear.name}' is {rank}, but it must be 1 or more")
    match kind:
        case "lora":
            return LoRA(linear, rank, alpha, generator, rs_lora=rs_lora)
        case "scale":
            return Scale(linear, rank, generator, block_size=block_size)
        case "shift":
            return Shift(linear, rank, generator, block_size=block_size)
        case "gain":
            return RowGain(linear)
    reason = REFUSED_KINDS.get(kind.lower(), "there is no such kind; possible are lora, scale, shift and gain")
    raise TrainingError(f"kind '{kind}' cannot be trained: {reason}")


def export_all(deltas: Sequence[Delta | VectorDelta]) -> tuple[float, dict[str, LowRank | Vector]]:
    """Return what an adapter file holds of these deltas: its alpha, and the arrays by name of base tensor.

    A reader multiplies each B A by alpha / r, with r of that tensor but one alpha for all. Where that is not what a
    tensor was trained with (rsLoRA with different ranks), the rest goes into B. Kinds without alpha get 0.
    """
    loras = [delta for delta in deltas if isinstance(delta, LoRA)]
    alpha = loras[0].file_alpha if loras else 0.0
    tensors = {delta.name: delta.export() for delta in deltas}
    for delta in loras:
        if delta.file_alpha != alpha:
            factors = delta.export()
            tensors[delta.name] = LowRank(factors.a, factors.b * np.float32(delta.file_alpha / alpha))
    return alpha, tensors


def load_all(deltas: Sequence[Delta | VectorDelta], adapter: Adapter) -> None:
    """Continue from an adapter; deltas that it does not name stay fresh.

    Raises TrainingError if it is of another kind, changes a tensor that none of the deltas changes, or does not fit.
    """
    by_name = {delta.name: delta for delta in deltas}
    for name, values in adapter.tensors.items():
        delta = by_name.get(name)
        if delta is None:
            raise TrainingError(
                f"the adapter to continue from changes '{name}', which is not trained now; train afresh"
            )
        if delta.kind != adapter.kind:
            raise TrainingError(f"the adapter to continue from is of kind '{adapter.kind}', not '{delta.kind}'")
        delta.load(values, adapter.alpha)
