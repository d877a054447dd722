"""The part of a scenario that is about what goes wrong: crashes, and messages that do not come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, Strict

from cluster.scenario_fields import Name, ScenarioPart
from cluster.units import Duration

Share = Annotated[float, Strict(), Field(ge=0, le=1, allow_inf_nan=False)]


class FaultPlan(ScenarioPart):
    """Something that goes wrong at a given time."""

    kind: Literal["host-crash", "control-plane-crash", "messages", "link"]
    """A host is switched off and on, and its machines are gone; the control plane loses all but its record of moves;
    what the control plane and hosts say to each other of moves goes astray; or the link over which a host's machines
    move is down, and whatever is on it breaks off."""
    at: Duration
    host: Name | None = None
    """A host, or a group for all of its hosts. Default: all."""
    lasts: Duration = 0
    """How long messages go astray, or a link is down."""
    direction: Literal["both", "to", "from"] = "both"
    """Messages to the host, from it, or both."""
    lost: Share = 0.0
    """Of messages, by chance."""
    repeated: Share = 0.0
    """Of messages that are not lost, by chance: they come twice."""
    late: Duration = 0
    """Each that comes is later by a random part of this, so that some overtake others."""


_OF_MESSAGES = ("direction", "lost", "repeated", "late")
MEANS_NOTHING: Mapping[str, tuple[str, ...]] = {
    "host-crash": ("lasts", *_OF_MESSAGES),
    "control-plane-crash": ("host", "lasts", *_OF_MESSAGES),
    "messages": (),
    "link": _OF_MESSAGES,
}
"""Fields that say nothing of a kind of fault, so that whoever sets one takes the fault for something else."""
