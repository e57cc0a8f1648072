"""Presets: the values that the papers print, literally."""

from __future__ import annotations

import dataclasses

import pytest

from edgepd.adapt.presets import LEARNING_RATES, applied, preset
from edgepd.config import declarations
from edgepd.errors import ConfigError
from edgepd.settings import Train

OURS = dataclasses.asdict(Train())


def printed(name: str) -> dict[str, object]:
    """What a preset lays over our settings."""
    return applied({}, preset(name))


def test_the_first_paper() -> None:
    assert printed("asls-paper") == {
        **dict.fromkeys(LEARNING_RATES, 3e-5),
        "epochs": 20,
        "batch": 16,
        "patience": 5,
        "objective": "reward",
        "reward_discount": 0.9,
        "replay_buffer": 1000,
    }
    assert preset("asls-paper").other["evaluation_prompts"] == 500


def test_the_second_paper() -> None:
    assert printed("pituning-paper") == {**dict.fromkeys(LEARNING_RATES, 0.01), "optimizer": "adam"}
    other = preset("pituning-paper").other
    assert (other["events"], other["embedding"], other["width"]) == (30, 192, 768)
    assert (other["transformer"], other["layers"], other["student_layers"]) == ("GPT2-small", 12, 4)
    assert (other["distillation_alpha"], other["distillation_temperature"], other["unlearning_lambda"]) == (0.5, 1, 1)
    trees = other["lightgbm"]
    assert (trees["num_iterations"], trees["num_leaves"], trees["early_stopping_round"]) == (2000, 32, 75)


def test_the_third_paper() -> None:
    assert printed("shaping-paper") == {
        "optimizer": "adam",
        "epochs": 20,
        "batch": 128,
        "shaping": "weighing",
        "personal_every": 2.0,
    }
    other = preset("shaping-paper").other
    assert (other["early_iterations"], other["transfer_iterations"]) == ((40, 400), (10, 300))
    assert (other["personal_every"], other["sg_samples"], other["ig_individuals"]) == ((12, 2), (1500, 6500), (5, 21))
    assert (other["latent"], other["autoencoder_epochs"], other["autoencoder_batch"]) == (16, 20, 128)


@pytest.mark.parametrize(
    ("name", "silent"),
    [
        ("asls-paper", ["optimizer", "weight_decay", "rank", "shaping", "personal_every", "grouping"]),
        ("pituning-paper", ["epochs", "batch", "patience", "weight_decay", "rank", "objective"]),
        ("shaping-paper", ["learning_rate", "patience", "weight_decay", "rank", "objective", "reward_discount"]),
    ],
)
def test_what_a_paper_does_not_say_is_none_and_stays_ours(name: str, silent: list[str]) -> None:
    for key in silent:
        assert getattr(preset(name), key) is None
        assert applied({**OURS, key: "ours"}, preset(name))[key] == "ours"


def test_printed_values_win_over_what_is_set() -> None:
    settings = {**OURS, "epochs": 7, "personal_every": 5.0, "seed": 3}
    found = applied(settings, preset("shaping-paper"))
    assert (found["epochs"], found["personal_every"], found["seed"]) == (20, 2.0, 3)
    assert settings["epochs"] == 7


def test_the_default_prints_nothing() -> None:
    assert applied(OURS, preset("default")) == OURS


def test_presets_are_those_that_can_be_set_and_their_values_are_within_range() -> None:
    known = declarations()
    added = {"optimizer", "batch", "patience", "reward_discount", "replay_buffer"}
    for name in known["train.preset"].choices:
        assert preset(name).name == name
        for key, value in printed(name).items():
            if key in added:
                continue
            declared = known[f"train.{key}"]
            assert type(value) is declared.type
            if declared.choices:
                assert value in declared.choices
            else:
                assert isinstance(value, int | float)
                assert declared.minimum is None or value >= declared.minimum
                assert declared.maximum is None or value <= declared.maximum


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no preset 'paper'; known are default, asls-paper, pituning-paper, shaping"):
        preset("paper")
