"""The firmware's SEV interface: platform and guests (SEV API, chapters 5 and 6)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import IntEnum

from psp import command_buffers as buffers
from psp.asid_flush import AsidFlush
from psp.asid_ranges import AsidRanges
from psp.byte_layout import ByteLayout
from psp.commands import LegacyCommand, LegacyPlatformState
from psp.host_memory import HostMemory
from psp.launch_digest import LegacyLaunchDigest, launch_measure
from psp.policy import LegacyPolicy, PlatformFacts, check_legacy_policy
from psp.status import PspError, Status
from psp.system_bus import LARGE_PAGE_BYTES, SystemBus

TIK_BYTES = 16
NONCE_BYTES = 16
SAVE_AREA_BYTES = 4096
TMR_BYTES = 1 << 20
"""Least length of the trusted memory region, and its alignment; 2 MiB once SNP is initialised."""
INIT_ES = 1 << 0
"""INIT flag: SEV-ES guests, for which firmware takes the trusted memory region."""
NOT_ES = Status.POLICY_FAILURE
"""What LAUNCH_UPDATE_VMSA of a guest without the ES bit gets: the sheet names no status for it, the bit is policy."""
_BLOCK_BYTES = 16
_AT_ONCE_BYTES = LARGE_PAGE_BYTES


class LegacyGuestState(IntEnum):
    """GUEST_STATUS.STATE."""

    UNINIT = 0
    LUPDATE = 1
    LSECRET = 2
    RUNNING = 3
    SUPDATE = 4
    RUPDATE = 5
    SENT = 6


_G = LegacyGuestState
_ALIVE = frozenset(_G) - {_G.UNINIT}
GUEST_STATES = {
    LegacyCommand.ACTIVATE: _ALIVE,
    LegacyCommand.DEACTIVATE: _ALIVE,
    LegacyCommand.DECOMMISSION: _ALIVE,
    LegacyCommand.GUEST_STATUS: _ALIVE,
    LegacyCommand.LAUNCH_UPDATE_DATA: frozenset({_G.LUPDATE}),
    LegacyCommand.LAUNCH_UPDATE_VMSA: frozenset({_G.LUPDATE}),
    LegacyCommand.LAUNCH_MEASURE: frozenset({_G.LUPDATE}),
    LegacyCommand.LAUNCH_FINISH: frozenset({_G.LSECRET}),
}
"""Guest states in which a command may come (SEV API, table of section 6)."""


@dataclass(slots=True)
class LegacyGuest:
    """One guest's context inside the firmware."""

    handle: int
    policy: int
    key: bytes = field(repr=False)
    tik: bytes = field(repr=False)
    state: LegacyGuestState = LegacyGuestState.LUPDATE
    asid: int = 0
    digest: LegacyLaunchDigest = field(default_factory=LegacyLaunchDigest)


class LegacyFirmware:
    """State of the SEV interface. Handlers get the parsed buffer and return what goes back into it."""

    def __init__(
        self,
        bus: SystemBus,
        memory: HostMemory,
        flush: AsidFlush,
        ranges: AsidRanges,
        random: Callable[[str, int], bytes],
        api: tuple[int, int, int],
    ) -> None:
        self.state = LegacyPlatformState.UNINIT
        self.guests: dict[int, LegacyGuest] = {}
        self._bus = bus
        self._memory = memory
        self._random = random
        self._api = api
        self._last_handle = 0
        self._flush = flush
        self._ranges = ranges
        self._es = False
        self.handlers: dict[int, Callable[..., ByteLayout | None]] = {
            LegacyCommand.INIT: self._init,
            LegacyCommand.SHUTDOWN: self._shutdown,
            LegacyCommand.PLATFORM_STATUS: self._platform_status,
            LegacyCommand.DF_FLUSH: lambda _: self._flush.flush(),
            LegacyCommand.NOP: lambda _: None,
            LegacyCommand.LAUNCH_START: self._launch_start,
            LegacyCommand.ACTIVATE: self._activate,
            LegacyCommand.DEACTIVATE: self._deactivate,
            LegacyCommand.DECOMMISSION: self._decommission,
            LegacyCommand.GUEST_STATUS: self._guest_status,
            LegacyCommand.LAUNCH_UPDATE_DATA: self._launch_update_data,
            LegacyCommand.LAUNCH_UPDATE_VMSA: self._launch_update_vmsa,
            LegacyCommand.LAUNCH_MEASURE: self._launch_measure,
            LegacyCommand.LAUNCH_FINISH: self._launch_finish,
        }

    def _init(self, init: buffers.Init) -> None:
        es = bool(init.flags & INIT_ES)
        if es:
            self._check_trusted_region(init)
        self._es = es
        self.state = LegacyPlatformState.INIT
        self._flush.require_all()

    def _check_trusted_region(self, init: buffers.Init) -> None:
        """The region that INIT names: memory that the host gave up whole."""
        unit = LARGE_PAGE_BYTES if self._memory.snp_initialised else TMR_BYTES
        if init.tmr_length < unit:
            raise PspError(Status.INVALID_LENGTH)
        if not init.tmr_address or init.tmr_address % unit:
            raise PspError(Status.INVALID_ADDRESS)
        self._memory.check_writable(init.tmr_address, init.tmr_length)

    def _shutdown(self, _: None) -> None:
        for guest in self.guests.values():
            self._drop_asid(guest)
        self.guests.clear()
        self._es = False
        self.state = LegacyPlatformState.UNINIT

    def _platform_status(self, _: buffers.PlatformStatus) -> buffers.PlatformStatus:
        major, minor, build = self._api
        return buffers.PlatformStatus(
            api_major=major,
            api_minor=minor,
            state=self.state,
            config=build << 24 | self._es,
            guest_count=len(self.guests),
        )

    def _launch_start(self, start: buffers.LaunchStart) -> buffers.LaunchStart:
        if start.dh_certificate_address or start.session_address:
            raise PspError(Status.UNSUPPORTED)
        if start.handle:
            # Sharing another guest's key (NOKS clear) is not built.
            raise PspError(Status.UNSUPPORTED if start.handle in self.guests else Status.INVALID_GUEST)
        facts = PlatformFacts(self._api[:2], self._bus.core_configuration().smt_enabled, es=self._es)
        check_legacy_policy(start.policy, facts)
        if len(self.guests) >= self._bus.max_asid:
            raise PspError(Status.RESOURCE_LIMIT)
        self._last_handle += 1
        handle = self._last_handle
        key, tik = self._random("memory key", self._bus.memory_key_bytes), self._random("TIK", TIK_BYTES)
        self.guests[handle] = LegacyGuest(handle, start.policy, key, tik)
        self.state = LegacyPlatformState.WORKING
        return replace(start, handle=handle)

    def _guest(self, handle: int, command: LegacyCommand) -> LegacyGuest:
        guest = self.guests.get(handle)
        if guest is None:
            raise PspError(Status.INVALID_GUEST)
        if guest.state not in GUEST_STATES[command]:
            raise PspError(Status.INVALID_GUEST_STATE)
        return guest

    def _activate(self, activate: buffers.Activate) -> None:
        guest = self._guest(activate.handle, LegacyCommand.ACTIVATE)
        if guest.asid:
            raise PspError(Status.ACTIVE)
        if activate.asid not in (self._ranges.es if guest.policy & LegacyPolicy.ES else self._ranges.sev):
            raise PspError(Status.INVALID_ASID)
        self._flush.check_usable(activate.asid)
        self._flush.own(activate.asid)
        guest.asid = activate.asid
        self._bus.install_key(guest.asid, guest.key)

    def _deactivate(self, named: buffers.Handle) -> None:
        self._drop_asid(self._guest(named.handle, LegacyCommand.DEACTIVATE))

    def _drop_asid(self, guest: LegacyGuest) -> None:
        if guest.asid:
            self._bus.remove_key(guest.asid)
            self._flush.disown(guest.asid)
            guest.asid = 0

    def _decommission(self, named: buffers.Handle) -> None:
        guest = self._guest(named.handle, LegacyCommand.DECOMMISSION)
        if guest.asid:
            raise PspError(Status.ACTIVE)
        del self.guests[guest.handle]
        if not self.guests:
            self.state = LegacyPlatformState.INIT

    def _guest_status(self, named: buffers.GuestStatus) -> buffers.GuestStatus:
        guest = self._guest(named.handle, LegacyCommand.GUEST_STATUS)
        return buffers.GuestStatus(guest.handle, guest.policy, guest.asid, guest.state)

    def _launch_update_data(self, update: buffers.LaunchUpdateData) -> None:
        guest = self._guest(update.handle, LegacyCommand.LAUNCH_UPDATE_DATA)
        if update.length == 0 or update.length % _BLOCK_BYTES:
            raise PspError(Status.INVALID_LENGTH)
        if update.address % _BLOCK_BYTES:
            raise PspError(Status.INVALID_ADDRESS)
        if not guest.asid:
            raise PspError(Status.INACTIVE)
        self._memory.check_writable(update.address, update.length)
        end = update.address + update.length
        for spa in range(update.address, end, _AT_ONCE_BYTES):
            # The host names up to 4 GiB; firmware never holds more than a piece of it.
            data = self._bus.read(spa, min(_AT_ONCE_BYTES, end - spa))
            guest.digest.update(data)
            self._bus.encrypt_in_place(spa, len(data), guest.asid)

    def _launch_update_vmsa(self, update: buffers.LaunchUpdateData) -> None:
        guest = self._guest(update.handle, LegacyCommand.LAUNCH_UPDATE_VMSA)
        if not guest.policy & LegacyPolicy.ES:
            raise PspError(NOT_ES)
        if update.length != SAVE_AREA_BYTES:
            raise PspError(Status.INVALID_LENGTH)
        if update.address % SAVE_AREA_BYTES:
            raise PspError(Status.INVALID_ADDRESS)
        if not guest.asid:
            raise PspError(Status.INACTIVE)
        self._memory.check_writable(update.address, SAVE_AREA_BYTES)
        guest.digest.update(self._bus.read(update.address, SAVE_AREA_BYTES))
        self._bus.encrypt_in_place(update.address, SAVE_AREA_BYTES, guest.asid)
        self._bus.seal_save_area(update.address, guest.asid)

    def _launch_measure(self, measure: buffers.LaunchMeasure) -> buffers.LaunchMeasure:
        guest = self._guest(measure.handle, LegacyCommand.LAUNCH_MEASURE)
        needed = replace(measure, length=buffers.MEASUREMENT_BYTES)
        if measure.length < buffers.MEASUREMENT_BYTES:
            raise ShortBuffer(needed)
        self._memory.check_writable(measure.address, buffers.MEASUREMENT_BYTES)
        nonce = self._random("measurement nonce", NONCE_BYTES)
        mac = launch_measure(guest.tik, self._api, guest.policy, guest.digest.value, nonce)
        self._memory.write(measure.address, mac + nonce)
        guest.state = LegacyGuestState.LSECRET
        return needed

    def _launch_finish(self, named: buffers.Handle) -> None:
        self._guest(named.handle, LegacyCommand.LAUNCH_FINISH).state = LegacyGuestState.RUNNING


class ShortBuffer(PspError):
    """INVALID_LENGTH with the needed length returned in the command buffer."""

    def __init__(self, answer: ByteLayout) -> None:
        super().__init__(Status.INVALID_LENGTH)
        self.answer = answer
