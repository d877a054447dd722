"""The data centre: scenarios, placement, the coordinator of virtual time, results and the command line.

This floor may import every other. Ray is imported in ``ray_cluster`` alone.

    from cluster import Scenario, run, sweep
    results = run(Scenario.load("fleet.toml"), layout="packed")
    swept = sweep(Scenario.load("fleet.toml"), seeds=8, grid={"vms.database.vcpus": [1, 2, 4]}, out="sweep/")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.scenario import Scenario
    from cluster.simulation import run
    from cluster.sweeps.parameter_sweep import sweep

__all__ = ["Scenario", "run", "sweep"]


def __getattr__(name: str) -> object:
    # Loaded on demand: ``sevfleet check`` should not wait for a simulator it does not use.
    if name == "Scenario":
        from cluster.scenario import Scenario  # noqa: PLC0415

        return Scenario
    if name == "run":
        from cluster.simulation import run  # noqa: PLC0415

        return run
    if name == "sweep":
        from cluster.sweeps.parameter_sweep import sweep  # noqa: PLC0415

        return sweep
    raise AttributeError(f"module cluster has no attribute {name}")
