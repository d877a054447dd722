"""The firmware's SEV interface: platform and guests (SEV API, chapters 5 and 6)."""

from __future__ import annotations

from collections.abc import Callable

from psp import command_buffers as buffers
from psp.asid_flush import AsidFlush
from psp.asid_ranges import AsidRanges
from psp.byte_layout import ByteLayout
from psp.commands import LegacyCommand, LegacyPlatformState
from psp.core_permits import CorePermits
from psp.host_memory import HostMemory
from psp.installed_firmware import InstalledFirmware
from psp.legacy_debug import LegacyDebug
from psp.legacy_guest import LegacyGuest, guest_in_state
from psp.legacy_keys import LegacyKeys
from psp.legacy_launch import LegacyLaunch
from psp.legacy_migration import LegacyMigration
from psp.legacy_swap import LegacySwap
from psp.nv_storage import NV_BYTES, CorruptNv, NvFile, restore
from psp.platform_keys import PlatformKeys
from psp.policy import LegacyPolicy
from psp.product_line import ProductLine
from psp.status import PspError, Status
from psp.system_bus import LARGE_PAGE_BYTES, SystemBus

TMR_BYTES = 1 << 20
"""The trusted memory region that INIT for SEV-ES wants; it is aligned to its size, under SNP to 2 MiB."""


class LegacyFirmware:
    """State of the SEV interface. Handlers get the parsed buffer and return what goes back into it."""

    def __init__(
        self,
        bus: SystemBus,
        memory: HostMemory,
        flush: AsidFlush,
        ranges: AsidRanges,
        permits: CorePermits,
        random: Callable[[str, int], bytes],
        firmware: InstalledFirmware,
        line: ProductLine,
    ) -> None:
        self.state = LegacyPlatformState.UNINIT
        self.guests: dict[int, LegacyGuest] = {}
        self.keys = PlatformKeys(random, firmware, line)
        self.es_enabled = False
        self._bus = bus
        self._memory = memory
        self._firmware = firmware
        self._flush = flush
        self._ranges = ranges
        self._permits = permits
        self._launch = launch = LegacyLaunch(bus, memory, random, firmware, self.keys, self.guests)
        self.migration = migration = LegacyMigration(bus, memory, random, self.keys, self.guests, launch)
        self._nv = NvFile(memory, self.keys, random)
        keys, debug = LegacyKeys(memory, self.keys, self._nv), LegacyDebug(bus, memory, self.guests)
        swap = LegacySwap(bus, memory, random, self.guests)
        self.handlers: dict[int, Callable[..., ByteLayout | None]] = {
            LegacyCommand.INIT: self._init,
            LegacyCommand.INIT_EX: self._init_ex,
            LegacyCommand.SHUTDOWN: self._shutdown,
            LegacyCommand.PLATFORM_STATUS: self._platform_status,
            LegacyCommand.DF_FLUSH: lambda _: self._flush.flush(),
            LegacyCommand.NOP: lambda _: None,
            LegacyCommand.LAUNCH_START: self._launch_start,
            LegacyCommand.ACTIVATE: self._activate,
            LegacyCommand.ACTIVATE_EX: self._activate_ex,
            LegacyCommand.DEACTIVATE: self._deactivate,
            LegacyCommand.DECOMMISSION: self._decommission,
            LegacyCommand.GUEST_STATUS: self._guest_status,
            LegacyCommand.LAUNCH_UPDATE_DATA: launch.update_data,
            LegacyCommand.LAUNCH_UPDATE_VMSA: launch.update_vmsa,
            LegacyCommand.LAUNCH_MEASURE: launch.measure,
            LegacyCommand.LAUNCH_SECRET: launch.secret,
            LegacyCommand.LAUNCH_FINISH: launch.finish,
            LegacyCommand.ATTESTATION: launch.attestation,
            LegacyCommand.DBG_DECRYPT: debug.decrypt,
            LegacyCommand.DBG_ENCRYPT: debug.encrypt,
            LegacyCommand.COPY: debug.copy,
            LegacyCommand.SWAP_OUT: swap.swap_out,
            LegacyCommand.SWAP_IN: swap.swap_in,
            LegacyCommand.SEND_START: migration.send_start,
            LegacyCommand.SEND_UPDATE_DATA: migration.send_update_data,
            LegacyCommand.SEND_UPDATE_VMSA: migration.send_update_vmsa,
            LegacyCommand.SEND_FINISH: migration.send_finish,
            LegacyCommand.SEND_CANCEL: migration.send_cancel,
            LegacyCommand.RECEIVE_START: self._receive_start,
            LegacyCommand.RECEIVE_UPDATE_DATA: migration.receive_update_data,
            LegacyCommand.RECEIVE_UPDATE_VMSA: migration.receive_update_vmsa,
            LegacyCommand.RECEIVE_FINISH: migration.receive_finish,
            LegacyCommand.PLATFORM_RESET: keys.reset,
            LegacyCommand.PEK_GEN: keys.pek_gen,
            LegacyCommand.PEK_CSR: keys.pek_csr,
            LegacyCommand.PEK_CERT_IMPORT: keys.pek_cert_import,
            LegacyCommand.PDH_GEN: keys.pdh_gen,
            LegacyCommand.PDH_CERT_EXPORT: keys.pdh_cert_export,
            LegacyCommand.GET_ID: keys.get_id,
        }

    def _init(self, init: buffers.Init) -> None:
        self._check_tmr(init)
        self._nv.address = None
        self._begin(init)

    def _init_ex(self, init: buffers.InitEx) -> None:
        if init.length != buffers.InitEx.SIZE or init.nv_length != NV_BYTES:
            raise PspError(Status.INVALID_LENGTH)
        self._check_tmr(init)
        self._memory.check_writable(init.nv_address, NV_BYTES)
        if init.flags & buffers.INIT_ES and _meet(init.nv_address, NV_BYTES, init.tmr_address, TMR_BYTES):
            raise PspError(Status.INVALID_ADDRESS)
        file = self._memory.read(init.nv_address, NV_BYTES)
        self._nv.address = init.nv_address
        try:
            restore(self.keys, file)
        except CorruptNv:
            # Once: the firmware starts anew, and the host is told so and comes again.
            self.keys.forget()
            self.keys.complete()
            self._nv.save()
            raise PspError(Status.SECURE_DATA_INVALID) from None
        self._begin(init)
        self._nv.save()

    def _begin(self, init: buffers.Init | buffers.InitEx) -> None:
        es_enabled = bool(init.flags & buffers.INIT_ES)
        if es_enabled:
            self._memory.pages.trusted_region = ((init.tmr_address, TMR_BYTES),)
            self._bus.take_trusted_region(init.tmr_address, TMR_BYTES)
        self.es_enabled = es_enabled
        self.keys.complete()
        self.state = LegacyPlatformState.INIT
        self._flush.require_all()

    def _check_tmr(self, init: buffers.Init | buffers.InitEx) -> None:
        if not init.flags & buffers.INIT_ES:
            return
        if init.tmr_length < TMR_BYTES:
            raise PspError(Status.INVALID_LENGTH)
        alignment = LARGE_PAGE_BYTES if self._memory.pages.snp_initialised else TMR_BYTES
        if not init.tmr_address or init.tmr_address % alignment:
            raise PspError(Status.INVALID_ADDRESS)
        self._memory.check_writable(init.tmr_address, TMR_BYTES)

    def _shutdown(self, _: None) -> None:
        for guest in self.guests.values():
            self._drop_asid(guest)
        self.guests.clear()
        self.es_enabled = False
        self._memory.pages.trusted_region = ()
        self._bus.give_back_trusted_region()
        self.state = LegacyPlatformState.UNINIT

    def _platform_status(self, _: buffers.PlatformStatus) -> buffers.PlatformStatus:
        major, minor, build = self._firmware.current.version
        return buffers.PlatformStatus(
            api_major=major, api_minor=minor, state=self.state, owner=self.keys.externally_owned,
            config=build << 24 | self.es_enabled, guest_count=len(self.guests),
        )  # fmt: skip

    def _launch_start(self, start: buffers.LaunchStart) -> buffers.LaunchStart:
        started = self._launch.start(start, es_enabled=self.es_enabled)
        self.state = LegacyPlatformState.WORKING
        return started

    def _receive_start(self, start: buffers.LaunchStart) -> buffers.LaunchStart:
        started = self.migration.receive_start(start, es_enabled=self.es_enabled)
        self.state = LegacyPlatformState.WORKING
        return started

    def _guest(self, handle: int, command: LegacyCommand) -> LegacyGuest:
        return guest_in_state(self.guests, handle, command)

    def _activate(self, activate: buffers.Activate) -> None:
        self._take_asid(self._guest(activate.handle, LegacyCommand.ACTIVATE), activate.asid)

    def _activate_ex(self, activate: buffers.ActivateEx) -> None:
        guest = self._guest(activate.handle, LegacyCommand.ACTIVATE_EX)
        if activate.length != buffers.ActivateEx.SIZE:
            raise PspError(Status.INVALID_LENGTH)
        complexes = self._permits.named(self._memory, activate.apic_ids, activate.count)
        if not self._permits.may_add(guest.asid, activate.asid):
            self._take_asid(guest, activate.asid, everywhere=False)
        self._permits.add(guest.asid, complexes)

    def _take_asid(self, guest: LegacyGuest, asid: int, *, everywhere: bool = True) -> None:
        if guest.asid:
            raise PspError(Status.ACTIVE)
        if asid not in (self._ranges.es if guest.policy & LegacyPolicy.ES else self._ranges.sev):
            raise PspError(Status.INVALID_ASID)
        sharing = self._sharing(asid)
        if any(one.key != guest.key for one in sharing) or (sharing and everywhere == self._permits.holds(asid)):
            raise PspError(Status.ASID_OWNED)
        if not sharing:
            self._flush.check_usable(asid)
            self._flush.own(asid)
            self._bus.install_key(asid, guest.key)
        guest.asid = asid

    def _deactivate(self, named: buffers.Handle) -> None:
        self._drop_asid(self._guest(named.handle, LegacyCommand.DEACTIVATE))

    def _sharing(self, asid: int) -> list[LegacyGuest]:
        """Guests that have an ASID: one, or several with one key."""
        return [one for one in self.guests.values() if one.asid == asid]

    def _drop_asid(self, guest: LegacyGuest) -> None:
        asid, guest.asid = guest.asid, 0
        if asid and not self._sharing(asid):
            self._bus.remove_key(asid)
            self._flush.disown(asid)
            self._permits.drop(asid)

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


def _meet(first: int, length: int, other: int, other_length: int) -> bool:
    """Whether two ranges have a byte in common."""
    return first < other + other_length and other < first + length
