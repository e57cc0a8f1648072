"""The page of a benchmark must say what was measured, and a goal must be missed when it is missed."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import _intent_page as page
import _report
import numpy as np
import pytest
from _intent_data import Protocol
from _intent_plot import Curve, plot
from _intent_table import Comparison, Costs, Role, Unlearning, filled, plus_minus

from edgepd.intent.data import Split
from edgepd.intent.schema import Event

INTENTS = ("eat", "read", "swim", "walk")
TRUTH = (0, 0, 0, 0, 1, 2, 3, 3)
# What is predicted; the first three are right for the frequent classes, the last for most rare ones too.
PLAIN = (0, 0, 0, 0, 0, 0, 0, 3)
MARKOV = (0, 0, 0, 3, 0, 0, 3, 3)
BETTER = (0, 0, 0, 0, 1, 2, 3, 0)


def event(number: int, intent: int) -> Event:
    return Event(float(number), INTENTS[intent], INTENTS[intent])


def drawn(seed: int = 0) -> Protocol:
    """Two users with four test events each, and a population in which walks, swims and reads are rare."""
    population = {"p": [event(n, i) for n, i in enumerate((0, 0, 0, 0, 3, 3, 3, 1, 1, 2))]}
    splits = {
        user: Split([], [], [event(n, intent) for n, intent in enumerate(TRUTH[4 * u : 4 * u + 4])])
        for u, user in enumerate("ab")
    }
    return Protocol(seed, population, splits, INTENTS)


def surely(predicted: tuple[int, ...]) -> np.ndarray:
    return np.eye(len(INTENTS))[list(predicted)]


def compared(*arms: tuple[str, Role, tuple[int, ...]], seeds: tuple[int, ...] = (0, 1)) -> Comparison:
    comparison = Comparison()
    for seed in seeds:
        for name, role, predicted in arms:
            comparison.add(drawn(seed), name, role, surely(predicted), Costs(10, 2.5, tune_s=30.0 + 40 * seed))
    return comparison


ARMS: tuple[tuple[str, Role, tuple[int, ...]], ...] = (
    ("plain", "baseline", PLAIN),
    ("chain", "markov", MARKOV),
    ("focal", "imbalance", PLAIN),
    ("new", "ours", BETTER),
)


def goals(comparison: Comparison, *runs: Unlearning) -> dict[str, tuple[float, str, bool]]:
    return {g.name: (g.value, g.goal, g.met) for g in filled(comparison, runs, {}).goals}


def test_numbers_are_those_of_the_predictions() -> None:
    result = compared(*ARMS).results[3]

    assert result.arm == "new"
    assert result.numbers["Rec_w"] == 7 / 8
    assert result.numbers["Rec_m"] == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert result.rarest == {"swim": 1, "read": 1, "walk": 0.5}
    assert result.numbers["rarest"] == pytest.approx(2.5 / 3)
    assert result.numbers["worst decile"] == 0.75


def test_goals_compare_with_the_best_of_the_others() -> None:
    found = goals(compared(*ARMS))

    assert found["macro recall, above chain"] == (0.875, "> 0.4375", True)  # 3/4, 0, 0, 1 against 1, 0, 0, 1/2
    assert found["weighted recall, above chain"] == (0.875, "> 0.625", True)
    assert found["recall of the three rarest intents, above 1.25 times focal"][2]
    assert found["one prediction"] == (2.5, "<= 3 ms", True)
    assert found["tuning for one user"] == (70, "<= 60 s", False)  # by the worst seed


def test_equal_is_not_above() -> None:
    found = goals(compared(("plain", "baseline", BETTER), ("new", "ours", BETTER)))

    assert not any(met for name, (_, _, met) in found.items() if "above" in name)


def test_references_and_ablations_need_not_be_beaten() -> None:
    found = goals(compared(*ARMS, ("teacher", "reference", TRUTH), ("without", "ablation", TRUTH)))

    assert found["macro recall, above chain"][2]


@pytest.mark.parametrize("roles", [(), ("ours", "ours")])
def test_goals_are_about_one_arm(roles: tuple[Role, ...]) -> None:
    comparison = compared(*[(f"arm {n}", role, PLAIN) for n, role in enumerate(roles)])
    with pytest.raises(ValueError, match=f"{len(roles)} arms have the role 'ours'"):
        filled(comparison, [], {})


def test_an_arm_comes_once_for_a_seed() -> None:
    with pytest.raises(ValueError, match=r"arm 'new' has been added twice for seed 1"):
        compared(*ARMS).add(drawn(1), "new", "ours", surely(PLAIN), Costs())


def test_unlearning_is_judged_by_the_worst_seed() -> None:
    good = Unlearning(0, 0.25, (0.4, 0.2, 0.6), (0.5, 0.49, 0.55), 0)
    bad = Unlearning(1, 0.25, (0.4, 0.3, 0.3), (0.5, 0.47, 0.55), 1)

    one, both = goals(compared(*ARMS), good), goals(compared(*ARMS), good, bad)

    names = [name for name in one if "unlearning" in name or "tuning:" in name]
    assert len(names) == 4
    assert [one[name][2] for name in names] == [True] * 4
    assert [both[name][2] for name in names] == [False] * 4
    assert both["unlearning: macro F1 lost of the rest"][0] == pytest.approx(3)


def test_unlearning_that_gives_no_number_misses_the_goal() -> None:
    lost = Unlearning(0, 0.25, (0.4, math.nan, 0.6), (0.5, math.nan, 0.55), 0)

    found = goals(compared(*ARMS), Unlearning(1, 0.25, (0.4, 0.2, 0.6), (0.5, 0.5, 0.5), 0), lost)

    assert not found["unlearning: recall of what is forgotten"][2]
    assert not found["unlearning: macro F1 lost of the rest"][2]


def test_a_spread_needs_two_values() -> None:
    assert plus_minus([]) == "-"
    assert plus_minus([0.25]) == "0.2500"
    assert plus_minus([0.2, 0.4]) == "0.3000 ± 0.1414"


CURVE = Curve("Data <of> one", "events", "Rec_m", {"new": [(10, 0.2, 0.01), (30, 0.3, 0.02)], "chain": [(10, 0.1, 0)]})


def test_the_page_says_what_was_run_and_what_came_out(tmp_path: Path) -> None:
    data = tmp_path / "secret place" / "people.json"
    data.parent.mkdir()
    data.write_bytes(b"abc")
    comparison = compared(*ARMS)
    report = filled(comparison, [Unlearning(0, 0.25, (0.4, 0.2, 0.6), (0.5, 0.49, 0.55), 0)], {"rate": 0.1})

    page.write_page(tmp_path / "intent-results.md", report, comparison, data, [CURVE])

    text = (tmp_path / "intent-results.md").read_text()
    assert "secret place" not in text
    # The SHA-256 of "abc", as FIPS 180-2 gives it.
    assert "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" in text
    assert "| seeds | 0, 1 |" in text
    assert "| new (ours) |" in text
    assert "| tuning for one user | 70 | <= 60 s | **no** |" in text
    assert "| Rec_m | chain | 1 | +0.4375 |" in text
    assert "0.4000 → 0.2000 → 0.6000" in text
    assert "![Data <of> one](intent-results-1.svg)" in text
    assert "| 30 | 0.3000 ± 0.0200 | - |" in text
    assert all(line.count("|") == 7 for line in text.splitlines() if line.startswith("| Rec_m | chain"))
    ET.fromstring((tmp_path / "intent-results-1.svg").read_text())


def test_the_hash_is_that_of_the_configuration() -> None:
    assert page.config_hash({"a": 1, "b": 2}) == page.config_hash({"b": 2, "a": 1})
    assert page.config_hash({"a": 1}) != page.config_hash({"a": 2})


def test_the_file_beside_it_has_every_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_report, "OUTPUT", tmp_path)
    comparison = compared(*ARMS)
    # A user without rare intents: their recall is no number, for which JSON has no word.
    nobody = Protocol(2, drawn().population, {"a": Split([], [], [event(0, 0)])}, INTENTS)
    comparison.add(nobody, "new", "ours", surely((0,)), Costs())

    filled(comparison, [], {}).finish()

    found = json.loads((tmp_path / "intent.json").read_text(), parse_constant=pytest.fail)
    assert [(r["arm"], r["seed"]) for r in found["results"]][-2:] == [("new", 1), ("new", 2)]
    assert found["results"][-1]["numbers"]["rarest"] is None
    assert len(found["rows"]) == 4


def test_points_lie_where_their_numbers_are() -> None:
    picture = ET.fromstring(plot(CURVE))

    circles = [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in picture.iter() if c.tag.endswith("circle")]
    assert len(circles) == 3
    (x10, y02), (x30, y03), (x10_too, y01) = circles
    assert x10 == x10_too < x30
    assert y03 < y02 < y01  # upwards is less
    assert y01 - y02 == pytest.approx(y02 - y03, abs=0.11)
    assert "Data <of> one" in [t.text for t in picture.iter()]


def test_nothing_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="has no points to draw"):
        plot(Curve("empty", "x", "y", {"new": []}))
