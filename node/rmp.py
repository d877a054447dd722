"""The reverse map table: for every page of the host, who owns it and where the owner sees it.

Rules and return codes: APM volume 2, 15.36.3 to 15.36.10 and volume 3 (RMPUPDATE,
PSMASH, PVALIDATE). Runs of entries that differ only by an advancing GPA are held
as one; a 2 MiB entry is a run of 512 pages with the PAGE_SIZE bit. An operation
on a range does one entry after another and stops at the first that fails.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Self

from node.extent_map import ExtentMap
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES, RmpEntry

_LARGE_PAGES = LARGE_PAGE_BYTES // PAGE_BYTES
_ALL_PERMISSIONS = (0xF, 0, 0, 0)
"""VMPL0 may do everything with a page that was just given to a guest, the others nothing."""

_HIGHEST_ASID = (1 << 10) - 1
_GPA_END = 1 << 51
"""What the fields ASID (60:51) and GPA (50:12) of an entry can hold; layout of Zen 3 and 4 (AMD PPR)."""

ERROR_WRITE = 1 << 1
ERROR_RMP = 1 << 31
ERROR_ENC = 1 << 34
ERROR_SIZEM = 1 << 35
"""Bits of EXITINFO1 of a nested page fault (APM volume 2, 15.36.10); bit 31 also in a host #PF."""


class RmpCode(IntEnum):
    """What the RMP instructions leave in EAX."""

    SUCCESS = 0
    FAIL_INPUT = 1
    FAIL_PERMISSION = 2
    FAIL_INUSE = 3
    FAIL_OVERLAP = 4
    FAIL_SIZEMISMATCH = 6
    FAIL_NOT_LARGE = 7
    """PSMASH on an entry that is not an assigned 2 MiB page; seen in logs of real hosts."""


class RmpFault(Exception):
    """The RMP refused an access; ``error`` holds the fault's error bits."""

    def __init__(self, spa: int, error: int) -> None:
        super().__init__(f"RMP refuses SPA {spa:#x}, error {error:#x}")
        self.spa = spa
        self.error = error


class NotValidated(Exception):
    """#VC 404 in the guest: the page is assigned to it but not validated."""

    def __init__(self, gpa: int) -> None:
        super().__init__(f"GPA {gpa:#x} is not validated")
        self.gpa = gpa


@dataclass(frozen=True, slots=True)
class _Entries:
    """A run of entries, by the first one's."""

    entry: RmpEntry

    def advanced(self, distance: int) -> Self:
        entry = self.entry
        if not distance or not entry.asid:
            return self
        return type(self)(replace(entry, gpa=entry.gpa + distance * PAGE_BYTES))


_DEFAULT = RmpEntry()

Judge = Callable[[int, int, RmpEntry], "RmpCode | RmpEntry"]


class ReverseMapTable:
    """The RMP of a host; everything below ``covered_bytes`` has an entry.

    ``immutable_keeps_validated`` is a doubt: VALIDATED, VMSA and the permissions
    survive an update that changes nothing but IMMUTABLE, because the Pre-Swap
    state could not come about otherwise. No public text says so; with False
    such an update clears them like any other.
    """

    def __init__(self, covered_bytes: int, *, immutable_keeps_validated: bool = True) -> None:
        self.immutable_keeps_validated = immutable_keeps_validated
        self.covered_pages = covered_bytes // PAGE_BYTES
        self._runs: ExtentMap[_Entries] = ExtentMap()

    def __len__(self) -> int:
        """Number of runs held."""
        return len(self._runs)

    def entry(self, spa: int) -> RmpEntry:
        """The effective entry of a page; the hypervisor's own for a page outside of the table."""
        page = spa // PAGE_BYTES
        found = self._runs.find(page)
        return _DEFAULT if found is None else found[2].advanced(page - found[0]).entry

    def set_entry(self, spa: int, entry: RmpEntry) -> None:
        """Replace an entry as firmware does; a 4 KiB entry inside a 2 MiB one smashes it.

        Raises ValueError for an address that no such entry can have.
        """
        page, pages = spa // PAGE_BYTES, _LARGE_PAGES if entry.large else 1
        if spa % (pages * PAGE_BYTES) or not 0 <= page <= self.covered_pages - pages:
            raise ValueError(f"spa: expected an entry's address inside the RMP, got {spa:#x}")
        if not entry.large and self.entry(spa).large:
            block = page // _LARGE_PAGES * _LARGE_PAGES
            self._put(block, block + _LARGE_PAGES, replace(self.entry(block * PAGE_BYTES), large=False))
        self._put(page, page + pages, entry)

    def initialise(self) -> None:
        """Zero the table."""
        self._runs.clear()

    def pages_of_asid(self, asid: int) -> int:
        """Number of 4 KiB pages assigned to an ASID."""
        return sum(
            end - start for start, end, run in self._runs.runs() if run.entry.assigned and run.entry.asid == asid
        )

    # Instructions of the host.

    def rmpupdate(self, spa: int, length: int, entry: RmpEntry) -> RmpCode:
        """RMPUPDATE on every page of a range; the entry's GPA advances with the page.

        Of ``entry`` only what the instruction takes counts: assigned, size,
        immutable, GPA and ASID. An assigned entry of ASID 0 must have GPA 0:
        with another it would be a Metadata page, which only firmware makes.
        """
        pages = _LARGE_PAGES if entry.large else 1
        if (
            length <= 0
            or (spa | length) % (pages * PAGE_BYTES)
            or not 0 <= spa <= self.covered_pages * PAGE_BYTES - length
            or not _can_be_written(entry, pages * PAGE_BYTES, length)
        ):
            return RmpCode.FAIL_INPUT
        first = spa // PAGE_BYTES
        stop = first + length // PAGE_BYTES
        # A unit with any immutable page is refused for that, whatever else stands in its way.
        fixed = self._first_immutable(first, stop)
        if fixed is not None:
            stop = fixed - (fixed - first) % pages

        def judge(start: int, _: int, old: RmpEntry) -> RmpCode | RmpEntry:
            if old.assigned and old.large != entry.large:
                return RmpCode.FAIL_OVERLAP
            if not entry.assigned:
                return _DEFAULT
            gpa = entry.gpa + (start - first) * PAGE_BYTES if entry.asid else 0
            same_page = old.assigned and (old.asid, old.gpa) == (entry.asid, gpa)
            if same_page and (self.immutable_keeps_validated or old.immutable == entry.immutable):
                return replace(old, immutable=entry.immutable)
            return RmpEntry(
                assigned=True, large=entry.large, immutable=entry.immutable, gpa=gpa, asid=entry.asid,
                vmpl_permissions=_ALL_PERMISSIONS if entry.asid else (0, 0, 0, 0),
            )  # fmt: skip

        code = self._change(first, stop, pages, judge)
        return RmpCode.FAIL_PERMISSION if code is RmpCode.SUCCESS and fixed is not None else code

    def psmash(self, spa: int) -> RmpCode:
        """PSMASH: turn one 2 MiB entry into 512 entries that inherit everything."""
        page = spa // PAGE_BYTES
        if spa % LARGE_PAGE_BYTES or not 0 <= page <= self.covered_pages - _LARGE_PAGES:
            return RmpCode.FAIL_INPUT
        entry = self.entry(spa)
        if not (entry.assigned and entry.large):
            return RmpCode.FAIL_NOT_LARGE
        if entry.immutable:
            return RmpCode.FAIL_PERMISSION
        self._put(page, page + _LARGE_PAGES, replace(entry, large=False))
        return RmpCode.SUCCESS

    # The guest's.

    def pvalidate(
        self, spa: int, gpa: int, asid: int, length: int, large: bool, validate: bool
    ) -> tuple[RmpCode, bool]:
        """PVALIDATE every page of a range that lies at ``spa``: EAX, and whether any page was so already (CF).

        Raises RmpFault where the core reports a nested page fault. Ownership is
        checked before sizes, so 2 MiB at an SPA between 2 MiB borders, which
        only 4 KiB entries can back, is a size mismatch for the owner alone.
        """
        unit = LARGE_PAGE_BYTES if large else PAGE_BYTES
        if length <= 0 or (gpa | length) % unit:
            return RmpCode.FAIL_INPUT, False
        first = spa // PAGE_BYTES
        unchanged = False

        def judge(start: int, _: int, old: RmpEntry) -> RmpCode | RmpEntry:
            nonlocal unchanged
            expected = gpa + (start - first) * PAGE_BYTES
            if not old.assigned or old.asid != asid or old.gpa != expected or old.immutable:
                raise RmpFault(start * PAGE_BYTES, ERROR_RMP | ERROR_ENC)
            if old.large and not large:
                raise RmpFault(start * PAGE_BYTES, ERROR_RMP | ERROR_ENC | ERROR_SIZEM)
            if large and not old.large:
                return RmpCode.FAIL_SIZEMISMATCH
            if old.validated == validate:
                unchanged = True
                return old
            return replace(old, validated=validate)

        pages = _LARGE_PAGES if large else 1
        return self._change(first, first + length // PAGE_BYTES, pages, judge), unchanged

    # Checks of accesses.

    def check_guest_private(self, spa: int, gpa: int, asid: int, length: int, *, write: bool = False) -> None:
        """A private access of a guest. Raises RmpFault for another's page, NotValidated for one not accepted.

        ``write`` only marks the fault. The nested mapping is taken to be as large as the entry.
        """
        page, last = spa // PAGE_BYTES, (spa + length - 1) // PAGE_BYTES
        found = self._runs.find(page)
        while found is not None:
            start, end, run = found
            entry = run.entry
            at = entry.gpa + (page - start) * PAGE_BYTES
            if entry.asid != asid or at != gpa // PAGE_BYTES * PAGE_BYTES or entry.immutable:
                break
            if not entry.validated:
                raise NotValidated(gpa)
            if last < end:
                return
            gpa += end * PAGE_BYTES - spa
            page, spa = end, end * PAGE_BYTES
            found = self._runs.find(page)
        raise RmpFault(spa, ERROR_RMP | ERROR_ENC | (ERROR_WRITE if write else 0))

    def check_host_write(self, spa: int, length: int) -> None:
        """A store of the host, or of a guest to shared memory: the page must not be assigned. Raises RmpFault."""
        page, last = spa // PAGE_BYTES, (spa + max(length, 1) - 1) // PAGE_BYTES
        for start, _, run in self._runs.pieces(page, last + 1):
            if run is not None and run.entry.assigned:
                raise RmpFault(start * PAGE_BYTES, ERROR_RMP | ERROR_WRITE)

    check_guest_shared_write = check_host_write

    def _first_immutable(self, start: int, end: int) -> int | None:
        for first, _, run in self._runs.pieces(start, end):
            if run is not None and run.entry.immutable:
                return first
        return None

    def _put(self, start: int, end: int, entry: RmpEntry) -> None:
        self._runs.put(start, end, None if entry == _DEFAULT else _Entries(entry))

    def _change(self, start: int, end: int, unit: int, judge: Judge) -> RmpCode:
        """Let ``judge`` decide piece by piece; it gets (from, to, old entry) and answers a code or the new entry.

        Units before the first that fails are changed, the failing one is not.
        """
        new: list[tuple[int, int, RmpEntry]] = []
        try:
            for first, stop, run in self._runs.pieces(start, end):
                verdict = judge(first, stop, _DEFAULT if run is None else run.entry)
                if isinstance(verdict, RmpCode):
                    end = start + (first - start) // unit * unit
                    return verdict
                new.append((first, stop, verdict))
        except RmpFault as fault:
            end = start + (fault.spa // PAGE_BYTES - start) // unit * unit
            raise
        finally:
            for first, stop, entry in new:
                if first < end:
                    self._put(first, min(stop, end), entry)
        return RmpCode.SUCCESS


def _can_be_written(entry: RmpEntry, unit: int, length: int) -> bool:
    """Whether RMPUPDATE may ask for such an entry and its fields can hold it."""
    if not entry.assigned:
        return not entry.asid and not entry.immutable
    if not entry.asid:
        return not entry.gpa
    return 0 < entry.asid <= _HIGHEST_ASID and not entry.gpa % unit and 0 <= entry.gpa <= _GPA_END - length
