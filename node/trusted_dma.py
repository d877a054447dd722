"""Requests with the T bit: a trusted device reaches its guest's private memory, and what stops it.

The root port takes one only on a stream that is bound to its TDI. The guest's own entry says what it may do; the
host's page table says where an address leads, and is believed no further than the RMP confirms it: the page must be
this guest's, at this address, accepted, and permitted to the entry's VMPL. What fails by the host's doing fences the
guest's ASID; what the guest itself does not permit is only refused. With tables of its own (vIOMMU) a guest says which
of its addresses each of its device's means. Source: ``spec/tio/iommu.md``, section 6.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from node.asid_fence import AsidFences
from node.guest_dma_table import translated
from node.iommu import Iommu
from node.iommu_events import FLAG_PERMISSION, FLAG_WRITE, EventCode, IommuEvent
from node.iommu_memory import NO_MEMORY, AccessRefused
from node.iommu_page_table import NotMapped
from node.iommu_requests import requests
from node.page_table_entry import LONG, EntryFormat
from node.rmp import ReverseMapTable
from node.rmp_checks import PERMIT_READ, PERMIT_WRITE
from node.rmp_faults import NotValidated, RmpFault
from psp.tsm.secure_device_entry import NOBODYS, SecureDeviceEntry
from psp.tsm.trusted_io import TdiBinding
from tio.dma_port import DmaFault

_LARGE_BITS = 21
_WORD_BYTES = 8
_USUAL_FORM = EntryFormat(LONG, 52)
_Stream = tuple[int | None, int]
"""The root port that a packet came by, and its stream there."""


@dataclass(slots=True)
class _Bound:
    """A TDI of a guest, and its secure device table entry as far as the guest has a say in it."""

    binding: TdiBinding
    entry: SecureDeviceEntry = NOBODYS
    running: bool = False
    gcr3: int | None = None
    """Where the guest's own tables begin, in its memory; None where its device names guest-physical addresses."""


class _FencedOff(Exception):
    """The guest's I/O is stopped: nobody is told of this request."""


class TrustedDma:
    """The trusted side of a host's IOMMU. ``rmp`` is the table of the moment.

    ``asks_entries`` is False only where a laboratory has the secure device table knocked out; with ``peers_open``
    requests for the memory of other cards pass, past the RMP. ``form`` is that of
    guests' own tables.
    """

    def __init__(
        self,
        iommu: Iommu,
        rmp: Callable[[], ReverseMapTable | None],
        *,
        asks_entries: bool = True,
        peers_open: bool = False,
        form: EntryFormat = _USUAL_FORM,
    ) -> None:
        self.fences = AsidFences()
        self._iommu = iommu
        self._rmp = rmp
        self._asks_entries = asks_entries
        self._peers_open = peers_open
        self._form = form
        self._bound: dict[int, _Bound] = {}

    # What the firmware does.

    def bind(self, device: int, binding: TdiBinding) -> None:
        """A TDI belongs to a guest; trusted requests fault until it runs and the guest's entry allows them."""
        self.unbind(device)
        self._bound[device] = _Bound(binding)

    def start(self, device: int) -> None:
        """The TDI runs. Raises KeyError for one that is nobody's."""
        bound = self._bound[device]
        bound.running = True
        self.fences.starts(bound.binding.asid, device)

    def write_entry(self, device: int, entry: SecureDeviceEntry) -> None:
        """The guest's part of the entry, as it gave it to the firmware. Raises KeyError for a TDI that is nobody's."""
        self._bound[device].entry = entry

    def use_guest_tables(self, device: int, gcr3: int | None) -> None:
        """The vIOMMU's part of the entry: a first level in the guest's memory, or none. Raises KeyError.

        How a guest has firmware set it is in no text at hand.
        """
        self._bound[device].gcr3 = gcr3

    def unbind(self, device: int) -> None:
        """The TDI is nobody's; its entry is clear."""
        bound = self._bound.pop(device, None)
        if bound is not None:
            self.fences.ends(bound.binding.asid, device)

    def binding(self, device: int) -> TdiBinding | None:
        """Whose a device's TDI is."""
        bound = self._bound.get(device)
        return None if bound is None else bound.binding

    def is_fenced(self, device: int) -> bool:
        """Whether a device is a guest's whose I/O is stopped: then it reaches nothing, trusted or not."""
        bound = self._bound.get(device)
        return bound is not None and self.fences.blocks(bound.binding.asid)

    # What the device does.

    def read(self, device: int, stream_id: int, gpa: int, length: int, port: int | None = None) -> bytes:
        """A trusted load that came by a root port, request by request. Raises DmaFault where one is refused."""
        parts = []
        for at, size in requests(gpa, length, write=False):
            try:
                spa, key = self._passed(device, (port, stream_id), at, size, write=False)
                parts.append(self._iommu.memory.load(spa, size, key))
            except (AccessRefused, _FencedOff, *NO_MEMORY) as refused:
                self._iommu.tell(refused)
                raise DmaFault(at, size, write=False) from None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, device: int, stream_id: int, gpa: int, data: bytes, port: int | None = None) -> None:
        """A trusted store, request by request; one that is refused is dropped, and the device does not learn of it.

        Raises DmaFault for an address that no request can carry.
        """
        for at, size in requests(gpa, len(data), write=True):
            try:
                spa, key = self._passed(device, (port, stream_id), at, size, write=True)
                self._iommu.memory.store(spa, data[at - gpa : at - gpa + size], key)
            except (AccessRefused, _FencedOff, *NO_MEMORY) as refused:
                self._iommu.tell(refused)

    def _passed(self, device: int, stream: _Stream, gpa: int, size: int, *, write: bool) -> tuple[int, int]:
        """(SPA, key) of a request inside of one 4 KiB page. Raises AccessRefused and _FencedOff."""
        flags = FLAG_WRITE if write else 0
        rmp = self._rmp()
        if rmp is None or not self._iommu.memory.enforced:
            raise AccessRefused(IommuEvent(EventCode.INVALID_DEVICE_REQUEST, device, flags, 0, gpa))
        if not self._asks_entries:
            return self._passed_unasked(rmp, device, gpa, size, write=write)
        bound = self._permitted(device, stream, gpa, write=write)
        asid = bound.binding.asid
        if self.fences.blocks(asid):
            raise _FencedOff
        try:
            if bound.gcr3 is not None:
                gpa = translated(
                    lambda at: self._word(bound, rmp, device, at), self._form, bound.gcr3, gpa, write=write
                )
            return self._confirmed(bound, rmp, device, gpa, size, write=write)
        except NotMapped as fault:  # the guest's own doing
            raise AccessRefused(IommuEvent(EventCode.IO_PAGE_FAULT, device, fault.flags | flags, asid, gpa)) from None
        except (NotValidated, RmpFault):
            self.fences.error(asid)
            raise AccessRefused(IommuEvent(EventCode.RMP_PAGE_FAULT, device, flags, asid, gpa)) from None
        except (AccessRefused, *NO_MEMORY):
            self.fences.error(asid)
            raise

    def _confirmed(
        self, bound: _Bound, rmp: ReverseMapTable, device: int, gpa: int, size: int, *, write: bool
    ) -> tuple[int, int]:
        """Where the host's table leads, and the key. Raises AccessRefused, and NotValidated and RmpFault by the RMP."""
        entry, asid = bound.entry, bound.binding.asid
        spa, key, large = self._located(device, gpa, write=write)
        if self._peers_open and self._is_a_peers(spa, size):
            return spa, asid
        if not entry.is_private(gpa):
            rmp.check_dma(spa, size, write=write)
            return spa, key
        _check_private(rmp, spa, gpa, asid, size, entry.vmpl, large=large, write=write)
        return spa, asid

    def _is_a_peers(self, spa: int, size: int) -> bool:
        peers = self._iommu.memory.peers
        return peers is not None and peers.takes_peers(spa, size)

    def _word(self, bound: _Bound, rmp: ReverseMapTable, device: int, gpa: int) -> int:
        """A word of the guest's own tables, which are private wherever vTOM is."""
        asid = bound.binding.asid
        spa, _, large = self._located(device, gpa, write=False)
        _check_private(rmp, spa, gpa, asid, _WORD_BYTES, bound.entry.vmpl, large=large, write=False)
        return int.from_bytes(self._iommu.memory.load(spa, _WORD_BYTES, asid), "little")

    def _permitted(self, device: int, stream: _Stream, gpa: int, *, write: bool) -> _Bound:
        """Whose request it is, if the entry lets it pass. Raises AccessRefused; nobody is fenced for that."""
        flags = FLAG_WRITE if write else 0
        bound = self._bound.get(device)
        if bound is None or not bound.running or not _carries(bound.binding, stream):
            raise AccessRefused(IommuEvent(EventCode.INVALID_DEVICE_REQUEST, device, flags, 0, gpa))
        entry = bound.entry
        if not entry.valid or not (entry.write if write else entry.read):
            raise AccessRefused(IommuEvent(EventCode.IO_PAGE_FAULT, device, flags | FLAG_PERMISSION, 0, gpa))
        return bound

    def _located(self, device: int, gpa: int, *, write: bool) -> tuple[int, int, bool]:
        """(SPA, key without a guest's, whether a large page maps it), as the host's table leads."""
        _, found = self._iommu.translated(device, gpa, write=write)
        spa, key = self._iommu.memory.located(found.address | gpa & (1 << found.bits) - 1)
        return spa, key, found.bits >= _LARGE_BITS

    def _passed_unasked(
        self, rmp: ReverseMapTable, device: int, gpa: int, size: int, *, write: bool
    ) -> tuple[int, int]:
        """Without secure entries: for the owner of the page, with what its highest VMPL may do."""
        spa, key, large = self._located(device, gpa, write=write)
        owner = rmp.entry(spa)
        if not owner.assigned:
            return spa, key
        try:
            _check_private(rmp, spa, gpa, owner.asid, size, 0, large=large, write=write)
        except (NotValidated, RmpFault):
            flags = FLAG_WRITE if write else 0
            raise AccessRefused(IommuEvent(EventCode.RMP_PAGE_FAULT, device, flags, owner.asid, gpa)) from None
        return spa, owner.asid


def _carries(binding: TdiBinding, stream: _Stream) -> bool:
    """Whether a stream is one of a TDI's: of its own root port, for others have streams of the same ids."""
    port, stream_id = stream
    return stream_id in binding.stream_ids and binding.root_port in (None, port)


def _check_private(
    rmp: ReverseMapTable, spa: int, gpa: int, asid: int, size: int, vmpl: int, *, large: bool, write: bool
) -> None:
    needs = PERMIT_WRITE if write else PERMIT_READ
    rmp.checks.check_guest_private(spa, gpa, asid, size, needs=needs, vmpl=vmpl, mapped_large=large)
