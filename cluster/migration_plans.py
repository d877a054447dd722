"""When VMs are to move: the scenario's migrations and drains in virtual time, and what came of drains."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from cluster.agenda import Agenda, Turn
from cluster.live_migration import LiveMigrations
from cluster.migration import Migration, MigrationOrder, Outcome
from cluster.scenario_migration import DrainPlan, MigrationPlan
from node.counter_random import CounterRandom


@dataclass(slots=True)
class Drain:
    """A host that is emptied; ``waiting`` counts the moves that are not over."""

    host: str
    asked_ns: int
    ended_ns: int = -1
    waiting: int = 0
    outcomes: dict[Outcome, int] = field(default_factory=dict)

    @property
    def result(self) -> str:
        """``complete``, or what is missing."""
        if self.ended_ns < 0:
            return "unfinished"
        left = {outcome: count for outcome, count in self.outcomes.items() if outcome is not Outcome.COMPLETED}
        if not left:
            return "complete"
        return "incomplete: " + ", ".join(f"{count} {outcome}" for outcome, count in sorted(left.items()))

    def note_end(self, outcome: Outcome | None, now_ns: int) -> None:
        """One of the moves that it waits for has ended so; None for one by which a VM was to come."""
        if outcome is not None:
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        self.waiting -= 1
        if not self.waiting:
            self.ended_ns = now_ns


@dataclass(slots=True)
class _Moves:
    """One VM's moves by one plan, each some time after the one before."""

    plan: MigrationPlan
    vm: str
    asked: int = 0
    """How many of them."""


@dataclass(slots=True)
class MigrationPlans:
    """Enters moves and drains into the agenda."""

    live: LiveMigrations
    random: CounterRandom
    agenda: Agenda
    drains: list[Drain] = field(default_factory=list)
    _planned_drains: list[DrainPlan] = field(default_factory=list)

    def add(self, plan: MigrationPlan, vms: tuple[str, ...]) -> None:
        """Enter the moves of these VMs."""
        for vm in vms:
            at_ns = plan.at + self._part_of(plan.at_spread, vm, "first migration", 0)
            self.agenda.enter(at_ns, Turn.PLANS, self._move, _Moves(plan, vm))

    def add_drain(self, plan: DrainPlan) -> None:
        """Enter a host that is to be emptied."""
        self._planned_drains.append(plan)
        self.agenda.enter(plan.at, Turn.PLANS, self._drain, plan.host)

    def _move(self, moves: _Moves, now_ns: int) -> None:
        plan, vm, live = moves.plan, moves.vm, self.live
        moves.asked = turn = moves.asked + 1
        hosts = len(live.placement.accounts)
        first = self._part_of(hosts, vm, "migration target", turn) if plan.placement == "random" else 0
        over = partial(self._ended, moves) if turn < plan.times else None
        one = live.order(MigrationOrder(vm, plan.to, None, first), now_ns, over)
        if plan.cancel_after is not None:
            self.agenda.enter(now_ns + plan.cancel_after, Turn.PLANS, live.cancel, one)

    def _ended(self, moves: _Moves, _: Migration, ended_ns: int) -> None:
        plan = moves.plan
        pause_ns = plan.pause + self._part_of(plan.pause_spread, moves.vm, "migration pause", moves.asked)
        self.agenda.enter(ended_ns + pause_ns, Turn.PLANS, self._move, moves)

    def _part_of(self, whole: int, vm: str, purpose: str, counter: int) -> int:
        """A random part, less than the whole."""
        return int(whole * self.random.uniform(vm, purpose, counter)) if whole else 0

    def _drain(self, host: str, now_ns: int) -> None:
        drain = Drain(host, now_ns)
        self.drains.append(drain)
        placement, under_way = self.live.placement, self.live.under_way()
        placement.close(host)
        # No VM is moved to a host that is emptied too, also if that is asked for at the same instant.
        emptied = frozenset(plan.host for plan in self._planned_drains if plan.at <= now_ns)
        moves = {one.order.vm: one for one in under_way if host in (one.source, one.destination)}
        # One that runs at its target before its last page is there has a place there alone, and a move that goes on.
        vms = list(dict.fromkeys([*placement.on(host), *moves]))
        drain.waiting = len(vms)
        if not vms:
            drain.ended_ns = now_ns
        for vm in vms:
            if (one := moves.get(vm)) is None:
                self._move_off(drain, vm, emptied, now_ns)
            else:
                self._wait_for(drain, one, emptied)

    def _move_off(self, drain: Drain, vm: str, emptied: frozenset[str], now_ns: int) -> None:
        self.live.order(
            MigrationOrder(vm, drain=drain.host), now_ns, lambda one, at_ns: drain.note_end(one.outcome, at_ns), emptied
        )

    def _wait_for(self, drain: Drain, one: Migration, emptied: frozenset[str]) -> None:
        """A VM is coming or going already: where it is left on the host, the drain moves it then."""
        before = one.over

        def look(_: None, now_ns: int) -> None:
            if self.live.placement.host_of(one.order.vm) == drain.host:
                self._move_off(drain, one.order.vm, emptied, now_ns)
            else:
                drain.note_end(one.outcome if one.source == drain.host else None, now_ns)

        def over(ended: Migration, ended_ns: int) -> None:
            if before is not None:
                before(ended, ended_ns)
            # When whoever else waits for its end has done what it will.
            self.agenda.enter(ended_ns, Turn.PLANS, look, None)

        one.over = over
