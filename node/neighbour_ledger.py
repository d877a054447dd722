"""Who costs whom: time that phases lose to others of their host, by mechanism and by whose doing it was.

Kept only where somebody asks for it; loads then name their owners, so that phases of
different VMs are held apart. Latency above L0 is shared out by everybody's traffic, the
sufferer's own included; time lost to a shared core and waits for a thread by the thread
time of all others; misses of a shared cache by the lines that all others bring in. The
parts add up to what the phases' accounts say. Waits for a drive or a security processor are
those whose requests it serves meanwhile (``node.service_line``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from node.mechanism import Mechanism

HOST = "(host)"
"""The neighbour where the host itself is: its own commands to the security processor."""
BLOCKS = "blocks"
"""The phase of waits in a program's blocks, between those that its demands name."""


class Owner(NamedTuple):
    """Whose a phase is: its VM, and the name of its demand."""

    vm: str
    phase: str


class Sharer(NamedTuple):
    """What the phases of one owner and load do and lose at the present rates, each of them in a nanosecond."""

    owner: Owner
    phases: int
    traffic: float
    threads: float
    """Thread time that each uses."""
    loaded: float
    """Lost to latency above L0, and so on."""
    smt: float
    llc: float
    core_wait: float


class Loss(NamedTuple):
    """Time that the phases of a VM lost to a neighbour, which may be itself."""

    vm: str
    phase: str
    neighbour: str
    mechanism: Mechanism
    time_ns: float


class NeighbourLedger:
    """The losses on one host."""

    def __init__(self) -> None:
        self._lost_ns: dict[tuple[Owner, str, Mechanism], float] = {}

    def note(self, sharers: Sequence[Sharer], step_ns: int) -> None:
        """Book what was lost in a time of unchanged rates."""
        traffic = sum([one.phases * one.traffic for one in sharers])
        threads = sum([one.phases * one.threads for one in sharers])
        for one in sharers:
            whole = step_ns * one.phases
            if one.loaded and traffic:
                self._share(one, sharers, Mechanism.LOADED_LATENCY, whole * one.loaded, traffic, own=0.0)
            if one.llc and traffic > one.traffic:
                self._share(one, sharers, Mechanism.LLC, whole * one.llc, traffic - one.traffic, own=one.traffic)
            elif one.llc and threads > one.threads:
                # A cache is shared with whoever runs beside, also where nobody there moves anything.
                others = threads - one.threads
                self._share(one, sharers, Mechanism.LLC, whole * one.llc, others, own=one.threads, by_traffic=False)
            if threads > one.threads:
                others = threads - one.threads
                for mechanism, lost in ((Mechanism.SMT, one.smt), (Mechanism.CORE_WAIT, one.core_wait)):
                    if lost:
                        self._share(one, sharers, mechanism, whole * lost, others, own=one.threads, by_traffic=False)

    def note_wait(self, owner: Owner, mechanism: Mechanism, ahead: Iterable[tuple[str, float]]) -> None:
        """Book a wait for a server: who was served meanwhile, and for how long."""
        for neighbour, ns in ahead:
            key = owner, neighbour, mechanism
            self._lost_ns[key] = self._lost_ns.get(key, 0.0) + ns

    def _share(
        self,
        sufferer: Sharer,
        sharers: Iterable[Sharer],
        mechanism: Mechanism,
        lost_ns: float,
        total: float,
        *,
        own: float,
        by_traffic: bool = True,
    ) -> None:
        """Share a loss out by traffic or thread time, ``total`` in all; ``own`` is the sufferer's, left out."""
        for other in sharers:
            weight = other.phases * (other.traffic if by_traffic else other.threads)
            if other is sufferer:
                weight -= own
            if weight > 0:
                key = sufferer.owner, other.owner.vm, mechanism
                self._lost_ns[key] = self._lost_ns.get(key, 0.0) + lost_ns * (weight / total)

    def losses(self) -> list[Loss]:
        """Everything that was booked, in the order of its names."""
        return [
            Loss(owner.vm, owner.phase, neighbour, mechanism, ns)
            for (owner, neighbour, mechanism), ns in sorted(self._lost_ns.items())
        ]
