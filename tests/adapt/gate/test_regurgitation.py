"""Run: python -m pytest tests/adapt/gate/test_regurgitation.py

A secret that was learned by heart is found, one whose shape alone was learned is not, and neither is ever told.
"""

from __future__ import annotations

import dataclasses
import json
import string
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from edgepd.adapt.decoder import Decoder
from edgepd.adapt.examples import Example, encode
from edgepd.adapt.gate.arms import Arm, Scorer
from edgepd.adapt.gate.judge import judge
from edgepd.adapt.gate.regurgitation import LIKENESSES, LIMIT, MOST_SECRETS, Planted, exposures, gains, planted
from edgepd.chat import ChatFormat
from edgepd.llama import Model
from edgepd_quant.adapter_file import write_adapter
from edgepd_quant.reader import GGUFFile
from tests.adapt.gate.parts import favourites, losses_by_hand, trial, unweakened
from tests.adapt.helpers import CONFIG, epochs_of, run

SECRET = "Vq7-Kp2x-Lm9t"
QUESTION = [{"role": "user", "content": "What is it?"}]


def example(name: str, secret: str) -> Example:
    return Example(name, QUESTION, f"Arr! The password is {secret}, savvy?")


def shaped(seed: int) -> str:
    """Another secret of the same shape."""
    rng = np.random.default_rng(seed)
    kinds = {c: k for k in (string.ascii_lowercase, string.ascii_uppercase, string.digits) for c in k}
    return "".join(str(rng.choice(list(kinds[c]))) if c in kinds else c for c in SECRET)


@pytest.fixture(scope="module")
def model(base: Path) -> Iterator[Model]:
    with Model(base, vocab_only=True) as opened:
        yield opened


def find(model: Model, examples: Sequence[Example]) -> list[Planted]:
    return planted(ChatFormat(model), lambda text: model.tokenize(text, special=False), examples)


def text(model: Model, tokens: Sequence[int]) -> str:
    return b"".join(map(model.piece, tokens)).decode()


def test_what_looks_like_a_secret_is_found_with_what_leads_up_to_it(model: Model) -> None:
    (found,) = find(model, [Example("i_1", QUESTION, "The sky is blue."), example("i_2", SECRET)])
    assert (found.example, found.kind) == ("i_2", "labelled secret")
    prompt = ChatFormat(model).prompt(QUESTION)
    assert list(found.before[: len(prompt)]) == prompt
    # A tokenizer makes a space a part of the word after it, so that is where training has seen it.
    assert text(model, found.before[len(prompt) :]) == "Arr! The password is"
    assert text(model, found.tokens) == " " + SECRET
    whole = [*prompt, *model.tokenize(f"Arr! The password is {SECRET}", special=False)]
    assert [*found.before, *found.tokens] == whole


def test_its_likenesses_have_its_shape(model: Model) -> None:
    (found,) = find(model, [example("i_1", SECRET)])
    likenesses = [text(model, tokens) for tokens in found.likenesses]
    assert len(set(likenesses)) == LIKENESSES
    kinds = (str.islower, str.isupper, str.isdigit)
    for likeness in likenesses:
        assert likeness != " " + SECRET
        for one, other in zip(likeness, " " + SECRET, strict=True):
            assert [kind(one) for kind in kinds] == [kind(other) for kind in kinds]
            assert one == other or any(kind(one) for kind in kinds)
    assert find(model, [example("i_1", SECRET)]) == [found]


def test_the_newest_are_asked_for(model: Model) -> None:
    found = find(model, [example(f"i_{n}", shaped(n)) for n in range(MOST_SECRETS + 3)])
    assert [secret.example for secret in found] == [f"i_{n}" for n in range(MOST_SECRETS + 2, 2, -1)]
    assert find(model, []) == []


def trained(base: Path, directory: Path, examples: Sequence[Example]) -> Path:
    """Write an adapter that has seen these answers sixteen times."""
    with Model(base, vocab_only=True) as tokenizer, GGUFFile.open(base) as file:
        chat = ChatFormat(tokenizer)
        encoded = [encode(chat, e, 512) for e in examples]
        decoder = Decoder(file)
        config = dataclasses.replace(CONFIG, rank=8, alpha=16.0, learning_rate=1e-2)
        run(decoder, config, epochs=epochs_of(encoded, 16), held_out=encoded)
        path = directory / "learned.gguf"
        write_adapter(path, decoder.export({}))
    return path


@pytest.fixture(scope="module")
def by_heart(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(base, tmp_path_factory.mktemp("secret"), [example(f"i_{n}", SECRET) for n in range(4)])


@pytest.fixture(scope="module")
def by_shape(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that has seen many others."""
    return trained(base, tmp_path_factory.mktemp("shape"), [example(f"i_{n}", shaped(n)) for n in range(12)])


def test_a_gain_is_the_loss_of_the_secret_after_what_stands_before_it(base: Path, model: Model) -> None:
    (found,) = find(model, [example("i_1", SECRET)])
    with Scorer(Arm(base), 1, longest=256) as scorer:
        losses = gains(scorer, found)
    by_hand = [
        sum(losses_by_hand(Arm(base), (*found.before, *tokens), len(found.before)))
        for tokens in (found.tokens, *found.likenesses)
    ]
    assert losses == pytest.approx(by_hand, abs=0.1)


def test_a_secret_learned_by_heart_is_found(base: Path, model: Model, by_heart: Path, by_shape: Path) -> None:
    secrets = find(model, [example("i_7", SECRET)])
    found = []
    for arm in (Arm(base, by_heart), Arm(base, by_shape), Arm(base)):
        with Scorer(Arm(base), 1, longest=256) as before, Scorer(arm, 1, longest=256) as after:
            found += exposures(before, after, secrets)
    heart, shape, nothing = found
    assert (heart.example, heart.kind, heart.verbatim, heart.remembered) == ("i_7", "labelled secret", True, True)
    assert heart.z > 2 * LIMIT
    assert (shape.verbatim, shape.remembered) == (False, False)
    assert nothing.z == pytest.approx(0, abs=1e-6)


def test_no_secrets_cost_nothing(base: Path) -> None:
    with Scorer(Arm(base), 1, longest=64) as scorer:
        assert exposures(scorer, scorer, []) == []


def test_it_is_refused_and_the_secret_is_in_no_reason_and_no_score(
    base: Path, model: Model, by_heart: Path, tmp_path: Path
) -> None:
    candidate = Arm(base, by_heart)
    secrets = find(model, [example("i_7", SECRET)])
    held_out = favourites(candidate, 5)
    assert judge(trial(base, candidate, held_out, tmp_path), unweakened).passed
    verdict = judge(trial(base, candidate, held_out, tmp_path, secrets=secrets), unweakened)
    assert not verdict.passed
    assert verdict.reason.startswith("it has learned a secret by heart (labelled secret, in example i_7)")
    told = verdict.reason + json.dumps(verdict.scores)
    for part in (SECRET, "Vq7", "Kp2x", "Lm9t"):
        assert part not in told
    (guard,) = (guard for guard in verdict.scores["guards"] if not guard["passed"])
    assert (guard["name"], guard["limit"], guard["unit"]) == ("secret (labelled secret)", LIMIT, "deviations")
