"""SNP_PAGE_RECLAIM and SNP_PAGE_UNSMASH, and how a command finds a page that a host names (SEV-SNP firmware ABI)."""

from __future__ import annotations

from dataclasses import replace

from psp import command_buffers as buffers
from psp.firmware_pages import FirmwarePages
from psp.page_state import PageState, page_state
from psp.page_unsmash import unsmashed
from psp.status import PspError, Status
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES, RmpEntry, SystemBus


def entry_of_page(
    bus: SystemBus, pages: FirmwarePages, spa: int, length: int = PAGE_BYTES, *, mmio: bool = False
) -> RmpEntry:
    """The RMP's entry of a page that a host names. ``mmio``: it may be a device's, for nobody looks into it.

    Raises PspError: INVALID_ADDRESS off page borders or where there is no entry,
    INVALID_PAGE_STATE where firmware itself uses the page.
    """
    if spa % PAGE_BYTES or not bus.rmp_covers(spa) or (spa + length > bus.dram_bytes and not mmio):
        raise PspError(Status.INVALID_ADDRESS)
    if pages.in_use(spa, length):
        raise PspError(Status.INVALID_PAGE_STATE)
    return bus.rmp_entry(spa)


class SnpPages:
    """Handlers of the commands on pages that no guest's context takes part in."""

    def __init__(self, bus: SystemBus, pages: FirmwarePages) -> None:
        self._bus = bus
        self._pages = pages

    def reclaim(self, page: buffers.SnpPageReclaim) -> None:
        """SNP_PAGE_RECLAIM."""
        large = bool(page.address & 1)
        spa, length = page.address & ~1, LARGE_PAGE_BYTES if large else PAGE_BYTES
        if spa % length:
            raise PspError(Status.INVALID_ADDRESS)
        entry = entry_of_page(self._bus, self._pages, spa, length, mmio=True)
        if page_state(entry) not in _RECLAIMABLE:
            raise PspError(Status.INVALID_PAGE_STATE)
        if entry.large != large:
            raise PspError(Status.INVALID_PAGE_SIZE)
        self._bus.rmp_set(spa, replace(entry, immutable=False, gpa=entry.gpa if entry.asid else 0))

    def unsmash(self, page: buffers.SnpPageUnsmash) -> None:
        """SNP_PAGE_UNSMASH."""
        spa = page.address
        # An entry of 2 MiB is covered whole or not at all.
        if spa % LARGE_PAGE_BYTES or not self._bus.rmp_covers(spa + LARGE_PAGE_BYTES - PAGE_BYTES):
            raise PspError(Status.INVALID_ADDRESS)
        self._bus.rmp_set(spa, unsmashed(spa, lambda one: entry_of_page(self._bus, self._pages, one, mmio=True)))


_RECLAIMABLE = frozenset({PageState.FIRMWARE, PageState.METADATA, PageState.PRE_GUEST, PageState.PRE_SWAP})
