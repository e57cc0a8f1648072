"""`edgepd compare`: who is asked what, what is shown, and what is recorded."""

from __future__ import annotations

import json
import sys

import pytest

from edgepd.cli.compare import Contestant, _side_by_side
from tests.cli.conftest import Edgepd
from tests.cli.fake_daemon import PLAIN, FakeDaemon, Json, Reply, answer, error

CHAT = "/v1/chat/completions"
FEEDBACK = "/edgepd/v1/feedback"


def generation(number: int, kind: str, state: str) -> Json:
    return {**PLAIN, "id": number, "kind": kind, "state": state}


LISTING: Json = {
    "active": 4,
    "previous": 3,
    "generations": [
        generation(1, "base", "retired"),
        generation(3, "baked", "retired"),
        generation(4, "live", "active"),
        generation(5, "live", "candidate"),
    ],
}


@pytest.fixture
def two(daemon: FakeDaemon) -> FakeDaemon:
    """A daemon that answers first "Yes." as i1 and then "No." as i2."""
    daemon.on("GET /edgepd/v1/generations", LISTING)
    daemon.on(f"POST {CHAT}", answer("Yes.", "i1"), answer("No.", "i2"))
    daemon.on(f"POST {FEEDBACK}", {"interaction_id": "i1", "feedback": []})
    return daemon


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepd.cli.compare.stdin_is_terminal", lambda: True)


def asked(daemon: FakeDaemon) -> list[str]:
    return [body["model"] for body in daemon.asked(CHAT)]


def test_both_are_asked_the_same(two: FakeDaemon, edgepd: Edgepd) -> None:
    options = ("--system", "Be brief.", "--max-tokens", "20", "--temperature", "0.5")
    result = edgepd("compare", "--json", *options, "Is", "it?")
    assert (result.exit_code, result.stderr) == (0, "")
    first, second = two.asked(CHAT)
    assert (first.pop("model"), second.pop("model")) == ("default@4", "default@3")
    assert first == second
    assert first == {
        "app": "cli",
        "conversation": first["conversation"],
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it?"}],
        "seed": json.loads(result.stdout)["seed"],
        "max_tokens": 20,
        "temperature": 0.5,
        "stream": False,
    }


def test_the_seed_is_random_unless_given(two: FakeDaemon, edgepd: Edgepd) -> None:
    for args in ((), (), ("--seed", "7")):
        two.on(f"POST {CHAT}", answer("Yes.", "i1"), answer("No.", "i2"))
        assert edgepd("compare", "--json", "Is it?", *args).exit_code == 0
    seeds = [body["seed"] for body in two.asked(CHAT)]
    assert seeds[0] == seeds[1] != seeds[2] == seeds[3]  # equal by chance once in 2^31
    assert seeds[4:] == [7, 7]


def test_json_asks_and_records_nothing(two: FakeDaemon, edgepd: Edgepd) -> None:
    found = json.loads(edgepd("compare", "--json", "--seed", "7", "Is it?").stdout)
    assert found == {
        "question": "Is it?",
        "seed": 7,
        "answers": [
            {
                "label": "1",
                "generation": 4,
                "kind": "live",
                "answer": "Yes.",
                "interaction_id": "i1",
                "finish_reason": "stop",
            },
            {
                "label": "2",
                "generation": 3,
                "kind": "baked",
                "answer": "No.",
                "interaction_id": "i2",
                "finish_reason": "stop",
            },
        ],
        "equal": False,
        "choice": None,
        "preferred": None,
        "over": None,
        "undo": None,
    }
    assert two.asked(FEEDBACK) == []


@pytest.mark.parametrize(
    ("args", "pair"),
    [
        ((), [4, 3]),
        (("-a", "5"), [5, 4]),
        (("-b", "5"), [4, 5]),
        (("-a", "4"), [4, 3]),
        (("-b", "4"), [3, 4]),
        (("-b", "base"), [4, 1]),
        (("-a", "5", "-b", "1"), [5, 1]),
    ],
)
def test_who_is_compared(two: FakeDaemon, edgepd: Edgepd, args: tuple[str, ...], pair: list[int]) -> None:
    assert edgepd("compare", "--json", *args, "Is it?").exit_code == 0
    assert asked(two) == [f"default@{number}" for number in pair]


@pytest.mark.parametrize("previous", [{"previous": None}, {}])
def test_the_base_stands_for_a_generation_before_that_is_not_known(
    two: FakeDaemon, edgepd: Edgepd, previous: Json
) -> None:
    listing = {"active": 4, "generations": LISTING["generations"], **previous}
    two.on("GET /edgepd/v1/generations", listing)
    assert edgepd("compare", "--json", "Is it?").exit_code == 0
    assert asked(two) == ["default@4", "default@1"]


@pytest.mark.parametrize(
    ("args", "active", "code", "message"),
    [
        ((), 1, 2, "generation 1 would be compared with itself; name two different ones with -a and -b, "),
        (("-a", "5", "-b", "5"), 4, 2, "generation 5 would be compared with itself"),
        (("-a", "9"), 4, 4, "generation '9' is not known; give a number from edgepd adapters list, or base"),
        (("-a", "newest"), 4, 4, "generation 'newest' is not known"),
    ],
)
def test_no_pair(two: FakeDaemon, edgepd: Edgepd, args: tuple[str, ...], active: int, code: int, message: str) -> None:
    two.on("GET /edgepd/v1/generations", {**LISTING, "active": active, "previous": None})
    result = edgepd("compare", "--json", *args, "Is it?")
    assert (result.exit_code, asked(two)) == (code, [])
    assert message in json.loads(result.stderr)["error"]["message"]


@pytest.mark.parametrize(
    ("choice", "winner", "loser", "names"),
    [
        ("1", "i1", "i2", "generation 4 (live) over generation 3 (baked)"),
        ("2", "i2", "i1", "generation 3 (baked) over generation 4 (live)"),
    ],
)
def test_choosing_without_being_asked(
    two: FakeDaemon, edgepd: Edgepd, choice: str, winner: str, loser: str, names: str
) -> None:
    two.on(f"POST {FEEDBACK}", {"interaction_id": winner, "feedback": []})
    result = edgepd("compare", "--choose", choice, "Is it?")
    assert result.exit_code == 0
    assert result.stdout == "--- 1: generation 4 (live)\nYes.\n--- 2: generation 3 (baked)\nNo.\n"
    assert result.stderr == (
        "1 was generation 4 (live), 2 was generation 3 (baked)\n"
        f"preference kept: {names}; take it back with: edgepd undo {winner} --kind preferred\n"
    )
    assert two.asked(FEEDBACK) == [{"interaction_id": winner, "preferred_over": loser, "source": "cli"}]


def test_choosing_with_json(two: FakeDaemon, edgepd: Edgepd) -> None:
    found = json.loads(edgepd("compare", "--choose", "1", "--json", "Is it?").stdout)
    assert (found["choice"], found["preferred"], found["over"]) == ("1", "i1", "i2")
    assert found["undo"] == "edgepd undo i1 --kind preferred"
    assert len(two.asked(FEEDBACK)) == 1


@pytest.mark.parametrize(("key", "winner", "loser"), [("1", "i1", "i2"), ("2", "i2", "i1")])
def test_blind(two: FakeDaemon, edgepd: Edgepd, typed: None, key: str, winner: str, loser: str) -> None:
    result = edgepd("compare", "Is it?", stdin=f"?\n{key}\n")  # what is no choice is asked again
    assert result.exit_code == 0
    assert result.stdout == "--- 1\nYes.\n--- 2\nNo.\n"
    question, reveal = result.stderr.split("1 was ")  # nothing before the choice tells whose answer is whose
    assert "generation" not in question
    first, second = asked(two)
    kinds = {"default@4": "generation 4 (live)", "default@3": "generation 3 (baked)"}
    assert reveal.startswith(f"{kinds[first]}, 2 was {kinds[second]}\n")
    assert two.asked(FEEDBACK) == [{"interaction_id": winner, "preferred_over": loser, "source": "cli"}]


def test_the_order_is_random(two: FakeDaemon, edgepd: Edgepd, typed: None) -> None:
    for _ in range(24):
        two.on(f"POST {CHAT}", answer("Yes.", "i1"), answer("No.", "i2"))
        edgepd("compare", "Is it?", stdin="q\n")
    assert {tuple(asked(two)[n : n + 2]) for n in range(0, 48, 2)} == {  # 2^-23 that one of them is missing
        ("default@3", "default@4"),
        ("default@4", "default@3"),
    }


def test_not_blind(two: FakeDaemon, edgepd: Edgepd, typed: None) -> None:
    result = edgepd("compare", "--no-blind", "Is it?", stdin="2\n")
    assert result.stdout == "--- 1: generation 4 (live)\nYes.\n--- 2: generation 3 (baked)\nNo.\n"
    assert two.asked(FEEDBACK) == [{"interaction_id": "i2", "preferred_over": "i1", "source": "cli"}]


@pytest.mark.parametrize("key", ["=", "q"])
def test_no_difference_and_quit_record_nothing(two: FakeDaemon, edgepd: Edgepd, typed: None, key: str) -> None:
    result = edgepd("compare", "Is it?", stdin=f"{key}\n")
    assert (result.exit_code, two.asked(FEEDBACK)) == (0, [])
    assert "nothing was recorded: 1 was generation " in result.stderr


def test_leaving_the_question_unanswered_records_nothing(two: FakeDaemon, edgepd: Edgepd, typed: None) -> None:
    assert edgepd("compare", "Is it?", stdin="").exit_code == 130
    assert two.asked(FEEDBACK) == []


@pytest.mark.parametrize("args", [(), ("--choose", "1")])
def test_equal_answers(two: FakeDaemon, edgepd: Edgepd, typed: None, args: tuple[str, ...]) -> None:
    two.on(f"POST {CHAT}", answer("Yes.", "i1"), answer("Yes.\n", "i2"))
    result = edgepd("compare", *args, "Is it?", stdin="")
    assert (result.exit_code, two.asked(FEEDBACK)) == (0, [])
    assert result.stderr.startswith("both answers are the same, so nothing was recorded: 1 was generation ")


def test_without_a_terminal_nobody_can_be_asked(two: FakeDaemon, edgepd: Edgepd) -> None:
    result = edgepd("compare", "Is it?", stdin="1\n")
    assert (result.exit_code, two.requests) == (2, [])
    assert result.stderr == (
        "Error: there is no terminal to ask at; use --choose 1, 2 or =, or --json to see the answers only\n"
    )


def test_the_question_may_come_from_a_pipe(two: FakeDaemon, edgepd: Edgepd) -> None:
    assert edgepd("compare", "--choose", "=", stdin="Is it?\n").exit_code == 0
    assert two.asked(CHAT)[0]["messages"] == [{"role": "user", "content": "Is it?"}]
    empty = edgepd("compare", "--choose", "=", stdin="\n")
    assert (empty.exit_code, empty.stderr.split(";")[0]) == (2, "Error: the question is empty")


def test_answers_that_are_not_stored_cannot_be_judged(two: FakeDaemon, edgepd: Edgepd) -> None:
    two.on(f"POST {CHAT}", answer("Yes.", None), answer("No.", None))
    result = edgepd("compare", "--choose", "1", "Is it?")
    assert (result.exit_code, two.asked(FEEDBACK)) == (2, [])
    assert result.stderr == "Error: the daemon does not store answers, so a preference between them cannot be kept\n"


def test_an_answer_that_fails(two: FakeDaemon, edgepd: Edgepd) -> None:
    refused: Reply = error(409, "conflict", "generation 5 is rejected and cannot serve")
    two.on(f"POST {CHAT}", answer("Yes.", "i1"), refused)
    result = edgepd("compare", "-b", "5", "--choose", "1", "Is it?")
    assert (result.exit_code, result.stdout, two.asked(FEEDBACK)) == (6, "", [])
    assert result.stderr == "Error: generation 5 is rejected and cannot serve\n"


def test_side_by_side_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    answers = [
        Contestant("1", 4, "live", "[bold]Yes\x1b[2J", "i1", "stop"),
        Contestant("2", 3, "baked", "No.", "i2", "stop"),
    ]
    _side_by_side(answers, named=False)
    drawn = capsys.readouterr().out
    (line,) = [line for line in drawn.splitlines() if "No." in line]
    assert "[bold]Yes\N{REPLACEMENT CHARACTER}[2J" in line  # neither markup nor what moves the cursor
    assert "\x1b[2J" not in drawn
    assert "generation" not in drawn
