"""Hyper-parameters as the three papers print them, under names.

The idea: the defaults of edgepd are our own and measured; who wants what a paper printed names the paper. Invariant:
a value is in here only if the paper prints it (or it follows from what it prints, which is then said), and None means
that the paper does not say. docs/shaping.md lists what that leaves open.
What this does not do: claim that the printed values are good ones. Those of the first paper look like ones for the
training of all weights and train a low-rank adapter slowly; that of the second is for its own model, not for an LLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from edgepd.errors import ConfigError

# Settings of [train] that `learning_rate` stands for: a paper prints one for whatever it trains.
LEARNING_RATES = (
    "live_learning_rate",
    "scale_learning_rate",
    "superblock_learning_rate",
    "shift_learning_rate",
    "gain_learning_rate",
)


@dataclass(frozen=True)
class Preset:
    """What a paper prints. None: it does not say, and ours is used."""

    name: str
    paper: str
    optimizer: str | None = None  # 'adam' has no weight decay, unlike our own 'adamw'
    learning_rate: float | None = None
    epochs: int | None = None
    batch: int | None = None  # examples per optimiser step
    patience: int | None = None  # epochs without a better held-out loss before a run stops
    weight_decay: float | None = None
    rank: int | None = None
    objective: str | None = None
    reward_discount: float | None = None  # gamma, of the returns inside a conversation
    replay_buffer: int | None = None  # interactions that reward-weighted training draws from
    shaping: str | None = None
    personal_every: float | None = None  # n_I
    grouping: str | None = None
    group_distance: str | None = None
    # What else is printed and has no counterpart in the training of adapters.
    other: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


_ASLS = Preset(
    name="asls-paper",
    paper="Adaptive Self-Supervised Learning Strategies for Dynamic On-Device LLM Personalization",
    learning_rate=3e-5,  # section 4.4
    epochs=20,  # section 4.4
    batch=16,  # section 4.4
    patience=5,  # section 4.4: "early stopping based on validation loss"
    # Section 4.4 has a "reinforcement learning component" with a reward, a discount and a buffer; of our objectives
    # it is the one with returns.
    objective="reward",
    reward_discount=0.9,  # section 4.4
    replay_buffer=1000,  # section 4.4
    other=MappingProxyType(
        {
            "evaluation_prompts": 500,  # section 4.4, chosen at random
            "learning_rate_schedule": None,
            "adapted_layers": None,
            "reward": None,
            "fast_and_normal": None,  # ASLS-Fast and ASLS-Normal appear in tables and are not defined
        }
    ),
)

_SHAPING = Preset(
    name="shaping-paper",
    paper="Personalization of Deep Learning",
    optimizer="adam",  # section IV
    epochs=20,  # section IV, of D_G
    batch=128,  # section IV
    shaping="weighing",  # Table I: best on D_I; section IV: used in all experiments with data grouping
    personal_every=2.0,  # section IV, Table I (SW-n-2)
    other=MappingProxyType(
        {
            "early_iterations": (40, 400),  # Table I, n of ES
            "transfer_iterations": (10, 300),  # Table I, n of TL
            "personal_every": (12, 2),  # Table I, n_I of SW
            "sg_samples": (1500, 6500),  # Table I, n of SG, in all
            "ig_individuals": (5, 21),  # Table I, n of IG
            "latent": 16,  # section IV, Fig. 5
            "autoencoder_epochs": 20,  # section IV
            "autoencoder_batch": 128,  # section IV
            "general_samples": 30_000,  # section IV, |D_G|
            "individuals": 100,  # section IV, |S|
            "individual_training_share": 0.7,  # section IV, of D_I
            "learning_rate": None,
        }
    ),
)

_PITUNING = Preset(
    name="pituning-paper",
    paper="A Population-to-individual Tuning Framework for Adapting Pretrained LM to On-device User Intent Prediction",
    optimizer="adam",  # section 4.1.4
    learning_rate=0.01,  # section 4.1.4, "across two tuning phases"
    other=MappingProxyType(
        {
            "events": 30,  # section 4.1.4, I
            "transformer": "GPT2-small",  # Table 4
            "layers": 12,  # Table 4, population
            "width": 768,  # Table 4, both
            "embedding": 192,  # d: follows from width 768 = 4 d, the four embeddings that Eq. 2 concatenates
            "student_layers": 4,  # Table 4, individual
            "distillation_alpha": 0.5,  # Table 4, Eq. 7
            "distillation_temperature": 1.0,  # Table 4, epsilon of Eq. 6
            "unlearning_lambda": 1.0,  # Table 4, Eq. 11
            "forget_threshold": None,  # epsilon of Eq. 8, the same letter as the temperature
            "mask_share": None,  # of masked event reconstruction
            "unlearning_steps": None,
            "lightgbm": MappingProxyType(  # Table 5, the tree baseline
                {
                    "objective": "multiclass",
                    "boosting": "gbdt",
                    "num_class": 18,
                    "num_iterations": 2000,
                    "num_leaves": 32,
                    "max_depth": -1,
                    "min_data_in_leaf": 20,
                    "feature_fraction": 1.0,
                    "early_stopping_round": 75,
                    "lambda_l1": 0.0,
                    "lambda_l2": 0.0,
                    "random_state": 42,
                }
            ),
            # Appendix E, for fewer than 200 samples, instead of the above
            "lightgbm_small": MappingProxyType({"max_depth": 3, "num_leaves": 3, "lambda_l1": 1.0, "lambda_l2": 1.0}),
        }
    ),
)

_DEFAULT = Preset(name="default", paper="")


def preset(name: str) -> Preset:
    """Return a preset by the name that setting train.preset has; 'default' has nothing printed. Raises ConfigError."""
    known = {p.name: p for p in (_DEFAULT, _ASLS, _PITUNING, _SHAPING)}
    if name not in known:
        raise ConfigError(f"there is no preset '{name}'; known are {', '.join(known)}")
    return known[name]


def applied(settings: Mapping[str, Any], chosen: Preset) -> dict[str, Any]:
    """Return the [train] section `settings` with what the preset prints in place of ours.

    The printed learning rate becomes that of each kind. Keys that [train] does not have are added where they are
    printed: `optimizer`, `batch`, `patience`, `reward_discount`, `replay_buffer`.
    """
    names = [
        *("optimizer", "epochs", "batch", "patience", "weight_decay", "rank", "objective", "reward_discount"),
        *("replay_buffer", "shaping", "personal_every", "grouping", "group_distance"),
    ]
    printed = {name: value for name in names if (value := getattr(chosen, name)) is not None}
    if chosen.learning_rate is not None:
        printed |= dict.fromkeys(LEARNING_RATES, chosen.learning_rate)
    return {**settings, **printed}
