"""The child that tunes: `python -m edgepd.intent.worker` reads a job from stdin and writes events to stdout.

The idea: what edgepd.adapt.worker is to adapters, for the model of what comes next. SIGTERM ends the run at once and it
says Parked with step 0: it takes less than a minute, so nothing is kept and it begins again. The invariants: an event
is sent as a whole; of a run that was parked or killed no file is left under its name that anybody was told of.
What this does not do: touch the profile or the running model, or talk to the network.
"""

from __future__ import annotations

import logging
import sys

import torch

from edgepd.adapt.job import Event, Outcome, Parked, Planned, Progress, Refused, write_event
from edgepd.adapt.parking import Parking, ParkNow
from edgepd.adapt.priority import become_background, end_with_parent
from edgepd.adapt.run_plan import peak_bytes, rss_bytes
from edgepd.errors import EdgepdError
from edgepd.intent.individual import tune
from edgepd.intent.job import TuneJob
from edgepd.intent.student import Student
from edgepd.intent.tuning import Means, carry_out

log = logging.getLogger(__name__)

MIB = 1 << 20


def main() -> int:
    """Run the job on stdin; exit code 0 if it came to an outcome or was parked, the error's own code otherwise."""
    parking = Parking()
    parking.listen()
    try:
        return _work(parking)
    except BrokenPipeError:
        return 1  # the daemon is gone, and with it whoever wanted the result


def _work(parking: Parking) -> int:
    concluded = False
    try:
        refused = end_with_parent()
        job = TuneJob.from_json(sys.stdin.read())
        refused += become_background(job.threads)
        log.debug("; ".join(refused))
        torch.set_num_threads(job.threads)
        found: Outcome | Planned = carry_out(job, _means(parking))
        with parking.whole():
            emit(found)
            concluded = True
    except ParkNow:
        parking.ignore()
        if not concluded:
            emit(Parked(0))
    except EdgepdError as error:
        parking.ignore()
        emit(Refused(str(error)))
        return error.exit_code
    return 0


def emit(event: Event) -> None:
    """Send one event to the daemon."""
    print(write_event(event), flush=True)


def _means(parking: Parking) -> Means:
    def tell(progress: Progress) -> None:
        with parking.whole():
            emit(progress)

    return Means(Student.load, tune, tell, lambda: rss_bytes() / MIB, lambda: peak_bytes() / MIB)


if __name__ == "__main__":
    sys.exit(main())
