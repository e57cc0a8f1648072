from __future__ import annotations

import torch

from benchmarks._intent_data import Protocol
from benchmarks._intent_device import longest, ranking_ms, tuned_in_a_child
from edgepd.intent.data import Split
from edgepd.intent.predictor import Predictor
from edgepd.intent.student import Student
from tests.intent.intent_helpers import TINY, circle, names, scorer_of, weights_of


def test_tuning_is_measured_in_a_process_of_its_own() -> None:
    torch.manual_seed(0)
    student = Student(TINY, weights_of(Predictor(TINY), scorer_of(TINY)), names(), {}, {})
    events = circle(40, 1)
    seconds, peak_mib = tuned_in_a_child(student, events)
    assert 0 < seconds < 600
    assert 50 < peak_mib < 2000
    assert ranking_ms(student, events) > 0


def test_the_longest_history_is_measured() -> None:
    short, long = (Split(circle(n, 1), [], circle(2, 2)) for n in (3, 9))
    assert len(longest(Protocol(0, {}, {"a": short, "b": long}, ("mail",)))) == 11
