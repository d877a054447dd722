"""How firmware reads and writes host memory: every address a host gives is checked here."""

from __future__ import annotations

from psp.page_state import PageState, page_state
from psp.status import PspError, Status
from psp.system_bus import PAGE_BYTES, RmpEntry, SystemBus

_NO_ENTRY = RmpEntry()


class HostMemory:
    """Host memory behind the firmware's checks."""

    def __init__(self, bus: SystemBus) -> None:
        self._bus = bus
        self.snp_initialised = False

    def read(self, spa: int, length: int) -> bytes:
        """Bytes at an address. Raises PspError(INVALID_ADDRESS) outside of memory."""
        self.check_present(spa, length)
        return self._bus.read(spa, length)

    def check_present(self, spa: int, length: int) -> None:
        """Raise PspError(INVALID_ADDRESS) unless there is memory."""
        if not 0 <= spa <= self._bus.dram_bytes - length:
            raise PspError(Status.INVALID_ADDRESS)

    def check_writable(self, spa: int, length: int) -> None:
        """After SNP_INIT what firmware writes must be in Firmware state. Raises PspError(INVALID_PAGE_STATE)."""
        self.check_present(spa, length)
        self._check_pages(spa, length)

    def _check_pages(self, spa: int, length: int) -> None:
        if not self.snp_initialised:
            return
        for page in range(spa // PAGE_BYTES * PAGE_BYTES, spa + length, PAGE_BYTES):
            # A page without an entry is the hypervisor's for ever.
            entry = self._bus.rmp_entry(page) if self._bus.rmp_covers(page) else _NO_ENTRY
            if page_state(entry) is not PageState.FIRMWARE:
                raise PspError(Status.INVALID_PAGE_STATE)

    def write(self, spa: int, data: bytes) -> None:
        """Write bytes that ``check_writable`` has let through."""
        self._bus.write(spa, data)
