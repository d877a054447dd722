"""The guest's walk: from a virtual address through its own page tables to a guest-physical one.

The tables are read and their A and D bits stored through the guest's own way to memory,
always as private accesses (APM volume 2, 15.34); the C-bit of CR3 and of entries that lead to
tables means nothing then. Faults are the guest's own #PF. Shadow stacks and
protection keys are not modelled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from node.control_registers import (
    CR0_WRITE_PROTECT,
    CR4_GLOBAL,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    EFER_NXE,
    RFLAGS_AC,
    ControlRegisters,
)
from node.page_table_entry import (
    ACCESSED,
    DIRTY,
    GLOBAL,
    LEGACY,
    NO_EXECUTE,
    PAE,
    PRESENT,
    USER,
    WRITABLE,
    EntryFormat,
)
from node.rmp_faults import ERROR_FETCH, ERROR_PRESENT, ERROR_RESERVED, ERROR_USER, ERROR_WRITE

READ, WRITE, FETCH = 0, ERROR_WRITE, ERROR_FETCH
"""What an access is, as the error bits of its fault."""

_USER_CPL = 3

ReadEntry = Callable[[int, int], bytes]
"""Load (GPA, length) of a guest's table."""
WriteEntry = Callable[[int, bytes], None]
"""Store to a guest's table."""


class GuestPageFault(Exception):
    """#PF in the guest: ``error`` is its error code, ``gva`` what CR2 gets."""

    def __init__(self, gva: int, error: int) -> None:
        super().__init__(f"page fault at GVA {gva:#x}, error {error:#x}")
        self.gva = gva
        self.error = error


class NotCanonical(Exception):
    """#GP: the unused high bits of a virtual address are not copies of the highest used one."""


@dataclass(frozen=True, slots=True)
class GuestLeaf:
    """The page that holds a virtual address, and what the entries on the way grant."""

    gpa: int
    page_bytes: int
    c_bit: bool
    writable: bool
    user: bool
    executable: bool
    dirty: bool
    global_: bool

    def refuses(self, access: int, registers: ControlRegisters) -> bool:
        """Whether the rights of the page forbid an access to code of this privilege level."""
        if registers.cpl == _USER_CPL:
            if access & WRITE and not self.writable:
                return True
            return not self.user or bool(access & FETCH and not self.executable)
        if access & FETCH:
            return not self.executable or (self.user and bool(registers.cr4 & CR4_SMEP))
        if self.user and registers.cr4 & CR4_SMAP and not registers.rflags & RFLAGS_AC:
            return True
        return bool(access & WRITE and not self.writable and registers.cr0 & CR0_WRITE_PROTECT)


def entry_format(registers: ControlRegisters, address_bits: int, c_bit: int | None) -> EntryFormat:
    """How a vCPU with paging on reads its tables' entries; without a C-bit under vTOM and in legacy mode."""
    mode = registers.mode
    assert mode is not None, "expected paging to be on"
    return EntryFormat(
        mode,
        address_bits if mode is not LEGACY else min(address_bits, 40),
        None if mode is LEGACY or registers.vtom is not None else c_bit,
        no_execute=bool(registers.efer & EFER_NXE),
        large_pages=mode is not LEGACY or bool(registers.cr4 & CR4_PSE),
    )


def walk(
    registers: ControlRegisters, form: EntryFormat, gva: int, access: int, read: ReadEntry, write: WriteEntry
) -> GuestLeaf:
    """Walk from CR3. Raises GuestPageFault, NotCanonical, and what ``read`` and ``write`` raise."""
    mode = form.mode
    error = access | (ERROR_USER if registers.cpl == _USER_CPL else 0)
    _check_canonical(gva, mode.address_bits)
    table = _root(registers, form)
    writable = user = executable = True
    unused: list[tuple[int, int]] = []
    for step in form.steps:
        at = table + (gva >> step.shift & step.index_mask) * mode.entry_bytes
        word = int.from_bytes(read(at, mode.entry_bytes), "little")
        if not word & PRESENT:
            raise GuestPageFault(gva, error)
        leaf = word & step.large
        if word & (step.reserved_large if leaf else step.reserved):
            raise GuestPageFault(gva, error | ERROR_PRESENT | ERROR_RESERVED)
        if not (mode is PAE and step.level == mode.levels):
            writable, user = writable and bool(word & WRITABLE), user and bool(word & USER)
            executable = executable and not (form.no_execute and word & NO_EXECUTE)
            wanted = ACCESSED | DIRTY if leaf and access & WRITE else ACCESSED
            if word & wanted != wanted:
                word |= wanted
                unused.append((at, word))
        if leaf:
            break
        table = word & step.address
    found = GuestLeaf(
        gpa=form.page(word, step),
        page_bytes=step.page_bytes,
        c_bit=form.c_bit is not None and bool(word >> form.c_bit & 1),
        writable=writable,
        user=user,
        executable=executable,
        dirty=bool(word & DIRTY),
        global_=bool(word & GLOBAL and registers.cr4 & CR4_GLOBAL),
    )
    if found.refuses(access, registers):
        raise GuestPageFault(gva, error | ERROR_PRESENT)
    for at, word in unused:
        write(at, word.to_bytes(mode.entry_bytes, "little"))
    return found


def _root(registers: ControlRegisters, form: EntryFormat) -> int:
    if form.mode is PAE:
        return registers.cr3 & 0xFFFF_FFE0
    if form.mode is LEGACY:
        return registers.cr3 & 0xFFFF_F000
    return registers.cr3 & form.steps[-1].address


def _check_canonical(gva: int, address_bits: int) -> None:
    if address_bits == 32:
        if not 0 <= gva < 1 << 32:
            raise NotCanonical(gva)
        return
    top = gva >> address_bits - 1
    if top not in (0, (1 << 65 - address_bits) - 1):
        raise NotCanonical(gva)
