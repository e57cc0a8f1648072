"""Run: python -m pytest tests/adapt/test_returns.py"""

from __future__ import annotations

import math

import pytest

from edgepd.adapt.examples import Example
from edgepd.adapt.returns import ReplayBuffer, advantage_weights, discounted_returns, reward_weighted


def turn(name: str, conversation: str, number: int, reward: float, weight: float = 1.0) -> Example:
    """The turn with this number of a conversation: user and assistant took `number` turns before it."""
    messages = [{"role": "user", "content": "?"}] * (2 * number + 1)
    return Example(name, messages, "!", weight, desirable=reward > 0, reward=reward, conversation=conversation)


def test_later_rewards_count_less() -> None:
    assert discounted_returns([1.0, 0.0, -1.0]) == pytest.approx([1 - 0.81, -0.9, -1.0])
    assert discounted_returns([1.0, 1.0], gamma=0.5) == [1.5, 1.0]
    assert discounted_returns([]) == []


def test_weights_are_exponential_in_the_advantage_and_bounded() -> None:
    assert advantage_weights([1.0, 1.0]) == [1.0, 1.0]
    assert advantage_weights([2.0, 0.0]) == pytest.approx([math.e, 1 / math.e])
    assert advantage_weights([2.0, 0.0], temperature=0.5) == pytest.approx([math.exp(2), math.exp(-2)])
    assert advantage_weights([10_000.0, 0.0], max_weight=3.0) == pytest.approx([3.0, 0.0])
    assert advantage_weights([]) == []
    with pytest.raises(ValueError, match="temperature is 0"):
        advantage_weights([1.0], temperature=0)


def test_an_unwanted_turn_weighs_on_those_before_it_and_is_not_imitated() -> None:
    """Returns: c0 = 1 + 0.9 * -1 = 0.1, c1 = -1, d0 = 1; their mean is 0.1 / 3."""
    given = [turn("c1", "c", 1, -1.0), turn("d0", "d", 0, 1.0, weight=0.5), turn("c0", "c", 0, 1.0)]
    found = reward_weighted(given)
    assert [example.id for example in found] == ["d0", "c0"]
    mean = 0.1 / 3
    assert [example.weight for example in found] == pytest.approx([0.5 * math.exp(1 - mean), math.exp(0.1 - mean)])


def test_examples_without_a_conversation_do_not_follow_each_other() -> None:
    found = reward_weighted([turn("a", "", 0, 1.0), turn("b", "", 1, 1.0)])
    assert [example.weight for example in found] == [1.0, 1.0]


def test_turns_alike_in_length_are_taken_in_the_order_given() -> None:
    first, second = reward_weighted([turn("a", "c", 0, 0.5), turn("b", "c", 0, 1.0)])  # returns 1.4 and 1
    assert (first.weight, second.weight) == pytest.approx((math.exp(0.2), math.exp(-0.2)))


def test_the_oldest_beyond_the_capacity_are_forgotten() -> None:
    given = [turn(str(n), "", 0, 1.0) for n in range(1005)]
    assert [example.id for example in reward_weighted(given)] == [str(n) for n in range(5, 1005)]
    buffer = ReplayBuffer(given[:3], capacity=3)
    buffer.add(given[3])
    assert [example.id for example in buffer.contents()] == ["1", "2", "3"]
    with pytest.raises(ValueError, match="capacity of the replay buffer is 0"):
        ReplayBuffer(capacity=0)


def test_sampling_follows_from_the_seed_and_draws_none_twice() -> None:
    buffer = ReplayBuffer(turn(str(n), "", 0, 1.0) for n in range(50))
    drawn = [example.id for example in buffer.sample(20, seed=1)]
    assert len(set(drawn)) == 20
    assert drawn == sorted(drawn, key=int)
    assert drawn == [example.id for example in buffer.sample(20, seed=1)]
    assert drawn != [example.id for example in buffer.sample(20, seed=2)]
    assert len(buffer.sample(99, seed=1)) == len(buffer) == 50
