#!/bin/bash
# Serve one real answer with an installed edgepd: smoke_installed.sh BIN, where BIN/edgepd is the program.
# Needs EDGEPD_MODELS_DIR with the default model. Ends with 0 only if the daemon also stops cleanly on SIGTERM.
set -euo pipefail
bin=$1
EDGEPD_HOME=$(mktemp -d)  # short: the path of the socket in it may have 107 bytes
export EDGEPD_HOME
daemon=
finish() {
    [ -z "$daemon" ] || kill -KILL "$daemon" 2>/dev/null || true
    rm -rf "$EDGEPD_HOME"
}
trap finish EXIT

"$bin/edgepd" daemon run >"$EDGEPD_HOME/log" 2>&1 &
daemon=$!

"$bin/python" - <<'PYTHON' || { cat "$EDGEPD_HOME/log" >&2; exit 1; }
import time

import edgepd
import httpx
from edgepd.config import paths

print("edgepd comes from", edgepd.__file__)
socket = str(paths().socket)
deadline = time.monotonic() + 60
while True:
    try:
        with httpx.Client(transport=httpx.HTTPTransport(uds=socket), base_url="http://edgepd", timeout=10) as client:
            reply = client.get("/healthz")
        if reply.status_code == 200:
            break
        problem = f"/healthz answers {reply.status_code}: {reply.text}"
    except httpx.TransportError as error:
        problem = str(error)
    if time.monotonic() > deadline:
        raise SystemExit(f"the daemon was not healthy after 60 s: {problem}")
    time.sleep(0.1)
PYTHON

"$bin/edgepd" ask --json "Say hi" </dev/null >"$EDGEPD_HOME/answer.json" || { cat "$EDGEPD_HOME/log" >&2; exit 1; }
"$bin/python" - "$EDGEPD_HOME/answer.json" <<'PYTHON'
import json
import sys
from pathlib import Path

answer = json.loads(Path(sys.argv[1]).read_text())
# Either our own form or a chat completion.
text = answer.get("response") or answer.get("text") or answer["choices"][0]["message"]["content"]
if not text.strip():
    raise SystemExit(f"the answer is empty: {answer}")
print("answer:", text.strip()[:200])
PYTHON

# The templates of the units are in the wheel, and are filled in with this Python.
"$bin/edgepd" service install --print >"$EDGEPD_HOME/units"
grep -q "^ExecStart=$bin/python.* -P -m edgepd_daemon$" "$EDGEPD_HOME/units" || {
    echo "the units do not start $bin/python:" >&2
    cat "$EDGEPD_HOME/units" >&2
    exit 1
}

kill -TERM "$daemon"
code=0
wait "$daemon" || code=$?
daemon=
[ "$code" -eq 0 ] || { echo "the daemon ended with exit code $code after SIGTERM" >&2; exit 1; }
echo "smoke test passed"
