"""Every setting, declared once.

The idea: each field of a section below is one setting with its default, range and documentation; config.py reads them
and docs/config.md lists them. The invariant: what is not declared here cannot be set.
What this does not do: read or check values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


def setting(
    default: Any,
    doc: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """Declare one setting: its default, its documentation and, for numbers, its range or, for words, the choice."""
    return field(default=default, metadata={"doc": doc, "minimum": minimum, "maximum": maximum, "choices": choices})


@dataclass(frozen=True)
class Serve:
    """How the model is served."""

    model: str = setting("default", "name of the installed model to serve")
    threads: int = setting(0, "threads for decoding; 0 means the number of physical cores", minimum=0, maximum=256)
    slots: int = setting(4, "answers that can be generated at the same time", minimum=1, maximum=64)
    context_tokens: int = setting(2048, "context window of one conversation, in tokens", minimum=128, maximum=1_048_576)
    batch_tokens: int = setting(
        256, "largest piece of a prompt that is prefilled in one step, in tokens", minimum=16, maximum=8192
    )
    max_queue: int = setting(32, "requests that may wait; more are refused with 503", minimum=1, maximum=10_000)
    max_tokens: int = setting(512, "length limit of an answer when the request sets none, in tokens", minimum=1)
    keep_alive: str = setting(
        "5m", "how long the model stays in memory after its last use, such as '30s', '5m', '1h30m'; '-1' means forever"
    )
    preload: bool = setting(False, "whether to load the model at start instead of with the first request")
    adapt_threads: bool = setting(
        True, "decode with fewer threads while other programs want the processor, which changes roundings"
    )
    kv_type: str = setting(
        "f16", "how the KV cache is stored; q8_0 needs half the memory and is slower", choices=("f16", "q8_0")
    )
    saved_state_mb: int = setting(
        256,
        "disk space for saved conversations, which survive an unload or a restart without being computed again, "
        "in MiB; 0 saves none",
        minimum=0,
        maximum=1_048_576,
    )
    max_body_bytes: int = setting(
        8 * 1024 * 1024, "largest request body; a larger one is refused with 413", minimum=1024, maximum=1024**3
    )
    request_timeout_s: float = setting(
        10.0, "time that a client has to send the head of a request, and again for its body", minimum=0.1, maximum=3600
    )
    write_timeout_s: float = setting(
        30.0, "time for which a client may leave an answer unread before it is cancelled", minimum=0.1, maximum=3600
    )
    tcp_port: int = setting(
        0, "port on 127.0.0.1 to serve as well, with a token; 0 serves the Unix socket only", minimum=0, maximum=65535
    )


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
        12.0, "time that the training of a live adapter may take, gate not included", minimum=1, maximum=86_400
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


@dataclass(frozen=True)
class Profile:
    """What is observed of the user, how much it counts, and how it is used in answers."""

    half_life_days: float = setting(
        30.0, "age at which an exchange counts half in the profile, in days", minimum=0.01, maximum=36_500
    )
    active_weight: float = setting(1.0, "weight of thumbs, ratings, corrections and comments", minimum=0, maximum=10)
    passive_weight: float = setting(0.3, "weight of what apps observe: copied, read, abandoned", minimum=0, maximum=10)
    survey_weight: float = setting(0.7, "weight of answers to survey questions", minimum=0, maximum=10)
    implicit_weight: float = setting(0.5, "weight of questions asked again or differently", minimum=0, maximum=10)
    suggestion_weight: float = setting(0.4, "weight of suggestions taken or ignored", minimum=0, maximum=10)
    unjudged_weight: float = setting(0.1, "weight of exchanges that nothing was said about", minimum=0, maximum=10)
    prompt: str = setting(
        "auto",
        "whether the profile is told to the model in a system prompt; auto: if that made wanted answers likelier",
        choices=("auto", "on", "off"),
    )
    retrieval: str = setting(
        "auto",
        "whether similar accepted answers are shown to the model; auto: if that made wanted answers likelier",
        choices=("auto", "on", "off"),
    )
    facts: bool = setting(True, "whether facts from `edgepd remember` that fit a question are told to the model")
    context_tokens: int = setting(
        384, "room for all of that in a prompt, in tokens, and never more than a quarter of the context", minimum=0
    )
    surveys: bool = setting(False, "whether at most one short question a day may be asked")
    questions_per_day: int = setting(
        3, "answers that you may be asked about in a day (`edgepd review`); 0 asks about none", minimum=0, maximum=1000
    )


@dataclass(frozen=True)
class Select:
    """Which examples are kept for training when there are too many, and which are made in addition."""

    policy: str = setting(
        "recency",
        "what keeps an example: entropy, domain and dissimilarity (qin), reward, recency, k-centre, fifo, random",
        choices=("qin", "reward", "recency", "kcenter", "fifo", "random"),
    )
    slots: int = setting(1000, "examples that are kept for training at most", minimum=2, maximum=100_000)
    similar_pairs: int = setting(
        0, "pairs like each example that the served model makes for a consolidation", minimum=0, maximum=8
    )
    similar_min: float = setting(0.3, "ROUGE-1 that such a pair has with its example at least", minimum=0, maximum=1)
    similar_max: float = setting(0.85, "ROUGE-1 above which it is a copy", minimum=0, maximum=1)


@dataclass(frozen=True)
class Keep:
    """What is kept, and for how long."""

    retired: int = setting(
        5, "retired generations whose files are kept, besides pinned ones and the way back", minimum=1, maximum=1000
    )
    interactions: int = setting(
        1_000_000, "interactions that are kept; the oldest without feedback go first; 0 keeps all", minimum=0
    )
    days: float = setting(0.0, "age after which interactions without feedback go, in days; 0 keeps them", minimum=0)
    backup_days: float = setting(1.0, "days between backups of the profile; 0 makes none", minimum=0, maximum=3650)
    backups: int = setting(2, "backups of the profile that are kept", minimum=1, maximum=100)


@dataclass(frozen=True)
class Log:
    """What is kept of the interactions."""

    interactions: bool = setting(True, "whether interactions are stored in the profile at all")
    level: str = setting("info", "log level of the daemon", choices=("debug", "info", "warning", "error"))


@dataclass(frozen=True)
class Settings:
    """All sections. `origins` maps each key that is not at its default to where its value came from."""

    serve: Serve = Serve()
    train: Train = Train()
    gate: Gate = Gate()
    profile: Profile = Profile()
    select: Select = Select()
    keep: Keep = Keep()
    log: Log = Log()
    origins: Mapping[str, str] = field(default_factory=dict)
