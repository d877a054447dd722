"""The ladder for a person at a terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from cluster.report import ADDED, wide_console
from cluster.sweeps.confidence import Interval
from node.mechanism import Mechanism

if TYPE_CHECKING:
    from cluster.ladder import Rung

_LEAST = 0.00005
"""A share that would be shown as nothing."""


def print_ladder(rungs: Sequence[Rung], console: Console | None = None) -> None:
    """One line a rung: what it adds to the one below, by mechanism; columns that hold nothing are left out."""
    out = console or wide_console()
    if not rungs:
        out.print("nothing to compare")
        return
    shown = [one for one in ADDED if any(abs(rung.parts[one].mean) >= _LEAST for rung in rungs)]
    rest = [one for one in Mechanism if one not in ADDED]
    table = Table(box=None, pad_edge=False)
    several = any(rung.product for rung in rungs)
    words = [*(["product"] if several else []), "workload", "generation"]
    for heading in (*words, "VMs", "slowdown", "added", *(ADDED[one] for one in shown), "other"):
        table.add_column(heading, justify="left" if heading in words else "right", no_wrap=True)
    for rung in rungs:
        other = sum(rung.parts[one].mean for one in rest)
        name = [*([rung.product] if several else []), rung.workload, rung.generation.name, str(rung.vms)]
        parts = [_share(rung.parts[one].mean) for one in shown]
        table.add_row(*name, _slowdown(rung.slowdown), _added(rung.added), *parts, _share(other))
    out.print(table)


def print_ladder_as_json(rungs: Sequence[Rung]) -> None:
    """One JSON object a rung."""
    out = Console(soft_wrap=True, highlight=False, markup=False)
    for rung in rungs:
        out.print(json.dumps(rung.body()))


def _slowdown(one: Interval) -> str:
    return f"{one.mean:.4f} x" + ("" if one.half_width is None else f" +-{one.half_width:.4f}")


def _added(one: Interval) -> str:
    return f"{100 * one.mean:+.2f} %" + ("" if one.half_width is None else f" +-{100 * one.half_width:.2f}")


def _share(share: float) -> str:
    return f"{100 * share:+.2f} %" if abs(share) >= _LEAST else ""
