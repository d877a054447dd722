"""Where a guest's memory lies, as far as prices depend on it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

_STEPS = 16
"""Shares are taken in sixteenths, so that machines that hardly differ have the same prices."""


class Backing(NamedTuple):
    """Shares of a guest's mapped memory: in pages of 4 KiB, and on other NUMA nodes than most of it."""

    small_share: float = 0.0
    remote_share: float = 0.0


LARGE_AND_NEAR = Backing()


def backing_of(runs: Iterable[tuple[int, int, bool]], node_bytes: int) -> Backing:
    """The backing of memory in runs of (SPA, length, mapped by 2 MiB) on nodes of so many bytes each.

    A guest's vCPUs run on the node that has most of its memory.
    """
    small = whole = 0
    nodes: dict[int, int] = {}
    for spa, length, large in runs:
        whole += length
        small += 0 if large else length
        at, end = spa, spa + length
        if at // node_bytes == (end - 1) // node_bytes:
            nodes[at // node_bytes] = nodes.get(at // node_bytes, 0) + length
            continue
        while at < end:
            node = at // node_bytes
            part = min(end, (node + 1) * node_bytes) - at
            nodes[node] = nodes.get(node, 0) + part
            at += part
    if not whole:
        return LARGE_AND_NEAR
    return Backing(_share(small, whole), _share(whole - max(nodes.values()), whole))


def _share(part: int, whole: int) -> float:
    return round(_STEPS * part / whole) / _STEPS
