"""`make bench-intent DATA=...`: how well the next intent is predicted, by PITuning, by ours, and by everything else.

Population and individual users are drawn by seed; each individual's events are cut by time. The table has every arm
with its spread over seeds; the page docs/intent-results.md adds costs, rarest intents, worst users and differences.
QUICK=1 (or --quick): one seed, small models, few users, no page. Two processes, one core each.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from _intent_data import SHARES, Protocol, foursquare, protocol
from _intent_page import write_page
from _intent_plot import Curve
from _intent_table import Comparison, IntentReport, Unlearning, filled
from _intent_tasks import Done, Sizes, Task, carry_out, measure_on_device
from _report import model_path, quick

from edgepd.intent.individual import Tuning
from edgepd.intent.metrics import spread

PAGE = Path("docs/intent-results.md")
SEEDS = (0, 1, 2)
USERS, QUICK_USERS = 120, 40
FULL = Sizes(gguf_epochs=1)
QUICK_SIZES = Sizes(teacher_layers=4, epochs=2, scorer_epochs=2)
SIDE_BY_SIDE = 2
CURVES = {
    "data": ("Macro recall by the share of a user's data", "share of train and validation events"),
    "length": ("Macro recall by the length of the history", "events looked at"),
}


def main() -> None:
    """Run all tasks, print the table, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="USA_Foursqaure.json of tsinghua-fib-lab/SAND")
    parser.add_argument("--quick", action="store_true", help="about five minutes")
    options = parser.parse_args()
    fast = options.quick or quick()
    seeds, sizes, users = ((0,), QUICK_SIZES, QUICK_USERS) if fast else (SEEDS, FULL, USERS)
    foursquare(options.data)  # so that a wrong file is told at once
    model = None if fast else model_path()
    # The longer part of each seed first.
    tasks = [Task(part, seed, options.data, sizes, users, model) for seed in seeds for part in ("ours", "others")]
    began = time.monotonic()
    found = run(tasks)
    comparison, unlearning = collected(found, {task.seed: task for task in tasks})
    config: dict[str, Any] = {
        "seeds": list(seeds),
        "individual users": users,
        "shares": list(SHARES),
        "sizes": asdict(sizes),
        "tuning": asdict(Tuning()),
        "correction": {str(done.seed): done.chosen["correction"] for done in found if done.chosen},
    }
    report: IntentReport = filled(comparison, unlearning, config)
    report.finish()
    if not fast:
        write_page(PAGE, report, comparison, options.data, curves(found))
    print(f"took {(time.monotonic() - began) / 60:.1f} minutes")


def run(tasks: list[Task]) -> list[Done]:
    """Carry out the tasks side by side, each with one thread, and say when each is done."""
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    found = []
    with ProcessPoolExecutor(SIDE_BY_SIDE, mp_context=context) as pool:
        for task, done in zip(tasks, pool.map(carry_out, tasks), strict=True):
            print(f"seed {task.seed}, {task.part}: {len(done.arms)} arms", flush=True)
            found.append(done)
    return found


def collected(found: list[Done], tasks: dict[int, Task]) -> tuple[Comparison, list[Unlearning]]:
    """Judge all arms: ours first, then the others."""
    from_data = {seed: protocol_of(task) for seed, task in tasks.items()}
    comparison = Comparison()
    for done in sorted(found, key=lambda d: not d.chosen):
        measure_on_device(done, from_data[done.seed])
        for name, role, probabilities, costs in done.arms:
            comparison.add(from_data[done.seed], name, role, probabilities, costs)
    return comparison, [each for done in found for each in done.unlearning]


def protocol_of(task: Task) -> Protocol:
    """Return the draw of a task's seed."""
    return protocol(foursquare(task.data), task.seed, task.users)


def curves(found: list[Done]) -> list[Curve]:
    """Return the curves of sensitivity, with their spread over seeds."""
    drawn = []
    for name, (title, x_label) in CURVES.items():
        lines: dict[str, list[tuple[float, float, float]]] = {}
        values: dict[tuple[str, float], list[float]] = {}
        for done in found:
            for curve, line, x, value in done.points:
                if curve == name:
                    values.setdefault((line, x), []).append(value)
        for (line, x), each in sorted(values.items(), key=lambda item: (item[0][0], item[0][1])):
            mean, sd = spread(each)
            lines.setdefault(line, []).append((x, mean, sd))
        drawn.append(Curve(title, x_label, "macro recall", lines))
    return drawn


if __name__ == "__main__":
    main()
