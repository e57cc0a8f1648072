"""The process that renders chat templates for the daemon: `python -P -m edgepd_daemon.render_child`.

The idea: a frame in on descriptor 0, a frame out on descriptor 1, for as long as the daemon keeps its end open. A
frame is four bytes of length, big-endian, and that much JSON. The first frame out, `{}`, says that it is ready.
The invariant: whatever a template does, this process needs no more memory and, for one frame, no more processor
time than its limits; the kernel ends it if it tries.
What this does not do: watch the clock, because the daemon does that and kills it.
"""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from edgepd.errors import TemplateError
from edgepd.template import ChatTemplate
from edgepd_daemon.frames import HEADER

MEMORY_BYTES = 512 * 1024 * 1024  # address space; the interpreter with Jinja takes 25 to 50 MB of it
CPU_SECONDS = 4  # for one frame; more than the daemon waits, and it ends a bomb whose daemon has gone
COMPILED = 8  # templates kept: a daemon serves one base at a time, and baked generations share its template


def main() -> None:
    """Render until the other end closes."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    _write({})
    while (request := _read()) is not None:
        _allow_cpu_time()
        reply = _answer(request)
        _write(reply)
        if reply.get("spent"):
            break  # what is left of the memory may not do for the next one


def _answer(request: Mapping[str, Any]) -> dict[str, Any]:
    try:
        template = _compiled(request["source"], request["bos"], request["eos"])
        if "messages" not in request:
            return {"supports_tools": template.supports_tools}
        text = template.render(
            request["messages"],
            add_generation_prompt=request["add_generation_prompt"],
            tools=request["tools"],
            extra=request["extra"],
        )
    except TemplateError as error:
        return {"error": str(error), "spent": isinstance(error.__cause__, MemoryError)}
    return {"text": text}


@lru_cache(maxsize=COMPILED)
def _compiled(source: str | None, bos: str, eos: str) -> ChatTemplate:
    return ChatTemplate(source, bos=bos, eos=eos)


def _allow_cpu_time() -> None:
    """Let the processor time limit, which counts from the start of the process, end this frame and not a later one."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(usage.ru_utime + usage.ru_stime) + 1 + CPU_SECONDS, hard))


def _read() -> Any:
    header = _exactly(HEADER.size)
    if header is None:
        return None
    body = _exactly(HEADER.unpack(header)[0])
    return None if body is None else json.loads(body)


def _exactly(count: int) -> bytearray | None:
    """Return the next `count` bytes, None if the other end has closed."""
    got = bytearray()
    while len(got) < count:
        part = os.read(0, min(count - len(got), 1 << 20))
        if not part:
            return None
        got += part
    return got


def _write(reply: Mapping[str, Any]) -> None:
    body = json.dumps(reply).encode()
    frame = memoryview(HEADER.pack(len(body)) + body)
    while frame:
        frame = frame[os.write(1, frame) :]


if __name__ == "__main__":
    main()
