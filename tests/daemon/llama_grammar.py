"""What llama.cpp itself makes of grammars: the oracle for what the daemon writes and lets through.

The idea: a child process with a tiny model gets grammars with texts and tries each text token by token, as sampling
would. A grammar that hangs or ends the child shows as an exception here. What this does not do: generate.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgepd_daemon.engine.types import Grammar
from tests.tiny_gguf import tiny_llama

Job = tuple[Grammar, str]


def verdicts(tmp_path: Path, jobs: Sequence[Job], *, timeout: float = 120) -> list[str]:
    """Return for each job `accepted`, `incomplete` (more has to come), `refused` or `malformed` (the grammar)."""
    model = tiny_llama(tmp_path / "tiny.gguf", qtype=8, seed=1, layers=1)
    request = {"model": str(model), "jobs": [[g.gbnf, list(g.triggers), text] for g, text in jobs]}
    done = subprocess.run(
        [sys.executable, __file__], input=json.dumps(request), capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[str] = json.loads(done.stdout)
    return found


def _main() -> None:
    import llama_cpp

    request = json.load(sys.stdin)
    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    settings = llama_cpp.llama_model_default_params()
    settings.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(request["model"].encode(), settings)
    vocab = llama_cpp.llama_model_get_vocab(model)
    results = [_verdict(llama_cpp, vocab, *job) for job in request["jobs"]]
    print(json.dumps(results))


def _verdict(llama_cpp: Any, vocab: Any, gbnf: str, triggers: list[str], text: str) -> str:
    if triggers:
        patterns = (ctypes.c_char_p * len(triggers))(*(t.encode() for t in triggers))
        sampler = llama_cpp.llama_sampler_init_grammar_lazy_patterns(
            vocab, gbnf.encode(), b"root", patterns, len(triggers), None, 0
        )
    else:
        sampler = llama_cpp.llama_sampler_init_grammar(vocab, gbnf.encode(), b"root")
    if not sampler:
        return "malformed"
    raw = text.encode()
    tokens = (llama_cpp.llama_token * (len(raw) + 8))()
    count = llama_cpp.llama_tokenize(vocab, raw, len(raw), tokens, len(raw) + 8, False, False)
    for token in tokens[:count]:
        if not _allowed(llama_cpp, sampler, token):
            return "refused"
        llama_cpp.llama_sampler_accept(sampler, token)
    ended = _allowed(llama_cpp, sampler, llama_cpp.llama_vocab_eos(vocab))
    llama_cpp.llama_sampler_free(sampler)
    return "accepted" if ended else "incomplete"


def _allowed(llama_cpp: Any, sampler: Any, token: int) -> bool:
    candidates = (llama_cpp.llama_token_data * 1)(llama_cpp.llama_token_data(token, 0.0, 0.0))
    array = llama_cpp.llama_token_data_array(candidates, 1, -1, False)
    llama_cpp.llama_sampler_apply(sampler, ctypes.byref(array))
    return bool(candidates[0].logit > -1e9)


if __name__ == "__main__":
    _main()
