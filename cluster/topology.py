"""The network's links, and which of them lie between two hosts.

A link carries one direction. Switches do not block inside; what can be short is
a host's own link and, between racks, the links of a leaf switch to the spines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Link:
    """One direction of a cable, or of a bundle that is filled evenly."""

    name: str
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Topology:
    """Links by number, and for each host its way up and its way down, nearest link first."""

    links: tuple[Link, ...]
    _ways: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]

    def path(self, source: str, destination: str) -> tuple[int, ...]:
        """Numbers of the links from one host to another; empty inside a host. KeyError for a host that is not there."""
        (up, _), (beside, down) = self._ways[source], self._ways[destination]
        if source == destination:
            return ()
        if up[1:] == beside[1:]:
            return (up[0], down[0])  # One rack: its leaf turns it round.
        return (*up, *reversed(down))


def star(hosts: Mapping[str, float]) -> Topology:
    """Every host on one switch, with a link of ``hosts[name]`` bytes per second each way."""
    links: list[Link] = []
    ways = {}
    for name, rate in hosts.items():
        ways[name] = ((len(links),), (len(links) + 1,))
        links += [Link(f"{name} up", rate), Link(f"{name} down", rate)]
    return Topology(tuple(links), ways)


def leaf_spine(hosts: Mapping[str, float], rack_hosts: int, oversubscription: float) -> Topology:
    """Racks of ``rack_hosts`` in the order of the hosts; a leaf's uplinks carry its hosts' rate over the ratio.

    The spines are one: equal-cost routing spreads many streams evenly, and a
    migration of several connections with them. One connection that meets
    others on the same spine link would do worse.
    """
    links: list[Link] = []
    ways = {}
    names = list(hosts)
    for rack, first in enumerate(range(0, len(names), rack_hosts)):
        members = names[first : first + rack_hosts]
        rate = sum(hosts[name] for name in members) / oversubscription
        leaf = len(links)
        links += [Link(f"leaf-{rack + 1} up", rate), Link(f"leaf-{rack + 1} down", rate)]
        for name in members:
            ways[name] = ((len(links), leaf), (len(links) + 1, leaf + 1))
            links += [Link(f"{name} up", hosts[name]), Link(f"{name} down", hosts[name])]
    return Topology(tuple(links), ways)
