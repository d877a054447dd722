"""What work costs on hosts of one kind, worked out once for all of them that live in a process."""

from __future__ import annotations

from collections.abc import Mapping

from node.generation import Generation
from node.identity_cache import IdentityCache
from node.operation_cost import GuestOperationCost, HostOperationCost
from node.phase_cost import PhaseCost
from node.platform import HostMode
from node.program import Demand

_Phases = tuple[PhaseCost, ...]


class HostPrices:
    """Prices of operations and phases, on cores of ``hz`` of hosts of one mode under one cost table.

    They follow from these alone, so a thousand hosts may hold one object; and where a VM's next host has the same, it
    finds them worked out.
    """

    def __init__(self, costs: Mapping[str, float], hz: float, mode: HostMode) -> None:
        self.host = HostOperationCost(costs)
        """Of the hypervisor's operations."""
        self._costs = costs
        self._hz = hz
        self._mode = mode
        self._guests: dict[str, GuestOperationCost] = {}
        self._known: dict[tuple[tuple[Demand, ...], Generation], _Phases] = {}
        self._phases: dict[str, IdentityCache[tuple[Demand, ...], _Phases]] = {}

    def guest(self, generation: Generation) -> GuestOperationCost:
        """Of the operations of a generation's guests."""
        found = self._guests.get(generation.name)
        if found is None:
            found = self._guests[generation.name] = GuestOperationCost(generation, self._costs, self._mode)
        return found

    def phases(self, demands: tuple[Demand, ...], generation: Generation) -> _Phases:
        """Of a program's demands, in their order."""
        priced = self._phases.get(generation.name)
        if priced is None:
            priced = IdentityCache(lambda some: self._work_out(some, generation))
            self._phases[generation.name] = priced
        return priced(demands)

    def _work_out(self, demands: tuple[Demand, ...], generation: Generation) -> _Phases:
        key = (demands, generation)
        found = self._known.get(key)
        if found is None:
            found = tuple(PhaseCost.of(demand, generation, self._hz, self._costs, self._mode) for demand in demands)
            self._known[key] = found
        return found


def _kinds_under(_: Mapping[str, float]) -> dict[tuple[float, HostMode], HostPrices]:
    return {}


_kinds = IdentityCache(_kinds_under)


def host_prices(costs: Mapping[str, float], hz: float, mode: HostMode) -> HostPrices:
    """The prices of a kind of host, the same object for the same table; nobody may change that any more."""
    kinds = _kinds(costs)
    found = kinds.get((hz, mode))
    if found is None:
        found = kinds[hz, mode] = HostPrices(costs, hz, mode)
    return found
