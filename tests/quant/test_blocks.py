"""Block formats: hand-computed blocks, bit-equality with gguf-py, shapes."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch

from edgepd.errors import ModelError
from edgepd_quant.blocks import base, block_format
from edgepd_quant.reader import GGUFFile
from edgepd_quant.types import BLOCK_SIZES, GGMLType
from tests.tiny_gguf import random_rows, tiny_llama

FORMATS = [GGMLType[n] for n in ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]]
NIBBLES = bytes(i | (15 - i) << 4 for i in range(16))  # low nibbles 0..15, high nibbles 15..0
UP = list(range(16))
DOWN = list(range(15, -1, -1))


def half(value: float) -> bytes:
    return np.float16(value).tobytes()


def oracle(raw: npt.NDArray[np.uint8], qtype: GGMLType) -> npt.NDArray[np.float32]:
    with np.errstate(all="ignore"):  # random bytes hold infinities
        values: npt.NDArray[np.float32] = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(int(qtype)))
    return values


def assert_bit_equal(got: torch.Tensor, expected: npt.NDArray[np.float32]) -> None:
    values = got.numpy()
    assert values.shape == expected.shape
    not_a_number = np.isnan(expected)  # the payload of a NaN is not defined
    assert np.array_equal(np.isnan(values), not_a_number)
    assert np.array_equal(values.view(np.uint32)[~not_a_number], expected.view(np.uint32)[~not_a_number])


# One block each; the layout is that of the struct named in the class's docstring.
BY_HAND: dict[GGMLType, tuple[bytes, list[float]]] = {
    GGMLType.F32: (np.float32(-1.5).tobytes(), [-1.5]),
    GGMLType.F16: (half(0.25), [0.25]),
    GGMLType.BF16: (bytes([0x80, 0xBF]), [-1.0]),
    GGMLType.Q4_0: (half(2.0) + NIBBLES, [2.0 * (q - 8) for q in UP + DOWN]),
    GGMLType.Q4_1: (half(0.5) + half(-1.0) + NIBBLES, [0.5 * q - 1.0 for q in UP + DOWN]),
    # Bits 0-15 of qh are set: the first 16 values gain 16.
    GGMLType.Q5_0: (half(2.0) + b"\xff\xff\0\0" + NIBBLES, [2.0 * q for q in UP] + [2.0 * (q - 16) for q in DOWN]),
    GGMLType.Q5_1: (
        half(0.5) + half(3.0) + b"\x01\0\0\x80" + NIBBLES,
        [8.0 + 3.0] + [0.5 * q + 3.0 for q in UP[1:] + DOWN[:-1]] + [8.0 + 3.0],
    ),
    GGMLType.Q8_0: (half(2.0) + bytes(range(31)) + b"\x80", [2.0 * q for q in range(31)] + [-256.0]),
    # sc = 1, 2, 3, 4, 37 (0x25: low half in byte 8, the 2 in the top bits of byte 0), 0, 0, 0; m = 9, 0, 0,
    # 0, 19.
    GGMLType.Q4_K: (
        half(1.0) + half(1.0) + bytes([0x81, 2, 3, 4, 0x49, 0, 0, 0, 0x35, 0, 0, 0]) + b"\x21" * 128,
        [-8.0] * 32 + [4.0] * 32 + [3.0] * 32 + [8.0] * 32 + [18.0] * 32 + [0.0] * 96,
    ),
    # The same with the fifth bit of the first value of sub-blocks 0 and 4.
    GGMLType.Q5_K: (
        half(1.0)
        + half(1.0)
        + bytes([0x81, 2, 3, 4, 0x49, 0, 0, 0, 0x35, 0, 0, 0])
        + b"\x11"
        + bytes(31)
        + b"\x21" * 128,
        [8.0] + [-8.0] * 31 + [4.0] * 32 + [3.0] * 32 + [8.0] * 32 + [610.0] + [18.0] * 31 + [0.0] * 96,
    ),
    # Upper bits 0, 1, 2, 3 in the four quarters of each half: q - 32 is -31, -15, 2, 18; scales 1..16.
    GGMLType.Q6_K: (
        b"\x21" * 128 + b"\xe4" * 64 + bytes(range(1, 17)) + half(0.5),
        [0.5 * scale * (-31, -15, 2, 18)[(scale - 1) // 2 % 4] for scale in range(1, 17) for _ in range(16)],
    ),
}


@pytest.mark.parametrize("qtype", FORMATS)
def test_block_computed_by_hand(qtype: GGMLType) -> None:
    encoded, expected = BY_HAND[qtype]
    raw = torch.tensor(list(encoded), dtype=torch.uint8)
    assert block_format(qtype).dequantize(raw).tolist() == expected


@pytest.mark.parametrize("qtype", FORMATS)
def test_bit_equal_to_gguf_py_on_random_bytes(qtype: GGMLType) -> None:
    size = BLOCK_SIZES[qtype]
    raw = np.random.default_rng(int(qtype)).integers(0, 256, (48, 1536 // size.elements * size.bytes), dtype=np.uint8)
    assert_bit_equal(block_format(qtype).dequantize(torch.from_numpy(raw)), oracle(raw, qtype))


@pytest.mark.parametrize("qtype", FORMATS)
def test_bit_equal_to_gguf_py_on_quantised_weights(qtype: GGMLType) -> None:
    weights = random_rows(np.random.default_rng(0), 16, 512, qtype, 0.05)
    raw = weights.view(np.uint8)
    if weights.dtype == np.float32:
        raw = gguf.quants.quantize(weights, gguf.GGMLQuantizationType(int(qtype))).view(np.uint8)
    values = block_format(qtype).dequantize(torch.from_numpy(raw))
    assert_bit_equal(values, oracle(raw, qtype))
    assert 0.03 < float(values.std()) < 0.07


@pytest.mark.parametrize("qtype", [GGMLType.Q4_1, GGMLType.Q5_K])
def test_decodes_the_mapped_file_and_single_rows(tmp_path: Path, qtype: GGMLType) -> None:
    with GGUFFile.open(tiny_llama(tmp_path / "m.gguf", qtype=qtype, seed=5)) as file:
        raw = torch.from_numpy(file.rows("token_embd.weight"))
        whole = block_format(qtype).dequantize(raw)
        assert_bit_equal(whole, oracle(file.rows("token_embd.weight"), qtype))
        ids = torch.tensor([[3, 0, 272], [1, 1, 2]])
        assert torch.equal(block_format(qtype).dequantize(raw[ids]), whole[ids])
        rows = torch.from_numpy(file.rows("blk.0.ffn_down.weight"))
        tail = block_format(qtype).dequantize(rows[:, BLOCK_SIZES[qtype].bytes :])  # without the first block
        assert torch.equal(tail, block_format(qtype).dequantize(rows)[:, BLOCK_SIZES[qtype].elements :])


@pytest.mark.parametrize("qtype", FORMATS)
def test_tiles_do_not_change_the_values(monkeypatch: pytest.MonkeyPatch, qtype: GGMLType) -> None:
    size = BLOCK_SIZES[qtype]
    random = np.random.default_rng(1).integers(0, 256, (7, 1024 // size.elements * size.bytes), dtype=np.uint8)
    raw = torch.from_numpy(random)
    whole = block_format(qtype).dequantize(raw)
    monkeypatch.setattr(base, "TILE_ELEMENTS", 3 * size.elements)  # 3 does not divide the number of blocks
    assert_bit_equal(block_format(qtype).dequantize(raw), whole.numpy())


def test_writes_into_a_given_tensor() -> None:
    encoded, expected = BY_HAND[GGMLType.Q4_1]
    out = torch.zeros(2, 32)
    raw = torch.tensor([list(encoded)] * 2, dtype=torch.uint8)
    assert block_format(GGMLType.Q4_1).dequantize(raw, out) is out
    assert out.tolist() == [expected, expected]
    assert block_format(GGMLType.Q4_1).dequantize(raw[:0]).shape == (0, 32)


def test_wrong_shapes_and_types_are_refused() -> None:
    q4_1 = block_format(GGMLType.Q4_1)
    with pytest.raises(ValueError, match=r"shape \(2, 19\), but Q4_1 needs uint8 rows of a multiple of 20 bytes"):
        q4_1.dequantize(torch.zeros(2, 19, dtype=torch.uint8))
    with pytest.raises(ValueError, match="torch.float32"):
        q4_1.dequantize(torch.zeros(2, 20))
    with pytest.raises(ValueError, match="not contiguous float32"):
        q4_1.dequantize(torch.zeros(2, 20, dtype=torch.uint8), torch.zeros(2, 31))


def test_types_that_cannot_be_decoded_are_named() -> None:
    with pytest.raises(ModelError, match="type IQ2_S cannot be decoded for training; use .* among .*Q4_K"):
        block_format(GGMLType.IQ2_S)
