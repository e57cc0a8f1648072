"""A running server accepts on another socket, because the path of its own has gone.

The idea: what uvicorn does with a socket at its start, once more. The invariant: connections that are open go on.
What this does not do: notice that a socket has gone, or bind one (see watching.py and listener.py).
"""

from __future__ import annotations

import asyncio
import socket

from edgepd_daemon.server import QUEUE, Server


async def serve_on(server: Server, listener: socket.socket, old: socket.socket | None) -> None:
    """Let a running server accept on another socket instead of `old`; its connections go on."""
    config = server.config

    def protocol() -> asyncio.Protocol:
        made: asyncio.Protocol = config.http_protocol_class(  # type: ignore[call-arg]
            config=config, server_state=server.server_state, app_state=server.lifespan.state
        )
        return made

    added = await asyncio.get_running_loop().create_server(protocol, sock=listener, backlog=config.backlog)
    listener.listen(QUEUE)
    left = -1 if old is None else old.fileno()
    for each in [s for s in server.servers if left in (sock.fileno() for sock in s.sockets)]:
        each.close()
        server.servers.remove(each)
    server.servers.append(added)
