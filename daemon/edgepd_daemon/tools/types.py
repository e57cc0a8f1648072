"""Tools and calls, in no client's dialect."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any

# What a client may say about calling tools, instead of naming one.
AUTO, NONE, REQUIRED = "auto", "none", "required"


@dataclass(frozen=True)
class Tool:
    """A function that the client can run. `parameters` is the JSON schema of its arguments, an object."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the tool as chat templates expect it, which is OpenAI's form."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class ToolCall:
    """A call that the model wants made. `arguments` is JSON text, an object."""

    id: str
    name: str
    arguments: str


def new_call_id() -> str:
    """Return a fresh id for a tool call."""
    return f"call_{secrets.token_hex(12)}"
