"""The victim whose stack pointer is shifted: a program that calls, and finds on its stack what it was told.

It pushes a figure, and above it what a login came to; rests, as if it had called somebody; pops both, and
notes them. In an undisturbed life it stores the same in each of ``promises``, always.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass

from node.operations import Answer, GuestOperation, Read, StackMove, Write
from node.program import Block, Demand, Placement, ProgramSpec, Registers
from workloads.attacks.vault import PAGE_BYTES, REST
from workloads.block_outcome import FAULTED

OPEN_RIP, CALL_RIP, RETURN_RIP = 0x40_0000, 0x40_1000, 0x40_2000
_CELLS, _STACK = 8, 11
"""Pages from the beginning of its private range."""
DENIED, FIGURE = 1, 7
_WORD_BYTES = 8
_Steps = Generator[tuple[GuestOperation, ...], tuple[Answer, ...], int]


class _Fault(Exception):
    """An operation was answered with one."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The program, without parameters. R13 counts its returns."""

    placement: Placement

    entry = OPEN_RIP
    demands: tuple[Demand, ...] = ()

    @classmethod
    def build(cls, _: ProgramSpec, placement: Placement) -> Caller:
        """The program of a specification."""
        return cls(placement)

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        """Blocks by RIP."""
        return {OPEN_RIP: self._open, CALL_RIP: self._call, RETURN_RIP: self._return}

    @property
    def promises(self) -> Mapping[int, bytes]:
        """What it stores, wherever it does, by GPA."""
        noted = (DENIED, FIGURE)
        return {self._cell(number): value.to_bytes(_WORD_BYTES, "little") for number, value in enumerate(noted)}

    def _cell(self, number: int) -> int:
        return self.placement.base_gpa + _CELLS * PAGE_BYTES + number * _WORD_BYTES

    def _open(self, registers: Registers) -> Block:
        registers.rsp = self.placement.base_gpa + (_STACK + 1) * PAGE_BYTES - 64 * _WORD_BYTES
        registers.rip = CALL_RIP
        return REST
        yield ()

    def _call(self, registers: Registers) -> Block:
        try:
            for value in (FIGURE, DENIED):
                yield from _push(registers, value)
        except _Fault:
            return FAULTED
        registers.rip = RETURN_RIP
        return REST

    def _return(self, registers: Registers) -> Block:
        try:
            for number in range(2):
                value = yield from _pop(registers)
                yield from _done(Write(self._cell(number), value.to_bytes(_WORD_BYTES, "little")))
        except _Fault:
            return FAULTED
        registers.r13 += 1
        registers.rip = CALL_RIP
        return REST


def _push(registers: Registers, value: int) -> _Steps:
    yield from _done(Write(registers.rsp - _WORD_BYTES, value.to_bytes(_WORD_BYTES, "little")))
    registers.rsp = yield from _done(StackMove(registers.rsp, -_WORD_BYTES))
    return value


def _pop(registers: Registers) -> _Steps:
    value = yield from _done(Read(registers.rsp, _WORD_BYTES))
    registers.rsp = yield from _done(StackMove(registers.rsp, _WORD_BYTES))
    return value


def _done(one: GuestOperation) -> _Steps:
    """An operation's number, whatever form it has; 0 for none. Raises _Fault."""
    (answer,) = yield (one,)
    if isinstance(answer, bytes):
        return int.from_bytes(answer, "little")
    if answer is None or isinstance(answer, int):
        return answer or 0
    raise _Fault
