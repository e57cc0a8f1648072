"""How adapters are trained, and what they must show."""

from __future__ import annotations

from dataclasses import dataclass

from edgepd.settings.declare import setting


@dataclass(frozen=True)
class Train:
    """How adapters are trained."""

    threads: int = setting(0, "threads for training; 0 means the number of physical cores", minimum=0, maximum=256)
    memory_mb: int = setting(
        0,
        "resident memory that training may use, in MiB, within which it is planned; 0 means half of what is free",
        minimum=0,
        maximum=1_048_576,
    )
    residency: str = setting(
        "auto",
        "where dequantised weights live: nowhere, or in memory as fp32, as the memory allows (auto); fp16 rounds them",
        choices=("auto", "stream", "fp16", "fp32"),
    )
    fast_seconds: float = setting(
        12.0,
        "time that the training of a live adapter may take when you wait for it, gate not included",
        minimum=1,
        maximum=86_400,
    )
    min_examples: int = setting(10, "examples below which training is refused", minimum=2, maximum=100_000)
    held_out_fraction: float = setting(
        0.25,
        "share of the newest examples that is never trained on and decides promotion",
        minimum=0.05,
        maximum=0.5,
    )
    preset: str = setting(
        "default",
        "hyper-parameters as a paper prints them instead of the settings below",
        choices=("default", "asls-paper", "pituning-paper", "shaping-paper"),
    )
    baked_kind: str = setting(
        "scale", "what a consolidation trains and bakes into the model file", choices=("scale", "shift", "gain")
    )
    rank: int = setting(8, "rank of the low-rank factors", minimum=1, maximum=256)
    rs_lora: bool = setting(False, "rank-stabilised LoRA: scale by alpha / sqrt(rank) instead of alpha / rank")
    lora_plus: float = setting(
        1.0, "LoRA+: how many times faster the factors B learn than the factors A", minimum=1, maximum=64
    )
    top_layers: int = setting(
        0, "train the uppermost layers alone and compute those below once per example; 0 trains all", minimum=0
    )
    epochs: int = setting(3, "passes over the examples at most; early stopping may end sooner", minimum=1, maximum=1000)
    live_learning_rate: float = setting(
        1.75e-3, "peak learning rate of the live low-rank adapter", minimum=1e-7, maximum=1.0
    )
    scale_learning_rate: float = setting(1.1e-2, "peak learning rate of kind scale", minimum=1e-7, maximum=1.0)
    superblock_learning_rate: float = setting(
        6e-3, "the same where most weights are in superblocks of 256 (K-quants)", minimum=1e-7, maximum=1.0
    )
    shift_learning_rate: float = setting(1e-3, "peak learning rate of kind shift", minimum=1e-7, maximum=1.0)
    gain_learning_rate: float = setting(1e-2, "peak learning rate of kind gain", minimum=1e-7, maximum=1.0)
    objective: str = setting(
        "sft",
        "what is optimised: imitation of what you wrote or accepted, or a preference between two answers",
        choices=("sft", "reward", "dpo", "kto", "apo-zero", "simpo"),
    )
    kl_weight: float = setting(
        0.0, "weight of the divergence from the base on anchor prompts, per token", minimum=0, maximum=10
    )
    shaping: str = setting(
        "none",
        "how general examples, which the base answers itself, are mixed with yours",
        choices=("none", "early", "weighing", "transfer"),
    )
    personal_every: float = setting(
        2.0,
        "n_I of sample weighing: every n-th batch is yours; below 1, all but every 1/n-th",
        minimum=0.01,
        maximum=1000,
    )
    general_steps: int = setting(20, "general batches after yours in early shaping, before them in transfer", minimum=0)
    grouping: str = setting(
        "none",
        "data grouping: add the general examples that lie nearest to each of yours (sg) or to all of them (ig)",
        choices=("none", "sg", "ig"),
    )
    group_distance: str = setting(
        "embedding", "where grouping measures distances", choices=("embedding", "autoencoder")
    )
    replay_examples: int = setting(32, "general examples that the base generates once", minimum=0, maximum=4096)
    accepted_weight: float = setting(
        0.5,
        "weight of an answer with a thumb up; an answer that the user edited has weight 1",
        minimum=0,
        maximum=1,
    )
    live_examples: int = setting(64, "newest examples that a live adapter is trained on", minimum=2, maximum=100_000)
    baked_examples: int = setting(512, "newest examples that a consolidation is trained on", minimum=2, maximum=100_000)
    seed: int = setting(0, "seed of initialisation and shuffling", minimum=0)


@dataclass(frozen=True)
class Gate:
    """What a candidate must show before it goes live."""

    confidence: float = setting(
        0.95, "how sure it must be that held-out answers became more likely", minimum=0.5, maximum=0.999
    )
    min_held_out: int = setting(
        5, "answers that are set aside at least to judge by; five are the fewest that can be 95 % sure", minimum=2
    )
    min_carried_over: float = setting(
        0.25,
        "share of what answers that were learned have gained that answers never seen must gain too",
        minimum=0,
        maximum=1,
    )
    max_perplexity_rise: float = setting(
        0.02, "largest tolerated relative rise of perplexity on the bundled general text", minimum=0, maximum=1
    )
    max_kl: float = setting(
        0.05, "largest tolerated divergence from the base on the bundled general text, in nats per token", minimum=0
    )
    max_verifiable_drop: float = setting(
        0.02,
        "largest tolerated loss on prompts whose answers can be verified, as a share of them",
        minimum=0,
        maximum=1,
    )
    min_kept_gain: float = setting(
        0.9, "share of a live adapter's gain that a baked file must keep to replace it", minimum=0, maximum=1
    )
