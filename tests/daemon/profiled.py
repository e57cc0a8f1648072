"""The scripted API with everything about the user behind it, forgetting included.

The idea: `profiled()` serves what scripted.py does, with the real Forgetter; of it only the generations, the trainer
and the engine's saved conversations are stand-ins, because nothing was ever trained. `ask` is one exchange that has
ended and was observed; `put` writes one that lies in the past.
What this does not do: train, or hold conversations in a KV cache.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import httpx

from edgepd.adapt.job import JobKind
from edgepd_daemon.forgetter import Forgetter
from edgepd_profiles import interactions
from edgepd_profiles.interactions import Interaction
from tests.daemon.running import Json, error_of, question
from tests.daemon.scripted import Scripted, ScriptedGenerations, scripted

OWN = "/edgepd/v1"


class QuietTrainer:
    """Trains nothing."""

    run = None

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[JobKind | None]:
        """Stop nothing."""
        yield None


@contextmanager
def profiled(**fields: Any) -> Iterator[Scripted]:
    """Serve the API with a real Forgetter until the block ends."""
    with scripted(**fields) as served:
        services, directory = served.services, served.store.path.parent
        services.paths = replace(services.paths, models_dir=directory / "models")
        generations = SimpleNamespace(
            active=ScriptedGenerations.active.__get__(served.generations),
            get=ScriptedGenerations.get.__get__(served.generations),
            take_out=lambda write: served.store.write(write).result(),
            discard_files=lambda _number: None,
        )
        parts = (generations, QuietTrainer(), SimpleNamespace(forget_conversations=lambda: 0))
        services.forgetter = Forgetter(
            served.store, *cast("tuple[Any, Any, Any]", parts), services.personaliser, services.paths
        )
        yield served


def ask(served: Scripted, text: str | list[Json], app: str = "", answer: str = "Fine.", **fields: Any) -> str:
    """Ask a question (or send messages), let it be answered and observed, and return the interaction's id."""
    served.engine.enqueue(answer)
    body = question("", **fields) if isinstance(text, list) else question(text, **fields)
    if isinstance(text, list):
        body["messages"] = text
    found = ok(served.client.post("/v1/chat/completions", json=body | {"app": app}))
    served.wait_until_idle()
    served.store.write(lambda _conn: None).result()  # what was observed was written before this
    return str(found["interaction_id"])


def put(served: Scripted, name: str, prompt: str, app: str = "", *, ago: float = 0.0, **fields: Any) -> str:
    """Write an exchange that ended `ago` seconds before now."""
    usual: Json = {"messages": [{"role": "user", "content": prompt}], "response": "Fine.", "state": "done"}
    row = Interaction(name, name, time.time() - ago, app, "tiny@2", 2, **usual | fields)
    served.store.write(lambda conn: interactions.begin(conn, row)).result()
    return name


def get(served: Scripted, path: str, **params: Any) -> Json:
    """GET one of edgepd's own routes, with success."""
    return ok(served.client.get(OWN + path, params=params))


def post(served: Scripted, path: str, **body: Any) -> Json:
    """POST to one of edgepd's own routes, with success."""
    return ok(served.client.post(OWN + path, json=body))


def call(served: Scripted, method: str, path: str, *, params: Json | None = None, **body: Any) -> httpx.Response:
    """Send any request to one of edgepd's own routes."""
    return served.client.request(method, OWN + path, params=params, json=body if method in ("POST", "PUT") else None)


def refused(response: httpx.Response) -> tuple[int, str]:
    """Return status and message of a refusal."""
    status, _, message = error_of(response)
    return status, message


def ok(response: httpx.Response) -> Json:
    """Return the answer, which must be a success."""
    assert response.is_success, f"{response.status_code}: {response.text}"
    found: Json = response.json()
    return found
