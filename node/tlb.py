"""Translation look-aside buffers: what each hardware thread remembers of its walks.

A guest's address is translated in two steps, each remembered on its own: virtual to
guest-physical, and guest-physical to system-physical with the RMP's verdict on the page.
A translation is tagged with the ASID and the VMPL it was made for, and stays until somebody
flushes it: the hypervisor through TLB_CONTROL, the guest with INVLPG or MOV to CR3,
the hardware where an RMP entry changes. VMPLs of one guest have tables of their own, so
none is served what another walked; a guest's own flushes act on all of them. What was poked into a table meanwhile is
not seen. Sources: APM volume 2, 5.5, 15.16 and 15.36.

Silicon has several levels, sets and ways; here a thread has one buffer that forgets
what was not used for longest, so that what a test sees does not hang on a hash.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import IntEnum

Tag = int | str
"""An ASID; or the name of a VM that has none of its own, because it runs unencrypted."""

PAGE_SIZES = (1 << 12, 1 << 21, 1 << 22, 1 << 30)


class Space(IntEnum):
    """What kind of address a translation begins with."""

    GUEST_PHYSICAL = 0
    """What the nested tables said."""
    VIRTUAL = 1
    """What the guest's own tables said."""


class TlbControl(IntEnum):
    """What VMRUN flushes first: VMCB offset 05C (APM volume 2, 15.16.2, table 15-9)."""

    NOTHING = 0
    ALL = 1
    """Every translation of every ASID."""
    ASID = 3
    """This guest's."""
    ASID_NOT_GLOBAL = 7
    """This guest's, but those of global pages."""


@dataclass(slots=True)
class Translation:
    """One page's translation: where the page begins, what its entries grant, and for a guest-physical one the rest."""

    page: int
    page_bytes: int
    c_bit: bool = False
    writable: bool = True
    user: bool = True
    executable: bool = True
    dirty: bool = True
    """The entry has D set, so a store needs no other walk."""
    global_: bool = False
    mapped_large: bool = False
    """The nested tables have 2 MiB or more, whatever less is remembered."""
    key: int = 0
    """Of accesses without the guest's own, as the nested entry says."""
    passed: set[tuple[bool, int, int]] = field(default_factory=set)
    """RMP checks that the page has gone through: (private, permissions needed, VMPL or NOT_SNP)."""


_Key = tuple[Tag, Space, int, int, int]
"""Tag, space, page size, page, VMPL."""

VMPLS = range(4)


class Tlb:
    """The buffers of a host's hardware threads, each of ``entries`` translations."""

    def __init__(self, entries: int) -> None:
        if entries < 1:
            raise ValueError(f"entries: expected at least one, got {entries}")
        self._most = entries
        self._cores: dict[int, OrderedDict[_Key, Translation]] = {}
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        """Translations held by all threads."""
        return sum(map(len, self._cores.values()))

    def find(self, core: int, tag: Tag, space: Space, address: int, vmpl: int = 0) -> Translation | None:
        """What a thread remembers of an address."""
        held = self._cores.get(core)
        if held:
            for size in PAGE_SIZES:
                key = (tag, space, size, address // size, vmpl)
                found = held.get(key)
                if found is not None:
                    held.move_to_end(key)
                    self.hits += 1
                    return found
        self.misses += 1
        return None

    def fill(
        self, core: int, tag: Tag, space: Space, address: int, translation: Translation, vmpl: int = 0
    ) -> None:
        """Remember a walk; what was not used for longest goes when there is no room."""
        held = self._cores.setdefault(core, OrderedDict())
        size = translation.page_bytes
        key = (tag, space, size, address // size, vmpl)
        held.pop(key, None)
        if len(held) >= self._most:
            held.popitem(last=False)
        held[key] = translation

    def flush(
        self, core: int, tag: Tag | None = None, *, vmpl: int | None = None, keep_global: bool = False
    ) -> None:
        """Forget a thread's translations: all, or those of one tag, and of one VMPL where it is named."""
        held = self._cores.get(core)
        if not held:
            return
        if tag is None:
            held.clear()
            return
        for key, one in list(held.items()):
            if key[0] == tag and vmpl in (None, key[4]) and not (keep_global and one.global_):
                del held[key]

    def flush_virtual(self, core: int, tag: Tag, *, keep_global: bool) -> None:
        """MOV to CR3 and its like: what the guest's own tables said."""
        held = self._cores.setdefault(core, OrderedDict())
        for key, one in list(held.items()):
            if key[:2] == (tag, Space.VIRTUAL) and not (keep_global and one.global_):
                del held[key]

    def flush_address(self, core: int, tag: Tag, address: int) -> None:
        """INVLPG: one virtual page, however large, global or not."""
        held = self._cores.setdefault(core, OrderedDict())
        for size in PAGE_SIZES:
            for vmpl in VMPLS:
                held.pop((tag, Space.VIRTUAL, size, address // size, vmpl), None)

    def drop(self, spa: int, end: int) -> None:
        """The RMP entries of [spa, end) changed: every thread forgets what leads there."""
        for held in self._cores.values():
            for key, one in list(held.items()):
                if key[1] is Space.GUEST_PHYSICAL and one.page < end and spa < one.page + one.page_bytes:
                    del held[key]
