"""What a GGUF file says about its network, checked against what the torch decoder computes.

The idea: read every hyper-parameter from the file's own metadata. The invariant: a file with a key or a
tensor that would change the forward pass in a way the decoder does not implement is refused by name, never
computed wrongly.
What this does not do: read tensors, or support any architecture but `llama`.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgepd.errors import ModelError
from edgepd_quant.reader import GGUFFile

ATTENTION_AND_MLP = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
_NORMS = ("attn_norm", "ffn_norm")
_REFUSED_KEYS = (
    "llama.rope.scaling.factor",
    "llama.rope.scale_linear",
    "llama.expert_count",
    "llama.attention.scale",
    "llama.attention.clamp_kqv",
    "llama.attention.max_alibi_bias",
    "llama.logit_scale",
    "llama.embedding_scale",
    "llama.residual_scale",
)


@dataclass(frozen=True)
class Architecture:
    """Hyper-parameters of an arch `llama` network, in the field's own names. Sizes are counts of elements."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_dims: int
    rope_base: float
    rms_eps: float
    context: int
    vocabulary: int
    # The llama converter permutes the rows of Q and K, so pairs are (2i, 2i+1); False: NEOX, (i, i + d/2).
    interleaved_rope: bool = True


def read_architecture(model: GGUFFile) -> Architecture:
    """Read the hyper-parameters of `model`.

    Raises ModelError naming the key or tensor that is not supported.
    """
    name = model.metadata.get("general.architecture")
    if name != "llama":
        raise ModelError(f"{model.path}: architecture {name!r} cannot be trained; supported is 'llama'")
    for key in _REFUSED_KEYS:
        if model.metadata.get(key) not in (None, 0, 0.0, False):
            raise ModelError(f"{model.path}: '{key}' = {model.metadata[key]!r} is not supported in training")
    scaling = model.metadata.get("llama.rope.scaling.type", "none")
    if scaling != "none":
        raise ModelError(f"{model.path}: rope scaling {scaling!r} is not supported in training")
    hidden = _integer(model, "llama.embedding_length")
    heads = _integer(model, "llama.attention.head_count")
    head_dim = _integer(model, "llama.attention.key_length", hidden // heads)
    found = Architecture(
        layers=_integer(model, "llama.block_count"),
        hidden=hidden,
        heads=heads,
        kv_heads=_integer(model, "llama.attention.head_count_kv", heads),
        head_dim=head_dim,
        rope_dims=_integer(model, "llama.rope.dimension_count", head_dim),
        rope_base=_real(model, "llama.rope.freq_base", 10000.0),
        rms_eps=_real(model, "llama.attention.layer_norm_rms_epsilon"),
        context=_integer(model, "llama.context_length"),
        vocabulary=_shape(model, "token_embd.weight")[0],
    )
    _check_sizes(model, found)
    _check_tensors(model, found)
    return found


def _number(model: GGUFFile, key: str, default: float | None) -> int | float:
    value = model.metadata.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
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
        raise ModelError(f"{model.path}: tensor '{name}' is missing; is this a complete llama model?")
    return tuple(model.tensors[name].shape)


def _check_sizes(model: GGUFFile, arch: Architecture) -> None:
    value_dim = _integer(model, "llama.attention.value_length", arch.head_dim)
    if value_dim != arch.head_dim:
        raise ModelError(f"{model.path}: value length {value_dim} differs from key length {arch.head_dim}")
    if arch.heads % arch.kv_heads:
        raise ModelError(f"{model.path}: {arch.heads} heads cannot share {arch.kv_heads} key/value heads evenly")
    if arch.rope_dims % 2 or arch.rope_dims > arch.head_dim:
        raise ModelError(
            f"{model.path}: {arch.rope_dims} rotary dimensions do not fit a head of {arch.head_dim} in pairs"
        )


def _check_tensors(model: GGUFFile, arch: Architecture) -> None:
    """Every tensor must be one that the forward pass uses, with the shape that the metadata implies."""
    q, kv, width = arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim, arch.hidden
    feed_forward = _integer(model, "llama.feed_forward_length")
    of_layer: dict[str, tuple[int, ...]] = {
        "attn_q": (q, width),
        "attn_k": (kv, width),
        "attn_v": (kv, width),
        "attn_output": (width, q),
        "ffn_gate": (feed_forward, width),
        "ffn_up": (feed_forward, width),
        "ffn_down": (width, feed_forward),
        **dict.fromkeys(_NORMS, (width,)),
    }
    expected = {f"blk.{i}.{part}.weight": shape for i in range(arch.layers) for part, shape in of_layer.items()}
    expected |= {"token_embd.weight": (arch.vocabulary, width), "output_norm.weight": (width,)}
    optional = {"output.weight": (arch.vocabulary, width), "rope_freqs.weight": (arch.rope_dims // 2,)}
    for name in model.tensors:
        if name not in expected and name not in optional:
            raise ModelError(f"{model.path}: tensor '{name}' is not supported in training (a bias, expert or extra?)")
    for name, shape in (expected | {n: s for n, s in optional.items() if n in model.tensors}).items():
        found = _shape(model, name)
        if found != shape:
            raise ModelError(f"{model.path}: tensor '{name}' has shape {found}, but the metadata imply {shape}")
