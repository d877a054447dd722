"""How firmware reads and writes host memory: every address a host gives is checked here."""

from __future__ import annotations

from psp.page_state import PageState, page_state
from psp.status import PspError, Status
from psp.system_bus import PAGE_BYTES, SystemBus


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
        if self.snp_initialised:
            for page in range(spa // PAGE_BYTES, (spa + length - 1) // PAGE_BYTES + 1):
                if page_state(self._bus.rmp_entry(page * PAGE_BYTES)) is not PageState.FIRMWARE:
                    raise PspError(Status.INVALID_PAGE_STATE)

    def write(self, spa: int, data: bytes) -> None:
        """Write bytes that ``check_writable`` has let through."""
        self._bus.write(spa, data)
