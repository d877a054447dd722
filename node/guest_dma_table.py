"""The first of a trusted device's two levels of translation: tables in its guest's private memory.

They have the format of a core's long mode (AMD I/O virtualisation specification, 2.2.6; Linux calls them v2), below a
table of their roots by PASID, which begins at GCR3; a request without PASID uses the root of 0. What the guest's own
entries do not permit is the guest's fault and nobody else's.
"""

from __future__ import annotations

from collections.abc import Callable

from node.iommu_events import FLAG_PERMISSION, FLAG_PRESENT, FLAG_RESERVED
from node.iommu_page_table import NotMapped
from node.page_table_entry import LONG, PRESENT, USER, WRITABLE, EntryFormat

_VALID = 1
_WORD_BYTES = 8
_ADDRESS = (1 << 52) - (1 << 12)
_ROOT_RESERVED = ~(_ADDRESS | _VALID) & (1 << 64) - 1

ReadWord = Callable[[int], int]
"""The 64-bit word at a guest-physical address, as the device's guest has it there."""


def translated(read_word: ReadWord, form: EntryFormat, gcr3: int, address: int, *, write: bool) -> int:
    """The guest-physical address that the guest's tables make of a device's.

    Raises NotMapped, and what ``read_word`` raises.
    """
    root = read_word(gcr3 & _ADDRESS)
    if not root & _VALID:
        raise NotMapped(0)
    if root & _ROOT_RESERVED:
        raise NotMapped(FLAG_PRESENT | FLAG_RESERVED)
    if address >> LONG.address_bits:
        raise NotMapped(0)
    table, granted = root & _ADDRESS, USER | WRITABLE
    for step in form.steps:
        word = read_word(table + (address >> step.shift & step.index_mask) * _WORD_BYTES)
        if not word & PRESENT:
            raise NotMapped(0)
        leaf = word & step.large
        if word & (step.reserved_large if leaf else step.reserved):
            raise NotMapped(FLAG_PRESENT | FLAG_RESERVED)
        granted &= word
        if leaf:
            break
        table = word & step.address
    if not granted & USER or (write and not granted & WRITABLE):
        raise NotMapped(FLAG_PRESENT | FLAG_PERMISSION)
    return form.page(word, step) + address % step.page_bytes
