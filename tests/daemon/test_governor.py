"""How many threads the engine decodes with, on simulated machines."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from edgepd_daemon.engine.governor import Governor

Machine = Callable[[int], tuple[float, float]]  # from threads to seconds and processor seconds of one step


def idle(threads: int) -> tuple[float, float]:
    return 0.016 / threads, 0.016


def contended(threads: int) -> tuple[float, float]:
    """Two cores, one of them taken: a second thread makes every step wait."""
    return (0.016, 0.016) if threads == 1 else (0.3, 0.4)


def quota(threads: int) -> tuple[float, float]:
    """One core's worth of time, however many threads share it."""
    return 0.016, 0.016


def run(governor: Governor, machine: Machine, seconds: float, sequences: int = 1) -> float:
    """Decode for a while and return the steps per second."""
    passed, steps = 0.0, 0
    threads = governor.threads
    while passed < seconds:
        wall, cpu = machine(threads)
        threads = governor.observe(sequences, wall, cpu)
        passed += wall
        steps += 1
    return steps / passed


def test_an_idle_machine_is_used_fully() -> None:
    governor = Governor(4)
    run(governor, idle, 60)
    assert governor.threads == 4


def test_a_contended_machine_gets_fewer_threads_and_is_faster() -> None:
    governor = Governor(2)
    assert run(governor, contended, 60) > 0.8 / 0.016
    assert governor.threads == 1


def test_all_threads_come_back_when_the_others_are_done() -> None:
    governor = Governor(2)
    run(governor, contended, 20)
    assert governor.threads == 1
    run(governor, idle, 70)
    assert governor.threads == 2


def test_trials_that_do_not_help_become_rare() -> None:
    governor, tried = Governor(2), 0
    threads = governor.threads
    for _ in range(int(300 / 0.016)):
        before, threads = threads, governor.observe(1, *quota(threads))
        tried += threads != before
    assert governor.threads == 2
    assert 2 <= tried <= 30


def test_one_thread_stays_one() -> None:
    governor = Governor(1)
    run(governor, contended, 5)
    assert governor.threads == 1


def test_another_number_of_sequences_ends_a_trial_without_a_verdict() -> None:
    governor = Governor(2)
    for _ in range(8):
        governor.observe(1, *contended(2))
    assert (governor.threads, governor.settled) == (1, 2)  # being tried
    assert governor.observe(2, 0.02, 0.02) == 2


@given(st.integers(1, 8), st.lists(st.tuples(st.integers(1, 4), st.floats(1e-4, 1), st.floats(0, 8)), max_size=200))
def test_the_number_stays_in_range(maximum: int, steps: list[tuple[int, float, float]]) -> None:
    governor = Governor(maximum)
    for sequences, wall, share in steps:
        assert 1 <= governor.observe(sequences, wall, wall * share) <= maximum
