"""How the daemon and the child that renders templates delimit what they say."""

from __future__ import annotations

import struct

HEADER = struct.Struct(">I")  # the length of the JSON that follows, in bytes
