"""Decode quantised blocks with torch: one class per ggml type, found with `block_format`.

The idea: training reads the weights of the quantised file as they are, a layer at a time, so decoding must
be about as fast as memory. The invariant: the values are bit-equal to gguf-py's `gguf.quants.dequantize`.
What this does not do: quantise, or touch files. This is the only part of edgepd_quant that imports torch.
"""

from __future__ import annotations

# Imported for their effect: each class registers itself.
from edgepd_quant.blocks import floats, kquants, legacy
from edgepd_quant.blocks.base import BlockFormat, block_format

__all__ = ["BlockFormat", "block_format", "floats", "kquants", "legacy"]
