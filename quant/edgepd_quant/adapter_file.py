"""Adapter files: what training learned, as GGUF.

The idea: kind "lora" is the ordinary llama.cpp LoRA that any llama.cpp loads; kind "scale" has the same
layout with other suffixes and holds the block-scale delta before it is baked (bake.py). Own facts travel
along as string keys `edgepd.*`. The invariant: what passes `check_adapter` fits the base exactly, tensor by
tensor, so llama.cpp accepts it; whatever does not fit is refused with the reason. What this does not do:
support DoRA, adapters on token_embd or output (llama.cpp reads these flipped, and tied heads share the
name), or look at the values. Source: convert_lora_to_gguf.py and llama-adapter.cpp of llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from edgepd.atomic import replacing
from edgepd.errors import AdapterError, FormatError
from edgepd_quant.reader import GGUFFile, TensorInfo
from edgepd_quant.types import BLOCK_SIZES, GGMLType
from edgepd_quant.writer import write_gguf

Kind: TypeAlias = Literal["lora", "scale"]

OWN_PREFIX: Final = "edgepd."
ALPHA_KEY: Final = "adapter.lora.alpha"
TYPE_OF_KIND: Final[Mapping[Kind, str]] = {"lora": "lora", "scale": "edgepd.scale"}
REFUSED_TENSORS: Final = ("token_embd.weight", "output.weight")
DORA_SUFFIX: Final = ".lora_magnitude_vector"
READABLE_TYPES: Final = {GGMLType.F32: "<f4", GGMLType.F16: "<f2"}


@dataclass(frozen=True)
class LowRank:
    """The two factors for one base tensor: the product is `b @ a`, with a (r, in) and b (out, r), both
    float32.

    For kind "scale", in is the number of quantisation blocks per row.
    """

    a: npt.NDArray[np.float32]
    b: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Adapter:
    """A whole adapter. `tensors` maps names of base tensors; `metadata` holds own keys without the prefix.

    `alpha` scales kind "lora" by alpha / r (0 means 1); kind "scale" does not use it: g = b @ a.
    """

    kind: Kind
    architecture: str
    alpha: float
    tensors: Mapping[str, LowRank]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class AdapterHeader:
    """What an adapter file says about itself, without its arrays. `ranks` maps names of base tensors."""

    kind: Kind
    architecture: str
    alpha: float
    ranks: Mapping[str, int]
    metadata: Mapping[str, str]


_Pairs: TypeAlias = dict[str, tuple[TensorInfo, TensorInfo]]


def write_adapter(path: Path, adapter: Adapter) -> None:
    """Write the adapter atomically with mode 0600.

    Raises StoreError when it cannot be stored, ValueError when the factors of a tensor do not belong
    together.
    """
    tensors: dict[str, npt.NDArray[np.float32]] = {}
    for name, pair in adapter.tensors.items():
        if pair.a.ndim != 2 or pair.b.ndim != 2 or pair.a.shape[0] != pair.b.shape[1]:
            raise ValueError(f"{name}: factors of shapes {pair.a.shape} and {pair.b.shape} do not belong together")
        tensors[f"{name}.{adapter.kind}_a"] = pair.a
        tensors[f"{name}.{adapter.kind}_b"] = pair.b
    metadata: dict[str, str | float] = {
        "general.architecture": adapter.architecture,
        "general.type": "adapter",
        "adapter.type": TYPE_OF_KIND[adapter.kind],
        ALPHA_KEY: float(adapter.alpha),
    }
    metadata |= {OWN_PREFIX + key: value for key, value in adapter.metadata.items()}
    with replacing(path) as file:
        write_gguf(file, metadata, tensors)


def read_adapter(path: Path) -> Adapter:
    """Read the adapter with copies of its arrays. Raises AdapterError; does not compare it with a base."""
    with _open(path) as file:
        header, pairs = _parse(file)
        tensors = {name: LowRank(_array(file, a), _array(file, b)) for name, (a, b) in pairs.items()}
        return Adapter(header.kind, header.architecture, header.alpha, tensors, header.metadata)


def check_adapter(path: Path, base: GGUFFile, base_sha256: str) -> AdapterHeader:
    """Check that the adapter fits this base, without reading its arrays. Raises AdapterError with the reason.

    The base's SHA-256 is compared only when the adapter names one; adapters made elsewhere do not.
    """
    with _open(path) as file:
        header, pairs = _parse(file)
        made_for = header.metadata.get("base_sha256", base_sha256)
        if made_for != base_sha256:
            raise AdapterError(
                f"{path}: made for the base with SHA-256 {made_for}, but {base.path} has {base_sha256};"
                " serve that base or train again on this one"
            )
        check_architecture(path, header.architecture, base)
        for name, (a, b) in pairs.items():
            check_shapes(path, header.kind, name, a.shape, b.shape, base)
        return header


def check_architecture(origin: object, architecture: str, base: GGUFFile) -> None:
    """Raise AdapterError unless the base is of this architecture. `origin` names the adapter."""
    expected = base.metadata.get("general.architecture")
    if architecture != expected:
        raise AdapterError(
            f"{origin}: made for architecture {architecture!r}, but {base.path} is {expected!r};"
            " train again on this base"
        )


def check_shapes(
    origin: object, kind: Kind, name: str, a_shape: tuple[int, ...], b_shape: tuple[int, ...], base: GGUFFile
) -> None:
    """Raise AdapterError unless factors of these shapes fit the base tensor. `origin` names the adapter."""
    info = base.tensors.get(name)
    if info is None:
        raise AdapterError(f"{origin}: {base.path} has no tensor {name!r}; the adapter was made for another base")
    if len(info.shape) != 2:
        raise AdapterError(f"{origin}: tensor {name!r} of the base has shape {info.shape}; only matrices are adapted")
    rows, columns = info.shape
    width = columns if kind == "lora" else columns // BLOCK_SIZES[info.qtype].elements
    if (b_shape[0], a_shape[1]) != (rows, width):
        raise AdapterError(
            f"{origin}: the factors for {name!r} are {a_shape} and {b_shape}, but this base needs"
            f" (r, {width}) and ({rows}, r); the adapter was made for another base"
        )


def _open(path: Path) -> GGUFFile:
    try:
        return GGUFFile.open(path)
    except FormatError as error:
        raise AdapterError(f"adapter file refused: {error}; restore it or train again") from error


def _parse(file: GGUFFile) -> tuple[AdapterHeader, _Pairs]:
    if (role := file.metadata.get("general.type")) != "adapter":
        raise AdapterError(f"{file.path}: is not an adapter: general.type is {role!r}")
    declared = file.metadata.get("adapter.type")
    kind: Kind | None = next((kind for kind, name in TYPE_OF_KIND.items() if name == declared), None)
    if kind is None:
        raise AdapterError(f"{file.path}: adapter type {declared!r} is not supported; convert it to a plain LoRA")
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise AdapterError(f"{file.path}: general.architecture is missing; export the adapter again")
    alpha = file.metadata.get(ALPHA_KEY, 0.0)
    if not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise AdapterError(f"{file.path}: {ALPHA_KEY} is {alpha!r}, not a finite number; export the adapter again")
    own = {
        key.removeprefix(OWN_PREFIX): value
        for key, value in file.metadata.items()
        if key.startswith(OWN_PREFIX) and isinstance(value, str)
    }
    pairs = _pair_up(file, kind)
    ranks = {name: a.shape[0] for name, (a, _) in pairs.items()}
    return AdapterHeader(kind, architecture, float(alpha), ranks, own), pairs


def _pair_up(file: GGUFFile, kind: Kind) -> _Pairs:
    halves: dict[str, dict[str, TensorInfo]] = {}
    for info in file.tensors.values():
        name, _, suffix = info.name.rpartition(".")
        if info.name.endswith(DORA_SUFFIX):
            raise AdapterError(
                f"{file.path}: {info.name!r} makes it a DoRA adapter, which llama.cpp cannot load; use LoRA"
            )
        if suffix not in (f"{kind}_a", f"{kind}_b"):
            raise AdapterError(f"{file.path}: tensor {info.name!r} is not a factor of a {kind} adapter")
        if name in REFUSED_TENSORS:
            raise AdapterError(f"{file.path}: adapters on {name!r} are not supported; train without it")
        if len(info.shape) != 2:
            raise AdapterError(f"{file.path}: tensor {info.name!r} has shape {info.shape}, but factors are matrices")
        halves.setdefault(name, {})[suffix[-1]] = info
    if not halves:
        raise AdapterError(f"{file.path}: the adapter holds no tensors; train again")
    return {name: _pair(file, kind, name, found) for name, found in halves.items()}


def _pair(file: GGUFFile, kind: Kind, name: str, found: Mapping[str, TensorInfo]) -> tuple[TensorInfo, TensorInfo]:
    for half in "ab":
        if half not in found:
            raise AdapterError(f"{file.path}: {name}.{kind}_{half} is missing; export the adapter again")
    a, b = found["a"], found["b"]
    if a.shape[0] != b.shape[1]:
        raise AdapterError(
            f"{file.path}: the ranks of the factors for {name!r} differ: {a.shape[0]} and {b.shape[1]};"
            " export the adapter again"
        )
    return a, b


def _array(file: GGUFFile, info: TensorInfo) -> npt.NDArray[np.float32]:
    layout = READABLE_TYPES.get(info.qtype)
    if layout is None:
        raise AdapterError(f"{file.path}: tensor {info.name!r} is {info.qtype.name}; convert the adapter to F32")
    return file.rows(info.name).view(layout).reshape(info.shape).astype(np.float32)
