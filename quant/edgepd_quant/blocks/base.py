"""What all block formats share: sizes, shape checks, tiling and the register of formats."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Final

import torch
from torch import Tensor

from edgepd.errors import ModelError
from edgepd_quant.types import BLOCK_SIZES, GGMLType

# Bounds the temporary memory to a few MB; smaller tiles are slower, as each torch call costs microseconds.
TILE_ELEMENTS: Final = 1 << 20


class BlockFormat(ABC):
    """How blocks of one ggml type are decoded; `class X(BlockFormat, qtype=...)` registers a type."""

    qtype: ClassVar[GGMLType]
    block_elements: ClassVar[int]
    block_bytes: ClassVar[int]
    formats: ClassVar[dict[GGMLType, type[BlockFormat]]] = {}

    def __init_subclass__(cls, qtype: GGMLType) -> None:
        cls.qtype = qtype
        cls.block_elements, cls.block_bytes = BLOCK_SIZES[qtype]
        BlockFormat.formats[qtype] = cls

    @classmethod
    def dequantize(cls, raw: Tensor, out: Tensor | None = None) -> Tensor:
        """Decode encoded rows: uint8 (..., row_bytes) -> float32 (..., columns).

        Any leading shape will do, so an embedding look-up passes only the rows it needs. `out`, a contiguous
        float32 tensor of the result's shape, saves the allocation. Raises ValueError for shapes or types
        that do not fit.
        """
        if raw.dtype != torch.uint8 or raw.dim() == 0 or raw.shape[-1] % cls.block_bytes:
            raise ValueError(
                f"encoded rows are {raw.dtype} of shape {tuple(raw.shape)}, but {cls.qtype.name} needs uint8"
                f" rows of a multiple of {cls.block_bytes} bytes"
            )
        shape = (*raw.shape[:-1], raw.shape[-1] // cls.block_bytes * cls.block_elements)
        if out is None:
            out = torch.empty(shape, dtype=torch.float32)
        elif out.shape != shape or out.dtype != torch.float32 or not out.is_contiguous():
            raise ValueError(f"out is {out.dtype} of shape {tuple(out.shape)}, not contiguous float32 of {shape}")
        blocks = raw.contiguous().view(-1, cls.block_bytes)  # (n_blocks, block_bytes)
        values = out.view(-1, cls.block_elements)  # (n_blocks, block_elements)
        tile = TILE_ELEMENTS // cls.block_elements
        for start in range(0, len(blocks), tile):
            cls.decode(blocks[start : start + tile], values[start : start + tile])
        return out

    @classmethod
    @abstractmethod
    def decode(cls, blocks: Tensor, values: Tensor) -> None:
        """Decode contiguous uint8 blocks (n, block_bytes) into float32 values (n, block_elements)."""


def block_format(qtype: GGMLType) -> type[BlockFormat]:
    """Return the format of a ggml type. Raises ModelError for a type that cannot be decoded."""
    try:
        return BlockFormat.formats[qtype]
    except KeyError:
        known = ", ".join(known.name for known in BlockFormat.formats)
        raise ModelError(
            f"tensors of type {qtype.name} cannot be decoded for training;"
            f" use a model file whose types are among {known}"
        ) from None


def half(blocks: Tensor, offset: int) -> Tensor:
    """Read the fp16 at this even byte offset of each block, as float32 (n, 1)."""
    return blocks.view(torch.float16)[:, offset // 2, None].float()
