"""`make student DATA=...`: train the small model that ships with edgepd, the same bytes each time on the same machine.

Every window has its intents in random slots, and the scorer sees no names at all, so that what is learned holds for any
names: when people come back to what they did, at which hours and after what. The users of `HELD_OUT` are not learned
from; what is printed was measured on them. Events and contexts get rows of zeros, which tuning on the device fills.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from _intent_data import foursquare
from _intent_page import sha256

from edgepd.intent.batches import windows_of
from edgepd.intent.encode import Encoded, encode
from edgepd.intent.markov import UserMarkovByHour
from edgepd.intent.metrics import score
from edgepd.intent.population import PopulationTraining, train_population
from edgepd.intent.predictor import Predictor
from edgepd.intent.schema import Event, Names, Vocabulary
from edgepd.intent.scorer_training import train_scorer
from edgepd.intent.shape import Shape
from edgepd.intent.shipping import shipped_student
from edgepd.intent.student import Student
from edgepd.intent.weights_file import Floats

HELD_OUT = 400  # users
ROOMS = {"intents": 32, "events": 64, "contexts": 16}
TRAINED = Shape(ROOMS["intents"], ROOMS["intents"], 0, width=16, layers=4, window=32, open_names=True)
TRAINING = PopulationTraining(epochs=14, learning_rate=1e-3, reconstruction=0.2, renamed=True, seed=0)
DROPOUT = 0.1
NEWEST = 0.3  # share of a held-out user's events that are predicted
SOURCE = "github.com/tsinghua-fib-lab/SAND @ cbb62abb8f792403834ad24df5fb30d8dc1808d9, dataset/USA_Foursqaure.json, MIT"


def main() -> None:
    """Train, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="USA_Foursqaure.json")
    parser.add_argument("--epochs", type=int, default=TRAINING.epochs)
    parser.add_argument("--output", type=Path, default=shipped_student())
    options = parser.parse_args()
    torch.set_num_threads(1)  # so that sums are made in the same order on any machine
    users = list(foursquare(options.data).values())
    random.Random(0).shuffle(users)  # noqa: S311 - a split, not a secret
    held_out, learned = users[:HELD_OUT], users[HELD_OUT:]
    torch.manual_seed(TRAINING.seed)
    predictor = Predictor(TRAINED, dropout=DROPOUT)
    windows = [window for events in learned for window in windows_of(named(events), TRAINED.window)]
    training = replace(TRAINING, epochs=options.epochs)
    train_population(predictor, windows, training, on_epoch=lambda n, loss: print(f"{n + 1}: {loss:.4f}", flush=True))
    scorer = train_scorer(
        TRAINED, learned, Names(0), on_epoch=lambda n, loss: print(f"scorer {n + 1}: {loss:.4f}", flush=True)
    )
    provenance = {"data": SOURCE, "sha256": sha256(options.data), "epochs": options.epochs}
    student = shipped({**predictor.exported(), **scorer}, provenance)
    measure(student, [events for events in held_out if len(events) >= 10])
    student.save(options.output)
    print(f"{options.output.name}: {options.output.stat().st_size:,} bytes, SHA-256 {sha256(options.output)}")


def named(events: Sequence[Event]) -> Encoded:
    """Encode with a vocabulary of its own."""
    return encode(events, Vocabulary.empty(ROOMS["intents"], ROOMS["intents"], 0).learn(events))


def shipped(weights: dict[str, Floats], provenance: dict[str, object]) -> Student:
    """Return the student with room for events and contexts, all of whose rows are zeros."""
    shape = replace(TRAINED, events=ROOMS["events"], contexts=ROOMS["contexts"], offsets=True)
    weights["embed.event"] = np.zeros((shape.events + 1, shape.width), np.float32)
    weights["embed.context"] = np.repeat(weights["embed.context"][:1], shape.contexts + 1, axis=0)
    names = Vocabulary.empty(shape.events, shape.intents, shape.contexts)
    return Student(shape, weights, names, {}, provenance)


def measure(student: Student, people: Sequence[Sequence[Event]]) -> None:
    """Print how well the newest events of people are predicted: by counts, by either part, and by the student."""
    classes = sorted({event.intent for events in people for event in events})
    chain = UserMarkovByHour(online=True)
    found: dict[str, list[Mapping[str, float]]] = {"counts": [], "network": [], "scorer": [], "student": []}
    truth = []
    for events in people:
        start = round((1 - NEWEST) * len(events))
        for place, event in enumerate(events[start:], start=start):
            past, at, offset_s = events[:place], event.at, event.utc_offset_s
            truth.append(classes.index(event.intent))
            names = student.known(past)
            network = student.probabilities(past, at, offset_s, names).tolist()
            found["counts"].append(chain.probabilities(past, at, offset_s))
            found["network"].append(dict(zip(names.intents.names, network, strict=False)))  # free slots follow
            found["scorer"].append(student.scored(past, at, offset_s, names))
            found["student"].append(dict(student.ranked(past, at, offset_s)))
    for name, chances in found.items():
        scores = score(np.array(truth), np.array([[each.get(c, 0.0) for c in classes] for each in chances]))
        print(
            f"{name}: {len(truth)} events of {len(people)} people, recall {scores.recall_weighted:.4f} weighted, "
            f"{scores.recall_macro:.4f} macro, NDCG@3 {scores.ndcg_3:.4f}, @5 {scores.ndcg_5:.4f}"
        )


if __name__ == "__main__":
    main()
