"""The IOMMU: between devices and memory (AMD I/O virtualisation specification; ``spec/tio/iommu.md``).

What happens to a request: device table entry, host page table, RMP, memory. The
first that refuses has its event in the host's log; the device gets an error for a
read, and for a write nothing at all, because writes on PCIe are posted. No guest
is told. Tables and rings are bytes in DRAM; entries and translations are
remembered until commands drop them, and a drop counts from the COMPLETION_WAIT
that follows it.
"""

from __future__ import annotations

from dataclasses import replace

from node.device_table import ENTRY_BYTES, DeviceTableEntry
from node.iommu_commands import Command, CompletionWait, InvalidateAll, InvalidateDevice, InvalidatePages, Nothing
from node.iommu_events import FLAG_RESERVED, FLAG_WRITE, EventCode, IommuEvent
from node.iommu_memory import NO_MEMORY, AccessRefused, IommuMemory
from node.iommu_page_table import NotMapped, Translation, forbidden, walk
from node.iommu_registers import (
    COMMAND_ENABLE,
    COMMANDS_RUN,
    COMPLETION_INTERRUPT,
    CONTROL_LOCKED_BY_SNP,
    EVENT_LOG_ENABLE,
    EVENT_LOG_RUNS,
    IOMMU_ENABLE,
    LOCKED_BY_SNP,
    PARKED,
    PPR_LOG_ENABLE,
    SNP_SUPPORTED,
    TIO_SUPPORTED,
    WRITABLE,
    WRITE_ONE_TO_CLEAR,
    Register,
    ring_of,
    table_base,
    table_entries,
)
from node.iommu_requests import requests
from node.iommu_rings import CommandBuffer, EventLog
from node.iommu_switches import IommuSwitches
from node.iotlb import Iotlb
from node.rmp import RmpFault
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES, IommuBuffer, IommuConfiguration
from tio.dma_port import DmaFault

_MOST_WAITING = 256
"""Invalidations of pages that wait for their COMPLETION_WAIT; more become one of everything."""
_AS_LIKELIER = IommuSwitches()
_RINGS = {
    Register.COMMAND_BASE: (Register.COMMAND_HEAD, Register.COMMAND_TAIL),
    Register.EVENT_BASE: (Register.EVENT_HEAD, Register.EVENT_TAIL),
}


class Iommu:
    """One IOMMU in front of all of a host's devices.

    ``supports_snp`` is SNPSup, ``supports_tio`` that there are secure device table entries (``node.trusted_dma``),
    ``least_log_bytes`` the shortest log that firmware accepts under SNP.
    ``checks_dma`` is False only where a laboratory has the RMP check of devices' accesses knocked out.
    """

    def __init__(
        self,
        memory: IommuMemory,
        *,
        supports_snp: bool,
        least_log_bytes: int = PAGE_BYTES,
        supports_tio: bool = False,
        checks_dma: bool = True,
        switches: IommuSwitches = _AS_LIKELIER,
    ) -> None:
        self.memory = memory
        self.switches = switches
        self._least_log_bytes = least_log_bytes
        self._checks_dma = checks_dma
        self._registers: dict[int, int] = dict.fromkeys(Register, 0)
        self._registers[Register.EXTENDED_FEATURE] = SNP_SUPPORTED if supports_snp else 0
        self._registers[Register.EXTENDED_FEATURE_2] = TIO_SUPPORTED if supports_snp and supports_tio else 0
        self._entries: dict[int, DeviceTableEntry] = {}
        self._iotlb = Iotlb()
        self._waiting: dict[Command, None] = {}
        self._log = EventLog(self._registers, memory)
        self._commands = CommandBuffer(self._registers, memory, self._log, self._execute)

    # What software sees.

    def read_register(self, offset: int) -> int:
        """A 64-bit register; what is not there reads zero."""
        return self._registers.get(offset, 0)

    def write_register(self, offset: int, value: int) -> None:
        """Store to a register; bits that software may not change stay as they are."""
        writable = WRITABLE.get(offset, 0)
        if self.memory.enforced:
            writable &= 0 if offset in LOCKED_BY_SNP else ~CONTROL_LOCKED_BY_SNP if offset == Register.CONTROL else -1
        before = self._registers.get(offset, 0)
        if offset == Register.STATUS:
            self._registers[offset] = before & ~(value & WRITE_ONE_TO_CLEAR)
        elif writable:
            self._registers[offset] = before & ~writable | value & writable
            for pointer in _RINGS.get(Register(offset), ()):
                self._registers[pointer] = 0
        if offset == Register.CONTROL:
            self._control(before, self._registers[Register.CONTROL])
        if offset in (Register.CONTROL, Register.COMMAND_TAIL) and self.enabled:
            self._commands.run()

    @property
    def enabled(self) -> bool:
        """CONTROL.IommuEn."""
        return bool(self._registers[Register.CONTROL] & IOMMU_ENABLE)

    def _control(self, before: int, now: int) -> None:
        # A ring runs from the moment it is enabled until it is disabled or stops at an error.
        for enable, runs in ((COMMAND_ENABLE, COMMANDS_RUN), (EVENT_LOG_ENABLE, EVENT_LOG_RUNS)):
            if now & ~before & enable:
                self._registers[Register.STATUS] |= runs
            elif not now & enable:
                self._registers[Register.STATUS] &= ~runs
        if before & ~now & IOMMU_ENABLE:
            self._forget_all()

    # What firmware sees and does at SNP_INIT and SNP_SHUTDOWN.

    def configuration(self) -> IommuConfiguration:
        """Whether it is on, and which memory it writes by itself."""
        registers = self._registers
        buffers = []
        if registers[Register.CONTROL] & EVENT_LOG_ENABLE:
            buffers.append(self._ring_buffer(Register.EVENT_BASE))
        if registers[Register.CONTROL] & PPR_LOG_ENABLE:
            buffers.append(self._ring_buffer(Register.PPR_BASE))
        if self._has_completion_range:
            base, _ = self.memory.located(registers[Register.COMPLETION_BASE])
            limit, _ = self.memory.located(registers[Register.COMPLETION_LIMIT])
            buffers.append(IommuBuffer(base, limit + PAGE_BYTES - base, PAGE_BYTES))
        supports_snp = bool(registers[Register.EXTENDED_FEATURE] & SNP_SUPPORTED)
        return IommuConfiguration(self.enabled, supports_snp, tuple(buffers))

    def _ring_buffer(self, register: Register) -> IommuBuffer:
        ring = ring_of(self._registers[register])
        base, _ = self.memory.located(ring.base)
        return IommuBuffer(base, ring.length_bytes, self._least_log_bytes)

    def enforce(self) -> None:
        """From now on everything is checked against the RMP, and what decides about that is locked."""
        for register, enable in (
            (Register.EVENT_BASE, EVENT_LOG_ENABLE),
            (Register.EVENT_B_BASE, 0),
            (Register.PPR_BASE, PPR_LOG_ENABLE),
            (Register.PPR_B_BASE, 0),
        ):
            if not self._registers[Register.CONTROL] & enable:
                self._registers[register] = PARKED
        self.memory.enforced = True
        self._forget_all()

    def entries_changed(self) -> None:
        """An instruction or the firmware changed entries of the RMP."""
        self._iotlb.entries_changed()

    def release(self) -> None:
        """Checks end, and registers are the host's again."""
        self.memory.enforced = False

    # Devices.

    def read(self, device: int, iova: int, length: int) -> bytes:
        """A device's load, request by request. Raises DmaFault where one is refused, or answers with ones by switch."""
        parts = []
        for at, size in requests(iova, length, write=False):
            try:
                spa, key = self._passed(device, at, size, write=False)
                parts.append(self.memory.load(spa, size, key))
            except (AccessRefused, *NO_MEMORY) as refused:
                self.tell(refused)
                if not self.switches.aborted_reads_are_ones:
                    raise DmaFault(at, size, write=False) from None
                parts.append(b"\xff" * size)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, device: int, iova: int, data: bytes) -> None:
        """A device's store, request by request; one that is refused is dropped, and the device does not learn of it.

        Raises DmaFault for an address that no request can carry.
        """
        for at, size in requests(iova, len(data), write=True):
            try:
                spa, key = self._passed(device, at, size, write=True)
                self.memory.store(spa, data[at - iova : at - iova + size], key)
            except (AccessRefused, *NO_MEMORY) as refused:
                self.tell(refused)

    def tell(self, refused: Exception) -> None:
        """Log why a request was refused, if it was the IOMMU that refused it."""
        # Where no memory answers, the fabric ends the request: the IOMMU has let it pass.
        if isinstance(refused, AccessRefused):
            self._log.put(refused.event)

    def _passed(self, device: int, iova: int, size: int, *, write: bool) -> tuple[int, int]:
        """(SPA, key) of a request inside of one 4 KiB page. Raises AccessRefused."""
        if not self.enabled:
            return self.memory.located(iova)
        flags = FLAG_WRITE if write else 0
        entry, found = self.translated(device, iova, write=write)
        spa, key = self.memory.located(found.address | iova & (1 << found.bits) - 1)
        translated = entry.valid and entry.levels
        if self._checks_dma and not (translated and self._iotlb.has_passed(entry.domain, iova, write=write)):
            try:
                if found.bits > 12 and self.switches.large_mappings_whole and entry.levels:
                    self.memory.check_dma(spa // LARGE_PAGE_BYTES * LARGE_PAGE_BYTES, LARGE_PAGE_BYTES, write=write)
                else:
                    self.memory.check_dma(spa, size, write=write)
            except RmpFault:
                raise AccessRefused(IommuEvent(EventCode.RMP_PAGE_FAULT, device, flags, 0, iova)) from None
            if translated:
                self._iotlb.let_through(entry.domain, iova, write=write)
        return spa, key

    def translated(self, device: int, iova: int, *, write: bool) -> tuple[DeviceTableEntry, Translation]:
        """A device's entry, and where its page table leads an address. Raises AccessRefused."""
        flags = FLAG_WRITE if write else 0
        entry = self._entry(device, flags)
        try:
            found = self._translation(entry, iova)
            if not (found.write if write else found.read):
                raise forbidden()
        except NotMapped as fault:
            event = IommuEvent(EventCode.IO_PAGE_FAULT, device, fault.flags | flags, entry.domain, iova)
            raise AccessRefused(event) from None
        except AccessRefused as refused:
            own = refused.event
            raise AccessRefused(IommuEvent(own.code, device, flags, 0, own.address)) from None
        return entry, found

    def _entry(self, device: int, flags: int) -> DeviceTableEntry:
        """A device's entry, if it can be used. Raises AccessRefused."""
        entry = self._entries.get(device)
        if entry is None:
            register = self._registers[Register.DEVICE_TABLE_BASE]
            if device >= table_entries(register):
                # The manual's event for a device beyond the table is not recollected.
                raise AccessRefused(IommuEvent(EventCode.ILLEGAL_DEV_TABLE_ENTRY, device, flags))
            at = table_base(register) + device * ENTRY_BYTES
            try:
                raw = self.memory.read(at, ENTRY_BYTES, EventCode.DEV_TAB_HW_ERROR)
            except AccessRefused as refused:
                event = refused.event
                raise AccessRefused(IommuEvent(event.code, device, flags, 0, event.address)) from None
            entry = self._entries[device] = DeviceTableEntry.parse(raw)
        if not entry.valid:
            return entry
        if entry.reserved or not entry.level_is_legal:
            wrong = flags | (FLAG_RESERVED if entry.reserved else 0)
            raise AccessRefused(IommuEvent(EventCode.ILLEGAL_DEV_TABLE_ENTRY, device, wrong))
        if self.memory.enforced and entry.translates and not entry.levels:
            # Under SNP translation may be called valid only where there is a page table.
            raise AccessRefused(IommuEvent(EventCode.ILLEGAL_DEV_TABLE_ENTRY, device, flags))
        return entry

    def _translation(self, entry: DeviceTableEntry, iova: int) -> Translation:
        """Where an address leads. Raises NotMapped, or AccessRefused without the device."""
        page = iova & ~(PAGE_BYTES - 1)
        if not entry.valid and not self.switches.invalid_entry_blocks:
            return Translation(page, 12, read=True, write=True)
        if not (entry.valid and entry.translates):
            raise NotMapped(0)
        if not entry.levels:
            return Translation(page, 12, entry.read, entry.write)
        found = self._iotlb.find(entry.domain, iova)
        if found is None:
            found = walk(self._read_word, entry.root, entry.levels, iova)
            self._iotlb.put(entry.domain, iova, found)
        return replace(found, read=found.read and entry.read, write=found.write and entry.write)

    def _read_word(self, address: int) -> int:
        return int.from_bytes(self.memory.read(address, 8, EventCode.PAGE_TAB_HW_ERROR), "little")

    # Commands.

    def _execute(self, command: Command) -> None:
        match command:
            case CompletionWait():
                self._complete(command)
            case Nothing():
                pass
            case _:
                self._waiting[command] = None
                if len(self._waiting) > _MOST_WAITING:
                    self._waiting = {InvalidateAll(): None}

    def _complete(self, wait: CompletionWait) -> None:
        """Let what was dropped be gone, then say so. Raises AccessRefused if the word may not be stored there."""
        for command in self._waiting:
            self._drop(command)
        self._waiting.clear()
        if wait.store is not None:
            if self.memory.enforced and not self._may_complete_at(wait.store):
                raise AccessRefused(IommuEvent(EventCode.COMMAND_HW_ERROR, address=wait.store))
            self.memory.write(wait.store, wait.data.to_bytes(8, "little"), EventCode.COMMAND_HW_ERROR)
        if wait.interrupt:
            self._registers[Register.STATUS] |= COMPLETION_INTERRUPT

    @property
    def _has_completion_range(self) -> bool:
        """Whether the host named pages for completion words: registers that nobody wrote name none, not page 0."""
        return bool(self._registers[Register.COMPLETION_BASE] or self._registers[Register.COMPLETION_LIMIT])

    def _may_complete_at(self, address: int) -> bool:
        page = address & ~(PAGE_BYTES - 1)
        first, last = self._registers[Register.COMPLETION_BASE], self._registers[Register.COMPLETION_LIMIT]
        return self._has_completion_range and first <= page <= last

    def _drop(self, command: Command) -> None:
        match command:
            case InvalidateDevice(device):
                self._entries.pop(device, None)
            case InvalidatePages(domain, start, end):
                self._iotlb.forget(domain, start, end)
            case InvalidateAll():
                self._forget_all()

    def _forget_all(self) -> None:
        self._entries.clear()
        self._iotlb.forget_all()
