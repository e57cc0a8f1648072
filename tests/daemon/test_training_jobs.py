"""What a run learns from, on both paths, and the job that comes of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgepd.adapt.job import Job, JobExample
from edgepd.errors import TrainingError
from edgepd.settings import Gate, Serve, Settings, Train
from edgepd_daemon.training_jobs import Chosen, Places, choose, find_examples, fresh_and_replay, make_job
from edgepd_profiles import feedback, interactions
from edgepd_profiles.examples import Example, data_hash
from edgepd_profiles.interactions import Interaction
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
    return Generation(**{**values, **fields})


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


def test_the_normal_path_takes_the_newest_whatever_is_active() -> None:
    train = Train(baked_examples=40, live_examples=4)
    chosen = choose(FOUND, generation(95.0, *range(1, 91)), "baked", train)
    assert chosen.kind == "baked"
    assert numbers(chosen.train) == list(range(61, 91))
    assert numbers(chosen.held_out) == list(range(91, 101))


def test_the_fast_path_holds_out_the_newest_that_judged_before() -> None:
    train = Train(live_examples=16)
    chosen = choose(FOUND, generation(95.0, *range(1, 91)), "live", train)
    assert (chosen.kind, numbers(chosen.held_out)) == ("live", [92, 93, 94, 95])
    assert numbers(chosen.train)[-6:] == [91, 96, 97, 98, 99, 100]
    assert len(chosen.train) == 12


def test_news_is_learned_at_once_and_judged_by_what_was_held_out_before() -> None:
    """Generation 1 was trained on 0-8 at time 11.5 and judged by 9-11; 12-13 came afterwards."""
    found = [example(n) for n in range(14)]
    active = generation(11.5, *range(9))
    chosen = choose(found, active, "live", Train())
    assert numbers(chosen.held_out) == [9, 10, 11]
    assert numbers(chosen.train) == [*range(9), 12, 13]


@pytest.mark.parametrize("kind", ["live", "baked"])
def test_too_few_examples_are_refused_with_advice(kind: Any) -> None:
    with pytest.raises(TrainingError) as refused:
        choose(FOUND[:5], generation(), kind, Train())
    assert str(refused.value) == (
        "there are 5 different examples, but training needs at least 6; "
        "correct more answers with `edgepd fix` or accept them with `edgepd good`"
    )
    assert len(choose(FOUND[:6], generation(), kind, Train()).held_out) == 2


def test_examples_that_are_all_alike_are_refused_with_advice() -> None:
    alike = [example(n, messages=[], response="The same.") for n in range(8)]
    with pytest.raises(TrainingError, match="none of the 8 examples can be set aside .*; correct more answers"):
        choose(alike, generation(), "live", Train())


def test_answers_with_a_thumb_down_are_for_objectives_that_learn_from_them(tmp_path: Path) -> None:
    with Store.open(tmp_path / "profile.db") as store:
        for name, thumb in (("good", 1), ("bad", -1)):
            asked = Interaction(
                *(name, name, 1.0, "cli", "tiny", 1, [{"role": "user", "content": "Hi"}]), response=name, state="done"
            )
            store.write(lambda conn, asked=asked: interactions.begin(conn, asked)).result()
            store.write(lambda conn, name=name, thumb=thumb: feedback.set_thumb(conn, name, thumb)).result()

        def found(objective: str) -> list[tuple[str, bool]]:
            return [(e.response, e.desirable) for e in find_examples(store, Train(objective=objective))]

        for objective in ("sft", "dpo", "simpo"):
            assert found(objective) == [("good", True)]
        for objective in ("reward", "kto", "apo-zero"):
            assert found(objective) == [("good", True), ("bad", False)]
        assert [e.weight for e in find_examples(store, Train(accepted_weight=0.25))] == [0.25]


class Files(SimpleNamespace):
    """The part of Generations that says where files are."""

    base = SimpleNamespace(path=Path("/models/tiny.gguf"), sha256="base")
    directory = Path("/data/generations")

    def model_path(self, active: Generation) -> Path:
        return self.directory / active.model_file if active.model_file else self.base.path

    def model_sha256(self, active: Generation) -> str:
        return "baked" if active.model_file else "base"


def job(active: Generation, kind: Any, settings: Settings | None = None, **fields: Any) -> Job:
    chosen = Chosen(kind, [example(1, rejected="No", reward=0.5)], [example(2), example(3)])
    files: Any = Files()
    return make_job(files, active, chosen, settings or Settings(), PLACES, f"{kind}-7", **fields)


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
    made = job(active, "baked", plan_only=True)
    assert (made.base, made.base_sha256, made.start_adapter) == ("/models/tiny.gguf", "base", None)
    assert made.current_model == "/data/generations/baked-2.gguf"
    assert made.current_adapter == "/data/generations/live-3.gguf"
    assert (made.checkpoint_dir, made.plan_only) == ("/data/runs/baked", True)


def test_the_first_live_job_has_nothing_to_go_on_from() -> None:
    made = job(generation(), "live")
    assert (made.base, made.start_adapter, made.current_adapter) == ("/models/tiny.gguf", None, None)


def test_a_job_carries_the_settings_and_everything_about_its_examples() -> None:
    train = Train(rank=4, objective="dpo", threads=3, epochs=2)
    settings = Settings(Serve(context_tokens=640), train, Gate(0.5, 0.25))
    made = job(generation(), "live", settings)
    assert made.settings == dataclasses.asdict(train)
    assert (made.threads, made.max_tokens, made.max_perplexity_rise, made.min_kept_gain) == (3, 640, 0.5, 0.25)
    assert made.replay_dir == "/data/replay"
    messages = [{"role": "user", "content": "Question 1"}]
    assert made.train == [JobExample("e1", messages, "Answer 1", 1.0, "No", True, 0.5, "c1")]
    assert [e.id for e in made.held_out] == ["e2", "e3"]
    assert made.data_hash == data_hash([example(1, rejected="No", reward=0.5)])
    assert Job.from_json(made.to_json()) == made
