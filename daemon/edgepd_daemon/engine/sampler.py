"""A chain of llama.cpp's own samplers, built from the sampling parameters of a request."""

from __future__ import annotations

import secrets

import llama_cpp

from edgepd.llama import Context
from edgepd_daemon.engine.types import Sampling

PENALTY_WINDOW = 64  # tokens that the repetition penalties look back on, llama.cpp's default


class Sampler:
    """Owns one llama_sampler chain; `close` frees it with everything in it."""

    def __init__(self, sampling: Sampling, n_vocab: int) -> None:
        """Build the chain: penalties, top-k, top-p, min-p, temperature, draw; or penalties and greedy."""
        self._chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        if (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty) != (
            1.0,
            0.0,
            0.0,
        ):
            self._add(
                llama_cpp.llama_sampler_init_penalties(
                    n_vocab,
                    PENALTY_WINDOW,
                    sampling.repeat_penalty,
                    sampling.frequency_penalty,
                    sampling.presence_penalty,
                )
            )
        if sampling.temperature <= 0:
            self._add(llama_cpp.llama_sampler_init_greedy())
            return
        seed = secrets.randbits(32) if sampling.seed is None else sampling.seed & 0xFFFF_FFFF
        self._add(llama_cpp.llama_sampler_init_top_k(sampling.top_k))
        self._add(llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1))
        self._add(llama_cpp.llama_sampler_init_min_p(sampling.min_p, 1))
        self._add(llama_cpp.llama_sampler_init_temp(sampling.temperature))
        self._add(llama_cpp.llama_sampler_init_dist(seed))

    def _add(self, sampler: object) -> None:
        llama_cpp.llama_sampler_chain_add(self._chain, sampler)

    def sample(self, context: Context, index: int) -> int:
        """Choose the token after entry `index` of the last batch, and remember it for the penalties."""
        return int(llama_cpp.llama_sampler_sample(self._chain, context.pointer, index))

    def close(self) -> None:
        """Free the chain."""
        if self._chain:
            llama_cpp.llama_sampler_free(self._chain)
            self._chain = None
