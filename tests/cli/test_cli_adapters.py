"""`edgepd adapters`: what is asked of the daemon, and how generations are described."""

from __future__ import annotations

import json

import pytest

from edgepd.cli.adapter_text import details, differences, size
from tests.cli.conftest import Edgepd
from tests.cli.fake_daemon import GENERATIONS, PLAIN, FakeDaemon, Json, error

ROUTES = "/edgepd/v1/generations"
SWITCHED = {"active": 1, "previous": 2, "prepare_ms": 12.4}
MADE: Json = {**PLAIN, "id": 9, "parent": 2, "kind": "live", "state": "candidate", "created_at": 1.0, "example_ids": []}
PROVEN: Json = {
    **{**PLAIN, "id": 7, "parent": 5, "kind": "live", "state": "active", "created_at": 1000.0},
    "example_ids": ["x", "y"],
    "activated_at": 1200.0,
    "adapter_file": "7.gguf",
    "model_file": "5.gguf",
    "pending": True,
    "healthy": 2,
    "bytes": 3 * 2**19,
    "reason": "better",
    "config": {"rank": 8, "rate": 0.0002, "kind": "lora", "layers": [0, 1]},
    "scores": {
        "arms": {"base": 4.011, "profile": 3.9, "retrieval": None, "adapter": 3.206},
        "guards": [
            {"name": "general perplexity", "value": 0.0041, "limit": 0.02, "passed": True, "unit": "relative"},
            {"name": "KL to the base", "value": 0.0712, "limit": 0.05, "passed": False, "unit": "nats/token"},
            {"name": "verifiable prompts", "value": None, "limit": None, "passed": None, "unit": None},
        ],
        "improvement": {"mean": 0.8051, "lower": 0.31, "confidence": 0.95, "n": 14, "unit": "nats/token, per answer"},
    },
}
SHOWN: Json = {
    "generation": PROVEN,
    "lineage": [5, 1],
    "children": [8, 9],
    "verdict": "it serves and is pending until it has answered in good health: better",
    "example_count": 12,
    "model": {"path": "/g/5.gguf", "sha256": "cd" * 32},
    "adapter": {"path": "/g/7.gguf", "sha256": "ef" * 32},
}


@pytest.fixture(autouse=True)
def plain_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepd.cli.adapter_text.moment", lambda seconds: f"t{seconds:.0f}")


def test_list(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on(f"GET {ROUTES}", GENERATIONS)
    assert edgepd("adapters", "list").stdout == (
        "   id  parent  kind  state    marks                        size     held-out loss   examples  made\n"
        "*  2   1       live  active   pinned, pending, strikes: 1  4.5 MiB  3.215 -> 2.900  2         t1000\n"
        "   1   -       base  retired  -                            -        -               0         t900\n"
    )
    assert json.loads(edgepd("adapters", "list", "--json").stdout) == GENERATIONS


def test_list_of_an_older_daemon(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    old = {"id": 1, "parent": None, "kind": "live", "state": "active", "created_at": 900.0, "example_ids": []}
    daemon.on(f"GET {ROUTES}", {"active": 1, "generations": [old | {"confirmed_at": 5.0}]})
    assert edgepd("adapters", "list").stdout.splitlines()[1].split() == [
        *("*", "1", "-", "live", "active", "confirmed", "-", "-", "0", "t900")
    ]


def test_show(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on(f"GET {ROUTES}/7", SHOWN)
    result = edgepd("adapters", "show", "7")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        "generation 7: it serves and is pending until it has answered in good health: better\n"
        "\n"
        "kind             live\n"
        "state            active, pending\n"
        "healthy answers  2 since it went live\n"
        "made             t1000\n"
        "went live        t1200\n"
        "lineage          7 <- 5 <- 1\n"
        "children         8, 9\n"
        "examples         12\n"
        "improvement      +0.8051 nats/token on average over 14 held-out answers; "
        "at least +0.31 nats/token (95 % sure)\n"
        "\n"
        "arm        nats/token  against base\n"
        "base       4.011       -\n"
        "profile    3.900       -0.111\n"
        "retrieval  -           -\n"
        "adapter    3.206       -0.805\n"
        "\n"
        "guard               value              limit\n"
        "general perplexity  0.41%              2.00%            passed\n"
        "KL to the base      0.0712 nats/token  0.05 nats/token  FAILED\n"
        "verifiable prompts  -                  -                not measured\n"
        "\n"
        "config\n"
        "  kind    lora\n"
        "  layers  [0, 1]\n"
        "  rank    8\n"
        "  rate    0.0002\n"
        "\n"
        "files\n"
        "  model     /g/5.gguf (SHA-256 cdcdcdcdcdcd)\n"
        "  adapter   /g/7.gguf (SHA-256 efefefefefef)\n"
        "  own size  1.5 MiB\n"
    )
    assert json.loads(edgepd("adapters", "show", "7", "--json").stdout) == SHOWN


def test_show_of_a_generation_of_which_little_is_known() -> None:
    shown = {"generation": {**MADE, "scores": None, "config": None}, "model": None, "adapter": None}
    assert details(shown) == (
        "generation 9: no verdict\n\nkind      live\nstate     candidate\nmade      t1\nexamples  0"
    )
    shown["generation"]["reason"] = "better"
    assert details(shown | {"verdict": "it waits"}).splitlines()[-1] == "reason    better"


@pytest.mark.parametrize(
    ("improvement", "text"),
    [
        ({"mean": -0.02, "lower": None, "n": 3}, "-0.02 on average over 3 held-out answers; too few to be sure of any"),
        ({"mean": 0.5, "lower": 0.25, "unit": "nats"}, "+0.5 nats; at least +0.25 nats"),
        ({"mean": 0.125, "lower": -0.01, "confidence": 0.9, "unit": "share"}, "+12.50%; at least -1.00% (90 % sure)"),
        ({"mean": None}, "-; too few to be sure of any"),
    ],
)
def test_improvement(improvement: Json, text: str) -> None:
    shown = {"generation": {**MADE, "scores": {"improvement": improvement}}}
    assert details(shown).splitlines()[-1] == f"improvement  {text}"


def test_arms_without_the_base() -> None:
    shown = {"generation": {**MADE, "scores": {"arms": {"adapter": 3.2}}}}
    assert details(shown).splitlines()[-1].split() == ["adapter", "3.200", "-"]


def test_diff(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    diff = {
        "a": 5,
        "b": 7,
        "examples": {"added": ["e1", "e2", "e3", "e4", "e5", "e6", "e7"], "removed": ["e0"], "kept": 4},
        "config": {"rank": [8, 16], "origin": [None, "merged"]},
        "scores": {
            "arms": [{"base": 4.0, "adapter": 3.5}, {"base": 4.0, "adapter": 3.25}],
            "guards": [
                [{"name": "repetition", "value": 0.0, "unit": "share"}],
                [{"name": "repetition", "value": 0.125, "unit": "share"}],
            ],
        },
        "tensors": [
            {"tensor": "blk.0.attn_q.weight", "relative": 0.01234, "changed_blocks": 40},
            {"tensor": "blk.1.attn_q.weight", "relative": None, "changed_blocks": None},
        ],
    }
    daemon.on(f"GET {ROUTES}/5/diff/7", diff)
    result = edgepd("adapters", "diff", "5", "7")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        "from generation 5 to generation 7\n"
        "\n"
        "examples                  7 added (e1 e2 e3 e4 e5 and 2 more), 1 removed (e0), 4 kept\n"
        "config rank               8 -> 16\n"
        "config origin             - -> merged\n"
        "scores arms.adapter       3.5 -> 3.25\n"
        "scores guards.repetition  0 -> 0.125\n"
        "\n"
        "tensor               relative change  changed blocks\n"
        "blk.0.attn_q.weight  1.234%           40\n"
        "blk.1.attn_q.weight  -                -\n"
    )
    assert json.loads(edgepd("adapters", "diff", "5", "7", "--json").stdout) == diff


def test_diff_of_equals() -> None:
    diff = {"a": 5, "b": 5, "examples": {"added": [], "removed": [], "kept": 4}, "config": {}, "scores": {}}
    assert differences(diff) == "from generation 5 to generation 5\n\nexamples  0 added, 0 removed, 4 kept"


@pytest.mark.parametrize(
    ("args", "route", "body"),
    [
        (("rollback",), "rollback", {}),
        (("rollback", "--to", "1"), "rollback", {"to": 1}),
        (("use", "1"), "activate", {"generation": 1, "expected": None}),
        (("use", "1", "--expected", "2"), "activate", {"generation": 1, "expected": 2}),
    ],
)
def test_switching(
    daemon: FakeDaemon, edgepd: Edgepd, args: tuple[str, ...], route: str, body: dict[str, object]
) -> None:
    daemon.on(f"POST {ROUTES}/{route}", SWITCHED)
    result = edgepd("adapters", *args)
    assert (result.exit_code, result.stdout) == (0, "generation 1 is live (before: 2), prepared in 12 ms\n")
    assert daemon.asked(f"{ROUTES}/{route}") == [body]
    assert json.loads(edgepd("adapters", *args, "--json").stdout) == SWITCHED


def test_another_generation_is_live_than_expected(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on(f"POST {ROUTES}/activate", error(409, "conflict", "generation 3 is active, not 2 as expected"))
    result = edgepd("adapters", "use", "1", "--expected", "2")
    assert (result.exit_code, result.stderr) == (6, "Error: generation 3 is active, not 2 as expected\n")


def test_unknown_generation(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on(f"POST {ROUTES}/activate", error(404, "not_found", "no generation 99"))
    result = edgepd("adapters", "use", "99")
    assert (result.exit_code, result.stderr) == (4, "Error: no generation 99\n")
    assert edgepd("adapters", "use", "newest").exit_code == 2


@pytest.fixture
def deletable(daemon: FakeDaemon) -> FakeDaemon:
    daemon.on(f"GET {ROUTES}/7", SHOWN)
    daemon.on(f"DELETE {ROUTES}/7", {"generation": {**PROVEN, "state": "deleted"}, "freed_bytes": 3 * 2**19})
    return daemon


def deleted(daemon: FakeDaemon) -> bool:
    return any(asked.method == "DELETE" for asked in daemon.requests)


@pytest.mark.parametrize(("typed", "gone"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_delete_asks(
    deletable: FakeDaemon, edgepd: Edgepd, monkeypatch: pytest.MonkeyPatch, typed: str, gone: bool
) -> None:
    monkeypatch.setattr("edgepd.cli.adapters.stdin_is_terminal", lambda: True)
    result = edgepd("adapters", "delete", "7", stdin=typed)
    assert result.exit_code == 0
    assert "Delete generation 7 (live, active, pending, 1.5 MiB) for good?" in result.stderr
    assert result.stdout == ("generation 7 is deleted, 1.5 MiB are free again\n" if gone else "")
    assert ("generation 7 stays" in result.stderr) is not gone
    assert deleted(deletable) is gone


def test_delete_without_a_question(deletable: FakeDaemon, edgepd: Edgepd) -> None:
    assert edgepd("adapters", "delete", "7", "--yes").stdout == "generation 7 is deleted, 1.5 MiB are free again\n"
    assert json.loads(edgepd("adapters", "delete", "7", "--json").stdout)["freed_bytes"] == 3 * 2**19
    assert [asked.method for asked in deletable.requests] == ["DELETE", "DELETE"]


def test_delete_needs_somebody_to_ask(deletable: FakeDaemon, edgepd: Edgepd) -> None:
    result = edgepd("adapters", "delete", "7", stdin="y\n")
    assert (result.exit_code, deleted(deletable)) == (2, False)
    assert result.stderr == "Error: nobody can be asked whether generation 7 is to go; add --yes to delete it\n"


def test_delete_is_refused(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on(f"DELETE {ROUTES}/7", error(409, "conflict", "generation 7 is pinned"))
    result = edgepd("adapters", "delete", "7", "--yes")
    assert (result.exit_code, result.stdout, result.stderr) == (6, "", "Error: generation 7 is pinned\n")


@pytest.mark.parametrize(
    ("command", "pinned", "text"), [("pin", True, "pinned"), ("unpin", False, "not pinned any more")]
)
def test_pin(daemon: FakeDaemon, edgepd: Edgepd, command: str, pinned: bool, text: str) -> None:
    answer = {"generation": {**PROVEN, "pinned": pinned}}
    daemon.on(f"POST {ROUTES}/7/pin", answer)
    assert edgepd("adapters", command, "7").stdout == f"generation 7 is {text}\n"
    assert json.loads(edgepd("adapters", command, "7", "--json").stdout) == answer
    assert daemon.asked(f"{ROUTES}/7/pin") == [{"pinned": pinned}] * 2


@pytest.mark.parametrize(
    ("options", "weights", "rank"),
    [((), None, None), (("--weight", "0.75", "--weight", "-0.5", "--rank", "8"), [0.75, -0.5], 8)],
)
def test_merge(
    daemon: FakeDaemon, edgepd: Edgepd, options: tuple[str, ...], weights: list[float] | None, rank: int | None
) -> None:
    daemon.on(f"POST {ROUTES}/merge", {"generation": MADE})
    result = edgepd("adapters", "merge", "4", "6", *options)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        "generation 9 is a candidate, merged from 4 and 6\n"
        'see how it answers: edgepd compare -b 9 "a question"\n'
        "make it live:       edgepd adapters use 9\n"
    )
    assert daemon.asked(f"{ROUTES}/merge") == [{"generations": [4, 6], "weights": weights, "rank": rank}]
    assert json.loads(edgepd("adapters", "merge", "4", "6", "--json").stdout) == {"generation": MADE}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("4",), "a merge takes at least two different generations, not 4"),
        (("4", "4"), "a merge takes at least two different generations, not 4 and 4"),
        (("4", "6", "--weight", "1"), "there are 2 generations but 1 weights; give one --weight for each, or none"),
    ],
)
def test_merge_that_makes_no_sense(daemon: FakeDaemon, edgepd: Edgepd, args: tuple[str, ...], message: str) -> None:
    result = edgepd("adapters", "merge", *args)
    assert (result.exit_code, result.stderr, daemon.requests) == (2, f"Error: {message}\n", [])


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(None, "-"), (0, "0.0 MiB"), (4 * 2**20 + 2**19, "4.5 MiB"), (98 * 2**20, "98 MiB")]
)
def test_sizes(size_bytes: int | None, text: str) -> None:
    assert size(size_bytes) == text
