"""Tiny GGUF files made inside a test, so that no test needs a download.

The idea: `write_gguf` writes any metadata and tensors with the upstream writer, which makes it an independent
oracle for our reader; `tiny_llama` writes a random model of architecture `llama` that llama.cpp loads and
decodes. The invariant: the same arguments give the same bytes. What this does not do: make a model that says
anything sensible, or malformed files (tests build those from bytes by hand).
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # ids 0, 1, 2, as in SmolLM2
MERGES = (
    "t h",
    "th e",
    "Ġ the",
    "i n",
    "a n",
    "an d",
    "Ġ and",
    "e r",
    "o u",
    "r e",
    "h e",
    "l l",
    "he ll",
    "hell o",
)
K_QUANTS = {"Q4_K": 7.5, "Q5_K": 15.5, "Q6_K": 0.0}  # mean of the quantised value that dmin has to take away

Metadata = Mapping[str, str | bool | int | float | Sequence[str] | Sequence[int] | Sequence[float]]
Tensors = Mapping[str, tuple[npt.NDArray[np.float32] | npt.NDArray[np.uint8], int]]


def write_gguf(path: Path, metadata: Metadata, tensors: Tensors) -> Path:
    """Write a GGUF file and return its path.

    `metadata`: ints become uint32, floats float32, sequences arrays; without "general.architecture" it is
    "llama". `tensors`: name -> (array in torch order, ggml type number). A float32 array is quantised to the
    type; a uint8 array (rows, row_bytes) is taken as blocks that are already encoded.
    """
    writer = gguf.GGUFWriter(path, str(metadata.get("general.architecture", "llama")))
    for key, value in metadata.items():
        if key == "general.architecture":
            continue
        if key == "general.alignment" and isinstance(value, int):
            writer.add_custom_alignment(value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_array(key, value)
    for name, (array, number) in tensors.items():
        qtype = gguf.GGMLQuantizationType(int(number))
        encoded = array if array.dtype == np.uint8 else gguf.quants.quantize(array, qtype)
        writer.add_tensor(name, encoded, raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_rows(
    rng: np.random.Generator, rows: int, columns: int, qtype: int, deviation: float
) -> npt.NDArray[np.float32] | npt.NDArray[np.uint8]:
    """Random weights (rows, columns) with about this standard deviation, in the form `write_gguf` takes.

    float32 where gguf-py can quantise; for the K-quants, where it cannot, random valid blocks with sane
    scales.
    """
    name = gguf.GGMLQuantizationType(int(qtype)).name
    if name not in K_QUANTS:
        return rng.normal(0.0, deviation, (rows, columns)).astype(np.float32)
    block_size, type_size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(int(qtype))]
    if columns % block_size:
        raise ValueError(f"row length {columns} is not a multiple of {name} block size {block_size}")
    blocks = rng.integers(0, 256, (rows * columns // block_size, type_size), dtype=np.uint8)
    # Divided by the standard deviation of value / d for random bytes (6-bit scales times 4- or 5-bit values).
    d = deviation / {"Q4_K": 236.0, "Q5_K": 481.0, "Q6_K": 344.0}[name] * rng.uniform(0.8, 1.2, (len(blocks), 1))
    if name == "Q6_K":
        blocks[:, 192:208] = rng.integers(-32, 33, (len(blocks), 16), dtype=np.int8).view(np.uint8)
        blocks[:, 208:210] = d.astype(np.float16).view(np.uint8)
    else:
        blocks[:, 0:2] = d.astype(np.float16).view(np.uint8)
        blocks[:, 2:4] = (d * K_QUANTS[name]).astype(np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)


def tiny_llama(
    path: Path,
    *,
    qtype: int,
    seed: int,
    layers: int = 2,
    embedding_qtype: int | None = None,
    tied: bool = True,
    context_length: int = 512,
    template: str | None = None,
) -> Path:
    """Write a loadable random model of architecture `llama` and return its path.

    4 heads, 2 key-value heads, hidden size 64 (256 for K-quants), ChatML unless there is a `template`, byte-level BPE
    with 273 tokens. `embedding_qtype` (default: `qtype`) is the type of token_embd and, when not `tied`, of output.
    """
    rng = np.random.default_rng(seed)
    k_quant = any(gguf.GGMLQuantizationType(int(q)).name in K_QUANTS for q in (qtype, embedding_qtype) if q is not None)
    hidden, feed_forward, heads, kv_heads = (256, 512, 4, 2) if k_quant else (64, 96, 4, 2)
    kv_width = hidden // heads * kv_heads
    vocabulary = _vocabulary()
    head_type = qtype if embedding_qtype is None else embedding_qtype
    f32 = int(gguf.GGMLQuantizationType.F32)

    def matrix(rows: int, columns: int) -> tuple[npt.NDArray[np.float32] | npt.NDArray[np.uint8], int]:
        return random_rows(rng, rows, columns, qtype, columns**-0.5), int(qtype)

    def norm() -> tuple[npt.NDArray[np.float32], int]:
        return rng.uniform(0.7, 1.3, hidden).astype(np.float32), f32

    def embedding() -> tuple[npt.NDArray[np.float32] | npt.NDArray[np.uint8], int]:
        return random_rows(rng, len(vocabulary), hidden, head_type, 2.0 * hidden**-0.5), int(head_type)

    tensors = {"token_embd.weight": embedding()}
    for layer in range(layers):
        tensors |= {
            f"blk.{layer}.attn_norm.weight": norm(),
            f"blk.{layer}.attn_q.weight": matrix(hidden, hidden),
            f"blk.{layer}.attn_k.weight": matrix(kv_width, hidden),
            f"blk.{layer}.attn_v.weight": matrix(kv_width, hidden),
            f"blk.{layer}.attn_output.weight": matrix(hidden, hidden),
            f"blk.{layer}.ffn_norm.weight": norm(),
            f"blk.{layer}.ffn_gate.weight": matrix(feed_forward, hidden),
            f"blk.{layer}.ffn_up.weight": matrix(feed_forward, hidden),
            f"blk.{layer}.ffn_down.weight": matrix(hidden, feed_forward),
        }
    tensors["output_norm.weight"] = norm()
    if not tied:
        tensors["output.weight"] = embedding()
    shape = {
        "llama.block_count": layers,
        "llama.context_length": context_length,
        "llama.embedding_length": hidden,
        "llama.feed_forward_length": feed_forward,
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": hidden // heads,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": len(vocabulary),
    }
    tokenizer = tiny_tokenizer()
    if template is not None:
        tokenizer["tokenizer.chat_template"] = template
    return write_gguf(path, {"general.name": "tiny", **shape, **tokenizer}, tensors)


def llama_logits(
    path: Path, tokens: Sequence[int], adapter: Path | None = None, *, exact: bool = False
) -> npt.NDArray[np.float32]:
    """Decode the tokens with llama.cpp itself and return its logits (len(tokens), vocabulary).

    With `exact` keys and values are kept in F32 and not, as when it serves, in F16.

    Raises ValueError when llama.cpp refuses the model or the adapter.
    """
    import llama_cpp  # takes a second to load, and most tests that use this module do not need it

    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise ValueError(f"llama.cpp refuses {path}")
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_threads, settings.n_threads_batch = max(64, len(tokens)), 1, 1
    if exact:
        settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32
        settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = llama_cpp.llama_init_from_model(model, settings)
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    try:
        if adapter is not None:
            loaded = llama_cpp.llama_adapter_lora_init(model, str(adapter).encode())
            if not loaded:
                raise ValueError(f"llama.cpp refuses {adapter}")
            adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(loaded)
            llama_cpp.llama_set_adapters_lora(context, adapters, 1, (ctypes.c_float * 1)(1.0))
        batch.n_tokens = len(tokens)
        for position, token in enumerate(tokens):
            batch.token[position], batch.pos[position], batch.logits[position] = token, position, 1
            batch.n_seq_id[position], batch.seq_id[position][0] = 1, 0
        if llama_cpp.llama_decode(context, batch) != 0:
            raise ValueError(f"llama.cpp cannot decode with {path}")
        width = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        found = [
            np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, position), (width,)).copy()
            for position in range(len(tokens))
        ]
        return np.stack(found).astype(np.float32)
    finally:
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)


def _vocabulary() -> list[str]:
    return [*SPECIAL_TOKENS, *_byte_tokens(), *(merge.replace(" ", "") for merge in MERGES)]


def tiny_tokenizer() -> dict[str, str | bool | int | list[str] | list[int]]:
    """Return the metadata of a byte-level BPE with 273 tokens; llama.cpp takes any tokenizer with any architecture."""
    vocabulary = _vocabulary()
    control, normal = 3, 1
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": vocabulary,
        "tokenizer.ggml.token_type": [control if i < len(SPECIAL_TOKENS) else normal for i in range(len(vocabulary))],
        "tokenizer.ggml.merges": list(MERGES),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.eot_token_id": 2,  # else llama.cpp picks one of the names it knows, in no fixed order
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": CHATML,
    }


def _byte_tokens() -> list[str]:
    """The 256 characters that stand for the 256 bytes in GPT-2's byte-level BPE, in order of the byte."""
    printable = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
