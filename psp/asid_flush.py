"""When an ASID may be used again: WBINVD on all cores, then DF_FLUSH.

SEV API, sections 5.9 and 6.3; SEV-SNP firmware ABI, sections 8.6 and 8.12.
Caches and the data fabric know nothing of interfaces: both share one record, and
DF_FLUSH of either cleans all ASIDs. KVM relies on it, for with SNP on it flushes
with SNP_DF_FLUSH alone before it recycles the ASIDs of SEV guests too.
"""

from __future__ import annotations

from psp.status import PspError, Status
from psp.system_bus import SystemBus


class AsidFlush:
    """Which ASIDs are owned, and which still have lines in caches or the data fabric."""

    def __init__(self, bus: SystemBus) -> None:
        self._bus = bus
        self._dirty: dict[int, int] = {}
        self._wbinvd_before = -1
        self._initial = True
        self.owned: set[int] = set()

    def require_all(self) -> None:
        """After initialisation no ASID may be activated before WBINVD and DF_FLUSH."""
        self._initial = True
        self._wbinvd_before = self._bus.wbinvd_count()

    def check_usable(self, asid: int) -> None:
        """Raise PspError unless an ASID is free and flushed."""
        if asid in self.owned:
            raise PspError(Status.ASID_OWNED)
        since = self._wbinvd_before if self._initial else self._dirty.get(asid)
        if since is None:
            return
        done = self._bus.wbinvd_count() > since
        raise PspError(Status.DFFLUSH_REQUIRED if done else Status.WBINVD_REQUIRED)

    def own(self, asid: int) -> None:
        """An ASID was activated."""
        self.owned.add(asid)

    def disown(self, asid: int) -> None:
        """An ASID was given up: dirty until flushed."""
        self.owned.discard(asid)
        self._dirty[asid] = self._bus.wbinvd_count()

    @property
    def dirty(self) -> bool:
        """Whether any ASID waits for a flush."""
        return bool(self._dirty)

    def flush(self) -> None:
        """DF_FLUSH. Raises PspError(WBINVD_REQUIRED) if caches were not written back since an ASID was given up."""
        marks = [*self._dirty.values(), *([self._wbinvd_before] if self._initial else [])]
        if marks and self._bus.wbinvd_count() <= max(marks):
            raise PspError(Status.WBINVD_REQUIRED)
        self._dirty.clear()
        self._initial = False
