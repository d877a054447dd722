"""Fences of ASIDs: what a root complex keeps from a guest whose trusted I/O its host broke.

A trusted request that fails by the host's doing stops all I/O between devices and that guest, and the guest's own
loads and stores of MMIO, so that no single transfer is lost unseen. Source: ``spec/tio/iommu.md``, section 6.
"""

from __future__ import annotations

from enum import IntEnum


class DmaFence(IntEnum):
    """Bits 1:0 of a status."""

    NOT_FENCED = 0
    ERROR = 1
    DEFAULT = 3
    """Nothing of this ASID runs; read as the state of rest."""


class MmioFence(IntEnum):
    """Bits 3:2 of a status."""

    NOT_FENCED = 0
    FENCED = 3


class AsidFences:
    """The fences of one root complex."""

    def __init__(self) -> None:
        self._running: dict[int, set[int]] = {}
        """Devices with a running TDI, by ASID."""
        self._errors: set[int] = set()

    def starts(self, asid: int, device: int) -> None:
        """A TDI of a guest runs."""
        self._running.setdefault(asid, set()).add(device)

    def ends(self, asid: int, device: int) -> None:
        """It does not any more. A fence that an error set stays."""
        devices = self._running.get(asid, set())
        devices.discard(device)
        if not devices:
            self._running.pop(asid, None)

    def error(self, asid: int) -> None:
        """A trusted request failed by the host's doing."""
        self._errors.add(asid)

    def clear(self, asid: int) -> bool:
        """Lift the fence of an error; False while a TDI of the guest runs."""
        if asid in self._running:
            return False
        self._errors.discard(asid)
        return True

    def blocks(self, asid: int) -> bool:
        """Whether a guest's trusted I/O is stopped by an error."""
        return asid in self._errors

    def status(self, asid: int) -> int:
        """What TIO_ASID_FENCE_STATUS says."""
        if asid in self._errors:
            return DmaFence.ERROR | MmioFence.FENCED << 2
        return DmaFence.NOT_FENCED if asid in self._running else DmaFence.DEFAULT
