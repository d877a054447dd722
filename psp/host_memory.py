"""How firmware reads and writes host memory: every address a host gives is checked here."""

from __future__ import annotations

from psp.firmware_pages import FirmwarePages
from psp.page_state import PageState, page_state
from psp.status import PspError, Status
from psp.system_bus import PAGE_BYTES, RmpEntry, SystemBus

_NO_ENTRY = RmpEntry()


class HostMemory:
    """Host memory behind the firmware's checks, for one of its interfaces.

    Memory in the firmware's own use is refused with the interface's status: no sheet names
    one, so it is INVALID_ADDRESS for SEV's commands and INVALID_PAGE_STATE for SNP's. That
    this holds for what firmware only reads is the laboratory's choice.
    """

    def __init__(self, bus: SystemBus, pages: FirmwarePages, in_use: Status) -> None:
        self.pages = pages
        self._bus = bus
        self._in_use = in_use

    def read(self, spa: int, length: int) -> bytes:
        """Bytes at an address. Raises PspError as ``check_present``."""
        self.check_present(spa, length)
        return self._bus.read(spa, length)

    def check_present(self, spa: int, length: int) -> None:
        """Raise PspError: INVALID_ADDRESS unless there is memory, the interface's status if firmware itself uses it."""
        if not 0 <= spa <= self._bus.dram_bytes - length:
            raise PspError(Status.INVALID_ADDRESS)
        if self.pages.in_use(spa, length):
            raise PspError(self._in_use)

    def check_writable(self, spa: int, length: int) -> None:
        """After SNP_INIT what firmware writes must be lent to it, in Firmware state.

        Raises PspError: as ``check_present``, and INVALID_PAGE_STATE.
        """
        self.check_present(spa, length)
        self._check_pages(spa, length)

    def _check_pages(self, spa: int, length: int) -> None:
        if not self.pages.snp_initialised:
            return
        start = spa // PAGE_BYTES * PAGE_BYTES
        run = self._bus.rmp_run(start, -(-(spa + length - start) // PAGE_BYTES))
        if run is not None and page_state(run) is PageState.FIRMWARE:
            return
        for page in range(start, spa + length, PAGE_BYTES):
            # A page without an entry is the hypervisor's for ever.
            entry = self._bus.rmp_entry(page) if self._bus.rmp_covers(page) else _NO_ENTRY
            if page_state(entry) is not PageState.FIRMWARE:
                raise PspError(Status.INVALID_PAGE_STATE)

    def write(self, spa: int, data: bytes) -> None:
        """Write bytes that ``check_writable`` has let through."""
        self._bus.write(spa, data)
