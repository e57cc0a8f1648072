"""The CPU share of a process, decided from samples: a simulated process and no clock."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepd_daemon.duty import DutyCycle, Usage


def simulated(
    cpu_percent: float, cores: int, wanted: float, seed: int, seconds: float = 200.0, hold: tuple[float, float] = (0, 0)
) -> list[tuple[float, float, bool]]:
    """Let a process that would use `wanted` cores run as the duty cycle says, looked at irregularly.

    Between `hold` it is stopped for another reason. Returns (time, CPU seconds so far, whether it may run).
    """
    rng, duty = random.Random(seed), DutyCycle(cpu_percent, cores)
    now, used, runs = 0.0, 0.0, True
    found = []
    while now < seconds:
        runs = duty.may_run(now, used)
        found.append((now, used, runs))
        step = rng.uniform(0.08, 0.3)
        if runs and not hold[0] <= now < hold[1]:
            used += wanted * step
        now += step
    return found


def means(samples: list[tuple[float, float, bool]], cores: int, window: float = 60.0) -> list[float]:
    """The mean use in percent of every window that begins and ends at a sample, of about that length."""
    found, end = [], 0
    for start, used_before, _ in samples:
        while end < len(samples) and samples[end][0] - start < window:
            end += 1
        if end == len(samples):
            break
        found.append(100 * (samples[end][1] - used_before) / (samples[end][0] - start) / cores)
    return found


@settings(deadline=None, max_examples=60)
@given(st.floats(1, 100), st.integers(1, 16), st.floats(0.05, 1), st.integers(0, 10_000))
def test_every_minute_stays_within_the_budget_and_uses_it(percent: float, cores: int, hunger: float, seed: int) -> None:
    """Whatever the share, the number of cores, and how many of them the process could use."""
    found = means(simulated(percent, cores, hunger * cores, seed), cores)
    assert max(found) <= min(percent, 100 * hunger) + 3
    assert min(found) >= min(percent, 100 * hunger) - 3


@pytest.mark.parametrize("percent", [5.0, 25.0, 50.0])
def test_it_runs_in_short_bursts(percent: float) -> None:
    """About a second at a time, if it uses all it can, and then up to 0.3 s until it is looked at."""
    began, bursts = 0.0, []
    before = False
    for now, _, runs in simulated(percent, 2, 2.0, seed=1):
        if runs and not before:
            began = now
        if before and not runs:
            bursts.append(now - began)
        before = runs
    assert len(bursts) > 5
    assert max(bursts) <= 1.3


def test_time_in_which_it_was_held_earns_next_to_nothing() -> None:
    """After a minute of rest it may not take a minute's worth at once."""
    samples = simulated(50.0, 4, 4.0, seed=2, hold=(60, 120))
    before = next(used for now, used, _ in samples if now >= 120)
    after = next(used for now, used, _ in samples if now >= 125)
    assert after - before <= 0.5 * 4 * 5 + 2.5


def test_without_a_limit_it_always_runs() -> None:
    assert all(runs for _, _, runs in simulated(100.0, 2, 2.0, seed=3))
    duty = DutyCycle(100, 2)
    assert duty.may_run(0.0, 0.0)
    assert duty.may_run(1.0, 2.5)  # the clock of CPU time is a little ahead of the other one


def test_a_process_that_wants_less_than_its_share_is_never_stopped() -> None:
    assert all(runs for _, _, runs in simulated(50.0, 2, 0.9, seed=4))


def test_the_use_of_the_last_minute() -> None:
    usage = Usage()
    assert usage.cpus() is None
    usage.add(100.0, 7.0)
    assert usage.cpus() is None
    for second in range(1, 31):
        usage.add(100.0 + second, 7.0 + 2 * second)
    assert usage.cpus() == 2.0  # since the beginning, which was less than a minute ago
    for tenth in range(310, 1201):
        usage.add(100.0 + tenth / 10, 67.0)
    assert usage.cpus() == 0.0
