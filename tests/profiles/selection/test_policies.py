from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepd_profiles.selection.candidates import POLICIES, Candidate, Offer
from edgepd_profiles.selection.policies import Buffer, offer, select
from edgepd_profiles.selection.scores import dissimilarity


def towards(degrees: float) -> np.ndarray:
    return np.array([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))], dtype=np.float32)


def candidate(name: str, degrees: float | None = 0.0, **fields: float) -> Candidate:
    values: dict[str, float] = {"at": 0.0, **fields}
    return Candidate(id=name, vector=None if degrees is None else towards(degrees), **values)  # type: ignore[arg-type]


@st.composite
def streams(draw: st.DrawFn) -> list[Candidate]:
    """Candidates in the order in which they came, with few different values, so that ties are common."""
    few = st.sampled_from([0.0, 0.25, 0.5, 1.0])
    return [
        candidate(
            f"i{n:02}",
            draw(st.sampled_from([0, 10, 45, 90, 135, 180, 250])),
            at=draw(st.integers(0, 5)),
            reward=draw(st.sampled_from([-1.0, 0.0, 1.0])),
            entropy=draw(few),
            domain_score=draw(few),
            domain=draw(st.integers(0, 2)),
            order=n,
        )
        for n in range(draw(st.integers(1, 14)))
    ]


def run(stream: list[Candidate], slots: int, policy: str, seed: int) -> tuple[list[Candidate], list[Offer]]:
    """Offer one after the other, with a new Buffer for each, as calls in a row do."""
    kept: list[Candidate] = []
    offers = []
    for n, newcomer in enumerate(stream):
        outcome = offer(kept, newcomer, slots, policy, np.random.default_rng([seed, n]), n + 1)
        if outcome.kept:
            kept = [item for item in kept if item.id != outcome.replaced] + [newcomer]
        offers.append(outcome)
    return kept, offers


@settings(deadline=None)
@given(streams(), st.integers(1, 5), st.sampled_from(POLICIES), st.integers(0, 3))
def test_slots_are_never_exceeded_and_one_buffer_does_as_many_do(
    stream: list[Candidate], slots: int, policy: str, seed: int
) -> None:
    kept, offers = run(stream, slots, policy, seed)
    assert len(kept) == min(slots, len(stream))
    buffer = Buffer((), slots, policy)
    again = [buffer.offer(each, np.random.default_rng([seed, n]), n + 1) for n, each in enumerate(stream)]
    assert again == offers
    assert {item.id for item in buffer.items} == {item.id for item in kept}


@settings(deadline=None)
@given(streams(), st.integers(1, 5), st.integers(0, 3))
def test_under_qin_only_what_is_exceeded_in_all_three_scores_is_replaced(
    stream: list[Candidate], slots: int, seed: int
) -> None:
    kept: dict[str, Candidate] = {}
    for n, new in enumerate(stream):
        outcome = offer(list(kept.values()), new, slots, "qin", np.random.default_rng([seed, n]))

        def apart(one: Candidate) -> float:
            others = [k.vector for k in kept.values() if k.id != one.id and k.domain == one.domain]  # noqa: B023
            return dissimilarity(one.vector, others)  # type: ignore[arg-type]

        clear, unclear = set(), set()  # by a margin, or so nearly equal that rounding may decide
        for old in kept.values():
            if old.entropy < new.entropy and old.domain_score < new.domain_score:
                margin = apart(new) - apart(old)
                if margin > -1e-5:
                    (clear if margin > 1e-5 else unclear).add(old.id)
        if len(kept) < slots:
            assert outcome.kept and outcome.replaced is None
        elif outcome.kept:
            assert outcome.replaced in clear | unclear
        else:
            assert not clear
        if outcome.kept:
            kept.pop(outcome.replaced or "", None)
            kept[new.id] = new


@settings(deadline=None)
@given(streams(), st.integers(1, 5), st.sampled_from(["reward", "recency", "fifo"]), st.randoms(use_true_random=False))
def test_what_is_kept_by_a_key_does_not_depend_on_the_order_of_the_offers(
    stream: list[Candidate], slots: int, policy: str, random: object
) -> None:
    shuffled = list(stream)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    kept = {item.id for item in run(shuffled, slots, policy, 0)[0]}
    assert kept == {chosen.id for chosen in select(stream, slots, policy, 0)}


@settings(deadline=None)
@given(streams(), st.integers(2, 5))
def test_under_kcenter_the_smallest_distance_never_shrinks_once_it_is_full(stream: list[Candidate], slots: int) -> None:
    def closest(items: list[Candidate]) -> float:
        vectors = np.stack([item.vector for item in items])  # type: ignore[misc]
        return float((1 - vectors @ vectors.T + 9 * np.eye(len(items))).min())

    buffer, before = Buffer((), slots, "kcenter"), -1.0
    for newcomer in stream:
        buffer.offer(newcomer, np.random.default_rng(0))
        if len(buffer.items) == slots:
            assert closest(buffer.items) >= before - 1e-6
            before = closest(buffer.items)


@settings(deadline=None)
@given(streams(), st.integers(1, 5), st.sampled_from(POLICIES), st.randoms(use_true_random=False))
def test_selection_is_determined_by_the_candidates_and_the_seed(
    stream: list[Candidate], k: int, policy: str, random: object
) -> None:
    shuffled = list(stream)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    found = select(stream, k, policy, 5)
    assert select(shuffled, k, policy, 5) == found
    assert len({chosen.id for chosen in found}) == len(found) == min(k, len(stream))
    assert all(chosen.reason for chosen in found)


BINS = [
    candidate("a", 0, entropy=0.5, domain_score=0.2, domain=1),
    candidate("b", 60, entropy=0.5, domain_score=0.2, domain=1),
]


def test_a_newcomer_that_is_higher_in_all_three_takes_a_place_and_says_why() -> None:
    new = candidate("c", 180, entropy=0.6, domain_score=0.3, domain=1)
    outcome = offer(BINS, new, 2, "qin", np.random.default_rng(0))
    assert outcome.kept and outcome.replaced in ("a", "b")
    assert outcome.reason == (
        "new topic ({domain}): further from what is kept of its kind than 100 % of it, richer, "
        "and more about your topics"
    )


@pytest.mark.parametrize("lower", [{"entropy": 0.5}, {"domain_score": 0.2}])
def test_a_score_that_is_only_equal_is_not_enough(lower: dict[str, float]) -> None:
    new = replace(candidate("c", 180, entropy=0.6, domain_score=0.3, domain=1), **lower)  # type: ignore[arg-type]
    assert offer(BINS, new, 2, "qin", np.random.default_rng(0)).kept is False


def test_one_that_is_like_what_is_kept_is_dropped() -> None:
    new = candidate("c", 30, entropy=0.9, domain_score=0.9, domain=1)
    assert offer(BINS, new, 2, "qin", np.random.default_rng(0)).kept is False


def test_which_of_the_beaten_goes_is_drawn_by_the_seed() -> None:
    new = candidate("c", 180, entropy=0.6, domain_score=0.3, domain=1)
    gone = {offer(BINS, new, 2, "qin", np.random.default_rng(seed)).replaced for seed in range(20)}
    assert gone == {"a", "b"}


def test_without_a_vector_qin_and_kcenter_keep_nothing_and_the_others_do_not_mind() -> None:
    new = candidate("c", None, at=9, order=9, reward=1)
    for policy in ("qin", "kcenter"):
        assert offer([], new, 2, policy, np.random.default_rng(0)) == Offer(False, None, "it has no embedding yet")
        assert select([new], 2, policy, 0) == []
    for policy in ("reward", "recency", "fifo"):
        assert offer(BINS, new, 2, policy, np.random.default_rng(0)).kept


def test_bins_whose_vector_is_of_another_model_are_left_alone_by_kcenter() -> None:
    bins = [candidate("old", None), candidate("a", 0, at=1), candidate("b", 5, at=2)]
    assert offer(bins, candidate("c", 90), 3, "kcenter", np.random.default_rng(0)).replaced == "a"


def test_kcenter_takes_the_farthest_first() -> None:
    spread = [candidate(str(degrees), degrees, at=degrees) for degrees in (0, 10, 20, 90, 170, 180)]
    assert [chosen.id for chosen in select(spread, 3, "kcenter", 0)] == ["180", "0", "90"]


def test_of_equal_rewards_the_newest_are_kept() -> None:
    found = select(
        [candidate("a", at=1, reward=1), candidate("b", at=2, reward=1), candidate("c", at=3)], 2, "reward", 0
    )
    assert [(chosen.id, chosen.reason) for chosen in found] == [
        ("b", "the highest satisfaction is kept, and its own is +1.0"),
        ("a", "the highest satisfaction is kept, and its own is +1.0"),
    ]


def test_fifo_goes_by_arrival_and_recency_by_time() -> None:
    late = [candidate("old", at=1, order=3), candidate("new", at=9, order=1), candidate("mid", at=5, order=2)]
    assert [chosen.id for chosen in select(late, 2, "fifo", 0)] == ["old", "mid"]
    assert [chosen.id for chosen in select(late, 2, "recency", 0)] == ["new", "mid"]


def test_the_reservoir_keeps_all_with_equal_chance() -> None:
    stream = [candidate(f"{n}") for n in range(6)]
    counts = dict.fromkeys("012345", 0)
    for seed in range(600):
        for item in run(stream, 2, "random", seed)[0]:
            counts[item.id] += 1
    # 600 trials with p = 1/3: five standard deviations are 58.
    assert all(142 < count < 258 for count in counts.values())


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="policy 'best' is not known"):
        select([], 1, "best", 0)
    with pytest.raises(ValueError, match="0 slots"):
        Buffer([], 0, "fifo")
    with pytest.raises(ValueError, match="2 are kept, but there are 1 slots"):
        Buffer(BINS, 1, "fifo")
    with pytest.raises(ValueError, match="vector of 3 numbers, the others have 2"):
        Buffer([BINS[0], replace(BINS[1], vector=np.ones(3, np.float32))], 2, "qin")
