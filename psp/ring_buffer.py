"""RING_BUFFER: commands in two queues in memory, of which the mailbox's registers say only how far they are.

The queue of high priority goes first. A command that fails stops both, with the head of its queue left on it; a command
rung in the mailbox ends the mode, and is not carried out. The command's buffer is sev-tool's. Nobody publishes AMD's
queues: entries, registers and what an error does are those of the driver for Hygon's firmware, which descends from it
(``csv-dev.c``). States, statuses of bad buffers, and that a queue holds no RING_BUFFER are the laboratory's; interrupts
and their thresholds are not modelled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from psp import command_buffers as buffers
from psp.byte_layout import ByteLayout, at
from psp.commands import LegacyCommand
from psp.host_memory import HostMemory
from psp.status import PspError, Status
from psp.system_bus import PAGE_BYTES

ACTIVE = 1 << 30
"""CmdResp: go on with the queues; without it a command is rung."""
PAUSED = 1 << 30
"""CmdBufAddr_Lo: a command has failed."""
_INDEX, _HIGH_SHIFT = 0x7FF, 16
"""Heads in CmdBufAddr_Lo and tails in CmdBufAddr_Hi: of low priority in bits 10:0, of high in 26:16."""
_MOST_PAGES = 8
"""As many entries as an index can count."""


@dataclass(frozen=True, slots=True)
class QueuedCommand(ByteLayout):
    """An entry of a queue."""

    SIZE: ClassVar[int] = 0x10
    command: int = at(0x00, 2)
    flags: int = at(0x02, 2)
    software_data: int = at(0x04, 4)
    buffer: int = at(0x08, 8)


@dataclass(frozen=True, slots=True)
class QueuedStatus(ByteLayout):
    """What firmware says of the command with the same index."""

    SIZE: ClassVar[int] = 0x10
    status: int = at(0x00, 2)


_ENTRIES_OF_PAGE = PAGE_BYTES // QueuedCommand.SIZE


@dataclass(frozen=True, slots=True)
class _Queue:
    commands: int
    statuses: int
    entries: int


class RingBuffers:
    """The two queues of one platform, while the mode lasts."""

    def __init__(
        self, order: buffers.RingBuffer, memory: HostMemory, execute: Callable[[int, int], Status]
    ) -> None:
        """Raises PspError, as RING_BUFFER answers."""
        if order.low_pages != 1 or not 1 <= order.high_pages <= _MOST_PAGES or order.flags & ~buffers.RING_INT_ON_EMPTY:
            raise PspError(Status.INVALID_PARAM)
        self._memory = memory
        self._execute = execute
        self._low = self._checked(order.low_commands, order.low_statuses, order.low_pages)
        self._high = self._checked(order.high_commands, order.high_statuses, order.high_pages)

    def _checked(self, commands: int, statuses: int, pages: int) -> _Queue:
        if (commands | statuses) % PAGE_BYTES:
            raise PspError(Status.INVALID_ADDRESS)
        self._memory.check_present(commands, pages * PAGE_BYTES)
        self._memory.check_writable(statuses, pages * PAGE_BYTES)
        return _Queue(commands, statuses, pages * _ENTRIES_OF_PAGE)

    def run(self, heads: int, tails: int) -> int:
        """Carry out what lies between heads and tails, as the registers have them; the heads that come of it."""
        high, paused = self._run(self._high, heads >> _HIGH_SHIFT & _INDEX, tails >> _HIGH_SHIFT & _INDEX)
        low = heads & _INDEX
        if not paused:
            low, paused = self._run(self._low, low, tails & _INDEX)
        return high << _HIGH_SHIFT | low | (PAUSED if paused else 0)

    def _run(self, queue: _Queue, head: int, tail: int) -> tuple[int, bool]:
        head, tail = head % queue.entries, tail % queue.entries
        while head != tail:
            if self._one(queue, head) != Status.SUCCESS:
                return head, True
            head = (head + 1) % queue.entries
        return head, False

    def _one(self, queue: _Queue, index: int) -> Status:
        """A queue's memory is the host's: what became of it since is looked at before each command."""
        try:
            entry = QueuedCommand.parse(
                self._memory.read(queue.commands + index * QueuedCommand.SIZE, QueuedCommand.SIZE)
            )
            self._memory.check_writable(queue.statuses + index * QueuedStatus.SIZE, QueuedStatus.SIZE)
        except PspError as error:
            return error.status
        nested = entry.command == LegacyCommand.RING_BUFFER
        status = Status.INVALID_COMMAND if nested else self._execute(entry.command, entry.buffer)
        try:
            self._memory.check_writable(queue.statuses + index * QueuedStatus.SIZE, QueuedStatus.SIZE)
        except PspError as error:
            return error.status  # the command itself has taken the queue away
        self._memory.write(queue.statuses + index * QueuedStatus.SIZE, QueuedStatus(status).pack())
        return status
