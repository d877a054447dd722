"""Virtual addresses of a guest: its own walk, which accesses are private, and the way to memory below.

Sources: APM volume 2, 7.10 and 15.34 (the C-bit of the guest's entry chooses the guest's key or what the nested
entry says; fetches and walks are always private; so is everything while paging is off, and in legacy
32-bit mode, whose entries have no room for a C-bit), 15.36.8 (virtual top of memory).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from node.control_registers import ControlRegisters
from node.guest_access import WALK, Way, tag
from node.guest_walk import FETCH, WRITE, GuestLeaf, entry_format, walk
from node.nested_page_table import READ
from node.page_table_entry import LEGACY
from node.rmp_checks import PERMIT_FETCH_SUPERVISOR, PERMIT_FETCH_USER, PERMIT_READ, PERMIT_WRITE
from node.tlb import Space, Translation
from node.vmcb import Vmcb
from psp.system_bus import PAGE_BYTES

if TYPE_CHECKING:
    from node.board import Board

_USER_CPL = 3

Stored = Callable[[int, int], None]
"""Told (GPA, length) of every store to guest memory."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a virtual range that lies in one page."""

    gpa: int
    length: int
    private: bool


class VirtualMemory:
    """Executes accesses of vCPUs by virtual address."""

    def __init__(self, board: Board, way: Way) -> None:
        self._board = board
        self._way = way
        self._tlb = board.tlb
        self.stored: Stored | None = None
        """Who wants to know of stores: the log of a live migration."""

    def read(self, vmcb: Vmcb, registers: ControlRegisters, gva: int, length: int, access: int) -> bytes:
        """Load or fetch. Raises GuestPageFault, NotCanonical, and what ``Way.resolve`` raises."""
        pieces = list(self._pieces(vmcb, registers, gva, length, access))
        fetch = access & FETCH
        needs = PERMIT_READ
        if fetch:
            needs = PERMIT_FETCH_USER if registers.cpl == _USER_CPL else PERMIT_FETCH_SUPERVISOR
        parts = []
        for piece in pieces:
            segments, asid = self._way.resolve(vmcb, piece.gpa, piece.length, piece.private, READ | access, needs)
            load = self._board.controller.read if asid else self._board.bus.host_view.read
            parts += [load(spa, size, asid or key) for spa, size, _, key in segments]
        return b"".join(parts)

    def write(self, vmcb: Vmcb, registers: ControlRegisters, gva: int, data: bytes) -> None:
        """Store, all or nothing. Raises as ``read``."""
        pieces = list(self._pieces(vmcb, registers, gva, len(data), WRITE))
        if not pieces:
            return
        ways = [
            self._way.resolve(vmcb, piece.gpa, piece.length, piece.private, READ | WRITE, PERMIT_WRITE)
            for piece in pieces
        ]
        if len(ways) > 1 or len(ways[0][0]) > 1:
            for segments, asid in ways:
                for spa, size, _, key in segments:
                    self._board.controller.expect_store(spa, size, asid or key)
        start = 0
        for piece, (segments, asid) in zip(pieces, ways, strict=True):
            for spa, size, _, key in segments:
                self._board.controller.write(spa, data[start : start + size], asid or key)
                start += size
            self._tell(piece.gpa, piece.length)

    def _pieces(
        self, vmcb: Vmcb, registers: ControlRegisters, gva: int, length: int, access: int
    ) -> Iterator[Piece]:
        at, end = gva, gva + length
        while at < end:
            gpa, page_bytes, private = self._translate(vmcb, registers, at, access)
            size = min(end - at, page_bytes - at % page_bytes)
            yield Piece(gpa, size, private)
            at += size

    def _translate(
        self, vmcb: Vmcb, registers: ControlRegisters, gva: int, access: int
    ) -> tuple[int, int, bool]:
        """(GPA, bytes of its page, private) of one virtual address."""
        mode = registers.mode
        if mode is None:
            return gva & 0xFFFF_FFFF, PAGE_BYTES, True
        one = self._remembered(vmcb, registers, gva, access)
        if one is None:
            one = self._walked(vmcb, registers, gva, access)
        gpa = one.page + gva % one.page_bytes
        if mode is LEGACY or access & FETCH:
            return gpa, one.page_bytes, True
        vtom = registers.vtom
        if vtom is not None:
            # Above the boundary lies the page below it once more, shared: its address without the top bit.
            private = gpa < vtom
            return (gpa if private or not vtom else gpa & ~(1 << vtom.bit_length() - 1)), PAGE_BYTES, private
        return gpa, one.page_bytes, one.c_bit

    def _remembered(self, vmcb: Vmcb, registers: ControlRegisters, gva: int, access: int) -> Translation | None:
        if self._tlb is None:
            return None
        one = self._tlb.find(vmcb.core, tag(vmcb), Space.VIRTUAL, gva, vmcb.vmpl)
        if one is None or (access & WRITE and not one.dirty) or _leaf(one).refuses(access, registers):
            return None  # what is refused is walked once more before it faults
        return one

    def _walked(self, vmcb: Vmcb, registers: ControlRegisters, gva: int, access: int) -> Translation:
        product, tables = self._board.product, self._board.walks
        # Guest-physical addresses lose no bits to encryption; the host's do.
        form = entry_format(registers, product.physical_address_bits, product.c_bit if vmcb.encrypted else None)

        def read(gpa: int, length: int) -> bytes:
            segments, asid = self._way.resolve(vmcb, gpa, length, True, WALK, PERMIT_READ)
            return b"".join([tables.read(spa, size, asid or key) for spa, size, _, key in segments])

        def write(gpa: int, data: bytes) -> None:
            ((spa, size, _, key),), asid = self._way.resolve(vmcb, gpa, len(data), True, WALK, PERMIT_WRITE)
            tables.write(spa, data[:size], asid or key)
            self._tell(gpa, size)

        leaf = walk(registers, form, gva, access, read, write)
        one = Translation(
            leaf.gpa, leaf.page_bytes, leaf.c_bit, leaf.writable, leaf.user, leaf.executable, leaf.dirty, leaf.global_
        )
        if self._tlb is not None:
            self._tlb.fill(vmcb.core, tag(vmcb), Space.VIRTUAL, gva, one, vmcb.vmpl)
        return one

    def _tell(self, gpa: int, length: int) -> None:
        if self.stored is not None:
            self.stored(gpa, length)


def _leaf(one: Translation) -> GuestLeaf:
    return GuestLeaf(
        one.page, one.page_bytes, one.c_bit, one.writable, one.user, one.executable, one.dirty, one.global_
    )
