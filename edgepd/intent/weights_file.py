"""Weights of a predictor in one file: a ZIP of .npy arrays (what numpy calls .npz) and one text of JSON about them.

The idea: any numpy can read it, and the same content is the same bytes: no time stamps, a fixed order. The invariants:
what a file says of its sizes is checked before anything is allocated, and nothing in it is ever unpickled.
What this does not do: know which arrays a predictor needs (student.py).
"""

from __future__ import annotations

import io
import json
import tokenize
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepd.atomic import replacing
from edgepd.errors import ModelError

Floats = npt.NDArray[np.float32]

ABOUT = "about.json"
MAX_BYTES = 64 * 2**20
MAX_MEMBERS = 2000
MAX_DIMENSIONS = 4
# What zipfile, json and numpy.lib.format raise for damage; the header of an array is read as Python, by its tokens too.
UNREADABLE = (
    *(OSError, zipfile.BadZipFile, KeyError, ValueError, TypeError, EOFError),
    *(NotImplementedError, RuntimeError, tokenize.TokenError),
)


def write(path: Path, weights: Mapping[str, Floats], about: Mapping[str, Any]) -> None:
    """Write float16 copies of the weights and what is said about them. Raises StoreError if that fails."""
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_member(ABOUT), json.dumps(about, sort_keys=True, ensure_ascii=False))
        for name in sorted(weights):
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, weights[name].astype(np.float16), allow_pickle=False)
            archive.writestr(_member(f"{name}.npy"), buffer.getvalue())


def read(path: Path) -> tuple[dict[str, Floats], dict[str, Any]]:
    """Return the weights as float32, and what is said about them. Raises ModelError for anything but such a file."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_sizes(path, members)
            about = json.loads(archive.read(ABOUT))
            named = {m.filename.removesuffix(".npy"): archive.read(m) for m in members if m.filename != ABOUT}
            weights = {name: _array(data) for name, data in named.items()}
    except UNREADABLE as error:
        raise ModelError(f"{path}: not a file of predictor weights: {error}") from error
    if not isinstance(about, dict):
        raise ModelError(f"{path}: {ABOUT} is not an object")
    return weights, about


def _member(name: str) -> zipfile.ZipInfo:
    """Return an entry with a fixed time, so that the same weights are the same bytes."""
    return zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))


def _check_sizes(path: Path, members: list[zipfile.ZipInfo]) -> None:
    total = sum(member.file_size for member in members)
    if len(members) > MAX_MEMBERS or total > MAX_BYTES:
        raise ModelError(f"{path}: {len(members)} parts of {total} bytes are more than a predictor can have")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ModelError(f"{path}: it is compressed; predictor weights are not")


def _array(data: bytes) -> Floats:
    buffer = io.BytesIO(data)
    version = np.lib.format.read_magic(buffer)
    if version != (1, 0):
        raise ValueError(f"an array of version {version}, not (1, 0)")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(buffer)
    if len(shape) > MAX_DIMENSIONS or fortran or dtype != np.float16:
        raise ValueError(f"an array of {dtype} in {len(shape)} dimensions, not of float16 by rows")
    rest = data[buffer.tell() :]
    found = np.frombuffer(rest, np.float16).reshape(shape).astype(np.float32)
    if not np.isfinite(found).all():
        raise ValueError("an array holds numbers that are not finite")
    return found
