"""A signal that becomes an exception, but never in the middle of what has to be whole."""

from __future__ import annotations

import signal
import weakref
from collections.abc import Iterator

import pytest

from edgepd.adapt.parking import SIGNALS, Parking, ParkNow


@pytest.fixture
def parking() -> Iterator[Parking]:
    """One that listens; the signals are those of pytest again afterwards."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    made = Parking()
    made.listen()
    yield made
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_signal_is_an_exception_that_no_handler_of_errors_takes(parking: Parking, number: signal.Signals) -> None:
    with pytest.raises(ParkNow):
        signal.raise_signal(number)
    assert not issubclass(ParkNow, Exception)


def test_in_a_section_it_waits_for_the_end(parking: Parking) -> None:
    done = []
    with pytest.raises(ParkNow):  # noqa: PT012
        with parking.whole():
            with parking.whole():
                signal.raise_signal(signal.SIGTERM)
                done.append("inner")
            done.append("outer")
        done.append("never")
    assert done == ["inner", "outer"]


def test_a_section_that_fails_fails_with_its_own_error(parking: Parking) -> None:
    with pytest.raises(ValueError, match="own"), parking.whole():
        signal.raise_signal(signal.SIGTERM)
        raise ValueError("its own")
    with pytest.raises(ParkNow), parking.whole():
        pass


def test_the_second_signal_does_not_disturb_the_saving(parking: Parking) -> None:
    with pytest.raises(ParkNow):
        signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    parking.ignore()
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_exception_that_got_lost_is_raised_again(parking: Parking) -> None:
    """Python has nobody to give it to when it is raised in a finalizer."""

    class Thing:
        pass

    thing = Thing()
    kept = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGTERM))
    del thing
    assert kept() is None
    with pytest.raises(ParkNow), parking.whole():
        pass


def test_without_a_signal_nothing_happens() -> None:
    """Nor does it where nobody listens, as in the processes that use the training loop for something else."""
    parking = Parking()
    with parking.whole(), parking.whole():
        pass
    assert parking.step == 0
