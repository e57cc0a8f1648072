"""The unquantised types. A block is a single value."""

from __future__ import annotations

import torch
from torch import Tensor

from edgepd_quant.blocks.base import BlockFormat
from edgepd_quant.types import GGMLType


class F32(BlockFormat, qtype=GGMLType.F32):
    """IEEE single precision."""

    @classmethod
    def decode(cls, blocks: Tensor, values: Tensor) -> None:
        values.copy_(blocks.view(torch.float32))


class F16(BlockFormat, qtype=GGMLType.F16):
    """IEEE half precision."""

    @classmethod
    def decode(cls, blocks: Tensor, values: Tensor) -> None:
        values.copy_(blocks.view(torch.float16))


class BF16(BlockFormat, qtype=GGMLType.BF16):
    """The upper half of a single-precision number."""

    @classmethod
    def decode(cls, blocks: Tensor, values: Tensor) -> None:
        values.copy_(blocks.view(torch.bfloat16))
