"""What an answer may consist of: grammars, biases, DRY, and the scores of its tokens."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgepd.errors import RequestError
from edgepd.llama import Context, Entry, Model
from edgepd_daemon.engine.engine import Engine
from edgepd_daemon.engine.types import Grammar, Sampling, Text, Version
from tests.daemon.generating import ask, running_engine

PROMPT = [1, 50, 60, 70, 80, 90]


@pytest.fixture
def version(tiny_model: Path) -> Version:
    return Version(1, tiny_model)


@pytest.fixture
def engine(version: Version) -> Iterator[Engine]:
    with running_engine() as started:
        started.prepare(version)
        yield started


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_grammar_binds_every_token(engine: Engine, version: Version, temperature: float) -> None:
    sampling = Sampling(temperature=temperature, top_k=0, seed=3)
    grammar = Grammar('root ::= "yes" | "no, " [0-9]{2,4} "!"')
    answer = ask(engine, PROMPT, version, 40, grammar=grammar, sampling=sampling, ignore_end=False)
    assert re.fullmatch(r"yes|no, \d{2,4}!", answer.text)
    assert answer.finished.reason == "stop"


def test_a_lazy_grammar_leaves_the_text_before_its_trigger_alone(engine: Engine, version: Version) -> None:
    free = ask(engine, PROMPT, version, 30).text
    trigger = free[8]
    before = free[: free.index(trigger)]
    assert before
    grammar = Grammar(f'root ::= "{trigger}" "ok"', triggers=(rf"[\s\S]*?({re.escape(trigger)})[\s\S]*",))
    bound = ask(engine, PROMPT, version, 30, grammar=grammar, ignore_end=False)
    assert bound.text.startswith(before)
    assert bound.text[len(before) :].startswith(trigger)
    assert (f"{before}{trigger}ok").startswith(bound.text[: len(before) + 3])


def test_a_grammar_that_llama_cpp_refuses_is_the_clients_error(engine: Engine, version: Version) -> None:
    refused = ask(engine, PROMPT, version, 4, grammar=Grammar('other ::= "x"'))
    assert isinstance(refused.failed.error, RequestError)
    assert "one of which must be named `root`" in str(refused.failed.error)
    assert ask(engine, PROMPT, version, 4).finished.reason == "length"


def test_a_bias_forces_and_forbids_tokens(engine: Engine, version: Version, tiny_model: Path) -> None:
    with Model(tiny_model) as model:
        token = next(t for t in range(60, 200) if len(model.piece(t)) == 1 and model.piece(t).isalpha())
        piece = model.piece(token).decode()
    forced = Sampling(temperature=0, logit_bias=((token, 1000.0),))
    assert ask(engine, PROMPT, version, 5, sampling=forced).text == piece * 5
    forbidden = Sampling(temperature=0, logit_bias=((token, 1000.0), (token, -math.inf)))
    assert piece not in ask(engine, PROMPT, version, 5, sampling=forbidden).text


def test_dry_breaks_up_repetition(engine: Engine, version: Version) -> None:
    sampling = Sampling(temperature=0, dry_multiplier=5.0, dry_sequence_breakers=())
    plain = ask(engine, PROMPT, version, 80, reuse_cache=False).text
    dry = ask(engine, PROMPT, version, 80, sampling=sampling, reuse_cache=False).text

    def repeats(text: str) -> int:
        return len(text) - len({text[i : i + 4] for i in range(len(text))})

    assert repeats(dry) < repeats(plain)


def test_typical_sampling_is_part_of_the_chain(engine: Engine, version: Version) -> None:
    def text(typical_p: float) -> str:
        sampling = Sampling(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=5, typical_p=typical_p)
        return ask(engine, PROMPT, version, 40, sampling=sampling, reuse_cache=False).text

    assert text(0.1) != text(1.0)


def test_scores_are_the_models_own_log_probabilities(engine: Engine, version: Version, tiny_model: Path) -> None:
    answer = ask(engine, PROMPT, version, 3, logprobs=4, reuse_cache=False)
    assert answer.finished.reason == "length"
    scored = [s for e in answer.events if isinstance(e, Text) for s in e.scored]
    assert len(scored) == 3
    with Model(tiny_model) as model, Context(model, context_tokens=512, threads=1) as context:
        context.decode([Entry(t, i, 0, i == len(PROMPT) - 1) for i, t in enumerate(PROMPT)])
        logits = context.logits(len(PROMPT) - 1).astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum())
    first = scored[0]
    assert first.token == int(expected.argmax())
    assert first.logprob == pytest.approx(expected.max(), abs=1e-4)
    assert [t.token for t in first.top] == np.argsort(-expected)[:4].tolist()
    assert [t.logprob for t in first.top] == pytest.approx(np.sort(expected)[::-1][:4].tolist(), abs=1e-4)
    assert b"".join(s.piece for s in scored).decode(errors="replace") == answer.text


def test_scores_can_do_without_alternatives(engine: Engine, version: Version) -> None:
    answer = ask(engine, PROMPT, version, 2, logprobs=0)
    assert answer.finished.reason == "length"
    assert [s.top for e in answer.events if isinstance(e, Text) for s in e.scored] == [(), ()]


def test_nothing_is_scored_unless_asked_for(engine: Engine, version: Version) -> None:
    answer = ask(engine, PROMPT, version, 3)
    assert answer.text
    assert [e.scored for e in answer.events if isinstance(e, Text) and e.scored] == []


def test_a_grammar_that_a_bias_contradicts_fails_the_request_and_nothing_else(
    engine: Engine, version: Version, tiny_model: Path
) -> None:
    """llama.cpp ends the process when it is made to accept a token that the grammar does not have."""
    with Model(tiny_model) as model:
        biases = tuple((t, -math.inf) for t in range(model.n_vocab) if b"y" in model.piece(t))
    sampling = Sampling(temperature=0, logit_bias=biases)
    answer = ask(engine, PROMPT, version, 8, grammar=Grammar('root ::= "yes"'), sampling=sampling)
    assert "no token continues the answer as the grammar wants it" in str(answer.failed.error)
    assert ask(engine, PROMPT, version, 4).finished.reason == "length"


def test_a_marker_is_a_control_token_that_is_shown(engine: Engine, version: Version, tiny_model: Path) -> None:
    with Model(tiny_model) as model:
        control = (t for t in range(model.n_vocab) if not model.piece(t) and model.piece(t, special=True))
        token = next(t for t in control if not model.is_end(t))
        marker = model.piece(token, special=True).decode()
    forced = Sampling(temperature=0, logit_bias=((token, 1000.0),))
    assert ask(engine, PROMPT, version, 3, sampling=forced).text == ""
    assert ask(engine, PROMPT, version, 3, sampling=forced, markers=(marker,)).text == marker * 3


def test_who_ignores_the_end_never_gets_the_tokens_that_mark_it(
    engine: Engine, version: Version, tiny_model: Path
) -> None:
    """They have no text, so the next turn of the conversation would not find its beginning in the cache."""
    with Model(tiny_model) as model:
        ends = model.end_tokens()
    assert ends
    likely = Sampling(temperature=0, logit_bias=tuple((token, 1000.0) for token in ends))
    ended = ask(engine, PROMPT, version, 6, sampling=likely, ignore_end=False)
    assert (ended.finished.reason, ended.text) == ("stop", "")
    going_on = ask(engine, PROMPT, version, 6, sampling=likely, logprobs=0)
    assert going_on.finished.reason == "length"
    drawn = [s.token for e in going_on.events if isinstance(e, Text) for s in e.scored]
    assert len(drawn) == 6 and not set(drawn) & set(ends)
