"""The torch forward pass of a decoder-only model, straight over the GGUF file that llama.cpp serves.

The idea: no second copy of the model in another format; every weight is dequantised from the mapping when it is used.
How much is kept in memory instead, of weights and of activations, is set by `arrange` and changes no result.
The invariant: the logits are llama.cpp's up to its 8-bit rounding of activations (mean KL <= 0.005 nats per token,
tested), and the base never changes.
What this does not do: generate text (there is no KV cache), or run on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from edgepd.adapt.architecture import Architecture, read_architecture
from edgepd.adapt.block import Block, Rows, vector
from edgepd.adapt.delta import Delta, VectorDelta
from edgepd.adapt.functional import rms_norm, rotary_turns
from edgepd.adapt.kinds import export_all, load_all, wrap
from edgepd.adapt.linear import QuantLinear, Residency, Scratch
from edgepd.adapt.prefix import PrefixCache
from edgepd.errors import TrainingError
from edgepd_quant.adapter_file import Adapter, Kind
from edgepd_quant.reader import GGUFFile

OUTPUT_NORM = "output_norm.weight"


class Decoder:
    """A decoder-only transformer over `model`; the file must stay open as long as the decoder is used."""

    def __init__(
        self, model: GGUFFile, architecture: Architecture | None = None, *, dtype: torch.dtype = torch.float32
    ) -> None:
        """Map the tensors.

        Raises ModelError naming what is not supported. `architecture` overrides what was read; `dtype` is what
        products are computed in.
        """
        self.model = model
        self.architecture = read_architecture(model) if architecture is None else architecture
        self.embedding = QuantLinear(model, "token_embd.weight")
        tied = "output.weight" not in model.tensors
        self.head = self.embedding if tied else QuantLinear(model, "output.weight")
        self.kind: Kind | None = None
        self.scratch = Scratch(dtype)
        self.blocks = [Block(model, self.architecture, i, self.scratch) for i in range(self.architecture.layers)]
        self._output_gain = vector(model, OUTPUT_NORM)
        self._output_delta: VectorDelta | None = None
        self._deltas: list[Delta | VectorDelta] = []
        freqs = "rope_freqs.weight"
        self._rope_factors = vector(model, freqs) if freqs in model.tensors else None
        self._changed = True  # whether the deltas, if there are any, are in force
        self._trained_from = 0  # the first block with deltas
        self._recompute_below = 0  # blocks below this one remember their input alone
        self._prefixes = PrefixCache(self.architecture.hidden)

    @property
    def deltas(self) -> list[Delta | VectorDelta]:
        """The deltas, in order of layer; none means the base model."""
        return list(self._deltas)

    @property
    def parameters(self) -> list[Tensor]:
        """All that is trained, in a fixed order."""
        return [parameter for delta in self.deltas for parameter in delta.parameters]

    @property
    def trained_layers(self) -> int:
        """How many of the uppermost layers have deltas, or would have."""
        return self.architecture.layers - self._trained_from

    def arrange(self, *, residency: Residency = "stream", kept_layers: int | None = None) -> None:
        """Choose what is kept in memory: dequantised weights, and the activations of the top `kept_layers` (None: all).

        Results stay the same up to the rounding of fp16 weights (and none at all if the file holds no more than that).
        """
        kept = self.architecture.layers if kept_layers is None else kept_layers
        self._recompute_below = max(0, self.architecture.layers - kept)
        self.scratch.release()
        self.scratch.shared = self._recompute_below > self._trained_from
        for block in self.blocks:
            for group in block.groups:
                group.settle(residency)

    def adapt(
        self,
        kind: Kind,
        *,
        rank: int,
        alpha: float,
        seed: int,
        ranks: Mapping[str, int] | None = None,
        rs_lora: bool = False,
        top_layers: int = 0,
        block_size: int | None = None,
    ) -> list[Delta | VectorDelta]:
        """Wrap every attention and MLP linear with a fresh delta and return the deltas; earlier ones are dropped.

        The token embedding and the output matrix get none: llama.cpp confuses the two where they are tied. `ranks`
        overrides `rank` for the tensors that it names. `alpha` matters to 'lora' only. With `top_layers` only so many
        of the uppermost layers get deltas (0: all). `block_size` makes 'scale' and 'shift' coarser than the file needs.
        Raises TrainingError if a tensor's type cannot hold this kind.
        """
        generator = torch.Generator().manual_seed(seed)
        self.strip()
        layers = self.architecture.layers
        if top_layers > layers:
            raise TrainingError(f"the top {top_layers} layers cannot be trained: the model has {layers}; set fewer")
        self._trained_from = layers - top_layers if top_layers else 0
        self._prefixes = PrefixCache(self.architecture.hidden)  # of other frozen layers, if they were others before
        for block in self.blocks[self._trained_from :]:
            for group in block.groups:
                deltas = [
                    wrap(
                        kind,
                        linear,
                        rank=(ranks or {}).get(linear.name, rank),
                        alpha=alpha,
                        rs_lora=rs_lora,
                        generator=generator,
                        block_size=block_size,
                    )
                    for linear in group.linears
                ]
                group.deltas = deltas
                self._deltas += deltas
            if kind == "gain":
                block.vector_deltas = {name: VectorDelta(name, base) for name, base in block.vectors.items()}
                self._deltas += block.vector_deltas.values()
        if kind == "gain":
            self._output_delta = VectorDelta(OUTPUT_NORM, self._output_gain)
            self._deltas.append(self._output_delta)
        self.kind = kind
        return self.deltas

    def load(self, adapter: Adapter) -> None:
        """Set the deltas to those of an adapter of the same kind, to go on from there.

        Raises TrainingError if it was made for other tensors or with other ranks.
        """
        load_all(self.deltas, adapter)
        self.scratch.forget()

    def strip(self) -> None:
        """Drop the deltas: from now on this is the base model."""
        for block in self.blocks:
            block.vector_deltas = {}
            for group in block.groups:
                group.deltas = []
        self._output_delta = None
        self._deltas = []
        self._trained_from = 0
        self.kind = None
        self.scratch.forget()

    @contextmanager
    def base(self) -> Iterator[None]:
        """Compute without the deltas, which stay, for as long as this lasts."""
        before, self._changed = self._changed, False
        try:
            yield
        finally:
            self._changed = before

    def export(self, metadata: Mapping[str, str]) -> Adapter:
        """Copy the deltas into an adapter that edgepd_quant can write.

        Raises TrainingError if there are none.
        """
        if self.kind is None:
            raise TrainingError("there is no delta to export; call adapt() and train first")
        alpha, tensors = export_all(self.deltas)
        return Adapter(self.kind, self.architecture.name, alpha, tensors, dict(metadata))

    def hidden(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Run all layers over B sequences of token ids, padded on the right to the longest, T.

        Return (B * T, C) before the output norm; position t of sequence b is row b * T + t. Attention is causal, so
        padding on the right cannot reach a real position and needs no mask. Raises TrainingError for a sequence that
        exceeds the context.
        """
        rows = self._rows(sequences)
        self.scratch.forget()
        x = self._below(sequences)  # (N, C), N = B * T
        training = self._changed and torch.is_grad_enabled()
        for index, block in enumerate(self.blocks[self._trained_from :], self._trained_from):
            if training and index < self._recompute_below:
                x = block.recomputed(x, rows, changed=self._changed)
            else:
                x = block.forward(x, rows, changed=self._changed)
        return x

    def output_norm(self, x: Tensor) -> Tensor:
        """Normalise hidden states (N, C) for the output matrix."""
        trained = self._changed and self._output_delta is not None
        gain = self._output_delta.value() if trained and self._output_delta else self._output_gain
        return rms_norm(x, gain, self.architecture.rms_eps)

    def forward_logits(self, tokens: Sequence[int]) -> Tensor:
        """Return all logits (T, V) of one sequence without gradient; for comparisons, not for training."""
        with torch.no_grad():
            return self.head(self.output_norm(self.hidden([tokens])))

    def _rows(self, sequences: Sequence[Sequence[int]]) -> Rows:
        arch, length = self.architecture, max(len(sequence) for sequence in sequences)
        if length > arch.context:
            raise TrainingError(f"{length} tokens exceed the model's context of {arch.context}")
        turns = rotary_turns(length, arch.rope_dims, arch.rope_base, self._rope_factors)
        local = turns
        if arch.local_rope_base is not None:
            local = rotary_turns(length, arch.rope_dims, arch.local_rope_base, self._rope_factors)
        window = None
        if arch.window is not None and length > arch.window:
            seen = torch.ones(length, length, dtype=torch.bool).tril().triu(1 - arch.window)
            window = torch.zeros(length, length).masked_fill_(~seen, -torch.inf)
        return Rows(len(sequences), turns, local, window)

    def _below(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Return what enters the first trained block: the embeddings, or frozen layers' output out of the cache."""
        if self._trained_from == 0:
            return self._embedded(sequences)

        def compute(missing: Sequence[Sequence[int]]) -> Tensor:
            among = self._rows(missing)
            with torch.no_grad():
                x = self._embedded(missing)
                for block in self.blocks[: self._trained_from]:
                    x = block.forward(x, among, changed=False)
            return x

        return self._prefixes.get(sequences, compute)

    def _embedded(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        length = max(len(sequence) for sequence in sequences)
        tokens = torch.zeros(len(sequences), length, dtype=torch.int64)  # (B, T)
        for row, sequence in enumerate(sequences):
            tokens[row, : len(sequence)] = torch.tensor(sequence)
        x = self.embedding.rows(tokens.flatten())
        return x if self.architecture.embedding_scale == 1.0 else x.mul_(self.architecture.embedding_scale)
