"""Talk to the daemon: a synchronous client of its HTTP API over the Unix socket.

The idea: one method per route, JSON objects in and out as the API documents them; the routes about the user are in
profile_client.py and privacy_client.py, those about events in intent_client.py, those about the budget in
budget_client.py, which this joins. The invariant:
whatever goes wrong leaves this module as an EdgepdError, and an error that the daemon explains keeps its class (and
with it its exit code), found by the `code` in the answer.
What this does not do: start the daemon, repeat a failed request, or interpret what an answer says.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import httpx

from edgepd.budget_client import BudgetCalls
from edgepd.client_calls import Json as Json
from edgepd.client_errors import encoded, error_in, explained, parsed, segment
from edgepd.errors import BusyError, DaemonNotRunningError, EdgepdError
from edgepd.intent_client import MOST_EVENTS as MOST_EVENTS
from edgepd.intent_client import IntentCalls
from edgepd.privacy_client import PrivacyCalls
from edgepd.profile_client import FeedbackKind as FeedbackKind
from edgepd.profile_client import Outcome as Outcome
from edgepd.profile_client import ProfileCalls

Kind = Literal["live", "baked", "intent"]

CONNECT_TIMEOUT_S = 5.0
GENERATIONS = "/edgepd/v1/generations"
NOT_SERVING = ("failed", "draining")  # what /healthz says when nothing more will be answered


class Client(ProfileCalls, PrivacyCalls, IntentCalls, BudgetCalls):
    """A connection to the daemon that listens on `socket_path`. Use it as a context manager, or call `close()`.

    `timeout` is in seconds and bounds the wait for most answers. Chat completions, plans, and what copies, compares or
    checks whole model files take as long as they need. Methods raise DaemonNotRunningError if nobody listens, and the
    EdgepdError that the daemon names if it refuses.
    """

    def __init__(self, socket_path: Path, timeout: float = 60.0) -> None:
        self.socket = socket_path
        self._http = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(socket_path)),
            base_url="http://edgepd",
            headers={"Content-Type": "application/json"},
            timeout=httpx.Timeout(timeout, connect=CONNECT_TIMEOUT_S),
        )
        self._patient = httpx.Timeout(None, connect=CONNECT_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def health(self) -> Json:
        """Return {"status", "live", "ready", "loading_percent", "version", "pid", "uptime_s", "model", "generation"}.

        A status of NOT_SERVING is an answer too, although the daemon gives it with 503: who asks may want the pid.
        """
        with self._explained():
            response = self._http.get("/healthz")
        if response.is_error and not _tells_health(response):
            raise error_in(response)
        return parsed(response.text, "answer")

    def status(self) -> Json:
        """Return what the daemon is doing: model, generation, engine, profile, training, budget, memory, problems."""
        return self._call("GET", "/edgepd/v1/status")

    def activity(self) -> Json:
        """Return what is going on right now.

        That is {"model", "generation", "engine", "training", "curve", "budget", "generations", "feedback", "memory",
        "problems"}, where "curve" has pairs of step and loss of the run that goes on.
        """
        return self._call("GET", "/edgepd/v1/activity")

    def reload(self) -> Json:
        """Let the daemon read its settings again. Returns {"applied", "needs_restart"}, both lists of settings.

        Raises ConfigError, with nothing changed, if they make no sense.
        """
        return self._call("POST", "/edgepd/v1/reload")

    def models(self) -> list[Json]:
        """Return the models that a request can name: "default", "base" and "<model>@<generation>"."""
        return list(self._call("GET", "/v1/models")["data"])

    def chat(self, request: Json) -> Json:
        """Return the whole answer to a chat completion request."""
        body = encoded(request | {"stream": False})
        return self._call("POST", "/v1/chat/completions", content=body, timeout=self._patient)

    def stream_chat(self, request: Json) -> Generator[Json, None, None]:
        """Yield the chunks of the answer to a chat completion request as they arrive.

        Closing the iterator closes the connection, which makes the daemon stop the answer. Raises the error that
        the daemon sends in the middle of a stream, and EdgepdError if the stream ends before its [DONE].
        """
        body = encoded(request | {"stream": True})
        with (
            self._explained(),
            self._http.stream("POST", "/v1/chat/completions", content=body, timeout=self._patient) as response,
        ):
            if response.is_error:
                response.read()
                raise error_in(response)
            for line in response.iter_lines():
                if not line.startswith("data:"):
                    continue  # comments and blank lines keep a connection alive and carry nothing
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                event = parsed(data, "event")
                if "error" in event:
                    raise explained(event["error"], response.status_code)
                yield event
            raise EdgepdError(f"the daemon on {self.socket} broke off the answer; its log says why")

    def interactions(
        self,
        limit: int = 20,
        query: str | None = None,
        since: float | None = None,
        until: float | None = None,
        app: str | None = None,
    ) -> list[Json]:
        """Return the newest interactions, newest first, or those that match a query, best first.

        `since` and `until` are in seconds since 1970. Found ones have a "score" and a "snippet" too.
        """
        given = {"limit": limit, "q": query, "since": since, "until": until, "app": app}
        params = {name: value for name, value in given.items() if value is not None}
        return list(self._call("GET", "/edgepd/v1/interactions", params=params)["interactions"])

    def interaction(self, interaction_id: str) -> Json:
        """Return one interaction with its feedback. `interaction_id` may be "last"."""
        return self._call("GET", f"/edgepd/v1/interactions/{segment(interaction_id)}")

    def start_training(self, kind: Kind) -> Json:
        """Start a run and return it. Raises TrainingError or ConflictError if it cannot start."""
        return dict(self._call("POST", "/edgepd/v1/training", content=encoded({"kind": kind}))["run"])

    def plan_training(self, kind: Kind) -> Json:
        """Return what a run would do and cost. Raises TrainingError or ConflictError with the reason if it cannot be.

        The daemon starts the trainer for it, so the answer takes seconds, on a small machine many.
        """
        body = encoded({"kind": kind})
        return dict(self._call("POST", "/edgepd/v1/training/plan", content=body, timeout=self._patient)["plan"])

    def training(self, run_id: str | int) -> Json:
        """Return {"run", "progress"}; progress is null when there is none to tell."""
        return self._call("GET", f"/edgepd/v1/training/{segment(run_id)}")

    def training_runs(self) -> list[Json]:
        """Return all runs, newest first."""
        return list(self._call("GET", "/edgepd/v1/training")["runs"])

    def stop_training(self, run_id: str | int) -> Json:
        """Stop a run."""
        return self._call("DELETE", f"/edgepd/v1/training/{segment(run_id)}")

    def generations(self) -> Json:
        """Return {"active": id, "generations": [...]}."""
        return self._call("GET", GENERATIONS)

    def generation(self, generation: int) -> Json:
        """Return {"generation", "lineage", "children", "verdict", "example_count", "model", "adapter"}."""
        return self._call("GET", f"{GENERATIONS}/{generation}")

    def diff_generations(self, a: int, b: int) -> Json:
        """Return {"a", "b", "examples", "config", "scores", "tensors"}: what is different in `b`."""
        return self._call("GET", f"{GENERATIONS}/{a}/diff/{b}", timeout=self._patient)

    def rollback(self, to: int | None = None) -> Json:
        """Go back to the previous generation, or to `to`. Returns {"active", "previous", "prepare_ms"}."""
        return self._post(f"{GENERATIONS}/rollback", {} if to is None else {"to": to})

    def activate(self, generation: int, expected: int | None = None) -> Json:
        """Make a generation the live one, if `expected` is live now (None: whichever is). Returns as `rollback`."""
        return self._post(f"{GENERATIONS}/activate", {"generation": generation, "expected": expected})

    def pin_generation(self, generation: int, pinned: bool) -> Json:
        """Keep a generation's files whatever the retention rule says, or stop doing so. Returns the generation."""
        return dict(self._post(f"{GENERATIONS}/{generation}/pin", {"pinned": pinned})["generation"])

    def delete_generation(self, generation: int) -> Json:
        """Delete a generation's files. Returns {"generation", "freed_bytes"}. Raises ConflictError if it is needed."""
        return self._call("DELETE", f"{GENERATIONS}/{generation}", timeout=self._patient)

    def import_generation(self, path: Path) -> Json:
        """Copy an adapter or model file, named by its absolute path, into a new candidate and return that."""
        return dict(self._post(f"{GENERATIONS}/import", {"path": str(path)})["generation"])

    def merge_generations(
        self, generations: Sequence[int], weights: Sequence[float] | None = None, rank: int | None = None
    ) -> Json:
        """Merge live generations of one model file into a new candidate and return that.

        Without `weights` all count alike; without `rank` the merge is exact, and its rank the sum of theirs.
        """
        body = {"generations": [*generations], "weights": None if weights is None else [*weights], "rank": rank}
        return dict(self._post(f"{GENERATIONS}/merge", body)["generation"])

    def _post(self, path: str, body: Json) -> Json:
        """Post to a route that may check or copy whole files, and so take as long as that takes."""
        return self._call("POST", path, content=encoded(body), timeout=self._patient)

    def _call(self, method: str, path: str, **options: Any) -> Json:
        with self._explained():
            response = self._http.request(method, path, **options)
        if response.is_error:
            raise error_in(response)
        return parsed(response.text, "answer")

    def _probe(self) -> None:
        """Raise OSError if nobody listens. httpcore would leak its socket then, and hide the reason."""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(CONNECT_TIMEOUT_S)
            probe.connect(str(self.socket))

    def _lines(self, path: str, params: Json) -> Generator[str, None, None]:
        with self._explained(), self._http.stream("GET", path, params=params, timeout=self._patient) as response:
            if response.is_error:
                response.read()
                raise error_in(response)
            rest = b""
            for chunk in response.iter_bytes():
                # Not iter_lines: that would also break lines at U+2028 and the like, which JSON strings may hold.
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (line.decode(errors="replace") for line in lines if line.strip())
            if rest.strip():
                yield rest.decode(errors="replace")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what the transport raises into an EdgepdError."""
        try:
            self._probe()
            yield
        except PermissionError as error:
            raise EdgepdError(f"{self.socket} belongs to another user; each user runs an own daemon") from error
        except BlockingIOError as error:  # the backlog of the socket is full
            raise BusyError(f"too many clients wait for the daemon on {self.socket}; try again") from error
        except (OSError, httpx.ConnectError) as error:
            raise DaemonNotRunningError(
                f"no daemon answers on {self.socket}; start one with: edgepd service start, or edgepd daemon run"
            ) from error
        except httpx.TimeoutException as error:
            raise BusyError(f"the daemon on {self.socket} did not answer in time; try again") from error
        except httpx.TransportError as error:
            raise EdgepdError(
                f"the connection to the daemon on {self.socket} broke ({error}); its log says why"
            ) from error


def _tells_health(response: httpx.Response) -> bool:
    try:
        return response.json()["status"] in NOT_SERVING
    except (ValueError, KeyError, TypeError):
        return False
