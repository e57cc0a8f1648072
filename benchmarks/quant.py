"""`make bench-quant`: opening a GGUF and dequantising its blocks, beside gguf-py in the same run."""

from __future__ import annotations

import os
import subprocess
import sys

import gguf
import numpy as np
import torch
from _report import Report, median_seconds, model_path, quick

from edgepd_quant.blocks import block_format
from edgepd_quant.types import BLOCK_SIZES, GGMLType

TYPES = ("F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
ELEMENTS = 1 << 22  # 4 M weights, as in a layer of a 1B model

# Measured in a process of its own, so that what one reader allocates is not there already for the other.
OPEN = """
import sys, time, psutil
{imports}
process = psutil.Process()
before, started = process.memory_info().rss, time.perf_counter()
file = {call}
print(time.perf_counter() - started, process.memory_info().rss - before)
"""
READERS = {
    "edgepd": (
        "from pathlib import Path\nfrom edgepd_quant.reader import GGUFFile",
        "GGUFFile.open(Path(sys.argv[1]))",
    ),
    "gguf-py": ("import gguf", "gguf.GGUFReader(sys.argv[1])"),
}


def main() -> None:
    """Measure and report."""
    runs = 2 if quick() else 7
    report = Report("quant", {"runs": runs, "elements": ELEMENTS, "threads": 1, "model": model_path().name})
    torch.set_num_threads(1)
    opening = {reader: measure_open(reader, runs) for reader in READERS}
    for reader, (seconds, added) in opening.items():
        report.rows.append({"what": f"open ({reader})", "value": seconds, "unit": "s", "detail": f"{added:.1f} MB RSS"})
    for name in TYPES:
        ours, theirs = measure_dequantise(GGMLType[name], runs)
        report.rows.append(
            {"what": f"dequantise {name}", "value": ours, "unit": "M elements/s", "detail": f"gguf-py {theirs:.0f}"}
        )
        if name in ("Q4_0", "Q4_1"):
            report.at_least(f"dequantise {name}", ours, 400, "M elements/s on one core")
    seconds, added = opening["edgepd"]
    report.at_most("open a 98 MB file", seconds, 0.1, "s")
    report.at_most("memory for its header", added, 10, "MB")
    report.finish()


def measure_open(reader: str, runs: int) -> tuple[float, float]:
    """Return the median seconds and megabytes of resident memory that opening the model takes."""
    imports, call = READERS[reader]
    script = OPEN.format(imports=imports, call=call)
    measured = []
    for _ in range(runs):
        command = [sys.executable, "-c", script, str(model_path())]
        output = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=True).stdout
        seconds, added = output.split()
        measured.append((float(seconds), int(added) / 1e6))
    seconds_all, added_all = zip(*measured, strict=True)
    return float(np.median(seconds_all)), float(np.median(added_all))


def measure_dequantise(qtype: GGMLType, runs: int) -> tuple[float, float]:
    """Return millions of elements a second: ours in torch, gguf-py's in numpy."""
    size = BLOCK_SIZES[qtype]
    blocks = ELEMENTS // size.elements
    # Zero bytes: speed does not depend on the content, and random scales would be full of NaNs.
    raw = np.zeros((blocks // 8, 8 * size.bytes), np.uint8)
    ours = median_seconds(lambda: block_format(qtype).dequantize(torch.from_numpy(raw)), runs)
    theirs = median_seconds(lambda: gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(int(qtype))), runs)
    return ELEMENTS / ours / 1e6, ELEMENTS / theirs / 1e6


if __name__ == "__main__":
    main()
