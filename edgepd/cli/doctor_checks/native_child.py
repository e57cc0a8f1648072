"""Load llama.cpp in a process of its own, and say what is missing: `python -P native_child.py SYMBOL...`.

The idea: a library that was built for another processor ends its process with SIGILL when it is loaded or first used;
so a throw-away process does that, and prints one line of JSON: {"missing": [...], "version": ..., "system": ...}, or
{"error": ...}. It is run as a file, because importing edgepd.cli would take longer than all the rest.
What this does not do: load a model (edgepd.llama.probe does), or know which symbols edgepd uses (see native.py).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence


def main(symbols: Sequence[str]) -> int:
    """Print what was found, and return the exit code."""
    try:
        import llama_cpp  # noqa: PLC0415 - whether it can be imported is what this finds out
    except (ImportError, OSError, RuntimeError, AttributeError) as error:  # AttributeError: the library lacks a symbol
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        return 0
    llama_cpp.llama_backend_init()
    system = llama_cpp.llama_print_system_info().decode("utf-8", "replace")
    missing = [name for name in symbols if not hasattr(llama_cpp, name)]
    print(json.dumps({"missing": missing, "version": llama_cpp.__version__, "system": system}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
