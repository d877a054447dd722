"""No program can reach a chip, a board or another program: frames, closures and attributes are walked as they run.

The walk takes place at batches that a board executes, when each program that
runs stands at a ``yield``: the first times that it stands at this one. What a machine is made of is not listed here:
it is all that can be reached from the board and its host.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import GeneratorType
from typing import Any

import pytest
from reachable import chain, own_class, place, running_programs, state_of, walk

from cluster.laboratory.protection import Column
from cluster.laboratory.rows import ROWS
from cluster.laboratory.scene import Scene, Setting
from cluster.oracle.ledger import Ledger
from cluster.oracle.transcript import Transcript
from cluster.scenario import Scenario
from cluster.simulation import run
from node.board import Board
from node.frame_allocator import FrameAllocator
from node.guest_kernel import GuestKernel
from node.host import Host
from node.hypervisor import Hypervisor
from node.operations import HostRead
from node.program import Registers
from node.tenant import Tenant
from node.vm_place import VmPlace
from workloads.attacks.target import LET_IT_RUN
from workloads.attacks.vault import REST, Vault
from workloads.library import PROGRAMS as LIBRARY

PROGRAMS = (Vault, GuestKernel, Hypervisor, *[build.__self__ for build in LIBRARY.values()])
"""What programs are methods of; each may reach the one that it belongs to."""
TIMES = 2
"""Who comes back to a place has had answers since the first time, and keeps no more after the second."""


@dataclass
class Inspection:
    """Looks at every program at each batch of every board; ``offences`` says what was reached."""

    boards: list[Board] = field(default_factory=list)
    hosts: list[Host] = field(default_factory=list)
    asleep: bool = False
    """Whether nobody looks."""
    places: Counter[object] = field(default_factory=Counter)
    """How often each program was looked at where it stood."""
    kinds: set[str] = field(default_factory=set)
    offences: set[str] = field(default_factory=set)

    def look(self) -> None:
        programs = [] if self.asleep else running_programs()
        heads = [program for program in _heads(programs) if self.places[place(program)] < TIMES]
        if not heads:
            return
        machine = self.machine()
        everybody = {id(program) for program in programs}
        for program in heads:
            self.places[place(program)] += 1
            self.kinds.add(program.gi_code.co_qualname)
            self._inspect(program, machine, everybody)

    def machine(self) -> dict[int, Any]:
        """All that chips, boards and hosts are made of, without the software that runs on them."""
        # What a hypervisor has taken is its own; a machine that has put work off looks there when somebody asks.
        books = (FrameAllocator, VmPlace)
        software = (*PROGRAMS, *books, Tenant, GeneratorType, Registers, Transcript, Ledger, Scene)
        machine = state_of([*self.boards, *self.hosts], cut=lambda obj: isinstance(obj, software))
        # Firmware images are on a shelf from which host and hypervisor both read.
        shelves = walk([host.images for host in self.hosts if hasattr(host, "images")])
        return {at: obj for at, obj in machine.items() if at not in shelves and not isinstance(obj, software)}

    def _inspect(self, program: GeneratorType, machine: dict[int, Any], everybody: set[int]) -> None:
        name, own = program.gi_code.co_qualname, chain(program)
        reached = walk([program])
        parts = [part.gi_frame.f_locals for part in reached.values() if id(part) in own]
        myself = {id(names["self"]) for names in parts if "self" in names}
        for at, obj in reached.items():
            if at in machine:
                self.offences.add(f"{name} reaches {type(obj).__name__} of the machine")
            elif at in everybody - own:
                self.offences.add(f"{name} reaches {obj.gi_code.co_qualname}, which runs too")
            elif isinstance(obj, (*PROGRAMS, Tenant)) and at not in myself and not _is_part(myself, obj):
                self.offences.add(f"{name} reaches {type(obj).__name__}, which is not its own")
            elif isinstance(obj, (Transcript, Ledger, Scene)):
                self.offences.add(f"{name} reaches {type(obj).__name__}, which is outside of the simulation")


def _is_part(myself: set[int], owner: Any) -> bool:
    """Whether a program is a part that ``owner`` made for itself, as a hypervisor its server of exits."""
    return any(id(part) in myself for part in getattr(owner, "__dict__", {}).values())


def _heads(programs: list[GeneratorType]) -> list[GeneratorType]:
    """Programs that no other hands its answers on to."""
    parts = {id(program.gi_yieldfrom) for program in programs}
    return [program for program in programs if id(program) not in parts]


@pytest.fixture
def inspection(monkeypatch: pytest.MonkeyPatch) -> Inspection:
    """An inspection of every board that is made while a test runs."""
    found = Inspection()
    execute = {name: getattr(Board, name) for name in ("execute_host", "execute_guest")}

    def inspected(name: str) -> Callable[..., Any]:
        def run(board: Board, *arguments: Any) -> Any:
            if board not in found.boards:
                found.boards.append(board)
            found.look()
            return execute[name](board, *arguments)

        return run

    def made(host: Host, *arguments: Any, **named: Any) -> None:
        found.hosts.append(host)
        build(host, *arguments, **named)

    build = Host.__init__
    monkeypatch.setattr(Host, "__init__", made)
    for name in execute:
        monkeypatch.setattr(Board, name, inspected(name))
    gc.collect()
    gc.freeze()  # what other tests left behind is not looked at
    return found


def play(column: Column, attack: Callable[..., Any], product: str = "Turin", prelude: Any = None) -> Scene:
    scene = Scene(Setting(column, product, prelude=prelude), Ledger(), Transcript())
    scene.play(attack)
    return scene


@pytest.mark.parametrize("column", [Column.PLAIN, Column.SEV, Column.SEV_SNP])
@pytest.mark.parametrize("row", ["05b", "12", "39", "45"])
def test_no_program_reaches_a_chip_a_board_or_another_program(
    column: Column, row: str, inspection: Inspection
) -> None:
    (attack,) = ROWS[row].attacks
    play(column, attack)
    assert inspection.offences == set()
    expected = {"Hypervisor.bring_up", "Hypervisor.launch", "Vault._open", "Vault._round", attack.__name__}
    if column is Column.SEV_SNP:
        expected |= {"GhcbServer.serve", "GuestKernel._accept"}
    assert expected <= inspection.kinds


def test_what_a_hypervisor_does_before_snp_starts_reaches_none_either(inspection: Inspection) -> None:
    row = ROWS["41"]
    play(Column.SEV_SNP, *row.attacks, prelude=row.prelude)
    assert inspection.offences == set()
    assert {"record_into_a_page", "Hypervisor.bring_up"} <= inspection.kinds


def test_no_program_of_a_fleet_reaches_one_either(inspection: Inspection, tiny_scenario: Scenario) -> None:
    run(tiny_scenario, layout="inline")
    assert inspection.offences == set()
    assert {name.split(".")[0] for name in inspection.kinds} >= {"Hypervisor", "KeyValueStore", "RandomAccess"}


def test_no_program_of_hosts_between_which_machines_move_reaches_one_either(
    inspection: Inspection, tiny_scenario: Scenario
) -> None:
    firmware = tiny_scenario.vms[1].firmware
    small = {"memory": "64 MiB", "firmware": str(firmware), "start": "running"}
    scenario = Scenario.parse({
        "schema": 1,
        "name": "moves",
        "duration": "3 s",
        "hosts": [{"name": "host", "product": "Milan", "memory": "4 GiB", "count": 2}],
        "vms": [
            {"name": "database", "host": "host-2", "generation": "SEV_SNP", "workload": "key-value-store", **small},
            {"name": "batch", "host": "host-1", "generation": "PLAIN", "workload": "random-access", "parameters": {
                "table_bytes": 65536, "batch": 16, "instructions_per_batch": 200_000_000,
            }, **small},
        ],
        "migrations": [
            {"vm": "batch", "at": "500 ms", "to": "host-2"}, {"vm": "batch", "at": "1200 ms", "to": "host-1"},
            {"vm": "batch", "at": "2 s", "to": "host-2"},
        ],
    })  # fmt: skip
    moved = run(scenario, layout="inline")
    assert [row["outcome"] for row in moved.migrations.to_pylist()] == ["completed"] * 3
    assert inspection.offences == set()
    assert {"Hypervisor", "KeyValueStore", "RandomAccess"} <= {name.split(".")[0] for name in inspection.kinds}


def test_what_counts_as_the_machine_holds_every_chip(inspection: Inspection) -> None:
    (attack,) = ROWS["12"].attacks
    play(Column.SEV_SNP, attack)
    parts = {type(obj).__name__ for obj in inspection.machine().values() if own_class(obj)}
    expected = {
        "Board", "Dram", "DimmCells", "MemoryController", "XexCipher", "ReverseMapTable", "RmpTable", "RmpChecks",
        "SecurityProcessor", "SnpFirmware", "LegacyFirmware", "SnpGuests", "ContextPages", "HostSystemBus",
        "NestedPageTable", "Host", "HypervisorTasks", "VcpuRunner", "Guest", "Vcpu", "GuestInstructions",
        "HostInstructions",
    }  # fmt: skip
    assert expected <= parts


# The walk finds what it forbids: dishonest programs, each with another way to what it must not have.


def begun(program: Any) -> Any:
    next(program)
    return program


WAYS = {
    "a board": lambda scene: scene.host.board,
    "a chip in a list": lambda scene: [(scene.host.board.controller,)],
    "a view of DRAM": lambda scene: scene.host.board.dram.words(scene.target.victim.value.spa, 4096),
    "a bound method": lambda scene: scene.host.board.dram.read,
    "a cipher": lambda scene: {"key": next(iter(scene.host.board.controller._ciphers.values()))},
    "a function that closes over the RMP": lambda scene: (lambda: scene.host.board.rmp),
    "a table inside a chip": lambda scene: scene.host.board.vmcbs,
    "the victim's program": lambda scene: scene.host.guests["victim"].software.programs[0],
    "the hypervisor": lambda scene: scene.host.hypervisor,
    "what is outside of the simulation": lambda scene: scene,
    "another program that runs": lambda scene: begun(scene.host.hypervisor.bring_up()),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_dishonest_attacker_is_found(way: str, inspection: Inspection) -> None:
    inspection.asleep = True  # the launch is honest; others look at it
    scene = Scene(Setting(Column.SEV_SNP, "Milan"), Ledger(), Transcript())
    inspection.asleep = False
    assert inspection.offences == set()
    loot = WAYS[way](scene)
    harmless = HostRead(scene.target.spare[0], 16)

    def thief(_):
        yield LET_IT_RUN
        yield (harmless,)
        return loot  # only at the end, but it is in the frame all the time

    scene.play(thief)
    assert inspection.offences
    assert all("thief reaches" in offence for offence in inspection.offences)


def test_a_dishonest_tenant_is_found(inspection: Inspection, monkeypatch: pytest.MonkeyPatch) -> None:
    def round_with_a_view(_, registers):
        view = inspection.boards[0].controller
        yield ()
        registers.rax = view.bytes_decrypted
        return REST

    monkeypatch.setattr(Vault, "_round", round_with_a_view)
    scene = Scene(Setting(Column.SEV, "Rome"), Ledger(), Transcript())
    scene.let_run(scene.host.guests["victim"])
    assert any("round_with_a_view reaches MemoryController" in offence for offence in inspection.offences)


def test_a_dishonest_hypervisor_is_found(inspection: Inspection, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Hypervisor._take_asid

    def take_asid(self, record):
        self.notebook = inspection.boards[-1].psp
        yield from honest(self, record)

    monkeypatch.setattr(Hypervisor, "_take_asid", take_asid)
    Scene(Setting(Column.SEV, "Rome"), Ledger(), Transcript())
    assert any("Hypervisor.launch reaches SecurityProcessor" in offence for offence in inspection.offences)
