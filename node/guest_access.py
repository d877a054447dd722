"""A guest's way to memory: the nested translation, the RMP's check, and the key.

``access`` are the error bits that a nested fault would have, ``needs`` the permissions of
the VMPL that the RMP wants. With translation buffers on, ``CachedGuestAccess`` goes first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from node.nested_page_table import MOST_WALKS, READ, NestedPageFault, Segment
from node.rmp_checks import PERMIT_READ, PERMIT_WRITE
from node.rmp_faults import ERROR_ENC, ERROR_FETCH, ERROR_USER, ERROR_WALK, ERROR_WRITE, RmpFault
from node.tlb import Space, Tag, Tlb, Translation
from node.vmcb import Vmcb
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES

if TYPE_CHECKING:
    from node.board import Board

WALK = ERROR_USER | ERROR_WRITE | ERROR_WALK
"""An access to the guest's own tables, which to the nested tables is always a store (APM volume 2, 15.25.5)."""

_PAGE_SHIFT = PAGE_BYTES.bit_length() - 1
_IN_PAGE = PAGE_BYTES - 1
_MOST_KNOWN = 16
"""Accesses that a control block keeps in mind."""

NOT_SNP = -1
"""In place of a VMPL, that of a guest whose accesses are checked as those of no page's owner."""


class Way(Protocol):
    """What both ways have."""

    def resolve(
        self, vmcb: Vmcb, gpa: int, length: int, private: bool, access: int = READ, needs: int = PERMIT_READ
    ) -> tuple[list[Segment], int]:
        """Where a range lies, and the ASID whose key it uses: 0 for what each segment says.

        Raises NestedPageFault, RmpFault, NotValidated and MachineCheck.
        """


class GuestAccess:
    """Translates and checks each access anew."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def resolve(
        self, vmcb: Vmcb, gpa: int, length: int, private: bool, access: int = READ, needs: int = PERMIT_READ
    ) -> tuple[list[Segment], int]:
        """As ``Way`` says."""
        which, at, rmp = (gpa >> _PAGE_SHIFT, private, access, needs), gpa & _IN_PAGE, self._board.rmp
        in_page = 0 < length <= PAGE_BYTES - at
        known = vmcb.known.get(which)
        if known is not None and in_page:
            # A guest goes back to the pages that it was at.
            changes, asked, rmp_changes, spa, large, key, asid = known
            if changes == vmcb.nested.changes and asked is rmp and (rmp is None or rmp_changes == rmp.runs.changes):
                return [(spa + at, length, large, key)], asid
        try:
            segments = vmcb.nested.translate(gpa, length, access)
        except NestedPageFault as fault:
            if private and vmcb.rmp_checked:
                fault.error |= ERROR_ENC
            raise
        try:
            asid = self._check(vmcb, gpa, segments, private, access, needs)
        except RmpFault as fault:
            _place(fault, gpa, segments)
            raise
        if in_page and not vmcb.nested.in_memory and not (rmp is not None and rmp.any_in_dram):
            if len(vmcb.known) >= _MOST_KNOWN:
                vmcb.known.clear()
            spa, _, large, key = segments[0]
            rmp_changes = 0 if rmp is None else rmp.runs.changes
            vmcb.known[which] = vmcb.nested.changes, rmp, rmp_changes, spa - at, large, key, asid
        return segments, asid

    def check(self, vmcb: Vmcb, gpa: int, segments: list[Segment], private: bool, access: int, needs: int) -> int:
        """RMP checks of a translated access; the ASID whose key it uses, 0 for what the nested entry says."""
        try:
            return self._check(vmcb, gpa, segments, private, access, needs)
        except RmpFault as fault:
            _place(fault, gpa, segments)
            raise

    def _check(self, vmcb: Vmcb, gpa: int, segments: list[Segment], private: bool, access: int, needs: int) -> int:
        rmp = self._board.rmp
        if private and vmcb.encrypted:
            if vmcb.rmp_checked:
                if rmp is None:  # No VMRUN accepts its control block.
                    raise RmpFault(segments[0][0] if segments else 0, ERROR_ENC)
                for spa, length, large, _ in segments:
                    rmp.check_guest_private(
                        spa, gpa, vmcb.asid, length, needs=needs, vmpl=vmcb.vmpl, mapped_large=large,
                        walk=bool(access & ERROR_WALK),
                    )  # fmt: skip
                    gpa += length
                return vmcb.asid
            if rmp is None:
                return vmcb.asid
            # A SEV guest has no RMP entries of its own, though an SNP guest may have its ASID: no page may be assigned.
            if needs & PERMIT_WRITE:
                for spa, length, _, _ in segments:
                    rmp.check_guest_write(spa, length, encrypted=True)
            else:
                for spa, length, _, _ in segments:
                    rmp.check_guest_sev_read(spa, length, needs, access)
            return vmcb.asid
        write = needs & PERMIT_WRITE
        if rmp is not None and (write or self._board.product.rmp.shared_reads_checked):
            check = rmp.check_guest_write if write else rmp.checks.check_guest_shared_read
            for spa, length, _, _ in segments:
                check(spa, length)
        return 0


class CachedGuestAccess:
    """Asks the translation buffers first; what they remember is neither walked nor checked again."""

    def __init__(self, board: Board, anew: GuestAccess, tlb: Tlb) -> None:
        self._board = board
        self._anew = anew
        self._tlb = tlb

    def resolve(
        self, vmcb: Vmcb, gpa: int, length: int, private: bool, access: int = READ, needs: int = PERMIT_READ
    ) -> tuple[list[Segment], int]:
        """As ``Way`` says, page by page."""
        if length <= 0 or length > self._board.dram.size_bytes:
            return self._anew.resolve(vmcb, gpa, length, private, access, needs)
        key = vmcb.asid if private and vmcb.encrypted else 0
        out: list[Segment] = []
        at, end = gpa, gpa + length
        while at < end:
            if len(out) == MOST_WALKS:
                raise NestedPageFault(at, access | (ERROR_ENC if private and vmcb.rmp_checked else 0))
            one = self._tlb.find(vmcb.core, tag(vmcb), Space.GUEST_PHYSICAL, at, vmcb.vmpl)
            if one is None or not _grants(one, access):
                one = self._walk(vmcb, at, private, access)
            size = min(end - at, one.page_bytes - at % one.page_bytes)
            segment = (one.page + at % one.page_bytes, size, one.mapped_large, one.key)
            # Guests that are not SNP-active may share an ASID with one that is, but not what passed for it.
            verdict = (private, needs, vmcb.vmpl if vmcb.rmp_checked else NOT_SNP)
            if verdict not in one.passed:
                self._anew.check(vmcb, at, [segment], private, access, needs)
                one.passed.add(verdict)
            out.append(segment)
            at += size
        return out, key

    def _walk(self, vmcb: Vmcb, gpa: int, private: bool, access: int) -> Translation:
        try:
            leaf = vmcb.nested.leaf(gpa, access)
        except NestedPageFault as fault:
            if private and vmcb.rmp_checked:
                fault.error |= ERROR_ENC
            raise
        size = leaf.page_bytes
        spa = leaf.spa + gpa % size
        rmp = self._board.rmp
        if rmp is not None:
            # The verdict is on one entry, so what is remembered is no larger.
            large = size > PAGE_BYTES and rmp.entry(spa).large
            size = LARGE_PAGE_BYTES if large else PAGE_BYTES
        one = Translation(
            spa - gpa % size, size, writable=leaf.writable, executable=leaf.executable, dirty=leaf.dirty,
            mapped_large=leaf.page_bytes > PAGE_BYTES, key=leaf.key,
        )  # fmt: skip
        self._tlb.fill(vmcb.core, tag(vmcb), Space.GUEST_PHYSICAL, gpa, one, vmcb.vmpl)
        return one


def _place(fault: RmpFault, gpa: int, segments: list[Segment]) -> None:
    """Say at which GPA of an access that begins at ``gpa`` the RMP refused it."""
    for spa, length, _, _ in segments:
        if spa // PAGE_BYTES <= fault.spa // PAGE_BYTES <= (spa + max(1, length) - 1) // PAGE_BYTES:
            fault.gpa = gpa + max(0, fault.spa - spa)
            break
        gpa += length


def tag(vmcb: Vmcb) -> Tag:
    """What a vCPU's translations are tagged with. VMs without encryption have ASIDs that this board does not number."""
    return vmcb.asid or vmcb.vm


def _grants(one: Translation, access: int) -> bool:
    return (not access & ERROR_WRITE or (one.writable and one.dirty)) and (not access & ERROR_FETCH or one.executable)
