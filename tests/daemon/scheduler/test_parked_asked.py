"""A run that the user asked for and that made way: it goes on as one that was asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgepd_daemon.scheduler.decide import decide
from edgepd_daemon.scheduler.types import Action, Demand, State
from tests.daemon.scheduler.situations import BROKEN, BUDGET, LIVE_DUE, MIN_EXAMPLES, WELL

ASKED = Demand(examples=12, parked="live", parked_asked=True)


@pytest.mark.parametrize("automatic", [True, False])
def test_it_waits_only_for_what_holds_runs_that_were_asked_for(automatic: bool) -> None:
    budget = replace(BUDGET, automatic=automatic)
    held = set()
    for changed, name, _ in BROKEN:
        decision = decide(State(ASKED), replace(WELL, **changed), budget, MIN_EXAMPLES)
        if decision.action is not Action.START:
            assert decision.constraint == name
            held.add(name)
    # Half a second without a question is enough, of which there were 4.5: so not twice "busy".
    assert held == {"temperature", "memory", "memory pressure", "busy"}


def test_what_was_not_asked_for_waits_for_all() -> None:
    demand = replace(ASKED, parked_asked=False)
    assert decide(State(demand), WELL, replace(BUDGET, automatic=False), MIN_EXAMPLES).action is Action.WAIT
    decision = decide(State(demand), replace(WELL, on_ac=False), BUDGET, MIN_EXAMPLES)
    assert decision.constraint == "mains power"


def test_it_lends_its_rights_to_no_other_run() -> None:
    forgotten = replace(ASKED, forgotten="baked")
    assert decide(State(forgotten), replace(WELL, on_ac=False), BUDGET, MIN_EXAMPLES).constraint == "mains power"
    due = replace(LIVE_DUE, parked_asked=True)  # nothing is parked
    assert decide(State(due), replace(WELL, on_ac=False), BUDGET, MIN_EXAMPLES).constraint == "mains power"
