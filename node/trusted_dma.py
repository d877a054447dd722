"""Requests with the T bit: a trusted device reaches its guest's private memory, and what stops it.

The root port takes one only on a stream that is bound to its TDI. The guest's own entry says what it may do; the
host's page table says where an address leads, and is believed no further than the RMP confirms it: the page must be
this guest's, at this address, accepted, and permitted to the entry's VMPL. What fails by the host's doing fences the
guest's ASID; what the guest itself does not permit is only refused. Source: ``spec/tio/iommu.md``, section 6.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from node.asid_fence import AsidFences
from node.iommu import Iommu
from node.iommu_events import FLAG_PERMISSION, FLAG_WRITE, EventCode, IommuEvent
from node.iommu_memory import NO_MEMORY, AccessRefused
from node.iommu_requests import requests
from node.rmp import ReverseMapTable
from node.rmp_checks import PERMIT_READ, PERMIT_WRITE
from node.rmp_faults import NotValidated, RmpFault
from psp.tsm.secure_device_entry import NOBODYS, SecureDeviceEntry
from tio.dma_port import DmaFault

_LARGE_BITS = 21


@dataclass(frozen=True, slots=True)
class Binding:
    """A TDI of a guest: its ASID, the number by which the guest knows the device, and its streams."""

    asid: int
    guest_device_id: int
    stream_ids: frozenset[int]
    entry: SecureDeviceEntry = NOBODYS


class _FencedOff(Exception):
    """The guest's I/O is stopped: nobody is told of this request."""


class TrustedDma:
    """The trusted side of a host's IOMMU. ``rmp`` is the table of the moment."""

    def __init__(self, iommu: Iommu, rmp: Callable[[], ReverseMapTable | None]) -> None:
        self.fences = AsidFences()
        self._iommu = iommu
        self._rmp = rmp
        self._bound: dict[int, Binding] = {}

    # What the firmware does.

    def bind(self, device: int, binding: Binding) -> None:
        """A TDI belongs to a guest; trusted requests fault until the guest's entry allows them."""
        self._bound[device] = binding

    def start(self, device: int) -> None:
        """The TDI runs."""
        self.fences.starts(self._bound[device].asid, device)

    def write_entry(self, device: int, entry: SecureDeviceEntry) -> None:
        """The guest's part of the entry, as it gave it to the firmware."""
        self._bound[device] = replace(self._bound[device], entry=entry)

    def unbind(self, device: int) -> None:
        """The TDI is nobody's; its entry is clear."""
        binding = self._bound.pop(device, None)
        if binding is not None:
            self.fences.ends(binding.asid, device)

    def binding(self, device: int) -> Binding | None:
        """Whose a device's TDI is."""
        return self._bound.get(device)

    # What the device does.

    def read(self, device: int, stream_id: int, gpa: int, length: int) -> bytes:
        """A trusted load, request by request. Raises DmaFault where one is refused."""
        parts = []
        for at, size in requests(gpa, length, write=False):
            try:
                spa, key = self._passed(device, stream_id, at, size, write=False)
                parts.append(self._iommu.memory.load(spa, size, key))
            except (AccessRefused, _FencedOff, *NO_MEMORY) as refused:
                self._iommu.tell(refused)
                raise DmaFault(at, size, write=False) from None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, device: int, stream_id: int, gpa: int, data: bytes) -> None:
        """A trusted store, request by request; one that is refused is dropped, and the device does not learn of it.

        Raises DmaFault for an address that no request can carry.
        """
        for at, size in requests(gpa, len(data), write=True):
            try:
                spa, key = self._passed(device, stream_id, at, size, write=True)
                self._iommu.memory.store(spa, data[at - gpa : at - gpa + size], key)
            except (AccessRefused, _FencedOff, *NO_MEMORY) as refused:
                self._iommu.tell(refused)

    def _passed(self, device: int, stream_id: int, gpa: int, size: int, *, write: bool) -> tuple[int, int]:
        """(SPA, key) of a request inside of one 4 KiB page. Raises AccessRefused and _FencedOff."""
        flags = FLAG_WRITE if write else 0
        binding, rmp = self._bound.get(device), self._rmp()
        if binding is None or rmp is None or stream_id not in binding.stream_ids or not self._iommu.memory.enforced:
            raise AccessRefused(IommuEvent(EventCode.INVALID_DEVICE_REQUEST, device, flags, 0, gpa))
        entry, asid = binding.entry, binding.asid
        if not entry.valid or not (entry.write if write else entry.read):
            raise AccessRefused(IommuEvent(EventCode.IO_PAGE_FAULT, device, flags | FLAG_PERMISSION, 0, gpa))
        if self.fences.blocks(asid):
            raise _FencedOff
        try:
            _, found = self._iommu.translated(device, gpa, write=write)
            spa, key = self._iommu.memory.located(found.address | gpa & (1 << found.bits) - 1)
            if entry.is_private(gpa):
                needs = PERMIT_WRITE if write else PERMIT_READ
                large = found.bits >= _LARGE_BITS
                rmp.checks.check_guest_private(
                    spa, gpa, asid, size, needs=needs, vmpl=entry.vmpl, mapped_large=large
                )
                return spa, asid
            rmp.check_dma(spa, size, write=write)
        except (NotValidated, RmpFault):
            self.fences.error(asid)
            raise AccessRefused(IommuEvent(EventCode.RMP_PAGE_FAULT, device, flags, asid, gpa)) from None
        except AccessRefused:
            self.fences.error(asid)
            raise
        return spa, key
