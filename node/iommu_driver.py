"""A hypervisor's driver of the IOMMU: where its tables lie, and the operations that set it up.

The tables lie in the first 2 MiB of memory, which stay with the host. The
generators are tasks: they yield batches and take answers. All that stands in
memory is written there by operations, in the clear.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

from node import operations as op
from node.device_table import ENTRY_BYTES, DeviceTableEntry
from node.iommu_commands import COMMAND_BYTES, completion_wait, invalidate_device, invalidate_domain
from node.iommu_page_table import TABLE_BYTES, leaf, table_pointer
from node.iommu_registers import (
    COMMAND_ENABLE,
    EVENT_LOG_ENABLE,
    IOMMU_ENABLE,
    MMIO_BASE,
    Register,
    ring_register,
    table_register,
)

DEVICE_TABLE, DEVICE_TABLE_PAGES = 0x12_0000, 66
"""Entries of 33 buses, as many as a host has root ports and two."""
SEMAPHORE = 0x10_8000
"""The page that COMPLETION_WAIT stores to."""
COMMANDS, COMMANDS_BYTES = 0x11_0000, 8 << 10
EVENTS, EVENTS_BYTES = 0x18_0000, 512 << 10
"""Of full length: family 19h needs that under SNP (Linux)."""

LEVELS = 3
"""Of page tables: 512 GiB of I/O virtual addresses."""

NOTHING = DeviceTableEntry(levels=0, translates=False)
"""Of a device that reaches nothing: valid, and without a translation every request faults."""

Batch = tuple[op.HypervisorOperation, ...]
Task = Generator[Batch, tuple[op.Answer, ...], None]


def write_register(register: Register, value: int) -> op.MmioWrite:
    """A store to one of the IOMMU's registers."""
    return op.MmioWrite(MMIO_BASE + register, value)


def read_register(register: Register) -> op.MmioRead:
    """A load from one of the IOMMU's registers."""
    return op.MmioRead(MMIO_BASE + register)


def enabling(device_table: int = DEVICE_TABLE, pages: int = DEVICE_TABLE_PAGES) -> Batch:
    """Set the IOMMU up with an empty device table, which lets no device through, and enable it."""
    return (
        write_register(Register.DEVICE_TABLE_BASE, table_register(device_table, pages)),
        write_register(Register.COMMAND_BASE, ring_register(COMMANDS, COMMANDS_BYTES)),
        write_register(Register.EVENT_BASE, ring_register(EVENTS, EVENTS_BYTES)),
        write_register(Register.COMPLETION_BASE, SEMAPHORE),
        write_register(Register.COMPLETION_LIMIT, SEMAPHORE),
        write_register(Register.CONTROL, IOMMU_ENABLE | EVENT_LOG_ENABLE | COMMAND_ENABLE),
    )


class IommuDriver:
    """Sets up devices. ``frame`` gives a zeroed page of the host's memory for a table."""

    def __init__(self, frame: Callable[[], int], device_table: int = DEVICE_TABLE) -> None:
        self._frame = frame
        self._device_table = device_table
        self._waits = 0

    def show(self, requester: int, domain: int, root: int, levels: int) -> Task:
        """Give a device a domain whose page table is there already."""
        yield from self.write_entry(requester, DeviceTableEntry(levels=levels, root=root, domain=domain))
        yield from self.forget(domain)

    def forget(self, domain: int) -> Task:
        """Have the IOMMU look at a domain's page table anew."""
        yield from self.command(invalidate_domain(domain))

    def detach(self, requester: int) -> Task:
        """Let a device reach nothing."""
        yield from self.write_entry(requester, NOTHING)

    def attach(
        self,
        requester: int,
        domain: int,
        pages: Sequence[tuple[int, int]],
        *,
        c_bit: int = 0,
        read: bool = True,
        write: bool = True,
    ) -> Task:
        """Give a device a domain of its own that maps (I/O virtual address, SPA) pages of 4 KiB.

        ``c_bit`` is put into each leaf.
        """
        tables: dict[tuple[int, int], int] = {(LEVELS, 0): self._frame()}
        writes: list[op.HypervisorOperation] = []
        for iova, spa in pages:
            for level in range(LEVELS, 0, -1):
                shift = 12 + 9 * (level - 1)
                at = tables[level, iova >> shift + 9] + (iova >> shift) % (TABLE_BYTES // 8) * 8
                if level == 1:
                    entry = leaf(spa | c_bit, read=read, write=write)
                elif (level - 1, iova >> shift) in tables:
                    continue
                else:
                    below = tables[level - 1, iova >> shift] = self._frame()
                    entry = table_pointer(below, level - 1)
                writes.append(op.HostWrite(at, entry.to_bytes(8, "little")))
        yield tuple(writes)
        entry_of_device = DeviceTableEntry(levels=LEVELS, root=tables[LEVELS, 0], domain=domain)
        yield from self.write_entry(requester, entry_of_device)
        yield from self.command(invalidate_domain(domain))

    def write_entry(self, requester: int, entry: DeviceTableEntry) -> Task:
        """Change a device table entry, and have the IOMMU forget what it knew."""
        yield (op.HostWrite(self._device_table + requester * ENTRY_BYTES, entry.pack()),)
        yield from self.command(invalidate_device(requester))

    def command(self, *commands: bytes) -> Task:
        """Run commands and wait until they are done."""
        self._waits += 1
        (tail,) = yield (read_register(Register.COMMAND_TAIL),)
        assert isinstance(tail, int)
        batch: list[op.HypervisorOperation] = []
        for one in (*commands, completion_wait(SEMAPHORE, self._waits)):
            batch.append(op.HostWrite(COMMANDS + tail, one))
            tail = (tail + COMMAND_BYTES) % COMMANDS_BYTES
        yield (*batch, write_register(Register.COMMAND_TAIL, tail))
