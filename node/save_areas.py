"""Save areas, which the core itself reads and writes at VMRUN and at an exit."""

from __future__ import annotations

from node.exit_registers import RegisterMasks
from node.generation import CAPABILITIES, Generation
from node.host_system_bus import HostSystemBus
from node.memory_controller import HOST_KEY, MemoryController
from node.platform import Platform, Protection
from node.vmcb import Vmcb
from node.vmsa import VMSA_BYTES


class SaveAreas:
    """A board's cores at the save areas of control blocks.

    Source: AMD64 APM Volume 2, "Encrypted State" and "VMSA Register Protection".
    """

    def __init__(
        self, controller: MemoryController, bus: HostSystemBus, masks: RegisterMasks, platform: Platform
    ) -> None:
        self._controller, self._bus, self._masks = controller, bus, masks
        self._integrity = Protection.SAVE_AREA_INTEGRITY not in platform.disabled

    def load(self, vmcb: Vmcb) -> bytes:
        """The save area as VMRUN reads it."""
        page = self._controller.read(vmcb.save_area_spa, VMSA_BYTES, self.key(vmcb))
        return self._masks.loaded(page) if vmcb.rmp_checked else page

    def store(self, vmcb: Vmcb, page: bytes) -> None:
        """Write the save area as an exit does."""
        self._store(vmcb, 0, self._masks.stored(page) if vmcb.rmp_checked else page)

    def store_field(self, vmcb: Vmcb, offset: int, data: bytes) -> None:
        """Write a part of it that is never masked, as the core does while the vCPU runs."""
        self._store(vmcb, offset, data)

    def _store(self, vmcb: Vmcb, offset: int, data: bytes) -> None:
        # A core would write all of its state. Here fields that nobody models stay as they lie in memory, so a page
        # that does not fit any more is not made to: VMRUN finds it.
        seal = _sealed(vmcb) and self.fits(vmcb)
        key = self.key(vmcb)
        # A plain VM's is a page like any other of the host: bytes in DRAM once somebody looks.
        store = self._controller.write if key else self._controller.lay
        store(vmcb.save_area_spa + offset, data, key)
        if seal:
            self._bus.seal_save_area(vmcb.save_area_spa, vmcb.asid)

    def fits(self, vmcb: Vmcb) -> bool:
        """Whether a save area is what hardware wrote last; only that of SEV-ES has a value to tell it by."""
        if not self._integrity or not _sealed(vmcb):
            return True
        return self._bus.seals.fits(vmcb.asid, vmcb.save_area_spa, self.load(vmcb))

    def key(self, vmcb: Vmcb) -> int:
        """Through which key registers go: the guest's from SEV-ES on; a plain VM's are the host's, as it maps them."""
        if CAPABILITIES[vmcb.generation].encrypted_registers:
            return vmcb.asid
        return HOST_KEY if vmcb.generation is Generation.SME else 0


def _sealed(vmcb: Vmcb) -> bool:
    """SEV-ES: encrypted registers that no RMP keeps."""
    return vmcb.generation is Generation.SEV_ES
