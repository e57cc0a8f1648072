"""What a run would cost: a child that plans and does nothing else.

The invariant: whoever asks gets a plan or the reason why there is none, within PLAN_SECONDS.
What this does not do: start or end the child.
"""

from __future__ import annotations

import asyncio
from typing import Any

from edgepd.adapt.job import Planned, Progress, Refused
from edgepd.errors import TrainingError
from edgepd_daemon.training_child import AnyJob, events, how_it_ended
from edgepd_profiles.rows import finite

PLAN_SECONDS = 120.0  # within which a plan must be there; loading torch alone takes ten on a small board


async def ask_for_plan(process: asyncio.subprocess.Process, job: AnyJob) -> dict[str, Any]:
    """Return the plan of a job, as the planner in the child gives it. Raises TrainingError if there is none."""
    try:
        async with asyncio.timeout(PLAN_SECONDS):
            last = [event async for event in events(process, job) if not isinstance(event, Progress)]
    except TimeoutError as error:
        raise TrainingError(f"the trainer had no plan within {PLAN_SECONDS:.0f} s; try again later") from error
    if last and isinstance(last[-1], Planned):
        return dict(finite(last[-1].plan))
    if last and isinstance(last[-1], Refused):
        raise TrainingError(last[-1].reason)
    raise TrainingError(f"the trainer {how_it_ended(process)} before it had a plan")
