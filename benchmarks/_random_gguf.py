"""Models of well-known shapes with random weights, to see how memory and time grow with the size of a model.

They have the metadata and tensors of architecture `llama` and no tokenizer, which training does without. Weights are
Q4_0 with scales such that activations neither vanish nor explode. Written tensor by tensor, so that a file may be
larger than memory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

Q4_0 = gguf.GGMLQuantizationType.Q4_0
BLOCK_ELEMENTS, BLOCK_BYTES = gguf.GGML_QUANT_SIZES[Q4_0]
Q4_0_DEVIATION = 4.61  # of a uniform value in -8..7


@dataclass(frozen=True)
class Shape:
    """What a model's size comes from; the head is tied to the embedding."""

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int


SHAPES = {
    "135M": Shape(30, 576, 1536, 9, 3, 64, 49152),  # SmolLM2
    "360M": Shape(32, 960, 2560, 15, 5, 64, 49152),  # SmolLM2
    "1B": Shape(16, 2048, 8192, 32, 8, 64, 128256),  # Llama 3.2
    "3B": Shape(28, 3072, 8192, 24, 8, 128, 128256),  # Llama 3.2
}


# Of random weights, from their rows and columns: their blocks (rows, row bytes).
Blocks = Callable[[np.random.Generator, int, int], npt.NDArray[np.uint8]]


def write(
    path: Path,
    shape: Shape,
    seed: int = 0,
    *,
    kind: gguf.GGMLQuantizationType = Q4_0,
    blocks: Blocks | None = None,
    for_llama: bool = False,
) -> Path:
    """Write the model, by default in Q4_0, and return its path.

    `blocks` makes the weights of another `kind`. With `for_llama`, llama.cpp loads the file without a tokenizer.
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(shape.layers)
    writer.add_context_length(8192)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(500000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    if for_llama:
        writer.add_vocab_size(shape.vocabulary)
        writer.add_tokenizer_model("none")
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    for name, (rows, columns) in matrices(shape):
        stored = (rows, columns // elements * size)
        writer.add_tensor_info(name, stored, np.dtype(np.uint8), stored[0] * stored[1], raw_dtype=kind)
    for name in norms(shape):
        writer.add_tensor_info(name, (shape.hidden,), np.dtype(np.float32), 4 * shape.hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(seed)
    for _, (rows, columns) in matrices(shape):
        writer.write_tensor_data((blocks or random_blocks)(rng, rows, columns))
    for _ in norms(shape):
        writer.write_tensor_data(np.ones(shape.hidden, np.float32))
    writer.close()
    return path


def matrices(shape: Shape) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the name and (rows, columns) of each matrix."""
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield "token_embd.weight", (shape.vocabulary, shape.hidden)
    for layer in range(shape.layers):
        yield f"blk.{layer}.attn_q.weight", (q, shape.hidden)
        yield f"blk.{layer}.attn_k.weight", (kv, shape.hidden)
        yield f"blk.{layer}.attn_v.weight", (kv, shape.hidden)
        yield f"blk.{layer}.attn_output.weight", (shape.hidden, q)
        yield f"blk.{layer}.ffn_gate.weight", (shape.feed_forward, shape.hidden)
        yield f"blk.{layer}.ffn_up.weight", (shape.feed_forward, shape.hidden)
        yield f"blk.{layer}.ffn_down.weight", (shape.hidden, shape.feed_forward)


def norms(shape: Shape) -> Iterator[str]:
    """Yield the name of each norm's gains."""
    for layer in range(shape.layers):
        yield f"blk.{layer}.attn_norm.weight"
        yield f"blk.{layer}.ffn_norm.weight"
    yield "output_norm.weight"


def random_blocks(rng: np.random.Generator, rows: int, columns: int) -> npt.NDArray[np.uint8]:
    """Return Q4_0 blocks (rows, row bytes) of weights whose deviation is columns ** -0.5: two bytes d, 16 of values."""
    count = rows * columns // BLOCK_ELEMENTS
    blocks = np.frombuffer(rng.bytes(count * BLOCK_BYTES), np.uint8).reshape(count, BLOCK_BYTES).copy()
    blocks[:, :2] = np.frombuffer(struct.pack("<e", columns**-0.5 / Q4_0_DEVIATION), np.uint8)
    return blocks.reshape(rows, -1)
