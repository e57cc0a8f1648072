"""From the settings of a job to what the training loop takes: hyper-parameters, objective, examples, schedule.

The idea: one place that knows how a setting becomes a number; a preset is laid over the settings first. The invariant:
the same job gives the same run, on the normal path and on the fast one.
What this does not do: decide how a run is carried out in memory and time (see planner.py), or run it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgepd import secrets
from edgepd.adapt.decoder import Decoder
from edgepd.adapt.examples import Batch, Encoded, Example, Skipped, encode_all
from edgepd.adapt.grouping import grouped
from edgepd.adapt.hyperparameters import TrainConfig
from edgepd.adapt.job import Job, JobExample
from edgepd.adapt.linear import QuantLinear
from edgepd.adapt.objectives import Objective, objective
from edgepd.adapt.presets import applied, preset
from edgepd.adapt.replay import encode_general, general_examples
from edgepd.adapt.returns import CAPACITY, GAMMA, reward_weighted
from edgepd.adapt.shaping import schedule
from edgepd.chat import ChatFormat
from edgepd.errors import TrainingError
from edgepd.llama import Model
from edgepd_quant.adapter_file import Kind
from edgepd_quant.types import BLOCK_SIZES

# From this many training examples on, the newest share is set aside to stop early on. Fewer are too few to judge
# by, and each of them is worth more as something to learn from.
EARLY_STOPPING_FROM = 16
EARLY_STOPPING_SHARE = 0.15
BATCH = 4  # examples per optimiser step; LoRA dislikes large batches
PATIENCE = 2
# A preference pulls on whole answers and not on each token, and has no optimum to come to rest in.
PREFERENCE_RATE = 0.1  # of the learning rate for imitation
PREFERENCES = ("dpo", "simpo", "kto", "apo-zero")
SUPERBLOCK = 256  # weights that share a scale in K-quants
KINDS: dict[str, Kind] = {"scale": "scale", "shift": "shift", "gain": "gain"}


@dataclass(frozen=True)
class Data:
    """The examples of a run as token ids."""

    learn_from: list[Encoded]
    stop_on: list[Encoded]  # for early stopping; none on a small set
    held_out: list[Encoded]  # for the gate alone
    general: list[Encoded]  # the base's own answers
    skipped: list[Skipped]


@dataclass(frozen=True)
class Recipe:
    """What is trained and how, before memory and time are considered."""

    settings: dict[str, Any]  # with the preset laid over them
    config: TrainConfig
    epochs: list[list[Batch]]
    objective: Objective


def read_settings(job: Job) -> dict[str, Any]:
    """Return the settings of the job with those of its preset laid over them."""
    return applied(job.settings, preset(job.settings["preset"]))


def prepare_data(job: Job, settings: dict[str, Any], told: Callable[[int, int], None]) -> Data:
    """Tokenise the examples as serving does, and fetch or generate general ones where they are wanted.

    On the fast path there is no time to generate any. `told` is called with done and total while that goes on. Raises
    TrainingError if a side has no example that fits.
    """
    examples, withheld = without_secrets([_example(e) for e in job.train])
    if settings["objective"] == "reward":
        gamma, capacity = settings.get("reward_discount", GAMMA), settings.get("replay_buffer", CAPACITY)
        examples = reward_weighted(examples, gamma=gamma, capacity=capacity)
    with Model(Path(job.base), vocab_only=True) as tokenizer:
        chat = ChatFormat(tokenizer)
        train_set, skipped = encode_all(chat, examples, job.max_tokens)
        held_out, skipped_held_out = encode_all(chat, [_example(e) for e in job.held_out], job.max_tokens)
        general: list[Encoded] = []
        if _wants_general(settings):
            count, hurry = settings["replay_examples"], job.kind == "live" or job.plan_only
            found = general_examples(
                chat,
                Path(job.original),
                job.original_sha256,
                count,
                Path(job.replay_dir),
                job.threads,
                cached_only=hurry,
                progress=told,
            )
            general = encode_general(chat, found, job.max_tokens)
    for side, encoded in (("to train on", train_set), ("to judge by", held_out)):
        if not encoded:
            raise TrainingError(
                f"no example {side} fits into {job.max_tokens} tokens; correct some shorter answers first"
            )
    wanted = [e for e in train_set if e.desirable]
    stop = int(len(wanted) * EARLY_STOPPING_SHARE) if len(wanted) >= EARLY_STOPPING_FROM else 0
    stop_on = wanted[len(wanted) - stop :]
    learn_from = [e for e in train_set if e not in stop_on]
    return Data(learn_from, stop_on, held_out, general, withheld + skipped + skipped_held_out)


def without_secrets(examples: Sequence[Example]) -> tuple[list[Example], list[Skipped]]:
    """Return those whose answers hold nothing that looks like a secret, and which others are not learned from.

    The gate's probe would let a secret pass that was learned a little, and not by heart. A secret in a prompt, which is
    context and not learned, is replaced by the name of its kind.
    """
    kinds = [next((secret.kind for secret in secrets.find(e.response)), None) for e in examples]
    withheld = [
        Skipped(e.id, f"example {e.id}: its answer holds what looks like a secret ({kind}), which is never learned")
        for e, kind in zip(examples, kinds, strict=True)
        if kind is not None
    ]
    kept = [e for e, kind in zip(examples, kinds, strict=True) if kind is None]
    return [replace(e, messages=[_scrubbed(message) for message in e.messages]) for e in kept], withheld


def _scrubbed(message: Mapping[str, Any]) -> Mapping[str, Any]:
    content = message.get("content")
    return {**message, "content": secrets.scrub(content)} if isinstance(content, str) else message


def make_recipe(job: Job, settings: dict[str, Any], data: Data, decoder: Decoder) -> Recipe:
    """Lay out the run. Raises TrainingError or ConfigError for settings that do not go together."""
    name = settings["objective"]
    live = job.kind == "live"
    kind: Kind = "lora" if live else KINDS[settings["baked_kind"]]
    rate = settings["live_learning_rate" if live else _rate_name(kind, decoder)]
    kl_weight = settings["kl_weight"] if data.general else 0.0
    config = TrainConfig(
        kind=kind,
        rank=settings["rank"],
        alpha=2.0 * settings["rank"],
        rs_lora=settings["rs_lora"],
        top_layers=settings["top_layers"],
        learning_rate=rate * (PREFERENCE_RATE if name in PREFERENCES else 1.0),
        lora_plus=settings["lora_plus"],
        weight_decay=0.0 if settings.get("optimizer") == "adam" else settings.get("weight_decay", 0.01),
        patience=settings.get("patience", PATIENCE),
        seed=settings["seed"],
        objective=name,
        kl_weight=kl_weight,
    )
    nearest = grouped(
        settings["grouping"],
        settings["group_distance"],
        decoder,
        data.learn_from,
        data.general,
        seed=settings["seed"],
    )
    epochs = schedule(
        data.learn_from,
        data.general,
        shaping=settings["shaping"] if data.general else "none",
        personal_every=settings["personal_every"],
        general_steps=settings["general_steps"],
        batch=settings.get("batch", BATCH),
        epochs=settings["epochs"],
        seed=settings["seed"],
        grouped=nearest,
    )
    return Recipe(settings, config, epochs, objective(name, anchors=data.general, kl_weight=kl_weight))


def stopping_set(recipe: Recipe, data: Data) -> Sequence[Encoded]:
    """Return what early stopping looks at.

    Nothing in early shaping: there the general examples come last, and the state before them would always look better.
    """
    return [] if recipe.settings["shaping"] == "early" and data.general else data.stop_on


def _rate_name(kind: Kind, decoder: Decoder) -> str:
    """Return which setting is the learning rate; coarser blocks are moved by more weights, and take about half."""
    linears = [linear for block in decoder.blocks for group in block.groups for linear in group.linears]
    coarse = sum(linear.out_features * linear.in_features for linear in linears if _block(linear) == SUPERBLOCK)
    total = sum(linear.out_features * linear.in_features for linear in linears)
    return "superblock_learning_rate" if kind == "scale" and 2 * coarse > total else f"{kind}_learning_rate"


def _block(linear: QuantLinear) -> int:
    return BLOCK_SIZES[linear.qtype].elements


def _wants_general(settings: dict[str, Any]) -> bool:
    return bool(settings["shaping"] != "none" or settings["grouping"] != "none" or settings["kl_weight"] > 0)


def _example(e: JobExample) -> Example:
    return Example(e.id, e.messages, e.response, e.weight, e.rejected, e.desirable, e.reward, e.conversation)
