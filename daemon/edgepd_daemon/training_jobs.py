"""What a training run learns from, and the job that its child process gets.

The idea: ASLS's two speeds. The fast path (`live`) takes what the active generation has not been taught yet and, as far
as there is room, a sample of what it has, so that it does not forget; it goes on from the active live adapter. The
normal path (`baked`) takes the newest examples and begins at the original base. Invariants: the same profile and
settings give the same job, so that an interrupted run can go on where it was; what is held out is never trained on.
What this does not do: start the child, or decide when to train.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from edgepd.adapt.job import Job, JobExample, JobKind
from edgepd.adapt.presets import applied, preset
from edgepd.errors import TrainingError
from edgepd.settings import Select, Settings, Train
from edgepd_daemon.cores import physical_cores
from edgepd_daemon.generations import Generations
from edgepd_profiles import examples as example_rows
from edgepd_profiles import near_duplicates, profile_text, retrieval, similar_pairs
from edgepd_profiles.examples import Example
from edgepd_profiles.registry import Generation
from edgepd_profiles.store import Store

# Objectives that learn from an answer with a thumb down as well; the others would imitate it.
LEARN_FROM_UNDESIRABLE = ("kto", "apo-zero", "reward")
OFFERED = 50  # examples that one transaction offers to the selection
SIMILAR_WEIGHT = 0.25  # of a pair that the model made; one that the user wrote has 1
ADVICE = "correct more answers with `edgepd fix` or accept them with `edgepd good`"


@dataclass(frozen=True)
class Chosen:
    """The examples of one run, each side in the order of the feedback."""

    kind: JobKind
    train: list[Example]
    held_out: list[Example]


@dataclass(frozen=True)
class Places:
    """Where runs keep their files: checkpoints below `runs`, general examples in `replay`."""

    runs: Path
    replay: Path


def keep_examples(store: Store, select: Select, pool: str = "examples") -> set[str]:
    """Offer what is new to a pool of the selection, and return the ids of what it keeps. Blocks.

    The cost is that of what is new, however long the history is.
    """
    # Loads numpy, which a daemon that has selected nothing does without.
    from edgepd_profiles.selection import bins  # noqa: PLC0415

    while store.write(lambda c: bins.offer_new(c, pool, select.policy, select.slots, OFFERED)).result():
        continue
    with store.read() as conn:
        return bins.ids(conn, pool)


def find_examples(store: Store, train: Train, select: Select) -> list[Example]:
    """Return what the selection keeps for the objective in the settings, ordered by the time of the feedback."""
    kept = keep_examples(store, select)
    with store.read() as conn:
        return example_rows.training_examples(
            conn, train.accepted_weight, undesirable=learns_from_undesirable(train), only=kept
        )


def learns_from_undesirable(train: Train) -> bool:
    """Say whether the objective in the settings learns from answers that the user did not want as well."""
    return applied(asdict(train), preset(train.preset))["objective"] in LEARN_FROM_UNDESIRABLE


def choose(
    found: Sequence[Example], active: Generation, taught: Collection[str], kind: JobKind, settings: Settings
) -> Chosen:
    """Choose among `found`, which is ordered by the time of the feedback; the active generation knows `taught`.

    Raises TrainingError if it is too little.
    """
    train, at_least = settings.train, settings.gate.min_held_out
    if kind == "live":
        chosen = fresh_and_replay(found, active, train.live_examples, train.seed)
    else:
        chosen = list(found[-train.baked_examples :])
    if len(chosen) < train.min_examples:
        raise TrainingError(
            f"there are {len(chosen)} different examples, but training needs at least {train.min_examples}; {ADVICE}"
        )
    # What was set aside to judge the active generation judges the next one too, so that the newest feedback, which it
    # could not know, is learned at once and not held out in its turn.
    before = [e.id for e in chosen if taught and e.id not in taught and e.created_at <= active.created_at]
    known = _with_likenesses(found, taught)
    learn, held_out = example_rows.split(chosen, train.held_out_fraction, before, min_held_out=at_least, taught=known)
    if len(held_out) < at_least:
        raise TrainingError(
            f"only {len(held_out)} of the {len(chosen)} examples can be set aside to judge the result by, and it takes "
            f"{at_least}: wanted answers that differ from each other and that generation {active.id} was not taught; "
            f"{ADVICE}"
        )
    return Chosen(kind, learn, held_out)


def with_similar_pairs(store: Store, chosen: Chosen) -> Chosen:
    """Add, for a consolidation, the pairs that the model made like the examples to be learned. Blocks shortly.

    They are added after the split, so none is like an answer that is held out.
    """
    if chosen.kind != "baked":
        return chosen
    with store.read() as conn:
        pairs = similar_pairs.examples_of(conn, chosen.train, SIMILAR_WEIGHT)
    return replace(chosen, train=[*chosen.train, *pairs])


def _with_likenesses(found: Sequence[Example], taught: Collection[str]) -> set[str]:
    """Return the ids taught and those of near-duplicates: what was taught need not be among what is chosen now."""
    groups = near_duplicates.joined([example.text for example in found]).groups()
    members = [{found[n].id for n in group} for group in groups]
    return {*taught, *(known for ids in members if not ids.isdisjoint(taught) for known in ids)}


def fresh_and_replay(found: Sequence[Example], active: Generation, limit: int, seed: int) -> list[Example]:
    """Return at most `limit` examples: what is new to `active`, the newest first, then a sample of what it knows.

    New is what the user gave after the newest example that `active` was trained on. That includes what was held out
    to judge it, and feedback that came in while it was being trained, which its own time of creation would miss.
    """
    taught = set(active.example_ids)
    # A correction that was corrected again since is new, although its id is known.
    known = [e.created_at for e in found if e.id in taught and e.created_at <= active.created_at]
    newest_known = max(known, default=-math.inf)
    fresh = [e for e in found if e.created_at > newest_known][-limit:]
    older = [e for e in found if e.created_at <= newest_known]
    room = min(limit - len(fresh), len(older))
    replayed = random.Random(seed).sample(range(len(older)), room)  # noqa: S311 - which ones is no secret
    return [older[n] for n in sorted(replayed)] + fresh


def make_job(
    generations: Generations,
    active: Generation,
    chosen: Chosen,
    settings: Settings,
    places: Places,
    name: str,
) -> Job:
    """Return the job that trains `chosen`; `name` is that of the output file, without its ending. Blocks shortly.

    Raises ModelError if the files of the active generation are not known.
    """
    kind, live = chosen.kind, chosen.kind == "live"
    with retrieval.Index(chosen.train) as index:
        held_out = [_for_job(e, index.similar(e)) for e in chosen.held_out]
    adapter = str(generations.directory / active.adapter_file) if active.adapter_file else None
    return Job(
        kind=kind,
        base=str(generations.model_path(active) if live else generations.base.path),
        base_sha256=generations.model_sha256(active) if live else generations.base.sha256,
        original=str(generations.base.path),
        original_sha256=generations.base.sha256,
        current_model=str(generations.model_path(active)),
        current_adapter=adapter,
        output=str(generations.directory / f"{name}.gguf"),
        checkpoint_dir=str(places.runs / kind),
        replay_dir=str(places.replay),
        train=[_for_job(e) for e in chosen.train],
        held_out=held_out,
        data_hash=example_rows.data_hash(chosen.train),
        settings=asdict(settings.train),
        threads=settings.train.threads or physical_cores(),
        gate=asdict(settings.gate),
        max_tokens=settings.serve.context_tokens,
        parent=active.id,
        start_adapter=adapter if live else None,
        profile_prompt=profile_text.describe_examples(chosen.train),
    )


def _for_job(example: Example, similar: Sequence[Example] = ()) -> JobExample:
    """Return an example for a job; the exchanges that are `similar` are shown before it in the arm that retrieves."""
    return JobExample(
        example.id,
        example.messages,
        example.response,
        example.weight,
        example.rejected,
        example.desirable,
        example.reward,
        example.conversation,
        [message for other in similar for message in (*other.messages[-1:], _answered(other))],
    )


def _answered(example: Example) -> dict[str, str]:
    return {"role": "assistant", "content": example.response}
