from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgepd_profiles.selection.scores import dissimilarities, dissimilarity, domain_score, entropy, unit

STATES = arrays.arrays(
    np.float32,
    st.tuples(st.integers(2, 12), st.integers(1, 12)),
    elements=st.floats(-100, 100, width=32),
)


def test_entropy_of_as_many_directions_as_can_be() -> None:
    """The corners of a simplex: n states, centred, have n - 1 equal eigenvalues."""
    assert entropy(np.eye(5)) == pytest.approx(math.log(4) / math.log(5))


def test_entropy_of_two_unequal_directions() -> None:
    """The eigenvalues are 2 * 3^2 and 2 * 1^2, so p is 0.9 and 0.1."""
    states = np.array([[3.0, 0, 0], [-3, 0, 0], [0, 1, 0], [0, -1, 0]])
    assert entropy(states) == pytest.approx(-(0.9 * math.log(0.9) + 0.1 * math.log(0.1)) / math.log(4))
    assert entropy(states.repeat(3, axis=0)) == pytest.approx(entropy(states) * math.log(4) / math.log(12))


@pytest.mark.parametrize("states", [np.zeros((0, 4)), np.ones((1, 4)), np.full((7, 3), 0.1), np.array([[1.0], [2.0]])])
def test_entropy_of_nothing_that_varies_or_of_one_direction_is_zero(states: np.ndarray) -> None:
    assert entropy(states) == pytest.approx(0.0, abs=1e-9)


def test_states_beyond_the_limit_do_not_count() -> None:
    states = np.random.default_rng(1).normal(size=(300, 4))
    assert entropy(states) == entropy(states[:256]) != entropy(states[:255])


def test_entropy_refuses_what_is_no_table_of_numbers() -> None:
    with pytest.raises(ValueError, match="3 dimensions"):
        entropy(np.zeros((1, 2, 3)))
    with pytest.raises(ValueError, match="not finite"):
        entropy(np.array([[1.0, math.nan], [1.0, 2.0]]))


@given(STATES, st.randoms(use_true_random=False))
def test_entropy_does_not_depend_on_the_order_and_lies_in_the_unit_interval(states: np.ndarray, random: object) -> None:
    order = list(range(len(states)))
    random.shuffle(order)  # type: ignore[attr-defined]
    found = entropy(states)
    assert 0.0 <= found <= 1.0
    assert entropy(states[order]) == pytest.approx(found, abs=1e-6)


@given(STATES)
def test_entropy_does_not_depend_on_scale(states: np.ndarray) -> None:
    assert entropy(states.astype(np.float64) * 8) == pytest.approx(entropy(states), abs=1e-6)


def test_domain_score_is_the_mean_share_of_the_lexicons() -> None:
    lexicons = {1: {"tax", "invoice"}, 2: {"bread", "flour"}}
    assert domain_score(["tax", "invoice", "flour", "the"], lexicons) == ((2 + 1) / 4 / 2, 1)
    assert domain_score({"flour", "the"}, lexicons) == (1 / 2 / 2, 2)


def test_a_repeated_word_says_no_more_and_of_equal_domains_the_first_is_dominant() -> None:
    lexicons = {2: {"flour"}, 1: {"tax"}}
    assert domain_score(["tax", "flour", "flour", "flour"], lexicons) == (2 / 2 / 2, 1)


@pytest.mark.parametrize(("words", "lexicons"), [([], {1: {"tax"}}), (["tax"], {}), (["the"], {1: {"tax"}})])
def test_a_text_without_a_word_of_any_lexicon_has_no_domain(words: list[str], lexicons: dict[int, set[str]]) -> None:
    assert domain_score(words, lexicons) == (0.0, 0)


def test_dissimilarity_is_one_minus_the_mean_cosine() -> None:
    east, north = np.array([2, 0], np.float32), np.array([0, 5], np.float32)
    assert dissimilarity(east, [east, north]) == pytest.approx(0.5)
    assert dissimilarity(east, [-east]) == pytest.approx(2.0)
    assert dissimilarity(east, []) == 1.0


@given(
    arrays.arrays(np.float32, (6, 3), elements=st.floats(-1, 1, width=16)),
    st.lists(st.integers(0, 2), min_size=6, max_size=6),
    st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_dissimilarities_are_those_over_the_others_of_the_domain(
    vectors: np.ndarray, domains: list[int], known: list[bool]
) -> None:
    units = np.stack([unit(vector) for vector in vectors])
    found = dissimilarities(units, np.array(domains), np.array(known))
    for n in range(6):
        others = [units[m] for m in range(6) if m != n and known[m] and domains[m] == domains[n]]
        if known[n]:
            assert found[n] == pytest.approx(dissimilarity(units[n], others), abs=1e-5)
