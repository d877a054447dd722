"""``sevfleet bench materialised``: a machine whose pages hold bytes moves as one whose pages are only accounted.

Two runs of one scenario for each generation, a machine of 64 MiB that writes while it moves. In the second every page
of its own memory holds bytes, which travel for real. Rounds, bytes on the wire, times and downtime must be the same;
what differs is how many pages were compared, and how many bytes of frames that took.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.bench.faults import small_firmware
from cluster.coordinator import Coordinator
from cluster.errors import ToolError
from cluster.figure import Figure
from cluster.fleet import build_fleet
from cluster.host_entity import build_host
from cluster.inline_layout import InlineLayout
from cluster.migration_rows import migration_row, phase_rows, round_rows
from cluster.scenario import Scenario
from node.board import Board
from node.generation import CAPABILITIES, Generation
from node.host import Host
from node.operations import Read, Write
from node.vmcb import Vmcb
from psp.system_bus import PAGE_BYTES
from workloads.trace_player import pack_runs

BY_HANDLER = "SEV_SNP, by a handler in its SVSM"
AHEAD = "PLAIN, ahead of its memory"
WAYS = (*[one.name for one in Generation], BY_HANDLER, AHEAD)
"""How a machine is protected, and what moves it where there are several."""
VM = "vm"
MEMORY_BYTES = 64 << 20
REAL = ("frame_bytes", "pages_checked")
"""Columns that tell of pages that hold bytes."""
_AT_NS = 900_000_000
"""When they are made to: the machine is up, and nobody has asked for its move yet."""
_PIECE_BYTES = 1 << 20
_WRITES = {"written_set_bytes": 24 << 20, "written_bytes_per_s": 800_000_000}
_WORKLOAD = {
    "workload": "trace-player",
    "parameters": {"fragments": pack_runs([(10_000, 100)]), "step_ms": 10_000, "working_set_bytes": 1 << 20,
                   "touches_per_step": 1, **_WRITES},
}  # fmt: skip
"""It writes all over a part of its memory all the time, of which nothing but the books know, and reads another."""
_OF_WAYS = {BY_HANDLER: Generation.SEV_SNP, AHEAD: Generation.PLAIN}
_QUICK = {"psp.send_update_ns_per_kib": 500.0, "psp.receive_update_ns_per_kib": 500.0}


def run() -> Iterator[Figure]:
    """Compare every generation. Raises ToolError where the two runs differ."""
    with tempfile.TemporaryDirectory() as folder:
        firmware = small_firmware(Path(folder))
        for way in WAYS:
            began = time.perf_counter()
            accounted, held = both(way, firmware)
            found = differences(accounted, held)
            if found:
                raise ToolError(f"bench materialised: {way}: {', '.join(found)} differ: {accounted}, {held}")
            took_s = time.perf_counter() - began
            yield Figure(f"pages that hold bytes, moved as accounted, {way}", held["pages_checked"], "pages")
            yield Figure(f"both runs, {way}", took_s, "s")


def differences(accounted: dict[str, Any], held: dict[str, Any]) -> list[str]:
    """Columns of a move that are not the same, but for those that tell of bytes."""
    return [name for name, value in accounted.items() if name not in REAL and held[name] != value]


def both(way: str, firmware: Path, most_bytes: int = MEMORY_BYTES) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is told of the move where pages are accounted, and where so many bytes of them are held."""
    body = one_move(way, firmware)
    return _moved(body, 0), _moved(body, most_bytes)


def one_move(way: str, firmware: Path) -> dict[str, Any]:
    """One machine and its move."""
    by_handler = way == BY_HANDLER
    generation = _OF_WAYS.get(way) or Generation[way]
    by_agent = CAPABILITIES[generation].rmp and not by_handler
    # Without an RMP firmware's own pages need no lending, which takes the machine that models it as long again.
    product = {Generation.SEV_TIO: "Turin", Generation.SEV_SNP: "Milan"}.get(generation, "Rome")
    mode = {"mode": "sme"} if generation is Generation.SME else {}
    return {
        "schema": 1, "name": "materialised", "duration": "8 s", "costs": _QUICK,
        "hosts": [{"name": "host", "product": product, "count": 2, "memory": "4 GiB", "migration_agent": by_agent,
                   **mode}],
        "vms": [{"name": VM, "generation": generation.value, "vcpus": 1, "memory": "64 MiB", **_WORKLOAD,
                 "start": "running", "host": "host-1", "firmware": "auto" if by_handler else str(firmware),
                 "migration_agent": by_agent,
                 "migration_handler": by_handler, "svsm": by_handler}],
        "migrations": [{"vm": VM, "at": "1 s"}],
        "migration": {"downtime_limit": "30 ms", **({"mode": "post-copy"} if way == AHEAD else {})},
    }  # fmt: skip


def _moved(body: dict[str, Any], most_bytes: int) -> dict[str, Any]:
    scenario = Scenario.parse(body)
    fleet, layout = build_fleet(scenario), InlineLayout()
    hosts: list[Host] = []

    def build(order: bytes) -> Any:
        entity = build_host(order)
        hosts.append(entity.host)
        return entity

    layout.start(build, [(order.spec.name, order.pack()) for order in fleet.orders])
    hosts[0].clock.after(_AT_NS, lambda: hold(hosts[0], most_bytes))
    Coordinator(layout, fleet.control, scenario.control_plane_latency, scenario.duration).run()
    layout.collect(scenario.duration)
    fleet.control.migrations.close(scenario.duration)
    (one,) = fleet.control.migrations.all
    return {**migration_row(one), "phases": phase_rows(one), "round by round": round_rows(one)}


def hold(host: Host, most_bytes: int) -> None:
    """Have so many bytes of a machine's own pages held: each is read, and written as it was."""
    board = host.board
    vmcb = board.vmcb(VM, 0)
    for part in host.guests[VM].spec.memory.private_ranges(()):
        end = part.gpa + min(part.length, most_bytes)
        most_bytes -= end - part.gpa
        for gpa in range(part.gpa, end, _PIECE_BYTES):
            if not _rewritten(board, vmcb, gpa, min(_PIECE_BYTES, end - gpa)):
                for page in range(gpa, min(gpa + _PIECE_BYTES, end), PAGE_BYTES):
                    _rewritten(board, vmcb, page, PAGE_BYTES)


def _rewritten(board: Board, vmcb: Vmcb, gpa: int, length: int) -> bool:
    """Whether the guest may write there: not where its save area lies."""
    (found,) = board.execute_guest(vmcb, (Read(gpa, length),))
    if not isinstance(found, bytes):
        return False
    return board.execute_guest(vmcb, (Write(gpa, found),)) == (None,)
