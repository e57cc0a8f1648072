"""The llama.cpp binding: failures are exceptions, and an adapter that was taken away leaves no trace."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edgepd.errors import AdapterError, ModelError
from edgepd.llama import Context, Entry, LoraAdapter, Model
from edgepd_quant.types import GGMLType
from tests.daemon.adapters import random_lora
from tests.tiny_archs import tiny_arch
from tests.tiny_gguf import llama_logits, tiny_llama

TEXT = "The cat sat on the mat, and the dog looked at it."


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", qtype=GGMLType.Q4_1, seed=1)


@pytest.fixture(params=["tiny", pytest.param("real", marks=pytest.mark.real_model)])
def path(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue("tiny" if request.param == "tiny" else "model_path")
    return found


@pytest.fixture
def model(path: Path) -> Iterator[Model]:
    with Model(path) as opened:
        yield opened


@pytest.fixture
def context(model: Model) -> Iterator[Context]:
    with Context(model, context_tokens=256, threads=1, logits_everywhere=True) as opened:
        yield opened


def logits(context: Context, text: str = TEXT) -> npt.NDArray[np.float32]:
    """Logits (tokens, vocabulary) of the text from an empty cache."""
    tokens = context.model.tokenize(text, special=False)
    context.forget(0)
    context.decode([Entry(token, n, 0, True) for n, token in enumerate(tokens)])
    return np.stack([context.logits(n) for n in range(len(tokens))])


def test_unset_restores_the_base_bit_for_bit(context: Context, path: Path, tmp_path: Path) -> None:
    before = logits(context)
    adapter = LoraAdapter(context.model, random_lora(tmp_path / "a.gguf", path, seed=1, deviation=0.1))
    context.set_adapter(adapter)
    changed = logits(context)
    context.set_adapter(None)
    after = logits(context)
    adapter.close()
    assert np.abs(changed - before).max() > 0.1
    assert np.array_equal(after, before)


def test_an_adapter_with_b_zero_changes_nothing(context: Context, path: Path, tmp_path: Path) -> None:
    before = logits(context)
    adapter = LoraAdapter(context.model, random_lora(tmp_path / "zero.gguf", path, seed=1, deviation=0.0))
    context.set_adapter(adapter)
    assert np.allclose(logits(context), before, rtol=1e-4, atol=1e-4)
    context.set_adapter(None)
    adapter.close()


def test_an_adapter_at_the_address_of_a_freed_one_is_really_set(context: Context, path: Path, tmp_path: Path) -> None:
    """llama.cpp compares addresses: setting another adapter where the old one was would be skipped silently."""
    files = [random_lora(tmp_path / f"{n}.gguf", path, seed=n, deviation=0.1) for n in (1, 2)]
    seen = []
    for _ in range(3):
        for file in files:
            adapter = LoraAdapter(context.model, file)
            context.set_adapter(adapter)
            seen.append(logits(context))
            context.set_adapter(None)
            adapter.close()
    assert all(np.array_equal(seen[0], again) for again in seen[2::2])
    assert all(np.array_equal(seen[1], again) for again in seen[3::2])
    assert np.abs(seen[0] - seen[1]).max() > 0.1


def test_an_adapter_in_use_is_not_freed(context: Context, path: Path, tmp_path: Path) -> None:
    adapter = LoraAdapter(context.model, random_lora(tmp_path / "a.gguf", path, seed=1, deviation=0.1))
    context.set_adapter(adapter)
    with pytest.raises(RuntimeError, match=r"is still set on 1 context"):
        adapter.close()
    context.close()  # unsets it
    adapter.close()
    adapter.close()


def test_the_scale_of_an_adapter(tiny: Path, tmp_path: Path) -> None:
    with Model(tiny) as model, Context(model, context_tokens=256, threads=1, logits_everywhere=True) as context:
        before = logits(context)
        adapter = LoraAdapter(model, random_lora(tmp_path / "a.gguf", tiny, seed=1, deviation=0.1))
        context.set_adapter(adapter, 1.0)
        whole = logits(context)
        context.set_adapter(adapter, 0.0)
        assert np.allclose(logits(context), before, rtol=1e-4, atol=1e-4)
        context.set_adapter(adapter, 1.0)
        assert np.array_equal(logits(context), whole)
        context.close()
        adapter.close()


def test_logits_are_those_of_llama_cpp_itself(tiny: Path, tmp_path: Path) -> None:
    adapter_file = random_lora(tmp_path / "a.gguf", tiny, seed=1, deviation=0.1)
    with Model(tiny) as model, Context(model, context_tokens=256, threads=1, logits_everywhere=True) as context:
        tokens = model.tokenize(TEXT, special=False)
        assert np.allclose(logits(context), llama_logits(tiny, tokens), rtol=1e-3, atol=1e-3)
        adapter = LoraAdapter(model, adapter_file)
        context.set_adapter(adapter)
        assert np.allclose(logits(context), llama_logits(tiny, tokens, adapter_file), rtol=1e-3, atol=1e-3)
        context.close()
        adapter.close()


def test_sequences_do_not_see_each_other(tiny: Path) -> None:
    with Model(tiny) as model, Context(model, context_tokens=256, sequences=2, threads=1) as context:
        context.decode([Entry(5, 0, 0, False), Entry(6, 1, 0, True)])
        alone = context.logits(1)
        context.decode([Entry(50, 0, 1, False), Entry(60, 1, 1, False)])
        context.forget(0)
        context.decode([Entry(5, 0, 0, False), Entry(6, 1, 0, True)])
        assert np.array_equal(context.logits(1), alone)
        assert context.tokens_per_sequence == 256


def test_forgetting_a_part_and_going_on(tiny: Path) -> None:
    with Model(tiny) as model, Context(model, context_tokens=256, threads=1) as context:
        context.decode([Entry(5, 0, 0, False), Entry(6, 1, 0, True)])
        first = context.logits(1)
        context.decode([Entry(7, 2, 0, False)])
        assert context.forget(0, 1)
        context.decode([Entry(6, 1, 0, True)])
        assert np.allclose(context.logits(0), first, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("vocab_only", [False, True])
def test_text_and_tokens(tiny: Path, vocab_only: bool) -> None:
    with Model(tiny, vocab_only=vocab_only) as model:
        text = "Grüße, 世界! <|im_end|> \x00 the hello"
        tokens = model.tokenize(text, special=False)
        assert b"".join(model.piece(t) for t in tokens).decode() == text
        assert 2 not in tokens
        assert 2 in model.tokenize(text, special=True)
        assert model.tokenize("", special=True) == []
        assert model.tokenize("the", special=False) == [model.n_vocab - 13]
        assert (model.piece(2), model.piece(2, special=True)) == (b"", b"<|im_end|>")
        assert model.is_end(2)
        assert not model.is_end(100)
        assert (model.bos_token, model.eos_token, model.eot_token, model.n_vocab) == (1, 2, 2, 273)


def test_metadata(tiny: Path) -> None:
    with Model(tiny, vocab_only=True) as model:
        assert model.metadata("general.architecture") == "llama"
        assert model.metadata("llama.block_count") == "2"
        assert model.metadata("no.such.key") is None


def test_metadata_longer_than_the_first_buffer(model_path_template: tuple[Path, str]) -> None:
    path, template = model_path_template
    with Model(path, vocab_only=True) as model:
        assert model.metadata("tokenizer.chat_template") == template


@pytest.fixture
def model_path_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    template = "{# " + "ä" * 5000 + " #}{{ messages }}"
    monkeypatch.setattr("tests.tiny_gguf.CHATML", template)
    return tiny_llama(tmp_path / "long.gguf", qtype=GGMLType.Q4_1, seed=1), template


def test_files_that_are_no_models(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "text.gguf").write_text("no model at all")
    (tmp_path / "half.gguf").write_bytes(tiny.read_bytes()[: tiny.stat().st_size // 2])
    with pytest.raises(ModelError, match=r"missing\.gguf does not exist"):
        Model(tmp_path / "missing.gguf")
    with pytest.raises(ModelError, match="does not exist"):
        Model(tmp_path)
    for name in ("empty", "text", "half"):
        with pytest.raises(ModelError, match=rf"cannot load .*{name}\.gguf; it is broken"):
            Model(tmp_path / f"{name}.gguf")


def test_files_that_are_no_adapters(tiny: Path, tmp_path: Path) -> None:
    good = random_lora(tmp_path / "good.gguf", tiny, seed=1, deviation=0.1)
    (tmp_path / "half.gguf").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    shutil.copy(tiny, tmp_path / "model.gguf")
    with Model(tiny) as model:
        for name in ("missing", "half", "model"):
            with pytest.raises(AdapterError, match=rf"refuses the adapter .*{name}\.gguf; it does not fit tiny\.gguf"):
                LoraAdapter(model, tmp_path / f"{name}.gguf")


def test_batches_of_a_wrong_size(tiny: Path) -> None:
    with Model(tiny) as model, Context(model, context_tokens=256, batch_tokens=32, threads=1) as context:
        with pytest.raises(ValueError, match="a batch has 1 to 32 tokens, not 0"):
            context.decode([])
        with pytest.raises(ValueError, match="a batch has 1 to 32 tokens, not 33"):
            context.decode([Entry(5, n, 0, False) for n in range(33)])


def test_more_tokens_than_the_cache_holds(tiny: Path) -> None:
    with Model(tiny) as model, Context(model, context_tokens=256, batch_tokens=256, threads=1) as context:
        context.decode([Entry(5, n, 0, False) for n in range(256)])
        with pytest.raises(ModelError, match="failed to decode 1 tokens: status 1"):
            context.decode([Entry(5, 256, 0, True)])
        context.forget(0)
        context.decode([Entry(5, 0, 0, True)])


def test_closing_twice(tiny: Path) -> None:
    model = Model(tiny)
    context = Context(model, context_tokens=256, threads=1)
    for _ in range(2):
        context.close()
    for _ in range(2):
        model.close()


def prefilled(context: Context, tokens: list[int], sequence: int = 0) -> npt.NDArray[np.float32]:
    """Put tokens into a sequence in one batch and return the logits after the last."""
    assert context.decode([Entry(t, i, sequence, i == len(tokens) - 1) for i, t in enumerate(tokens)])
    return context.logits(len(tokens) - 1)


TOKENS = [1, *range(60, 100)]


def test_a_copied_sequence_goes_on_as_the_original(tiny: Path) -> None:
    with Model(tiny) as model, Context(model, context_tokens=256, sequences=3, threads=1) as context:
        prefilled(context, TOKENS)
        context.copy(0, 2)
        assert context.copying
        context.forget(2, 20)
        context.decode([Entry(t, i, 2, i == 40) for i, t in enumerate(TOKENS) if i >= 20])
        assert not context.copying
        copied = context.logits(20)
        context.forget(0, 20)
        context.decode([Entry(t, i, 0, i == 40) for i, t in enumerate(TOKENS) if i >= 20])
        np.testing.assert_array_equal(copied, context.logits(20))


def test_a_restored_state_goes_on_as_the_original(tiny: Path) -> None:
    with Model(tiny) as model, Context(model, context_tokens=256, sequences=2, threads=1) as context:
        prefilled(context, TOKENS[:-1])
        state = context.state(0)
        context.decode([Entry(TOKENS[-1], 40, 0, True)])
        expected = context.logits(0)
        assert context.restore(1, state)
        context.decode([Entry(TOKENS[-1], 40, 1, True)])
        np.testing.assert_array_equal(context.logits(0), expected)


def test_a_state_of_another_size_is_refused(tiny: Path, tmp_path: Path) -> None:
    with Model(tiny) as model, Context(model, context_tokens=256, threads=1) as context:
        prefilled(context, TOKENS)
        state = context.state(0)
        assert not context.restore(0, state[: len(state) // 2])
        prefilled(context, TOKENS)  # nothing of it is left in the way


def test_a_shift_drops_the_middle(tiny: Path) -> None:
    with Model(tiny) as model, Context(model, context_tokens=256, threads=1) as context:
        prefilled(context, TOKENS)
        assert context.shift(0, 4, 24)
        assert context.decode([Entry(TOKENS[-1], len(TOKENS) - 20, 0, True)])
        with pytest.raises(ModelError):
            context.decode([Entry(TOKENS[-1], len(TOKENS), 0, True)])  # no longer where the sequence ends


def test_an_interrupted_batch_can_be_repeated(tiny: Path) -> None:
    with Model(tiny) as model, Context(model, context_tokens=256, threads=1) as context:
        expected = prefilled(context, TOKENS)
        context.forget(0)
        context.interrupt()
        entries = [Entry(t, i, 0, i == 40) for i, t in enumerate(TOKENS)]
        assert not context.decode(entries)
        context.forget(0)
        assert not context.decode(entries)  # until it is taken back
        context.forget(0)
        context.resume()
        np.testing.assert_array_equal(prefilled(context, TOKENS), expected)


@pytest.mark.real_model
def test_a_quantised_cache_is_close(model_path: Path) -> None:
    with Model(model_path) as model:
        found = []
        for kv_type in ("f16", "q8_0"):
            with Context(model, context_tokens=256, threads=1, kv_type=kv_type) as context:
                found.append(prefilled(context, TOKENS))
        assert 0 < np.abs(found[0] - found[1]).max() < 0.1 * np.abs(found[0]).max()


def test_facts(tiny: Path) -> None:
    with Model(tiny) as model:
        facts = model.facts()
    assert (facts.architecture, facts.n_embd, facts.n_vocab) == ("llama", 64, model.n_vocab)
    assert facts.metadata["general.architecture"] == "llama"
    assert max(map(len, facts.metadata.values())) <= 1000


@pytest.mark.real_model
def test_facts_of_the_real_model(model_path: Path) -> None:
    with Model(model_path) as model:
        facts = model.facts()
    assert (facts.parameters, facts.quantization, facts.n_ctx_train) == (134_515_008, "Q4_1", 8192)
    assert facts.template is not None and "im_start" in facts.template


def test_loading_reports_progress(tiny: Path) -> None:
    shares: list[float] = []
    with Model(tiny, progress=shares.append):
        assert shares and shares == sorted(shares) and shares[-1] == 1.0


def test_a_prompt_begins_as_the_file_wants_it(tmp_path: Path) -> None:
    wants = tiny_arch(
        tmp_path / "bos.gguf", "llama", qtype=GGMLType.F32, seed=1, extra={"tokenizer.ggml.add_bos_token": True}
    )
    with Model(wants, vocab_only=True) as model:
        assert model.tokenize_prompt("hello") == [model.bos_token, *model.tokenize("hello", special=True)]
        begun = model.piece(model.bos_token, special=True).decode() + "hello"
        assert model.tokenize_prompt(begun) == model.tokenize_prompt("hello")
    with Model(tiny_llama(tmp_path / "plain.gguf", qtype=GGMLType.F32, seed=1), vocab_only=True) as model:
        assert model.tokenize_prompt("hello") == model.tokenize("hello", special=True)
