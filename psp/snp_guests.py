"""Guests of the SNP interface: their contexts, the commands that may come to each, and the ASIDs they have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from psp import command_buffers as buffers
from psp.asid_flush import AsidFlush
from psp.asid_ranges import AsidRanges
from psp.commands import SnpCommand
from psp.context_pages import ContextPages
from psp.core_permits import CorePermits
from psp.guest_context import GuestContext, SnpGuestState
from psp.host_memory import HostMemory
from psp.page_state import PageState, page_state
from psp.snp_pages import entry_of_page
from psp.status import PspError, Status
from psp.system_bus import RmpEntry, SystemBus

_G = SnpGuestState
GUEST_STATES = {
    SnpCommand.LAUNCH_START: frozenset({_G.INIT}),
    SnpCommand.LAUNCH_UPDATE: frozenset({_G.LAUNCH}),
    SnpCommand.LAUNCH_FINISH: frozenset({_G.LAUNCH}),
    SnpCommand.ACTIVATE: frozenset({_G.LAUNCH, _G.RUNNING}),
    SnpCommand.ACTIVATE_EX: frozenset({_G.LAUNCH, _G.RUNNING}),
    SnpCommand.GUEST_STATUS: frozenset(_G),
    SnpCommand.GUEST_REQUEST: frozenset({_G.RUNNING}),
    SnpCommand.PAGE_MD_INIT: frozenset({_G.RUNNING}),
    SnpCommand.PAGE_SWAP_OUT: frozenset({_G.LAUNCH, _G.RUNNING}),
    SnpCommand.PAGE_SWAP_IN: frozenset({_G.LAUNCH, _G.RUNNING}),
    SnpCommand.PAGE_MOVE: frozenset({_G.LAUNCH, _G.RUNNING}),
    SnpCommand.DBG_DECRYPT: frozenset({_G.RUNNING}),
    SnpCommand.DBG_ENCRYPT: frozenset({_G.RUNNING}),
    SnpCommand.TIO_TDI_BIND: frozenset({_G.RUNNING}),
    SnpCommand.TIO_GUEST_REQUEST: frozenset({_G.RUNNING}),
    SnpCommand.TIO_ASID_FENCE_CLEAR: frozenset({_G.LAUNCH, _G.RUNNING}),
}
"""Guest states in which a command may come (SEV-SNP firmware ABI, section 4.2)."""


def _nobody_minds(_: int) -> None:
    """Let every guest end."""


class SnpGuests:
    """Handlers of the commands on contexts and ASIDs, and what the other commands need of them."""

    def __init__(
        self,
        bus: SystemBus,
        memory: HostMemory,
        flush: AsidFlush,
        ranges: AsidRanges,
        permits: CorePermits,
        random: Callable[[str, int], bytes],
    ) -> None:
        self.pages = ContextPages(bus, random)
        self.before_decommission: Callable[[int], None] = _nobody_minds
        """Hears which guest is to end, by its context page; raises PspError where it may not yet."""
        self._active: set[int] = set()
        """ASIDs whose key slots hold the key of an SNP guest: a fact of the platform, whatever a context says."""
        self._bus = bus
        self._memory = memory
        self._flush = flush
        self._ranges = ranges
        self._permits = permits

    def in_state(self, gctx: int, command: SnpCommand) -> GuestContext:
        """A guest's context. Raises PspError(INVALID_GUEST), or INVALID_GUEST_STATE if the command may not come."""
        return self.opened(gctx, command)[1]

    def opened(self, gctx: int, command: SnpCommand) -> tuple[bytes, GuestContext]:
        """The same, with the bytes of its page before it."""
        page, context = self.pages.opened(gctx)
        if context.state not in GUEST_STATES[command]:
            raise PspError(Status.INVALID_GUEST_STATE)
        return page, context

    def active_asid(self, context: GuestContext) -> int:
        """The ASID whose key is the guest's. Raises PspError(INACTIVE)."""
        if context.asid not in self._active:
            raise PspError(Status.INACTIVE)
        return context.asid

    def create(self, page: buffers.GuestContextPage) -> None:
        """SNP_GCTX_CREATE."""
        entry = entry_of_page(self._bus, self._memory.pages, page.address)
        if page_state(entry) is not PageState.FIRMWARE:
            raise PspError(Status.INVALID_PAGE_STATE)
        if entry.large:
            raise PspError(Status.INVALID_PAGE_SIZE)
        self._bus.rmp_set(page.address, replace(entry, vmsa=True))
        self.pages.create(page.address)

    def decommission(self, page: buffers.GuestContextPage) -> None:
        """SNP_DECOMMISSION, in every state, a damaged one too.

        The page goes back to Firmware state; some descriptions say Reclaim.
        """
        asid = self.pages.found(page.address).asid
        self.before_decommission(page.address)
        self._drop_asid(asid)
        self.pages.erase(page.address)
        self._bus.rmp_set(page.address, RmpEntry(assigned=True, immutable=True))

    def activate(self, activate: buffers.SnpActivate) -> None:
        """SNP_ACTIVATE."""
        self._take_asid(activate.gctx, self.in_state(activate.gctx, SnpCommand.ACTIVATE), activate.asid)

    def activate_ex(self, activate: buffers.SnpActivateEx) -> None:
        """SNP_ACTIVATE_EX."""
        context = self.in_state(activate.gctx, SnpCommand.ACTIVATE_EX)
        if activate.length != buffers.SnpActivateEx.SIZE:
            raise PspError(Status.INVALID_LENGTH)
        complexes = self._permits.named(self._memory, activate.apic_ids, activate.count)
        if not (context.asid in self._active and self._permits.may_add(context.asid, activate.asid)):
            self._take_asid(activate.gctx, context, activate.asid)
        self._permits.add(activate.asid, complexes)

    def _take_asid(self, gctx: int, context: GuestContext, asid: int) -> None:
        if asid not in self._ranges.snp:
            raise PspError(Status.INVALID_ASID)
        if asid in self._flush.owned:
            raise PspError(Status.ASID_OWNED)
        if context.asid:
            raise PspError(Status.ACTIVE)
        self._flush.check_usable(asid)
        if self._bus.rmp_pages_of_asid(asid):
            raise PspError(Status.INVALID_CONFIG)
        self._flush.own(asid)
        self._active.add(asid)
        self._bus.install_key(asid, context.memory_key[: self._bus.memory_key_bytes])
        self.pages.write(gctx, replace(context, asid=asid))

    def status(self, asked: buffers.SnpGuestStatus) -> None:
        """SNP_GUEST_STATUS."""
        context = self.in_state(asked.gctx, SnpCommand.GUEST_STATUS)
        self._memory.check_writable(asked.address, buffers.SnpGuestStatusPage.SIZE)
        page = buffers.SnpGuestStatusPage(context.policy, context.asid, context.state)
        self._memory.write(asked.address, page.pack())

    def destroy_all(self) -> None:
        """What SNP_SHUTDOWN leaves: no contexts, no keys, and pages that can be taken back."""
        for asid in sorted(self._active):
            self._drop_asid(asid)
        for spa in list(self.pages.spas):
            self.pages.erase(spa)
            self._bus.rmp_set(spa, RmpEntry(assigned=True))

    def _drop_asid(self, asid: int) -> None:
        if asid in self._active:
            self._active.remove(asid)
            self._bus.remove_key(asid)
            self._flush.disown(asid)
            self._permits.drop(asid)
