"""Schedules: what Algorithm 1 of the third paper prints, and what must hold whatever the sizes."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepd.adapt.batches import epoch_batches
from edgepd.adapt.examples import Batch, Encoded
from edgepd.adapt.shaping import is_personal, schedule
from edgepd.errors import ConfigError, TrainingError


def examples(prefix: str, count: int) -> list[Encoded]:
    return [Encoded(f"{prefix}{i}", (1, 2, 3), 1) for i in range(count)]


def letters(epochs: list[list[Batch]]) -> list[str]:
    """Each epoch as a word: P for a personal batch, G for a general one."""
    return ["".join("G" if batch.general else "P" for batch in epoch) for epoch in epochs]


def planned(personal: int, general: int, shaping: str, **changes: float) -> list[list[Batch]]:
    values = {"personal_every": 2.0, "general_steps": 3, "batch": 4, "epochs": 2, "seed": 5, **changes}
    return schedule(examples("p", personal), examples("g", general), shaping=shaping, **values)  # type: ignore[arg-type]


def as_printed(iteration: int, n: float) -> bool:
    """Line 6 of Algorithm 1."""
    return (iteration % n == 0 and n >= 1) or (iteration % (1 / n) != 0 and n < 1)


@pytest.mark.parametrize(
    ("n", "word"),
    [
        (0.25, "PPPGPPPGPPPG"),
        (1 / 3, "PPGPPGPPGPPG"),
        (0.333, "PPGPPGPPGPPG"),
        (0.5, "PGPGPGPGPGPG"),
        (1, "PPPPPPPPPPPP"),
        (2, "GPGPGPGPGPGP"),
        (2.5, "GGPGPGGPGPGG"),
        (3, "GGPGGPGGPGGP"),
    ],
)
def test_whose_turn_it_is(n: float, word: str) -> None:
    assert "".join("P" if is_personal(j, n) else "G" for j in range(1, 13)) == word


@pytest.mark.parametrize("n", [0.125, 0.25, 0.5, 1, 2, 3, 12])
def test_turns_are_those_of_the_printed_algorithm(n: float) -> None:
    assert [is_personal(j, n) for j in range(1, 500)] == [as_printed(j, n) for j in range(1, 500)]


def test_the_methods_in_order() -> None:
    # Ten personal examples in batches of at most 4 are three batches.
    assert letters(planned(10, 8, "none")) == ["PPP", "PPP"]
    assert letters(planned(10, 8, "early")) == ["PPP", "PPPGGG"]
    assert letters(planned(10, 8, "transfer")) == ["GGGPPP", "PPP"]
    assert letters(planned(10, 8, "weighing")) == ["GPGPGP", "GPGPGP"]
    assert letters(planned(10, 8, "weighing", personal_every=0.25)) == ["PPP", "GPPP"]


def test_plain_training_is_in_the_order_of_the_batches() -> None:
    own = examples("p", 10)
    wanted = [[Batch(tuple(part)) for part in epoch_batches(own, 4, 5, epoch)] for epoch in (1, 2)]
    assert planned(10, 8, "none") == wanted


sizes = st.integers(1, 30)
methods = st.sampled_from(["none", "early", "weighing", "transfer"])


@given(
    sizes, st.integers(0, 30), methods, st.floats(0.05, 20), st.integers(0, 12), st.integers(1, 9), st.integers(1, 4)
)
def test_each_personal_example_is_trained_on_once_per_epoch(
    personal: int, general: int, method: str, every: float, steps: int, batch: int, epochs: int
) -> None:
    found = planned(
        personal, general, method, personal_every=every, general_steps=steps, batch=batch, epochs=epochs, seed=1
    )
    assert len(found) == epochs
    for epoch in found:
        names = sorted(example.id for part in epoch if not part.general for example in part.examples)
        assert names == sorted(f"p{i}" for i in range(personal))
        own = [len(part.examples) for part in epoch if not part.general]
        assert len(own) == math.ceil(personal / batch)
        assert max(own) - min(own) <= 1
    for part in itertools.chain.from_iterable(found):
        assert {example.id[0] for example in part.examples} == ({"g"} if part.general else {"p"})
        assert len(part.examples) <= batch


@pytest.mark.parametrize(("n", "general_share"), [(0.25, 1 / 4), (0.5, 1 / 2), (1, 0), (2, 1 / 2), (3, 2 / 3)])
@given(st.integers(1, 40), st.integers(1, 20), st.integers(1, 5))
def test_the_mixture_is_the_papers(n: float, general_share: float, personal: int, general: int, epochs: int) -> None:
    word = "".join(letters(planned(personal, general, "weighing", personal_every=n, batch=4, epochs=epochs)))
    printed = "".join("P" if as_printed(j, n) else "G" for j in range(1, len(word) + 1))
    assert word == printed
    period = round(max(n, 1 / n))
    whole = word[: len(word) // period * period]
    assert whole.count("G") == pytest.approx(general_share * len(whole))


@given(sizes, sizes, st.integers(0, 40), st.integers(1, 6))
def test_general_examples_are_gone_through_evenly(personal: int, general: int, steps: int, batch: int) -> None:
    found = planned(personal, general, "transfer", general_steps=steps, batch=batch, epochs=1)
    batches = [part for part in found[0] if part.general]
    assert len(batches) == steps
    per_pass = math.ceil(general / batch)
    for start in range(0, steps - per_pass + 1, per_pass):
        one_pass = [e.id for part in batches[start : start + per_pass] for e in part.examples]
        assert sorted(one_pass) == sorted(f"g{i}" for i in range(general))


def test_general_examples_come_in_another_order_each_time() -> None:
    found = planned(4, 40, "transfer", general_steps=20, batch=4)
    order = [example.id for part in found[0] if part.general for example in part.examples]
    assert order[:40] != order[40:]


@given(methods, st.integers(0, 1000))
def test_equal_arguments_give_an_equal_schedule_and_another_seed_another(method: str, seed: int) -> None:
    first = planned(30, 30, method, seed=seed)
    assert planned(30, 30, method, seed=seed) == first
    assert planned(30, 30, method, seed=seed + 1) != first


@pytest.mark.parametrize("method", ["early", "weighing", "transfer"])
def test_without_general_examples_every_method_is_plain_training(method: str) -> None:
    assert planned(10, 0, method) == planned(10, 0, "none")


def test_grouped_examples_count_as_personal_and_stay_apart() -> None:
    values = {"personal_every": 2.0, "general_steps": 0, "batch": 4, "epochs": 3, "seed": 5}
    added = examples("a", 6)
    found = schedule(examples("p", 10), examples("g", 8), shaping="weighing", grouped=added, **values)  # type: ignore[arg-type]
    orders = []
    for epoch in found:
        kinds = ["".join(sorted({example.id[0] for example in part.examples})) for part in epoch]
        assert kinds[::2] == ["g"] * 5  # every second iteration is one of the enlarged set's three and two batches
        assert sorted(kinds[1::2]) == ["a", "a", "p", "p", "p"]
        assert [part.general for part in epoch] == [kind != "p" for kind in kinds]
        assert sorted(e.id for part in epoch for e in part.examples if e.id[0] == "a") == [f"a{i}" for i in range(6)]
        orders.append(kinds[1::2])
    assert len({tuple(order) for order in orders}) > 1


def test_what_makes_no_schedule_is_refused() -> None:
    with pytest.raises(TrainingError, match="collect some feedback first"):
        planned(0, 8, "none")
    with pytest.raises(ConfigError, match="shaping is 'late', but must be one of none, early, weighing, transfer"):
        planned(3, 8, "late")
    with pytest.raises(ConfigError, match=r"personal_every is 0.0, but must be at least 0.01"):
        planned(3, 8, "weighing", personal_every=0.0)
    with pytest.raises(ConfigError, match="batch is 0, but must be at least 1"):
        planned(3, 8, "none", batch=0)
