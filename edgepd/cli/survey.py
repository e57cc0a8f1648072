"""`edgepd survey` and `edgepd review`: what edgepd asks the user, when the user is ready for it.

The idea: a survey is one question a day about how things go in general; a review asks about single answers, those that
it would help most to know about first. Both are bounded by the daemon, never by this program.
The invariants: leaving with Ctrl-C or q settles nothing; with --json and without an answer nothing is asked.
What this does not do: choose the questions.
"""

from __future__ import annotations

from typing import Any

import click

from edgepd.cli.feedback import edited
from edgepd.cli.output import checked_text, connect, json_option, note, printable, show, stdin_is_terminal
from edgepd.client import Client, Json, Outcome
from edgepd.errors import NotFoundError, RequestError

SCALE = ("1", "2", "3", "4", "5")
SKIP = "s"
KEYS = ("y", "n", "e", SKIP, "q")
OUTCOMES: dict[str, Outcome] = {"y": "accepted", "n": "bad", SKIP: "skipped"}
SAID = {"y": "good", "n": "bad", SKIP: "skipped"}
NO_SURVEY = "there is no question for you today; edgepd asks only if profile.surveys is set to true"
NO_REVIEW = "there is nothing to review today; profile.questions_per_day says how many answers are asked about"


@click.command()
@click.option("--answer", metavar="ANSWER", help="Answer without being asked: 1 to 5, a few words, or s to skip.")
@json_option
def survey(answer: str | None, as_json: bool) -> None:
    """Answer the question of the day, if there is one: 1 (bad) to 5 (good), a few words, or s to skip it.

    Surveys are off until profile.surveys is set to true, and there is at most one question a day.
    """
    with connect() as client:
        pending = client.next_survey()
        if pending is None:
            _nothing({"survey": None}, NO_SURVEY, as_json, answer is not None)
            return
        if answer is not None:
            settled = _answer_survey(client, pending, checked_text(answer, "answer"))
        elif as_json:
            settled = pending
        else:
            _needs_terminal("--answer")
            settled = ask_survey(client, pending)
    show({"survey": settled}, "" if as_json else answered(settled), as_json)


def ask_survey(client: Client, pending: Json) -> Json:
    """Ask a survey question on the terminal and return the answered survey. Raises click.Abort for Ctrl-C."""
    note(pending["question"])
    said = click.prompt("1 to 5, a few words, or s to skip", default=SKIP, show_default=False, err=True)
    return _answer_survey(client, pending, str(said).strip() or SKIP)


def answered(settled: Json) -> str:
    """Say what became of a survey question."""
    if settled.get("value") is None and settled.get("text") is None:
        return "skipped"
    return "thank you; your answer is kept"


def _answer_survey(client: Client, pending: Json, said: str) -> Json:
    if said.lower() == SKIP:
        return client.answer_survey(pending["id"])
    if said in SCALE:
        return client.answer_survey(pending["id"], value=int(said))
    if said.lstrip("-").isdecimal():
        raise RequestError(f"{said} is not on the scale; answer with 1 to 5, with a few words, or s to skip")
    return client.answer_survey(pending["id"], text=said)


@click.command()
@click.option("--choose", type=click.Choice(["y", "n", SKIP]), help="Settle one without being asked: good, bad, skip.")
@click.option("--text", help="Settle one without being asked: the corrected text.")
@json_option
def review(choose: str | None, text: str | None, as_json: bool) -> None:
    """Go through the answers that it would help most to know about, and say whether they were good.

    y it was good, n it was bad, e correct it in your editor, s skip it, q leave. Ctrl-C leaves too; what has been
    settled until then is kept. With --json alone, the next one is shown and nothing is asked.

    \b
    edgepd review
    edgepd review --json                       # what would be asked
    edgepd review --text "The right answer."   # settles exactly one
    """
    if choose is not None and text is not None:
        raise RequestError("an answer is settled by --choose or by --text, not by both")
    with connect() as client:
        question = client.next_question()
        if question is None:
            _nothing({"question": None}, NO_REVIEW, as_json, choose is not None or text is not None)
        elif choose is not None or text is not None:
            corrected = None if text is None else checked_text(text, "corrected text")
            kept = _settle(client, question, choose or "e", corrected)
            show(kept, _settled(question, choose or "e"), as_json)
        elif as_json:
            show({"question": question}, "", as_json)
        else:
            _needs_terminal("--choose or --text")
            _go_through(client, question)


def _go_through(client: Client, question: Json | None) -> None:
    count = 0
    while question is not None:
        click.echo(_described(question))
        key = click.prompt("Good? y, n, e, s, q", type=click.Choice(KEYS), show_choices=False, err=True)
        if key == "q":
            break
        try:
            corrected = checked_text(edited(question["response"]), "corrected text") if key == "e" else None
        except (RequestError, click.ClickException) as error:  # unchanged, or no editor: it is asked again
            note(f"Error: {error}")
            continue
        _settle(client, question, key, corrected)
        note(_settled(question, key))
        count += 1
        question = client.next_question()
    note(f"{count} settled" if question is not None else f"{count} settled, and nothing is left for today")


def _described(question: Json) -> str:
    """Show what was asked and answered, and why it is asked about."""
    left = question.get("left_today")
    more = f"; {left} left today" if isinstance(left, int) and left else ""
    return printable(
        f"--- you asked\n{question['prompt']}\n--- the answer\n{question['response']}\n"
        f"--- asked because {question['reason']}{more}"
    )


def _settle(client: Client, question: Json, key: str, corrected: str | None) -> Json:
    if corrected is not None:
        return client.correct_question(question["interaction"], corrected)
    return client.settle_question(question["interaction"], OUTCOMES[key])


def _settled(question: Json, key: str) -> str:
    said = SAID.get(key, "correction kept")
    return f"{question['interaction']}: {said}"


def _needs_terminal(option: str) -> None:
    if not stdin_is_terminal():
        raise RequestError(f"there is no terminal to ask at; use {option}, or --json to see the question only")


def _nothing(value: Any, text: str, as_json: bool, was_answered: bool) -> None:
    """Tell that nothing is asked. Raises NotFoundError if there was an answer to it all the same."""
    if was_answered:
        raise NotFoundError(text)
    show(value, text, as_json)
