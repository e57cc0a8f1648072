"""What the daemon knows of its user's rhythm: read now and then, kept over restarts, forgotten, and gone when off."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgepd.errors import StoreError
from edgepd.intent.rhythm import WEEK_HOURS
from edgepd.settings import Budget, Intent, Settings
from edgepd_daemon.quiet_times import QuietTimes
from edgepd_daemon.scheduler.types import Readings
from edgepd_profiles import interactions, uses
from edgepd_profiles.interactions import Interaction
from edgepd_profiles.store import Store
from tests.daemon.scheduler.situations import WELL
from tests.daemon.training_parts import Parts, with_parts
from tests.daemon.watched import Clock, Watched, clock

__all__ = ["clock"]

HOUR, DAY, WEEK = 3600.0, 86_400.0, 7 * 86_400.0
MONDAY = 1_767_571_200.0  # 2026-01-05 00:00 UTC, and TZ is UTC here
NOW = MONDAY + 3 * WEEK + DAY + 12 * HOUR  # a Tuesday, noon
NEVER_TOLD = replace(WELL, at=NOW, minute_of_day=720)


class Known:
    """A profile, the settings and a clock, and the quiet times of them."""

    def __init__(self, store: Store, directory: Path) -> None:
        self.store, self.file = store, directory / "awake.json"
        self.settings = Settings()
        self.now = 1000.0
        self.times = QuietTimes(store, lambda: self.settings, self.file, lambda: self.now)

    def set(self, **intent: Any) -> None:
        self.settings = replace(self.settings, intent=Intent(**intent))

    def look(self, at: float = NOW, *, after_s: float = 60.0) -> Readings:
        self.now += after_s
        return self.times.added_to(replace(WELL, at=at, minute_of_day=int(at // 60) % 1440))


def use(store: Store, times: list[float]) -> None:
    """Let there have been exchanges at these times."""
    for at in times:
        row = Interaction(f"i{at}", "c", at, "cli", "tiny", 1, [{"role": "user", "content": "Hm"}], state="done")
        store.write(lambda conn, row=row: interactions.begin(conn, row)).result()


def send(store: Store, times: list[tuple[float, int]]) -> None:
    """Let there have been events at these times, with these UTC offsets."""
    store.write(
        lambda conn: conn.executemany(
            "INSERT INTO events (at, utc_offset_s, app, context, event, intent) VALUES (?, ?, 'mail', '', 'a', 'a')",
            times,
        )
    ).result()


def office(weeks: int = 3) -> list[float]:
    """Return times of use in every quarter of the working hours of these weeks."""
    days = [MONDAY + week * WEEK + day * DAY for week in range(weeks) for day in range(5)]
    return [day + 9 * HOUR + quarter * 900 for day in days for quarter in range(32)]


@pytest.fixture
def known(tmp_path: Path) -> Any:
    with Store.open(tmp_path / "profile.db") as store:
        yield Known(store, tmp_path)


def test_where_little_is_known_nothing_is_told(known: Known) -> None:
    assert known.look() == NEVER_TOLD
    use(known.store, office()[:5])
    assert known.look(after_s=2 * HOUR) == NEVER_TOLD


def test_office_hours_of_exchanges_are_told(known: Known) -> None:
    use(known.store, office())
    found = known.look()
    assert found.quiet_probability is not None
    assert found.quiet_probability < 0.25
    assert (found.better_window_in_s, found.window_s) == (5 * HOUR, 12 * HOUR)
    told = (found.quiet_probability, found.better_window_in_s, found.window_s)
    assert found == replace(
        NEVER_TOLD, quiet_probability=told[0], better_window_in_s=told[1], window_s=told[2]
    )  # and the rest is as it was read
    evening = known.look(NOW + 8 * HOUR)
    assert evening.quiet_probability is not None
    assert evening.quiet_probability > 0.9


def test_events_count_by_their_own_clock(known: Known) -> None:
    # Sent from where it was nine hours earlier: at work from nine there is from eighteen here.
    send(known.store, [(at + 9 * HOUR, -9 * 3600) for at in office()])
    noon, evening = known.look(), known.look(NOW + 8 * HOUR)
    # The machine is here by now: habits are by the clock on the wall.
    assert noon.quiet_probability is not None
    assert evening.quiet_probability is not None
    assert noon.quiet_probability < 0.25 < 0.9 < evening.quiet_probability


def test_a_window_in_quiet_hours_is_none(known: Known) -> None:
    use(known.store, office())
    known.settings = replace(known.settings, budget=Budget(quiet_hours="16:00-19:30"))
    assert known.look().better_window_in_s == 8 * HOUR
    known.settings = replace(known.settings, budget=Budget(quiet_hours="00:00-24:00"))
    assert known.look().better_window_in_s is None


def test_a_machine_that_is_off_at_night_has_no_window_there(known: Known) -> None:
    use(known.store, office())
    for hour in range(2 * WEEK_HOURS):
        at = MONDAY + WEEK + hour * HOUR
        on = 8 <= hour % 24 < 17 or 21 <= hour % 24 < 23
        for _ in range(30 if on else 0):
            known.look(at, after_s=120)
        if not on:
            known.now += HOUR  # asleep
    known.now += 2 * DAY
    known.look()
    assert known.look(after_s=DAY + 1).better_window_in_s == 9 * HOUR


def test_the_profile_is_read_once_an_hour_and_only_if_it_has_changed(
    known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    real = uses.times
    monkeypatch.setattr(uses, "times", lambda *given: reads.append(known.now) or real(*given))
    use(known.store, office())
    for _ in range(120):
        known.look()
    assert len(reads) == 1
    use(known.store, [NOW])
    known.look()
    assert len(reads) == 2
    use(known.store, [NOW + 1])
    known.look()
    assert len(reads) == 2
    known.look(after_s=DAY + 1)
    known.look(after_s=DAY + 1)
    assert len(reads) == 4  # older use counts less by now


def test_when_the_machine_was_on_is_kept_over_a_restart(known: Known) -> None:
    for minute in range(62):
        known.look(NOW + 60 * minute)
    known.times.close()
    written = json.loads(known.file.read_text())
    assert sum(written["hours"]) == pytest.approx(61 / 60, rel=1e-3)
    assert known.file.stat().st_mode & 0o777 == 0o600
    restarted = QuietTimes(known.store, lambda: known.settings, known.file, lambda: known.now)
    restarted.added_to(replace(WELL, at=NOW + 2 * HOUR))
    restarted.close()
    assert json.loads(known.file.read_text())["since"] == NOW
    assert sum(json.loads(known.file.read_text())["hours"]) == pytest.approx(61 / 60, rel=1e-2)


def test_it_is_written_down_once_an_hour(known: Known) -> None:
    for _ in range(60):
        known.look()
    assert not known.file.exists()
    known.look()
    known.look()
    assert known.file.exists()


def test_time_between_looks_that_are_far_apart_is_not_counted(known: Known) -> None:
    known.look()
    known.look(NOW + HOUR, after_s=HOUR)
    known.look(NOW + HOUR + 60, after_s=60)
    known.times.close()
    assert sum(json.loads(known.file.read_text())["hours"]) == pytest.approx(1 / 60, rel=1e-3)


def test_a_clock_that_was_not_set_counts_for_nothing(known: Known) -> None:
    use(known.store, office())
    assert known.look(3600.0).quiet_probability is None
    known.times.close()
    assert not known.file.exists()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"since": 1, "at": 2}', '{"since": 1, "at": 2, "hours": [1]}', "\x00\xff", "[" * 9999]
    + [json.dumps({"since": 1.0, "at": 2.0, "hours": [bad, *[0.0] * 167]}) for bad in (-1.0, math.inf, math.nan, "a")],
)
def test_a_damaged_file_is_begun_anew(known: Known, text: str, caplog: pytest.LogCaptureFixture) -> None:
    known.file.write_text(text)
    with caplog.at_level(logging.WARNING):
        known.look()
    assert str(known.file) in caplog.text
    known.times.close()
    assert json.loads(known.file.read_text())["hours"] == [0.0] * WEEK_HOURS


@pytest.mark.parametrize("off", [{"enabled": False}, {"window_hours": 0.0}])
def test_off_means_that_nothing_is_read_kept_or_told(
    known: Known, off: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(known.store, office())
    assert known.look().quiet_probability is not None
    known.times.close()
    known.set(**off)
    assert known.look() == NEVER_TOLD
    assert not known.file.exists()
    monkeypatch.setattr(uses, "times", None)  # which would fail
    assert known.look(after_s=2 * DAY) == NEVER_TOLD
    known.times.close()
    assert not known.file.exists()
    monkeypatch.undo()
    known.set()
    assert known.look().quiet_probability is not None


def test_what_was_forgotten_counts_no_longer(known: Known) -> None:
    use(known.store, office())
    assert known.look().quiet_probability is not None
    known.times.close()
    known.store.write(lambda conn: conn.execute("DELETE FROM interactions")).result()
    known.times.forget(everything=False)
    assert known.look() == NEVER_TOLD
    assert known.file.exists()
    known.times.forget(everything=True)
    assert not known.file.exists()


def test_a_profile_that_cannot_be_read_is_told_once_and_holds_nothing(
    known: Known, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> None:
        raise StoreError("the disk is on fire")

    use(known.store, office())
    monkeypatch.setattr(known.store, "read", fails)
    for _ in range(3):
        assert known.look(after_s=2 * HOUR) == NEVER_TOLD
    assert caplog.text.count("the disk is on fire") == 1
    monkeypatch.undo()
    assert known.look(after_s=2 * HOUR).quiet_probability is not None


def test_a_file_that_cannot_be_written_is_told_and_holds_nothing(
    known: Known, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    use(known.store, office())
    elsewhere = QuietTimes(known.store, lambda: known.settings, tmp_path / "gone" / "awake.json", lambda: known.now)
    assert elsewhere.added_to(NEVER_TOLD).quiet_probability is not None
    elsewhere.close()
    assert "could not be written down" in caplog.text


def test_the_times_of_a_long_history_are_complete_from_the_oldest_on(known: Known) -> None:
    use(known.store, [10.0, 20.0, 30.0])
    send(known.store, [(15.0, 3600), (20.0, 3600), (25.0, 3600)])
    with known.store.read() as conn:
        assert uses.times(conn, 0.0, 9) == [
            *((10.0, None), (15.0, 3600), (20.0, 3600), (20.0, None), (25.0, 3600), (30.0, None))
        ]
        assert uses.times(conn, 21.0, 9) == [(25.0, 3600), (30.0, None)]
        # Two exchanges alone are read: of events before those nothing may be told either.
        assert uses.times(conn, 0.0, 2) == [(20.0, 3600), (20.0, None), (25.0, 3600), (30.0, None)]
        assert uses.times(conn, 0.0, 1) == [(30.0, None)]


def test_the_supervisor_waits_for_a_quieter_time(tmp_path: Path, clock: Clock) -> None:
    async def work(daemon: Parts) -> None:
        on = Watched(daemon, clock)
        use(daemon.store, office())
        on.machine.becomes(at=NOW, minute_of_day=720)
        on.supervisor._quiet_times = QuietTimes(
            daemon.store, lambda: on.settings, tmp_path / "awake.json", lambda: clock.now
        )
        decision = await on.look()
        assert (decision.action, decision.constraint) == ("wait", "window")
        assert decision.reason.endswith("and one begins at 17:00")
        assert on.supervisor.view()["readings"]["better_window_in_s"] == 5 * HOUR
        on.machine.becomes(at=NOW + 5 * HOUR, minute_of_day=1020)
        clock.let_pass(60)
        on.supervisor.forgotten(everything=False)  # nothing is: it is read again
        daemon.child_says("wait go")
        await on.started()

    with_parts(tmp_path, work)
