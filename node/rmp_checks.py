"""What the RMP lets through: every store of the host, every access of a guest, and a device's.

The order for a private access: owner, address, IMMUTABLE and size, then VALIDATED,
then the permissions of the VMPL (AMD's order as VeriSMo models it). Error bits are
those of the fault that the core would take.
"""

from __future__ import annotations

from bisect import bisect_left

from node.entry_runs import IN_DRAM, Run
from node.platform import Protection
from node.rmp_entry import ASID, ASID_SHIFT, ASSIGNED, GPA, IMMUTABLE, PAGE_SIZE, VALIDATED
from node.rmp_faults import (
    ERROR_ENC,
    ERROR_FETCH,
    ERROR_FINAL,
    ERROR_PRESENT,
    ERROR_RMP,
    ERROR_SIZEM,
    ERROR_USER,
    ERROR_VMPL,
    ERROR_WALK,
    ERROR_WRITE,
    NotValidated,
    RmpFault,
)
from node.rmp_switches import RmpSwitches
from node.rmp_table import RmpTable
from psp.system_bus import PAGE_BYTES

PERMIT_READ, PERMIT_WRITE, PERMIT_FETCH_USER, PERMIT_FETCH_SUPERVISOR = 1, 2, 4, 8
"""Permission bits of a VMPL that an access needs."""

_ACCEPTED = ASSIGNED | IMMUTABLE | GPA | ASID | VALIDATED
_HOST = ERROR_PRESENT | ERROR_WRITE | ERROR_RMP
_GUEST = ERROR_PRESENT | ERROR_USER | ERROR_RMP
_FETCHES = PERMIT_FETCH_USER | PERMIT_FETCH_SUPERVISOR


class VmsaInUse(Exception):
    """A vCPU runs with this save area already (VMEXIT_BUSY)."""


class RmpChecks:
    """Checks of accesses against a table, and which save areas are in use.

    A protection in ``disabled`` is one whose comparison the chip does not make, here and
    in the instructions; entries are kept as ever.
    """

    def __init__(
        self, table: RmpTable, switches: RmpSwitches, disabled: frozenset[Protection] = frozenset()
    ) -> None:
        self.matches_gpa = Protection.GPA_MATCH not in disabled
        self.asks_validated = Protection.VALIDATED_BIT not in disabled
        self._table = table
        self.runs = table.runs
        """Entries that lie in no DRAM; for others only to see whether any has changed."""
        self._switches = switches
        self._in_use: list[int] = []
        if not switches.sev_reads_checked:
            self.check_guest_sev_read = self._let_guest_sev_read  # type: ignore[method-assign]
        if Protection.RMP_WRITE_CHECK in disabled:
            self.check_host_write = self._let_host_write  # type: ignore[method-assign]
            self.check_guest_write = self._let_guest_write  # type: ignore[method-assign]

    def are_without_entries(self, spa: int, length: int) -> bool:
        """Whether no page of a range has had an entry but that of a page of the host's since the table was made."""
        return self.runs.is_gap(spa // PAGE_BYTES, (spa + length) // PAGE_BYTES)

    def check_guest_private(
        self,
        spa: int,
        gpa: int,
        asid: int,
        length: int,
        *,
        needs: int = PERMIT_READ,
        vmpl: int = 0,
        walk: bool = False,
        mapped_large: bool | None = None,
    ) -> None:
        """A private access of a guest. Raises RmpFault, or NotValidated for a page that it has not accepted.

        ``needs`` are permission bits. ``walk`` says that the guest's page walk makes
        the access. ``mapped_large`` is the size of the nested mapping, by default as
        large as the entry.
        """
        page, last = spa // PAGE_BYTES, (spa + length - 1) // PAGE_BYTES
        while True:
            found = self.runs.words(page)
            if found is None:
                break
            start, end, low, high = found
            right = ASSIGNED | VALIDATED | asid << ASID_SHIFT | gpa // PAGE_BYTES * PAGE_BYTES
            if (
                (low + (page - start) * PAGE_BYTES) & _ACCEPTED != right
                or high >> vmpl * 8 & needs != needs
                or (mapped_large is False and low & PAGE_SIZE)
            ):
                # Nearly all accesses are right: only others are asked what is wrong, and what the chip minds.
                entry = Run(low, high).entry
                if entry is None:
                    entry = self._table.entry(page)
                    start, end = page, page + 1
                at = entry.gpa + (page - start) * PAGE_BYTES
                elsewhere = at != gpa // PAGE_BYTES * PAGE_BYTES and self.matches_gpa
                if not entry.assigned or entry.asid != asid or elsewhere or entry.immutable:
                    break
                if mapped_large is False and entry.large:
                    raise RmpFault(spa, _error(needs, walk) | ERROR_SIZEM)
                if not entry.validated and self.asks_validated:
                    raise NotValidated(gpa)
                if entry.vmpl_permissions[vmpl] & needs != needs:
                    raise RmpFault(spa, _error(needs, walk) | ERROR_VMPL)
            if last < end:
                return
            gpa += end * PAGE_BYTES - spa
            page, spa = end, end * PAGE_BYTES
        raise RmpFault(spa, _error(needs, walk))

    def check_host_write(self, spa: int, length: int) -> None:
        """A store of the host, by any means: no page may be assigned. Raises RmpFault with a #PF's error code."""
        first, last = spa // PAGE_BYTES, (spa + length - 1) // PAGE_BYTES + 1
        start, end = self.runs.gap
        if length > 0 and ((start <= first and last <= end) or self.runs.is_gap(first, last)):
            return
        at = self._first_assigned(spa, length)
        if at is not None:
            raise RmpFault(at, _HOST)

    def check_guest_write(self, spa: int, length: int, *, encrypted: bool = False) -> None:
        """A store of a guest to shared memory, or of a SEV guest to any: no page may be assigned. Raises RmpFault."""
        if self.runs.is_gap(spa // PAGE_BYTES, (spa + length - 1) // PAGE_BYTES + 1) and length > 0:
            return
        at = self._first_assigned(spa, length)
        if at is not None:
            raise RmpFault(at, _GUEST | ERROR_FINAL | ERROR_WRITE | (ERROR_ENC if encrypted else 0))

    def _let_host_write(self, spa: int, length: int) -> None:
        """Without the check of writes."""

    def _let_guest_write(self, spa: int, length: int, *, encrypted: bool = False) -> None:
        """Without the check of writes."""

    def check_guest_shared_read(self, spa: int, length: int) -> None:
        """A guest's read through a shared mapping, where the switch has it checked. Raises RmpFault."""
        at = self._first_assigned(spa, length)
        if at is not None:
            raise RmpFault(at, _GUEST | ERROR_FINAL)

    def check_guest_sev_read(self, spa: int, length: int, needs: int = PERMIT_READ, access: int = 0) -> None:
        """A private read, fetch or walk of a guest that is not SNP-active: no page may be assigned to anybody.

        ``needs`` are permission bits, ``access`` the error bits of a nested fault. Raises RmpFault.
        """
        if self.runs.is_gap(spa // PAGE_BYTES, (spa + length - 1) // PAGE_BYTES + 1) and length > 0:
            return
        at = self._first_assigned(spa, length)
        if at is not None:
            raise RmpFault(at, _error(needs, bool(access & ERROR_WALK)))

    def _let_guest_sev_read(self, spa: int, length: int, needs: int = PERMIT_READ, access: int = 0) -> None:
        """Where the switch has such reads decrypt."""

    def check_dma(self, spa: int, length: int, *, write: bool) -> None:
        """An untrusted device's access, as the IOMMU checks it: no page may be assigned.

        Raises RmpFault, which the IOMMU logs as RMP_PAGE_FAULT.
        """
        if write or self._switches.dma_reads_checked:
            at = self._first_assigned(spa, length)
            if at is not None:
                raise RmpFault(at, ERROR_RMP | (ERROR_WRITE if write else 0))

    def _first_assigned(self, spa: int, length: int) -> int | None:
        page, last = spa // PAGE_BYTES, (spa + max(length, 1) - 1) // PAGE_BYTES
        for start, end, run in self.runs.pieces(page, last + 1):
            if run is None:
                continue
            if run == IN_DRAM:
                at = self._table.first_assigned(start, end)
                if at is not None:
                    return at * PAGE_BYTES
            elif run.low & ASSIGNED:
                return start * PAGE_BYTES
        return None

    # Save areas.

    def may_enter(self, spa: int, asid: int) -> bool:
        """Whether VMRUN accepts a save area: assigned to the guest, validated, VMSA, and not IMMUTABLE.

        Raises VmsaInUse if a vCPU runs with it.
        """
        entry = self._table.entry(spa // PAGE_BYTES)
        valid = entry.validated or not self.asks_validated
        fits = entry.assigned and entry.asid == asid and valid and entry.vmsa and not entry.immutable
        if fits and self.first_in_use(spa // PAGE_BYTES, spa // PAGE_BYTES + 1) is not None:
            raise VmsaInUse
        return fits

    def enter(self, spa: int) -> None:
        """A vCPU begins to run with a save area: until ``leave`` nobody may change its entry."""
        page, in_use = spa // PAGE_BYTES, self._in_use
        at = bisect_left(in_use, page)
        if at == len(in_use) or in_use[at] != page:
            in_use.insert(at, page)

    def leave(self, spa: int) -> None:
        """It runs no longer."""
        page, in_use = spa // PAGE_BYTES, self._in_use
        at = bisect_left(in_use, page)
        if at < len(in_use) and in_use[at] == page:
            del in_use[at]

    def first_in_use(self, start: int, end: int) -> int | None:
        """The first page of [start, end) that is the save area of a running vCPU."""
        if not self._in_use:
            return None
        at = bisect_left(self._in_use, start)
        return self._in_use[at] if at < len(self._in_use) and self._in_use[at] < end else None


def _error(needs: int, walk: bool) -> int:
    return (
        _GUEST
        | ERROR_ENC
        | (ERROR_WALK if walk else ERROR_FINAL)
        | (ERROR_WRITE if needs & PERMIT_WRITE else 0)
        | (ERROR_FETCH if needs & _FETCHES else 0)
    )
