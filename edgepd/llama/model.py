"""A model file with its tokenizer, and adapter files loaded beside it."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import llama_cpp

from edgepd.errors import AdapterError, ModelError, RequestError
from edgepd.llama.memory import NATIVE

# llama.cpp reports through this logger of llama-cpp-python, which prints every level unless told otherwise.
_UPSTREAM_LOGGER = "llama-cpp-python"
LONGEST_FACT = 1000  # characters; longer metadata values are tokens and templates


@dataclass(frozen=True)
class ModelFacts:
    """What a model file says about itself. `metadata` has its short values as text, by key."""

    architecture: str
    parameters: int
    size_bytes: int
    n_ctx_train: int
    n_embd: int
    n_vocab: int
    quantization: str
    template: str | None
    metadata: dict[str, str]


class Model:
    """A memory-mapped GGUF model. With `vocab_only`, just its tokenizer and metadata."""

    def __init__(
        self, path: Path, *, vocab_only: bool = False, progress: Callable[[float], None] | None = None
    ) -> None:
        """Open `path`; `progress` is told the share that is loaded. Raises ModelError if it is missing or refused."""
        logging.getLogger(_UPSTREAM_LOGGER).setLevel(logging.ERROR)
        if not path.is_file():
            raise ModelError(f"model file {path} does not exist")
        params = llama_cpp.llama_model_default_params()
        params.load_mode = llama_cpp.LLAMA_LOAD_MODE_MMAP
        params.vocab_only = vocab_only
        params.n_gpu_layers = 0
        if progress is not None:
            params.progress_callback = _progress_callback(progress)
        self.path = path
        with NATIVE.work():
            self._pointer = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self._pointer:
            raise ModelError(f"llama.cpp cannot load {path}; it is broken or of an unsupported architecture")
        self._vocab = llama_cpp.llama_model_get_vocab(self._pointer)
        self._pieces: dict[int, bytes] = {}
        self._ends: dict[int, bool] = {}
        self._end_tokens: list[int] | None = None
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self.n_ctx_train: int = llama_cpp.llama_model_n_ctx_train(self._pointer)
        self.n_embd: int = llama_cpp.llama_model_n_embd(self._pointer)
        self.bos_token: int = llama_cpp.llama_vocab_bos(self._vocab)
        # What every sequence begins with: a begin-of-sequence token, or nothing.
        self.opening: list[int] = [self.bos_token] if llama_cpp.llama_vocab_get_add_bos(self._vocab) else []
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
        name = key.encode()
        return _text(lambda buffer, size: llama_cpp.llama_model_meta_val_str(self._pointer, name, buffer, size))

    def facts(self) -> ModelFacts:
        """Return what the file says about itself."""
        metadata = {}
        for i in range(llama_cpp.llama_model_meta_count(self._pointer)):
            key = _text(_indexed(llama_cpp.llama_model_meta_key_by_index, self._pointer, i)) or ""
            value = _text(_indexed(llama_cpp.llama_model_meta_val_str_by_index, self._pointer, i)) or ""
            if len(value) <= LONGEST_FACT:
                metadata[key] = value
        description = _text(lambda buffer, size: llama_cpp.llama_model_desc(self._pointer, buffer, size)) or ""
        return ModelFacts(
            architecture=metadata.get("general.architecture", "unknown"),
            parameters=llama_cpp.llama_model_n_params(self._pointer),
            size_bytes=llama_cpp.llama_model_size(self._pointer),
            n_ctx_train=self.n_ctx_train,
            n_embd=self.n_embd,
            n_vocab=self.n_vocab,
            quantization=next((w for w in description.split() if w[0] in "QFIBTM" and w[-1] not in "BM"), "unknown"),
            template=self.metadata("tokenizer.chat_template"),
            metadata=metadata,
        )

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Return the token ids of `text`; with `special`, control tokens in the text are recognised.

        No begin-of-sequence token is added; see tokenize_prompt.
        Raises RequestError for a text that is not Unicode.
        """
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RequestError(f"a text has half a character (a lone surrogate) at position {error.start}") from error
        capacity = len(data) + 16
        while True:
            buffer = (llama_cpp.llama_token * capacity)()
            count = llama_cpp.llama_tokenize(self._vocab, data, len(data), buffer, capacity, False, special)
            if count >= 0:
                return list(buffer[:count])
            capacity = -count

    def tokenize_prompt(self, text: str) -> list[int]:
        """Return the tokens of a whole prompt: control tokens recognised, and begun as the tokenizer wants it.

        That is a begin-of-sequence token where the file asks for one and the text has none; without it Gemma, for one,
        hardly understands what follows.
        """
        tokens = self.tokenize(text, special=True)
        return [*self.opening, *tokens] if tokens[:1] != self.opening else tokens

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, control tokens included. Bytes that are not UTF-8 are replaced."""
        return b"".join(self.piece(t, special=True) for t in tokens).decode("utf-8", errors="replace")

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Return the bytes that `token` stands for; control tokens are empty unless `special`."""
        if special:
            return self._piece(token, special=True)
        if token not in self._pieces:
            self._pieces[token] = self._piece(token, special=False)
        return self._pieces[token]

    def _piece(self, token: int, *, special: bool) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, size, 0, special)
            if length >= 0:
                return buffer.raw[:length]
            size = -length

    def is_end(self, token: int) -> bool:
        """Say whether `token` ends generation (end of turn or of text)."""
        if token not in self._ends:
            self._ends[token] = bool(llama_cpp.llama_vocab_is_eog(self._vocab, token))
        return self._ends[token]

    def end_tokens(self) -> list[int]:
        """Return all tokens that end generation. The vocabulary is gone through once."""
        if self._end_tokens is None:
            self._end_tokens = [token for token in range(self.n_vocab) if self.is_end(token)]
        return self._end_tokens

    def close(self) -> None:
        """Free the model. Contexts and adapters of it must be closed before."""
        if self._pointer:
            with NATIVE.work():
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
        with NATIVE.work():
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
            with NATIVE.work():
                llama_cpp.llama_adapter_lora_free(self._pointer)
            self._pointer = None


def _progress_callback(progress: Callable[[float], None]) -> Any:
    """Return a C callback. llama.cpp goes on loading as long as it returns true."""

    def told(share: float, _user_data: Any) -> bool:
        progress(share)
        return True

    return llama_cpp.llama_progress_callback(told)


def _indexed(function: Any, pointer: Any, index: int) -> Callable[[Any, int], int]:
    return lambda buffer, size: int(function(pointer, index, buffer, size))


def _text(read: Callable[[Any, int], int]) -> str | None:
    """Return what a C function writes into a buffer of a size, None if it reports a failure."""
    size = 4096
    while True:
        buffer = ctypes.create_string_buffer(size)
        length = read(buffer, size)
        if length < 0:
            return None
        if length < size:
            return buffer.value.decode("utf-8", errors="replace")
        size = length + 1
