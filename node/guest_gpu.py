"""A guest's driver of a GPU: a ring of commands, and matrices to and from the device's memory.

Where devices reach only the guest's pool, ring, fence and data go through bounce buffers; a trusted device takes them
from private memory. The driver's books stand in private memory; a fence is read once and believed only for the command
that waits. Each method is a part of a block, for ``yield from``. Private memory, from ``gpa`` on, a page each:

    0       ring
    1       fence
    2       books

Data lies where the caller says.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from node.device_window import DeviceSilent, DeviceWindow
from node.operations import Fault, Read, Write
from node.swiotlb import MOST_MAPPED_BYTES, BounceArea, BounceFault, Steps
from tio.gpu import COMMAND_BYTES, FENCE_BYTES, REGISTER_BAR, GpuCommand, GpuOpcode, GpuRegister, GpuStatus

ENTRIES = 16
PRIVATE_BYTES = 3 * 4096
SHARED_BYTES = 2 * 4096
"""Bounce buffers that it needs as long as it works, beside those of one request."""
_PAGE_BYTES = 4096
FENCE_AT, _BOOKS = 1 * _PAGE_BYTES, 2 * _PAGE_BYTES
_BOOK = struct.Struct("<QII")
"""Where ring and fence are for the device, the ring's tail, and the last command's number."""
_FENCE_FORM = struct.Struct("<II")
_IDENTITY = 0x3055_5047


class GpuUntrusted(Exception):
    """The device said something that no such device says."""


@dataclass(frozen=True, slots=True)
class GuestGpu:
    """One vCPU's GPU. Errors beside GpuUntrusted and DeviceSilent: those of ``BounceArea``."""

    area: BounceArea
    window: DeviceWindow
    gpa: int

    def start(self) -> Steps[int]:
        """Set the device up; how much memory it has, in bytes."""
        found = yield from self.window.load(REGISTER_BAR, GpuRegister.IDENTITY)
        if found != _IDENTITY:
            raise DeviceSilent(f"IDENTITY: expected {_IDENTITY:#x}, got {found:#x}")
        ring = yield from self.area.map_from_device(self.gpa, 2 * _PAGE_BYTES)
        yield from self._done((Write(ring, bytes(2 * _PAGE_BYTES), self._private),))
        yield from self.window.store(
            REGISTER_BAR,
            (GpuRegister.RING_BASE, ring, 8),
            (GpuRegister.FENCE_BASE, ring + FENCE_AT, 8),
            (GpuRegister.RING_ENTRIES, ENTRIES, 4),
        )
        yield from self._keep(ring, 0, 0)
        return (yield from self.window.load(REGISTER_BAR, GpuRegister.MEMORY_BYTES, 8))

    def stop(self) -> Steps[None]:
        """Take ring and fence from the device, and its buffers back."""
        ring, _, _ = yield from self._book()
        yield from self.window.store(REGISTER_BAR, (GpuRegister.RING_ENTRIES, 0, 4))
        yield from self.area.unmap(ring, 2 * _PAGE_BYTES)

    def copy_in(self, gpa: int, destination: int, length: int) -> Steps[None]:
        """Private memory into the device's."""
        for at in range(0, length, MOST_MAPPED_BYTES):
            size = min(MOST_MAPPED_BYTES, length - at)
            mapped = yield from self.area.map_to_device(gpa + at, size)
            yield from self._lent(mapped, size, GpuCommand(GpuOpcode.COPY_IN, 0, mapped, destination + at, size))

    def copy_out(self, source: int, gpa: int, length: int) -> Steps[None]:
        """The device's memory into private memory."""
        for at in range(0, length, MOST_MAPPED_BYTES):
            size = min(MOST_MAPPED_BYTES, length - at)
            mapped = yield from self.area.map_from_device(gpa + at, size)
            command = GpuCommand(GpuOpcode.COPY_OUT, 0, source + at, mapped, size)
            yield from self._lent(mapped, size, command, copied_to=gpa + at)

    def multiply(self, first: int, second: int, product: int, shape: tuple[int, int, int]) -> Steps[None]:
        """Matrices in the device's memory: rows by inner, times inner by columns."""
        yield from self.run(GpuCommand(GpuOpcode.MULTIPLY, 0, first, product, second, *shape))

    def run(self, command: GpuCommand) -> Steps[None]:
        """One command, its number filled in. Raises GpuUntrusted where it did not come to a good end."""
        number, ring, _ = yield from self.submitted(command)
        (fence,) = yield (Read(ring + FENCE_AT, FENCE_BYTES, self._private),)
        if not isinstance(fence, bytes):
            raise BounceFault(fence)
        if fence != _FENCE_FORM.pack(number, GpuStatus.DONE):
            raise GpuUntrusted(f"fence of command {number}: {fence.hex()}")

    def run_polled(self, command: GpuCommand) -> Steps[None]:
        """The same, but that a register says whether it is done, and not how. Raises GpuUntrusted where it is not."""
        number, _, after = yield from self.submitted(command)
        head = yield from self.window.load(REGISTER_BAR, GpuRegister.HEAD)
        if head != after:
            raise GpuUntrusted(f"head after command {number}: {head:#x}")

    def leave(self, command: GpuCommand) -> Steps[None]:
        """A command that nobody waits for."""
        yield from self.submitted(command)

    def next_number(self) -> Steps[int]:
        """The number that the next command will have."""
        _, _, last = yield from self._book()
        return (last + 1) & 0xFFFF_FFFF

    def submitted(self, command: GpuCommand) -> Steps[tuple[int, int, int]]:
        """Ring for a command: its number, the ring, and the tail after it."""
        ring, tail, last = yield from self._book()
        number, after = (last + 1) & 0xFFFF_FFFF, (tail + 1) % ENTRIES
        entry = GpuCommand(
            command.opcode, number, command.source, command.destination, command.second, command.rows, command.inner,
            command.columns,
        )  # fmt: skip
        yield from self._done((Write(ring + tail * COMMAND_BYTES, entry.pack(), self._private),))
        yield from self._keep(ring, after, number)
        yield from self.window.store(REGISTER_BAR, (GpuRegister.DOORBELL, after, 4))
        return number, ring, after

    # Within.

    @property
    def _private(self) -> bool:
        return not self.area.bounces

    def _lent(self, at: int, length: int, command: GpuCommand, copied_to: int | None = None) -> Steps[None]:
        """Run a command on slots that are lent, and give them back however it ends."""
        try:
            yield from self.run(command)
            if copied_to is not None:
                yield from self.area.copy_from_device(at, copied_to, length)
        except (GpuUntrusted, BounceFault, DeviceSilent):
            yield from self.area.unmap(at, length)
            raise
        yield from self.area.unmap(at, length)

    def _book(self) -> Steps[tuple[int, int, int]]:
        (data,) = yield (Read(self.gpa + _BOOKS, _BOOK.size),)
        if not isinstance(data, bytes):
            raise BounceFault(data)
        ring, tail, last = _BOOK.unpack(data)
        return ring, tail, last

    def _keep(self, ring: int, tail: int, last: int) -> Steps[None]:
        yield from self._done((Write(self.gpa + _BOOKS, _BOOK.pack(ring, tail, last)),))

    def _done(self, batch: tuple[Write, ...]) -> Steps[None]:
        for answer in (yield batch):
            if isinstance(answer, Fault):
                raise BounceFault(answer)
