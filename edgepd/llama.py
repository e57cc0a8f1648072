"""A thin, safe binding to llama.cpp: model, context, adapter and nothing else.

The idea: the serving engine, the gate and the tests all talk to llama.cpp through these three classes, which own
the C objects and free them in the right order. Invariants: a failed C call is an exception, never a NULL pointer
that is used later; an adapter is never freed while a context still has it set (llama.cpp would then mistake the
next adapter at the same address for the old one and skip the switch).
What this does not do: sampling, scheduling, caching, or anything with text beyond tokens and pieces. The classes
are not thread-safe: one thread owns a context and the adapters of its model.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import llama_cpp
import numpy as np
import numpy.typing as npt

from edgepd.errors import AdapterError, ModelError

# llama.cpp reports through this logger of llama-cpp-python, which prints every level unless told otherwise.
_UPSTREAM_LOGGER = "llama-cpp-python"


class Entry(NamedTuple):
    """One token of a decode batch."""

    token: int
    position: int
    sequence: int
    wants_logits: bool


class Model:
    """A memory-mapped GGUF model. With `vocab_only`, just its tokenizer and metadata."""

    def __init__(self, path: Path, *, vocab_only: bool = False) -> None:
        """Open `path`. Raises ModelError if the file is missing or llama.cpp refuses it."""
        logging.getLogger(_UPSTREAM_LOGGER).setLevel(logging.ERROR)
        if not path.is_file():
            raise ModelError(f"model file {path} does not exist")
        params = llama_cpp.llama_model_default_params()
        params.load_mode = llama_cpp.LLAMA_LOAD_MODE_MMAP
        params.vocab_only = vocab_only
        params.n_gpu_layers = 0
        self.path = path
        self._pointer = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self._pointer:
            raise ModelError(f"llama.cpp cannot load {path}; it is broken or of an unsupported architecture")
        self._vocab = llama_cpp.llama_model_get_vocab(self._pointer)
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self.n_ctx_train: int = llama_cpp.llama_model_n_ctx_train(self._pointer)
        self.bos_token: int = llama_cpp.llama_vocab_bos(self._vocab)
        self.eos_token: int = llama_cpp.llama_vocab_eos(self._vocab)
        eot: int = llama_cpp.llama_vocab_eot(self._vocab)
        # The token with which this model ends a turn; files without one end turns with end-of-sequence.
        self.eot_token: int = eot if eot >= 0 else self.eos_token

    @property
    def pointer(self) -> Any:
        """The llama_model pointer."""
        return self._pointer

    @property
    def vocab(self) -> Any:
        """The llama_vocab pointer, which lives as long as the model."""
        return self._vocab

    def metadata(self, key: str) -> str | None:
        """Return a scalar or string metadata value as text, None if the file does not have it."""
        size = 4096
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = llama_cpp.llama_model_meta_val_str(self._pointer, key.encode(), buffer, size)
            if length < 0:
                return None
            if length < size:
                return buffer.value.decode("utf-8", errors="replace")
            size = length + 1

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Return the token ids of `text`; with `special`, control tokens in the text are recognised.

        No begin-of-sequence token is added: the chat template says which special tokens a prompt has.
        """
        data = text.encode("utf-8")
        capacity = len(data) + 16
        while True:
            buffer = (llama_cpp.llama_token * capacity)()
            count = llama_cpp.llama_tokenize(self._vocab, data, len(data), buffer, capacity, False, special)
            if count >= 0:
                return list(buffer[:count])
            capacity = -count

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Return the bytes that `token` stands for; control tokens are empty unless `special`."""
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, size, 0, special)
            if length >= 0:
                return buffer.raw[:length]
            size = -length

    def is_end(self, token: int) -> bool:
        """Say whether `token` ends generation (end of turn or of text)."""
        return bool(llama_cpp.llama_vocab_is_eog(self._vocab, token))

    def close(self) -> None:
        """Free the model. Contexts and adapters of it must be closed before."""
        if self._pointer:
            llama_cpp.llama_model_free(self._pointer)
            self._pointer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class LoraAdapter:
    """A LoRA adapter file loaded beside its model."""

    def __init__(self, model: Model, path: Path) -> None:
        """Load `path`. Raises AdapterError if llama.cpp refuses it."""
        self.path = path
        self.contexts = 0  # contexts that have this adapter set
        self._pointer = llama_cpp.llama_adapter_lora_init(model.pointer, str(path).encode())
        # A failure is a falsy pointer object, not None; using it would crash the process.
        if not bool(self._pointer):
            raise AdapterError(f"llama.cpp refuses the adapter {path}; it does not fit {model.path.name}")

    @property
    def pointer(self) -> Any:
        """The llama_adapter_lora pointer."""
        return self._pointer

    def close(self) -> None:
        """Free the adapter, which no context may have set."""
        if self.contexts:
            raise RuntimeError(f"adapter {self.path} is still set on {self.contexts} context(s)")
        if self._pointer:
            llama_cpp.llama_adapter_lora_free(self._pointer)
            self._pointer = None


class Context:
    """A llama.cpp context: KV cache for `sequences` conversations of `context_tokens` each."""

    def __init__(
        self,
        model: Model,
        *,
        context_tokens: int,
        sequences: int = 1,
        batch_tokens: int = 256,
        threads: int,
        logits_everywhere: bool = False,
    ) -> None:
        """Allocate the KV cache. Raises ModelError if llama.cpp cannot (out of memory, bad sizes)."""
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = context_tokens * sequences
        params.n_seq_max = sequences
        params.n_batch = params.n_ubatch = max(batch_tokens, sequences)
        params.n_threads = params.n_threads_batch = threads
        # Each sequence has cells of its own, so that what one computes does not depend on its neighbours.
        params.kv_unified = False
        if logits_everywhere:
            params.n_outputs_max_per_seq = params.n_batch
        self.model = model
        self.batch_tokens = int(params.n_batch)
        self._pointer = llama_cpp.llama_init_from_model(model.pointer, params)
        if not self._pointer:
            raise ModelError(
                f"llama.cpp cannot create a context of {sequences} x {context_tokens} tokens for {model.path.name}"
            )
        self.tokens_per_sequence: int = llama_cpp.llama_n_ctx_seq(self._pointer)
        self._memory = llama_cpp.llama_get_memory(self._pointer)
        self._batch = llama_cpp.llama_batch_init(self.batch_tokens, 0, 1)
        self._adapter: LoraAdapter | None = None
        self._scale = 1.0

    @property
    def pointer(self) -> Any:
        """The llama_context pointer."""
        return self._pointer

    @property
    def adapter(self) -> LoraAdapter | None:
        """The adapter that is set now."""
        return self._adapter

    def set_adapter(self, adapter: LoraAdapter | None, scale: float = 1.0) -> None:
        """Replace the adapter for all later decodes. Does not touch the KV cache: the caller keys it."""
        if adapter is self._adapter and scale == self._scale:
            return
        if adapter is None:
            status = llama_cpp.llama_set_adapters_lora(self._pointer, None, 0, None)
        else:
            pointers = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(adapter.pointer)
            status = llama_cpp.llama_set_adapters_lora(self._pointer, pointers, 1, (ctypes.c_float * 1)(scale))
        if status != 0:
            raise AdapterError(f"llama.cpp cannot set the adapter {adapter.path if adapter else None}: {status}")
        if self._adapter is not None:
            self._adapter.contexts -= 1
        if adapter is not None:
            adapter.contexts += 1
        self._adapter, self._scale = adapter, scale

    def decode(self, entries: Sequence[Entry]) -> None:
        """Run one batch of at most `batch_tokens` entries. Raises ModelError if llama.cpp fails."""
        if not 0 < len(entries) <= self.batch_tokens:
            raise ValueError(f"a batch has 1 to {self.batch_tokens} tokens, not {len(entries)}")
        batch = self._batch
        batch.n_tokens = len(entries)
        for i, entry in enumerate(entries):
            batch.token[i] = entry.token
            batch.pos[i] = entry.position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = entry.sequence
            batch.logits[i] = entry.wants_logits
        status = llama_cpp.llama_decode(self._pointer, batch)
        if status != 0:
            raise ModelError(f"llama.cpp failed to decode {len(entries)} tokens: status {status}")

    def logits(self, index: int) -> npt.NDArray[np.float32]:
        """Return a copy of the logits, shape (n_vocab,), of entry `index` of the last batch."""
        pointer = llama_cpp.llama_get_logits_ith(self._pointer, index)
        return np.ctypeslib.as_array(pointer, shape=(self.model.n_vocab,)).copy()

    def forget(self, sequence: int, from_position: int = 0) -> bool:
        """Drop a sequence's KV cells from `from_position` on; False if this memory cannot drop a part."""
        return bool(llama_cpp.llama_memory_seq_rm(self._memory, sequence, from_position, -1))

    def set_threads(self, threads: int) -> None:
        """Use `threads` for decoding and prefill from the next batch on."""
        llama_cpp.llama_set_n_threads(self._pointer, threads, threads)

    def close(self) -> None:
        """Unset the adapter and free the context."""
        if self._pointer:
            self.set_adapter(None)
            llama_cpp.llama_batch_free(self._batch)
            llama_cpp.llama_free(self._pointer)
            self._pointer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
