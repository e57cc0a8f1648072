"""What the dialects of the API have in common: checks of texts and fields, and who is asking.

What this does not do: know the name of any field that only one dialect has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import Request
from pydantic import BaseModel

from edgepd.errors import RequestError

MAX_TOP_LOGPROBS = 20  # as OpenAI's own API and Ollama have it
INT32 = 2**31 - 1  # llama.cpp counts in 32-bit integers


def refuse_half_characters(texts: Iterable[str]) -> None:
    """Raise RequestError for a text with half a surrogate pair, which JSON can spell and no tokenizer takes."""
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RequestError(f"a text has half a character (a lone surrogate) at position {error.start}") from error


def texts_in(value: object) -> list[str]:
    """Return every text inside a request or a JSON value, keys included, however deep it is nested."""
    found: list[str] = []
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, BaseModel):
            waiting += [part for pair in item for part in pair]
        elif isinstance(item, Mapping):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple):
            waiting += item
    return found


def refuse_unknown(given: Mapping[str, Any] | None, where: str) -> None:
    """Raise RequestError if there are fields that have a value and that nobody here understands.

    A misspelt field that passed silently would look like one that has no effect.
    """
    unknown = sorted(name for name, value in (given or {}).items() if value is not None)
    if unknown:
        raise RequestError(f"{where} does not understand {', '.join(f'`{name}`' for name in unknown)}; leave it out")


def client_of(request: Request) -> str:
    """Return who is asking, so that the engine can be fair between clients; empty if that is not known."""
    return request.client.host if request.client else ""
