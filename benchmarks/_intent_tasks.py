"""What `make bench-intent` computes for one seed, in two parts that can run side by side, each on one core.

`ours` trains teacher and student and tunes to each user, with the arms that start from the same student; `others` are
the counts, the trees, what is trained without a teacher or without a part, and what is as large as the served model.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from _intent_arms import (
    Biased,
    Made,
    focused,
    long_and_short,
    oversampled,
    partial,
    plain,
    retrieved,
    tuned_arm,
    unlearned,
    with_loss,
)
from _intent_data import Protocol, counted, foursquare, protocol
from _intent_device import longest, ranking_ms, tuned_in_a_child
from _intent_models import (
    Array,
    Data,
    Sizes,
    Trained,
    inference_ms,
    of_everybody,
    output_shares,
    scored_by,
    shares,
    train,
    train_large,
    truth_of_validation,
)
from _intent_table import Costs, Role, Unlearning
from _intent_trees import arms as trees

from edgepd.intent.blend import blended, corrected
from edgepd.intent.individual import Tuning
from edgepd.intent.markov import Chain, Majority, Markov1, Markov2, UserMajority, UserMarkov, UserMarkovByHour
from edgepd.intent.metrics import score
from edgepd.intent.network import Network
from edgepd.intent.predictor import Predictor
from edgepd.intent.scorer_training import ScorerTraining, train_scorer
from edgepd.intent.student import Student
from edgepd_quant.reader import GGUFFile

STRENGTHS = tuple(n / 20 for n in range(17))  # of the correction, tried on validation events
COST = 0.01  # of NDCG@3, that macro recall may cost
SHARES_OF_DATA = (0.25, 0.5, 1.0)
LENGTHS = (4, 8, 16, 32)
OURS = "ours: PITuning + scorer + correction"


@dataclass(frozen=True)
class Task:
    """One part of one seed."""

    part: str
    seed: int
    data: Path
    sizes: Sizes
    users: int
    model: Path | None  # of the served model; None leaves out what is as large
    seeds_of_more: tuple[int, ...] = (0,)  # under which what is as large, and further ablations, are trained too


@dataclass
class Done:
    """What came of a task; arms are (name, role, probabilities, costs)."""

    seed: int
    arms: list[tuple[str, Role, Array, Costs]] = field(default_factory=list)
    unlearning: list[Unlearning] = field(default_factory=list)
    points: list[tuple[str, str, float, float]] = field(default_factory=list)  # (curve, line, x, macro recall)
    chosen: dict[str, float] = field(default_factory=dict)
    student: Student | None = None  # ours, before it is tuned to anybody
    _began: float = field(default_factory=time.monotonic)

    def add(self, name: str, role: Role, probabilities: Array, costs: Costs) -> None:
        """Keep what an arm predicts, and say that it is done."""
        self.arms.append((name, role, probabilities, costs))
        print(f"seed {self.seed}: {name} after {time.monotonic() - self._began:.0f} s", flush=True)


def carry_out(task: Task) -> Done:
    """Compute one part on one core."""
    torch.set_num_threads(1)
    drawn = protocol(foursquare(task.data), task.seed, task.users)
    data, done = Data.of(drawn), Done(task.seed)
    (_ours if task.part == "ours" else _others)(task, data, done)
    return done


def _ours(task: Task, data: Data, done: Done) -> None:
    sizes, window = task.sizes, task.sizes.window
    teacher = train(data, sizes, layers=sizes.teacher_layers)
    student = train(data, sizes, teacher=teacher.predictor)
    base, tuning = student.predictor, Tuning()
    biased = Biased(
        shares(np.concatenate([e.target for e in data.population]), len(data.drawn.intents)),
        output_shares(base, data.windows(window), len(data.drawn.intents)),
    )
    costs = Costs(student.parameters, network_ms(base, data), teacher.seconds + student.seconds)
    costs_of_large = Costs(teacher.parameters, network_ms(teacher.predictor, data), teacher.seconds)

    def add(name: str, role: Role, made: Made, of: Costs = costs) -> None:
        done.add(name, role, made.probabilities, replace(of, tune_s=made.tune_s))

    pituning = tuned_arm(data, base, window, unlearned(tuning, window, biased))
    add("PITuning (paper, bounded)", "reference", pituning)
    untuned = of_everybody(data, lambda _person: base, window)
    done.add("- individual tuning", "ablation", untuned, costs)
    without = tuned_arm(data, base, window, plain(tuning, window))
    add("- unlearning", "ablation", without)
    _improved(task, data, done, base, biased, pituning)
    add("oversampling", "imbalance", tuned_arm(data, base, window, with_loss(tuning, window, oversampled)))
    add("focal loss", "imbalance", tuned_arm(data, base, window, with_loss(tuning, window, focused)))
    add("MPDA (retrieval)", "baseline", tuned_arm(data, base, window, retrieved(tuning, window, data)))
    add("LSAT (two LoRAs)", "baseline", tuned_arm(data, base, window, long_and_short(tuning, window)))
    large = teacher.predictor
    add("FP", "baseline", tuned_arm(data, large, window, plain(tuning, window)), costs_of_large)
    add("PP", "baseline", tuned_arm(data, large, window, partial(tuning, window)), costs_of_large)
    done.unlearning.append(_unlearning(data, base, biased, window, untuned, pituning.probabilities))
    _sensitivity(data, done, base, window)


def _improved(task: Task, data: Data, done: Done, base: Predictor, biased: Biased, pituning: Made) -> None:
    """Ours: the tuned student and the scorer in one, with the population's bias towards the frequent taken out.

    It is as strong as it can be at a cost of COST in NDCG@3 on validation events.
    """
    window, population = task.sizes.window, np.array(biased.population)
    began = time.monotonic()
    training = ScorerTraining(epochs=task.sizes.scorer_epochs, seed=data.drawn.seed)
    people = list(data.drawn.population.values())
    scorer = train_scorer(base.shape, people, data.names.intents, training)
    scorer_costs = Costs(sum(each.size for each in scorer.values()), train_s=time.monotonic() - began)
    early = tuned_arm(data, base, window, unlearned(Tuning(), window, biased, whole=False), validation=True)
    both = blended(early.probabilities, scored_by(data, scorer, validation=True))
    truth = truth_of_validation(data)

    least = score(truth, both).ndcg_3 - COST
    strength = max(s for s in STRENGTHS if score(truth, corrected(both, population, s)).ndcg_3 >= least)
    done.chosen["correction"] = strength
    scores = scored_by(data, scorer)
    together = blended(pituning.probabilities, scores)
    done.student = Student(base.shape, {**base.exported(), **scorer}, data.names, {}, {})
    network = done.arms[0][3]
    costs = Costs(
        (network.parameters or 0) + (scorer_costs.parameters or 0),
        train_s=(network.train_s or 0.0) + (scorer_costs.train_s or 0.0),
    )
    done.add(OURS, "ours", corrected(together, population, strength), costs)
    done.add("- correction", "ablation", together, costs)
    done.add("- scorer", "ablation", corrected(pituning.probabilities, population, strength), done.arms[0][3])
    done.add("- network", "ablation", corrected(scores, population, strength), scorer_costs)
    done.add("scorer alone", "ablation", scores, scorer_costs)
    fitted = UserMarkovByHour(online=True).fit(people)
    counts = blended(pituning.probabilities, counted(data.drawn, fitted), 0.5)
    done.add("counts instead of the scorer", "ablation", corrected(counts, population, strength), done.arms[0][3])


def measure_on_device(done: Done, drawn: Protocol) -> None:
    """Measure a ranking and a tuning of ours as on a device, with the longest history. Nothing else should run."""
    if done.student is None:
        return
    events = longest(drawn)
    seconds, peak = tuned_in_a_child(done.student, events)
    milliseconds = ranking_ms(done.student, events)
    for place, (name, role, probabilities, costs) in enumerate(done.arms):
        if name == OURS:
            costs = replace(costs, inference_ms=milliseconds, tune_s=seconds, peak_mib=peak)
            done.arms[place] = (name, role, probabilities, costs)


def _unlearning(data: Data, base: Predictor, biased: Biased, window: int, before: Array, tuned: Array) -> Unlearning:
    """Measure on test events what unlearning did to the intents to be forgotten, and to the others."""
    tuning = Tuning()
    if tuning.unlearning is None:
        raise ValueError("unlearning is switched off")
    threshold = tuning.unlearning.threshold
    after = tuned_arm(data, base, window, unlearned(tuning, window, biased, tune=False)).probabilities
    truth, _users = data.drawn.truth()
    forget = [biased.forget(person, threshold) for person in data.people]
    pairs = list(zip(data.people, forget, strict=True))
    gone = np.array([t in f for person, f in pairs for t in person.encoded.target[person.test :]])
    concerned = np.array([bool(f) for person, f in pairs for _ in person.encoded.target[person.test :]])
    rest = concerned & ~gone
    stages = (before, after, tuned)
    recalls = [float((p[gone].argmax(1) == truth[gone]).mean()) for p in stages]
    f1 = [score(truth[rest], p[rest]).f1_macro for p in stages]
    diverged = sum(not np.isfinite(p).all() for p in stages)
    classes = len(data.drawn.intents)
    return Unlearning(
        data.drawn.seed, 1 / classes, (recalls[0], recalls[1], recalls[2]), (f1[0], f1[1], f1[2]), diverged
    )


def _sensitivity(data: Data, done: Done, base: Predictor, window: int) -> None:
    """Macro recall by how much of a user's data is learned from, and by how many events are looked at."""
    truth, _users = data.drawn.truth()
    for share in SHARES_OF_DATA:
        made = tuned_arm(data, base, window, plain(Tuning(), window, share=share))
        done.points.append(("data", "individual tuning", share, score(truth, made.probabilities).recall_macro))
    for length in LENGTHS:
        found = of_everybody(data, lambda _person: base, length)
        done.points.append(("length", "student, not tuned", length, score(truth, found).recall_macro))


def _others(task: Task, data: Data, done: Done) -> None:
    for name, role, fitted in chains(data.drawn):
        done.add(name, role, counted(data.drawn, fitted), Costs())
    drawn = data.drawn
    for arm in trees(drawn.population, drawn.individual, drawn.intents, drawn.seed):
        role: Role = "imbalance" if "balanced" in arm.name else "baseline"
        costs = Costs(arm.parameters, arm.inference_ms, arm.train_s, arm.tune_s)
        done.add(arm.name, role, arm.probabilities, costs)
    sizes = task.sizes
    more = task.model is not None and task.seed in task.seeds_of_more
    for name, made in trained_alone(data, sizes, more=more):
        tuned = tuned_arm(data, made.predictor, sizes.window, plain(Tuning(), sizes.window))
        kind: Role = "baseline" if name.startswith("Transformer") else "ablation"
        costs = Costs(made.parameters, train_s=made.seconds, tune_s=tuned.tune_s)
        done.add(name, kind, tuned.probabilities, costs)
    if more:
        _large(task, data, done)


def trained_alone(data: Data, sizes: Sizes, *, more: bool) -> Iterator[tuple[str, Trained]]:
    """Yield what is trained without a teacher: the student's shape, and that less one part each.

    With `more` also what the paper does not have.
    """
    yield "Transformer-S, tuned", train(data, sizes)
    yield "Transformer-S - intent attention, tuned", train(data, sizes, attention=False)
    yield "Transformer-S - reconstruction, tuned", train(data, sizes, reconstruction=0.0)
    if not more:
        return
    yield "Transformer-S, reconstruction as in the paper, tuned", train(data, sizes, reconstruction=1.0)
    yield "Transformer-S - moment, tuned", train(data, sizes, moment=False)


def _large(task: Task, data: Data, done: Done) -> None:
    """Blocks as large as the served model's, with its weights and with random ones; not tuned to users."""
    if task.model is None:
        raise ValueError("there is no model")
    with GGUFFile.open(task.model) as model:
        for name, pretrained in (("Transformer-L, random", "none"), ("served model's blocks, LoRA", "lora")):
            made = train_large(data, task.sizes, model, pretrained=pretrained)
            found = of_everybody(data, lambda _person, p=made.predictor: p, task.sizes.window)  # type: ignore[misc]
            role: Role = "baseline" if pretrained == "none" else "reference"
            done.add(name, role, found, Costs(made.parameters, train_s=made.seconds))


def chains(drawn: Protocol) -> Iterator[tuple[str, Role, Chain]]:
    """Yield the arms of counts, fitted on the population."""
    population = list(drawn.population.values())
    kinds: Sequence[tuple[str, Role, Chain]] = (
        ("majority", "reference", Majority()),
        ("user majority", "baseline", UserMajority(online=True)),
        ("Markov 1", "baseline", Markov1()),
        ("Markov 2", "baseline", Markov2()),
        ("user-adaptive Markov", "markov", UserMarkov(online=True)),
        ("user-adaptive Markov by hour", "markov", UserMarkovByHour(online=True)),
    )
    for name, role, chain in kinds:
        yield name, role, chain.fit(population)


def network_ms(predictor: Predictor, data: Data) -> float:
    """Return the time of one pass of the network alone: numpy, a full window."""
    network, window = Network(predictor.shape, predictor.exported()), predictor.shape.window
    person = max(data.people, key=lambda each: len(each.encoded))
    places = person.encoded.part(0, window)
    return inference_ms(lambda: network.last_logits(places))
