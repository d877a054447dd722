"""A GPU: memory of its own, a ring of commands in its host's, copies between the two, and products of matrices.

The laboratory's own design, as small as a device can be that computes on data brought to it: integers of 32 bits, so
that products are the same everywhere. Rules, as with the disk (``tio.nvme``):

- A doorbell runs the ring to its end, at once and in order: what took how long is the board's to say.
- A command that is wrong gets its status and changes nothing; its work is bounded by the device's memory.
- A ring or fence that the device cannot reach stops it until reset.
- While a channel is open (``tio.gpu_channel``) commands, data and fences are sealed, and nobody sees the memory. What
  does not open closes the channel and clears the device.
- Trusted work leaves its data in the device's memory until somebody clears it (``scrub``), ring and fence with it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tio.dma_port import DmaFault, DmaPort
from tio.gpu_channel import TAG_BYTES, GpuChannel, Unsealed

COMMAND_BYTES = 64
FENCE_BYTES = 8
REGISTER_BAR, MEMORY_BAR = 0, 2
MAILBOX_AT = 0x1000
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
    SEALED = 4
    """Do what lies sealed at the host's ``source``: a command of 64 bytes and its tag."""


class GpuStatus(IntEnum):
    """What a fence says of a command."""

    DONE = 0
    UNKNOWN_OPCODE = 1
    OUTSIDE_MEMORY = 2
    DMA_REFUSED = 3
    TOO_MUCH = 4
    NOT_SEALED = 5
    """A channel is open, or none is for what is sealed."""
    NOT_OPENED = 6
    """What is sealed is not what its channel has next; there is no channel any more."""


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


class Mailbox(Protocol):
    """Registers of double words."""

    def load(self, offset: int) -> int:
        """Load one."""

    def store(self, offset: int, value: int) -> object:
        """Store one."""

    def reset(self) -> None:
        """The function was reset: nothing is under way, and nobody has a session."""


class _Refused(Exception):
    def __init__(self, status: GpuStatus) -> None:
        super().__init__(status.name)
        self.status = status


class Gpu:
    """One engine. ``port`` is the only way it reaches its host's memory.

    ``served`` hears of each command, ``interrupt`` of each doorbell that brought some, when they are done.
    """

    def __init__(self, port: DmaPort, memory_bytes: int = 16 << 20) -> None:
        self.served: Callable[[GpuServed], None] = _nobody
        self.interrupt: Callable[[], None] = _nothing
        self.mailbox: Mailbox | None = None
        """Answers at MAILBOX_AT of the register BAR."""
        self.channel_lost: Callable[[], None] = _nothing
        """The device has closed a channel by itself."""
        self.memory: NDArray[np.uint8] = np.zeros(memory_bytes, np.uint8)
        self.ignored = 0
        """Doorbells that name no entry, or rang before there was a ring."""
        self._port = port
        self._channel: GpuChannel | None = None
        self._ring = self._entries = self._fence = self._head = 0
        self._stopped = False

    # What a driver does.

    def load(self, bar: int, offset: int, width: int) -> int:
        """Load from a BAR: registers, or the device's memory; of that ones while a channel is open."""
        if bar == REGISTER_BAR and self.mailbox is not None and offset >= MAILBOX_AT:
            return self.mailbox.load(offset - MAILBOX_AT) & (1 << 8 * width) - 1
        if bar == MEMORY_BAR and self._channel is not None:
            return (1 << 8 * width) - 1
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
        if bar == REGISTER_BAR and offset >= MAILBOX_AT:
            if self.mailbox is not None and width == 4:
                self.mailbox.store(offset - MAILBOX_AT, value)
            return
        if bar == MEMORY_BAR:
            if self._channel is None and offset + width <= len(self.memory):
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
        """Forget ring and fence, what memory holds, and every session of the mailbox."""
        self._clear()
        if self.mailbox is not None:
            self.mailbox.reset()

    def set_channel(self, channel: GpuChannel | None) -> None:
        """Open a channel, in the place of one before, or close it: either way the device begins with nothing."""
        self._channel = None
        self._clear()
        self._channel = channel

    def scrub(self) -> None:
        """Forget ring and fence, and what memory holds: all of it is what trusted work left."""
        self._clear()

    # Within.

    def _clear(self) -> None:
        self._ring = self._entries = self._fence = self._head = 0
        self._stopped = False
        self.memory = np.zeros(len(self.memory), np.uint8)  # which holds no page before somebody writes one
        if self._channel is not None:
            self._channel = None
            self.channel_lost()

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
                self._stopped = bool(self._entries)
                return
            # A reset may have come meanwhile, of the device's own will or because its TDI went to ERROR.
            if not self._entries:
                return
            self._head = (self._head + 1) % self._entries
        if brought:
            self.interrupt()

    def _serve(self, entry: bytes) -> None:
        command = GpuCommand(*_COMMAND.unpack_from(entry))
        fence = self._fence
        try:
            done = self._done(self._opened(command))
        except _Refused as refused:
            done = _refused(command, refused.status)
        except Unsealed:
            done = _refused(command, GpuStatus.NOT_OPENED)
            self._clear()
        told = _FENCE.pack(done.sequence, done.status)
        if self._channel is not None:
            told += self._channel.fence_tag(told)
        self._port.write(fence, told)
        self.served(done)

    def _opened(self, command: GpuCommand) -> GpuCommand:
        """The command that an entry stands for. Raises _Refused and Unsealed."""
        if (command.opcode == GpuOpcode.SEALED) is (self._channel is None):
            raise _Refused(GpuStatus.NOT_SEALED)
        if self._channel is None:
            return command
        try:
            sealed = self._port.read(command.source, COMMAND_BYTES + TAG_BYTES)
        except DmaFault:
            raise _Refused(GpuStatus.DMA_REFUSED) from None
        return GpuCommand(*_COMMAND.unpack_from(self._channel.open_command(sealed)))

    def _done(self, command: GpuCommand) -> GpuServed:
        serve = _COMMANDS.get(command.opcode)
        return _refused(command, GpuStatus.UNKNOWN_OPCODE) if serve is None else serve(self, command)

    def copy_in(self, command: GpuCommand) -> GpuServed:
        """COPY_IN. Raises Unsealed for data that the channel does not open."""
        length, channel = command.second, self._channel
        if not self._inside(command.destination, length):
            return _refused(command, GpuStatus.OUTSIDE_MEMORY)
        try:
            data = self._port.read(command.source, length if channel is None else length + TAG_BYTES)
        except DmaFault:
            return _refused(command, GpuStatus.DMA_REFUSED)
        if channel is not None:
            data = channel.open_in(data)
        self.memory[command.destination : command.destination + length] = np.frombuffer(data, np.uint8)
        return GpuServed(command.sequence, command.opcode, GpuStatus.DONE, bytes_read=length)

    def copy_out(self, command: GpuCommand) -> GpuServed:
        """COPY_OUT."""
        length = command.second
        if not self._inside(command.source, length):
            return _refused(command, GpuStatus.OUTSIDE_MEMORY)
        data = self.memory[command.source : command.source + length].tobytes()
        try:
            self._port.write(command.destination, data if self._channel is None else self._channel.take_out(data))
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
