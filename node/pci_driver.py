"""A hypervisor's look at its slots: which functions are behind a root port, and where their registers are to lie.

Boot firmware hands out root ports with a window of MMIO each; the hypervisor places the BARs of what it finds. Each is
a task for ``yield from``. Source: PCI Express base specification, 7.5.1 (header, BARs), 7.6.3 (extended capabilities).
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from node import operations as op
from node.hypervisor_port import Answers, Batch, Task
from node.port_window import PortWindow
from tio.pci import Command, Register

DOE_CAPABILITY, IDE_CAPABILITY = 0x2E, 0x30
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


def find(port: PortWindow) -> Generator[Batch, Answers, Function | None]:
    """The first function behind a port, with its BARs placed from the window's begin on; None for an empty slot."""
    requester = port.card
    ids, revision, capabilities = yield from _read(requester, Register.VENDOR_ID, 0x08, Register.DEVICE_CAPABILITIES)
    if ids & _ABSENT == _ABSENT:
        return None
    bars = yield from _place(requester, port)
    found = yield from _extended(requester)
    return Function(
        port, requester, ids & 0xFFFF, ids >> 16, revision >> 8, tuple(bars), found.get(DOE_CAPABILITY, 0),
        found.get(IDE_CAPABILITY, 0), bool(capabilities & _TEE_IO),
    )  # fmt: skip


def enable(function: Function, *, on: bool) -> Task:
    """Let a function answer at its BARs and reach memory; or neither."""
    value = Command.MEMORY_SPACE | Command.BUS_MASTER if on else Command(0)
    yield (op.ConfigWrite(function.requester, Register.COMMAND, int(value), 2),)


def reset(function: Function) -> Task:
    """Function-level reset, after which its BARs are placed again."""
    yield (op.ConfigWrite(function.requester, Register.DEVICE_CONTROL, _FUNCTION_LEVEL_RESET, 2),)
    yield tuple(_placing(function.requester, function.bars))


def extended_at(requester: int, capability: int) -> Generator[Batch, Answers, int]:
    """Where a function has an extended capability; 0 for nowhere."""
    return (yield from _extended(requester)).get(capability, 0)


def _place(requester: int, port: PortWindow) -> Generator[Batch, Answers, list[tuple[int, int, int]]]:
    sizes: list[tuple[int, int]] = []
    index = 0
    while index < _BAR_SLOTS - 1:
        at = _BARS_AT + 4 * index
        answers = yield (
            op.ConfigWrite(requester, at, 0xFFFF_FFFF), op.ConfigWrite(requester, at + 4, 0xFFFF_FFFF),
            op.ConfigRead(requester, at), op.ConfigRead(requester, at + 4),
        )  # fmt: skip
        low, high = (answer if isinstance(answer, int) else 0 for answer in answers[2:])
        mask = high << 32 | low & ~_FLAGS
        if mask:
            sizes.append((index, (1 << 64) - mask))
        index += 2
    bars, free = [], port.base
    for index, size in sorted(sizes, key=lambda one: (-one[1], one[0])):
        bars.append((index, free, size))
        free += size
    yield tuple(_placing(requester, bars))
    return sorted(bars)


def _placing(requester: int, bars: tuple[tuple[int, int, int], ...] | list[tuple[int, int, int]]) -> Batch:
    return tuple(
        op.ConfigWrite(requester, _BARS_AT + 4 * index + part, spa >> 8 * part & 0xFFFF_FFFF)
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
