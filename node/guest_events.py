"""How a guest kernel takes events: its table of gates, and the way back from a handler.

A handler is a block of the program like any other, whose RIP a gate names. It finds on its stack what the processor
pushed, keeps whatever register it needs in memory, and ends with ``back``.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping

from node.event_delivery import GATE_BYTES, Frame, gate
from node.operations import Answer, GuestOperation, LoadIdt, Read, Write, WriteFlags
from node.program import Registers

GATES = 256
IDT_BYTES = GATES * GATE_BYTES
_FRAME_WORDS = 5

Popping = Generator[tuple[GuestOperation, ...], tuple[Answer, ...], Frame]
Returning = Generator[tuple[GuestOperation, ...], tuple[Answer, ...], None]


class LostFrame(Exception):
    """A handler cannot read its own stack."""


def lay_gates(base: int, handlers: Mapping[int, int], traps: Iterable[int] = ()) -> tuple[GuestOperation, ...]:
    """Lay a table at ``base`` with the handler of each vector, those of ``traps`` with RFLAGS.IF as it is, and load it.

    A vector without a handler has no gate: its event ends in #GP.
    """
    table = bytearray(IDT_BYTES)
    open_ones = frozenset(traps)
    for vector, rip in handlers.items():
        table[GATE_BYTES * vector : GATE_BYTES * (vector + 1)] = gate(rip, trap=vector in open_ones)
    return Write(base, bytes(table)), LoadIdt(base, IDT_BYTES - 1)


def frame_at(rsp: int, *, error: bool = False) -> Popping:
    """What the processor pushed, ``error`` with an error code. Raises LostFrame."""
    count = _FRAME_WORDS + error
    (octets,) = yield (Read(rsp, 8 * count),)
    if not isinstance(octets, bytes):
        raise LostFrame(f"{octets!r}")
    words = [int.from_bytes(octets[at : at + 8], "little") for at in range(0, 8 * count, 8)]
    return Frame(words.pop(0) if error else None, *words)


def back(registers: Registers, *, error: bool = False) -> Returning:
    """IRET: what was interrupted goes on after this block. Raises LostFrame."""
    frame = yield from frame_at(registers.rsp, error=error)
    yield (WriteFlags(frame.rflags),)
    registers.rip, registers.rsp = frame.rip, frame.rsp
