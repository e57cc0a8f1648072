"""Everything a training run needs to go on after kill -9, in one file.

The idea: parameters and optimiser moments as flat vectors in one .npz, whose CRCs reveal a torn file, plus a
fingerprint of what is trained on what. The invariant: the file at the given path is always complete, and a
checkpoint of another run is never loaded.
What this does not do: keep a random state; the order of an epoch follows from seed and epoch.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepd.atomic import replacing
from edgepd.errors import TrainingError

Vector = npt.NDArray[np.float32]
_VECTORS = ("parameters", "exp_avg", "exp_avg_sq", "best")


@dataclass(frozen=True)
class Progress:
    """Where a run stands."""

    epoch: int = 1  # the epoch to go on with, from 1
    batch: int = 0  # optimiser steps of that epoch that are done
    step: int = 0  # optimiser steps done in all
    held_out: tuple[float, ...] = ()  # nats per token: before training, then after each epoch
    best_epoch: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run; vectors are flat float32 of equal length: all deltas in order, A before B."""

    fingerprint: str
    progress: Progress
    parameters: Vector
    exp_avg: Vector
    exp_avg_sq: Vector
    best: Vector


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint so that a crash leaves either the old file or the new one. Raises StoreError."""
    header = {"fingerprint": checkpoint.fingerprint, "progress": dataclasses.asdict(checkpoint.progress)}
    vectors = {name: getattr(checkpoint, name) for name in _VECTORS}
    with replacing(path) as file:
        np.savez(file, header=np.array(json.dumps(header)), **vectors)


def load(path: Path, fingerprint: str, length: int) -> Checkpoint:
    """Read the checkpoint of the run with this fingerprint and this many parameters.

    Raises TrainingError with the reason if it is missing, torn, or belongs to another run.
    """
    try:
        # Opened here because numpy leaves a file that it opened itself open when it is not a zip archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            header: dict[str, Any] = json.loads(str(archive["header"]))
            vectors = {name: archive[name] for name in _VECTORS}
        found, progress = header["fingerprint"], Progress(**header["progress"])
    except FileNotFoundError as error:
        raise TrainingError(f"{path}: there is no checkpoint") from error
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise TrainingError(f"{path}: the checkpoint is damaged: {error}") from error
    if found != fingerprint:
        raise TrainingError(f"{path}: the checkpoint is of a run with other data, settings or base model")
    for name, vector in vectors.items():
        if vector.shape != (length,) or vector.dtype != np.float32:
            raise TrainingError(f"{path}: '{name}' has shape {vector.shape}, but {length} parameters are trained")
    progress = dataclasses.replace(progress, held_out=tuple(progress.held_out))
    return Checkpoint(found, progress, **vectors)
