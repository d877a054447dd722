"""SWAP_OUT and SWAP_IN of the SEV interface: a guest's pages out of memory and back (SEV API).

A page that goes out is encrypted with the guest's offline key under a counter that never repeats.
What is needed to decrypt it later is an entry in memory of the host's: nobody keeps it from laying
an older page and its entry back, or from giving a page to another address. SEV promises no more
integrity than that; a Metadata page of SNP does (``page_swap``).

The commands' layouts are sev-tool's, which no published driver uses. What the tag covers besides
the page, the entry's alignment, the states of the guest (those of COPY) and the order of checks are
the laboratory's: state, flags, addresses, activity, what firmware writes, then what needs keys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from psp import swap_buffers
from psp.byte_layout import ByteLayout, at
from psp.commands import LegacyCommand
from psp.host_memory import HostMemory
from psp.legacy_guest import LegacyGuest, guest_in_state
from psp.policy import LegacyPolicy
from psp.status import PspError, Status
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES, SystemBus

DATA, VMSA = 0, 2
"""PAGE_TYPE of the commands' flags; 1 is a Metadata page of SNP, which these guests do not have."""
OEK_BYTES = 32
_TAG_BYTES = 16
_LAST_COUNT = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class SwapEntry(ByteLayout):
    """What firmware needs of a page that is out; ``flags`` are the page's size (bit 0) and type (2:1)."""

    SIZE: ClassVar[int] = 0x40
    software_data: int = at(0x00, 8)
    iv: int = at(0x08, 8)
    tag: bytes = at(0x10, _TAG_BYTES, bytes(_TAG_BYTES))
    flags: int = at(0x3C, 4)

    @property
    def bound(self) -> bytes:
        """What the tag covers besides the page."""
        return replace(self, tag=bytes(_TAG_BYTES)).pack()

    @property
    def nonce(self) -> bytes:
        """The counter as GCM takes it."""
        return self.iv.to_bytes(8, "little") + bytes(4)


class LegacySwap:
    """Handlers of both directions."""

    def __init__(
        self,
        bus: SystemBus,
        memory: HostMemory,
        random: Callable[[str, int], bytes],
        guests: Mapping[int, LegacyGuest],
    ) -> None:
        self._bus = bus
        self._memory = memory
        self._random = random
        self._guests = guests

    def swap_out(self, swap: swap_buffers.SwapOut) -> None:
        """SWAP_OUT: the page stays where it is, too; what it is good for there is the host's affair."""
        guest = guest_in_state(self._guests, swap.handle, LegacyCommand.SWAP_OUT)
        length = _length(guest, swap.flags)
        _check_places(swap.source, swap.destination, swap.mdata, length, in_place=False)
        if not guest.asid:
            raise PspError(Status.INACTIVE)
        self._memory.check_present(swap.source, length)
        self._memory.check_writable(swap.destination, length)
        self._memory.check_writable(swap.mdata, SwapEntry.SIZE)
        if _kind(swap.flags) == VMSA and not self._bus.save_area_is_sealed(swap.source, guest.asid):
            # A page that the host has damaged would come back with an integrity value of its own.
            raise PspError(Status.BAD_MEASUREMENT)
        if guest.oek_iv_count == _LAST_COUNT:
            raise PspError(Status.AEAD_OFLOW)
        guest.oek = guest.oek or self._random("SEV OEK", OEK_BYTES)
        guest.oek_iv_count += 1
        entry = SwapEntry(swap.software_data, guest.oek_iv_count, flags=swap.flags)
        plain = self._bus.read_guest(swap.source, length, guest.asid)
        sealed = AESGCM(guest.oek).encrypt(entry.nonce, plain, entry.bound)
        self._memory.write(swap.destination, sealed[:-_TAG_BYTES])
        self._memory.write(swap.mdata, replace(entry, tag=sealed[-_TAG_BYTES:]).pack())

    def swap_in(self, swap: swap_buffers.SwapIn) -> None:
        """SWAP_IN: to any address; the entry stays as it is."""
        guest = guest_in_state(self._guests, swap.handle, LegacyCommand.SWAP_IN)
        in_place = bool(swap.flags & swap_buffers.SWAP_IN_PLACE)
        flags = swap.flags & ~swap_buffers.SWAP_IN_PLACE
        length = _length(guest, flags)
        _check_places(swap.source, swap.destination, swap.mdata, length, in_place=in_place)
        if not guest.asid:
            raise PspError(Status.INACTIVE)
        self._memory.check_writable(swap.destination, length)
        entry = SwapEntry.parse(self._memory.read(swap.mdata, SwapEntry.SIZE))
        sealed = self._memory.read(swap.source, length)
        if entry.flags != flags:
            raise PspError(Status.INVALID_PARAM)
        if not guest.oek:
            raise PspError(Status.BAD_MEASUREMENT)  # of this guest nothing is out
        try:
            plain = AESGCM(guest.oek).decrypt(entry.nonce, sealed + entry.tag, entry.bound)
        except InvalidTag:
            raise PspError(Status.BAD_MEASUREMENT) from None
        self._bus.write_guest(swap.destination, plain, guest.asid)
        if _kind(flags) == VMSA:
            self._bus.seal_save_area(swap.destination, guest.asid)


def _kind(flags: int) -> int:
    return flags >> 1 & 3


def _length(guest: LegacyGuest, flags: int) -> int:
    """Bytes of the page that the flags name. Raises PspError."""
    large, kind = flags & 1, _kind(flags)
    if flags & ~swap_buffers.SWAP_PAGE_FLAGS or kind not in {DATA, VMSA}:
        raise PspError(Status.INVALID_PARAM)
    if kind == VMSA and not guest.policy & LegacyPolicy.ES:
        raise PspError(Status.POLICY_FAILURE)
    if kind == VMSA and large:
        raise PspError(Status.INVALID_PAGE_SIZE)
    return LARGE_PAGE_BYTES if large else PAGE_BYTES


def _check_places(source: int, destination: int, mdata: int, length: int, *, in_place: bool) -> None:
    """Whole pages that do not meet, but for one that returns in place, and an entry that lies in neither."""
    if source % length or destination % length or mdata % SwapEntry.SIZE:
        raise PspError(Status.INVALID_ADDRESS)
    if in_place != (source == destination) or any(one <= mdata < one + length for one in (source, destination)):
        raise PspError(Status.INVALID_ADDRESS)
