"""A llama.cpp context: the KV cache of some conversations, and the decoding of batches."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import llama_cpp
import numpy as np
import numpy.typing as npt

from edgepd.errors import AdapterError, ModelError
from edgepd.llama.memory import NATIVE, anonymous_mappings, release_zero_pages
from edgepd.llama.model import LoraAdapter, Model

KV_TYPES = {"f16": llama_cpp.GGML_TYPE_F16, "q8_0": llama_cpp.GGML_TYPE_Q8_0}
ABORTED = 2  # what llama_decode returns when the abort callback stopped it


class Entry(NamedTuple):
    """One token of a decode batch."""

    token: int
    position: int
    sequence: int
    wants_output: bool


class Context:
    """KV cache for `sequences` conversations of `context_tokens` each."""

    def __init__(
        self,
        model: Model,
        *,
        context_tokens: int,
        sequences: int = 1,
        batch_tokens: int = 256,
        threads: int,
        logits_everywhere: bool = False,
        kv_type: str = "f16",
        embeddings: bool = False,
    ) -> None:
        """Allocate the KV cache. Raises ModelError if llama.cpp cannot (out of memory, bad sizes).

        With `embeddings`, every entry has an embedding instead of logits, and all sequences share one window of
        `context_tokens`.
        """
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = context_tokens if embeddings else context_tokens * sequences
        params.n_seq_max = sequences
        params.n_batch = params.n_ubatch = max(batch_tokens, sequences)
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = KV_TYPES[kv_type]
        # Each sequence has cells of its own, so that what one computes does not depend on its neighbours.
        params.kv_unified = embeddings
        params.embeddings = embeddings
        if logits_everywhere or embeddings:
            params.n_outputs_max_per_seq = params.n_batch
        self.model = model
        self.batch_tokens = int(params.n_batch)
        before = anonymous_mappings()
        with NATIVE.work():
            self._pointer = llama_cpp.llama_init_from_model(model.pointer, params)
        if not self._pointer:
            raise ModelError(
                f"llama.cpp cannot create a context of {sequences} x {context_tokens} tokens for {model.path.name}"
            )
        release_zero_pages(before)
        self.tokens_per_sequence: int = llama_cpp.llama_n_ctx_seq(self._pointer)
        self._memory = llama_cpp.llama_get_memory(self._pointer)
        self._batch = llama_cpp.llama_batch_init(self.batch_tokens, 0, 1)
        self._adapter: LoraAdapter | None = None
        self._scale = 1.0
        self._copying = False
        self._abort_flag = ctypes.create_string_buffer(2)
        self._install_abort()

    def _install_abort(self) -> None:
        """Let `interrupt` stop a decode.

        llama.cpp asks the callback at every node of the graph, about a thousand times per token. A Python function
        would need the interpreter lock each time; C's strlen on a flag of one character says the same in a few
        nanoseconds: the empty string means go on.
        """
        strlen = ctypes.cast(ctypes.CDLL(None).strlen, llama_cpp.ggml_abort_callback)
        llama_cpp.llama_set_abort_callback(self._pointer, strlen, ctypes.cast(self._abort_flag, ctypes.c_void_p))

    @property
    def pointer(self) -> Any:
        """The llama_context pointer."""
        return self._pointer

    @property
    def adapter(self) -> LoraAdapter | None:
        """The adapter that is set now."""
        return self._adapter

    @property
    def scale(self) -> float:
        """What the adapter's effect is multiplied with."""
        return self._scale

    @property
    def copying(self) -> bool:
        """Whether a copy of a sequence is still to be carried out, which the next decode does."""
        return self._copying

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

    def decode(self, entries: Sequence[Entry]) -> bool:
        """Run one batch of at most `batch_tokens` entries; return False if it was interrupted.

        After an interruption it is not known which of the entries are in the KV cache: `forget` them.
        Raises ModelError if llama.cpp fails.
        """
        if not 0 < len(entries) <= self.batch_tokens:
            raise ValueError(f"a batch has 1 to {self.batch_tokens} tokens, not {len(entries)}")
        batch = self._batch
        batch.n_tokens = len(entries)
        for i, (token, position, sequence, wants_output) in enumerate(entries):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = wants_output
        with NATIVE.work():
            status = llama_cpp.llama_decode(self._pointer, batch)
        if status == ABORTED:
            return False
        if status != 0:
            raise ModelError(f"llama.cpp failed to decode {len(entries)} tokens: status {status}")
        self._copying = False
        return True

    def interrupt(self) -> None:
        """Stop the decode that is going on, within milliseconds, and every later one until `resume`. Any thread."""
        self._abort_flag[0] = b"x"

    def resume(self) -> None:
        """Allow decoding again."""
        self._abort_flag[0] = b"\0"

    def logits(self, index: int) -> npt.NDArray[np.float32]:
        """Return a copy of the logits, shape (n_vocab,), of entry `index` of the last batch."""
        pointer = llama_cpp.llama_get_logits_ith(self._pointer, index)
        return np.ctypeslib.as_array(pointer, shape=(self.model.n_vocab,)).copy()

    def embedding(self, index: int) -> npt.NDArray[np.float32]:
        """Return a copy of the last hidden state, shape (n_embd,), of entry `index`. Raises ModelError without one."""
        pointer = llama_cpp.llama_get_embeddings_ith(self._pointer, index)
        if not pointer:
            raise ModelError(f"{self.model.path.name} gives no embeddings of single tokens")
        return np.ctypeslib.as_array(pointer, shape=(self.model.n_embd,)).copy()

    def forget(self, sequence: int, from_position: int = 0) -> bool:
        """Drop a sequence's KV cells from `from_position` on; False if this memory cannot drop a part."""
        return bool(llama_cpp.llama_memory_seq_rm(self._memory, sequence, from_position, -1))

    def copy(self, source: int, target: int) -> None:
        """Make the sequence `target` equal to `source`. The next decode carries it out."""
        self.forget(target)
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, 0, -1)
        self._copying = True

    def shift(self, sequence: int, start: int, end: int) -> bool:
        """Drop the cells of positions start..end-1 and move the later ones down; False if this memory cannot."""
        if not llama_cpp.llama_memory_can_shift(self._memory):
            return False
        if not llama_cpp.llama_memory_seq_rm(self._memory, sequence, start, end):
            return False
        llama_cpp.llama_memory_seq_add(self._memory, sequence, end, -1, start - end)
        return True

    def state(self, sequence: int) -> bytes:
        """Return the KV cells of a sequence. They carry no name: the caller keys them."""
        size = llama_cpp.llama_state_seq_get_size(self._pointer, sequence)
        buffer = (ctypes.c_uint8 * size)()
        written = llama_cpp.llama_state_seq_get_data(self._pointer, buffer, size, sequence)
        return bytes(memoryview(buffer)[:written])

    def restore(self, sequence: int, state: bytes) -> bool:
        """Fill a sequence with what `state` returned for an equal model and context; False if it does not fit."""
        buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        with NATIVE.work():
            read = llama_cpp.llama_state_seq_set_data(self._pointer, buffer, len(state), sequence)
        if read != len(state):
            self.forget(sequence)
        return bool(read == len(state))

    def set_threads(self, threads: int) -> None:
        """Use `threads` for decoding and prefill from the next batch on."""
        llama_cpp.llama_set_n_threads(self._pointer, threads, threads)

    def close(self) -> None:
        """Unset the adapter and free the context."""
        if self._pointer:
            self.set_adapter(None)
            llama_cpp.llama_batch_free(self._batch)
            with NATIVE.work():
                llama_cpp.llama_free(self._pointer)
            self._pointer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
