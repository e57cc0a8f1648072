"""What the parts of the client stand on: how one request is sent, and what an answer is.

The idea: routes are grouped into mixins (profile_client.py and others), which client.py joins into the one class
`Client`; they know of the connection only what is declared here.
What this does not do: send anything; client.py does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from typing import Any

Json = dict[str, Any]


class Calls(ABC):
    """A connection to the daemon, as the mixins see it. All three raise the EdgepdError that the daemon names."""

    @abstractmethod
    def _call(self, method: str, path: str, **options: Any) -> Json:
        """Send one request and return the JSON object that it is answered with.

        `options` are those of httpx: `params` for the query, `content=encoded(body)` for a body.
        """

    @abstractmethod
    def _post(self, path: str, body: Json) -> Json:
        """Post to a route that may work through whole files, and so takes as long as that takes."""

    @abstractmethod
    def _lines(self, path: str, params: Json) -> Generator[str, None, None]:
        """Yield the lines of an answer that is many JSON objects, as they arrive; blank ones are left out."""


def of_app(fields: Json, app: str | None) -> Json:
    """Return the fields of a query or body, with the app that asks; None is the owner, who is not named."""
    return fields if app is None else fields | {"app": app}
