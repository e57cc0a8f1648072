"""What Ollama tells about a model file, read from its header.

The idea: clients poll the lists of models, so they are answered from the file, which costs milliseconds, and never
load a model. What this does not do: read weights.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import isfinite, prod
from pathlib import Path
from typing import Any

from edgepd_quant.header import Header, opened_header
from edgepd_quant.metadata import LazyArray

TEMPLATE_KEY = "tokenizer.chat_template"


@dataclass(frozen=True)
class FileFacts:
    """A model file: its size, its header's details and, if asked for, its metadata."""

    path: Path
    size_bytes: int
    modified_at: float
    architecture: str
    parameters: int
    quantization: str
    metadata: dict[str, Any]

    @property
    def template(self) -> str:
        """The chat template, empty if the file has none."""
        return str(self.metadata.get(TEMPLATE_KEY, ""))

    def details(self) -> dict[str, Any]:
        """Return the details as Ollama shows them."""
        return {
            "parent_model": "",
            "format": "gguf",
            "family": self.architecture,
            "families": [self.architecture],
            "parameter_size": abbreviated(self.parameters),
            "quantization_level": self.quantization,
        }


def read_facts(path: Path, *, verbose: bool = False) -> FileFacts:
    """Read a header; arrays are left empty unless `verbose`. Raises FormatError."""
    with opened_header(path) as header:
        status = path.stat()
        metadata = {key: _shown(value, verbose=verbose) for key, value in header.metadata.items()}
    return FileFacts(
        path=path,
        size_bytes=status.st_size,
        modified_at=status.st_mtime,
        architecture=str(header.metadata.get("general.architecture", "unknown")),
        parameters=sum(prod(tensor.shape) for tensor in header.tensors.values()),
        quantization=_quantization(header),
        metadata=metadata,
    )


def abbreviated(parameters: int) -> str:
    """Return a number of parameters as Ollama writes it, such as 134.5M."""
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if parameters >= size:
            return f"{parameters / size:.1f}{unit}"
    return str(parameters)


def _shown(value: object, *, verbose: bool) -> object:
    if isinstance(value, LazyArray):
        return [_plain(item) for item in value.values()] if verbose else []
    return _plain(value)


def _plain(value: object) -> object:
    """Return a number that JSON does not know, such as infinity, as text."""
    return str(value) if isinstance(value, float) and not isfinite(value) else value


def _quantization(header: Header) -> str:
    """Return the type that most of the file's bytes have."""
    bytes_of: Counter[str] = Counter()
    for tensor in header.tensors.values():
        bytes_of[tensor.qtype.name] += tensor.nbytes
    return bytes_of.most_common(1)[0][0] if bytes_of else "unknown"
