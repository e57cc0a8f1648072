"""Every neural arm predicts from the past alone, gives probabilities, and does not change what it starts from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from _intent_arms import (
    Biased,
    TuneOne,
    focused,
    long_and_short,
    oversampled,
    partial,
    plain,
    retrieved,
    tuned_arm,
    unlearned,
    with_loss,
)
from _intent_data import Protocol, protocol
from _intent_models import Data, Sizes, of_everybody, output_shares, probabilities, shares, train

from edgepd.intent.individual import Tuning
from edgepd.intent.predictor import Predictor
from tests.intent.intent_helpers import circle

SIZES = Sizes(width=4, layers=1, teacher_layers=1, window=16, epochs=1)
TUNING = Tuning(epochs=2, learning_rate=1e-2)


@pytest.fixture(scope="module")
def drawn() -> Protocol:
    return protocol({f"u{n}": circle(30 + n % 5, n) for n in range(24)}, seed=0, individual=4)


@pytest.fixture(scope="module")
def data(drawn: Protocol) -> Data:
    return Data.of(drawn)


@pytest.fixture(scope="module")
def base(data: Data) -> Predictor:
    return train(data, SIZES).predictor


def tuners(data: Data, base: Predictor) -> dict[str, TuneOne]:
    window, classes = SIZES.window, len(data.drawn.intents)
    biased = Biased(
        shares(np.concatenate([e.target for e in data.population]), classes),
        output_shares(base, data.windows(window), classes),
    )
    return {
        "plain": plain(TUNING, window),
        "half": plain(TUNING, window, share=0.5),
        "unlearned": unlearned(TUNING, window, biased),
        "oversampled": with_loss(TUNING, window, oversampled),
        "focal": with_loss(TUNING, window, focused),
        "partial": partial(TUNING, window),
        "retrieved": retrieved(TUNING, window, data),
        "long and short": long_and_short(TUNING, window),
    }


@pytest.mark.parametrize(
    "name", ["plain", "half", "unlearned", "oversampled", "focal", "partial", "retrieved", "long and short"]
)
def test_an_arm(data: Data, base: Predictor, name: str) -> None:
    before = {key: value.clone() for key, value in base.state_dict().items()}
    made = tuned_arm(data, base, SIZES.window, tuners(data, base)[name])
    truth, _users = data.drawn.truth()
    assert made.probabilities.shape == (len(truth), len(data.drawn.intents))
    np.testing.assert_allclose(made.probabilities.sum(1), 1, rtol=1e-5)
    untuned = of_everybody(data, lambda _person: base, SIZES.window)
    assert np.abs(made.probabilities - untuned).max() > 1e-4
    assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items())


def test_no_label_of_the_test_part_is_seen_before_its_turn(data: Data, base: Predictor) -> None:
    person = data.people[0]
    encoded = person.encoded
    changed = replace(
        encoded,
        target=np.where(np.arange(len(encoded)) >= person.test, 0, encoded.target),
        intent=np.where(np.arange(len(encoded)) > person.test, 1, encoded.intent),
    )
    one = probabilities(base, encoded, person.test, len(encoded), SIZES.window)
    two = probabilities(base, changed, person.test, len(encoded), SIZES.window)
    np.testing.assert_allclose(one[0], two[0], rtol=1e-5)
    other = replace(person, encoded=changed)
    tuned, again = (plain(TUNING, SIZES.window)(train_copy(base), p) for p in (person, other))
    assert all(torch.equal(a, b) for a, b in zip(tuned.parameters(), again.parameters(), strict=True))


def train_copy(base: Predictor) -> Predictor:
    made = Predictor(base.shape)
    made.load_state_dict(base.state_dict())
    return made.eval()


def test_partial_tuning_leaves_attention_and_feed_forward_layers_as_they_are(data: Data, base: Predictor) -> None:
    made = partial(TUNING, SIZES.window)(train_copy(base), data.people[0])
    for (name, before), after in zip(base.blocks.named_parameters(), made.blocks.parameters(), strict=True):
        assert torch.equal(before, after) == ("norm" not in name), name
    assert not torch.equal(base.head.bias, made.head.bias)
