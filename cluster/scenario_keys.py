"""The part of a scenario that is about the key service, from which hosts fetch their chips' certificates."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Strict

from cluster.scenario_fields import Count, ScenarioPart
from cluster.units import Duration


class KeyServiceSettings(ScenarioPart):
    """One service for the fleet. Each host asks it when its first SEV-SNP guest comes."""

    laboratory: Annotated[int, Strict(), Field(ge=0, lt=1 << 63)] = 0
    """Whose root keys sign."""
    requests_per_s: Annotated[float, Strict(), Field(gt=0, le=1e6, allow_inf_nan=False)] | None = None
    """Who asks more often is refused and told when to come again. Default: no limit."""
    burst: Count = 1
    """Requests that may come at once."""
    per: Literal["fleet", "host"] = "fleet"
    """Whether the limit is for all hosts together, as behind one address, or for each."""
    delay: Duration | None = None
    """How long an answer takes, beside the control plane's latency. Default: as long as AMD's over the internet, by the
    cost table."""
    down_until: Duration = 0
    """Before that it refuses everybody."""
    retry: Duration = 10_000_000_000
    """When a host asks again that was not told when."""
    lie: Literal["other-chip", "other-tcb", "other-root", "expired", "revoked", "garbage"] | None = None
    """What is wrong with its answers: see ``sevfleet keyserver --help``."""
