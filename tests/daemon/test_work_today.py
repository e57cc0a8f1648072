"""How long training was at work today: over days, restarts, and writes that fail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgepd.errors import StoreError
from edgepd_daemon.work_today import WorkToday
from edgepd_profiles import usage
from edgepd_profiles.store import Store

EVENING = time.mktime((2026, 3, 1, 23, 59, 30, 0, 0, -1))
DAY, NEXT = "2026-03-01", "2026-03-02"


class Worked:
    """A trainer of which only the sums exist."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.throttle = SimpleNamespace(total_at_work_s=0.0, total_cpu_s=0.0)
        self.asked, self.pid = False, 4711
        trainer: Any = self
        self.today = WorkToday(store, trainer)

    def works(self, seconds: float, *, asked: bool = False) -> None:
        self.asked = asked
        self.throttle.total_at_work_s += seconds
        self.throttle.total_cpu_s += 2 * seconds

    def stored(self, day: str = DAY) -> tuple[float, float, float]:
        with self.store.read() as conn:
            found = usage.today(conn, day)
        return found.at_work_s, found.asked_s, found.cpu_s


@pytest.fixture
def worked(tmp_path: Path) -> Iterator[Worked]:
    with Store.open(tmp_path / "profile.db") as store:
        yield Worked(store)


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await work()

    asyncio.run(main())


def test_what_is_asked_for_does_not_count_against_the_day(worked: Worked) -> None:
    async def work() -> None:
        await worked.today.count(EVENING)
        worked.works(10)
        await worked.today.count(EVENING)
        worked.works(5, asked=True)
        await worked.today.count(EVENING)
        assert worked.today.at_work_s == 10
        assert worked.today.fields(60) == {"at_work_s": 10, "limit_s": 3600, "asked_s": 5, "cpu_s": 30}
        assert worked.stored() == (0, 0, 0)  # not yet
        worked.works(15)
        await worked.today.count(EVENING)
        assert worked.stored() == (25, 5, 60)
        assert worked.today.at_work_s == 25

    run(work)


def test_the_end_of_a_run_and_that_of_the_daemon_are_written_down(worked: Worked) -> None:
    async def work() -> None:
        await worked.today.count(EVENING)
        worked.works(2)
        await worked.today.count(EVENING)
        worked.pid = None  # type: ignore[assignment]
        await worked.today.count(EVENING)
        assert worked.stored() == (2, 0, 4)
        worked.works(3)
        await worked.today.close()
        assert worked.stored() == (5, 0, 10)

    run(work)


def test_a_restart_goes_on_with_the_day(worked: Worked) -> None:
    async def work() -> None:
        await worked.today.count(EVENING)
        worked.works(40)
        await worked.today.count(EVENING)
        again = Worked(worked.store)
        await again.today.count(EVENING)
        again.works(1)
        await again.today.count(EVENING)
        assert again.today.at_work_s == 41

    run(work)


def test_midnight_begins_anew_and_loses_nothing(worked: Worked) -> None:
    async def work() -> None:
        await worked.today.count(EVENING)
        worked.works(7)
        await worked.today.count(EVENING + 60)
        assert (worked.today.at_work_s, worked.stored()) == (0, (7, 0, 14))
        worked.works(2)
        await worked.today.count(EVENING + 61)
        assert worked.today.at_work_s == 2
        await worked.today.count(EVENING)  # the clock was set back: the limit of that day holds again
        assert (worked.today.at_work_s, worked.stored(NEXT)) == (7, (2, 0, 4))

    run(work)


def test_a_full_disk_stops_no_look_and_loses_nothing(
    worked: Worked, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise StoreError("the disk is full")

    async def work() -> None:
        await worked.today.count(EVENING)
        with monkeypatch.context() as patch:
            patch.setattr(usage, "add", full)
            for _ in range(3):
                worked.works(40)
                await worked.today.count(EVENING)
            assert (worked.today.at_work_s, worked.stored()) == (120, (0, 0, 0))
        assert caplog.text.count("the disk is full") == 1
        worked.works(1)
        await worked.today.count(EVENING)
        assert (worked.today.at_work_s, worked.stored()) == (121, (121, 0, 242))

    run(work)
