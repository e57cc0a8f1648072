from __future__ import annotations

import sys

import pytest
import torch

from benchmarks._intent_data import Protocol
from benchmarks._intent_device import longest, ranking_ms, tuned_in_a_child
from edgepd.intent.data import Split
from edgepd.intent.predictor import Predictor
from edgepd.intent.student import Student
from tests.intent.intent_helpers import TINY, circle, names, scorer_of, weights_of

# In place of the real child, which has to wait for an idle core, and in a test suite there is none.
WORKER = """
import sys
from pathlib import Path
from edgepd.adapt.job import Outcome, Progress, write_event
from edgepd.intent.job import TuneJob
job = TuneJob.from_json(sys.stdin.read())
print(write_event(Progress("load")))
print(write_event(Outcome(False, "", {"peak_rss_mb": len(job.events) + Path(job.shipped).is_file()})))
"""


@pytest.fixture
def student() -> Student:
    torch.manual_seed(0)
    return Student(TINY, weights_of(Predictor(TINY), scorer_of(TINY)), names(), {}, {})


def test_the_child_is_told_all_and_its_own_memory_is_what_counts(student: Student) -> None:
    seconds, peak_mib = tuned_in_a_child(student, circle(40, 1), (sys.executable, "-c", WORKER))
    assert seconds > 0
    assert peak_mib == 41


def test_a_child_without_an_outcome_is_an_error_with_what_it_said(student: Student) -> None:
    with pytest.raises(RuntimeError, match="ended with 3: no room"):
        tuned_in_a_child(
            student, circle(9, 1), (sys.executable, "-c", "import sys; print('no room', file=sys.stderr); sys.exit(3)")
        )


def test_a_ranking_takes_time(student: Student) -> None:
    assert ranking_ms(student, circle(40, 1)) > 0


def test_the_longest_history_is_measured() -> None:
    short, long = (Split(circle(n, 1), [], circle(2, 2)) for n in (3, 9))
    assert len(longest(Protocol(0, {}, {"a": short, "b": long}, ("mail",)))) == 11
