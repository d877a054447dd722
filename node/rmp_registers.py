"""The RMP's place as the cores' registers give it: RMP_BASE, RMP_END and RMP_CFG."""

from __future__ import annotations

from node.ciphertext_hiding import MemoryReader
from node.dram import MachineCheck
from node.memory_controller import NoHostKey
from node.rmp_layout import BOOKKEEPING_BYTES, RMP_CFG_64_GIB, SEGMENT_TABLE_BYTES, RmpLayout
from psp.system_bus import RmpRegisters


def layout_of_registers(registers: RmpRegisters, memory: MemoryReader, key: int) -> RmpLayout | None:
    """The table that they describe, a segment table read through the slot ``key``; None if none can be there."""
    try:
        if not registers.config & 1:
            return RmpLayout.flat(registers.base, registers.end)
        table = memory.read(registers.base + BOOKKEEPING_BYTES, SEGMENT_TABLE_BYTES, key)
        return RmpLayout.segmented(registers.base, registers.config, table)
    except (ValueError, MachineCheck, NoHostKey):
        return None


def registers_of(layout: RmpLayout, memory_bytes: int) -> RmpRegisters:
    """What firmware writes there for a table that it reserved at the end of memory."""
    return RmpRegisters(layout.base, memory_bytes - 1, RMP_CFG_64_GIB if layout.segment_pages else 0)
