"""How the model is served."""

from __future__ import annotations

from dataclasses import dataclass

from edgepd.settings.declare import setting


@dataclass(frozen=True)
class Serve:
    """How the model is served."""

    model: str = setting("default", "name of the installed model to serve")
    threads: int = setting(0, "threads for decoding; 0 means the number of physical cores", minimum=0, maximum=256)
    slots: int = setting(4, "answers that can be generated at the same time", minimum=1, maximum=64)
    context_tokens: int = setting(2048, "context window of one conversation, in tokens", minimum=128, maximum=1_048_576)
    batch_tokens: int = setting(
        256, "largest piece of a prompt that is prefilled in one step, in tokens", minimum=16, maximum=8192
    )
    max_queue: int = setting(32, "requests that may wait; more are refused with 503", minimum=1, maximum=10_000)
    max_tokens: int = setting(512, "length limit of an answer when the request sets none, in tokens", minimum=1)
    keep_alive: str = setting(
        "5m", "how long the model stays in memory after its last use, such as '30s', '5m', '1h30m'; '-1' means forever"
    )
    preload: bool = setting(False, "whether to load the model at start instead of with the first request")
    adapt_threads: bool = setting(
        True, "decode with fewer threads while other programs want the processor, which changes roundings"
    )
    kv_type: str = setting(
        "f16", "how the KV cache is stored; q8_0 needs half the memory and is slower", choices=("f16", "q8_0")
    )
    saved_state_mb: int = setting(
        256,
        "disk space for saved conversations, which survive an unload or a restart without being computed again, "
        "in MiB; 0 saves none",
        minimum=0,
        maximum=1_048_576,
    )
    max_body_bytes: int = setting(
        8 * 1024 * 1024, "largest request body; a larger one is refused with 413", minimum=1024, maximum=1024**3
    )
    request_timeout_s: float = setting(
        10.0, "time that a client has to send the head of a request, and again for its body", minimum=0.1, maximum=3600
    )
    write_timeout_s: float = setting(
        30.0, "time for which a client may leave an answer unread before it is cancelled", minimum=0.1, maximum=3600
    )
    tcp_port: int = setting(
        0, "port on 127.0.0.1 to serve as well, with a token; 0 serves the Unix socket only", minimum=0, maximum=65535
    )
