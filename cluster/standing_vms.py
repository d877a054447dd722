"""Rows of VMs that stand still at a source when a run ends, or stood there when it crashed.

Until a source is told to let go, or to go on, it has the VM with all its books and the end of its digest chain, and
does not know whether the target has it too, running. Who has all hosts' rows does: where the VM has rows by another
host they are its own, for its books went on there; where it has none it stands where it stood, and of several such
hosts, at the one of the newest move.
"""

from __future__ import annotations

from typing import Any

Rows = dict[str, list[dict[str, Any]]]

STANDING = "standing"
"""The key among tables of such rows, which is none of results: rows of the VM, its name, the move's number."""


def settle(tables: Rows) -> None:
    """Put what stands apart in ``tables`` where it belongs, or leave it out."""
    apart = tables.pop(STANDING, [])
    if not apart:
        return
    there = {row["vm"] for row in tables.get("vms", [])}
    for one in sorted(apart, key=lambda row: (row["vm"], -row["move"])):
        if one["vm"] in there:
            continue
        there.add(one["vm"])
        for table, rows in one["rows"].items():
            tables.setdefault(table, []).extend(rows)
