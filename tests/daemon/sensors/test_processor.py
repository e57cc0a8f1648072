"""What others use of the processors: the arithmetic over counters of a machine that is not there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepd_daemon.sensors.processes import cpu_s, resident_mb, ticks
from edgepd_daemon.sensors.processor import Look, Processor, share_percent
from tests.daemon.fake_machines import myself, plant, process, processors

TRAINER = 77


class Machine:
    """Counters, and a clock that goes on by hand."""

    def __init__(self, root: Path, allowed: frozenset[int] = frozenset({0, 1})) -> None:
        self.root, self.now_s, self.allowed = root, 100.0, allowed
        self.processor = Processor(root, lambda: self.now_s, lambda: self.allowed)
        plant(root, {**processors("0 0 0 0", "0 0 0 0"), **myself(0, 0, 0, 0)})

    def after(self, passed_s: float, *contents: dict[str, str], trainer: int | None = None) -> float | None:
        self.now_s += passed_s
        for each in contents:
            plant(self.root, each)
        return self.processor.others_percent(trainer)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_the_first_look_knows_nothing(machine: Machine) -> None:
    assert machine.after(1.0) is None


def test_all_that_is_busy_is_others(machine: Machine) -> None:
    machine.after(0)
    # 30 user, 10 nice, 5 system, 3 irq and 2 softirq of 200 ticks
    assert machine.after(1.0, processors("30 10 0 60 0 0 0 0 0 0", "0 0 5 90 0 3 2 0 0 0")) == 25


def test_waiting_for_the_disk_and_stolen_time_are_nobodys_work(machine: Machine) -> None:
    machine.after(0)
    assert machine.after(1.0, processors("20 0 0 40 40 0 0 0", "0 0 0 50 0 0 0 50")) == 10


def test_guests_are_counted_once(machine: Machine) -> None:
    machine.after(0)
    assert machine.after(1.0, processors("40 20 0 40 0 0 0 0 40 20", "0 0 0 100 0 0 0 0 0 0")) == 30


def test_own_work_and_the_trainers_is_not_that_of_others(machine: Machine) -> None:
    machine.after(0, process(TRAINER, times=(1000, 100, 0, 0)), trainer=TRAINER)
    busy = [processors("100 0 0 0", "80 0 0 20"), myself(15, 5, 0, 0), process(TRAINER, times=(1080, 110, 5, 5))]
    assert machine.after(1.0, *busy, trainer=TRAINER) == 30  # 180 busy, 20 ours, 100 of the trainer, of 200


def test_the_trainers_time_is_not_lost_when_it_ends(machine: Machine) -> None:
    machine.after(0, process(TRAINER, times=(1000, 0, 0, 0)), trainer=TRAINER)
    shutil.rmtree(machine.root / "proc" / str(TRAINER))
    ended = [processors("60 0 0 40", "0 0 0 100"), myself(0, 0, 1040, 0)]  # it used 40 more, then was waited for
    assert machine.after(1.0, *ended) == 10


def test_a_trainer_that_begins_counts_from_its_first_tick(machine: Machine) -> None:
    machine.after(0)
    begun = [processors("70 0 0 30", "0 0 0 100"), process(TRAINER, times=(50, 0, 0, 0))]
    assert machine.after(1.0, *begun, trainer=TRAINER) == 10


def test_never_less_than_nothing(machine: Machine) -> None:
    machine.after(0)
    assert machine.after(1.0, processors("10 0 0 90", "0 0 0 100"), myself(30, 0, 0, 0)) == 0


def test_too_soon_keeps_the_answer_and_the_beginning(machine: Machine) -> None:
    machine.after(0)
    assert machine.after(0.1, processors("100 0 0 0", "0 0 0 100")) is None
    assert machine.after(0.9, processors("100 0 0 0", "50 0 0 50")) == 75
    assert machine.after(0.1, processors("100 0 0 900", "50 0 0 950")) == 75


def test_processors_that_we_may_not_use_are_in_nobodys_way(tmp_path: Path) -> None:
    machine = Machine(tmp_path, frozenset({1}))
    machine.after(0)
    assert machine.after(1.0, processors("100 0 0 0", "40 0 0 60")) == 40
    assert machine.processor.processors() == [1]


def test_a_container_that_counts_its_processors_from_0(tmp_path: Path) -> None:
    machine = Machine(tmp_path, frozenset({6, 7}))
    machine.after(0)
    assert machine.after(1.0, processors("100 0 0 0", "40 0 0 60")) == 70
    assert machine.processor.processors() == [0, 1]


def test_a_processor_that_was_switched_off_begins_anew(machine: Machine) -> None:
    machine.after(0)
    assert machine.after(1.0, processors("50 0 0 50")) is None
    assert machine.after(1.0, processors("60 0 0 140")) == 10


def test_counters_that_stand_still_tell_nothing(machine: Machine) -> None:
    machine.after(0)
    assert machine.after(1.0) is None


@pytest.mark.parametrize("content", ["", "garbage", "cpu0 1 2", "cpu0 a b c d", "cpu  1 2 3 4", "cpu0 " + "9 " * 9999])
def test_counters_that_are_none(machine: Machine, content: str) -> None:
    machine.after(0)
    assert machine.after(1.0, {"proc/stat": content}) is None
    assert machine.after(1.0, processors("10 0 0 90", "0 0 0 100")) is None  # again the first
    assert machine.after(1.0, processors("30 0 0 170", "0 0 0 200")) == 10


counts = st.integers(0, 10**6)


@settings(deadline=None)
@given(counts, counts, counts, counts, counts, counts)
def test_a_share_is_a_share(busy: int, idle: int, own: int, more: int, rest: int, own_more: int) -> None:
    before = Look(0.0, (0,), busy, busy + idle, own)
    now = Look(1.0, (0,), busy + more, busy + more + idle + rest, own + own_more)
    share = share_percent(before, now)
    assert (share is None) == (more + rest == 0)
    assert share is None or 0 <= share <= 100
    if share is not None and own_more == 0:
        assert share == pytest.approx(100 * more / (more + rest))


def test_a_process_of_any_name(tmp_path: Path) -> None:
    plant(tmp_path, process(TRAINER, times=(250, 40, 8, 2), name="a) R 1 (b c"))
    assert ticks(tmp_path, TRAINER) == 300


def test_processor_seconds_and_resident_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sysconf", {"SC_CLK_TCK": 100, "SC_PAGE_SIZE": 4096}.__getitem__)
    plant(tmp_path, process(TRAINER, times=(250, 40, 8, 2), pages=2560))
    assert cpu_s(tmp_path, TRAINER) == 3.0
    assert resident_mb(tmp_path, TRAINER) == 10


def test_a_process_that_is_gone_or_has_ended(tmp_path: Path) -> None:
    assert cpu_s(tmp_path, TRAINER) is None
    assert resident_mb(tmp_path, TRAINER) is None
    plant(tmp_path, process(TRAINER, pages=0))
    assert resident_mb(tmp_path, TRAINER) is None
    plant(tmp_path, {f"proc/{TRAINER}/stat": "", f"proc/{TRAINER}/statm": "?"})
    assert cpu_s(tmp_path, TRAINER) is None
    assert resident_mb(tmp_path, TRAINER) is None


def test_a_short_burst_is_taken_over_ten_seconds(machine: Machine) -> None:
    machine.after(0)
    for second in range(1, 10):
        idle = f"0 0 0 {100 * second}"
        assert machine.after(1.0, processors(idle, idle)) == 0
    assert machine.after(1.0, processors("100 0 0 900", "100 0 0 900")) == 10  # both, for one of ten seconds
    assert machine.after(20.0, processors("100 0 0 2900", "100 0 0 2900")) == 0  # that is long ago
