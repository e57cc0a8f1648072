"""The routes of the budget: what training may take, what it takes, what was decided and why, and the user's pause.

The idea: the supervisor lives on the event loop and says everything in one record; `View` hands that record to any
route, on whatever thread the route runs.
What this does not do: decide anything, or change a setting; limits are set in config.toml and read again by a reload.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from edgepd_daemon.api.access import Access
from edgepd_daemon.services import Services
from edgepd_profiles.rows import finite

router = APIRouter(prefix="/edgepd/v1/budget", tags=["edgepd"])

LONGEST_PAUSE_MINUTES = 366 * 24 * 60  # whoever wants a longer one wants none that ends
BRIEF_DECISIONS = 5


class PauseRequest(BaseModel):
    """For how many minutes nothing is to be trained; without a number, until it is resumed."""

    model_config = ConfigDict(extra="forbid")
    minutes: Annotated[float, Field(gt=0, le=LONGEST_PAUSE_MINUTES, allow_inf_nan=False)] | None = None


async def _view(services: Access) -> dict[str, Any]:
    """Ask the supervisor, on the event loop; a sensor that says infinity says nothing that JSON can hold."""
    return dict(finite(services.supervisor.view()))


View = Annotated[dict[str, Any], Depends(_view)]


@router.get("")
async def show_budget(services: Access, view: View) -> dict[str, Any]:
    """Show the limits and where they come from, what the machine says, what was used today, and what was decided."""
    return _shown(services, view)


@router.post("/pause")
async def pause(body: PauseRequest, services: Access) -> dict[str, Any]:
    """Train nothing for some minutes, or until it is resumed; a run that goes on is parked. Returns the budget."""
    services.supervisor.pause(body.minutes)
    return _shown(services, await _view(services))


@router.delete("/pause")
async def resume(services: Access) -> dict[str, Any]:
    """End the pause, if there is one. Returns the budget."""
    services.supervisor.resume()
    return _shown(services, await _view(services))


def summary(view: dict[str, Any]) -> dict[str, Any]:
    """Return what the status shows of the budget."""
    names = ("preset", "automatic", "paused", "paused_until", "decision", "today")
    readings = view["readings"]
    battery = {"percent": readings["battery_percent"], "on_ac": readings["on_ac"]}
    return {name: view[name] for name in names} | {"battery": battery}


def brief(services: Services, view: dict[str, Any]) -> dict[str, Any]:
    """Return what is shown of the budget to those who look all the time."""
    return view | {"decisions": view["decisions"][:BRIEF_DECISIONS], "limits": asdict(services.settings.budget)}


def _shown(services: Services, view: dict[str, Any]) -> dict[str, Any]:
    settings = services.settings
    limits = asdict(settings.budget)
    origins = {name: settings.origins.get(f"budget.{name}", "default") for name in limits}
    return view | {"limits": limits, "origins": origins}
