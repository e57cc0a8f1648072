"""Adapter files: what training learned, as GGUF.

The idea: kind "lora" is the ordinary llama.cpp LoRA that any llama.cpp loads; the others hold a delta before it is
baked (bake.py): "scale" and "shift" have the same layout with other suffixes, "gain" has one vector per tensor. Own
facts travel along as string keys `edgepd.*`. The invariant: what passes `check_adapter` fits the base exactly, tensor
by tensor, so llama.cpp accepts a "lora"; whatever does not fit is refused with the reason. What this does not do:
support DoRA, adapters on token_embd or output (llama.cpp reads these flipped, and tied heads share the
name), look at the values, or ask whether a tensor's type can hold a delta (bake.py does). Source:
convert_lora_to_gguf.py and llama-adapter.cpp of llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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

Kind: TypeAlias = Literal["lora", "scale", "shift", "gain"]

OWN_PREFIX: Final = "edgepd."
ALPHA_KEY: Final = "adapter.lora.alpha"
TYPE_OF_KIND: Final[Mapping[Kind, str]] = {
    "lora": "lora",
    "scale": "edgepd.scale",
    "shift": "edgepd.shift",
    "gain": "edgepd.gain",
}
SUFFIXES: Final[Mapping[Kind, tuple[str, ...]]] = {
    "lora": ("lora_a", "lora_b"),
    "scale": ("scale_a", "scale_b"),
    "shift": ("shift_a", "shift_b"),
    "gain": ("gain",),
}
GAINED_VECTORS: Final = ("_norm.weight", ".bias")  # how the names of vectors that gains may change end
REFUSED_TENSORS: Final = ("token_embd.weight", "output.weight")
DORA_SUFFIX: Final = ".lora_magnitude_vector"
READABLE_TYPES: Final = {GGMLType.F32: "<f4", GGMLType.F16: "<f2"}


@dataclass(frozen=True)
class LowRank:
    """The two factors for one base tensor: the product is `b @ a`, with a (r, in) and b (out, r), both
    float32.

    For kinds "scale" and "shift", in is the number of quantisation blocks per row.
    """

    a: npt.NDArray[np.float32]
    b: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Vector:
    """The gains v of one base tensor, 1-D float32.

    Of a matrix (out, in): out of them, for W (1 + v) row by row. Of a norm gain g: as many as it has, for g (1 + v).
    Of a bias b: as many as it has, for b + v.
    """

    values: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Adapter:
    """A whole adapter. `tensors` maps names of base tensors; `metadata` holds own keys without the prefix.

    `alpha` scales kind "lora" by alpha / r (0 means 1); the other kinds do not use it. Kind "gain" holds Vectors, the
    others LowRanks.
    """

    kind: Kind
    architecture: str
    alpha: float
    tensors: Mapping[str, LowRank | Vector]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class AdapterHeader:
    """What an adapter file says about itself, without its arrays. `ranks` maps names of base tensors (gains: 0)."""

    kind: Kind
    architecture: str
    alpha: float
    ranks: Mapping[str, int]
    metadata: Mapping[str, str]


_Parts: TypeAlias = dict[str, tuple[TensorInfo, ...]]  # of each base tensor: a and b, or the gains


def write_adapter(path: Path, adapter: Adapter) -> None:
    """Write the adapter atomically with mode 0600.

    Raises StoreError when it cannot be stored, ValueError when the arrays of a tensor do not belong to the kind or
    together.
    """
    tensors: dict[str, npt.NDArray[np.float32]] = {}
    for name, values in adapter.tensors.items():
        arrays = _arrays(adapter.kind, name, values)
        tensors |= {f"{name}.{suffix}": array for suffix, array in zip(SUFFIXES[adapter.kind], arrays, strict=True)}
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
        header, parts = _parse(file)
        tensors: dict[str, LowRank | Vector] = {}
        for name, infos in parts.items():
            arrays = [_array(file, info) for info in infos]
            tensors[name] = Vector(*arrays) if header.kind == "gain" else LowRank(*arrays)
        return Adapter(header.kind, header.architecture, header.alpha, tensors, header.metadata)


def check_adapter(path: Path, base: GGUFFile, base_sha256: str) -> AdapterHeader:
    """Check that the adapter fits this base, without reading its arrays. Raises AdapterError with the reason.

    The base's SHA-256 is compared only when the adapter names one; adapters made elsewhere do not.
    """
    with _open(path) as file:
        header, parts = _parse(file)
        made_for = header.metadata.get("base_sha256", base_sha256)
        if made_for != base_sha256:
            raise AdapterError(
                f"{path}: made for the base with SHA-256 {made_for}, but {base.path} has {base_sha256};"
                " serve that base or train again on this one"
            )
        check_architecture(path, header.architecture, base)
        for name, infos in parts.items():
            check_shapes(path, header.kind, name, [info.shape for info in infos], base)
        return header


def check_architecture(origin: object, architecture: str, base: GGUFFile) -> None:
    """Raise AdapterError unless the base is of this architecture. `origin` names the adapter."""
    expected = base.metadata.get("general.architecture")
    if architecture != expected:
        raise AdapterError(
            f"{origin}: made for architecture {architecture!r}, but {base.path} is {expected!r};"
            " train again on this base"
        )


def check_shapes(origin: object, kind: Kind, name: str, shapes: Sequence[tuple[int, ...]], base: GGUFFile) -> None:
    """Raise AdapterError unless arrays of these shapes (a and b, or the gains) fit the base tensor.

    `origin` names the adapter.
    """
    info = base.tensors.get(name)
    if info is None:
        raise AdapterError(f"{origin}: {base.path} has no tensor {name!r}; the adapter was made for another base")
    vector = kind == "gain" and len(info.shape) == 1 and name.endswith(GAINED_VECTORS)
    if len(info.shape) != 2 and not vector:
        allowed = "only matrices, norm gains and biases are" if kind == "gain" else "only matrices are"
        raise AdapterError(f"{origin}: tensor {name!r} of the base has shape {info.shape}; {allowed} adapted")
    rows = info.shape[0]
    if kind == "gain":
        if tuple(shapes) != ((rows,),):
            raise AdapterError(
                f"{origin}: the gains for {name!r} are {shapes[0]}, but this base needs ({rows},);"
                " the adapter was made for another base"
            )
        return
    a_shape, b_shape = shapes
    width = info.shape[1] if kind == "lora" else info.shape[1] // BLOCK_SIZES[info.qtype].elements
    if (b_shape[0], a_shape[1]) != (rows, width):
        raise AdapterError(
            f"{origin}: the factors for {name!r} are {a_shape} and {b_shape}, but this base needs"
            f" (r, {width}) and ({rows}, r); the adapter was made for another base"
        )


def shapes_of(values: LowRank | Vector) -> list[tuple[int, ...]]:
    """Return the shapes of the arrays, in the order that `check_shapes` expects."""
    return [values.a.shape, values.b.shape] if isinstance(values, LowRank) else [values.values.shape]


def _arrays(kind: Kind, name: str, values: LowRank | Vector) -> list[npt.NDArray[np.float32]]:
    if isinstance(values, Vector) != (kind == "gain"):
        raise ValueError(f"{name}: {type(values).__name__} does not belong into an adapter of kind {kind}")
    if isinstance(values, Vector):
        if values.values.ndim != 1:
            raise ValueError(f"{name}: gains are a vector, not {values.values.shape}")
        return [values.values]
    if values.a.ndim != 2 or values.b.ndim != 2 or values.a.shape[0] != values.b.shape[1]:
        raise ValueError(f"{name}: factors of shapes {values.a.shape} and {values.b.shape} do not belong together")
    return [values.a, values.b]


def _open(path: Path) -> GGUFFile:
    try:
        return GGUFFile.open(path)
    except FormatError as error:
        raise AdapterError(f"adapter file refused: {error}; restore it or train again") from error


def _parse(file: GGUFFile) -> tuple[AdapterHeader, _Parts]:
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
    parts = _parts(file, kind)
    ranks = {name: 0 if kind == "gain" else infos[0].shape[0] for name, infos in parts.items()}
    return AdapterHeader(kind, architecture, float(alpha), ranks, own), parts


def _parts(file: GGUFFile, kind: Kind) -> _Parts:
    found: dict[str, dict[str, TensorInfo]] = {}
    dimensions = 1 if kind == "gain" else 2
    for info in file.tensors.values():
        name, _, suffix = info.name.rpartition(".")
        if info.name.endswith(DORA_SUFFIX):
            raise AdapterError(
                f"{file.path}: {info.name!r} makes it a DoRA adapter, which llama.cpp cannot load; use LoRA"
            )
        if suffix not in SUFFIXES[kind]:
            raise AdapterError(f"{file.path}: tensor {info.name!r} is not a factor of a {kind} adapter")
        if name in REFUSED_TENSORS:
            raise AdapterError(f"{file.path}: adapters on {name!r} are not supported; train without it")
        if len(info.shape) != dimensions:
            form = "gains are vectors" if kind == "gain" else "factors are matrices"
            raise AdapterError(f"{file.path}: tensor {info.name!r} has shape {info.shape}, but {form}")
        found.setdefault(name, {})[suffix] = info
    if not found:
        raise AdapterError(f"{file.path}: the adapter holds no tensors; train again")
    return {name: _complete(file, kind, name, of_name) for name, of_name in found.items()}


def _complete(file: GGUFFile, kind: Kind, name: str, found: Mapping[str, TensorInfo]) -> tuple[TensorInfo, ...]:
    for suffix in SUFFIXES[kind]:
        if suffix not in found:
            raise AdapterError(f"{file.path}: {name}.{suffix} is missing; export the adapter again")
    infos = tuple(found[suffix] for suffix in SUFFIXES[kind])
    if kind != "gain" and infos[0].shape[0] != infos[1].shape[1]:
        raise AdapterError(
            f"{file.path}: the ranks of the factors for {name!r} differ: {infos[0].shape[0]} and {infos[1].shape[1]};"
            " export the adapter again"
        )
    return infos


def _array(file: GGUFFile, info: TensorInfo) -> npt.NDArray[np.float32]:
    layout = READABLE_TYPES.get(info.qtype)
    if layout is None:
        raise AdapterError(f"{file.path}: tensor {info.name!r} is {info.qtype.name}; convert the adapter to F32")
    return file.rows(info.name).view(layout).reshape(info.shape).astype(np.float32)
