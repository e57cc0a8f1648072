"""The import rules of the design: arrows between the parts, no cycles, and no torch in the serving process."""

from __future__ import annotations

import ast
import graphlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent
ROOTS = [CHECKOUT, CHECKOUT / "daemon", CHECKOUT / "quant", CHECKOUT / "profiles"]
PACKAGES = ["edgepd", "edgepd_daemon", "edgepd_quant", "edgepd_profiles"]

# Each part and the other parts that it may import. `edgepd` itself is only its __init__ with the version.
ARROWS: dict[str, set[str]] = {
    "edgepd": set(),
    "edgepd.errors": set(),
    "edgepd.settings": set(),
    "edgepd.config": {"edgepd.errors", "edgepd.settings"},
    "edgepd.atomic": {"edgepd.errors"},
    "edgepd.messages": set(),
    "edgepd.secrets": {"edgepd.errors"},
    "edgepd.template": {"edgepd.errors", "edgepd.messages"},
    "edgepd.llama": {"edgepd.errors", "edgepd.config", "edgepd.settings"},
    "edgepd.chat": {"edgepd.errors", "edgepd.llama", "edgepd.messages", "edgepd.template"},
    "edgepd.models": {"edgepd.errors", "edgepd.config", "edgepd.atomic"},
    "edgepd.client_errors": {"edgepd.errors"},
    "edgepd.client_calls": {"edgepd.errors", "edgepd.client_errors"},
    "edgepd.profile_client": {"edgepd.errors", "edgepd.client_errors", "edgepd.client_calls"},
    "edgepd.privacy_client": {"edgepd.errors", "edgepd.client_errors", "edgepd.client_calls"},
    "edgepd.intent_client": {"edgepd.errors", "edgepd.client_errors", "edgepd.client_calls"},
    "edgepd.budget_client": {"edgepd.errors", "edgepd.client_errors", "edgepd.client_calls"},
    "edgepd.client": {
        *("edgepd.errors", "edgepd.config", "edgepd.settings", "edgepd.client_errors", "edgepd.client_calls"),
        *("edgepd.profile_client", "edgepd.privacy_client", "edgepd.intent_client", "edgepd.budget_client"),
    },
    "edgepd_quant": {"edgepd.errors", "edgepd.atomic"},
    "edgepd_profiles": {"edgepd.errors", "edgepd.config", "edgepd.atomic", "edgepd.secrets", "edgepd.settings"},
}
SHARED = {
    "edgepd.errors",
    "edgepd.config",
    "edgepd.atomic",
    "edgepd.messages",
    "edgepd.secrets",
    "edgepd.template",
    "edgepd.llama",
    "edgepd.chat",
    "edgepd_quant",
}
ARROWS["edgepd.adapt"] = SHARED
ARROWS["edgepd.intent"] = SHARED | {"edgepd.settings", "edgepd.adapt"}
ARROWS["edgepd_daemon"] = set(ARROWS) | {"edgepd.adapt", "edgepd.intent"}
ARROWS["edgepd.cli"] = {
    *("edgepd", "edgepd.errors", "edgepd.config", "edgepd.settings", "edgepd.atomic", "edgepd.client"),
    *("edgepd.models", "edgepd.template"),
    *("edgepd_quant", "edgepd_profiles", "edgepd_daemon", "edgepd.intent"),
}
ARROWS["edgepd.__main__"] = {"edgepd.cli"}

# Modules of edgepd.adapt that the daemon may import: how it talks to the child process, and what that will do.
TORCH_FREE_ADAPT = {"edgepd.adapt", "edgepd.adapt.job", "edgepd.adapt.laps", "edgepd.adapt.presets"}
# Modules of edgepd.intent that tune, in a child process; the daemon may import any other.
TORCH_INTENT = {
    f"edgepd.intent.{name}"
    for name in (
        *("backbone", "batches", "embed", "iat", "individual", "losses", "population", "predictor"),
        *("scorer_training", "unlearn", "worker"),
    )
}
# May be imported inside a function: the first two are slow to load, and the hub is needed for one command only.
HEAVY = {"torch", "llama_cpp", "huggingface_hub", "tqdm"}
# So may these, which load llama.cpp or numpy: the daemon does without them until it is asked something.
LOADS_HEAVY = {
    *("edgepd_daemon.engine.host", "edgepd_daemon.generation_files", "edgepd_profiles.selection"),
    "edgepd.intent.student",
}


def modules() -> dict[str, Path]:
    """Return every module of the four packages by its dotted name."""
    found = {}
    for root in ROOTS:
        for package in PACKAGES:
            for path in sorted((root / package).rglob("*.py")):
                parts = path.relative_to(root).with_suffix("").parts
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: set[str]) -> Iterator[tuple[str, bool]]:
    """Yield (imported module, whether inside a function) for each import in a file.

    `from a import b` counts as an import of a.b where that is one of the `known` modules, else of a.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    nested = {id(inner) for node in ast.walk(tree) if isinstance(node, functions) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in nested
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [base])])
            for alias in node.names:
                below = f"{base}.{alias.name}"
                yield (below if below in known else base), id(node) in nested


def part_of(module: str) -> str | None:
    """Return the longest name in ARROWS that contains the module, or None if it is not ours."""
    pieces = module.split(".")
    for length in range(len(pieces), 0, -1):
        candidate = ".".join(pieces[:length])
        if candidate in ARROWS and (candidate != "edgepd" or module == "edgepd"):
            return candidate
    return None


def violations(tree: dict[str, Path]) -> list[str]:
    """Return a sentence for each import that breaks a rule."""
    problems = []
    for name, path in tree.items():
        part = part_of(name)
        if part is None:
            problems.append(f"{name}: belongs to no part in ARROWS")
            continue
        for target, nested in imports(name, path, set(tree)):
            top = target.split(".")[0]
            to = part_of(target)
            if nested and top not in HEAVY and not any(target.startswith(m) for m in LOADS_HEAVY):
                problems.append(f"{name}: imports {target} inside a function")
            if top in PACKAGES and to is None:
                problems.append(f"{name}: imports {target}, which belongs to no part in ARROWS")
            if to is not None and to != part and to not in ARROWS[part]:
                problems.append(f"{name}: {part} may not import {target}")
            if part == "edgepd_daemon" and to == "edgepd.adapt" and target not in TORCH_FREE_ADAPT:
                problems.append(f"{name}: the daemon may not import {target}, which needs torch")
            if part != "edgepd.intent" and target in TORCH_INTENT:
                problems.append(f"{name}: only edgepd.intent may import {target}, which needs torch")
            if top == "torch" and not may_import_torch(name):
                problems.append(f"{name}: may not import torch")
            if top == "llama_cpp" and part in ("edgepd_quant", "edgepd_profiles", "edgepd.models"):
                problems.append(f"{name}: may not import llama_cpp")
    return problems


def may_import_torch(name: str) -> bool:
    inside = name.startswith(("edgepd_quant.blocks", "edgepd.adapt."))
    return (inside and name not in TORCH_FREE_ADAPT) or name in TORCH_INTENT


def cycle(tree: dict[str, Path]) -> list[str]:
    """Return the modules of one import cycle, or an empty list."""
    graph = {name: {to for to, _ in imports(name, path, set(tree)) if to in tree} for name, path in tree.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_imports_follow_the_arrows() -> None:
    assert violations(modules()) == []


def test_there_are_no_import_cycles() -> None:
    assert cycle(modules()) == []


def test_arrows_themselves_have_no_cycle() -> None:
    graphlib.TopologicalSorter(ARROWS).prepare()


def test_all_four_packages_are_seen_and_every_folder_is_a_package() -> None:
    found = modules()
    assert set(PACKAGES) <= set(found)
    for path in found.values():
        assert (path.parent / "__init__.py").is_file(), f"{path.parent} has no __init__.py"


@pytest.mark.parametrize(
    ("module", "source", "problem"),
    [
        ("edgepd_quant.x", "from edgepd.config import load", "edgepd_quant may not import edgepd.config"),
        ("edgepd_quant.x", "from edgepd import config", "edgepd_quant may not import edgepd.config"),
        ("edgepd_quant.x", "import edgepd_profiles.store", "edgepd_quant may not import edgepd_profiles.store"),
        ("edgepd_quant.x", "import torch.nn", "may not import torch"),
        ("edgepd_profiles.x", "from llama_cpp import Llama", "may not import llama_cpp"),
        ("edgepd_daemon.x", "from edgepd.cli import main", "edgepd_daemon may not import edgepd.cli"),
        (
            "edgepd_daemon.x",
            "from edgepd.adapt import sft",
            "the daemon may not import edgepd.adapt.sft, which needs torch",
        ),
        ("edgepd_daemon.x", "def f():\n    import torch", "may not import torch"),
        ("edgepd.adapt.job", "import torch", "may not import torch"),
        ("edgepd.models.x", "def f():\n    import json", "imports json inside a function"),
        ("edgepd.models.x", "from ..template import Message", "edgepd.models may not import edgepd.template"),
        ("edgepd.stray", "", "belongs to no part in ARROWS"),
    ],
)
def test_a_broken_rule_is_noticed(tmp_path: Path, module: str, source: str, problem: str) -> None:
    path = tmp_path / "x.py"
    path.write_text(source)
    others = {name: tmp_path / "empty.py" for name in ("edgepd.config", "edgepd.adapt.sft", "edgepd.template")}
    (tmp_path / "empty.py").write_text("")
    assert violations({**others, module: path}) == [f"{module}: {problem}"]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("edgepd_quant.blocks.x", "import torch"),
        ("edgepd.adapt.x", "def f():\n    import torch"),
        ("edgepd_daemon.x", "from edgepd.adapt.job import Job"),
        ("edgepd.cli", "import edgepd\nfrom edgepd.errors import EdgepdError"),
    ],
)
def test_what_is_allowed_is_not_complained_about(tmp_path: Path, module: str, source: str) -> None:
    path = tmp_path / "x.py"
    path.write_text(source)
    assert violations({module: path}) == []


def test_a_cycle_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("from edgepd_quant import b")
    (tmp_path / "b.py").write_text("import edgepd_quant.a")
    found = cycle({"edgepd_quant.a": tmp_path / "a.py", "edgepd_quant.b": tmp_path / "b.py"})
    assert set(found) == {"edgepd_quant.a", "edgepd_quant.b"}


def test_daemon_and_command_line_never_load_torch() -> None:
    """torch would cost the serving process 284 MB of memory and 2.3 s at start."""
    serving = [name for name in modules() if part_of(name) in ("edgepd_daemon", "edgepd.cli")]
    assert {"edgepd_daemon", "edgepd.cli"} <= set(serving)
    program = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
    program += "print(sorted(name for name in sys.modules if name.split('.')[0] == 'torch')[:3])"
    done = subprocess.run(
        [sys.executable, "-c", program, *serving],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, ROOTS))},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
