"""The tiny models that other tests rely on really run in llama.cpp."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgepd_quant.types import GGMLType
from tests.tiny_gguf import llama_logits, tiny_llama

TOKENS = [1, 120, 118, 266, 13, 272, 2]


@pytest.mark.parametrize(
    "qtype", [GGMLType.F32, GGMLType.Q4_0, GGMLType.Q4_1, GGMLType.Q8_0, GGMLType.Q4_K, GGMLType.Q6_K]
)
def test_llama_cpp_decodes_the_tiny_model(tmp_path: Path, qtype: GGMLType) -> None:
    logits = llama_logits(tiny_llama(tmp_path / "tiny.gguf", qtype=qtype, seed=1), TOKENS)
    assert logits.shape == (7, 273)
    assert np.isfinite(logits).all()
    assert 0.5 < logits.std() < 5.0  # neither flat nor saturated, so comparisons of outputs mean something


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    first = tiny_llama(tmp_path / "a.gguf", qtype=GGMLType.Q4_1, seed=7).read_bytes()
    assert tiny_llama(tmp_path / "b.gguf", qtype=GGMLType.Q4_1, seed=7).read_bytes() == first
    assert tiny_llama(tmp_path / "c.gguf", qtype=GGMLType.Q4_1, seed=8).read_bytes() != first


def test_untied_model_with_another_embedding_type(tmp_path: Path) -> None:
    path = tiny_llama(
        tmp_path / "m.gguf", qtype=GGMLType.Q4_K, seed=1, embedding_qtype=GGMLType.Q6_K, tied=False, layers=1
    )
    assert np.isfinite(llama_logits(path, TOKENS)).all()


def test_llama_cpp_tokenises_and_knows_the_end_of_turn(tmp_path: Path) -> None:
    import llama_cpp

    path = tiny_llama(tmp_path / "tiny.gguf", qtype=GGMLType.F32, seed=1)
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    try:
        vocabulary = llama_cpp.llama_model_get_vocab(model)
        buffer = (llama_cpp.llama_token * 16)()
        text = b"<|im_start|>hello the<|im_end|>"
        count = llama_cpp.llama_tokenize(vocabulary, text, len(text), buffer, 16, False, True)
        assert list(buffer[:count]) == [1, 272, 261, 2]
        assert llama_cpp.llama_vocab_eot(vocabulary) == 2
        assert b"<|im_start|>assistant" in llama_cpp.llama_model_chat_template(model, None)
    finally:
        llama_cpp.llama_model_free(model)
