"""A GPU: memory of its own, a ring of commands in its host's, copies between the two, and products of matrices.

The laboratory's own design, as small as a device can be that computes on data brought to it: integers of 32 bits, so
that products are the same everywhere. Rules, as with the disk (``tio.nvme``):

- A doorbell runs the ring to its end, at once and in order: what took how long is the board's to say.
- A command that is wrong gets its status and changes nothing; its work is bounded by the device's memory.
- A ring or fence that the device cannot reach stops it until reset.
- Trusted work leaves its data in the device's memory until somebody clears it (``scrub``), ring and fence with it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from tio.dma_port import DmaFault, DmaPort

COMMAND_BYTES = 64
FENCE_BYTES = 8
REGISTER_BAR, MEMORY_BAR = 0, 2
MOST_ENTRIES = 1 << 8
MOST_PRODUCTS = 1 << 24
"""Multiplications of one command."""
_COMMAND = struct.Struct("<IIQQQIII")
_FENCE = struct.Struct("<II")
_IDENTITY = 0x3055_5047
_READY, _STOPPED = 1, 2
_WORD = np.dtype("<i4")


class GpuRegister(IntEnum):
    """Offsets in the register BAR."""

    IDENTITY = 0x00
    STATUS = 0x04
    RING_BASE = 0x08
    RING_ENTRIES = 0x10
    DOORBELL = 0x14
    HEAD = 0x18
    FENCE_BASE = 0x20
    MEMORY_BYTES = 0x28


class GpuOpcode(IntEnum):
    """What a command asks for."""

    COPY_IN = 1
    """``length`` bytes from the host's ``source`` to the device's ``destination``."""
    COPY_OUT = 2
    """``length`` bytes from the device's ``source`` to the host's ``destination``."""
    MULTIPLY = 3
    """Matrices at ``source`` (rows by inner) and ``second`` (inner by columns): their product at ``destination``."""


class GpuStatus(IntEnum):
    """What a fence says of a command."""

    DONE = 0
    UNKNOWN_OPCODE = 1
    OUTSIDE_MEMORY = 2
    DMA_REFUSED = 3
    TOO_MUCH = 4


@dataclass(frozen=True, slots=True)
class GpuCommand:
    """One entry of the ring. ``second`` is a copy's length or a product's second matrix."""

    opcode: int
    sequence: int
    source: int
    destination: int
    second: int
    rows: int = 0
    inner: int = 0
    columns: int = 0

    def pack(self) -> bytes:
        """64 bytes."""
        fields = (self.opcode, self.sequence, self.source, self.destination, self.second)
        return _COMMAND.pack(*fields, self.rows, self.inner, self.columns).ljust(COMMAND_BYTES, b"\0")


@dataclass(frozen=True, slots=True)
class GpuServed:
    """What the device did for one command. ``products`` are its multiplications."""

    sequence: int
    opcode: int
    status: GpuStatus
    bytes_read: int = 0
    bytes_written: int = 0
    products: int = 0


class Gpu:
    """One engine. ``port`` is the only way it reaches its host's memory.

    ``served`` hears of each command, ``interrupt`` of each doorbell that brought some, when they are done.
    """

    def __init__(self, port: DmaPort, memory_bytes: int = 16 << 20) -> None:
        self.served: Callable[[GpuServed], None] = _nobody
        self.interrupt: Callable[[], None] = _nothing
        self.memory: NDArray[np.uint8] = np.zeros(memory_bytes, np.uint8)
        self.ignored = 0
        """Doorbells that name no entry, or rang before there was a ring."""
        self._port = port
        self._ring = self._entries = self._fence = self._head = 0
        self._stopped = False

    # What a driver does.

    def load(self, bar: int, offset: int, width: int) -> int:
        """Load from a BAR: registers, or the device's memory."""
        if bar == MEMORY_BAR:
            return int.from_bytes(self.memory[offset : offset + width].tobytes(), "little")
        values = {
            GpuRegister.IDENTITY: _IDENTITY,
            GpuRegister.STATUS: _STOPPED if self._stopped else _READY if self._entries else 0,
            GpuRegister.RING_BASE: self._ring,
            GpuRegister.RING_ENTRIES: self._entries,
            GpuRegister.HEAD: self._head,
            GpuRegister.FENCE_BASE: self._fence,
            GpuRegister.MEMORY_BYTES: len(self.memory),
        }
        for register, value in values.items():
            if register <= offset < register + (8 if register in _WIDE else 4):
                return value >> 8 * (offset - register) & (1 << 8 * width) - 1
        return 0

    def store(self, bar: int, offset: int, value: int, width: int) -> None:
        """Store to a BAR; a new ring begins at its first entry."""
        if bar == MEMORY_BAR:
            if offset + width <= len(self.memory):
                self.memory[offset : offset + width] = np.frombuffer(value.to_bytes(width, "little"), np.uint8)
            return
        if offset == GpuRegister.DOORBELL:
            self._ring_doorbell(value)
        elif offset == GpuRegister.RING_ENTRIES:
            self._entries, self._head = value if value <= MOST_ENTRIES else 0, 0
        for register in (GpuRegister.RING_BASE, GpuRegister.FENCE_BASE):
            if register <= offset and offset + width <= register + 8:
                self._store_address(register, 8 * (offset - register), value, width)

    def reset(self) -> None:
        """Forget ring and fence, and what memory holds."""
        self._ring = self._entries = self._fence = self._head = 0
        self._stopped = False
        self.memory[:] = 0

    def scrub(self) -> None:
        """The same: all of it is what trusted work left."""
        self.reset()

    # Within.

    def _store_address(self, register: GpuRegister, shift: int, value: int, width: int) -> None:
        before = self._ring if register is GpuRegister.RING_BASE else self._fence
        after = before & ~((1 << 8 * width) - 1 << shift) | value << shift
        if register is GpuRegister.RING_BASE:
            self._ring = after
        else:
            self._fence = after

    def _ring_doorbell(self, tail: int) -> None:
        if self._stopped or not 0 <= tail < self._entries:
            self.ignored += 1
            return
        brought = self._head != tail
        while self._head != tail and not self._stopped:
            try:
                self._serve(self._port.read(self._ring + self._head * COMMAND_BYTES, COMMAND_BYTES))
            except DmaFault:
                self._stopped = bool(self._entries)  # without a ring a reset has come meanwhile
                return
            self._head = (self._head + 1) % self._entries
        if brought:
            self.interrupt()

    def _serve(self, entry: bytes) -> None:
        command = GpuCommand(*_COMMAND.unpack_from(entry))
        serve = _COMMANDS.get(command.opcode)
        done = _refused(command, GpuStatus.UNKNOWN_OPCODE) if serve is None else serve(self, command)
        self._port.write(self._fence, _FENCE.pack(done.sequence, done.status))
        self.served(done)

    def copy_in(self, command: GpuCommand) -> GpuServed:
        """COPY_IN."""
        length = command.second
        if not self._inside(command.destination, length):
            return _refused(command, GpuStatus.OUTSIDE_MEMORY)
        try:
            data = self._port.read(command.source, length)
        except DmaFault:
            return _refused(command, GpuStatus.DMA_REFUSED)
        self.memory[command.destination : command.destination + length] = np.frombuffer(data, np.uint8)
        return GpuServed(command.sequence, command.opcode, GpuStatus.DONE, bytes_read=length)

    def copy_out(self, command: GpuCommand) -> GpuServed:
        """COPY_OUT."""
        length = command.second
        if not self._inside(command.source, length):
            return _refused(command, GpuStatus.OUTSIDE_MEMORY)
        try:
            self._port.write(command.destination, self.memory[command.source : command.source + length].tobytes())
        except DmaFault:
            return _refused(command, GpuStatus.DMA_REFUSED)
        return GpuServed(command.sequence, command.opcode, GpuStatus.DONE, bytes_written=length)

    def multiply(self, command: GpuCommand) -> GpuServed:
        """MULTIPLY, modulo 2 to the 32nd."""
        rows, inner, columns = command.rows, command.inner, command.columns
        if rows * inner * columns > MOST_PRODUCTS:
            return _refused(command, GpuStatus.TOO_MUCH)
        matrices = (command.source, rows * inner), (command.second, inner * columns)
        places = (*matrices, (command.destination, rows * columns))
        if not all(not at % _WORD.itemsize and self._inside(at, count * _WORD.itemsize) for at, count in places):
            return _refused(command, GpuStatus.OUTSIDE_MEMORY)
        one, other, into = (self.memory[at : at + count * _WORD.itemsize].view(_WORD) for at, count in places)
        into[:] = (one.reshape(rows, inner) @ other.reshape(inner, columns)).reshape(-1)
        return GpuServed(command.sequence, command.opcode, GpuStatus.DONE, products=rows * inner * columns)

    def _inside(self, at: int, length: int) -> bool:
        return at + length <= len(self.memory)


def _refused(command: GpuCommand, status: GpuStatus) -> GpuServed:
    return GpuServed(command.sequence, command.opcode, status)


def _nobody(_: GpuServed) -> None:
    """Hear nothing."""


def _nothing() -> None:
    """Hear nothing."""


_COMMANDS: dict[int, Callable[[Gpu, GpuCommand], GpuServed]] = {
    GpuOpcode.COPY_IN: Gpu.copy_in,
    GpuOpcode.COPY_OUT: Gpu.copy_out,
    GpuOpcode.MULTIPLY: Gpu.multiply,
}
_WIDE = (GpuRegister.RING_BASE, GpuRegister.FENCE_BASE, GpuRegister.MEMORY_BYTES)
