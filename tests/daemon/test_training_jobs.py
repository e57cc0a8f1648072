"""What a run learns from, on both paths, and the job that comes of it."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from edgepd.adapt.job import Job, JobExample
from edgepd.errors import TrainingError
from edgepd.settings import Gate, Select, Serve, Settings, Train
from edgepd_daemon.training_jobs import Chosen, Places, choose, find_examples, fresh_and_replay, make_job
from edgepd_profiles import feedback, interactions
from edgepd_profiles.examples import Example, data_hash
from edgepd_profiles.interactions import Interaction
from edgepd_profiles.lineage import taught_to
from edgepd_profiles.registry import Generation
from edgepd_profiles.store import Store

PLACES = Places(Path("/data/runs"), Path("/data/replay"))


def example(number: int, **fields: Any) -> Example:
    """The feedback that was given at this second, in a conversation of its own."""
    messages = [{"role": "user", "content": f"Question {number}"}]
    values = {"id": f"e{number}", "conversation": f"c{number}", "created_at": float(number), "weight": 1.0}
    return Example(**{**values, "messages": messages, "response": f"Answer {number}", **fields})


def generation(created_at: float = 0.0, *taught: int, **fields: Any) -> Generation:
    values: dict[str, Any] = {f.name: None for f in dataclasses.fields(Generation)}
    values |= {"id": 1, "kind": "base", "created_at": created_at, "example_ids": [f"e{n}" for n in taught]}
    return Generation(**{**values, "config": {}, **fields})


def numbers(examples: list[Example]) -> list[int]:
    return [int(e.id[1:]) for e in examples]


FOUND = [example(n) for n in range(1, 101)]


def test_on_the_base_everything_is_new_and_the_newest_are_taken() -> None:
    base = generation(created_at=50.5)  # the base's own time means nothing: it was taught none of it
    assert numbers(fresh_and_replay(FOUND, base, 10, seed=0)) == list(range(91, 101))
    assert numbers(fresh_and_replay(FOUND, base, 200, seed=0)) == list(range(1, 101))


def test_what_is_new_is_taken_whole_and_the_rest_is_replayed() -> None:
    active = generation(95.0, *range(1, 91))
    chosen = numbers(fresh_and_replay(FOUND, active, 16, seed=0))
    assert chosen[6:] == list(range(91, 101))  # held out by it, given while it was trained, or later
    replayed = chosen[:6]
    assert len(replayed) == len(set(replayed)) == 6
    assert replayed == sorted(replayed)
    assert max(replayed) <= 90
    assert replayed != list(range(85, 91))  # from all that is older, not from the newest of it


def test_replay_depends_on_the_seed_alone() -> None:
    active = generation(95.0, *range(1, 91))
    first = fresh_and_replay(FOUND, active, 16, seed=0)
    assert fresh_and_replay(FOUND, active, 16, seed=0) == first
    assert fresh_and_replay(FOUND, active, 16, seed=1) != first


def test_more_news_than_fit_leave_no_room_for_replay() -> None:
    active = generation(50.0, *range(1, 41))
    assert numbers(fresh_and_replay(FOUND, active, 8, seed=0)) == list(range(93, 101))


def test_little_experience_is_replayed_whole() -> None:
    active = generation(7.0, 1, 2, 3, 4, 5, 6)
    assert numbers(fresh_and_replay(FOUND[:9], active, 64, seed=0)) == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_a_correction_that_was_corrected_again_is_new_and_makes_nothing_else_old() -> None:
    again = example(3, created_at=90.5)  # known to the active generation, as it was before
    found = [e for e in FOUND[:90] if e.id != "e3"] + [again]
    active = generation(85.0, *range(1, 81))
    chosen = fresh_and_replay(found, active, 12, seed=0)
    assert numbers(chosen)[1:] == [*range(81, 91), 3]


def known(active: Generation) -> set[str]:
    return set(active.example_ids)


def test_the_normal_path_takes_the_newest_whatever_is_active() -> None:
    settings = Settings(train=Train(baked_examples=40, live_examples=4))
    active = generation(95.0, *range(1, 91))
    chosen = choose(FOUND, active, known(active), "baked", settings)
    assert chosen.kind == "baked"
    assert numbers(chosen.held_out) == [91, 92, 93, 94, 95]  # what the active one was judged by
    assert numbers(chosen.train) == [*range(61, 91), *range(96, 101)]
    chosen = choose(FOUND, generation(), [], "baked", settings)
    assert (numbers(chosen.train), numbers(chosen.held_out)) == ([*range(61, 91)], [*range(91, 101)])


def test_the_fast_path_holds_out_what_judged_before() -> None:
    active = generation(95.0, *range(1, 91))
    chosen = choose(FOUND, active, known(active), "live", Settings(train=Train(live_examples=16)))
    assert (chosen.kind, numbers(chosen.held_out)) == ("live", [91, 92, 93, 94, 95])
    assert numbers(chosen.train)[6:] == [96, 97, 98, 99, 100]
    assert max(numbers(chosen.train)[:6]) <= 90


def test_news_is_learned_at_once_and_judged_by_what_was_held_out_before() -> None:
    """Generation 1 was trained on 0-8 at time 13.5 and judged by 9-13; 14-15 came afterwards."""
    found = [example(n) for n in range(16)]
    active = generation(13.5, *range(9))
    chosen = choose(found, active, known(active), "live", Settings())
    assert numbers(chosen.held_out) == [9, 10, 11, 12, 13]
    assert numbers(chosen.train) == [*range(9), 14, 15]


@pytest.mark.parametrize("kind", ["live", "baked"])
def test_too_few_examples_are_refused_with_advice(kind: Any) -> None:
    with pytest.raises(TrainingError) as refused:
        choose(FOUND[:9], generation(), [], kind, Settings())
    assert str(refused.value) == (
        "there are 9 different examples, but training needs at least 10; "
        "correct more answers with `edgepd fix` or accept them with `edgepd good`"
    )
    assert len(choose(FOUND[:10], generation(), [], kind, Settings()).held_out) == 5


@pytest.mark.parametrize("kind", ["live", "baked"])
def test_too_few_to_judge_by_are_refused_with_the_numbers(kind: Any) -> None:
    with pytest.raises(TrainingError) as refused:
        choose(FOUND[:12], generation(id=7), [e.id for e in FOUND[:9]], kind, Settings())
    assert str(refused.value) == (
        "only 3 of the 12 examples can be set aside to judge the result by, and it takes 5: wanted answers that differ "
        "from each other and that generation 7 was not taught; "
        "correct more answers with `edgepd fix` or accept them with `edgepd good`"
    )
    three = Settings(gate=Gate(min_held_out=3))
    assert numbers(choose(FOUND[:12], generation(), [e.id for e in FOUND[:9]], kind, three).held_out) == [10, 11, 12]


def test_examples_that_are_all_alike_are_refused_with_advice() -> None:
    alike = [example(n, messages=[], response="The same.") for n in range(12)]
    with pytest.raises(TrainingError, match="only 0 of the 12 examples can be set aside .*; correct more answers"):
        choose(alike, generation(), [], "live", Settings())


# What the model to be judged knows


FAMILY = [
    generation(),
    generation(0.0, 1, 2, id=2, kind="baked", parent=1, model_file="m.gguf"),
    generation(0.0, 3, id=3, kind="live", parent=2, model_file="m.gguf"),
    generation(0.0, 4, 5, id=4, kind="live", parent=3, model_file="m.gguf"),
    generation(0.0, 6, id=5, kind="baked", parent=4, model_file="n.gguf"),
    generation(0.0, 7, id=6, kind="live", parent=5, model_file="n.gguf"),
    generation(0.0, 8, id=7, kind="live", parent=1),
    generation(0.0, 9, id=8, kind="live", parent=99),  # its parent is not known any more
]


@pytest.mark.parametrize(
    ("number", "taught"),
    [
        (1, []),
        (2, [1, 2]),
        (3, [1, 2, 3]),
        (4, [1, 2, 3, 4, 5]),
        (5, [6]),  # began at the base again
        (6, [6, 7]),
        (7, [8]),
        (8, [9]),
    ],
)
def test_what_a_generation_was_taught_is_its_own_and_what_it_goes_on_from(number: int, taught: list[int]) -> None:
    assert taught_to(FAMILY[number - 1], FAMILY) == {f"e{n}" for n in taught}


def test_what_a_merged_generation_was_taught_is_what_its_parts_were() -> None:
    """It lists the examples of its parts, but not what those went on from; its parent is what was active then."""
    merged = generation(0.0, 3, 4, 5, id=9, kind="live", parent=1, model_file="m.gguf", config={"merged": [3, 4]})
    assert taught_to(merged, [*FAMILY, merged]) == {"e1", "e2", "e3", "e4", "e5"}


# Leakage that was planted


WORDS = [f"{a}{b}{c}" for a in ("ba", "du", "fi", "go", "ke") for b in ("la", "mo", "ni", "ru") for c in "bdfgklmnprst"]


def said(rng: random.Random, count: int) -> str:
    return " ".join(rng.choices(WORDS, k=count))


def disguised(rng: random.Random, text: str) -> str:
    """Change one word, leave it out, add another, or change what is no word at all."""
    words = text.split()
    at = rng.randrange(len(words))
    way = rng.randrange(4)
    if way == 3:
        return ", ".join(words).upper() + " !"
    words[at : at + (0 if way == 2 else 1)] = [] if way == 1 else [said(rng, 1)]
    return " ".join(words)


def planted(rng: random.Random, families: int) -> dict[str, list[int]]:
    """Return for each family the seconds at which it was given, up to three times, anywhere among all."""
    sizes = [rng.choice((1, 1, 1, 2, 3)) for _ in range(families)]
    order = rng.sample(range(1, sum(sizes) + 1), sum(sizes))
    return {f"f{n}": [order.pop() for _ in range(size)] for n, size in enumerate(sizes)}


def written(rng: random.Random, families: dict[str, list[int]]) -> list[Example]:
    """Return the examples of all families by time: of each the prompt and the answer, and disguises of them."""
    made = []
    for seconds in families.values():
        prompt, answer = said(rng, rng.randint(4, 12)), said(rng, rng.randint(8, 20))
        for copy, second in enumerate(seconds):
            changed = rng.randrange(2) if copy else None
            asked = [{"role": "user", "content": disguised(rng, prompt) if changed == 0 else prompt}]
            wanted = disguised(rng, answer) if changed == 1 else answer
            made.append(example(second, messages=asked, response=wanted))
    return sorted(made, key=lambda e: e.created_at)


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(seed=st.integers(0, 10**6), kind=st.sampled_from(["live", "baked"]), share=st.floats(0, 0.5))
def test_planted_near_duplicates_are_never_on_both_sides(seed: int, kind: Any, share: float) -> None:
    rng = random.Random(seed)
    families = planted(rng, 24)
    found = written(rng, families)
    taught = [e.id for e in found[: int(share * len(found))]]
    active = generation(found[len(taught)].created_at - 0.5, example_ids=taught)
    chosen = choose(found, active, taught, kind, Settings())
    sides = {e.id: name for name in ("train", "held_out") for e in getattr(chosen, name)}
    for seconds in families.values():
        ids = [f"e{n}" for n in seconds]
        assert len({sides[i] for i in ids}) == 1, ids
        assert sides[ids[0]] == "train" or not set(ids) & set(taught), ids
    assert len(chosen.held_out) >= 5


def test_a_disguise_of_what_was_taught_is_not_held_out_although_that_is_not_replayed() -> None:
    rng = random.Random(0)
    copies = {f"f{n}": [n] for n in range(1, 51)} | {f"f{n}": [n, n + 50] for n in range(1, 9)}
    found = written(rng, copies)
    active = generation(50.5, *range(1, 51))
    settings = Settings(train=Train(live_examples=10), gate=Gate(min_held_out=2))
    found += [example(n) for n in range(59, 61)]
    chosen = choose(found, active, known(active), "live", settings)
    assert len(chosen.train) + len(chosen.held_out) == 10  # hardly any of what was taught
    assert numbers(chosen.held_out) == [59, 60]


def test_answers_with_a_thumb_down_are_for_objectives_that_learn_from_them(tmp_path: Path) -> None:
    with Store.open(tmp_path / "profile.db") as store:
        for name, thumb in (("good", 1), ("bad", -1)):
            asked = Interaction(
                *(name, name, 1.0, "cli", "tiny", 1, [{"role": "user", "content": "Hi"}]), response=name, state="done"
            )
            store.write(lambda conn, asked=asked: interactions.begin(conn, asked)).result()
            store.write(lambda conn, name=name, thumb=thumb: feedback.set_thumb(conn, name, thumb)).result()

        def found(objective: str) -> list[tuple[str, bool]]:
            return [(e.response, e.desirable) for e in find_examples(store, Train(objective=objective), Select())]

        for objective in ("sft", "dpo", "simpo"):
            assert found(objective) == [("good", True)]
        for objective in ("reward", "kto", "apo-zero"):
            assert found(objective) == [("good", True), ("bad", False)]
        assert [e.weight for e in find_examples(store, Train(accepted_weight=0.25), Select())] == [0.25]


class Files(SimpleNamespace):
    """The part of Generations that says where files are."""

    base = SimpleNamespace(path=Path("/models/tiny.gguf"), sha256="base")
    directory = Path("/data/generations")

    def model_path(self, active: Generation) -> Path:
        return self.directory / active.model_file if active.model_file else self.base.path

    def model_sha256(self, active: Generation) -> str:
        return "baked" if active.model_file else "base"


def job(active: Generation, kind: Any, settings: Settings | None = None) -> Job:
    chosen = Chosen(kind, [example(1, rejected="No", reward=0.5)], [example(2), example(3)])
    files: Any = Files()
    return make_job(files, active, chosen, settings or Settings(), PLACES, f"{kind}-7")


def test_a_live_job_goes_on_from_the_active_adapter() -> None:
    active = generation(id=4, kind="live", model_file="baked-2.gguf", adapter_file="live-3.gguf")
    made = job(active, "live")
    assert (made.base, made.base_sha256) == ("/data/generations/baked-2.gguf", "baked")
    assert made.start_adapter == made.current_adapter == "/data/generations/live-3.gguf"
    assert (made.original, made.current_model) == ("/models/tiny.gguf", "/data/generations/baked-2.gguf")
    assert (made.output, made.checkpoint_dir) == ("/data/generations/live-7.gguf", "/data/runs/live")
    assert (made.parent, made.plan_only) == (4, False)


def test_a_baked_job_begins_at_the_original_base() -> None:
    active = generation(id=4, kind="live", model_file="baked-2.gguf", adapter_file="live-3.gguf")
    made = job(active, "baked")
    assert (made.base, made.base_sha256, made.start_adapter) == ("/models/tiny.gguf", "base", None)
    assert made.current_model == "/data/generations/baked-2.gguf"
    assert made.current_adapter == "/data/generations/live-3.gguf"
    assert (made.checkpoint_dir, made.plan_only) == ("/data/runs/baked", False)


def test_the_first_live_job_has_nothing_to_go_on_from() -> None:
    made = job(generation(), "live")
    assert (made.base, made.start_adapter, made.current_adapter) == ("/models/tiny.gguf", None, None)


def test_a_job_carries_the_settings_and_everything_about_its_examples() -> None:
    train, gate = Train(rank=4, objective="dpo", threads=3, epochs=2), Gate(max_perplexity_rise=0.5, max_kl=0.25)
    made = job(generation(), "live", Settings(serve=Serve(context_tokens=640), train=train, gate=gate))
    assert (made.settings, made.gate) == (dataclasses.asdict(train), dataclasses.asdict(gate))
    assert (made.threads, made.max_tokens, made.replay_dir) == (3, 640, "/data/replay")
    messages = [{"role": "user", "content": "Question 1"}]
    assert made.train == [JobExample("e1", messages, "Answer 1", 1.0, "No", True, 0.5, "c1")]
    assert [e.id for e in made.held_out] == ["e2", "e3"]
    assert made.data_hash == data_hash([example(1, rejected="No", reward=0.5)])
    assert Job.from_json(made.to_json()) == made


# What the other arms of the gate get to see


def job_of(train: list[Example], held_out: list[Example]) -> Job:
    files: Any = Files()
    return make_job(files, generation(), Chosen("live", train, held_out), Settings(), PLACES, "live-7")


def test_what_is_shown_before_a_held_out_example_is_from_the_training_side_only() -> None:
    chosen = choose(FOUND, generation(), [], "baked", Settings(train=Train(baked_examples=40)))
    made = job_of(chosen.train, chosen.held_out)
    trained = {(e.prompt, e.response) for e in chosen.train}
    for e in made.held_out:
        shown = [(e.shots[n]["content"], e.shots[n + 1]["content"]) for n in range(0, len(e.shots), 2)]
        assert len(shown) == 2
        assert [m["role"] for m in e.shots] == ["user", "assistant"] * 2
        assert set(shown) <= trained
    assert all(e.shots == [] for e in made.train)


def test_shown_is_what_is_like_the_prompt_and_only_its_last_question() -> None:
    def asked(number: int, text: str, answer: str, *earlier: str) -> Example:
        messages = [{"role": "user", "content": t} for t in (*earlier, text)]
        return example(number, messages=messages, response=answer)

    train = [
        asked(1, "Which cheese melts well?", "Raclette.", "Good morning"),
        asked(2, "Where do herons nest?", "In tall trees."),
        asked(3, "Which cheese keeps longest?", "A hard one."),
    ]
    [held_out] = job_of(train, [asked(9, "Name a cheese for soup", "Gruyere.")]).held_out
    assert {m["content"] for m in held_out.shots} == {
        *("Which cheese melts well?", "Raclette."),
        *("Which cheese keeps longest?", "A hard one."),
    }


def test_the_profile_prompt_is_read_off_the_training_side_only() -> None:
    train = [example(n, response=f"In short: {n} apples") for n in range(1, 8)]
    held_out = [example(n, response=f"Well now, {n} pears, I would say") for n in range(8, 13)]
    assert job_of(train, held_out).profile_prompt == (
        'Answer the way this user likes it. Begin with "In short:". End with "apples". Keep it short: about 4 words.'
    )
    assert job_of(train[:3], held_out).profile_prompt is None  # of so few nothing can be said to be usual
