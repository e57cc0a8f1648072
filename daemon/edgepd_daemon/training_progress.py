"""Where a training run is: what its child says, put together for those who watch.

The idea: a child tells what is new; numbers that it does not tell hold until there are newer ones.
What this does not do: talk to the child.
"""

from __future__ import annotations

import dataclasses
from dataclasses import asdict
from typing import Any

from edgepd.adapt.job import Progress
from edgepd_profiles.rows import finite

KEPT = ("loss", "held_out_loss", "tokens_per_second", "rss_mb")  # numbers that hold until there are newer ones
CURVE_POINTS = 500


def note_loss(curve: list[tuple[int, float]], progress: Progress) -> None:
    """Add a step to the curve, which keeps every second point when it has become long."""
    if progress.stage != "train" or progress.loss is None:
        return
    curve.append((progress.done, progress.loss))
    if len(curve) > CURVE_POINTS:
        del curve[1::2]


def continued(before: Progress | None, now: Progress) -> Progress:
    """Return `now` with the numbers that it does not tell as they were, such as the loss when a stage begins."""
    missing = [name for name in KEPT if before is not None and getattr(now, name) is None]
    return dataclasses.replace(now, **{name: getattr(before, name) for name in missing})


def progress_fields(progress: Progress | None) -> dict[str, Any] | None:
    """Return progress as the API shows it. A loss that is not a number any more is null, as JSON has no other way."""
    return dict(finite(asdict(progress))) if progress else None
