"""What is wrong after a scenario with faults, in which one machine moves: the verdict of ``sevfleet bench faults``."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from typing import Any

from cluster.bench.moving_machines import VM, devices_amiss
from cluster.control_plane import ControlPlane
from cluster.coordinator import Coordinator
from cluster.entity import ControlPlane as Steps
from cluster.fleet import build_fleet
from cluster.hand_over import Phase
from cluster.host_entity import build_host
from cluster.inline_layout import InlineLayout
from cluster.layout import Rows
from cluster.migration import Migration, Outcome
from cluster.scenario import Scenario
from cluster.shard import ShardReport
from cluster.shard_worker import Mail
from cluster.together import Together
from node.agent_transfer import BY_AGENT
from node.guest import Guest, GuestState
from node.host import Host
from psp.system_bus import PAGE_BYTES

_USUALLY = gc.get_threshold()
Bring = Callable[[ControlPlane, Mapping[str, Host]], Steps]
"""Brings faults into a fleet's parts; the control plane as it is to be driven then."""
_UP_NS = 900_000_000
"""Before anything is done to it."""
_CRASHED = ("host crashed", "its memory was on a host that crashed")
_HERE = (GuestState.RUNNING, GuestState.PAUSED, GuestState.ARRIVING)


class _Watched(InlineLayout):
    """Looks at all hosts after every window, where it is to watch."""

    def __init__(self, *, watches: bool = True) -> None:
        super().__init__()
        self._watches = watches
        self.all: list[Host] = []
        self.most = 0
        """Hosts that ran the VM at once."""
        self.idle: tuple[int, ...] = ()
        """What a host without the VM has of it, and of its own."""
        self.crashes = False
        """Whether any host crashes."""
        self.pages = 0
        """Pages of the VM when it is up, where an RMP tells."""

    def start(self, *arguments: Any) -> None:
        """As any, but for its garbage, which here is a fleet for every schedule."""
        super().start(*arguments)
        gc.unfreeze()
        gc.set_threshold(*_USUALLY)

    def together(self, lookahead_ns: int, end_ns: int) -> Together | None:
        """None where it is to watch: it would not see that."""
        return None if self._watches else super().together(lookahead_ns, end_ns)

    def advance(self, horizon_ns: int, mail: Mail, event_budget: int) -> ShardReport:
        report = super().advance(horizon_ns, mail, event_budget)
        if not self.pages and self.all[0].now_ns >= _UP_NS:
            self.pages = _pages(self.all[0])
        states = [guest.state for host in self.all if (guest := host.guests.get(VM)) is not None]
        self.most = max(self.most, states.count(GuestState.RUNNING))
        return report


def judged(
    body: dict[str, Any], bring: Bring | None = None, *, twice: bool = False, ends: tuple[str, ...] = ()
) -> tuple[str | None, list[Migration]]:
    """Play a scenario, with what it has no word for: what is wrong after it, None for nothing, and its moves.

    Where a move began and failed, the VM may end with a reason that begins with one of ``ends``: who alone had it, has
    lost it. With ``twice`` it is
    wrong too that hosts tell anything else where they go on without windows.
    """
    scenario = Scenario.parse(body)
    layout = _Watched()
    wrong, rows, moves = _played(scenario, layout, bring)
    wrong = wrong or _wrong(layout, rows, moves, ends) or devices_amiss(layout.all)
    if wrong is None and twice:
        wrong, again, _ = _played(scenario, _Watched(watches=False), bring)
        unlike = [table for table in sorted({*rows, *again}) if rows.get(table) != again.get(table)]
        if wrong is not None or unlike:
            wrong = f"otherwise without windows: {wrong or ', '.join(unlike)}"
    return wrong, moves


def _played(scenario: Scenario, layout: _Watched, bring: Bring | None) -> tuple[str | None, Rows, list[Migration]]:
    """The error that ended it, None for none; what hosts tell in the end, and all moves."""
    fleet = build_fleet(scenario)
    built: list[Host] = []

    def build(order: bytes) -> Any:
        entity = build_host(order)
        built.append(entity.host)
        return entity

    layout.start(build, [(order.spec.name, order.pack()) for order in fleet.orders])
    layout.all = built
    layout.crashes = any(fault.kind == "host-crash" for fault in scenario.faults)
    layout.idle = _held(built[1])
    control: Steps = fleet.control
    if bring is not None:
        control = bring(fleet.control, {host.spec.name: host for host in built})
    moves = fleet.control.migrations.all
    try:
        Coordinator(layout, control, scenario.control_plane_latency, scenario.duration).run()
    except Exception as error:  # noqa: BLE001 - whatever it is, it has a schedule that leads there
        return f"{type(error).__name__}: {error}", {}, moves
    return None, layout.collect(scenario.duration), fleet.control.migrations.all


def _wrong(layout: _Watched, rows: Rows, moves: list[Migration], ends: tuple[str, ...]) -> str | None:
    if layout.most > 1:
        return f"{layout.most} hosts ran it at once"
    there: dict[str, Guest] = {
        host.spec.name: guest
        for host in layout.all
        if (guest := host.guests.get(VM)) is not None and guest.state in _HERE
    }
    for host in layout.all:
        left = _held(host)
        # A card that was connected keeps its context and its buffers until it is released.
        if host.spec.name not in there and left != layout.idle and not host.spec.platform.cards:
            return f"{host.spec.name} still has bytes, ASIDs, contexts: {left}, not {layout.idle}"
    if not layout.crashes and any(one.outcome is Outcome.LOST for one in moves):
        return "said to be lost, and no host crashed"
    if len(there) > 1:
        return f"on {', '.join(there)}"
    for one in moves:
        if one.is_over and one.outcome is not Outcome.COMPLETED and not one.reason:
            return f"move {one.number} ended as {one.outcome}, and nothing says why"
    if not there:
        crashed = any(row["vm"] == VM and row["reason"] in _CRASHED for row in rows.get("vms", []))
        crashed = crashed or any(one.outcome is Outcome.LOST or _lost_after(one) for one in moves)
        if crashed and layout.crashes:
            return None
        why = " ".join([str(row["reason"]) for row in rows.get("vms", []) if row["vm"] == VM and row["reason"]])
        if ends and why.startswith(ends) and any(map(_was_broken_off, moves)):
            return None
        return f"nowhere, and no host crashed that had it: {why or None}"
    ((name, guest),) = there.items()
    if guest.state is not GuestState.RUNNING or (guest.faults and not guest.spec.devices):
        return f"{guest.state} on {name}, with {guest.faults} faults"
    pages = _pages(next(host for host in layout.all if host.spec.name == name))
    return f"{layout.pages - pages} pages of it are gone" if pages < layout.pages else None


def _pages(host: Host) -> int:
    """How many pages its guest has validated, and can use; 0 where there is no such thing."""
    if VM not in host.guests or host.guests[VM].spec.generation not in BY_AGENT:
        return 0
    record = host.hypervisor.launched(VM)  # type: ignore[attr-defined]  # it is in this process
    return sum(_validated(host, first, size // PAGE_BYTES) for _, first, size in record.ram)


def _validated(host: Host, first: int, pages: int) -> int:
    """Of a run of pages; where they are all alike one look is enough."""
    bus = host.board.bus
    one = bus.rmp_entry(first) if pages == 1 else bus.rmp_run(first, pages)
    if one is not None:
        return pages if one.validated and not one.immutable else 0
    half = pages // 2
    return _validated(host, first, half) + _validated(host, first + half * PAGE_BYTES, pages - half)


def _lost_after(one: Migration) -> bool:
    """Whether a VM that was to stay stood still at a source that crashed before it heard so."""
    return one.source_lost and one.phase is Phase.ABORTED


def _was_broken_off(one: Migration) -> bool:
    """Whether a move began and did not come to its end: meanwhile its VM may have been with one part alone."""
    return one.started_ns >= 0 and one.outcome is not Outcome.COMPLETED


def _held(host: Host) -> tuple[int, ...]:
    """Bytes, ASIDs, and contexts of firmware that are in use."""
    books, psp = host.hypervisor.figures(), host.board.psp
    return books.memory_bytes, books.asids_in_use, len(psp.legacy.guests), len(psp.snp.guests.pages.spas)
