"""Gates: how far the table reaches, and which flags a handler begins with (APM volume 2, 8.9.3 and 8.9.4)."""

from __future__ import annotations

import pytest
from toy_guests import SECOND, make_host, start

from node import operations as op
from node.control_registers import RFLAGS_IF, RFLAGS_NT, RFLAGS_RF, RFLAGS_TF
from node.event_delivery import GATE_BYTES, Delivered, gate
from node.event_injection import Event, EventType
from node.generation import Generation
from node.program import Registers

VECTOR, HANDLER, TABLE, TOP = 0x40, 0x41_0000, 0x30_0000, 0x30_2000
AT = TABLE + VECTOR * GATE_BYTES
SPURIOUS_GP = TABLE + 13 * GATE_BYTES
ALWAYS, CARRY = 1 << 1, 1 << 0


@pytest.fixture(scope="module")
def board():
    host = make_host()
    start(host, "vm", Generation.PLAIN, "busy")
    host.clock.env.run(until=SECOND // 10)
    return host.board


def delivered(board, limit, flags=ALWAYS, **kind):
    vmcb, registers = board.vmcb("vm", 0), Registers(0x1234)
    registers.rsp = TOP
    steps = (
        op.Write(AT, gate(HANDLER, **kind)), op.Write(SPURIOUS_GP, gate(HANDLER + 0x1000)),
        op.LoadIdt(TABLE, limit),
    )  # fmt: skip
    assert board.execute_guest(vmcb, steps) == (None,) * 3
    board.controls.write_flags(vmcb, flags)
    came = board.delivery.deliver(vmcb, registers, Event(VECTOR, EventType.INTERRUPT))
    assert came is Delivered.TAKEN
    return registers.rip, board.controls.of(vmcb).rflags


@pytest.mark.parametrize(("short_of", "rip"), [(0, HANDLER), (1, HANDLER + 0x1000), (16, HANDLER + 0x1000)])
def test_a_gate_is_in_the_table_whole_or_not_at_all(board, short_of, rip):
    assert delivered(board, VECTOR * GATE_BYTES + GATE_BYTES - 1 - short_of)[0] == rip


@pytest.mark.parametrize("flag", [RFLAGS_TF, RFLAGS_NT, RFLAGS_RF])
@pytest.mark.parametrize("trap", [False, True])
def test_a_handler_is_neither_stepped_nor_nested_nor_resumed(board, flag, trap):
    _, flags = delivered(board, 0xFFF, ALWAYS | CARRY | flag, trap=trap)
    assert flags == ALWAYS | CARRY


@pytest.mark.parametrize("trap", [False, True])
def test_an_interrupt_gate_masks_interrupts_and_a_trap_gate_does_not(board, trap):
    _, flags = delivered(board, 0xFFF, ALWAYS | RFLAGS_IF, trap=trap)
    assert flags == ALWAYS | (RFLAGS_IF if trap else 0)


def test_the_frame_on_the_stack_has_the_flags_as_they_were(board):
    delivered(board, 0xFFF, ALWAYS | RFLAGS_TF | RFLAGS_NT)
    (frame,) = board.execute_guest(board.vmcb("vm", 0), (op.Read(TOP - 40, 40),))
    rip, _, flags, rsp, _ = (int.from_bytes(frame[at : at + 8], "little") for at in range(0, 40, 8))
    assert (rip, flags, rsp) == (0x1234, ALWAYS | RFLAGS_TF | RFLAGS_NT, TOP)
