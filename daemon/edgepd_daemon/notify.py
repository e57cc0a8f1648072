"""The systemd notification protocol, spoken by hand: ready, status, watchdog, reloading, stopping.

The idea: datagrams of `KEY=VALUE` lines to the socket that `NOTIFY_SOCKET` names; without it everything here does
nothing. The variables are taken out of the environment, so that no child speaks for the daemon.
What this does not do: decide when the daemon is well (see service.py).
Protocol: sd_notify(3) and sd_watchdog_enabled(3).
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import MutableMapping
from typing import Self

log = logging.getLogger(__name__)


class Notifier:
    """Tells the service manager how the daemon is."""

    def __init__(self, address: str | None, watchdog_s: float | None = None) -> None:
        """`watchdog_s` is how long the service manager waits for a sign of life, None if it does not."""
        self._address = address
        self.watchdog_s = watchdog_s
        self._status = ""

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> Self:
        """Take the variables of the service manager out of `environment`."""
        address = environment.pop("NOTIFY_SOCKET", "")
        usec = environment.pop("WATCHDOG_USEC", "")
        pid = environment.pop("WATCHDOG_PID", "")
        # The protocol knows paths and, with an @, abstract names. Anything else (vsock) is for virtual machines.
        known = address.startswith(("/", "@")) and len(address) > 1
        watched = known and usec.isdecimal() and int(usec) > 0 and pid in ("", str(os.getpid()))
        if address and not known:
            log.warning("NOTIFY_SOCKET is '%s', but must begin with / or @; the service manager is not told", address)
        return cls(address if known else None, int(usec) / 1e6 if watched else None)

    def ready(self) -> None:
        """Say that requests are accepted."""
        self._send("READY=1")

    def stopping(self) -> None:
        """Say that the daemon is ending."""
        self._send("STOPPING=1")

    def reloading(self) -> None:
        """Say that settings are being read again; `ready` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def watchdog(self) -> None:
        """Give a sign of life."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Say in one line what the daemon is doing, if that has changed."""
        if text != self._status and self._send(f"STATUS={' '.join(text.split())}"):
            self._status = text  # what was not taken is said again

    def _send(self, *lines: str) -> bool:
        """Return whether the service manager has taken it, or there is none."""
        if self._address is None:
            return True
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        # A service manager that has gone, or does not read, is no reason to stop serving.
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender,
        ):
            sender.setblocking(False)
            sender.sendto("\n".join(lines).encode(), address)
            return True
        return False
