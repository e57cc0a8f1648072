"""The models of what comes next: the one that ships with edgepd, and the one that was tuned to the user.

The idea: both are read as the daemon reads them. The invariant: without a tuned one, or if it is damaged, the shipped
one predicts; so only that one must be in order.
What this does not do: judge how well they predict; the gate did, and `edgepd status` tells.
"""

from __future__ import annotations

import hashlib

from edgepd.cli.doctor_checks.records import current
from edgepd.cli.doctor_checks.situation import Situation
from edgepd.cli.output import moment
from edgepd.errors import ModelError
from edgepd.intent.shipping import shipped_student
from edgepd.intent.student import Student
from edgepd_profiles import students
from edgepd_profiles.integrity import Finding

WHAT = "prediction"
REINSTALL = "pip install --force-reinstall --no-deps edgepd"
TUNE = "edgepd train --intent"


def prediction(situation: Situation) -> list[Finding]:
    """Check the models, unless they are switched off."""
    if not situation.settings.intent.enabled:
        return [Finding(WHAT, detail="switched off (intent.enabled)")]
    try:
        shipped = Student.load(shipped_student())
    except ModelError as error:
        return [Finding(WHAT, f"the model that ships with edgepd cannot be read: {error}", REINSTALL)]
    size = shipped_student().stat().st_size
    return [
        Finding(WHAT, detail=f"shipped model, {size / 2**20:.1f} MiB, {shipped.shape.layers} layers"),
        *_tuned(situation),
    ]


def _tuned(situation: Situation) -> list[Finding]:
    """Check the file of the tuned model that is in use, if there is one."""
    what = "tuned prediction"
    with current(situation.paths.profile) as conn:
        active = students.active(conn) if conn else None
    if active is None:
        return []
    path = situation.paths.students_dir / active.file
    if not path.is_file():
        return [Finding(what, f"its file {path} is not there, so the shipped model predicts", TUNE)]
    if hashlib.sha256(path.read_bytes()).hexdigest() != active.sha256:
        return [Finding(what, f"{path} is not what was tuned, so the shipped model predicts", TUNE)]
    try:
        Student.load(path)
    except ModelError as error:
        return [Finding(what, f"{error}; so the shipped model predicts", TUNE)]
    return [Finding(what, detail=f"model {active.id}, tuned {moment(active.at)}")]
