"""/v1/embeddings: texts in, vectors out.

The model `default` means the base here, not what the user taught it since: an index of vectors that were made at
different times stays usable only if the model stays the same. A generation can be named as `NAME@GENERATION`.
"""

from __future__ import annotations

import asyncio
import base64
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from edgepd.errors import ContextOverflowError, RequestError
from edgepd_daemon.api.access import Access
from edgepd_daemon.api.common import INT32
from edgepd_daemon.api.disconnect import GONE, unless_gone
from edgepd_daemon.api.openai.fields import Body, check_tokens
from edgepd_daemon.engine.types import Version
from edgepd_daemon.services import Services

router = APIRouter()

MAX_INPUTS = 2048  # as OpenAI's own API has it
Token = Annotated[int, Field(ge=0, le=INT32)]
T = TypeVar("T")


class EmbeddingRequest(Body):
    """Body of /v1/embeddings. `dimensions` can only be what the model has."""

    input: str | list[str] | list[Token] | list[list[Token]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)

    def inputs(self) -> list[str | list[int]]:
        """Return the texts or lists of tokens. Raises RequestError for empty ones, and for too many."""
        self.check()
        given = self.input
        inputs: list[str | list[int]]
        if isinstance(given, str):
            inputs = [given]
        elif given and isinstance(given[0], int):
            inputs = [[token for token in given if isinstance(token, int)]]
        else:
            inputs = [part for part in given if not isinstance(part, int)]
        if not inputs or not all(inputs):
            raise RequestError("the input is empty; give at least one text or list of tokens, none of them empty")
        if len(inputs) > MAX_INPUTS:
            raise RequestError(f"there are {len(inputs)} inputs, but at most {MAX_INPUTS} are allowed")
        return inputs


@router.post("/v1/embeddings", response_model=None)
async def embeddings(body: EmbeddingRequest, services: Access, request: Request) -> Response:
    """Return a vector of length 1 for each input, the mean over its tokens."""
    version, tokens = await asyncio.to_thread(_prepared, services, body)
    vectors = await unless_gone(request, services.engine.embed(version, tokens))
    if vectors is None:
        return Response(status_code=GONE)
    total = sum(map(len, tokens))
    data = []
    for index, vector in enumerate(vectors):
        # As little-endian float32, which is what OpenAI's client decodes.
        packed = base64.b64encode(vector.astype("<f4").tobytes()).decode() if body.encoding_format == "base64" else None
        data.append({"object": "embedding", "index": index, "embedding": packed or vector.tolist()})
    answer: dict[str, Any] = {
        "object": "list",
        "data": data,
        "model": services.generations.model_id(version),
        "usage": {"prompt_tokens": total, "total_tokens": total},
        "generation": version.generation,
    }
    return JSONResponse(answer)


def _prepared(services: Services, body: EmbeddingRequest) -> tuple[Version, list[list[int]]]:
    """Resolve the model and tokenise. Raises EdgepdError."""
    inputs = body.inputs()
    generations, engine = services.generations, services.engine
    learning = ("", "default", generations.base.name)
    model = "base" if body.model in learning else body.model
    version = generations.resolve(model)
    facts = engine.model_facts(version)
    if body.dimensions not in (None, facts.n_embd):
        raise RequestError(
            f"`dimensions` is {body.dimensions}, but this model's vectors have {facts.n_embd}; leave it out"
        )
    check_tokens(services, model, [max(part) for part in inputs if isinstance(part, list)])
    tokens = [engine.tokenize(version, text) if isinstance(text, str) else text for text in inputs]
    for index, part in enumerate(tokens):
        if len(part) > engine.context_tokens:
            raise ContextOverflowError(
                f"input {index} has {len(part)} tokens, but the context window holds {engine.context_tokens}; split it"
            )
    return version, tokens
