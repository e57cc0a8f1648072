"""Settings and paths: every setting is declared once, here.

The idea: each field of the frozen section classes below is one setting. TOML keys (`serve.threads`), environment
variables (`EDGEPD_SERVE_THREADS`), `--set serve.threads=2` and docs/config.md are all derived from the fields.
Order of precedence: command line, environment, config.toml, default. The invariant: a value that leaves this
module has the declared type and lies in the declared range, and its origin is known.
What this does not do: watch the file, or apply changes to a running daemon.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs

from edgepd.errors import ConfigError

SOCKET_PATH_LIMIT = 107  # sun_path in sockaddr_un holds 108 bytes with the terminating NUL


def setting(
    default: Any,
    doc: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """Declare one setting: its default, its documentation and, for numbers, its range or, for words, the choice."""
    return field(default=default, metadata={"doc": doc, "minimum": minimum, "maximum": maximum, "choices": choices})


@dataclass(frozen=True)
class Serve:
    """How the model is served."""

    model: str = setting("default", "name of the installed model to serve")
    threads: int = setting(0, "threads for decoding; 0 means the number of physical cores", minimum=0, maximum=256)
    slots: int = setting(4, "answers that can be generated at the same time", minimum=1, maximum=64)
    context_tokens: int = setting(2048, "context window of one conversation, in tokens", minimum=128, maximum=1_048_576)
    batch_tokens: int = setting(
        256, "largest piece of a prompt that is prefilled in one step, in tokens", minimum=16, maximum=8192
    )
    max_queue: int = setting(32, "requests that may wait; more are refused with 503", minimum=1, maximum=10_000)
    max_tokens: int = setting(512, "length limit of an answer when the request sets none, in tokens", minimum=1)
    keep_alive: str = setting(
        "5m", "how long the model stays in memory after its last use, such as '30s', '5m', '1h30m'; '-1' means forever"
    )
    preload: bool = setting(False, "whether to load the model at start instead of with the first request")
    adapt_threads: bool = setting(
        True, "decode with fewer threads while other programs want the processor, which changes roundings"
    )
    kv_type: str = setting(
        "f16", "how the KV cache is stored; q8_0 needs half the memory and is slower", choices=("f16", "q8_0")
    )
    saved_state_mb: int = setting(
        256,
        "disk space for saved conversations, which survive an unload or a restart without being computed again, "
        "in MiB; 0 saves none",
        minimum=0,
        maximum=1_048_576,
    )
    max_body_bytes: int = setting(
        8 * 1024 * 1024, "largest request body; a larger one is refused with 413", minimum=1024, maximum=1024**3
    )
    request_timeout_s: float = setting(
        10.0, "time that a client has to send the head of a request, and again for its body", minimum=0.1, maximum=3600
    )
    write_timeout_s: float = setting(
        30.0, "time for which a client may leave an answer unread before it is cancelled", minimum=0.1, maximum=3600
    )
    tcp_port: int = setting(
        0, "port on 127.0.0.1 to serve as well, with a token; 0 serves the Unix socket only", minimum=0, maximum=65535
    )


@dataclass(frozen=True)
class Train:
    """How adapters are trained."""

    threads: int = setting(0, "threads for training; 0 means the number of physical cores", minimum=0, maximum=256)
    memory_mb: int = setting(
        0,
        "resident memory that training may use, in MiB, within which it is planned; 0 means half of what is free",
        minimum=0,
        maximum=1_048_576,
    )
    residency: str = setting(
        "auto",
        "where dequantised weights live: nowhere, or in memory as fp32, as the memory allows (auto); fp16 rounds them",
        choices=("auto", "stream", "fp16", "fp32"),
    )
    fast_seconds: float = setting(
        12.0, "time that the training of a live adapter may take, gate not included", minimum=1, maximum=86_400
    )
    min_examples: int = setting(6, "examples below which training is refused", minimum=2, maximum=100_000)
    held_out_fraction: float = setting(
        0.25,
        "share of the newest examples that is never trained on and decides promotion",
        minimum=0.05,
        maximum=0.5,
    )
    preset: str = setting(
        "default",
        "hyper-parameters as a paper prints them instead of the settings below",
        choices=("default", "asls-paper", "pituning-paper", "shaping-paper"),
    )
    baked_kind: str = setting(
        "scale", "what a consolidation trains and bakes into the model file", choices=("scale", "shift", "gain")
    )
    rank: int = setting(8, "rank of the low-rank factors", minimum=1, maximum=256)
    rs_lora: bool = setting(False, "rank-stabilised LoRA: scale by alpha / sqrt(rank) instead of alpha / rank")
    lora_plus: float = setting(
        1.0, "LoRA+: how many times faster the factors B learn than the factors A", minimum=1, maximum=64
    )
    top_layers: int = setting(
        0, "train the uppermost layers alone and compute those below once per example; 0 trains all", minimum=0
    )
    epochs: int = setting(3, "passes over the examples at most; early stopping may end sooner", minimum=1, maximum=1000)
    live_learning_rate: float = setting(
        1.75e-3, "peak learning rate of the live low-rank adapter", minimum=1e-7, maximum=1.0
    )
    scale_learning_rate: float = setting(1.1e-2, "peak learning rate of kind scale", minimum=1e-7, maximum=1.0)
    shift_learning_rate: float = setting(1e-3, "peak learning rate of kind shift", minimum=1e-7, maximum=1.0)
    gain_learning_rate: float = setting(1e-2, "peak learning rate of kind gain", minimum=1e-7, maximum=1.0)
    objective: str = setting(
        "sft",
        "what is optimised: imitation of what you wrote or accepted, or a preference between two answers",
        choices=("sft", "reward", "dpo", "kto", "apo-zero", "simpo"),
    )
    kl_weight: float = setting(
        0.0, "weight of the divergence from the base on anchor prompts, per token", minimum=0, maximum=10
    )
    shaping: str = setting(
        "none",
        "how general examples, which the base answers itself, are mixed with yours",
        choices=("none", "early", "weighing", "transfer"),
    )
    personal_every: float = setting(
        2.0,
        "n_I of sample weighing: every n-th batch is yours; below 1, all but every 1/n-th",
        minimum=0.01,
        maximum=1000,
    )
    general_steps: int = setting(20, "general batches after yours in early shaping, before them in transfer", minimum=0)
    grouping: str = setting(
        "none",
        "data grouping: add the general examples that lie nearest to each of yours (sg) or to all of them (ig)",
        choices=("none", "sg", "ig"),
    )
    group_distance: str = setting(
        "embedding", "where grouping measures distances", choices=("embedding", "autoencoder")
    )
    replay_examples: int = setting(32, "general examples that the base generates once", minimum=0, maximum=4096)
    accepted_weight: float = setting(
        0.5,
        "weight of an answer with a thumb up; an answer that the user edited has weight 1",
        minimum=0,
        maximum=1,
    )
    live_examples: int = setting(64, "newest examples that a live adapter is trained on", minimum=2, maximum=100_000)
    baked_examples: int = setting(512, "newest examples that a consolidation is trained on", minimum=2, maximum=100_000)
    seed: int = setting(0, "seed of initialisation and shuffling", minimum=0)


@dataclass(frozen=True)
class Gate:
    """What a candidate must show before it goes live."""

    max_perplexity_rise: float = setting(
        0.02, "largest tolerated relative rise of perplexity on the bundled general text", minimum=0, maximum=1
    )
    min_kept_gain: float = setting(
        0.9, "share of a live adapter's gain that a baked file must keep to replace it", minimum=0, maximum=1
    )


@dataclass(frozen=True)
class Log:
    """What is kept of the interactions."""

    interactions: bool = setting(True, "whether interactions are stored in the profile at all")
    level: str = setting("info", "log level of the daemon", choices=("debug", "info", "warning", "error"))


@dataclass(frozen=True)
class Settings:
    """All sections. `origins` maps each key that is not at its default to where its value came from."""

    serve: Serve = Serve()
    train: Train = Train()
    gate: Gate = Gate()
    log: Log = Log()
    origins: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Declaration:
    """One setting as declared: key, type, default, range or choice, and documentation."""

    key: str
    type: type
    default: Any
    doc: str
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...]

    @property
    def env(self) -> str:
        """Name of the environment variable that overrides this setting."""
        return "EDGEPD_" + self.key.replace(".", "_").upper()


def declarations() -> dict[str, Declaration]:
    """Return every setting by its dotted key, in order of declaration."""
    found = {}
    for section in dataclasses.fields(Settings):
        if not dataclasses.is_dataclass(section.default):
            continue
        for f in dataclasses.fields(section.default):
            key = f"{section.name}.{f.name}"
            found[key] = Declaration(
                key,
                type(f.default),
                f.default,
                f.metadata["doc"],
                f.metadata["minimum"],
                f.metadata["maximum"],
                f.metadata["choices"],
            )
    return found


def load(
    config_file: Path, env: Mapping[str, str] | None = None, overrides: Mapping[str, str] | None = None
) -> Settings:
    """Read the settings from the file, the environment and the command line.

    `overrides` maps dotted keys to text, as given by `--set`. Raises ConfigError naming the source, the key and,
    for an unknown key, the nearest known one.
    """
    known = declarations()
    values: dict[str, dict[str, Any]] = {}
    origins: dict[str, str] = {}
    by_env = {d.env: key for key, d in known.items()}
    environment = os.environ if env is None else env
    layers: list[tuple[str, dict[str, Any]]] = [
        (str(config_file), _read_toml(config_file)),
        ("environment", {by_env[name]: text for name, text in environment.items() if name in by_env}),
        ("command line", dict(overrides or {})),
    ]
    for origin, layer in layers:
        for key, raw in layer.items():
            if key not in known:
                raise ConfigError(f"{origin}: unknown setting '{key}'{_did_you_mean(key, known)}")
            section, name = key.split(".")
            values.setdefault(section, {})[name] = _convert(known[key], raw, origin)
            origins[key] = origin
    sections = {name: dataclasses.replace(getattr(Settings(), name), **fields) for name, fields in values.items()}
    return Settings(**sections, origins=origins)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    flat: dict[str, Any] = {}
    for section, content in tree.items():
        if isinstance(content, dict):
            flat |= {f"{section}.{name}": value for name, value in content.items()}
        else:
            flat[section] = content
    return flat


def _did_you_mean(key: str, known: Mapping[str, Declaration]) -> str:
    near = difflib.get_close_matches(key, known, n=1) or [k for k in known if k.split(".")[1] == key.split(".")[-1]]
    return f"; did you mean '{near[0]}'?" if near else f"; known are {', '.join(known)}"


def _convert(declared: Declaration, raw: Any, origin: str) -> Any:
    """Turn TOML values or text into the declared type and check the range."""
    problem = ConfigError(
        f"{origin}: setting '{declared.key}' is {raw!r}, but must be of type {declared.type.__name__}"
    )
    value: Any = raw
    if declared.type is bool:
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        value = words.get(raw.lower()) if isinstance(raw, str) else raw
        if not isinstance(value, bool):
            raise problem
        return value
    if isinstance(raw, bool) or (declared.type is str and not isinstance(raw, str)):
        raise problem
    try:
        value = declared.type(raw)
    except (TypeError, ValueError) as error:
        raise problem from error
    if declared.type is int and isinstance(raw, float) and value != raw:
        raise problem
    if declared.choices and value not in declared.choices:
        raise ConfigError(
            f"{origin}: setting '{declared.key}' is '{value}', but must be one of {', '.join(declared.choices)}"
        )
    if isinstance(value, int | float):
        low, high = declared.minimum, declared.maximum
        if (low is not None and not value >= low) or (high is not None and not value <= high):
            raise ConfigError(f"{origin}: setting '{declared.key}' is {value}, but must lie in [{low}, {high}]")
    return value


@dataclass(frozen=True)
class Paths:
    """Where edgepd keeps things. `EDGEPD_HOME` moves everything under one directory."""

    config_file: Path
    data_dir: Path
    runtime_dir: Path
    models_dir: Path

    @property
    def socket(self) -> Path:
        """The Unix socket of the daemon."""
        return self.runtime_dir / "edgepd.sock"

    @property
    def token(self) -> Path:
        """What a client of the TCP port must know, readable by the user alone."""
        return self.runtime_dir / "token"

    @property
    def profile(self) -> Path:
        """The SQLite file with interactions, feedback and generations."""
        return self.data_dir / "profile.db"

    @property
    def generations_dir(self) -> Path:
        """Adapter and baked model files, one directory per generation."""
        return self.data_dir / "generations"

    @property
    def states_dir(self) -> Path:
        """Saved KV caches of conversations; may be deleted at any time."""
        return self.data_dir / "states"

    @property
    def runs_dir(self) -> Path:
        """Working directories of training runs."""
        return self.data_dir / "runs"

    @property
    def lock(self) -> Path:
        """Held (flock) by the one daemon that owns the data directory."""
        return self.data_dir / "daemon.lock"


def paths(env: Mapping[str, str] | None = None) -> Paths:
    """Find the directories from `EDGEPD_HOME`, `EDGEPD_MODELS_DIR` and the XDG base directories."""
    environment = os.environ if env is None else env
    home = environment.get("EDGEPD_HOME")
    if home:
        root = Path(home).expanduser().absolute()
        config_file, data_dir, runtime_dir = root / "config.toml", root / "data", root / "run"
    else:
        dirs = platformdirs.PlatformDirs("edgepd", appauthor=False)
        config_file = Path(dirs.user_config_dir) / "config.toml"
        data_dir = Path(dirs.user_data_dir)
        xdg_runtime = environment.get("XDG_RUNTIME_DIR")
        runtime_dir = Path(xdg_runtime) / "edgepd" if xdg_runtime else data_dir / "run"
    models = environment.get("EDGEPD_MODELS_DIR")
    found = Paths(config_file, data_dir, runtime_dir, Path(models).absolute() if models else data_dir / "models")
    if len(os.fsencode(found.socket)) > SOCKET_PATH_LIMIT:
        raise ConfigError(
            f"socket path {found.socket} is longer than {SOCKET_PATH_LIMIT} bytes, which Unix sockets do not allow; "
            "set EDGEPD_HOME or XDG_RUNTIME_DIR to a shorter directory"
        )
    return found
