"""The two rings in memory between host and IOMMU: commands go in, events come out.

A base register's write resets head and tail. Pointers are what software last
stored, whether or not they lie in the ring: a command's that do not are a
COMMAND_HW_ERROR (the manual leaves it undefined); an event's are used as they
are, which is what AMD-SB-3016 seems to be about.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping

from node.iommu_commands import COMMAND_BYTES, Command, parse_command
from node.iommu_events import EVENT_BYTES, EventCode, IommuEvent
from node.iommu_memory import AccessRefused, IommuMemory
from node.iommu_registers import COMMANDS_RUN, EVENT_LOG_RUNS, EVENT_OVERFLOW, Register, ring_of

Registers = MutableMapping[int, int]


class EventLog:
    """Where the host reads what went wrong. A record that cannot be written is lost."""

    def __init__(self, registers: Registers, memory: IommuMemory) -> None:
        self._registers = registers
        self._memory = memory

    def put(self, event: IommuEvent) -> None:
        """Append a record; a full log stops until the host restarts it."""
        registers = self._registers
        if not registers[Register.STATUS] & EVENT_LOG_RUNS:
            return
        ring = ring_of(registers[Register.EVENT_BASE])
        tail = registers[Register.EVENT_TAIL]
        after = (tail + EVENT_BYTES) % ring.length_bytes
        if after == registers[Register.EVENT_HEAD]:
            registers[Register.STATUS] = registers[Register.STATUS] & ~EVENT_LOG_RUNS | EVENT_OVERFLOW
            return
        try:
            self._memory.write(ring.base + tail, event.pack(), EventCode.COMMAND_HW_ERROR, log=True)
        except AccessRefused:
            # There is nowhere to tell of it.
            return
        registers[Register.EVENT_TAIL] = after


class CommandBuffer:
    """Runs commands in order; the first that is wrong stops it until the host restarts it."""

    def __init__(
        self, registers: Registers, memory: IommuMemory, log: EventLog, execute: Callable[[Command], None]
    ) -> None:
        self._registers = registers
        self._memory = memory
        self._log = log
        self._execute = execute

    def run(self) -> None:
        """Run what lies between head and tail: as many commands as the ring has at most."""
        registers = self._registers
        ring = ring_of(registers[Register.COMMAND_BASE])
        tail = registers[Register.COMMAND_TAIL]
        while registers[Register.STATUS] & COMMANDS_RUN and registers[Register.COMMAND_HEAD] != tail:
            head = registers[Register.COMMAND_HEAD]
            try:
                self._execute(self._fetch(ring.base + head, inside=max(head, tail) < ring.length_bytes))
            except AccessRefused as refused:
                registers[Register.STATUS] &= ~COMMANDS_RUN
                self._log.put(refused.event)
                return
            registers[Register.COMMAND_HEAD] = (head + COMMAND_BYTES) % ring.length_bytes

    def _fetch(self, address: int, *, inside: bool) -> Command:
        if not inside:
            raise AccessRefused(IommuEvent(EventCode.COMMAND_HW_ERROR, address=address))
        command = parse_command(self._memory.read(address, COMMAND_BYTES, EventCode.COMMAND_HW_ERROR))
        if command is None:
            raise AccessRefused(IommuEvent(EventCode.ILLEGAL_COMMAND, address=address))
        return command
