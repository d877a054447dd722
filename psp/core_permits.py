"""ACTIVATE_EX and SNP_ACTIVATE_EX: guests that may run on some core complexes only (SEV API; SEV-SNP firmware ABI).

A host names cores by APIC ID, and firmware makes a guest's key usable in their complexes; named again with the same
ASID, it adds complexes. A guest of plain ACTIVATE may run everywhere. The sheet gives no more than buffers: statuses,
that a core in no complex of the guest's refuses VMRUN, and that caches of all cores have to be written back before,
not those of the named ones alone, are the laboratory's.
"""

from __future__ import annotations

from psp.host_memory import HostMemory
from psp.status import PspError, Status
from psp.system_bus import SystemBus

_ID_BYTES = 4


class CorePermits:
    """Which guests of one platform are held to complexes; both interfaces of the firmware share it."""

    def __init__(self, bus: SystemBus) -> None:
        self._bus = bus
        self._complexes: dict[int, frozenset[int]] = {}
        """By ASID."""

    def named(self, memory: HostMemory, address: int, count: int) -> frozenset[int]:
        """The complexes of the cores in a list of APIC IDs. Raises PspError: INVALID_PARAM for none or one unknown."""
        if not 0 < count <= self._bus.hardware_threads:
            raise PspError(Status.INVALID_PARAM)
        data = memory.read(address, count * _ID_BYTES)
        ids = {int.from_bytes(data[at : at + _ID_BYTES], "little") for at in range(0, len(data), _ID_BYTES)}
        if max(ids) >= self._bus.hardware_threads:
            raise PspError(Status.INVALID_PARAM)
        return frozenset(self._bus.core_complex(one) for one in ids)

    def holds(self, asid: int) -> bool:
        """Whether the guest with an ASID is held to complexes."""
        return asid in self._complexes

    def may_add(self, asid: int, to: int) -> bool:
        """Whether the guest with an ASID, which is held to complexes, asks for more of them under it."""
        return asid == to and asid in self._complexes

    def add(self, asid: int, complexes: frozenset[int]) -> None:
        """Let a guest run there, too."""
        allowed = self._complexes[asid] = self._complexes.get(asid, frozenset()) | complexes
        self._bus.run_only_on(asid, allowed)

    def drop(self, asid: int) -> None:
        """An ASID was given up."""
        if self._complexes.pop(asid, None) is not None:
            self._bus.run_only_on(asid, None)
