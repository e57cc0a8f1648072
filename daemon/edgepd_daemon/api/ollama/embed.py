"""/api/embed and its older form /api/embeddings: vectors for texts.

`default` and the model's plain name mean the base model here, so that an index stays valid while the user's own
model learns; a generation can be named.
"""

from __future__ import annotations

import asyncio
import time

from fastapi import APIRouter, Request
from fastapi.responses import Response

from edgepd.errors import ContextOverflowError, NotFoundError, RequestError
from edgepd_daemon.api.access import Access
from edgepd_daemon.api.common import refuse_half_characters, refuse_unknown, texts_in
from edgepd_daemon.api.disconnect import GONE, unless_gone
from edgepd_daemon.api.durations import parse_keep_alive
from edgepd_daemon.api.ollama.fields import EmbedBody, OldEmbedBody, untagged
from edgepd_daemon.api.ollama.ndjson import json_response, unknown_model
from edgepd_daemon.engine.types import Version
from edgepd_daemon.services import Services

router = APIRouter()


@router.post("/api/embed", response_model=None)
async def embed(body: EmbedBody, services: Access, request: Request) -> Response:
    """Return a vector of length 1 for each input. No input loads the model."""
    arrived_ns = time.monotonic_ns()
    _check(body, services)
    texts = [body.input] if isinstance(body.input, str) else body.input
    version = await _version(services, body.model)
    started_ns = time.monotonic_ns()
    if texts in ([], [""]):
        vectors, tokens = [], 0
    else:
        inputs = await asyncio.to_thread(_tokenized, services, version, texts, cut=body.truncate is not False)
        _check_dimensions(services, version, body.dimensions)
        embedded = await _embedded(request, services, version, inputs, body.keep_alive)
        if embedded is None:
            return Response(status_code=GONE)
        vectors, tokens = embedded, sum(map(len, inputs))
    return json_response(
        {
            "model": body.model,
            "embeddings": vectors,
            "total_duration": time.monotonic_ns() - arrived_ns,
            "load_duration": started_ns - arrived_ns,
            "prompt_eval_count": tokens,
            "generation": version.generation,
        }
    )


@router.post("/api/embeddings", response_model=None, deprecated=True)
async def embeddings(body: OldEmbedBody, services: Access, request: Request) -> Response:
    """Return a vector of length 1 for one prompt; /api/embed has replaced this route."""
    _check(body, services)
    version = await _version(services, body.model)
    if not body.prompt:
        return json_response({"embedding": []})
    inputs = await asyncio.to_thread(_tokenized, services, version, [body.prompt], cut=True)
    embedded = await _embedded(request, services, version, inputs, body.keep_alive)
    return Response(status_code=GONE) if embedded is None else json_response({"embedding": embedded[0]})


def _check(body: EmbedBody | OldEmbedBody, services: Services) -> None:
    refuse_half_characters(texts_in(body))
    refuse_unknown(body.model_extra, "this route")
    parse_keep_alive(body.keep_alive)
    if body.options:
        body.options.refuse_unsupported(services.engine.context_tokens)


def _check_dimensions(services: Services, version: Version, dimensions: int | None) -> None:
    size = services.engine.model_facts(version).n_embd
    if dimensions not in (None, size):
        raise RequestError(
            f"`dimensions` is {dimensions}, but the vectors of this model have {size} numbers and a part of them "
            "means nothing; leave it out"
        )


async def _version(services: Services, model: str) -> Version:
    name = untagged(model)
    if name in ("", "default", services.generations.base.name):
        name = "base"
    try:
        return await asyncio.to_thread(services.generations.resolve, name)
    except NotFoundError as error:
        raise unknown_model(model, error) from error


def _tokenized(services: Services, version: Version, texts: list[str], *, cut: bool) -> list[list[int]]:
    """Return the tokens of each text, of long ones with `cut` the beginning. Raises RequestError."""
    room = services.engine.context_tokens
    inputs = [services.engine.tokenize(version, text) for text in texts]
    for index, tokens in enumerate(inputs):
        if not tokens:
            raise RequestError(f"`input[{index}]` is empty; an empty text has no embedding")
        if len(tokens) > room and not cut:
            raise ContextOverflowError(
                f"`input[{index}]` has {len(tokens)} tokens, but the context window holds {room}; shorten it, or set "
                "`truncate` to true"
            )
    return [tokens[:room] for tokens in inputs]


async def _embedded(
    request: Request, services: Services, version: Version, inputs: list[list[int]], keep_alive: float | str | None
) -> list[list[float]] | None:
    """Return the vectors, None if the client has hung up."""
    future = await asyncio.to_thread(services.engine.embed, version, inputs, parse_keep_alive(keep_alive))
    vectors = await unless_gone(request, future)
    return None if vectors is None else [vector.tolist() for vector in vectors]
