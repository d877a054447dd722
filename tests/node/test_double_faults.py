"""Exceptions that the delivery of an event raises: which follow one another, and which become a double fault.

APM volume 2, 8.2.9: #DF follows a contributory exception (#DE, #TS, #NP, #SS, #GP) on the way to the handler of
another, and a contributory exception or #PF on the way to that of #PF. All others are handled one after the other.
"""

from __future__ import annotations

import pytest
from toy_guests import SECOND, make_host, start

from node import operations as op
from node.event_delivery import GATE_BYTES, Delivered, gate
from node.event_injection import Event, EventType, exception
from node.generation import Generation
from node.guest_walk import GuestPageFault
from node.program import Registers

DE, UD, DF, TS, NP, SS, GP, PF = 0, 6, 8, 10, 11, 12, 13, 14
HANDLER, TOP = 0x40_0000, 0x20_0FF0
WITH_ERROR = {DF, TS, NP, SS, GP, PF}


@pytest.fixture(scope="module")
def board():
    host = make_host()
    start(host, "vm", Generation.PLAIN, "busy")
    host.clock.env.run(until=SECOND // 10)
    assert host.board.execute_guest(host.board.vmcb("vm", 0), (op.LoadIdt(0, 0xFFF),)) == (None,)
    return host.board


def delivered(board, event, raises):
    """The vectors whose gates were looked at, and what it came to; ``raises`` says what each gate is good for."""
    seen, read = [], board.virtual_memory.read

    def look(vmcb, state, at, length, access):
        if length != GATE_BYTES:
            return read(vmcb, state, at, length, access)
        vector = at // GATE_BYTES
        seen.append(vector)
        second = raises.get(vector)
        if second == PF:
            raise GuestPageFault(at, 0)
        whole = int.from_bytes(gate(HANDLER), "little")
        broken = {GP: whole & ~(0x1F << 40), NP: whole & ~(1 << 47)}.get(second, whole)
        return broken.to_bytes(GATE_BYTES, "little")

    registers = Registers(0x1234)
    registers.rsp = TOP
    board.virtual_memory.read = look
    try:
        came = board.delivery.deliver(board.vmcb("vm", 0), registers, event)
    finally:
        board.virtual_memory.read = read
    return seen, came


def first(vector):
    return exception(vector, 0 if vector in WITH_ERROR else None)


FOLLOWS = {
    (DE, GP): DF, (GP, GP): DF, (GP, NP): DF, (NP, GP): DF, (SS, NP): DF, (TS, GP): DF,
    (PF, GP): DF, (PF, NP): DF, (PF, PF): DF,
    (DE, PF): PF, (GP, PF): PF, (NP, PF): PF, (SS, PF): PF, (TS, PF): PF,
    (UD, GP): GP, (UD, NP): NP, (UD, PF): PF,
}  # fmt: skip


@pytest.mark.parametrize(("one", "other"), FOLLOWS)
def test_what_follows_an_exception_that_the_delivery_of_another_raised(board, one, other):
    assert delivered(board, first(one), {one: other}) == ([one, FOLLOWS[one, other]], Delivered.TAKEN)


@pytest.mark.parametrize("other", [GP, NP, PF])
def test_whatever_the_delivery_of_a_double_fault_raises_shuts_the_vcpu_down(board, other):
    assert delivered(board, first(DF), {DF: other}) == ([DF], Delivered.SHUTDOWN)
    assert delivered(board, first(GP), {GP: NP, DF: other}) == ([GP, DF], Delivered.SHUTDOWN)


@pytest.mark.parametrize("kind", [EventType.INTERRUPT, EventType.SOFTWARE_INTERRUPT])
@pytest.mark.parametrize("vector", [DF, GP, PF, 0x80])
def test_an_interrupt_is_no_exception_whatever_its_vector(board, kind, vector):
    assert delivered(board, Event(vector, kind), {vector: NP}) == ([vector, NP], Delivered.TAKEN)
