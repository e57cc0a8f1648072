"""What a GGUF file says about its network, checked against what the torch decoder computes.

The idea: five architectures differ in a few traits; a table holds the traits that the architecture's name implies, the
file's own metadata give the rest, and both together are one flat record. The invariant: a file with a key or a tensor
that would change llama.cpp's forward pass in a way this record cannot say is refused by name, never computed wrongly;
keys that llama.cpp itself ignores (the sliding window of a Phi-3 or Mistral file, for one) are ignored here too.
What this does not do: read tensors, or compute anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from edgepd.errors import ModelError
from edgepd_quant.metadata import LazyArray
from edgepd_quant.reader import GGUFFile

Activation = Literal["silu", "gelu"]
LinearGroups = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[str, ...]]

DEFAULT_ROPE_BASE = 10000.0  # llama.cpp's, for full and for sliding layers
GEMMA3_PERIOD = 6  # the last of each 6 layers sees everything, unless the file says otherwise
GEMMA3_27B_LAYERS = 62  # llama.cpp knows the 27B model, whose attention is scaled differently, by this count only


@dataclass(frozen=True)
class _Traits:
    """What the name of an architecture implies; the defaults are the most common."""

    interleaved_rope: bool = False
    activation: Activation = "silu"
    qk_norm: bool = False
    post_norms: bool = False
    qkv_bias: bool = False
    fused_gate_up: bool = False
    scaled_embedding: bool = False
    slides: bool = False
    rope_factors: bool = False  # rope_freqs.weight may be there


_TRAITS: Final[Mapping[str, _Traits]] = MappingProxyType(
    {
        # The llama converter permutes the rows of Q and K, so pairs are (2i, 2i+1); all others have (i, i + d/2).
        "llama": _Traits(interleaved_rope=True, rope_factors=True),
        "qwen2": _Traits(qkv_bias=True),
        "qwen3": _Traits(qk_norm=True),
        "gemma3": _Traits(activation="gelu", qk_norm=True, post_norms=True, scaled_embedding=True, slides=True),
        "phi3": _Traits(fused_gate_up=True),
    }
)
SUPPORTED: Final = tuple(_TRAITS)

# Keys that change the forward pass, with the values that do not. llama.cpp reads some for other architectures only;
# whoever wrote such a key into one of these files meant something by it.
_NEUTRAL: Final[Mapping[str, tuple[str | float, ...]]] = MappingProxyType(
    {
        "rope.scaling.type": ("none", "linear"),  # linear acts through the factor alone
        "rope.scaling.factor": (0, 1),
        "rope.scaling.attn_factor": (1,),
        "rope.scale_linear": (0, 1),
        "attention.causal": (True,),
        "attention.scale": (0,),
        "attention.clamp_kqv": (0,),
        "attention.max_alibi_bias": (0,),
        "attn_logit_softcapping": (0,),
        "final_logit_softcapping": (0,),
        "logit_scale": (0, 1),
        "embedding_scale": (0, 1),
        "residual_scale": (0, 1),
        "expert_count": (0,),
        "nextn_predict_layers": (0,),
    }
)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Hyper-parameters of a decoder-only network, in the field's own names. Sizes are counts of elements."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    context: int
    vocabulary: int
    rope_dims: int
    rope_base: float
    rms_eps: float
    attention_scale: float  # multiplies q k^T
    interleaved_rope: bool = False  # pairs (2i, 2i+1), ggml's NORM; False: (i, i + d/2), NEOX
    local_rope_base: float | None = None  # of sliding layers
    window: int | None = None  # tokens that a sliding layer sees: position q sees k if 0 <= q - k < window
    sliding: tuple[bool, ...] = ()  # for each layer; () if none slides
    embedding_scale: float = 1.0  # multiplies the token embedding
    activation: Activation = "silu"  # "gelu" is the tanh form
    qk_norm: bool = False  # RMS norm of each head of q and k, before the rotation
    post_norms: bool = False  # RMS norm of what attention and MLP add to the residual
    qkv_bias: bool = False
    fused_qkv: bool = False  # attn_qkv: the rows of q, then k, then v
    fused_gate_up: bool = False  # ffn_up: the rows of gate, then up


def read_architecture(model: GGUFFile) -> Architecture:
    """Read the hyper-parameters of `model`.

    Raises ModelError naming the architecture, key or tensor that is not supported.
    """
    name = model.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in _TRAITS:
        raise ModelError(f"{model.path}: architecture {name!r} cannot be trained; supported are {', '.join(SUPPORTED)}")
    _check_keys(model, name)
    traits = _TRAITS[name]
    layers = _integer(model, f"{name}.block_count")
    if layers > len(model.tensors):  # before anything is listed for each of them
        raise ModelError(f"{model.path}: '{name}.block_count' is {layers}, more than the {len(model.tensors)} tensors")
    hidden = _integer(model, f"{name}.embedding_length")
    heads = _integer(model, f"{name}.attention.head_count")
    head_dim = _integer(model, f"{name}.attention.key_length", hidden // heads)
    sliding = _sliding(model, name, layers) if traits.slides else ()
    found = Architecture(
        name=name,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=_integer(model, f"{name}.attention.head_count_kv", heads),
        head_dim=head_dim,
        feed_forward=_integer(model, f"{name}.feed_forward_length"),
        context=_integer(model, f"{name}.context_length"),
        vocabulary=_shape(model, "token_embd.weight")[0],
        rope_dims=_integer(model, f"{name}.rope.dimension_count", head_dim),
        rope_base=_real(model, f"{name}.rope.freq_base", DEFAULT_ROPE_BASE),
        rms_eps=_real(model, f"{name}.attention.layer_norm_rms_epsilon"),
        attention_scale=_attention_scale(name, layers, hidden, heads, head_dim),
        interleaved_rope=traits.interleaved_rope,
        local_rope_base=_real(model, f"{name}.rope.freq_base_swa", DEFAULT_ROPE_BASE) if sliding else None,
        window=_integer(model, f"{name}.attention.sliding_window") if sliding else None,
        sliding=sliding,
        embedding_scale=math.sqrt(hidden) if traits.scaled_embedding else 1.0,
        activation=traits.activation,
        qk_norm=traits.qk_norm,
        post_norms=traits.post_norms,
        qkv_bias=traits.qkv_bias,
        fused_qkv="blk.0.attn_qkv.weight" in model.tensors and not traits.qkv_bias,
        fused_gate_up=traits.fused_gate_up,
    )
    _check_sizes(model, found)
    _check_tensors(model, found)
    return found


def linear_groups(arch: Architecture, layer: int) -> LinearGroups:
    """Return the names of a layer's matrices in order of use: (query, key, value), output, (gate, up), down.

    The matrices of a group have the same input. A group has one name where the file keeps them as one matrix.
    """
    block = f"blk.{layer}."
    qkv = ("attn_qkv",) if arch.fused_qkv else ("attn_q", "attn_k", "attn_v")
    up = ("ffn_up",) if arch.fused_gate_up else ("ffn_gate", "ffn_up")
    groups = (qkv, ("attn_output",), up, ("ffn_down",))
    first, out, third, down = (tuple(f"{block}{part}.weight" for part in group) for group in groups)
    return first, out, third, down


def vector_names(arch: Architecture, layer: int) -> tuple[str, ...]:
    """Return the names of a layer's norm gains and biases, in order of use; all are F32."""
    parts = ["attn_norm.weight"]
    parts += [f"{part}.bias" for part in ("attn_q", "attn_k", "attn_v") if arch.qkv_bias]
    parts += [f"{part}.weight" for part in ("attn_q_norm", "attn_k_norm") if arch.qk_norm]
    parts += ["post_attention_norm.weight"] if arch.post_norms else []
    parts += ["ffn_norm.weight"]
    parts += ["post_ffw_norm.weight"] if arch.post_norms else []
    return tuple(f"blk.{layer}.{part}" for part in parts)


def layer_shapes(arch: Architecture, layer: int) -> dict[str, tuple[int, ...]]:
    """Return the name and torch shape (out, in) or (length,) of each tensor of a layer."""
    q, kv, width, wide = arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim, arch.hidden, arch.feed_forward
    linears = {
        "attn_q": (q, width),
        "attn_k": (kv, width),
        "attn_v": (kv, width),
        "attn_qkv": (q + 2 * kv, width),
        "attn_output": (width, q),
        "ffn_gate": (wide, width),
        "ffn_up": (2 * wide if arch.fused_gate_up else wide, width),
        "ffn_down": (width, wide),
    }
    vectors = dict.fromkeys(("attn_q_norm.weight", "attn_k_norm.weight"), arch.head_dim)
    vectors |= {"attn_q.bias": q, "attn_k.bias": kv, "attn_v.bias": kv}
    shapes: dict[str, tuple[int, ...]] = {}
    for group in linear_groups(arch, layer):
        shapes |= {name: linears[name.split(".")[2]] for name in group}
    return shapes | {name: (vectors.get(name.split(".", 2)[2], width),) for name in vector_names(arch, layer)}


def _attention_scale(name: str, layers: int, hidden: int, heads: int, head_dim: int) -> float:
    if name == "gemma3" and layers == GEMMA3_27B_LAYERS:
        return 1 / math.sqrt(hidden // heads)  # 168 in Gemma-3-27B, whose heads have 128 dimensions
    return 1 / math.sqrt(head_dim)


def _sliding(model: GGUFFile, name: str, layers: int) -> tuple[bool, ...]:
    """Return for each layer whether it sees a window only (load_swa_pattern and set_swa_pattern in llama.cpp)."""
    if model.metadata.get(f"{name}.attention.sliding_window", 0) == 0:
        return ()
    key = f"{name}.attention.sliding_window_pattern"
    pattern = model.metadata.get(key)
    if isinstance(pattern, LazyArray):
        flags = pattern.values()
        if len(flags) < layers or not all(flag in (0, 1) for flag in flags):
            raise ModelError(f"{model.path}: '{key}' must say 0 or 1 for each of {layers} layers, but is {flags!r}")
        return tuple(flag == 1 for flag in flags[:layers])
    period = _integer(model, key, GEMMA3_PERIOD)
    return tuple(layer % period < period - 1 for layer in range(layers))


def _check_keys(model: GGUFFile, name: str) -> None:
    for suffix, neutral in _NEUTRAL.items():
        value = model.metadata.get(f"{name}.{suffix}")
        if value is not None and value not in neutral:
            raise ModelError(f"{model.path}: '{name}.{suffix}' = {value!r} is not supported in training")


def _check_sizes(model: GGUFFile, arch: Architecture) -> None:
    equal = {
        "attention.value_length": arch.head_dim,
        "attention.key_length_swa": arch.head_dim,
        "attention.value_length_swa": arch.head_dim,
        "rope.dimension_count_swa": arch.rope_dims,
    }
    for suffix, needed in equal.items():
        value = _integer(model, f"{arch.name}.{suffix}", needed)
        if value != needed:
            raise ModelError(f"{model.path}: '{arch.name}.{suffix}' = {value} is not supported; {needed} would be")
    if arch.heads % arch.kv_heads:
        raise ModelError(f"{model.path}: {arch.heads} heads cannot share {arch.kv_heads} key/value heads evenly")
    if arch.rope_dims % 2 or arch.rope_dims > arch.head_dim:
        raise ModelError(f"{model.path}: {arch.rope_dims} rotary dimensions do not fit {arch.head_dim} in pairs")


def _check_tensors(model: GGUFFile, arch: Architecture) -> None:
    """Every tensor must be one that the forward pass uses, with the shape that the metadata implies."""
    table = (arch.vocabulary, arch.hidden)
    needed: dict[str, tuple[int, ...]] = {"token_embd.weight": table, "output_norm.weight": (arch.hidden,)}
    for layer in range(arch.layers):
        needed |= layer_shapes(arch, layer)
    known = needed | {"output.weight": table}
    if _TRAITS[arch.name].rope_factors:
        known["rope_freqs.weight"] = (arch.rope_dims // 2,)
    for name in model.tensors:
        if name not in known:
            raise ModelError(
                f"{model.path}: tensor '{name}' is not supported in training of architecture '{arch.name}'"
                " (a bias, a norm, an expert, factors of a long context?)"
            )
    for name, shape in known.items():
        if (name in needed or name in model.tensors) and _shape(model, name) != shape:
            raise ModelError(
                f"{model.path}: tensor '{name}' has shape {_shape(model, name)}, but the metadata imply {shape}"
            )


def _number(model: GGUFFile, key: str, default: float | None) -> int | float:
    value = model.metadata.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ModelError(f"{model.path}: '{key}' is {value!r}; training needs one positive number there")
    return value


def _integer(model: GGUFFile, key: str, default: int | None = None) -> int:
    value = _number(model, key, default)
    if not isinstance(value, int):
        raise ModelError(f"{model.path}: '{key}' is {value!r}, but must be an integer")
    return value


def _real(model: GGUFFile, key: str, default: float | None = None) -> float:
    return float(_number(model, key, default))


def _shape(model: GGUFFile, name: str) -> tuple[int, ...]:
    if name not in model.tensors:
        raise ModelError(f"{model.path}: tensor '{name}' is missing; is this a complete model?")
    return tuple(model.tensors[name].shape)
