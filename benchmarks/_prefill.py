"""llama.cpp's prompt processing, in a process of its own: `python benchmarks/_prefill.py` reads a specification.

The floor for a training step is about twice a forward pass (4N FLOPs a token against 2N), so half of this speed is what
a trainer without any overhead could reach with llama.cpp's own kernels.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from edgepd.llama import Context, Entry, Model

TIMINGS = 3


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the speed on one prompt of as many tokens as all the training sequences have."""
    tokens = [token for example in spec["train"] for token in example["tokens"]]
    entries = [Entry(token, i, 0, i == len(tokens) - 1) for i, token in enumerate(tokens)]
    seconds = []
    with Model(Path(spec["model"])) as model:
        context = Context(model, context_tokens=len(tokens), batch_tokens=len(tokens), threads=spec["threads"])
        for _ in range(1 + TIMINGS):  # the first one does not count
            context.forget(0)
            began = time.perf_counter()
            context.decode(entries)
            context.logits(len(tokens) - 1)  # waits for the result
            seconds.append(time.perf_counter() - began)
        context.close()
    return {"tokens_per_second": len(tokens) / statistics.median(seconds[1:])}


if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))))
