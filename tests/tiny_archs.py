"""Tiny random models of every architecture that can be trained, which llama.cpp loads and decodes.

The idea: one writer with the traits of each architecture as a table that is written from llama.cpp's sources
(src/models/*.cpp), not from ours, so that the two cannot share a mistake. The weights are such that each trait matters
to the logits: norm gains are not 1, biases not 0, heads share keys, and gemma3's window is shorter than a test's
sequence. The invariant: the same arguments give the same bytes. What this does not do: make a model that says anything
sensible.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from tests.tiny_gguf import K_QUANTS, Tensors, random_rows, tiny_tokenizer, write_gguf

Array = npt.NDArray[np.float32] | npt.NDArray[np.uint8]
ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3", "phi3")
F32 = int(gguf.GGMLQuantizationType.F32)
VOCABULARY = 273
HEADS, KV_HEADS = 4, 2
GEMMA_WINDOW, GEMMA_PERIOD = 8, 2  # of two layers the first slides


def tiny_arch(
    path: Path,
    name: str,
    *,
    qtype: int,
    seed: int = 1,
    layers: int = 2,
    tied: bool = True,
    fused_qkv: bool | None = None,
    extra: Mapping[str, str | bool | int | float | Sequence[int]] | None = None,
    without: tuple[str, ...] = (),
    extra_tensors: Mapping[str, tuple[int, ...]] | None = None,
) -> Path:
    """Write a random model of architecture `name` and return its path.

    4 heads, 2 key-value heads, hidden size 64 (256 for K-quants), 273 tokens. `fused_qkv` (default: only
    phi3) writes q, k and v as one matrix. `extra` adds keys or replaces their values, `without` leaves keys or tensors
    out, `extra_tensors` adds F32 tensors of ones of these shapes.
    """
    rng = np.random.default_rng(seed)
    k_quant = gguf.GGMLQuantizationType(int(qtype)).name in K_QUANTS
    hidden, feed_forward = (256, 512) if k_quant else (64, 96)
    # Gemma's heads are not hidden / heads wide.
    head = hidden // HEADS * (2 if name == "gemma3" else 1)
    fused = name == "phi3" if fused_qkv is None else fused_qkv

    def matrix(rows: int, columns: int) -> tuple[Array, int]:
        return random_rows(rng, rows, columns, qtype, columns**-0.5), int(qtype)

    def vector(length: int, low: float, high: float) -> tuple[Array, int]:
        return rng.uniform(low, high, length).astype(np.float32), F32

    tensors: dict[str, tuple[Array, int]] = {"token_embd.weight": _embedding(rng, hidden, qtype)}
    for layer in range(layers):
        parts = _layer(name, fused, hidden, feed_forward, head, matrix, vector)
        tensors |= {f"blk.{layer}.{part}": tensor for part, tensor in parts.items()}
    tensors["output_norm.weight"] = vector(hidden, 0.7, 1.3)
    if not tied:
        tensors["output.weight"] = _embedding(rng, hidden, qtype)
    tensors |= {part: (np.ones(shape, np.float32), F32) for part, shape in (extra_tensors or {}).items()}
    metadata = _metadata(name, layers, hidden, feed_forward, head) | dict(extra or {})
    kept = {key: value for key, value in metadata.items() if key not in without}
    present: Tensors = {part: tensor for part, tensor in tensors.items() if part not in without}
    return write_gguf(path, {"general.name": "tiny", **tiny_tokenizer(), **kept}, present)


def _embedding(rng: np.random.Generator, hidden: int, qtype: int) -> tuple[Array, int]:
    return random_rows(rng, VOCABULARY, hidden, qtype, 2.0 * hidden**-0.5), int(qtype)


def _layer(
    name: str,
    fused: bool,
    hidden: int,
    feed_forward: int,
    head: int,
    matrix: Callable[[int, int], tuple[Array, int]],
    vector: Callable[[int, float, float], tuple[Array, int]],
) -> dict[str, tuple[Array, int]]:
    q, kv = HEADS * head, KV_HEADS * head
    parts = {"attn_norm.weight": vector(hidden, 0.7, 1.3), "ffn_norm.weight": vector(hidden, 0.7, 1.3)}
    if fused:
        parts["attn_qkv.weight"] = matrix(q + 2 * kv, hidden)
    else:
        parts |= {f"attn_{part}.weight": matrix(q if part == "q" else kv, hidden) for part in "qkv"}
    parts["attn_output.weight"] = matrix(hidden, q)
    if name != "phi3":
        parts["ffn_gate.weight"] = matrix(feed_forward, hidden)
    parts["ffn_up.weight"] = matrix(2 * feed_forward if name == "phi3" else feed_forward, hidden)
    parts["ffn_down.weight"] = matrix(hidden, feed_forward)
    if name == "qwen2":
        parts |= {f"attn_{part}.bias": vector(q if part == "q" else kv, -1.5, 1.5) for part in "qkv"}
    if name in ("qwen3", "gemma3"):  # gains above 1, or attention would be flat and hide its mistakes
        parts |= {f"attn_{part}_norm.weight": vector(head, 1.0, 2.0) for part in "qk"}
    if name == "gemma3":
        parts |= {f"{part}.weight": vector(hidden, 2.0, 6.0) for part in ("post_attention_norm", "post_ffw_norm")}
    return parts


def _metadata(name: str, layers: int, hidden: int, feed_forward: int, head: int) -> dict[str, str | bool | int | float]:
    found: dict[str, str | bool | int | float] = {
        "general.architecture": name,
        f"{name}.block_count": layers,
        f"{name}.context_length": 512,
        f"{name}.embedding_length": hidden,
        f"{name}.feed_forward_length": feed_forward,
        f"{name}.attention.head_count": HEADS,
        f"{name}.attention.head_count_kv": KV_HEADS,
        f"{name}.attention.layer_norm_rms_epsilon": 1e-6,
        f"{name}.rope.freq_base": 1000.0,
    }
    if name in ("llama", "phi3"):
        found[f"{name}.rope.dimension_count"] = head
    if name == "gemma3":
        found |= {
            "gemma3.attention.key_length": head,
            "gemma3.attention.value_length": head,
            "gemma3.attention.sliding_window": GEMMA_WINDOW,
            "gemma3.attention.sliding_window_pattern": GEMMA_PERIOD,
        }
    return found
