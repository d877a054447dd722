"""The ladder for a person at a terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from cluster.ladder import LEAST_SHARE as _LEAST
from cluster.report import ADDED, wide_console
from cluster.sweeps.confidence import Interval
from cluster.whole_tables import print_table
from node.mechanism import Mechanism

if TYPE_CHECKING:
    from cluster.ladder import Rung

_WIDEST = 15


def print_ladder(rungs: Sequence[Rung], console: Console | None = None) -> None:
    """One line a rung: what it adds to the one below, by mechanism; columns that hold nothing are left out.

    Where figures were swept, the ranges that they give stand beside, and the widest swings below.
    """
    out = console or wide_console()
    if not rungs:
        out.print("nothing to compare")
        return
    shown = [one for one in ADDED if any(abs(rung.parts[one].mean) >= _LEAST for rung in rungs)]
    rest = [one for one in Mechanism if one not in ADDED]
    table = Table(box=None, pad_edge=False)
    several = any(rung.product for rung in rungs)
    swept = any(rung.swept is not None for rung in rungs)
    unmeasured = any(rung.model_only for rung in rungs)
    words = [*(["product"] if several else []), "workload", "generation"]
    ranges = ("swept", "added swept") if swept else ()
    last = ("other", *(("",) if unmeasured else ()))
    for heading in (*words, "VMs", "slowdown", "added", *ranges, *(ADDED[one] for one in shown), *last):
        table.add_column(heading, justify="left" if heading in {*words, ""} else "right", no_wrap=True)
    for rung in rungs:
        other = sum(rung.parts[one].mean for one in rest)
        name = [*([rung.product] if several else []), rung.workload, rung.generation.name, str(rung.vms)]
        parts = [_share(rung.parts[one].mean) for one in shown]
        between = () if rung.swept is None else (_ends(*rung.swept.slowdown), _percents(*rung.swept.added))
        end = (_share(other), *((rung.model_only,) if unmeasured else ()))
        table.add_row(*name, _slowdown(rung.slowdown), _added(rung.added), *between, *parts, *end)
    print_table(out, table)
    if swept:
        _print_swings(rungs, out, several=several)


def _print_swings(rungs: Sequence[Rung], out: Console, *, several: bool) -> None:
    swings = [(rung, *swing) for rung in rungs for swing in rung.swings]
    swings.sort(key=lambda one: -abs(one[3] - one[2]))
    words = [*(["product"] if several else []), "swept row", "workload", "generation"]
    table = Table(box=None, pad_edge=False)
    for heading in (*words, "from", "to", "swing"):
        table.add_column(heading, justify="left" if heading in words else "right", no_wrap=True)
    for rung, row, low, high in swings[:_WIDEST]:
        name = [*([rung.product] if several else []), row, rung.workload, rung.generation.name]
        table.add_row(*name, f"{low:.4f} x", f"{high:.4f} x", f"{100 * abs(high - low):.2f} %")
    shown = min(_WIDEST, len(swings))
    out.print(f"\nWhat matters of the rows that nobody has published, widest {shown} of {len(swings)}", highlight=False)
    print_table(out, table)


def print_ladder_as_json(rungs: Sequence[Rung]) -> None:
    """One JSON object a rung."""
    out = Console(soft_wrap=True, highlight=False, markup=False)
    for rung in rungs:
        out.print(json.dumps(rung.body()))


def _slowdown(one: Interval) -> str:
    return f"{one.mean:.4f} x" + ("" if one.half_width is None else f" +-{one.half_width:.4f}")


def _added(one: Interval) -> str:
    return f"{100 * one.mean:+.2f} %" + ("" if one.half_width is None else f" +-{100 * one.half_width:.2f}")


def _ends(low: float, high: float) -> str:
    return f"{low:.4f} to {high:.4f}"


def _percents(low: float, high: float) -> str:
    return f"{100 * low:+.2f} to {100 * high:+.2f} %"


def _share(share: float) -> str:
    return f"{100 * share:+.2f} %" if abs(share) >= _LEAST else ""
