"""The torch forward pass of an arch `llama` model, straight over the GGUF file that llama.cpp serves.

The idea: no second copy of the model in another format; every weight is dequantised from the mapping when it
is used. The invariant: the logits are llama.cpp's up to its 8-bit rounding of activations (mean KL <= 0.005
nats per token, tested), and the base never changes.
What this does not do: generate text (there is no KV cache), or run on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from edgepd.adapt.architecture import ATTENTION_AND_MLP, Architecture, read_architecture
from edgepd.adapt.delta import Delta, LoRA, Scale
from edgepd.adapt.functional import rms_norm, rotary_turns, rotate, swiglu
from edgepd.adapt.linear import QuantLinear
from edgepd.errors import TrainingError
from edgepd_quant.adapter_file import Adapter, Kind
from edgepd_quant.reader import GGUFFile


class Decoder:
    """A decoder-only transformer over `model`; the file must stay open as long as the decoder is used."""

    def __init__(self, model: GGUFFile, architecture: Architecture | None = None) -> None:
        """Map the tensors.

        Raises ModelError naming what is not supported. `architecture` overrides what was read.
        """
        self.model = model
        self.architecture = read_architecture(model) if architecture is None else architecture
        self.embedding = QuantLinear(model, "token_embd.weight")
        tied = "output.weight" not in model.tensors
        self.head = self.embedding if tied else QuantLinear(model, "output.weight")
        self.kind: Kind | None = None
        self._alpha = 0.0
        self._frozen = {
            name: QuantLinear(model, name)
            for layer in range(self.architecture.layers)
            for name in (f"blk.{layer}.{part}.weight" for part in ATTENTION_AND_MLP)
        }
        self._linears: dict[str, QuantLinear | Delta] = dict(self._frozen)
        self._gains = {
            name: torch.from_numpy(model.f32(name)).flatten() for name in model.tensors if name.endswith("_norm.weight")
        }
        freqs = "rope_freqs.weight"
        self._rope_factors = torch.from_numpy(model.f32(freqs)).flatten() if freqs in model.tensors else None

    @property
    def deltas(self) -> list[Delta]:
        """The deltas in force, in order of layer; none means the base model."""
        return [linear for linear in self._linears.values() if isinstance(linear, Delta)]

    def adapt(self, kind: Kind, *, rank: int, alpha: float, seed: int) -> list[Delta]:
        """Wrap every attention and MLP linear with a fresh delta and return the deltas; earlier ones are dropped.

        The token embedding and the output matrix get none: llama.cpp confuses the two where they are tied.
        `alpha` matters to 'lora' only (its delta is multiplied by alpha / rank). Raises TrainingError if a
        tensor's type cannot hold this kind.
        """
        generator = torch.Generator().manual_seed(seed)
        wrapped: dict[str, QuantLinear | Delta] = {}
        for name, frozen in self._frozen.items():
            if kind == "lora":
                wrapped[name] = LoRA(frozen, rank, alpha, generator)
            else:
                wrapped[name] = Scale(frozen, rank, generator)
        self._linears = wrapped
        self.kind = kind
        self._alpha = alpha if kind == "lora" else float(rank)
        return self.deltas

    def strip(self) -> None:
        """Drop the deltas: from now on this is the base model."""
        self._linears = dict(self._frozen)
        self.kind = None

    def export(self, metadata: Mapping[str, str]) -> Adapter:
        """Copy the deltas into an adapter that edgepd_quant can write.

        Raises TrainingError if there are none.
        """
        if self.kind is None:
            raise TrainingError("there is no delta to export; call adapt() and train first")
        tensors = {delta.name: delta.export() for delta in self.deltas}
        return Adapter(self.kind, "llama", self._alpha, tensors, dict(metadata))

    def hidden(self, tokens: Tensor) -> Tensor:
        """Run all layers over tokens (B, T) int64, padded on the right.

        Return (B * T, C) before the output norm.

        Attention is causal, so padding on the right cannot reach a real position and needs no mask.
        """
        batch, length = tokens.shape
        if length > self.architecture.context:
            raise TrainingError(f"{length} tokens exceed the model's context of {self.architecture.context}")
        arch = self.architecture
        turns = rotary_turns(length, arch.rope_dims, arch.rope_base, self._rope_factors)
        x = self.embedding.rows(tokens.flatten())  # (N, C), N = B * T
        for layer in range(arch.layers):
            block = f"blk.{layer}."
            x = x + self._attention(rms_norm(x, self._gain(block + "attn_norm"), arch.rms_eps), block, batch, turns)
            x = x + self._mlp(rms_norm(x, self._gain(block + "ffn_norm"), arch.rms_eps), block)
        return x

    def output_norm(self, x: Tensor) -> Tensor:
        """Normalise hidden states (N, C) for the output matrix."""
        return rms_norm(x, self._gain("output_norm"), self.architecture.rms_eps)

    def forward_logits(self, tokens: Sequence[int]) -> Tensor:
        """Return all logits (T, V) of one sequence without gradient; for comparisons, not for training."""
        with torch.no_grad():
            return self.head(self.output_norm(self.hidden(torch.tensor([tokens]))))

    def _gain(self, name: str) -> Tensor:
        return self._gains[name + ".weight"]

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return self._linears[name + ".weight"](x)

    def _attention(self, x: Tensor, block: str, batch: int, turns: Tensor) -> Tensor:
        arch = self.architecture
        # (N, heads * D) -> (B, T, heads, D)
        q, k, v = (
            self._linear(block + part, x).view(batch, -1, heads, arch.head_dim)
            for part, heads in (("attn_q", arch.heads), ("attn_k", arch.kv_heads), ("attn_v", arch.kv_heads))
        )
        q = rotate(q, turns, interleaved=arch.interleaved_rope)
        k = rotate(k, turns, interleaved=arch.interleaved_rope)
        mixed = scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=True
        )  # (B, heads, T, D)
        return self._linear(block + "attn_output", mixed.transpose(1, 2).reshape(len(x), -1))

    def _mlp(self, x: Tensor, block: str) -> Tensor:
        gated = swiglu(self._linear(block + "ffn_gate", x), self._linear(block + "ffn_up", x))
        return self._linear(block + "ffn_down", gated)
