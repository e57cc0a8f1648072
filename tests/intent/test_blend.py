from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgepd.intent.blend import blended, corrected


@given(
    arrays(float, (3, 4), elements=st.floats(0, 1)), arrays(float, (3, 4), elements=st.floats(0, 1)), st.floats(0, 1)
)
def test_what_comes_out_is_a_probability(one: np.ndarray, two: np.ndarray, weight: float) -> None:
    for found in (blended(one, two, weight), corrected(one, two[0], weight)):
        assert (found >= 0).all()
        np.testing.assert_allclose(found.sum(-1), 1)


def test_the_ends_are_the_opinions_themselves_and_the_middle_is_their_geometric_mean() -> None:
    one, two = np.array([0.9, 0.1]), np.array([0.5, 0.5])
    np.testing.assert_allclose(blended(one, two, 0.0), one)
    np.testing.assert_allclose(blended(one, two, 1.0), two)
    np.testing.assert_allclose(blended(one, two, 0.5), [0.75, 0.25])


def test_the_correction_takes_out_the_shares_of_the_population() -> None:
    share = np.array([0.8, 0.2])
    np.testing.assert_allclose(corrected(share, share, 1.0), [0.5, 0.5])
    np.testing.assert_allclose(corrected(share, share, 0.0), share)
    assert corrected(np.array([0.6, 0.4]), share, 0.5)[1] == pytest.approx(1 / (1 + 1.5 * 0.5))
