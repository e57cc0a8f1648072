"""A chain of llama.cpp's own samplers, built from the sampling parameters of a request, with a grammar if there is one.

The idea: the order of the chain is llama.cpp's. A grammar is not part of it: the chosen token is checked against the
grammar alone, and only if it does not fit is the whole vocabulary masked and drawn from again, which is much slower.
"""

from __future__ import annotations

import ctypes
import math
import secrets
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from edgepd.errors import RequestError
from edgepd.llama import Context, Model
from edgepd_daemon.engine.types import Grammar, Sampling, ScoredToken, TokenScore

# llama_token_data as numpy sees it.
CANDIDATE = np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])
NO_TOKEN = -1
LONGEST_BREAKER = 40  # characters of a DRY sequence breaker, as in llama.cpp


class Sampler:
    """Owns one llama_sampler chain and at most one grammar; `close` frees them with everything in them."""

    def __init__(
        self, sampling: Sampling, model: Model, grammar: Grammar | None = None, *, never_ends: bool = False
    ) -> None:
        """Build the chain; with `never_ends`, tokens that end an answer are not drawn.

        A grammar says itself where an answer ends. Raises RequestError if llama.cpp refuses it.
        """
        self._model = model
        self._chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        self._grammar: Any = None
        self._looks_back = False
        ends = model.end_tokens() if never_ends and grammar is None else []
        self._add_biases([*sampling.logit_bias, *((token, -math.inf) for token in ends)])
        self._add_penalties(sampling)
        self._add_choice(sampling)
        if grammar is not None:
            try:
                self._grammar = _grammar_sampler(model, grammar)
            except RequestError:
                self.close()
                raise

    def _add_biases(self, biases: Sequence[tuple[int, float]]) -> None:
        if biases:
            array = (llama_cpp.llama_logit_bias * len(biases))(*biases)
            self._add(llama_cpp.llama_sampler_init_logit_bias(self._model.n_vocab, len(biases), array))

    def _add_penalties(self, sampling: Sampling) -> None:
        n_vocab = self._model.n_vocab
        penalties = (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty)
        if penalties != (1.0, 0.0, 0.0):
            window = sampling.repeat_last_n if sampling.repeat_last_n >= 0 else self._model.n_ctx_train
            self._add(llama_cpp.llama_sampler_init_penalties(n_vocab, window, *penalties))
            self._looks_back = True
        if sampling.dry_multiplier > 0:
            self._looks_back = True
            breakers = [b[:LONGEST_BREAKER].encode() for b in sampling.dry_sequence_breakers]
            self._add(
                llama_cpp.llama_sampler_init_dry(
                    self._model.vocab,
                    sampling.dry_multiplier,
                    sampling.dry_base,
                    sampling.dry_allowed_length,
                    sampling.dry_penalty_last_n if sampling.dry_penalty_last_n >= 0 else self._model.n_ctx_train,
                    (ctypes.c_char_p * len(breakers))(*breakers),
                    len(breakers),
                )
            )

    def _add_choice(self, sampling: Sampling) -> None:
        if sampling.temperature <= 0:
            self._add(llama_cpp.llama_sampler_init_greedy())
            return
        seed = secrets.randbits(32) if sampling.seed is None else sampling.seed & 0xFFFF_FFFF
        self._add(llama_cpp.llama_sampler_init_top_k(sampling.top_k))
        if sampling.typical_p < 1:
            self._add(llama_cpp.llama_sampler_init_typical(sampling.typical_p, 1))
        self._add(llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1))
        self._add(llama_cpp.llama_sampler_init_min_p(sampling.min_p, 1))
        self._add(llama_cpp.llama_sampler_init_temp(sampling.temperature))
        self._add(llama_cpp.llama_sampler_init_dist(seed))

    def _add(self, sampler: object) -> None:
        llama_cpp.llama_sampler_chain_add(self._chain, sampler)

    def prime(self, prompt: Sequence[int]) -> None:
        """Let the penalties look back on the prompt too, as llama.cpp's server does."""
        if self._looks_back:
            for token in prompt:
                llama_cpp.llama_sampler_accept(self._chain, token)

    def sample(self, context: Context, index: int) -> int:
        """Choose the token after entry `index` of the last batch, and remember it.

        Returns NO_TOKEN if the grammar allows none.
        """
        if self._grammar is None:
            return int(llama_cpp.llama_sampler_sample(self._chain, context.pointer, index))
        logits = context.logits(index)
        token = self._draw(_candidates(logits))
        if not self._allowed(token):
            candidates = _candidates(logits)
            _apply(self._grammar, candidates)
            fits = np.isfinite(candidates["logit"])
            if not fits.any():
                return NO_TOKEN
            token = self._draw(candidates)
            if not fits[token]:  # what fits is ruled out by a bias; accepting this one would end the process
                return NO_TOKEN
        llama_cpp.llama_sampler_accept(self._chain, token)
        llama_cpp.llama_sampler_accept(self._grammar, token)
        return token

    def _draw(self, candidates: npt.NDArray[Any]) -> int:
        array = _apply(self._chain, candidates)
        return int(array.data[array.selected].id)

    def _allowed(self, token: int) -> bool:
        one = np.array([(token, 0.0, 0.0)], dtype=CANDIDATE)
        _apply(self._grammar, one)
        return bool(np.isfinite(one["logit"][0]))

    def close(self) -> None:
        """Free the chain and the grammar."""
        for sampler in (self._chain, self._grammar):
            if sampler:
                llama_cpp.llama_sampler_free(sampler)
        self._chain = self._grammar = None


def score(model: Model, logits: npt.NDArray[np.float32], token: int, alternatives: int) -> ScoredToken:
    """Return the log-probability of `token` under the model's own distribution, and of the likeliest tokens.

    `logits` has shape (n_vocab,). Log-softmax in float64, with the maximum taken out first.
    """
    shifted = logits.astype(np.float64) - float(logits.max())
    logprobs = shifted - np.log(np.exp(shifted).sum())
    best: npt.NDArray[Any] = np.array([], dtype=np.int64)
    if alternatives > 0:
        best = np.argpartition(logprobs, -alternatives)[-alternatives:]
        best = best[np.argsort(-logprobs[best], kind="stable")]
    top = tuple(TokenScore(int(t), model.piece(int(t), special=True), float(logprobs[t])) for t in best)
    return ScoredToken(token, model.piece(token, special=True), float(logprobs[token]), top)


def _candidates(logits: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    candidates = np.zeros(len(logits), dtype=CANDIDATE)
    candidates["id"] = np.arange(len(logits), dtype=np.int32)
    candidates["logit"] = logits
    return candidates


def _apply(sampler: Any, candidates: npt.NDArray[Any]) -> Any:
    """Run a sampler over candidates in place; return the array record that says which one it selected."""
    data = candidates.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data))
    array = llama_cpp.llama_token_data_array(data=data, size=len(candidates), selected=-1, sorted=False)
    llama_cpp.llama_sampler_apply(sampler, ctypes.byref(array))
    return array


def _grammar_sampler(model: Model, grammar: Grammar) -> Any:
    text = grammar.gbnf.encode()
    if grammar.triggers:
        patterns = (ctypes.c_char_p * len(grammar.triggers))(*(t.encode() for t in grammar.triggers))
        no_tokens = (llama_cpp.llama_token * 0)()
        sampler = llama_cpp.llama_sampler_init_grammar_lazy_patterns(
            model.vocab, text, b"root", patterns, len(patterns), no_tokens, 0
        )
    else:
        sampler = llama_cpp.llama_sampler_init_grammar(model.vocab, text, b"root")
    if not sampler:
        raise RequestError("llama.cpp refuses the grammar; check its rules, one of which must be named `root`")
    return sampler
