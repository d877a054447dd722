"""Each fault at each point of a move: where a schedule by chance hardly ever hits, somebody aims.

Faults are those of scenarios, and those that no scenario has a word for (``cluster.bench.inner_faults``).

A move that nothing disturbs says when it is where; then it is made again, once for each fault and each of these points,
with the fault there, and judged as schedules by chance are. What lies between two points of one, in the network and at
the hosts, follows from a seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cluster.bench.fault_verdict import judged
from cluster.bench.inner_faults import INNER_FAULTS, RETURNS_NS, SOURCE, TARGET, Built, FaultyControl, InnerFault
from cluster.bench.moving_machines import CHIPS, VM, WAYS, moving
from cluster.control_plane import ControlPlane
from cluster.errors import ToolError
from cluster.migration import Migration, Outcome
from node.host import Host
from workloads.trace_player import pack_runs

OTHER = "host-3"
_ORDERED_NS = 1_000_000_000
_WRITES = {"workload": "trace-player", "parameters": {
    "fragments": pack_runs([(60_000, 100)]), "touches_per_step": 8, "step_ms": 500,
    "written_set_bytes": 8 << 20, "written_bytes_per_s": 60_000_000,
}}  # fmt: skip
"""A machine that is sent in several rounds, and looks at what it stored before."""
_COSTS = {"psp.send_update_ns_per_kib": 2560, "psp.receive_update_ns_per_kib": 2560}
"""Firmware at 400 MB/s."""
_AHEAD = " by post-copy"
GENERATIONS = (*WAYS, f"PLAIN{_AHEAD}")
"""All ways to move."""

Change = dict[str, Any]


def _fault(kind: str, **more: Any) -> Callable[[int], Change]:
    return lambda at_ns: {"faults": [{"kind": kind, "at": f"{at_ns} ns", **more}]}


def _both(*hosts: str, kind: str = "host-crash", **more: Any) -> Callable[[int], Change]:
    return lambda at_ns: {"faults": [{"kind": kind, "at": f"{at_ns} ns", "host": host, **more} for host in hosts]}


def _astray(direction: str, host: str, **more: Any) -> Callable[[int], Change]:
    return _fault("messages", host=host, direction=direction, **({"lasts": "60 ms", "lost": 1.0} | more))


def _with_control(host: str) -> Callable[[int], Change]:
    return lambda at_ns: {"faults": [
        {"kind": "host-crash", "at": f"{at_ns} ns", "host": host}, {"kind": "control-plane-crash", "at": f"{at_ns} ns"}
    ]}  # fmt: skip


FAULTS: Mapping[str, Callable[[int], Change]] = {
    "the source crashes": _fault("host-crash", host=SOURCE),
    "the target crashes": _fault("host-crash", host=TARGET),
    "the control plane crashes": _fault("control-plane-crash"),
    "the control plane and the source crash": _with_control(SOURCE),
    "the control plane and the target crash": _with_control(TARGET),
    "both hosts crash": _both(SOURCE, TARGET),
    "the source hears nothing": _astray("to", SOURCE),
    "nobody hears the source": _astray("from", SOURCE),
    "the target hears nothing": _astray("to", TARGET),
    "nobody hears the target": _astray("from", TARGET),
    "nobody hears anything": _both(SOURCE, TARGET, kind="messages", lasts="400 ms", lost=1.0),
    "all is said twice": _fault("messages", lasts="200 ms", repeated=1.0),
    "all comes late, and out of order": _fault("messages", lasts="200 ms", late="40 ms", repeated=0.5),
    "the link breaks": _fault("link", host=SOURCE, lasts="0 ms"),
    "the link is down": _fault("link", host=TARGET, lasts="300 ms"),
    "it is called off": lambda at_ns: {"cancel_after": f"{max(1, at_ns - _ORDERED_NS)} ns"},
    "it is ordered elsewhere": lambda at_ns: {"also": {"vm": VM, "at": f"{at_ns} ns", "to": OTHER}},
}
"""What a scenario is changed by, for a fault at a time."""


class Cell(NamedTuple):
    """A fault, where in the move it comes, and between which times that is (ns)."""

    way: str
    fault: str
    point: str
    from_ns: int
    to_ns: int


def points(way: str, firmware: Path) -> dict[str, tuple[int, int]]:
    """Where a move that nothing disturbs is, and from when to when."""
    wrong, (one,) = judged(_body(way, firmware, 0))
    if wrong is not None or one.outcome is not Outcome.COMPLETED:
        raise ToolError(f"bench faults: {way}, nothing in its way: {wrong or one.outcome}")
    return _points(one)


def _points(one: Migration) -> dict[str, tuple[int, int]]:
    assert one.precopy is not None
    found: dict[str, tuple[int, int]] = {}
    began_ns, rounds = one.history[0][1], [each for each in one.precopy.rounds if each.size_bytes]
    if rounds:
        found["setup"] = began_ns, rounds[0].began_ns
        found["first round"] = rounds[0].began_ns, rounds[0].ended_ns
        if rounds[1:]:
            found["later rounds"] = rounds[1].began_ns, rounds[-1].ended_ns
    else:
        found["setup"] = began_ns, one.history[1][1]
    later = [(phase.value, at_ns) for phase, at_ns in one.history[1:]]
    ends = [at_ns for _, at_ns in later[1:]] + [later[-1][1] + 5_000_000]
    return found | {phase: (at_ns, end_ns) for (phase, at_ns), end_ns in zip(later, ends, strict=True)}


def is_copied_while_it_runs(way: str) -> bool:
    """Whether a move has rounds; agents alone move a machine that stands still."""
    machine = WAYS[way].machine
    return bool(machine.get("migration_handler") or not machine.get("migration_agent"))


def faults_of(way: str) -> list[str]:
    """Names of those that there are for a way to move."""
    name = way.removesuffix(_AHEAD)
    return [*FAULTS, *[fault for fault, one in INNER_FAULTS.items() if one.has_it(name)]]


def cells(way: str, firmware: Path) -> Iterator[Cell]:
    """All of one way to move."""
    for point, (from_ns, to_ns) in points(way, firmware).items():
        for fault in faults_of(way):
            yield Cell(way, fault, point, from_ns, to_ns)


def played(cell: Cell, firmware: Path, seed: int, *, twice: bool = False) -> tuple[str | None, list[Migration]]:
    """What is wrong after a cell, None for nothing, and its moves; ``twice`` as ``judged`` has it."""
    body, at_ns = _schedule(cell, firmware, seed)
    inner = INNER_FAULTS.get(cell.fault)
    if inner is None:
        return judged(body, twice=twice)

    def bring(control: ControlPlane, hosts: Mapping[str, Host]) -> FaultyControl:
        dice = random.Random(f"{seed} {cell}")  # noqa: S311 - it need not be secret
        return _bring(inner, at_ns, control, hosts, dice)

    return judged(body, bring, twice=twice)


def _bring(
    inner: InnerFault, at_ns: int, control: ControlPlane, hosts: Mapping[str, Host], dice: random.Random
) -> FaultyControl:
    built = Built(FaultyControl(control), hosts, dice)
    inner.bring(built, at_ns)
    return built.control


def schedule(cell: Cell, firmware: Path, seed: int) -> dict[str, Any]:
    """A scenario with the fault there, as far as a scenario has a word for it."""
    return _schedule(cell, firmware, seed)[0]


def _schedule(cell: Cell, firmware: Path, seed: int) -> tuple[dict[str, Any], int]:
    """The scenario, and when the fault comes: at either end of the time of its point, or between."""
    dice = random.Random(f"{seed} {cell.way} {cell.fault} {cell.point}")  # noqa: S311 - it need not be secret
    at_ns = dice.choice((cell.from_ns, cell.to_ns - 1, dice.randint(cell.from_ns, max(cell.from_ns, cell.to_ns - 1))))
    at_ns = max(_ORDERED_NS, at_ns)
    inner = INNER_FAULTS.get(cell.fault)
    changed = (FAULTS[cell.fault] if inner is None else inner.change)(at_ns)
    body = _body(cell.way, firmware, seed)
    moves = body["migrations"]
    if "cancel_after" in changed:
        moves[0]["cancel_after"] = changed["cancel_after"]
    if "also" in changed:
        moves.append(changed["also"])
    # What came of it is looked at twice: also by a move that comes when it is over, and goes back where it came from.
    moves.append({"vm": VM, "at": f"{RETURNS_NS} ns", "to": SOURCE})
    if "record" in changed:
        body["migration"]["record"] = changed["record"]
    return body | {"faults": changed.get("faults", [])}, at_ns


def _body(way: str, firmware: Path, seed: int) -> dict[str, Any]:
    name = way.removesuffix(_AHEAD)
    body = moving(name, firmware)
    if is_copied_while_it_runs(name) and "devices" not in body["vms"][0]:
        body["vms"] = [body["vms"][0] | _WRITES]
    how: dict[str, Any] = {
        "answer_within": "20 ms", "answer_tries": 5, "recover_after": "10 ms",
        "downtime_limit": "30 ms", "max_rounds": 4, "at_round_cap": "stop-and-copy",
    }  # fmt: skip
    if way != name:
        how["mode"] = "post-copy"
    return body | {
        "schema": 1, "name": "fault-grid", "seed": seed % CHIPS, "duration": "8 s", "faults": [],
        "migrations": [{"vm": VM, "at": f"{_ORDERED_NS} ns", "to": TARGET}],
        "costs": _COSTS | body["costs"], "migration": how, "fabric": {"link": "2 Gb/s"},
    }  # fmt: skip
