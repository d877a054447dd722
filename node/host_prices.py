"""What work costs on hosts of one kind, worked out once for all of them that live in a process."""

from __future__ import annotations

from collections.abc import Mapping

from node.card_cost import CardCost
from node.disk_queue import DiskQueue
from node.generation import Generation
from node.guest_backing import LARGE_AND_NEAR, Backing
from node.host_kind import HostKind
from node.identity_cache import IdentityCache
from node.operation_cost import GuestOperationCost, HostOperationCost
from node.phase_cost import PhaseCost
from node.program import Demand

_Phases = tuple[PhaseCost, ...]


class HostPrices:
    """Prices of operations and phases on hosts of one kind under one cost table.

    They follow from these alone, so a thousand hosts may hold one object; and where a VM's next host has the same, it
    finds them worked out.
    """

    def __init__(self, costs: Mapping[str, float], kind: HostKind) -> None:
        self.host = HostOperationCost(costs, kind)
        """Of the hypervisor's operations."""
        self.cards = CardCost(costs)
        self._costs = costs
        self._kind = kind
        self._guests: dict[Generation, GuestOperationCost] = {}
        self._known: dict[tuple[tuple[Demand, ...], Generation, Backing], _Phases] = {}
        self._phases: dict[tuple[Generation, Backing], IdentityCache[tuple[Demand, ...], _Phases]] = {}

    def new_disk(self) -> DiskQueue:
        """The drive of one host, on which nothing waits yet."""
        return DiskQueue(self._costs)

    def guest(self, generation: Generation) -> GuestOperationCost:
        """Of the operations of a generation's guests."""
        found = self._guests.get(generation)
        if found is None:
            found = self._guests[generation] = GuestOperationCost(generation, self._costs, self._kind)
        return found

    def phases(
        self, demands: tuple[Demand, ...], generation: Generation, backing: Backing = LARGE_AND_NEAR
    ) -> _Phases:
        """Of a program's demands, in their order, in a machine whose memory lies in some way."""
        priced = self._phases.get((generation, backing))
        if priced is None:
            priced = IdentityCache(lambda some: self._work_out(some, generation, backing))
            self._phases[generation, backing] = priced
        return priced(demands)

    def _work_out(self, demands: tuple[Demand, ...], generation: Generation, backing: Backing) -> _Phases:
        key = (demands, generation, backing)
        found = self._known.get(key)
        if found is None:
            found = tuple(PhaseCost.of(one, generation, self._kind, self._costs, backing) for one in demands)
            self._known[key] = found
        return found


def _kinds_under(_: Mapping[str, float]) -> dict[HostKind, HostPrices]:
    return {}


_kinds = IdentityCache(_kinds_under)


def host_prices(costs: Mapping[str, float], kind: HostKind) -> HostPrices:
    """The prices of a kind of host, the same object for the same table; nobody may change that any more."""
    kinds = _kinds(costs)
    found = kinds.get(kind)
    if found is None:
        found = kinds[kind] = HostPrices(costs, kind)
    return found
