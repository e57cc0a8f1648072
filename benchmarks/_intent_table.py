"""The report of `make bench-intent`: every arm under every seed, the goals, and the page docs/intent-results.md.

The idea: an arm hands in its probabilities and what it costs; everything that is said of it is computed here, in the
same way for all. The invariants: numbers are means over seeds with their standard deviation; goals compare means, but
what must hold always is judged by the worst seed; a goal that is missed is shown as missed.
What this does not do: run an arm, choose its settings, or draw the curves (_intent_plot.py).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from _intent_data import Protocol
from _report import Goal, Report

from edgepd.intent.metrics import Interval, Metric, paired_bootstrap, per_user, rarest, recall_of, score, spread

Array: TypeAlias = npt.NDArray[np.floating]
Role: TypeAlias = Literal["ours", "baseline", "imbalance", "markov", "reference", "ablation"]

BASELINES: tuple[Role, ...] = ("baseline", "imbalance", "markov")  # a reference or an ablation need not be beaten
RAREST_GAIN = 1.25
INFERENCE_MS, TUNING_S, RETAINED_POINTS = 3.0, 60.0, 2.0
COMPARED: dict[Metric, str] = {
    "recall_macro": "Rec_m",
    "ndcg_3": "N@3",
    "ndcg_5": "N@5",
    "recall_weighted": "Rec_w",
}


@dataclass(frozen=True)
class Costs:
    """What an arm costs; None where it was not measured or does not apply."""

    parameters: int | None = None
    inference_ms: float | None = None  # one prediction
    train_s: float | None = None  # on the population
    tune_s: float | None = None  # on one user
    peak_mib: float | None = None  # of a process that tunes and does nothing else


@dataclass(frozen=True)
class Result:
    """One arm under one seed."""

    arm: str
    role: Role
    seed: int
    numbers: dict[str, float]  # by the names that the tables have
    rarest: dict[str, float]  # intent -> recall; not a number if it does not occur in the test
    costs: Costs


@dataclass(frozen=True)
class Difference:
    """Ours less the best baseline in one metric, under one seed."""

    metric: str
    baseline: str
    seed: int
    interval: Interval


@dataclass(frozen=True)
class Unlearning:
    """What unlearning did under one seed: recall of what was to be forgotten, and macro F1 of what was not.

    Each before it, after it, and after individual tuning; what is not a number counts as the worst there can be.
    `diverged` counts the users whose loss was not finite.
    """

    seed: int
    chance: float
    forgotten: tuple[float, float, float]
    retained: tuple[float, float, float]
    diverged: int

    def __post_init__(self) -> None:
        """Make a number of what is none: nothing forgotten, nothing retained, nothing learned again."""
        before, after, tuned = self.forgotten
        worst = (_or(before, 1.0), _or(after, 1.0), _or(tuned, 0.0))
        object.__setattr__(self, "forgotten", worst)
        first, second, third = self.retained
        object.__setattr__(self, "retained", (_or(first, 1.0), _or(second, 0.0), _or(third, 0.0)))


def _or(value: float, worst: float) -> float:
    return worst if math.isnan(value) else value


@dataclass
class Comparison:
    """Collects the arms."""

    results: list[Result] = field(default_factory=list)
    _given: dict[tuple[str, int], tuple[Protocol, Array]] = field(default_factory=dict)

    def add(self, drawn: Protocol, arm: str, role: Role, probabilities: Array, costs: Costs) -> Result:
        """Judge one arm; probabilities are (N, C), in the order of `drawn.truth()`.

        Raises ValueError if this arm is there already under this seed, or if the probabilities do not fit.
        """
        if (arm, drawn.seed) in self._given:
            raise ValueError(f"arm '{arm}' has been added twice for seed {drawn.seed}; give each variant its own name")
        truth, users = drawn.truth()
        scores, people = score(truth, probabilities), per_user(truth, probabilities, users)
        rare = rarest(drawn.population_counts)
        numbers = {
            "Prec_w": scores.precision_weighted,
            "Rec_w": scores.recall_weighted,
            "Prec_m": scores.precision_macro,
            "Rec_m": scores.recall_macro,
            "F1_m": scores.f1_macro,
            "N@3": scores.ndcg_3,
            "N@5": scores.ndcg_5,
            "rarest": recall_of(scores, rare),
            "user mean": people.mean,
            "user sd": people.sd,
            "user minimum": people.minimum,
            "worst decile": people.worst_decile,
        }
        recalls = {drawn.intents[number]: scores.class_recall[number] for number in rare}
        self._given[arm, drawn.seed] = drawn, probabilities
        self.results.append(Result(arm, role, drawn.seed, numbers, recalls, costs))
        return self.results[-1]

    @property
    def arms(self) -> list[str]:
        """Name the arms in the order in which they came."""
        return list(dict.fromkeys(result.arm for result in self.results))

    @property
    def ours(self) -> str:
        """Name the arm that goals are about. Raises ValueError unless there is exactly one."""
        names = self.named("ours")
        if len(names) != 1:
            raise ValueError(f"{len(names)} arms have the role 'ours' ({', '.join(names)}); goals are about one")
        return names[0]

    @property
    def compared(self) -> list[str]:
        """Name ours and the baselines."""
        return self.named("ours", *BASELINES)

    def titled(self, arm: str) -> str:
        """Return an arm's name, with its role unless it is a plain baseline."""
        role = next(result.role for result in self.results if result.arm == arm)
        return arm if role in BASELINES else f"{arm} ({role})"

    def named(self, *roles: Role) -> list[str]:
        """Name the arms that have one of these roles."""
        return list(dict.fromkeys(result.arm for result in self.results if result.role in roles))

    def numbers(self, arm: str, name: str) -> list[float]:
        """Return one of an arm's numbers under each seed."""
        return self._values(arm, lambda result: result.numbers[name])

    def recalls(self, arm: str, intent: str) -> list[float]:
        """Return an arm's recall of an intent under the seeds for which it is one of the rarest."""
        return self._values(arm, lambda result: result.rarest.get(intent))

    def costs(self, arm: str, name: str) -> list[float]:
        """Return what an arm costs under each seed; `name` is a field of Costs."""
        return self._values(arm, lambda result: dataclasses.asdict(result.costs)[name])

    def _values(self, arm: str, of: Callable[[Result], float | None]) -> list[float]:
        """Return something of an arm under each seed, without what was not measured."""
        found = (of(result) for result in self.results if result.arm == arm)
        return [value for value in found if value is not None and not math.isnan(value)]

    def mean(self, arm: str, name: str) -> float:
        """Return the mean over seeds of one of an arm's numbers; not a number if there is none."""
        values = self.numbers(arm, name)
        return spread(values)[0] if values else math.nan

    def best(self, arms: Sequence[str], name: str) -> str | None:
        """Name the arm with the highest mean; None if there is no arm with one."""
        known = [arm for arm in arms if not math.isnan(self.mean(arm, name))]
        return max(known, key=lambda arm: self.mean(arm, name), default=None)

    def differences(self, rounds: int = 1000) -> list[Difference]:
        """Return ours less the best baseline of each metric, with a 95 % interval over users, for each seed."""
        found = []
        for metric, name in COMPARED.items():
            baseline = self.best(self.named(*BASELINES), name)
            for seed in dict.fromkeys(seed for arm, seed in self._given if arm == self.ours):
                if baseline is None or (baseline, seed) not in self._given:
                    continue
                drawn, ours = self._given[self.ours, seed]
                truth, users = drawn.truth()
                theirs = self._given[baseline, seed][1]
                interval = paired_bootstrap(truth, ours, theirs, users, metric, seed=seed, rounds=rounds)
                found.append(Difference(name, baseline, seed, interval))
        return found


@dataclass
class IntentReport(Report):
    """The usual report; its file has the numbers of every seed too."""

    results: list[dict[str, Any]] = field(default_factory=list)
    unlearning: list[Unlearning] = field(default_factory=list)

    def above(self, name: str, value: float, other: str, limit: float) -> None:
        """Record a goal that is met above what another arm has."""
        self.goals.append(Goal(f"{name}, above {other}", value, f"> {limit:.4g}", value > limit))


def filled(comparison: Comparison, unlearning: Sequence[Unlearning], config: dict[str, Any]) -> IntentReport:
    """Return the report with rows, results and goals."""
    report = IntentReport("intent", config, unlearning=list(unlearning))
    report.rows = [_row(comparison, arm) for arm in comparison.arms]
    report.results = [_without_nan(dataclasses.asdict(result)) for result in comparison.results]
    _judge_arms(report, comparison)
    _judge_costs(report, comparison)
    _judge_unlearning(report, unlearning)
    return report


def _row(comparison: Comparison, arm: str) -> dict[str, Any]:
    names = ("Prec_w", "Rec_w", "Prec_m", "Rec_m", "N@3", "N@5", "rarest", "worst decile")
    row: dict[str, Any] = {"arm": arm} | {name: plus_minus(comparison.numbers(arm, name)) for name in names}
    return row | {
        "ms": _mean_or_dash(comparison.costs(arm, "inference_ms")),
        "tuning s": _mean_or_dash(comparison.costs(arm, "tune_s")),
    }


def plus_minus(values: Sequence[float]) -> str:
    """Return mean and sample standard deviation; a dash for no value, the mean alone for one."""
    if not values:
        return "-"
    mean, sd = spread(values)
    return f"{mean:.4f} ± {sd:.4f}" if len(values) > 1 else f"{mean:.4f}"


def _mean_or_dash(values: Sequence[float]) -> float | str:
    return spread(values)[0] if values else "-"


def _without_nan(value: Any) -> Any:
    """Return what JSON has a number for: None for what is not a number."""
    match value:
        case dict():
            return {key: _without_nan(part) for key, part in value.items()}
        case float() if math.isnan(value):
            return None
    return value


def _judge_arms(report: IntentReport, comparison: Comparison) -> None:
    """Goals a to d: ours against the best of the others, by the mean over seeds."""
    ours = comparison.ours
    against = (
        ("macro recall", "Rec_m", BASELINES, 1.0),
        ("N@3", "N@3", BASELINES, 1.0),
        ("N@5", "N@5", BASELINES, 1.0),
        ("weighted recall", "Rec_w", ("markov",), 1.0),
        ("recall of the three rarest intents", "rarest", ("imbalance",), RAREST_GAIN),
    )
    for title, name, roles, factor in against:
        other = comparison.best(comparison.named(*roles), name)
        if other is not None:
            times = "" if factor == 1 else f"{factor:g} times "
            report.above(title, comparison.mean(ours, name), times + other, factor * comparison.mean(other, name))


def _judge_costs(report: IntentReport, comparison: Comparison) -> None:
    """Goals e and f, by the worst seed."""
    inference = comparison.costs(comparison.ours, "inference_ms")
    tuning = comparison.costs(comparison.ours, "tune_s")
    if inference:
        report.at_most("one prediction", max(inference), INFERENCE_MS, "ms")
    if tuning:
        report.at_most("tuning for one user", max(tuning), TUNING_S, "s")


def _judge_unlearning(report: IntentReport, runs: Sequence[Unlearning]) -> None:
    """Goal g, by the worst seed."""
    if not runs:
        return
    worst = max(runs, key=lambda run: run.forgotten[1] - run.chance)
    report.at_most("users for whom unlearning diverged", sum(run.diverged for run in runs), 0, "")
    report.at_most("unlearning: recall of what is forgotten", worst.forgotten[1], worst.chance, "(chance)")
    lost = max(100 * (run.retained[0] - run.retained[1]) for run in runs)
    report.at_most("unlearning: macro F1 lost of the rest", lost, RETAINED_POINTS, "points")
    least = min(runs, key=lambda run: run.forgotten[2] - run.forgotten[0])
    report.at_least(
        "individual tuning: recall of what was forgotten", least.forgotten[2], least.forgotten[0], "(before)"
    )
