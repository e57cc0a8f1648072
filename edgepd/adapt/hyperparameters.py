"""The hyper-parameters of a run and what follows from them alone: deltas, optimiser, learning rate.

The idea: each default carries its reason. The invariant: the same values give the same start and the same rate at every
step. What this does not do: read settings (see recipe.py), or run (see loop.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgepd.adapt.adamw import AdamW
from edgepd.adapt.batches import MICRO_TOKENS
from edgepd.adapt.decoder import Decoder
from edgepd_quant.adapter_file import Kind


@dataclass(frozen=True)
class TrainConfig:
    """Hyper-parameters of one run."""

    kind: Kind = "lora"
    rank: int = 8
    alpha: float = 16.0  # of 'lora': the delta counts alpha / rank times
    rs_lora: bool = False  # alpha / sqrt(rank) instead
    top_layers: int = 0  # only so many of the uppermost layers are trained; 0: all
    learning_rate: float = 1.75e-3  # peak; that of 'scale' is best about six times higher
    lora_plus: float = 1.0  # how many times faster the factors B learn; arXiv 2402.12354
    max_steps: int | None = None  # ends the run before its epochs are over
    micro_tokens: int = MICRO_TOKENS  # padded tokens per backward pass
    weight_decay: float = 0.01
    warmup_fraction: float = 0.1
    constant_rate: bool = False  # after the warm-up, instead of half a cosine
    clip_norm: float = 1.0
    patience: int = 2  # epochs without a better held-out loss before the run stops
    seed: int = 0  # of the initial factors
    objective: str = "sft"  # this and the next tell a checkpoint of one objective from that of another
    kl_weight: float = 0.0
    checkpoint_seconds: float = 10.0


def adapt(decoder: Decoder, config: TrainConfig) -> None:
    """Wrap the decoder's linears with fresh deltas. Raises TrainingError as Decoder.adapt does."""
    decoder.adapt(
        config.kind,
        rank=config.rank,
        alpha=config.alpha,
        seed=config.seed,
        rs_lora=config.rs_lora,
        top_layers=config.top_layers,
    )


def optimizer(decoder: Decoder, config: TrainConfig) -> AdamW:
    """AdamW for the decoder's deltas; with LoRA+ the factors B, always the second, learn faster."""
    faster = [1.0 if n == 0 else config.lora_plus for delta in decoder.deltas for n in range(len(delta.parameters))]
    return AdamW(decoder.parameters, faster, config.weight_decay)


def learning_rate(config: TrainConfig, step: int, total_steps: int) -> float:
    """Rate of the step after `step` steps: linear warm-up, then half a cosine down to zero after the last."""
    warmup = max(1, round(config.warmup_fraction * total_steps))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.constant_rate:
        return config.learning_rate
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total_steps - warmup)))
