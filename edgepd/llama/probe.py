"""Open a model, and an adapter, in a process that may die of it: `python -P -m edgepd.llama.probe MODEL [ADAPTER]`.

The idea: llama.cpp ends its process over some broken files. Whoever serves lets this throw-away process do first what
it is about to do itself: load, tokenise, decode a few tokens. One line of JSON says how it went: `{"ok": true, ...}`
with exit code 0, or `{"ok": false, "reason": sentence}` with exit code 3; whatever ends by a signal has crashed.
The invariant: the line comes only after everything was freed again, so that a crash there is seen too.
What this does not do: judge what the model says, limit its own time (whoever starts it does), or keep the result.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np

from edgepd.errors import AdapterError, EdgepdError, ModelError
from edgepd.llama.context import Context, Entry
from edgepd.llama.model import LoraAdapter, Model

REFUSED = 3  # exit code
TEXT = "Hello! One and one is"
PROMPT_TOKENS = 5
NEW_TOKENS = 4
CONTEXT_TOKENS = 64
THREADS = 1  # several would wait for each other on a busy machine, and there is little to compute
CPU_SECONDS = 900  # after which the system ends a probe that turns in circles and whose starter has died
OOM_SCORE = Path("/proc/self/oom_score_adj")
EXPENDABLE = "1000"  # when memory runs out, the system ends this process before any other


def main(arguments: Sequence[str]) -> int:
    """Open the files that are named, say how it went, and return the exit code."""
    limit_harm()
    files = [Path(argument) for argument in arguments]
    if not 1 <= len(files) <= 2:
        print("usage: python -P -m edgepd.llama.probe MODEL [ADAPTER]", file=sys.stderr)
        return 2
    try:
        tokens = probe(files[0], files[1] if len(files) > 1 else None)
    except EdgepdError as error:
        print(json.dumps({"ok": False, "reason": str(error)}), flush=True)
        return REFUSED
    print(json.dumps({"ok": True, "tokens": tokens}), flush=True)
    return 0


def probe(model_file: Path, adapter_file: Path | None = None) -> int:
    """Open the files, decode a few tokens and close them again; return how many tokens were decoded.

    Raises ModelError or AdapterError if llama.cpp refuses a file or its logits are not numbers.
    """
    with ExitStack() as stack:
        model = stack.enter_context(Model(model_file))
        adapter = stack.enter_context(closing(LoraAdapter(model, adapter_file))) if adapter_file else None
        context = stack.enter_context(Context(model, context_tokens=CONTEXT_TOKENS, threads=THREADS))
        context.set_adapter(adapter)
        tokens = (model.tokenize_prompt(TEXT) or [0])[:PROMPT_TOKENS]
        context.decode([Entry(t, i, 0, i == len(tokens) - 1) for i, t in enumerate(tokens)])
        logits = _logits(context, len(tokens) - 1)
        for position in range(len(tokens), len(tokens) + NEW_TOKENS):
            if logits is None:
                return len(tokens)
            if not np.isfinite(logits).all():
                name = adapter_file or model_file
                raise (AdapterError if adapter_file else ModelError)(
                    f"{name}: its numbers make the model's answer not a number; restore the file or train again"
                )
            context.decode([Entry(int(logits.argmax()), position, 0, True)])
            logits = _logits(context, 0)
        return len(tokens) + NEW_TOKENS


def limit_harm() -> None:
    """See to it that a crash writes no memory to disk, and that neither memory nor time runs out for the others."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hardest = resource.getrlimit(resource.RLIMIT_CPU)
    seconds = CPU_SECONDS if hardest == resource.RLIM_INFINITY else min(CPU_SECONDS, hardest)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, hardest))
    with contextlib.suppress(OSError):  # not on Linux, or not allowed: then it counts like any other process
        OOM_SCORE.write_text(EXPENDABLE, encoding="ascii")


def _logits(context: Context, index: int) -> np.ndarray | None:
    """Return the logits of an entry; None for a model that only gives embeddings, whose pointer is NULL."""
    try:
        return context.logits(index)
    except ValueError:
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
