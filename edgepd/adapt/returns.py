"""Reward-weighted training: what an answer is worth includes what came after it in its conversation.

The idea: the reinforcement learning of ASLS in the one form that needs neither a simulator nor a critic: imitate each
answer with a weight that grows with its return. With rewards r_t of the turns of a conversation in order,
R_t = sum_k gamma^k r_(t+k), the advantage is A = R - mean R, and the weight is min(exp(A / tau), w_max), as in
advantage-weighted regression (AWR, arXiv 1910.00177).
The invariant: rewards only weigh wanted answers up or down. An unwanted answer lowers the return of the turns before it
and the mean, and is itself not imitated.
What this does not do: judge answers. Rewards come with the examples.

The paper prints a discount factor of 0.9 and a replay buffer of 1000 interactions. It leaves open what the reward is,
over which steps it is discounted (here: the rated turns of one conversation), whether there is a baseline (here: the
mean over the buffer), how a reward becomes a gradient (here: the weight above, with tau 1 and w_max 20), what
a full buffer forgets (here: the oldest) and how it is sampled (here: uniformly, none drawn twice).
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections import deque
from collections.abc import Iterable, Sequence

from edgepd.adapt.examples import Example

GAMMA = 0.9
CAPACITY = 1000
TEMPERATURE = 1.0
MAX_WEIGHT = 20.0


class ReplayBuffer:
    """The newest interactions, up to a capacity, in order of arrival."""

    def __init__(self, examples: Iterable[Example] = (), capacity: int = CAPACITY) -> None:
        """Raises ValueError for a capacity below one."""
        if capacity < 1:
            raise ValueError(f"the capacity of the replay buffer is {capacity}, but must be at least 1")
        self._slots: deque[Example] = deque(examples, maxlen=capacity)

    def __len__(self) -> int:
        return len(self._slots)

    def add(self, example: Example) -> None:
        """Take in a new interaction; a full buffer forgets its oldest."""
        self._slots.append(example)

    def contents(self) -> list[Example]:
        """Return all, the oldest first."""
        return list(self._slots)

    def sample(self, count: int, seed: int) -> list[Example]:
        """Draw `count` different ones uniformly, or all if there are fewer; they stay in order of arrival."""
        drawn = random.Random(seed).sample(range(len(self._slots)), min(count, len(self._slots)))  # noqa: S311
        return [self._slots[n] for n in sorted(drawn)]


def discounted_returns(rewards: Sequence[float], gamma: float = GAMMA) -> list[float]:
    """Return R_t = sum_k gamma^k r_(t+k) for each turn of one conversation."""
    found: list[float] = []
    following = 0.0
    for reward in reversed(rewards):
        following = reward + gamma * following
        found.append(following)
    return found[::-1]


def advantage_weights(
    returns: Sequence[float], temperature: float = TEMPERATURE, max_weight: float = MAX_WEIGHT
) -> list[float]:
    """Return min(exp((R - mean R) / temperature), max_weight) for each return.

    Raises ValueError unless both limits are above zero.
    """
    if temperature <= 0 or max_weight <= 0:
        raise ValueError(f"temperature is {temperature} and max_weight {max_weight}, but both must be above zero")
    if not returns:
        return []
    mean = sum(returns) / len(returns)
    ceiling = math.log(max_weight)  # compared before exp, which would overflow
    return [math.exp(min((value - mean) / temperature, ceiling)) for value in returns]


def reward_weighted(
    examples: Sequence[Example],
    *,
    gamma: float = GAMMA,
    temperature: float = TEMPERATURE,
    max_weight: float = MAX_WEIGHT,
    capacity: int = CAPACITY,
) -> list[Example]:
    """Return the wanted ones of the newest `capacity` examples, with their weights times those of their advantages.

    Examples come the oldest first and stay in order. Within a conversation the turn with fewer messages before it is
    the earlier one (then: the one given first); an example without a conversation is one by itself.
    """
    kept = ReplayBuffer(examples, capacity).contents()
    conversations: dict[object, list[int]] = {}
    for n, example in enumerate(kept):
        conversations.setdefault(example.conversation or n, []).append(n)
    returns = [0.0] * len(kept)
    for turns in conversations.values():
        turns.sort(key=lambda n: len(kept[n].messages))
        for n, value in zip(turns, discounted_returns([kept[n].reward for n in turns], gamma), strict=True):
            returns[n] = value
    weights = advantage_weights(returns, temperature, max_weight)
    return [
        dataclasses.replace(example, weight=example.weight * weight)
        for example, weight in zip(kept, weights, strict=True)
        if example.desirable
    ]
