"""`make bench-study`: which kind of delta, rank, learning rate and number of epochs suit people's mail best.

For each of some writers of the corpus that EDGEPD_AESLC names: train on their first mails, measure nats per token on
the next ones after each epoch, for each configuration. A configuration is written as `scale:r8:lr1.1e-2:b32`; behind
the kind may stand, in any order, r (rank), lr (peak learning rate), b (weights that share a number; without it the
format's own block), e (epochs, if other than --epochs), a (alpha, else twice the rank), s (seed), and `const` (a
constant rate after the warm-up). Without `const` the rate falls in a cosine to zero at the end of the last epoch, so
figures after an earlier epoch are not those of a run which was meant to end there; the table names the schedule and
its length, as in `cosine 4`.
Results are appended to build/bench/study.jsonl as they come, and what is there is not computed again.

    make bench-study ARGS='--users 12 --epochs 3 --configs scale:r8:lr1.1e-2,lora:r8:lr1.75e-3'
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _mail import HELD_OUT, TRAIN, Writer, corpus_path, writers
from _ours import fit
from _report import OUTPUT, Report, model_path
from _trainers import THREADS

from edgepd.adapt.decoder import Decoder
from edgepd.adapt.delta import Delta, VectorDelta
from edgepd.adapt.examples import Encoded
from edgepd.adapt.hyperparameters import TrainConfig
from edgepd_quant.reader import GGUFFile

RESULTS = OUTPUT / "study.jsonl"
BATCH = 4
CONFIGS = (
    *("lora:r8:lr1e-3", "lora:r8:lr1.75e-3", "lora:r8:lr3e-3", "lora:r4:lr1.75e-3", "lora:r16:lr1.75e-3"),
    *("scale:r8:lr6e-3", "scale:r8:lr1.1e-2", "scale:r8:lr2e-2", "scale:r4:lr1.1e-2", "scale:r16:lr1.1e-2"),
    *("scale:r8:lr1.1e-2:b192", "scale:r8:lr2e-2:b192", "scale:r8:lr4e-2:b192", "scale:r16:lr2e-2:b192"),
    *("shift:r8:lr5e-4", "shift:r8:lr1e-3", "shift:r8:lr2e-3"),
    *("gain:lr5e-3", "gain:lr1e-2", "gain:lr2e-2"),
)


@dataclass(frozen=True)
class Configuration:
    """What is varied."""

    kind: str
    rank: int
    learning_rate: float
    epochs: int
    alpha: float
    block_size: int | None = None
    seed: int = 0
    constant: bool = False

    @classmethod
    def parse(cls, text: str, epochs: int) -> Configuration:
        """Read `kind:part:part`. Raises ValueError for what is not understood."""
        kind, *parts = text.split(":")
        given: dict[str, str] = {}
        for part in parts:
            match = re.fullmatch(r"(const)|(lr|r|b|e|a|s)([0-9.e+-]+)", part)
            if match is None:
                raise ValueError(
                    f"configuration '{text}': '{part}' is none of r, lr, b, e, a, s with a number, or const"
                )
            given[match[1] or match[2]] = match[3] or ""
        if "lr" not in given:
            raise ValueError(f"configuration '{text}' has no learning rate; add one, as in '{text}:lr1e-3'")
        rank = int(given.get("r", 8))
        return cls(
            kind=kind,
            rank=rank,
            learning_rate=float(given["lr"]),
            epochs=int(given.get("e", epochs)),
            alpha=float(given.get("a", 2 * rank)),
            block_size=int(given["b"]) if "b" in given else None,
            seed=int(given.get("s", 0)),
            constant="const" in given,
        )

    def __str__(self) -> str:
        """The same whatever order it was written in."""
        rank = "" if self.kind == "gain" else f":r{self.rank}"
        alpha = f":a{self.alpha:g}" if self.kind == "lora" and self.alpha != 2 * self.rank else ""
        block = f":b{self.block_size}" if self.block_size else ""
        seed = f":s{self.seed}" if self.seed else ""
        schedule = f"{'constant' if self.constant else 'cosine'} {self.epochs}"
        return f"{self.kind}{rank}:lr{self.learning_rate:g}{block}{alpha}{seed} {schedule}"


class StudyDecoder(Decoder):
    """A decoder whose deltas may be coarser than the blocks of the file."""

    block_size: int | None = None

    def adapt(self, kind: Any, **given: Any) -> list[Delta | VectorDelta]:
        """As usual, but with the size of block that is wanted, of which the loop knows nothing."""
        return super().adapt(kind, **given, block_size=self.block_size)


class Quiet:
    """A run of the study reports when it is over."""

    def on_step(self, step: int, total: int, loss: float, tokens_per_second: float) -> None:
        """Nothing."""

    def on_eval(self, epoch: int, held_out_loss: float) -> None:
        """Nothing."""


def main() -> None:
    """Compute what is missing, then show everything that was asked for."""
    given = arguments()
    if corpus_path() is None:
        print("EDGEPD_AESLC names no corpus, so this studies made-up mails, which says little about people")
    people = writers(given.model, given.users, given.train, given.held_out)
    torch.set_num_threads(given.threads)
    with GGUFFile.open(given.model) as file:
        decoder = StudyDecoder(file)
        decoder.arrange(residency="fp32")  # many runs on one model: it is dequantised once
        found = study(decoder, people, given.configs, file.sha256()[:12])
    shape = {"users": [w.name for w in people], "mails": f"{given.train} + {given.held_out}", "model": given.model.name}
    report = Report("study", shape)
    report.rows = list(table(found))
    report.finish()


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure kinds of delta and hyper-parameters on people's mail.")
    parser.add_argument("--configs", default=",".join(CONFIGS), help="configurations, separated by commas")
    parser.add_argument("--users", type=int, default=10, help="number of writers")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--train", type=int, default=TRAIN, help="mails of each writer to train on")
    parser.add_argument("--held-out", type=int, default=HELD_OUT, help="mails of each writer to measure on")
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--model", type=Path, default=None, help="a GGUF file; else the default model")
    given = parser.parse_args()
    given.model = given.model or model_path()
    try:
        given.configs = [Configuration.parse(text, given.epochs) for text in given.configs.split(",")]
    except ValueError as error:
        parser.error(str(error))
    return given


def study(
    decoder: StudyDecoder, people: Sequence[Writer], configurations: Sequence[Configuration], base: str
) -> dict[Configuration, dict[str, list[float]]]:
    """Return held-out losses by configuration and writer: before training, then after each epoch.

    Goes writer by writer, so that whenever it is stopped all configurations have been tried on the same ones.
    """
    known = read_results()
    found: dict[Configuration, dict[str, list[float]]] = {c: {} for c in configurations}
    for number, writer in enumerate(people):
        for configuration in configurations:
            key = result_key(base, writer, configuration)
            if key not in known:
                began = time.monotonic()
                losses = run(decoder, writer, configuration)
                line = {"key": key, "config": str(configuration), "user": writer.name, "held_out": losses}
                known[key] = line | {"seconds": round(time.monotonic() - began, 1)}
                append(known[key])
                shown = " ".join(f"{loss:.3f}" for loss in losses)
                print(f"{number + 1}/{len(people)} {configuration}: {shown} ({known[key]['seconds']} s)", flush=True)
            found[configuration][writer.name] = known[key]["held_out"]
    return found


def run(decoder: StudyDecoder, writer: Writer, configuration: Configuration) -> list[float]:
    """Train once, without stopping early."""
    config = TrainConfig(
        kind=configuration.kind,  # type: ignore[arg-type]
        rank=configuration.rank,
        alpha=configuration.alpha,
        learning_rate=configuration.learning_rate,
        constant_rate=configuration.constant,
        patience=configuration.epochs + 1,
        seed=configuration.seed,
    )
    decoder.block_size = configuration.block_size
    examples, held_out = (
        [Encoded(f"{writer.name}-{side}-{n}", tuple(m["tokens"]), m["supervised_from"]) for n, m in enumerate(mails)]
        for side, mails in (("train", writer.train), ("held-out", writer.held_out))
    )
    result = fit(decoder, examples, held_out, config, Quiet(), batch=BATCH, epochs=configuration.epochs)
    if result.held_out[-1] == result.held_out[0]:
        raise RuntimeError(f"{configuration} changed nothing for {writer.name}; something is not wired up")
    return list(result.held_out)


def result_key(base: str, writer: Writer, configuration: Configuration) -> str:
    """Name everything that decides a result."""
    data = hashlib.sha256(json.dumps([writer.train, writer.held_out]).encode()).hexdigest()[:12]
    return f"{base} {data} {configuration}"


def read_results() -> dict[str, dict[str, Any]]:
    """Read what earlier runs have found. A last line that was cut off is taken away."""
    if not RESULTS.exists():
        return {}
    data = RESULTS.read_bytes()
    complete = data[: data.rfind(b"\n") + 1]
    if complete != data:
        RESULTS.write_bytes(complete)
    results = [json.loads(line) for line in complete.splitlines()]
    return {result["key"]: result for result in results}


def append(result: dict[str, Any]) -> None:
    """Write one result at once."""
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(result) + "\n")


def table(found: dict[Configuration, dict[str, list[float]]]) -> Iterator[dict[str, Any]]:
    """Yield a row for each configuration and epoch: how much lower than without training the held-out loss is.

    `behind` is the mean difference to the best row over the same writers, each compared with him- or herself; `±` is
    the standard error of what is before it.
    """
    gains = {
        (configuration, epoch): {user: losses[0] - losses[epoch] for user, losses in by_user.items()}
        for configuration, by_user in found.items()
        for epoch in range(1, configuration.epochs + 1)
    }
    best = max(gains.values(), key=lambda by_user: statistics.mean(by_user.values()))
    for (configuration, epoch), by_user in gains.items():
        behind = [best[user] - gain for user, gain in by_user.items()]
        base = statistics.mean(losses[0] for losses in found[configuration].values())
        mean = statistics.mean(by_user.values())
        worst = min(by_user, key=lambda user: by_user[user])
        yield {
            "configuration": str(configuration),
            "epoch": epoch,
            "loss": base - mean,
            "gain": mean,
            "±": standard_error(list(by_user.values())),
            "behind": statistics.mean(behind),
            "± ": standard_error(behind),
            "worst": by_user[worst],
            "of": worst,
        }


def standard_error(values: Sequence[float]) -> float | str:
    """Return the standard error of the mean; fewer than two values have none."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else "-"


if __name__ == "__main__":
    main()
