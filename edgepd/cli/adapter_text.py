"""How generations are described for people: as a table, one with all that is known of it, and two by what differs.

The invariant: whatever the daemon does not say is left out or shown as "-", so that generations which an older edgepd
made, and those that were imported, can be shown like any other.
What this does not do: ask the daemon, or decide what a number means; the gate did, and its verdict is shown first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from edgepd.cli.output import columns, mebibytes, moment
from edgepd.client import Json

SHARES = ("share", "relative")  # units of numbers that are shown as percentages
SHOWN_IDS = 5  # of the examples that one side of a diff has and the other lacks; --json has all


def table(found: Json) -> str:
    """Describe all generations, one a line; * marks the live one."""
    rows = [("", "id", "parent", "kind", "state", "marks", "size", "held-out loss", "examples", "made", "")]
    for generation in found["generations"]:
        rows.append(
            (
                "*" if generation["id"] == found["active"] else "",
                str(generation["id"]),
                _text(generation.get("parent")),
                generation["kind"],
                generation["state"],
                ", ".join(marks(generation)) or "-",
                size(generation.get("bytes")),
                _losses(generation.get("scores") or {}),
                str(len(generation.get("example_ids") or [])),
                moment(generation.get("created_at")),
                generation.get("reason") or "",
            )
        )
    return columns(rows)


def marks(generation: Json) -> list[str]:
    """Return what is to be known of a generation besides its state: pinned, pending or confirmed, strikes."""
    found = ["pinned"] if generation.get("pinned") else []
    if generation.get("pending"):
        found.append("pending")
    elif generation.get("confirmed_at") is not None:
        found.append("confirmed")
    if generation.get("strikes"):
        found.append(f"strikes: {generation['strikes']}")
    return found


def size(size_bytes: int | None) -> str:
    """Write the size of a generation's own file; small adapters need a decimal."""
    if size_bytes is None:
        return "-"
    return f"{size_bytes / 2**20:.1f} MiB" if size_bytes < 10 * 2**20 else mebibytes(size_bytes)


def details(shown: Json) -> str:
    """Describe one generation: the verdict, where it comes from, the numbers that decided, and its files."""
    generation = shown["generation"]
    scores = generation.get("scores") or {}
    parts = [
        f"generation {generation['id']}: {shown.get('verdict') or generation.get('reason') or 'no verdict'}",
        columns(list(_facts(shown))),
        _arms(scores.get("arms") or {}),
        _guards(scores.get("guards") or []),
        _titled("config", [(name, _text(value)) for name, value in sorted((generation.get("config") or {}).items())]),
        _titled("files", list(_files(shown))),
    ]
    return "\n\n".join(part for part in parts if part)


def differences(diff: Json) -> str:
    """Describe what generation `b` has that `a` has not, and the other way round."""
    rows = [("examples", _examples(diff.get("examples") or {}))]
    for part in ("config", "scores"):
        for name, (a, b) in (diff.get(part) or {}).items():
            rows += [(f"{part} {leaf}", f"{_text(old)} -> {_text(new)}") for leaf, old, new in _leaves(name, a, b)]
    parts = [
        f"from generation {diff['a']} to generation {diff['b']}",
        columns(rows),
        _tensors(diff.get("tensors") or []),
    ]
    return "\n\n".join(part for part in parts if part)


def _facts(shown: Json) -> Iterator[tuple[str, str]]:
    generation = shown["generation"]
    yield "kind", generation["kind"]
    yield "state", ", ".join([generation["state"], *marks(generation)])
    if generation.get("pending"):
        yield "healthy answers", f"{generation.get('healthy') or 0} since it went live"
    yield "made", moment(generation.get("created_at"))
    if generation.get("activated_at") is not None:
        yield "went live", moment(generation["activated_at"])
    if shown.get("lineage"):
        yield "lineage", " <- ".join(str(each) for each in (generation["id"], *shown["lineage"]))
    if shown.get("children"):
        yield "children", ", ".join(str(child) for child in shown["children"])
    count = shown.get("example_count")
    yield "examples", str(len(generation.get("example_ids") or []) if count is None else count)
    if generation.get("reason") and generation["reason"] not in (shown.get("verdict") or ""):
        yield "reason", generation["reason"]
    scores = generation.get("scores") or {}
    if scores.get("improvement"):
        yield "improvement", _improvement(scores["improvement"])
    if _losses(scores) != "-":
        yield "held-out loss", f"{_losses(scores)} nats/token"


def _improvement(found: Json) -> str:
    unit = str(found.get("unit") or "").split(",")[0]  # "nats/token, per answer": that it is one is said anyway
    text = _number(found.get("mean"), unit, sign="+")
    if found.get("n") is not None:
        text += f" on average over {found['n']} held-out answers"
    if found.get("lower") is None:
        return f"{text}; too few to be sure of any"
    confidence = found.get("confidence")
    sure = "" if confidence is None else f" ({100 * confidence:.4g} % sure)"
    return f"{text}; at least {_number(found['lower'], unit, sign='+')}{sure}"


def _arms(arms: Json) -> str:
    """Compare ways of serving the same held-out answers. Losses are in nats per token, so less is better."""
    if not arms:
        return ""
    base = arms.get("base")
    rows = [("arm", "nats/token", "against base")]
    for name, loss in arms.items():
        known = isinstance(loss, int | float) and isinstance(base, int | float) and name != "base"
        rows.append((name, _fixed(loss), f"{loss - base:+.3f}" if known else "-"))
    return columns(rows)


def _guards(guards: Sequence[Json]) -> str:
    if not guards:
        return ""
    rows = [("guard", "value", "limit", "")]
    for guard in guards:
        passed = guard.get("passed")
        unit = guard.get("unit")
        verdict = "not measured" if passed is None else "passed" if passed else "FAILED"
        row = (_text(guard.get("name")), _number(guard.get("value"), unit), _number(guard.get("limit"), unit), verdict)
        rows.append(row)
    return columns(rows)


def _files(shown: Json) -> Iterator[tuple[str, str]]:
    for name in ("model", "adapter"):
        if shown.get(name):
            yield name, f"{shown[name]['path']} (SHA-256 {str(shown[name].get('sha256'))[:12]})"
    if shown["generation"].get("bytes") is not None:
        yield "own size", size(shown["generation"]["bytes"])


def _titled(title: str, rows: Sequence[tuple[str, str]]) -> str:
    return columns([(title, ""), *((f"  {name}", value) for name, value in rows)]) if rows else ""


def _examples(examples: Json) -> str:
    added, removed = examples.get("added") or [], examples.get("removed") or []
    parts = [f"{len(ids)} {word}{_some(ids)}" for word, ids in (("added", added), ("removed", removed))]
    return ", ".join([*parts, f"{examples.get('kept') or 0} kept"])


def _some(ids: Sequence[Any]) -> str:
    if not ids:
        return ""
    more = f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else ""
    return f" ({' '.join(str(each) for each in ids[:SHOWN_IDS])}{more})"


def _tensors(tensors: Sequence[Json]) -> str:
    """Show the changes of tensors; whatever is known of them besides names and `relative` gets a column too."""
    if not tensors:
        return ""
    others = [name for name in tensors[0] if name not in ("tensor", "relative")]
    rows = [("tensor", "relative change", *(name.replace("_", " ") for name in others))]
    for tensor in tensors:
        relative = tensor.get("relative")
        change = f"{relative:.3%}" if isinstance(relative, int | float) else "-"
        rows.append((_text(tensor.get("tensor")), change, *(_text(tensor.get(name)) for name in others)))
    return columns(rows)


def _leaves(name: str, a: Any, b: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the values that differ, by the path to them: scores hold tables of their own."""
    a, b = _keyed(a), _keyed(b)
    if isinstance(a, dict) and isinstance(b, dict):
        for key in dict.fromkeys((*a, *b)):
            yield from _leaves(f"{name}.{key}", a.get(key), b.get(key))
    elif a != b:
        yield name, a, b


def _keyed(value: Any) -> Any:
    """Return a list of guards as their values by name; anything else as it is."""
    if isinstance(value, list) and value and all(isinstance(each, dict) and "name" in each for each in value):
        return {each["name"]: each.get("value") for each in value}
    return value


def _losses(scores: Json) -> str:
    before, after = scores.get("held_out_before"), scores.get("held_out_after")
    return "-" if before is None or after is None else f"{before:.3f} -> {after:.3f}"


def _fixed(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "-"


def _number(value: Any, unit: str | None, sign: str = "") -> str:
    """Write a number with its unit; a share as a percentage."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _text(value)
    if unit in SHARES:
        return f"{value:{sign}.2%}"
    return f"{value:{sign}.4g} {unit or ''}".rstrip()


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
