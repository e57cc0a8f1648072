"""Run: python -m pytest tests/adapt/test_recipe.py"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from edgepd.adapt.decoder import Decoder
from edgepd.adapt.examples import Encoded, Example
from edgepd.adapt.job import Job, JobExample, JobKind
from edgepd.adapt.objectives import DPO, KTO, SFT, AnchorKL
from edgepd.adapt.recipe import Data, make_recipe, prepare_data, read_settings, stopping_set, without_secrets
from edgepd.config import declarations
from edgepd.errors import ConfigError, TrainingError
from edgepd.settings import Gate, Train
from edgepd_quant.types import GGMLType
from tests.adapt.helpers import random_examples, tiny_decoder
from tests.tiny_gguf import tiny_llama


def job(kind: JobKind = "live", **settings: Any) -> Job:
    """A job with no files and no examples, for what depends on the settings only."""
    fields: dict[str, Any] = dict.fromkeys(
        ["base", "base_sha256", "original", "original_sha256", "current_model", "output", "checkpoint_dir"], ""
    )
    return Job(
        **fields,
        kind=kind,
        current_adapter=None,
        replay_dir="",
        train=[],
        held_out=[],
        data_hash="",
        settings=asdict(Train()) | settings,
        threads=1,
        gate=asdict(Gate()),
        max_tokens=200,
    )


def data(count: int = 10, general: int = 0) -> Data:
    others = [dataclasses.replace(e, id=f"general-{e.id}") for e in random_examples(general, seed=2)]
    return Data(random_examples(count, seed=1), [], random_examples(2, seed=3), others, [])


@pytest.fixture
def decoder(tmp_path: Path) -> Iterator[Decoder]:
    with tiny_decoder(tmp_path) as opened:
        yield opened


def test_an_answer_with_what_looks_like_a_secret_is_never_learned() -> None:
    said = ("Wait eight minutes.", "the password is x7Kp2mQ9zr", "my PIN is 483105")
    examples = [Example(f"e{n}", [{"role": "user", "content": "Hm?"}], text) for n, text in enumerate(said)]
    kept, withheld = without_secrets(examples)
    assert [e.id for e in kept] == ["e0"]
    assert [s.id for s in withheld] == ["e1", "e2"]
    assert all("looks like a secret" in s.reason and "x7Kp" not in s.reason for s in withheld)


def test_a_secret_in_a_prompt_is_named_and_not_told() -> None:
    asked = [{"role": "user", "content": "My PIN is 483105. How long do I boil an egg?"}]
    [kept], withheld = without_secrets([Example("e0", asked, "Eight minutes.")])
    assert kept.messages == [{"role": "user", "content": "My PIN is [labelled secret]. How long do I boil an egg?"}]
    assert (kept.response, withheld) == ("Eight minutes.", [])


def test_the_live_path_trains_lora_and_the_normal_path_what_is_baked(decoder: Decoder) -> None:
    rates = {"live_learning_rate": 1e-3, "scale_learning_rate": 2e-3, "shift_learning_rate": 3e-3}
    rates |= {"gain_learning_rate": 4e-3}
    found = make_recipe(given := job("live", rank=4, **rates), read_settings(given), data(), decoder).config
    assert (found.kind, found.rank, found.alpha, found.learning_rate) == ("lora", 4, 8.0, 1e-3)
    for kind, rate in (("scale", 2e-3), ("shift", 3e-3), ("gain", 4e-3)):
        given = job("baked", baked_kind=kind, **rates)
        found = make_recipe(given, read_settings(given), data(), decoder).config
        assert (found.kind, found.learning_rate) == (kind, rate)


def test_settings_reach_the_loop(decoder: Decoder) -> None:
    given = job(rs_lora=True, lora_plus=4.0, top_layers=1, seed=5, objective="sft")
    found = make_recipe(given, read_settings(given), data(), decoder).config
    assert (found.rs_lora, found.lora_plus, found.top_layers, found.seed) == (True, 4.0, 1, 5)
    assert (found.weight_decay, found.patience, found.kl_weight) == (0.01, 2, 0.0)


def test_every_epoch_has_every_example_in_batches_of_four(decoder: Decoder) -> None:
    given = job(epochs=3)
    epochs = make_recipe(given, read_settings(given), data(10), decoder).epochs
    assert len(epochs) == 3
    for epoch in epochs:
        assert sorted(e.id for batch in epoch for e in batch.examples) == sorted(f"e{n}" for n in range(10))
        assert [len(batch.examples) for batch in epoch] == [4, 3, 3]
    assert epochs[0] != epochs[1]
    again = make_recipe(given, read_settings(given), data(10), decoder).epochs
    assert again == epochs


def test_preferences_learn_more_slowly(decoder: Decoder) -> None:
    names = declarations()["train.objective"].choices
    rates = {}
    for name in names:
        given = job(objective=name)
        found = make_recipe(given, read_settings(given), data(), decoder)
        rates[name] = found.config.learning_rate / Train().live_learning_rate
        assert found.config.objective == name
    assert rates == {name: pytest.approx(1.0 if name in ("sft", "reward") else 0.1) for name in names}


@pytest.mark.parametrize(("name", "kind"), [("sft", SFT), ("reward", SFT), ("dpo", DPO), ("kto", KTO)])
def test_the_objective_is_the_one_that_is_named(decoder: Decoder, name: str, kind: type) -> None:
    given = job(objective=name)
    assert type(make_recipe(given, read_settings(given), data(), decoder).objective) is kind


def test_the_divergence_needs_general_examples(decoder: Decoder) -> None:
    """On the fast path there may be none yet, and then training goes on without."""
    given = job(kl_weight=0.5)
    without = make_recipe(given, read_settings(given), data(), decoder)
    assert (type(without.objective), without.config.kl_weight) == (SFT, 0.0)
    found = make_recipe(given, read_settings(given), data(general=3), decoder)
    assert isinstance(found.objective, AnchorKL)
    assert found.config.kl_weight == 0.5
    assert not any(batch.general for epoch in found.epochs for batch in epoch)


@pytest.mark.parametrize("shaping", ["early", "weighing", "transfer"])
def test_shaping_mixes_general_examples_in_if_there_are_any(decoder: Decoder, shaping: str) -> None:
    given = job(shaping=shaping, general_steps=3)
    found = make_recipe(given, read_settings(given), data(general=5), decoder)
    assert any(batch.general for epoch in found.epochs for batch in epoch)
    alone = make_recipe(given, read_settings(given), data(), decoder)
    assert not any(batch.general for epoch in alone.epochs for batch in epoch)


@pytest.mark.parametrize(("grouping", "distance"), [("sg", "embedding"), ("ig", "autoencoder")])
def test_grouping_adds_near_general_examples(decoder: Decoder, grouping: str, distance: str) -> None:
    given = job(grouping=grouping, group_distance=distance, epochs=2)
    found = make_recipe(given, read_settings(given), data(general=8), decoder)
    for epoch in found.epochs:
        assert len([e for batch in epoch if batch.general for e in batch.examples]) == 2  # a quarter of eight
        assert len([e for batch in epoch if not batch.general for e in batch.examples]) == 10


def test_early_shaping_is_not_judged_before_its_end(decoder: Decoder) -> None:
    """Its general examples come last; the state before them would always look better."""
    judged = random_examples(2, seed=4)
    for shaping, general, expected in (("early", 4, []), ("early", 0, judged), ("transfer", 4, judged)):
        given, found = job(shaping=shaping), dataclasses.replace(data(general=general), stop_on=judged)
        recipe = make_recipe(given, read_settings(given), found, decoder)
        assert list(stopping_set(recipe, found)) == expected


def test_a_preset_is_laid_over_the_settings(decoder: Decoder) -> None:
    given = job(preset="asls-paper", epochs=3, rank=4)
    settings = read_settings(given)
    found = make_recipe(given, settings, data(40), decoder)
    assert (len(found.epochs), found.config.learning_rate, found.config.patience) == (20, 3e-5, 5)
    assert [len(batch.examples) for batch in found.epochs[0]] == [14, 13, 13]  # at most 16
    assert (found.config.rank, found.config.objective) == (4, "reward")
    adam = job(preset="pituning-paper")
    assert make_recipe(adam, read_settings(adam), data(), decoder).config.weight_decay == 0.0
    with pytest.raises(ConfigError, match="no preset 'none'"):
        read_settings(job(preset="none"))


# What becomes of the examples of a job.


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", qtype=GGMLType.Q4_1, seed=1)


def said(count: int, **fields: Any) -> list[JobExample]:
    return [JobExample(f"e{n}", [{"role": "user", "content": f"q{n}"}], f"a{n}", **fields) for n in range(count)]


def prepared(base: Path, train: list[JobExample], **settings: Any) -> Data:
    given = job(settings.pop("kind", "live"), **settings)
    given = dataclasses.replace(given, base=str(base), original=str(base), train=train, held_out=said(2))
    return prepare_data(given, read_settings(given), lambda done, total: None)


def ids(examples: list[Encoded]) -> list[str]:
    return [example.id for example in examples]


@pytest.mark.parametrize(("count", "stop"), [(15, 0), (16, 2), (20, 3), (40, 6)])
def test_the_newest_of_many_examples_only_decide_when_to_stop(tiny: Path, count: int, stop: int) -> None:
    found = prepared(tiny, said(count))
    assert ids(found.stop_on) == [f"e{n}" for n in range(count - stop, count)]
    assert ids(found.learn_from) == [f"e{n}" for n in range(count - stop)]
    assert len(found.held_out) == 2


def test_unwanted_answers_are_learned_from_but_not_judged_by(tiny: Path) -> None:
    unwanted = [dataclasses.replace(e, id=f"no{e.id}", desirable=False) for e in said(4)]
    found = prepared(tiny, [*said(16), *unwanted], objective="kto")
    assert ids(found.stop_on) == ["e14", "e15"]
    assert ids(found.learn_from)[-4:] == ["noe0", "noe1", "noe2", "noe3"]


def test_rewards_become_weights(tiny: Path) -> None:
    good, bad = said(2, reward=1.0), said(2, reward=-1.0)
    bad = [dataclasses.replace(e, id=f"no{e.id}", desirable=False) for e in bad]
    found = prepared(tiny, [*good, *bad], objective="reward")
    assert [(e.id, round(e.weight, 4)) for e in found.learn_from] == [("e0", 2.7183), ("e1", 2.7183)]
    assert [e.weight for e in prepared(tiny, good).learn_from] == [1.0, 1.0]


def test_too_long_examples_are_named_and_none_left_is_refused(tiny: Path) -> None:
    long = JobExample("long", [{"role": "user", "content": "x" * 300}], "y")
    found = prepared(tiny, [*said(3), long])
    assert [s.id for s in found.skipped] == ["long"]
    with pytest.raises(TrainingError, match="no example to train on fits into 200 tokens"):
        prepared(tiny, [long])


def test_general_examples_are_not_generated_in_a_hurry(tiny: Path, tmp_path: Path) -> None:
    """Neither on the fast path nor for a plan; and not at all where nothing wants them."""
    for settings in ({"kind": "live", "kl_weight": 1.0}, {"kind": "baked"}):
        given = job(**settings)
        given = dataclasses.replace(
            given, base=str(tiny), original=str(tiny), replay_dir=str(tmp_path / "r"), train=said(2), held_out=said(1)
        )
        assert prepare_data(given, read_settings(given), lambda done, total: None).general == []
    planned = dataclasses.replace(given, settings=given.settings | {"kl_weight": 1.0}, plan_only=True)
    assert prepare_data(planned, read_settings(planned), lambda done, total: None).general == []
    assert not (tmp_path / "r").exists()
