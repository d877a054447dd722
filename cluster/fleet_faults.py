"""What goes wrong in a run: crashes in virtual time, and messages of moves that are lost, repeated or late."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cluster.agenda import Agenda, Turn
from cluster.scenario_faults import FaultPlan
from node.counter_random import CounterRandom

CRASH = "crash"
"""The kind of message that switches a host off and on."""
_LINK, _BACK = "link", "link is back"
Delays = tuple[int, ...]
"""How much later each copy of a message comes, in nanoseconds; none of a message that is lost."""
_ON_TIME: Delays = (0,)


@dataclass(slots=True)
class FleetFaults:
    """The faults of a run. ``crash`` takes a host, ``restart`` a time, ``link`` a host, whether it is up, a time."""

    random: CounterRandom
    agenda: Agenda
    crash: Callable[[str], None]
    restart: Callable[[int], None]
    link: Callable[[str, bool, int], None]
    _astray: list[tuple[FaultPlan, frozenset[str]]] = field(default_factory=list)
    _thrown: int = 0

    def add(self, plan: FaultPlan, hosts: tuple[str, ...]) -> None:
        """Enter a fault of these hosts."""
        if plan.kind == "messages":
            self._astray.append((plan, frozenset(hosts)))
            return
        self._enter(plan.at, plan.kind, hosts)
        if plan.kind == _LINK:
            self._enter(plan.at + plan.lasts, _BACK, hosts)

    def _enter(self, at_ns: int, what: str, hosts: tuple[str, ...]) -> None:
        self.agenda.enter(at_ns, Turn.FAULTS, self._happens, (what, hosts))

    def _happens(self, fault: tuple[str, tuple[str, ...]], now_ns: int) -> None:
        """Something crashes, or a link goes down or up."""
        what, hosts = fault
        if what == "control-plane-crash":
            self.restart(now_ns)
            return
        for host in hosts:
            if what in (_LINK, _BACK):
                self.link(host, what == _BACK, now_ns)
            else:
                self.crash(host)

    def delays(self, host: str, direction: str, now_ns: int) -> Delays:
        """What becomes of a message of a move ``to`` or ``from`` a host at a time."""
        came = _ON_TIME
        for plan, hosts in self._astray:
            if host in hosts and plan.direction in ("both", direction) and plan.at <= now_ns < plan.at + plan.lasts:
                if self._by_chance(plan.lost):
                    return ()
                if self._by_chance(plan.repeated):
                    came = (*came, came[0])
                if plan.late:
                    came = tuple([one + int(plan.late * self._uniform()) for one in came])
        return came

    def _by_chance(self, share: float) -> bool:
        return share > 0 and self._uniform() < share

    def _uniform(self) -> float:
        self._thrown += 1
        return self.random.uniform("faults", "message", self._thrown)
