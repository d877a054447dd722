"""A vCPU whose save area, key or control block is gone: every instruction ends in a typed fault, and no event comes."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest
from toy_guests import GENERATIONS, SECOND, make_host, start

from node import operations as op
from node.dram import MachineCheck
from node.event_delivery import GATE_BYTES, Delivered
from node.event_injection import Event, EventType, ExceptionVector, exception
from node.generation import Generation
from node.guest_walk import GuestPageFault
from node.program import Registers
from psp.system_bus import PAGE_BYTES

VALUES = {"length": 8, "count": 1, "width": 1, "gpa": 0x1000, "gva": 0x1000}


def one_of(kind: type) -> object:
    """Any operation of its kind."""
    given = {}
    for field in dataclasses.fields(kind):
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            octets, text = "bytes" in str(field.type), "str" in str(field.type)
            given[field.name] = bytes(8) if octets else "CR3" if text else VALUES.get(field.name, 1)
    return kind(**given)


INSTRUCTIONS = [one_of(kind) for kind in get_args(op.GuestOperation)]


def without_its_key(host, vmcb):
    host.board.bus.remove_key(vmcb.asid)


def without_a_control_block(host, _):
    host.board.execute_host((op.VmcbClear("vm"),))


def with_a_save_area_where_no_memory_is(host, vmcb):
    host.board.execute_host((op.VmcbWrite("vm", 0, vmcb.asid, vmcb.generation.name, 1 << 45),))


def behind_an_asid_that_has_no_key(host, vmcb):
    host.board.execute_host((op.VmcbWrite("vm", 0, vmcb.asid + 37, vmcb.generation.name, vmcb.save_area_spa),))


LOSSES = (
    without_its_key, without_a_control_block, with_a_save_area_where_no_memory_is, behind_an_asid_that_has_no_key
)  # fmt: skip
EVENTS = (
    Event(0x80, EventType.INTERRUPT), Event(2, EventType.NMI), exception(ExceptionVector.PF, 2),
    exception(ExceptionVector.DF, 0), Event(3, EventType.SOFTWARE_INTERRUPT),
)  # fmt: skip
CASES = [
    (generation, loss)
    for generation in GENERATIONS
    for loss in LOSSES
    if generation.name != "PLAIN" or loss not in (without_its_key, behind_an_asid_that_has_no_key)
]


@pytest.mark.parametrize(("generation", "loss"), CASES)
def test_nothing_but_typed_faults_comes_of_it(generation, loss):
    host = make_host()
    guest = start(host, "vm", generation, "busy")
    host.clock.env.run(until=SECOND // 10)
    board = host.board
    loss(host, board.vmcb("vm", 0))
    vmcb = board.vmcb("vm", 0)
    for one in INSTRUCTIONS:
        answers = board.execute_guest(vmcb, (one,))
        assert len(answers) <= 1, one
    registers = Registers(0x1234)
    for event in EVENTS:
        assert board.delivery.deliver(vmcb, registers, event) is Delivered.SHUTDOWN
    board.events.raised["vm", 0] = 3
    assert board.delivery.take(vmcb, registers) is Delivered.SHUTDOWN
    assert (registers.rip, registers.rsp) == (0x1234, 0)
    host.clock.env.run(until=SECOND)  # Whatever becomes of the VM, the host goes on.
    assert guest.spec.name == "vm"


@pytest.mark.parametrize("vector", [6, 14, 18])
def test_a_table_of_gates_without_memory_behind_it_ends_in_shutdown(vector):
    host = make_host()
    guest = start(host, "vm", Generation.PLAIN, "busy")
    host.clock.env.run(until=SECOND // 10)
    board = host.board
    vmcb = board.vmcb("vm", 0)
    gates = guest.spec.memory_bytes - PAGE_BYTES
    assert board.execute_host((op.NestedMap("vm", gates, 1 << 45, PAGE_BYTES),)) == (None,)
    assert board.execute_guest(vmcb, (op.Read(gates, 1),))[0].kind is op.FaultKind.MACHINE_CHECK
    assert board.execute_guest(vmcb, (op.LoadIdt(gates, PAGE_BYTES - 1),)) == (None,)
    assert board.delivery.deliver(vmcb, Registers(0x1234), exception(vector, None)) is Delivered.SHUTDOWN


@pytest.mark.parametrize("vector", [3, 14, 18])
def test_gates_that_raise_machine_checks_and_page_faults_in_turn_do_not_go_on_for_ever(vector):
    host = make_host()
    start(host, "vm", Generation.PLAIN, "busy")
    host.clock.env.run(until=SECOND // 10)
    board = host.board
    vmcb, read = board.vmcb("vm", 0), board.virtual_memory.read

    def raises_in_turn(vmcb_, state, at, length, access):
        if length == GATE_BYTES:  # #PF where #MC has its gate, #MC elsewhere
            raise GuestPageFault(at, 0) if at == GATE_BYTES * 18 else MachineCheck(at, length)
        return read(vmcb_, state, at, length, access)

    assert board.execute_guest(vmcb, (op.LoadIdt(0, PAGE_BYTES - 1),)) == (None,)
    board.virtual_memory.read = raises_in_turn
    assert board.delivery.deliver(vmcb, Registers(0x1234), exception(vector, None)) is Delivered.SHUTDOWN


@pytest.mark.parametrize("product", ["Naples", "Rome"])
def test_a_block_of_an_snp_guest_on_a_part_without_an_rmp_is_no_way_to_memory(product):
    host = make_host(product=product, min_sev_asid=10)
    start(host, "vm", Generation.SEV, "busy")
    host.clock.env.run(until=SECOND // 10)
    vmcb = host.board.vmcb("vm", 0)
    host.board.execute_host((op.VmcbWrite("vm", 0, 1, "SEV_SNP", vmcb.save_area_spa),))
    block = host.board.vmcb("vm", 0)
    assert not block.consistent
    for one in INSTRUCTIONS:
        assert len(host.board.execute_guest(block, (one,))) <= 1
    assert host.board.execute_guest(block, (op.Read(0x1000, 8),))[0].kind is op.FaultKind.RMP_FAULT
    host.clock.env.run(until=SECOND)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("spa", [1 << 52, (1 << 52) - PAGE_BYTES, 1 << 63, 1 << 64, 1 << 200])
def test_an_address_that_no_nested_entry_holds_is_no_mapping(spa, large):
    host = make_host()
    start(host, "vm", Generation.SEV, "busy")
    gpa, length = 1 << 40, 2 * PAGE_BYTES
    refused = op.Fault(op.FaultKind.GENERAL_PROTECTION, gpa)
    assert host.board.execute_host((op.NestedMap("vm", gpa, spa, length, large=large),)) == (refused,)
    (answer,) = host.board.execute_host((op.NestedBuild("other", ((0x400_0000, 0x20_0000),), ((gpa, spa, length),)),))
    assert answer == refused
    assert host.board.execute_guest(host.board.vmcb("vm", 0), (op.Read(gpa, 8),))[0].kind is (
        op.FaultKind.NESTED_PAGE_FAULT
    )
