"""Models from the Hugging Face hub, `hf:org/repo/file.gguf`, through the optional package huggingface-hub.

The idea: huggingface-hub does the transfer, its retries and the user's token; the file goes to a scratch
directory and not into its cache, because edgepd keeps its own copy. Where the hub states the SHA-256 of a
file, it is checked.
What this does not do: search the hub, choose a quantisation, or join split files.
"""

from __future__ import annotations

import importlib.util
import io
import os
import re
from pathlib import Path
from typing import Any

from edgepd.errors import ModelError, RequestError
from edgepd.models.files import hash_file
from edgepd.models.source import Progress, Source, name_from

HUB_INSTALLED = importlib.util.find_spec("huggingface_hub") is not None

PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
LOCATION = re.compile(rf"({PART}/{PART})/((?:{PART}/)*{PART}\.gguf)")


def hub_file(location: str) -> Source:
    """Describe `org/repo/file.gguf` on the hub.

    Raises RequestError for a bad location, ModelError if the package is not installed.
    """
    match = LOCATION.fullmatch(location)
    if not match:
        raise RequestError(f"'hf:{location[:200]}' is not of the form hf:org/repo/file.gguf")
    if not HUB_INSTALLED:
        raise ModelError(
            f"'hf:{location}' needs the package huggingface-hub, which is not installed; run: pip install 'edgepd[hub]'"
        )
    repository, filename = match.groups()

    def write(target: Path, progress: Progress) -> str:
        return _fetch(repository, filename, target, progress)

    return Source(name_from(Path(filename).stem), f"hf:{location}", "unknown", None, write)


def _fetch(repository: str, filename: str, target: Path, progress: Progress) -> str:
    # Costs 2 MB and a while, which only who fetches something from the hub should pay.
    import huggingface_hub  # noqa: PLC0415
    from huggingface_hub import errors as hub_errors  # noqa: PLC0415

    # Read here and not left to huggingface-hub, which looks at it only once, when it is imported.
    endpoint = os.environ.get("HF_ENDPOINT")
    try:
        url = huggingface_hub.hf_hub_url(repository, filename, endpoint=endpoint)
        stated = huggingface_hub.get_hf_file_metadata(url, endpoint=endpoint).etag or ""
        path = huggingface_hub.hf_hub_download(
            repository,
            filename,
            local_dir=target.parent / "hub",
            endpoint=endpoint,
            tqdm_class=_bar(progress),
        )
    except hub_errors.GatedRepoError as error:
        raise ModelError(
            f"hf:{repository} asks you to accept its terms first: do so on its page and set HF_TOKEN"
        ) from error
    except hub_errors.LocalEntryNotFoundError as error:  # no connection, and not in the cache either
        raise ModelError(f"hf:{repository}/{filename} could not be fetched: {error}") from error
    except (hub_errors.EntryNotFoundError, hub_errors.RepositoryNotFoundError) as error:
        raise ModelError(f"hf:{repository}/{filename} is not there or private; check the spelling") from error
    except (hub_errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        # HTTPError is that of whichever HTTP library this version of huggingface-hub uses.
        raise ModelError(f"hf:{repository}/{filename} could not be fetched: {error}") from error
    Path(path).replace(target)
    sha256 = hash_file(target)
    # The hub's ETag is the SHA-256 of a large file; of a small one it is a git hash of 40 digits.
    if re.fullmatch(r"[0-9a-f]{64}", stated) and stated != sha256:
        raise ModelError(f"hf:{repository}/{filename} arrived damaged: SHA-256 {sha256}, expected {stated}; try again")
    return sha256


def _bar(progress: Progress) -> type[Any]:
    """Make a tqdm class that draws nothing and hands what it is told to `progress`."""

    from tqdm import tqdm  # type: ignore[import-untyped]  # noqa: PLC0415

    class ForwardingBar(tqdm):  # type: ignore[misc]
        def __init__(self, *_args: Any, **options: Any) -> None:
            known = {key: value for key, value in options.items() if key in ("total", "initial")}
            super().__init__(file=io.StringIO(), **known)

        def update(self, n: float | None = 1) -> bool | None:
            drawn: bool | None = super().update(n)
            progress(int(self.n), int(self.total or 0))
            return drawn

    return ForwardingBar
