"""The model: installed, whole, readable, and of a kind that can be trained.

The idea: what the catalog, the SHA-256 of its file and its header say. The invariant: a file is hashed here whatever
the daemon remembers of it.
What this does not do: load it, or look at generations (see records.py).
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys

from edgepd.cli.doctor_checks.situation import Situation
from edgepd.errors import EdgepdError, ModelError, NotFoundError
from edgepd.models import Catalog, Installed
from edgepd_profiles.integrity import Finding

HASHED_BYTES = 2 * 2**30  # up to this size without --deep; that takes some seconds
ADD = "edgepd model add default"
CHILD_SECONDS = 60.0
# The design keeps the command line from importing edgepd.adapt; a process of its own tells what it can train.
TRAINABLE = (
    "import sys; from pathlib import Path; from edgepd.adapt.architecture import read_architecture; "
    "from edgepd.errors import ModelError; from edgepd_quant.reader import GGUFFile\n"
    "try: print('ok', read_architecture(GGUFFile.open(Path(sys.argv[1]))).name)\n"
    "except ModelError as error: print('no', error)"
)


def find(situation: Situation) -> Installed:
    """Return the model that is served. Raises ModelError, NotFoundError or RequestError."""
    return Catalog(situation.paths.models_dir).find(situation.settings.serve.model)


def model(situation: Situation) -> list[Finding]:
    """Check the model that is served."""
    try:
        found = find(situation)
    except NotFoundError as error:
        return [Finding("model", str(error), "edgepd model list (then change serve.model)")]
    except EdgepdError as error:
        return [Finding("model", str(error), ADD)]
    mend = f"edgepd model remove {found.name}; edgepd model add {shlex.quote(found.source)}"
    if not os.access(found.path, os.R_OK):
        return [Finding("model", f"{found.path} cannot be read by you", f"chmod u+r {shlex.quote(str(found.path))}")]
    told = f"{found.name}, {found.size_bytes / 2**20:.0f} MiB"
    if found.size_bytes > HASHED_BYTES and not situation.deep:
        return [Finding("model", detail=f"{told}; not read as a whole, as --deep does"), _trainable(found)]
    with found.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != found.sha256:
        problem = f"{found.path} is not what was installed: its SHA-256 is {digest[:12]}…, not {found.sha256[:12]}…"
        return [Finding("model", problem, mend)]
    return [Finding("model", detail=f"{told}, its SHA-256 is that of the catalog"), _trainable(found)]


def _trainable(found: Installed) -> Finding:
    """Say whether edgepd can train the model; one that it cannot is served all the same."""
    what = "model for training"
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", TRAINABLE, str(found.path)],
            capture_output=True,
            text=True,
            timeout=CHILD_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"{found.path}: its header was not read within {CHILD_SECONDS:.0f} s") from error
    verdict, _, told = done.stdout.strip().partition(" ")
    if verdict == "ok":
        return Finding(what, detail=f"architecture {told}")
    if verdict == "no":
        return Finding(what, f"{found.name} can be served, but not trained: {' '.join(told.split())}", ADD)
    raise ModelError(f"the process that reads its header ended with {done.returncode}: {done.stderr[-300:].strip()}")
