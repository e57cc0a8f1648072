"""Errors: each class says one thing to a script (exit code), to HTTP (status, code) and to a person (sentence)."""

from __future__ import annotations

import inspect
from http import HTTPStatus
from pathlib import Path

import pytest

from edgepd import errors
from edgepd.errors import EdgepdError, FormatError

# (exit code, HTTP status, code): what scripts and clients rely on. Changing a line here is a breaking change.
DOCUMENTED = {
    "EdgepdError": (1, 500, "internal_error"),
    "ConfigError": (2, 400, "invalid_config"),
    "RequestError": (2, 400, "invalid_request"),
    "ContextOverflowError": (2, 400, "context_length_exceeded"),
    "DaemonNotRunningError": (3, 503, "daemon_not_running"),
    "NotFoundError": (4, 404, "not_found"),
    "ModelError": (5, 503, "model_unavailable"),
    "FormatError": (5, 503, "model_unavailable"),
    "TemplateError": (5, 400, "template_error"),
    "AdapterError": (5, 409, "adapter_refused"),
    "ConflictError": (6, 409, "conflict"),
    "BusyError": (6, 503, "busy"),
    "TrainingError": (7, 409, "training_refused"),
    "StoreError": (8, 507, "storage_failed"),
}


def error_classes() -> dict[str, type[EdgepdError]]:
    found = inspect.getmembers(errors, inspect.isclass)
    return {name: kind for name, kind in found if issubclass(kind, EdgepdError)}


def test_exit_codes_and_statuses_are_as_documented() -> None:
    found = {name: (kind.exit_code, kind.http_status, kind.code) for name, kind in error_classes().items()}
    assert found == DOCUMENTED


def test_codes_tell_the_classes_apart() -> None:
    """A FormatError is a ModelError whose reason is known; the rest differ in their code."""
    codes = [kind.code for kind in error_classes().values() if kind is not FormatError]
    assert len(codes) == len(set(codes))


def test_the_module_explains_each_exit_code() -> None:
    text = str(errors.__doc__).split("Exit codes:")[1]
    for kind in error_classes().values():
        assert f"{kind.exit_code} " in text


@pytest.mark.parametrize("kind", error_classes().values())
def test_each_class_says_what_it_means(kind: type[EdgepdError]) -> None:
    assert "__doc__" in vars(kind)
    assert str(kind.__doc__).strip().endswith(".")
    assert HTTPStatus(kind.http_status) >= 400


@pytest.mark.parametrize("kind", [kind for kind in error_classes().values() if kind is not FormatError])
def test_the_message_is_the_sentence_given(kind: type[EdgepdError]) -> None:
    assert str(kind("model 'x' is not installed")) == "model 'x' is not installed"


def test_format_error_names_file_and_offset() -> None:
    error = FormatError("/models/x.gguf", 24, "tensor count 9 is larger than the file")
    assert str(error) == "/models/x.gguf: byte 24: tensor count 9 is larger than the file"
    assert (error.path, error.offset) == (Path("/models/x.gguf"), 24)
    assert error.problem == "tensor count 9 is larger than the file"
