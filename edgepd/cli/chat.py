"""`edgepd chat`: talk with the model, and correct it as you go."""

from __future__ import annotations

import contextlib

import click

from edgepd.cli.conversation import APP, Conversation
from edgepd.cli.output import connect, json_option, note, stdin_is_terminal
from edgepd.cli.repl import Repl
from edgepd.cli.screen import JsonScreen, Screen, TextScreen
from edgepd.cli.survey import answered, ask_survey
from edgepd.client import Client
from edgepd.errors import BusyError, EdgepdError

ENDING = {
    "failed": "the daemon's engine has failed and its log says why; start it again with: edgepd daemon run",
    "draining": "the daemon is stopping and takes no more questions; start it again with: edgepd daemon run",
}
RESUME_LIMIT = 100  # newest interactions in which a conversation to go on with is looked for


@click.command()
@click.option("--model", default="default", show_default=True, help="default, base or MODEL@GENERATION.")
@click.option("--system", help="System message.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="0 always takes the likeliest token.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Length limit of each answer.")
@click.option("--conversation", "conversation_id", metavar="ID", help="Go on with this conversation; /stats shows it.")
@click.option("--incognito", is_flag=True, help="Store nothing and use nothing of your profile.")
@json_option
def chat(
    model: str,
    system: str | None,
    temperature: float | None,
    max_tokens: int | None,
    conversation_id: str | None,
    incognito: bool,
    as_json: bool,
) -> None:
    """Talk with the model. /help lists what can be done besides asking; questions may come from a pipe, one a line.

    On a terminal it is also kept how long you look at an answer and whether you stop it, unless you are incognito.
    """
    conversation = Conversation(model, system, temperature, max_tokens, incognito=incognito)
    screen: Screen = JsonScreen() if as_json else TextScreen()
    with connect() as client:
        served = _served(client)
        if conversation_id is not None:
            conversation.id = conversation_id
            _resume(client, conversation)
            screen.notice(f"{len(conversation.turns)} turns so far")
        if stdin_is_terminal():
            screen.notice(f"{served}; /help lists the commands")
        Repl(client, conversation, screen).run()
        if stdin_is_terminal() and not (as_json or conversation.incognito):
            _survey(client)


def _survey(client: Client) -> None:
    """Ask the survey question of the day, if there is one. Whoever leaves a chat is not held up by anything wrong."""
    with contextlib.suppress(EdgepdError, click.Abort):
        pending = client.next_survey(app=APP)
        if pending is not None:
            note(answered(ask_survey(client, pending)))


def _served(client: Client) -> str:
    """Return the model that is served. Raises BusyError before the first question rather than after it."""
    health = client.health()
    if health["status"] in ENDING:
        raise BusyError(ENDING[health["status"]])
    return str(health["model"])


def _resume(client: Client, conversation: Conversation) -> None:
    for found in client.interactions(RESUME_LIMIT):
        if found["conversation"] == conversation.id and found["response"]:
            conversation.resume(client.interaction(found["id"]))
            return
