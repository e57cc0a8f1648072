"""Requests made up from our own OpenAPI document: whatever is asked, no failure of ours and no hang.

The same ones are made up in every run, valid and invalid. They go to a real daemon with the tiny model, over its
loopback port.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis import APIOperation, Case, GenerationMode

from edgepd_daemon.api.app import openapi_document
from tests.daemon.running import TINY_SETTINGS, Daemon, running, short_directory

ANSWER_SECONDS = 30
EXAMPLES = 20  # for each operation and each kind
# Training is refused, or corrections that were made up would start it.
SETTINGS = (*TINY_SETTINGS, "train.min_examples=100000", "serve.max_tokens=16")
LEFT_OUT = "/edgepd/v1/serving"  # 256 threads on two cores would make everything that follows take too long
OURS = {501, 503}  # what our own answers may be beyond 499: an unsupported operation, a queue that is full


@dataclass
class Port:
    """A daemon that is spoken to over TCP."""

    daemon: Daemon
    base_url: str
    headers: dict[str, str]


@pytest.fixture(scope="module")
def port(tiny_models: Path) -> Iterator[Port]:
    """One daemon for all requests."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        number = free.getsockname()[1]
    settings = (*SETTINGS, f"serve.tcp_port={number}")
    with short_directory() as home, running(home, tiny_models, *settings) as daemon:
        daemon.chat("Something that `last` means", max_tokens=1)
        token = daemon.paths.token.read_text().strip()
        yield Port(daemon, f"http://127.0.0.1:{number}", {"Authorization": f"Bearer {token}"})
        assert daemon.process.poll() is None
        assert "Traceback" not in daemon.log


def kinds() -> list[tuple[APIOperation, GenerationMode]]:
    """Every route that the document shows, with valid and, where something can be wrong, invalid requests."""
    schema = schemathesis.openapi.from_dict(openapi_document())
    operations = [result.ok() for result in schema.get_all_operations()]
    chosen = [operation for operation in operations if operation.path != LEFT_OUT]
    wrong = [operation for operation in chosen if can_be_wrong(operation)]
    return [(o, GenerationMode.POSITIVE) for o in chosen] + [(o, GenerationMode.NEGATIVE) for o in wrong]


def can_be_wrong(operation: APIOperation) -> bool:
    """Whether there is a request that the document forbids; any text is a valid name in a path."""
    in_path = [parameter.definition["schema"].get("type") for parameter in operation.path_parameters]
    return bool(operation.body or operation.query or set(in_path) - {"string"})


@pytest.mark.parametrize(
    ("operation", "mode"), kinds(), ids=lambda v: v.value if isinstance(v, GenerationMode) else v.label
)
def test_no_request_makes_it_fail(port: Port, operation: APIOperation, mode: GenerationMode) -> None:
    @hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def answered(case: Case) -> None:
        response = case.call(base_url=port.base_url, headers=port.headers, timeout=ANSWER_SECONDS)
        assert response.status_code < 500 or response.status_code in OURS, case.as_curl_command()
        if response.status_code >= 400:
            assert "error" in response.json(), case.as_curl_command()

    answered()
