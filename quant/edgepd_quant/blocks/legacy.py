"""Formats with blocks of 32 values and one scale per block: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.

Layouts from ggml-common.h. Bytes are taken apart two at a time (int16), which the vector units do at full
speed. Multiplying an fp16 scale with a value of at most 8 bits is exact in float32, so the result is rounded
only once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgepd_quant.blocks.base import BlockFormat, half
from edgepd_quant.types import GGMLType


class Q4_0(BlockFormat, qtype=GGMLType.Q4_0):
    """block_q4_0: half d; uint8 qs[16]. Value i is the low nibble of qs[i], value 16+i the high one; (q - 8)
    d.
    """

    @classmethod
    def decode(cls, blocks: Tensor, values: Tensor) -> None:
        values.copy_(_nibbles(blocks, 2))
        values.sub_(8).mul_(half(blocks, 0))


class Q4_1(BlockFormat, qtype=GGMLType.Q4_1):
    """block_q4_1: half d; half m; uint8 qs[16]. Nibbles as in Q4_0; q d + m."""

    @classmethod
    def decode(cls, blocks: Tensor, values: Tensor) -> None:
        values.copy_(_nibbles(blocks, 4))
        values.mul_(half(blocks, 0)).add_(half(blocks, 2))


class Q5_0(BlockFormat, qtype=GGMLType.Q5_0):
    """block_q5_0: half d; uint8 qh[4]; uint8 qs[16]. Bit i of qh is the fifth bit of value i; (q - 16) d."""

    @classmethod
    def decode(cls, blocks: Tensor, values: Tensor) -> None:
        values.copy_(_nibbles(blocks, 6).bitwise_or_(_fifth_bits(blocks, 2)))
        values.sub_(16).mul_(half(blocks, 0))


class Q5_1(BlockFormat, qtype=GGMLType.Q5_1):
    """block_q5_1: half d; half m; uint8 qh[4]; uint8 qs[16]. Values as in Q5_0; q d + m."""

    @classmethod
    def decode(cls, blocks: Tensor, values: Tensor) -> None:
        values.copy_(_nibbles(blocks, 8).bitwise_or_(_fifth_bits(blocks, 4)))
        values.mul_(half(blocks, 0)).add_(half(blocks, 2))


class Q8_0(BlockFormat, qtype=GGMLType.Q8_0):
    """block_q8_0: half d; int8 qs[32]; q d."""

    @classmethod
    def decode(cls, blocks: Tensor, values: Tensor) -> None:
        values.copy_(blocks.view(torch.int8)[:, 2:])
        values.mul_(half(blocks, 0))


def _nibbles(blocks: Tensor, offset: int) -> Tensor:
    """Split the 16 bytes at `offset` into 32 values of 4 bits: all low nibbles, then all high ones; uint8
    (n, 32).
    """
    pairs = blocks.view(torch.int16)
    low = (pairs & 0x0F0F).view(torch.uint8)[:, offset : offset + 16]
    high = ((pairs >> 4) & 0x0F0F).view(torch.uint8)[:, offset : offset + 16]
    return torch.cat([low, high], dim=1)


def _fifth_bits(blocks: Tensor, offset: int) -> Tensor:
    """Spread the 32 bits of the 4 bytes at `offset` to the place of the fifth bit; uint8 (n, 32)."""
    # A table from a byte to the eight bytes it stands for, packed in one int64 so that one look-up moves all
    # eight.
    table = ((torch.arange(256)[:, None] >> torch.arange(8)) & 1).to(torch.uint8) << 4  # (256, 8)
    wide = table.view(torch.int64).view(256)
    indices = blocks[:, offset : offset + 4].reshape(-1).int()
    return wide.index_select(0, indices).view(torch.uint8).view(len(blocks), 32)
