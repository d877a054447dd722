"""The reverse map table: for every page of the host, who owns it and where the owner sees it.

Instructions of host, guest and firmware, with their checks in the documented order
(APM volume 2, 15.36.3 to 15.36.10; volume 3: RMPUPDATE, PSMASH, PVALIDATE, RMPADJUST,
RMPQUERY, RMPREAD). An operation on a range does one entry after another and stops at
the first that fails; ``..._each`` goes on and tells the outcome of each. Entries are
``node.rmp_table``'s, checks of accesses ``node.rmp_checks``'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

import numpy as np

from node import rmp_blocks
from node.dram import Dram
from node.platform import Protection
from node.rmp_blocks import Codes
from node.rmp_checks import RmpChecks
from node.rmp_entry import GPA, GPA_END, GUEST_PERMISSIONS, HIGHEST_ASID, state_form
from node.rmp_faults import (
    ERROR_ENC,
    ERROR_FINAL,
    ERROR_PRESENT,
    ERROR_RMP,
    ERROR_SIZEM,
    ERROR_USER,
    ERROR_VMPL,
    ERROR_WRITE,
    NotValidated,
    PageOutcome,
    ProtectionFault,
    RmpCode,
    RmpFault,
)
from node.rmp_layout import RmpLayout
from node.rmp_memory import WordCipher
from node.rmp_switches import RmpSwitches
from node.rmp_table import DEFAULT_ENTRY, LARGE_PAGES, Changed, RmpTable
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES, RmpEntry

__all__ = [
    "ERROR_ENC", "ERROR_FINAL", "ERROR_PRESENT", "ERROR_RMP", "ERROR_SIZEM", "ERROR_USER", "ERROR_VMPL",
    "ERROR_WRITE", "GuestCore", "NotValidated", "PageOutcome", "ProtectionFault",
    "ReverseMapTable", "RmpCode", "RmpFault",
]  # fmt: skip

VMPLS = 4
_FIRMWARE = RmpEntry(assigned=True, immutable=True)
_NPF = ERROR_PRESENT | ERROR_USER | ERROR_RMP | ERROR_FINAL | ERROR_ENC
_ERRORS = {PageOutcome.NPF: _NPF, PageOutcome.NPF_SIZEM: _NPF | ERROR_SIZEM}
_Olds = Sequence[RmpEntry]


@dataclass(frozen=True, slots=True)
class GuestCore:
    """Who executes a guest's instruction: the ASID and VMPL of its core."""

    asid: int
    vmpl: int = 0


class ReverseMapTable:
    """The RMP of a host, where its layout says in ``dram``.

    Through ``cipher`` if the host's key covers it; entries through ``form`` if theirs is not the published one.
    ``max_asid`` is the highest that the part has.
    """

    def __init__(
        self,
        dram: Dram,
        layout: RmpLayout,
        switches: RmpSwitches | None = None,
        *,
        cipher: WordCipher | None = None,
        form: WordCipher | None = None,
        disabled: frozenset[Protection] = frozenset(),
        max_asid: int = HIGHEST_ASID,
    ) -> None:
        self.layout = layout
        self.switches = switches or RmpSwitches()
        self._max_asid = min(max_asid, HIGHEST_ASID) if self.switches.asids_of_the_part else HIGHEST_ASID
        self._memory_pages = dram.size_bytes // PAGE_BYTES
        self._from_zero = next((one.pages for one in layout.arrays if not one.first_page), 0)
        """Pages that surely have entries, without asking the layout."""
        self._table = RmpTable(
            dram, layout, count_skips_first=self.switches.count_skips_first, cipher=cipher, form=form
        )
        self.runs = self._table.runs
        self.checks = RmpChecks(self._table, self.switches, disabled)
        self._matched = rmp_blocks.OWN if self.checks.matches_gpa else rmp_blocks.OWN & ~GPA
        self.check_guest_private = self.checks.check_guest_private
        self.check_guest_write = self.checks.check_guest_write
        self.check_guest_sev_read = self.checks.check_guest_sev_read
        self.check_host_write = self.checks.check_host_write
        self.check_dma = self.checks.check_dma

    @property
    def changed(self) -> Changed | None:
        """Who is told of entries that instructions and firmware change."""
        return self._table.changed

    @changed.setter
    def changed(self, changed: Changed | None) -> None:
        self._table.changed = changed

    @property
    def any_in_dram(self) -> bool:
        """Whether bytes in DRAM say what any of the entries is."""
        return self._table.any_in_dram

    def __len__(self) -> int:
        """Number of runs held."""
        return len(self._table)

    def covers(self, spa: int, pages: int = 1) -> bool:
        """Whether so many pages have entries."""
        page = spa // PAGE_BYTES
        return self._covers(page, page + pages)

    def entry(self, spa: int) -> RmpEntry:
        """The effective entry of a page; the hypervisor's own for a page outside of the table."""
        return self._table.entry(spa // PAGE_BYTES)

    def run_entry(self, spa: int, pages: int) -> RmpEntry | None:
        """The entry of a page that so many pages follow on from; None where the table is not sure."""
        first = spa // PAGE_BYTES
        if not self._covers(first, first + pages):
            return None
        run = self._table.runs.find(first)
        if run is None or run[1] < first + pages:
            return None
        return run[2].advanced(first - run[0]).entry

    # Firmware.

    def set_entry(self, spa: int, entry: RmpEntry) -> None:
        """Replace an entry as firmware does; a 4 KiB entry inside a 2 MiB one smashes it.

        Raises ValueError for an address that no such entry can have.
        """
        page, pages = spa // PAGE_BYTES, _pages_of(entry)
        if spa % (pages * PAGE_BYTES) or not self._covers(page, page + pages):
            raise ValueError(f"spa: expected an entry's address inside the RMP, got {spa:#x}")
        table = self._table
        old = table.entry(page)
        if not entry.large and old.large:
            block = page // LARGE_PAGES * LARGE_PAGES
            table.put(block, block + LARGE_PAGES, replace(table.entry(block), large=False))
            old = table.entry(page)
        if not entry.large:
            self._count(old, entry, 1)
        else:
            for first, stop, part in table.decoded_pieces(page, page + pages):
                self._count(part, entry, stop - first)
        table.put(page, page + pages, entry)

    def set_entries(self, spa: int, length: int, entry: RmpEntry) -> None:
        """Replace entries of 4 KiB as ``set_entry`` does one after another, GPAs following where a guest is named.

        Raises ValueError for addresses without entries.
        """
        page, stop = spa // PAGE_BYTES, (spa + length) // PAGE_BYTES
        if (spa | length) % PAGE_BYTES or not self._covers(page, stop):
            raise ValueError(f"spa: expected entries inside the RMP, got {length} bytes at {spa:#x}")
        first = page
        while first < stop:
            if self._table.entry(first).large:
                self.set_entry(first * PAGE_BYTES, entry)
            first = (first // LARGE_PAGES + 1) * LARGE_PAGES
        for first, end, old in list(self._table.decoded_pieces(page, stop)):
            self._count(old, entry, end - first)
        self._table.put(page, stop, entry)

    def initialise(self) -> None:
        """Zero the table and take the pages that it lies in from everybody: SNP_INIT."""
        self._table.clear()
        for spa, length in self.layout.ranges():
            first, stop = spa // PAGE_BYTES, -(-(spa + length) // PAGE_BYTES)
            for low, high, _ in self.layout.stretches(first, stop):
                self._table.put(low, high, _FIRMWARE)

    def pages_of_asid(self, asid: int) -> int:
        """Number of 4 KiB pages assigned to an ASID, as the table's counter has it."""
        return self._table.pages_of_asid(asid)

    def owned(self, spa: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Parts of a range that guests own, as (SPA, length, ASID); they may begin and end outside of it."""
        first, stop = spa // PAGE_BYTES, -(-(spa + length) // PAGE_BYTES)
        for low, high, entry in self._table.decoded_pieces(first, stop):
            if entry.assigned and entry.asid:
                yield low * PAGE_BYTES, (high - low) * PAGE_BYTES, entry.asid

    # Instructions of the host.

    def rmpupdate(self, spa: int, length: int, entry: RmpEntry) -> RmpCode:
        """RMPUPDATE on every page of a range; the entry's GPA advances with the page.

        Of ``entry`` only what the instruction takes counts: assigned, size,
        immutable, GPA and ASID. An assigned entry of ASID 0 must have GPA 0:
        with another it would be a Metadata page, which only firmware makes.
        """
        if not self._can_update(spa, length, entry):
            return RmpCode.FAIL_INPUT
        first = spa // PAGE_BYTES
        return self._update(first, first + length // PAGE_BYTES, entry, None)

    def rmpupdate_each(self, spa: int, length: int, entry: RmpEntry) -> Codes | RmpCode:
        """The same on every page whatever became of those before: a code for each, or FAIL_INPUT for all."""
        if not self._can_update(spa, length, entry):
            return RmpCode.FAIL_INPUT
        first, pages = spa // PAGE_BYTES, length // PAGE_BYTES
        codes: Codes = np.zeros(pages // (LARGE_PAGES if entry.large else 1), np.uint8)
        self._update(first, first + pages, entry, codes)
        return codes

    def psmash(self, spa: int) -> RmpCode:
        """PSMASH: turn one 2 MiB entry into 512 entries that inherit everything."""
        page = spa // PAGE_BYTES
        if spa % LARGE_PAGE_BYTES or not self._covers(page, page + LARGE_PAGES):
            return RmpCode.FAIL_INPUT
        entry = self._table.entry(page)
        if not (entry.assigned and entry.large):
            return RmpCode.FAIL_NOT_LARGE
        if entry.immutable:
            return RmpCode.FAIL_PERMISSION
        if self._table.is_locked(page) or self.checks.first_in_use(page, page + LARGE_PAGES) is not None:
            return RmpCode.FAIL_INUSE
        self._table.put(page, page + LARGE_PAGES, replace(entry, large=False))
        return RmpCode.SUCCESS

    def rmpread(self, spa: int) -> tuple[RmpCode, bytes]:
        """RMPREAD: the code, and the 16 bytes it stores."""
        page = spa // PAGE_BYTES
        if spa % PAGE_BYTES or not self._covers(page, page + 1):
            return RmpCode.FAIL_INPUT, b""
        return RmpCode.SUCCESS, state_form(self._table.entry(page), region_in_use=self._table.region_in_use(page))

    # Instructions of a guest. Its pages lie at ``spa``: the nested walk is done.

    def pvalidate(
        self, spa: int, gpa: int, core: GuestCore, length: int, large: bool, validate: bool
    ) -> tuple[RmpCode, bool]:
        """PVALIDATE every page of a range: EAX, and whether any page was so already (CF).

        Raises RmpFault where the core reports a nested page fault, ProtectionFault below VMPL0 if the switch says
        so. Ownership is checked before sizes, so 2 MiB at an SPA between 2 MiB borders, which only 4 KiB entries can
        back, is a size mismatch for the owner alone.
        """
        refused = self.cannot_validate(gpa, core, length, large)
        if refused:
            return refused, False
        return self._validate(spa, gpa, core.asid, length, large, validate, None)

    def pvalidate_each(
        self, spa: int, gpa: int, core: GuestCore, length: int, large: bool, validate: bool
    ) -> Codes | RmpCode:
        """The same on every page whatever became of those before: a ``PageOutcome`` or code for each."""
        refused = self.cannot_validate(gpa, core, length, large)
        if refused:
            return refused
        codes: Codes = np.zeros(length // (LARGE_PAGE_BYTES if large else PAGE_BYTES), np.uint8)
        self._validate(spa, gpa, core.asid, length, large, validate, codes)
        return codes

    def rmpadjust(
        self, spa: int, gpa: int, core: GuestCore, length: int, large: bool, target: int, permissions: int, vmsa: bool
    ) -> RmpCode:
        """RMPADJUST every page of a range: what VMPL ``target`` may do there, and by VMPL0 whether it is a save area.

        Raises RmpFault and NotValidated. Registers are judged before the page.
        """
        refused = cannot_adjust(gpa, core, length, large, target, permissions)
        if refused:
            return refused
        page = spa // PAGE_BYTES
        for first, stop, old in self._table.decoded_pieces(page, page + length // PAGE_BYTES):
            self._check_own(old, first, gpa + (first - page) * PAGE_BYTES, core.asid, large)
            if large and (not old.large or first % LARGE_PAGES):
                return RmpCode.FAIL_SIZEMISMATCH
            if permissions & ~old.vmpl_permissions[core.vmpl]:
                return RmpCode.FAIL_PERMISSION
            rights = list(old.vmpl_permissions)
            rights[target] = permissions
            new = replace(
                old,
                vmpl_permissions=(rights[0], rights[1], rights[2], rights[3]),
                vmsa=old.vmsa if core.vmpl else vmsa,
            )
            busy = self.checks.first_in_use(first, stop)
            self._table.put(first, stop if busy is None else busy - (busy - first) % _pages_of(old), new)
            if busy is not None:
                return RmpCode.FAIL_INUSE
        return RmpCode.SUCCESS

    def refuse_size(self, spa: int, gpa: int, core: GuestCore) -> NoReturn:
        """What an instruction for 4 KiB says to a larger nested mapping. Raises RmpFault, with SIZEM for the owner."""
        page = spa // PAGE_BYTES
        self._check_own(replace(self._table.entry(page), validated=True), page, gpa, core.asid, large=True)
        raise RmpFault(spa, _NPF | ERROR_SIZEM)

    def rmpquery(self, spa: int, gpa: int, core: GuestCore, target: int) -> tuple[RmpCode, int, bool]:
        """RMPQUERY: the code, what VMPL ``target`` may do with a page, and whether its entry is one of 2 MiB.

        Raises RmpFault and, by a switch, NotValidated.
        """
        refused = cannot_query(gpa, core, target)
        if refused:
            return refused, 0, False
        page = spa // PAGE_BYTES
        entry = self._table.entry(page)
        known = entry if self.switches.query_needs_validated else replace(entry, validated=True)
        self._check_own(known, page, gpa, core.asid, large=True)
        return RmpCode.SUCCESS, entry.vmpl_permissions[target], entry.large

    # How a range is gone through.

    def _covers(self, first: int, stop: int) -> bool:
        return (first >= 0 and stop <= self._from_zero) or self.layout.covers(first, stop)

    def _can_update(self, spa: int, length: int, entry: RmpEntry) -> bool:
        unit = LARGE_PAGE_BYTES if entry.large else PAGE_BYTES
        return (
            length > 0
            and not (spa | length) % unit
            and self._covers(spa // PAGE_BYTES, (spa + length) // PAGE_BYTES)
            and _can_be_written(entry, unit, length, self._max_asid)
            and (not self.switches.pages_of_memory or self._is_there(spa, length))
        )

    def _is_there(self, spa: int, length: int) -> bool:
        """Whether memory, or MMIO that the table was made to cover, is at each page of a range."""
        first, size = self.switches.mmio
        return spa + length <= self._memory_pages * PAGE_BYTES or (first <= spa and spa + length <= first + size)

    def _update(self, first: int, stop: int, entry: RmpEntry, codes: Codes | None) -> RmpCode:
        """RMPUPDATE on [first, stop), around the save areas in use."""
        unit = _pages_of(entry)
        at = first
        while at < stop:
            busy = self.checks.first_in_use(at, stop)
            end = stop if busy is None else busy - (busy - at) % unit
            some = None if codes is None else codes[(at - first) // unit : (end - first) // unit]
            code = self._update_free(at, end, entry.pages_on(at - first), some)
            if codes is None and code:
                return code
            if busy is None:
                break
            fixed = any(old.immutable for _, _, old in self._table.decoded_pieces(end, end + unit))
            code = RmpCode.FAIL_PERMISSION if fixed else RmpCode.FAIL_INUSE
            if codes is None:
                return code
            codes[(end - first) // unit] = code
            at = end + unit
        return RmpCode.SUCCESS

    def _update_free(self, first: int, stop: int, entry: RmpEntry, codes: Codes | None) -> RmpCode:
        table, keeps = self._table, self.switches.immutable_keeps_validated
        unit = _pages_of(entry)
        for start, end, olds in _units(table, first, stop, unit):
            here = entry.pages_on(start - first)
            some = None if codes is None else codes[(start - first) // unit : (end - first) // unit]
            if olds is None:
                code = self._update_bytes(start, end, here, some)
                if code and codes is None:
                    return code
                continue
            verdict = _judge_update(olds, here, keeps)
            if isinstance(verdict, RmpEntry):
                self._count(olds[0], verdict, end - start)
                table.put(start, end, verdict)
            elif some is None:
                return verdict
            else:
                some[:] = verdict
        return RmpCode.SUCCESS

    def _update_bytes(self, start: int, end: int, entry: RmpEntry, codes: Codes | None) -> RmpCode:
        keeps = self.switches.immutable_keeps_validated
        for first, stop, spa in self._table.blocks(start, end):
            read = self._table.read_blocks(first, stop, spa)
            here = entry.pages_on(first - start)
            low = first % LARGE_PAGES
            high = low + stop - first if len(read) == 1 else LARGE_PAGES
            change = (
                rmp_blocks.update_large(read, here, keeps)
                if entry.large
                else rmp_blocks.update_small(read, low, high, here, keeps)
            )
            unit = change.pages_each
            some = None if codes is None else codes[(first - start) // unit : (stop - start) // unit]
            failed = self._carry_out(change, first, stop, spa, (low, high), some)
            if failed is not None:
                return RmpCode(failed[1])
        return RmpCode.SUCCESS

    def _carry_out(
        self,
        change: rmp_blocks.Change,
        first: int,
        stop: int,
        spa: int,
        pages: tuple[int, int],
        codes: Codes | None,
    ) -> tuple[int, int] | None:
        """Write a change, up to the first failure if nobody wants codes; answers that failure's page and code."""
        flat = change.codes.reshape(-1)
        limit = len(flat)
        failed = None
        if codes is None:
            where = np.flatnonzero(change.failed().reshape(-1))
            if len(where):
                limit = int(where[0])
                failed = first + limit * change.pages_each, int(flat[limit])
        else:
            codes[:] = flat
        if (flat[:limit] == RmpCode.SUCCESS).any():
            blocks = self._table.writable_blocks(first, stop, spa)
            change.write(self._table, blocks, *pages, limit)
            self._table.store_blocks(blocks, first, spa)
            if self._table.changed is not None:
                self._table.changed(first * PAGE_BYTES, stop * PAGE_BYTES)
        return failed

    def cannot_validate(self, gpa: int, core: GuestCore, length: int, large: bool) -> RmpCode:
        if core.vmpl:
            if self.switches.pvalidate_faults_below_vmpl0:
                raise ProtectionFault
            return RmpCode.FAIL_PERMISSION
        wrong = length <= 0 or (gpa | length) % (LARGE_PAGE_BYTES if large else PAGE_BYTES)
        return RmpCode.FAIL_INPUT if wrong else RmpCode.SUCCESS

    def _validate(
        self, spa: int, gpa: int, asid: int, length: int, large: bool, validate: bool, codes: Codes | None
    ) -> tuple[RmpCode, bool]:
        table = self._table
        first, unit = spa // PAGE_BYTES, LARGE_PAGES if large else 1
        unchanged = False
        # Off the borders of 2 MiB only the first page of each unit matters: no entry of 2 MiB begins there.
        between = large and first % LARGE_PAGES
        stop = first + length // PAGE_BYTES
        parts = (
            ((at, at + unit, (replace(table.entry(at), large=False),)) for at in range(first, stop, unit))
            if between
            else _units(table, first, stop, unit)
        )
        for start, end, olds in parts:
            here = gpa + (start - first) * PAGE_BYTES
            some = None if codes is None else codes[(start - first) // unit : (end - first) // unit]
            if olds is None:
                found, same = self._validate_bytes(start, end, here, asid, large, validate, some)
                at, outcome = found or (start, 0)
            else:
                claimed = here if self.checks.matches_gpa else olds[0].gpa
                verdict = _judge_validate(olds[0], claimed, asid, large, validate)
                same = verdict == PageOutcome.UNCHANGED
                at, outcome = start, 0 if same or isinstance(verdict, RmpEntry) else int(verdict)
                if isinstance(verdict, RmpEntry):
                    table.put(start, end, verdict)
                elif some is not None:
                    some[:] = verdict
            unchanged = unchanged or same
            if outcome and codes is None:
                if outcome in _ERRORS:
                    raise RmpFault(at * PAGE_BYTES, _ERRORS[PageOutcome(outcome)])
                return RmpCode(outcome), unchanged
        return RmpCode.SUCCESS, unchanged

    def _validate_bytes(
        self, start: int, end: int, gpa: int, asid: int, large: bool, validate: bool, codes: Codes | None
    ) -> tuple[tuple[int, int] | None, bool]:
        """The first failure as (page, outcome), and whether any page before it was so already."""
        unchanged = False
        for first, stop, spa in self._table.blocks(start, end):
            read = self._table.read_blocks(first, stop, spa)
            here = gpa + (first - start) * PAGE_BYTES
            low = first % LARGE_PAGES
            high = low + stop - first if len(read) == 1 else LARGE_PAGES
            change = (
                rmp_blocks.validate_large(read, here, asid, validate, self._matched)
                if large
                else rmp_blocks.validate_small(read, low, high, here, asid, validate, self._matched)
            )
            unit = change.pages_each
            some = None if codes is None else codes[(first - start) // unit : (stop - start) // unit]
            failed = self._carry_out(change, first, stop, spa, (low, high), some)
            flat = change.codes.reshape(-1)[: None if failed is None else (failed[0] - first) // unit]
            unchanged = unchanged or bool((flat == PageOutcome.UNCHANGED).any())
            if failed is not None:
                return failed, unchanged
        return None, unchanged

    def _check_own(self, entry: RmpEntry, page: int, gpa: int, asid: int, large: bool) -> None:
        elsewhere = entry.gpa != gpa and self.checks.matches_gpa
        if not entry.assigned or entry.asid != asid or elsewhere or entry.immutable:
            raise RmpFault(page * PAGE_BYTES, _NPF)
        if entry.large and not large:
            raise RmpFault(page * PAGE_BYTES, _NPF | ERROR_SIZEM)
        if not entry.validated and self.checks.asks_validated:
            raise NotValidated(gpa)

    def _count(self, old: RmpEntry, new: RmpEntry, pages: int) -> None:
        before, after = old.asid if old.assigned else 0, new.asid if new.assigned else 0
        if before != after:
            self._table.count(before, -pages)
            self._table.count(after, pages)


def _units(table: RmpTable, first: int, stop: int, unit: int) -> Iterator[tuple[int, int, _Olds | None]]:
    """[first, stop) in parts of whole units: as long as one entry goes on, or one unit of several; None for bytes."""
    if unit == 1 and stop - first == 1:  # As nearly all of a launch.
        found = table.runs.find(first)
        one = DEFAULT_ENTRY if found is None else found[2].advanced(first - found[0]).entry
        yield first, stop, None if one is None else (one,)
        return
    held: list[RmpEntry] = []
    since = first
    for start, end, entry in list(table.bulk_pieces(first, stop)):
        if unit == 1 or entry is None:
            yield start, end, None if entry is None else (entry,)
            continue
        at = start
        if held:
            at = min(end, since + unit)
            held.append(entry)
            if at < since + unit:
                continue
            yield since, at, held
            held = []
        whole = (end - at) // unit * unit
        if whole:
            yield at, at + whole, (entry.pages_on(at - start),)
        if at + whole < end:
            since = at + whole
            held = [entry.pages_on(since - start)]


def _pages_of(entry: RmpEntry) -> int:
    return LARGE_PAGES if entry.large else 1


def _judge_update(olds: _Olds, entry: RmpEntry, keeps: bool) -> RmpCode | RmpEntry:
    old = olds[0]
    more = olds[1:]
    if old.immutable or (more and any(one.immutable for one in more)):
        return RmpCode.FAIL_PERMISSION
    if (old.assigned and old.large != entry.large) or (more and any(one.assigned for one in more)):
        return RmpCode.FAIL_OVERLAP
    if not entry.assigned:
        return DEFAULT_ENTRY
    same_page = old.assigned and (old.asid, old.gpa) == (entry.asid, entry.gpa if entry.asid else 0)
    if same_page and (keeps or old.immutable == entry.immutable):
        return replace(old, immutable=entry.immutable)
    return RmpEntry(
        assigned=True, large=entry.large, immutable=entry.immutable, gpa=entry.gpa, asid=entry.asid,
        vmpl_permissions=GUEST_PERMISSIONS if entry.asid else (0, 0, 0, 0),
    )  # fmt: skip


def _judge_validate(old: RmpEntry, gpa: int, asid: int, large: bool, validate: bool) -> int | RmpEntry:
    if not old.assigned or old.asid != asid or old.gpa != gpa or old.immutable:
        return PageOutcome.NPF
    if old.large and not large:
        return PageOutcome.NPF_SIZEM
    if large and not old.large:
        return RmpCode.FAIL_SIZEMISMATCH
    return PageOutcome.UNCHANGED if old.validated == validate else replace(old, validated=validate)


def _can_be_written(entry: RmpEntry, unit: int, length: int, max_asid: int) -> bool:
    """Whether RMPUPDATE may ask for such an entry and its fields can hold it."""
    if not entry.assigned:
        return not entry.asid and not entry.immutable
    if not entry.asid:
        return not entry.gpa
    return 0 < entry.asid <= max_asid and not entry.gpa % unit and 0 <= entry.gpa <= GPA_END - length


def cannot_adjust(gpa: int, core: GuestCore, length: int, large: bool, target: int, permissions: int) -> RmpCode:
    """What RMPADJUST says to its registers before it walks any table; SUCCESS where they are in order."""
    if length <= 0 or (gpa | length) % (LARGE_PAGE_BYTES if large else PAGE_BYTES) or not 0 <= target < VMPLS:
        return RmpCode.FAIL_INPUT
    if not 0 <= permissions <= 0xFF:
        return RmpCode.FAIL_INPUT
    return RmpCode.FAIL_PERMISSION if target <= core.vmpl else RmpCode.SUCCESS


def cannot_query(gpa: int, core: GuestCore, target: int) -> RmpCode:
    """The same of RMPQUERY."""
    if gpa % PAGE_BYTES:
        return RmpCode.FAIL_INPUT
    return RmpCode.SUCCESS if core.vmpl <= target < VMPLS else RmpCode.FAIL_PERMISSION
