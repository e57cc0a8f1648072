"""Formats with superblocks of 256 values and quantised scales inside them: Q4_K, Q5_K, Q6_K.

Layouts from ggml-common.h (QK_K = 256, K_SCALE_SIZE = 12). All products of scales and values have at most 24
significant bits and are exact in float32, so the result is rounded only once, as in gguf-py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgepd_quant.blocks.base import BlockFormat, half
from edgepd_quant.types import GGMLType


class Q4_K(BlockFormat, qtype=GGMLType.Q4_K):
    """block_q4_K: half d; half dmin; uint8 scales[12]; uint8 qs[128].

    8 sub-blocks of 32. Bytes 32p..32p+31 of qs hold sub-block 2p in the low nibbles and 2p+1 in the high
    ones. Value: d sc q - dmin m.
    """

    @classmethod
    def decode(cls, blocks: Tensor, values: Tensor) -> None:
        n = len(blocks)
        scale, minimum = _scales_and_minima(blocks)
        sub_blocks = values.view(n, 8, 32)
        sub_blocks.copy_(_nibbles(blocks.view(torch.int32)[:, 4:]).view(torch.uint8).view(n, 8, 32))
        sub_blocks.mul_(scale).sub_(minimum)


class Q5_K(BlockFormat, qtype=GGMLType.Q5_K):
    """block_q5_K: half d; half dmin; uint8 scales[12]; uint8 qh[32]; uint8 qs[128].

    As Q4_K; bit j of qh[i] is the fifth bit of value i in sub-block j.
    """

    @classmethod
    def decode(cls, blocks: Tensor, values: Tensor) -> None:
        n = len(blocks)
        scale, minimum = _scales_and_minima(blocks)
        words = blocks.view(torch.int32)  # (n, 44)
        fifth = words[:, 4:12].contiguous()  # (n, 8): four values a word
        spread = [(fifth << (4 - j) if j < 4 else fifth >> (j - 4)) & 0x10101010 for j in range(8)]
        quants = _nibbles(words[:, 12:]).bitwise_or_(torch.stack(spread, dim=1))
        sub_blocks = values.view(n, 8, 32)
        sub_blocks.copy_(quants.view(torch.uint8).view(n, 8, 32))
        sub_blocks.mul_(scale).sub_(minimum)


class Q6_K(BlockFormat, qtype=GGMLType.Q6_K):
    """block_q6_K: uint8 ql[128]; uint8 qh[64]; int8 scales[16]; half d.

    Two halves of 128 values: 64 bytes of ql (low nibbles are values 0..63, high ones 64..127) and 32 of qh
    (bits 2s, 2s+1 of byte i are the upper bits of value 32s+i). One scale per 16 values; d scale (q - 32).
    """

    @classmethod
    def decode(cls, blocks: Tensor, values: Tensor) -> None:
        n = len(blocks)
        pairs = blocks.view(torch.int16)  # (n, 105); 210 bytes are no multiple of 4
        lower = pairs[:, :64].reshape(n, 2, 32)
        upper = pairs[:, 64:96].reshape(n, 2, 16)
        nibbles = torch.cat([lower & 0x0F0F, (lower >> 4) & 0x0F0F], dim=2).view(n, 2, 4, 16)
        spread = [upper << 4, upper << 2, upper, upper >> 2]
        quants = torch.stack(spread, dim=2).bitwise_and_(0x3030).bitwise_or_(nibbles)
        values.copy_(quants.view(n, 128).view(torch.uint8))
        scale = half(blocks, 208) * blocks.view(torch.int8)[:, 192:208].float()  # (n, 16)
        values.sub_(32).view(n, 16, 16).mul_(scale[:, :, None])


def _nibbles(words: Tensor) -> Tensor:
    """Split int32 words (n, 32) of 4-bit values into int32 (n, 8, 8), four values of one sub-block a word."""
    words = words.reshape(len(words), 4, 1, 8)
    return torch.cat([words & 0x0F0F0F0F, (words >> 4) & 0x0F0F0F0F], dim=2).view(len(words), 8, 8)


def _scales_and_minima(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Unpack the 6-bit scales and minima at byte 4 and multiply them with d and dmin; float32 (n, 8, 1) each.

    Bytes 0-3 hold scales 0-3 and, in their top bits, the upper bits of scales 4-7; bytes 4-7 the same for
    the minima; bytes 8-11 the lower four bits of scales 4-7 (low nibble) and minima 4-7 (high nibble).
    """
    scales, minima, rest = blocks.view(torch.int32)[:, 1:4].unbind(dim=1)
    packed = torch.stack(
        [
            scales & 0x3F3F3F3F,
            (rest & 0x0F0F0F0F) | ((scales >> 2) & 0x30303030),
            minima & 0x3F3F3F3F,
            ((rest >> 4) & 0x0F0F0F0F) | ((minima >> 2) & 0x30303030),
        ],
        dim=1,
    )
    unpacked = packed.view(torch.uint8).view(len(blocks), 16).float()
    return (half(blocks, 0) * unpacked[:, :8])[:, :, None], (half(blocks, 2) * unpacked[:, 8:])[:, :, None]
