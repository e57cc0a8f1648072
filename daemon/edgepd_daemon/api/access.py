"""How a route gets at the daemon's parts."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from edgepd_daemon.services import Services


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


Access = Annotated[Services, Depends(_services)]
