"""A hypervisor's look at its slots: which functions are behind a root port, and where their registers are to lie.

Boot firmware hands out root ports with a window of MMIO each; the hypervisor places the BARs of what it finds. Each is
a task for ``yield from``. Source: PCI Express base specification, 7.5.1 (header, BARs), 7.6.3 (extended capabilities).
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace

from node import operations as op
from node.hypervisor_port import Answers, Batch, Task
from node.port_window import PortWindow
from tio.pci import Command, Register
from tio.pci.sr_iov import SrIovControl, SrIovRegister

DOE_CAPABILITY, IDE_CAPABILITY, SR_IOV_CAPABILITY = 0x2E, 0x30, 0x10
_FIRST_EXTENDED, _CONFIGURATION_BYTES = 0x100, 0x1000
_BARS_AT, _BAR_SLOTS = 0x10, 6
_ABSENT = 0xFFFF
_FLAGS = 0xF
_TEE_IO = 1 << 30
_FUNCTION_LEVEL_RESET = 1 << 15
_MOST_CAPABILITIES = 64

Words = Generator[Batch, Answers, list[int]]


@dataclass(frozen=True, slots=True)
class Function:
    """A function as it was found and placed. Offsets of capabilities are 0 where there is none."""

    port: PortWindow
    requester: int
    vendor_id: int
    device_id: int
    class_code: int
    bars: tuple[tuple[int, int, int], ...]
    """(BAR, SPA, bytes)."""
    mailbox: int
    ide: int
    tee_io: bool
    virtual: bool = False
    """Its physical function has its mailbox, its IDE registers and the places of its BARs."""


def find(port: PortWindow) -> Generator[Batch, Answers, tuple[Function, ...]]:
    """The functions behind a port, the physical one first; nothing for an empty slot.

    BARs are placed from the window's begin on, and all virtual functions made that there can be.
    """
    requester = port.card
    ids, revision, capabilities = yield from _read(requester, Register.VENDOR_ID, 0x08, Register.DEVICE_CAPABILITIES)
    if ids & _ABSENT == _ABSENT:
        return ()
    bars, free = yield from _place(requester, _BARS_AT, port.base)
    found = yield from _extended(requester)
    yield tuple(_placing(requester, _BARS_AT, bars))
    physical = Function(
        port, requester, ids & 0xFFFF, ids >> 16, revision >> 8, tuple(bars), found.get(DOE_CAPABILITY, 0),
        found.get(IDE_CAPABILITY, 0), bool(capabilities & _TEE_IO),
    )  # fmt: skip
    at = found.get(SR_IOV_CAPABILITY, 0)
    virtual = (yield from _make_virtual(physical, at, free)) if at else ()
    return physical, *virtual


def _make_virtual(physical: Function, at: int, free: int) -> Generator[Batch, Answers, tuple[Function, ...]]:
    """Enable every virtual function, their BARs from an address on."""
    requester = physical.requester
    total, places, device = yield from _read(
        requester, at + SrIovRegister.TOTAL_VFS, at + SrIovRegister.OFFSET_STRIDE, at + SrIovRegister.VF_DEVICE_ID
    )
    count, first, stride = total >> 16, places & 0xFFFF, places >> 16
    yield (op.ConfigWrite(requester, at + SrIovRegister.NUM_VFS, count),)
    bars, _ = yield from _place(requester, at + SrIovRegister.VF_BAR_0, free, count)
    control = SrIovControl.VF_ENABLE | SrIovControl.VF_MEMORY_SPACE
    yield (
        *_placing(requester, at + SrIovRegister.VF_BAR_0, bars),
        op.ConfigWrite(requester, at + SrIovRegister.CONTROL, int(control)),
        op.ConfigWrite(requester, Register.COMMAND, int(Command.MEMORY_SPACE | Command.BUS_MASTER), 2),
    )
    return tuple([
        replace(
            physical, requester=requester + first + number * stride, device_id=device >> 16, virtual=True,
            bars=tuple([(index, spa + number * size, size) for index, spa, size in bars]),
        )
        for number in range(count)
    ])  # fmt: skip


def is_there(function: Function) -> Generator[Batch, Answers, bool]:
    """Whether a card still answers as it did when it was found."""
    (ids,) = yield (op.ConfigRead(function.port.card, Register.VENDOR_ID),)
    return isinstance(ids, int) and ids & 0xFFFF == function.vendor_id


def enable(function: Function, *, on: bool) -> Task:
    """Let a function answer at its BARs and reach memory; or neither."""
    value = Command.MEMORY_SPACE | Command.BUS_MASTER if on else Command(0)
    yield (op.ConfigWrite(function.requester, Register.COMMAND, int(value), 2),)


def reset(function: Function) -> Task:
    """Function-level reset, after which its BARs are placed again."""
    yield (op.ConfigWrite(function.requester, Register.DEVICE_CONTROL, _FUNCTION_LEVEL_RESET, 2),)
    if not function.virtual:
        yield tuple(_placing(function.requester, _BARS_AT, function.bars))


def extended_at(requester: int, capability: int) -> Generator[Batch, Answers, int]:
    """Where a function has an extended capability; 0 for nowhere."""
    return (yield from _extended(requester)).get(capability, 0)


Bars = list[tuple[int, int, int]]


def _place(requester: int, at: int, free: int, count: int = 1) -> Generator[Batch, Answers, tuple[Bars, int]]:
    """Size the BARs whose registers begin at an offset, and find places for so many functions' from ``free`` on.

    BAR, address and size of each, and what is free behind them.
    """
    sizes: list[tuple[int, int]] = []
    for index in range(0, _BAR_SLOTS, 2):
        register = at + 4 * index
        answers = yield (
            op.ConfigWrite(requester, register, 0xFFFF_FFFF), op.ConfigWrite(requester, register + 4, 0xFFFF_FFFF),
            op.ConfigRead(requester, register), op.ConfigRead(requester, register + 4),
        )  # fmt: skip
        low, high = (answer if isinstance(answer, int) else 0 for answer in answers[2:])
        mask = high << 32 | low & ~_FLAGS
        if mask:
            sizes.append((index, (1 << 64) - mask))
    bars: Bars = []
    for index, size in sorted(sizes, key=lambda one: (-one[1], one[0])):
        free = -(-free // size) * size
        bars.append((index, free, size))
        free += count * size
    return sorted(bars), free


def _placing(requester: int, at: int, bars: Bars | tuple[tuple[int, int, int], ...]) -> Batch:
    return tuple(
        op.ConfigWrite(requester, at + 4 * index + part, spa >> 8 * part & 0xFFFF_FFFF)
        for index, spa, _ in bars
        for part in (0, 4)
    )


def _extended(requester: int) -> Generator[Batch, Answers, dict[int, int]]:
    found: dict[int, int] = {}
    at = _FIRST_EXTENDED
    for _ in range(_MOST_CAPABILITIES):
        (header,) = yield from _read(requester, at)
        if header in (0, 0xFFFF_FFFF):
            break
        found.setdefault(header & 0xFFFF, at)
        at = header >> 20
        if not _FIRST_EXTENDED <= at < _CONFIGURATION_BYTES:
            break
    return found


def _read(requester: int, *offsets: int) -> Words:
    answers = yield tuple(op.ConfigRead(requester, at) for at in offsets)
    return [answer if isinstance(answer, int) else 0xFFFF_FFFF for answer in answers]
