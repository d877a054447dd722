"""SNP_PAGE_MD_INIT, _SWAP_OUT, _SWAP_IN and _MOVE: a guest's pages out of memory, back, and to other frames (SNP ABI).

A page that goes out is encrypted with the guest's offline key under a counter that never
repeats; what is needed to believe it later, its tag among it, is an entry of a Metadata
page, which nobody but firmware writes, or of the context. An entry is good for one return, so an
older page is never taken for the newest, and a page returns to the guest address it left.

Statuses and the order of checks are recollections: state, policy, activity, the guest's page, the entry, the
host's page. AMD's own header calls the entry's layout not final; what the tag covers besides the page is this
file's.

A row stands for the commands of a range of pages that nobody ever wrote, one after another, with the PAGE_RECLAIM of
each: their contents are noise of the key, are carried nowhere, and read as other noise where they come in. No mailbox
has it; it saves the laboratory to encrypt a machine's empty memory. Firmware looks that the pages were never written,
and its entry is believed, and spent, as any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

from psp import swap_buffers
from psp.byte_layout import ByteLayout, at
from psp.commands import SnpCommand
from psp.guest_context import GuestContext
from psp.host_memory import HostMemory
from psp.page_state import PageState, page_state
from psp.policy import SnpPolicy
from psp.snp_guests import SnpGuests
from psp.snp_pages import entry_of_page
from psp.status import PspError, Status
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES, RmpEntry, SystemBus

DATA, METADATA, VMSA = range(3)
"""PAGE_TYPE of the commands' flags."""
_TAG_BYTES = 16
_LAST_COUNT = (1 << 64) - 1
_SECOND_BLOCK = (2).to_bytes(4, "big")
_FIRMWARE = RmpEntry(assigned=True, immutable=True)
_OUTGOING = frozenset({PageState.PRE_GUEST, PageState.PRE_SWAP})


@dataclass(frozen=True, slots=True)
class MdataEntry(ByteLayout):
    """What firmware needs of a page that is out: 64 of them to a Metadata page, and one in each context."""

    SIZE: ClassVar[int] = 0x40
    software_data: int = at(0x00, 8)
    iv: int = at(0x08, 8)
    tag: bytes = at(0x10, _TAG_BYTES, bytes(_TAG_BYTES))
    flags: int = at(0x20, 8)
    """GPA in bits 63:12; of the others those below."""
    permissions: bytes = at(0x28, 8, bytes(8))

    VALID: ClassVar[int] = 1 << 0
    VALIDATED: ClassVar[int] = 1 << 1
    VMSA: ClassVar[int] = 1 << 2
    METADATA: ClassVar[int] = 1 << 3
    LARGE: ClassVar[int] = 1 << 4
    ROW: ClassVar[int] = 1 << 5
    """The laboratory's: so many pages from the GPA on, as the software data say, that nobody wrote."""

    @property
    def gpa(self) -> int:
        """Where the guest has the page."""
        return self.flags & ~(PAGE_BYTES - 1)

    @property
    def bound(self) -> bytes:
        """What the tag covers besides the page."""
        return replace(self, tag=bytes(_TAG_BYTES)).pack()

    @property
    def nonce(self) -> bytes:
        """The counter as GCM takes it."""
        return self.iv.to_bytes(8, "little") + bytes(4)


_KIND_BITS: Mapping[int, int] = {DATA: 0, METADATA: MdataEntry.METADATA, VMSA: MdataEntry.VMSA}


class PageSwap:
    """Handlers of the four commands."""

    def __init__(self, bus: SystemBus, memory: HostMemory, guests: SnpGuests) -> None:
        self.checks_tag = True
        """Whether a page that comes in is compared with its entry's tag; False shows what that is good for."""
        self.spends_entries = True
        """Likewise, whether an entry is good for one return only."""
        self._bus = bus
        self._memory = memory
        self._guests = guests

    def md_init(self, page: swap_buffers.SnpPageMdInit) -> None:
        """SNP_PAGE_MD_INIT: a Firmware page becomes one of empty entries, this guest's."""
        self._context(page.gctx, SnpCommand.PAGE_MD_INIT)
        entry = self._entry(page.address)
        if page_state(entry) is not PageState.FIRMWARE:
            raise PspError(Status.INVALID_PAGE_STATE)
        if entry.large:
            raise PspError(Status.INVALID_PAGE_SIZE)
        self._bus.write(page.address, bytes(PAGE_BYTES))
        self._bus.rmp_set(page.address, replace(_FIRMWARE, gpa=page.gctx))

    def swap_out(self, swap: swap_buffers.SnpPageSwapOut) -> None:
        """SNP_PAGE_SWAP_OUT."""
        context = self._context(swap.gctx, SnpCommand.PAGE_SWAP_OUT)
        kind, large = _kind(swap.flags), bool(swap.flags & 1)
        source = self._outgoing(context, swap.gctx, kind, swap.source, large=large)
        root, entry = self._mdata(context, swap.gctx, swap.flags, swap.mdata)
        within = not root and swap.mdata // PAGE_BYTES == swap.source // PAGE_BYTES
        if entry.flags & MdataEntry.VALID or within:
            raise PspError(Status.INVALID_MDATA_ENTRY)
        length = LARGE_PAGE_BYTES if large else PAGE_BYTES
        self._free_frame(swap.destination, large=large)
        if context.oek_iv_count == _LAST_COUNT:
            raise PspError(Status.AEAD_OFLOW)
        filled = MdataEntry(
            swap.software_data,
            context.oek_iv_count + 1,
            flags=MdataEntry.VALID | _KIND_BITS[kind] | source.validated << 1 | large << 4 | _gpa(kind, source),
            permissions=bytes(source.vmpl_permissions),
        )
        plain = self._plain(kind, swap.source, length, source.asid)
        sealed = AESGCM(context.oek).encrypt(filled.nonce, plain, filled.bound)
        filled = replace(filled, tag=sealed[-_TAG_BYTES:])
        self._bus.write(swap.destination, sealed[:-_TAG_BYTES])
        self._leave(kind, swap.source, source)
        counted = replace(context, oek_iv_count=filled.iv)
        self._put_mdata(counted, swap.gctx, filled, None if root else swap.mdata)

    def swap_in(self, swap: swap_buffers.SnpPageSwapIn) -> None:
        """SNP_PAGE_SWAP_IN."""
        context = self._context(swap.gctx, SnpCommand.PAGE_SWAP_IN)
        kind, large = _kind(swap.flags), bool(swap.flags & 1)
        in_place = bool(swap.flags & swap_buffers.SNP_SWAP_IN_PLACE)
        length = LARGE_PAGE_BYTES if large else PAGE_BYTES
        target = self._incoming(context, kind, swap.destination, large=large)
        root, entry = self._mdata(context, swap.gctx, swap.flags, swap.mdata)
        kind_of_entry = entry.flags & (MdataEntry.VMSA | MdataEntry.METADATA)
        if not entry.flags & MdataEntry.VALID or kind_of_entry != _KIND_BITS[kind]:
            raise PspError(Status.INVALID_MDATA_ENTRY)
        if bool(entry.flags & MdataEntry.LARGE) != large:
            raise PspError(Status.INVALID_PAGE_SIZE)
        if entry.gpa != _gpa(kind, target):
            raise PspError(Status.INVALID_MDATA_ENTRY)
        if in_place != (swap.source == swap.destination) or swap.source % PAGE_BYTES:
            raise PspError(Status.INVALID_ADDRESS)
        self._memory.check_present(swap.source, length)
        plain = self._opened(context, entry, self._bus.read(swap.source, length))
        if kind == METADATA:
            self._bus.write(swap.destination, plain)
            self._bus.rmp_set(swap.destination, replace(_FIRMWARE, gpa=swap.gctx))
        else:
            self._bus.write_guest(swap.destination, plain, target.asid)
            returned = replace(
                target,
                validated=bool(entry.flags & MdataEntry.VALIDATED),
                vmsa=kind == VMSA,
                vmpl_permissions=_permissions(entry),
            )
            self._bus.rmp_set(swap.destination, returned)
        if self.spends_entries:
            self._put_mdata(context, swap.gctx, MdataEntry(), None if root else swap.mdata)

    def move(self, move: swap_buffers.SnpPageMove) -> None:
        """SNP_PAGE_MOVE: contents and attributes go to another frame, encrypted for it."""
        context = self._context(move.gctx, SnpCommand.PAGE_MOVE)
        if move.flags & ~1:
            raise PspError(Status.INVALID_PARAM)
        large = bool(move.flags)
        found = self._entry(move.source)
        kind = METADATA if page_state(found) is PageState.METADATA else VMSA if found.vmsa else DATA
        source = self._outgoing(context, move.gctx, kind, move.source, large=large)
        target = self._incoming(context, kind, move.destination, large=large)
        if kind != METADATA and target.gpa != source.gpa:
            raise PspError(Status.INVALID_PAGE_OWNER)
        plain = self._plain(kind, move.source, LARGE_PAGE_BYTES if large else PAGE_BYTES, source.asid)
        if kind == METADATA:
            self._bus.write(move.destination, plain)
        else:
            self._bus.write_guest(move.destination, plain, source.asid)
        self._bus.rmp_set(move.destination, source)
        self._leave(kind, move.source, source)

    def row_out(self, gctx: int, spa: int, pages: int, mdata: int, *, large: bool) -> int:
        """Swap out a row of pages, as far as they are alike and nobody wrote them; how many those are. Raises PspError.

        INVALID_PAGE_STATE where the first was written; the others as SNP_PAGE_SWAP_OUT.
        """
        context = self._context(gctx, SnpCommand.PAGE_SWAP_OUT)
        size = LARGE_PAGE_BYTES if large else PAGE_BYTES
        first = self._outgoing(context, gctx, DATA, spa, large=large)
        _, entry = self._mdata(context, gctx, 0, mdata)
        if entry.flags & MdataEntry.VALID:
            raise PspError(Status.INVALID_MDATA_ENTRY)
        if context.oek_iv_count == _LAST_COUNT:
            raise PspError(Status.AEAD_OFLOW)
        taken = pages if self._is_one(first, spa, pages) else 0
        while taken < pages:
            at = spa + taken * size
            alike = self._bus.rmp_entry(at) == replace(first, gpa=first.gpa + taken * size)
            if not alike or self._bus.is_written(at, size):
                break
            taken += 1
        if not taken:
            raise PspError(Status.INVALID_PAGE_STATE)
        filled = MdataEntry(
            taken,
            context.oek_iv_count + 1,
            flags=MdataEntry.VALID | MdataEntry.ROW | first.validated << 1 | large << 4 | first.gpa,
            permissions=bytes(first.vmpl_permissions),
        )
        filled = replace(filled, tag=AESGCM(context.oek).encrypt(filled.nonce, b"", filled.bound))
        self._let_go(spa, taken, replace(first, validated=False, immutable=False), size)
        self._put_mdata(replace(context, oek_iv_count=filled.iv), gctx, filled, mdata)
        return taken

    def row_in(self, gctx: int, spa: int, mdata: int) -> int:
        """Swap a row in, where its pages are to be; how many they are. Raises PspError as SNP_PAGE_SWAP_IN does."""
        context = self._context(gctx, SnpCommand.PAGE_SWAP_IN)
        _, entry = self._mdata(context, gctx, 0, mdata)
        large, pages = bool(entry.flags & MdataEntry.LARGE), entry.software_data
        size = LARGE_PAGE_BYTES if large else PAGE_BYTES
        if not entry.flags & MdataEntry.VALID or not entry.flags & MdataEntry.ROW:
            raise PspError(Status.INVALID_MDATA_ENTRY)
        self._opened(context, entry, b"")
        first = self._incoming(context, DATA, spa, large=large)
        is_one = first.gpa == entry.gpa and self._is_one(first, spa, pages)
        for number in () if is_one else range(pages):
            target = self._incoming(context, DATA, spa + number * size, large=large)
            if target.gpa != entry.gpa + number * size:
                raise PspError(Status.INVALID_MDATA_ENTRY)
            if self._bus.is_written(spa + number * size, size):
                raise PspError(Status.INVALID_PAGE_STATE)
        returned = RmpEntry(
            assigned=True, large=large, gpa=entry.gpa, asid=context.asid,
            validated=bool(entry.flags & MdataEntry.VALIDATED), vmpl_permissions=_permissions(entry),
        )  # fmt: skip
        self._let_go(spa, pages, returned, size)
        self._put_mdata(context, gctx, MdataEntry(), mdata)
        return pages

    def _is_one(self, first: RmpEntry, spa: int, pages: int) -> bool:
        """Whether pages of 4 KiB are all as the first is, and nobody wrote them; False where that is not sure."""
        length = pages * PAGE_BYTES
        if first.large or spa + length > self._bus.dram_bytes or self._memory.pages.in_use(spa, length):
            return False
        return self._bus.rmp_run(spa, pages) == first and not self._bus.is_written(spa, length)

    def _let_go(self, spa: int, pages: int, first: RmpEntry, size: int) -> None:
        """Entries of a row; each has its own GPA."""
        if size == PAGE_BYTES:
            self._bus.rmp_set_pages(spa, pages * size, first)
            return
        for number in range(pages):
            self._bus.rmp_set(spa + number * size, replace(first, gpa=first.gpa + number * size))

    # What the commands have in common.

    def _context(self, gctx: int, command: SnpCommand) -> GuestContext:
        context = self._guests.in_state(gctx, command)
        if context.policy & SnpPolicy.PAGE_SWAP_DISABLE:
            raise PspError(Status.POLICY_FAILURE)
        self._guests.active_asid(context)
        return context

    def _entry(self, spa: int, length: int = PAGE_BYTES) -> RmpEntry:
        return entry_of_page(self._bus, self._memory.pages, spa, length)

    def _outgoing(self, context: GuestContext, gctx: int, kind: int, spa: int, *, large: bool) -> RmpEntry:
        """The entry of a page of this guest's that may go. Raises PspError."""
        entry = self._entry(spa, LARGE_PAGE_BYTES if large else PAGE_BYTES)
        state = page_state(entry)
        if (state is not PageState.METADATA) if kind == METADATA else (state not in _OUTGOING):
            raise PspError(Status.INVALID_PAGE_STATE)
        if entry.gpa != gctx if kind == METADATA else entry.asid != context.asid:
            raise PspError(Status.INVALID_PAGE_OWNER)
        if entry.large != large or spa % (LARGE_PAGE_BYTES if large else PAGE_BYTES):
            raise PspError(Status.INVALID_PAGE_SIZE)
        if kind != METADATA and entry.vmsa != (kind == VMSA):
            raise PspError(Status.INVALID_PAGE_STATE)
        return entry

    def _incoming(self, context: GuestContext, kind: int, spa: int, *, large: bool) -> RmpEntry:
        """The entry of a page that may take one of this guest's. Raises PspError."""
        entry = self._entry(spa, LARGE_PAGE_BYTES if large else PAGE_BYTES)
        if page_state(entry) is not (PageState.FIRMWARE if kind == METADATA else PageState.PRE_GUEST):
            raise PspError(Status.INVALID_PAGE_STATE)
        if kind != METADATA and entry.asid != context.asid:
            raise PspError(Status.INVALID_PAGE_OWNER)
        if entry.large != large or spa % (LARGE_PAGE_BYTES if large else PAGE_BYTES):
            raise PspError(Status.INVALID_PAGE_SIZE)
        return entry

    def _free_frame(self, spa: int, *, large: bool) -> None:
        entry = self._entry(spa, LARGE_PAGE_BYTES if large else PAGE_BYTES)
        if page_state(entry) is not PageState.FIRMWARE:
            raise PspError(Status.INVALID_PAGE_STATE)
        if entry.large != large or spa % (LARGE_PAGE_BYTES if large else PAGE_BYTES):
            raise PspError(Status.INVALID_PAGE_SIZE)

    def _mdata(self, context: GuestContext, gctx: int, flags: int, spa: int) -> tuple[bool, MdataEntry]:
        """Whether the entry is the context's own, and what it says. Raises PspError."""
        if flags & swap_buffers.SNP_SWAP_ROOT_MDATA:
            return True, MdataEntry.parse(context.root_mdata)
        if spa % MdataEntry.SIZE:
            raise PspError(Status.INVALID_ADDRESS)
        page = self._entry(spa // PAGE_BYTES * PAGE_BYTES)
        if page_state(page) is not PageState.METADATA:
            raise PspError(Status.INVALID_PAGE_STATE)
        if page.gpa != gctx:
            raise PspError(Status.INVALID_PAGE_OWNER)
        return False, MdataEntry.parse(self._bus.read(spa, MdataEntry.SIZE))

    def _opened(self, context: GuestContext, entry: MdataEntry, sealed: bytes) -> bytes:
        """What a page that was out holds. Raises PspError(BAD_MEASUREMENT)."""
        if not self.checks_tag:
            return _unchecked(context.oek, entry.nonce, sealed)
        try:
            return AESGCM(context.oek).decrypt(entry.nonce, sealed + entry.tag, entry.bound)
        except InvalidTag:
            raise PspError(Status.BAD_MEASUREMENT) from None

    def _put_mdata(self, context: GuestContext, gctx: int, entry: MdataEntry, spa: int | None) -> None:
        if spa is None:
            context = replace(context, root_mdata=entry.pack())
        else:
            self._bus.write(spa, entry.pack())
        self._guests.pages.write(gctx, context)

    def _plain(self, kind: int, spa: int, length: int, asid: int) -> bytes:
        return self._bus.read(spa, length) if kind == METADATA else self._bus.read_guest(spa, length, asid)

    def _leave(self, kind: int, spa: int, entry: RmpEntry) -> None:
        """The frame that a page went from is the host's to take back."""
        left = _FIRMWARE if kind == METADATA else replace(entry, validated=False, vmsa=False)
        self._bus.rmp_set(spa, left)


def _unchecked(key: bytes, nonce: bytes, sealed: bytes) -> bytes:
    """GCM's counter mode alone: its second block is the first of the text (NIST SP 800-38D, 7.2)."""
    return Cipher(AES256(key), CTR(nonce + _SECOND_BLOCK)).decryptor().update(sealed)


def _kind(flags: int) -> int:
    kind = flags >> 1 & 3
    if kind not in _KIND_BITS or flags & ~swap_buffers.SNP_SWAP_FLAGS:
        raise PspError(Status.INVALID_PARAM)
    return kind


def _gpa(kind: int, entry: RmpEntry) -> int:
    """A Metadata page has no address in the guest."""
    return 0 if kind == METADATA else entry.gpa


def _permissions(entry: MdataEntry) -> tuple[int, int, int, int]:
    first, second, third, fourth, *_ = entry.permissions
    return first, second, third, fourth
