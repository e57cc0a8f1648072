"""What a conversation consists of, for those who do not render it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Message = Mapping[str, Any]  # {"role": ..., "content": ...}, perhaps with tool_calls, tool_call_id or name

MAX_RENDERED_CHARS = 16 * 1024 * 1024  # what a chat template may make of a conversation
