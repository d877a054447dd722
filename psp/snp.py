"""The firmware's SNP interface: platform, guest contexts, launch and page reclaim (SEV-SNP firmware ABI, chapter 8).

A guest's context is kept by the SPA of its Context page; its contents are not
yet laid out in that page.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import IntEnum

from psp import command_buffers as buffers
from psp.alias_check import AliasCheck
from psp.asid_flush import AsidFlush
from psp.asid_ranges import AsidRanges
from psp.byte_layout import ByteLayout
from psp.commands import SnpCommand, SnpPlatformState
from psp.host_memory import HostMemory
from psp.id_block import NO_IDENTITY, IdAuth, IdBlock, Identity, checked_identity
from psp.launch_digest import LaunchDigest, PageType
from psp.launch_pages import LAUNCH_PAGES
from psp.page_state import PageState, page_state
from psp.page_unsmash import unsmashed
from psp.policy import PlatformFacts, check_snp_policy
from psp.snp_debug import debug_decrypt, debug_encrypt
from psp.snp_init import check_cores, checked_iommu_buffers, checked_rmp
from psp.status import PspError, Status
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES, RmpEntry, SystemBus

AES_256_XTS_KEY_BYTES = 64
VMPCK_BYTES = 32
VMPCKS = 4
REPORT_ID_BYTES = 32


class SnpGuestState(IntEnum):
    """SNP_GUEST_STATUS.STATE."""

    INIT = 0
    LAUNCH = 1
    RUNNING = 2


_G = SnpGuestState
GUEST_STATES = {
    SnpCommand.LAUNCH_START: frozenset({_G.INIT}),
    SnpCommand.LAUNCH_UPDATE: frozenset({_G.LAUNCH}),
    SnpCommand.LAUNCH_FINISH: frozenset({_G.LAUNCH}),
    SnpCommand.ACTIVATE: frozenset({_G.LAUNCH, _G.RUNNING}),
    SnpCommand.DECOMMISSION: frozenset(_G),
    SnpCommand.GUEST_STATUS: frozenset(_G),
    SnpCommand.DBG_DECRYPT: frozenset({_G.RUNNING}),
    SnpCommand.DBG_ENCRYPT: frozenset({_G.RUNNING}),
}
"""Guest states in which a command may come (SEV-SNP firmware ABI, section 4.2)."""


@dataclass(slots=True)
class SnpGuest:
    """One guest's context."""

    state: SnpGuestState = SnpGuestState.INIT
    policy: int = 0
    asid: int = 0
    key: bytes = field(default=b"", repr=False)
    vmpcks: tuple[bytes, ...] = field(default=(), repr=False)
    report_id: bytes = b""
    gosvw: bytes = bytes(16)
    host_data: bytes = bytes(32)
    identity: Identity = NO_IDENTITY
    digest: LaunchDigest = field(default_factory=LaunchDigest)


class SnpFirmware:
    """State of the SNP interface. Handlers get the parsed buffer."""

    def __init__(
        self,
        bus: SystemBus,
        memory: HostMemory,
        flush: AsidFlush,
        ranges: AsidRanges,
        random: Callable[[str, int], bytes],
        api: tuple[int, int, int],
        legacy_is_up: Callable[[], bool],
    ) -> None:
        self.state = SnpPlatformState.UNINIT
        self.guests: dict[int, SnpGuest] = {}
        self.alias_check = AliasCheck.NOT_DONE
        self._bus = bus
        self._memory = memory
        self._random = random
        self._api = api
        self._legacy_is_up = legacy_is_up
        self._flush = flush
        self._ranges = ranges
        self.wants_fabric_locked = False
        """Firmware of after AMD-SB-3034."""
        self._rmp_initialised = False
        self.handlers: dict[int, Callable[..., ByteLayout | None]] = {
            # INIT, of before ABI 1.52, has no buffer and always initialises the RMP.
            SnpCommand.INIT: lambda _: self._init_ex(buffers.SnpInitEx(flags=buffers.SNP_INIT_RMP)),
            SnpCommand.INIT_EX: self._init_ex,
            SnpCommand.SHUTDOWN_EX: self._shutdown_ex,
            SnpCommand.PLATFORM_STATUS: self._platform_status,
            SnpCommand.DF_FLUSH: lambda _: self._flush.flush(),
            SnpCommand.GCTX_CREATE: self._gctx_create,
            SnpCommand.DECOMMISSION: self._decommission,
            SnpCommand.ACTIVATE: self._activate,
            SnpCommand.GUEST_STATUS: self._guest_status,
            SnpCommand.LAUNCH_START: self._launch_start,
            SnpCommand.LAUNCH_UPDATE: self._launch_update,
            SnpCommand.LAUNCH_FINISH: self._launch_finish,
            SnpCommand.DBG_DECRYPT: self._dbg_decrypt,
            SnpCommand.DBG_ENCRYPT: self._dbg_encrypt,
            SnpCommand.PAGE_RECLAIM: self._page_reclaim,
            SnpCommand.PAGE_UNSMASH: self._page_unsmash,
            SnpCommand.FEATURE_INFO: self._feature_info,
        }

    # Platform.

    def _init_ex(self, init: buffers.SnpInitEx) -> None:
        if self._legacy_is_up():
            raise PspError(Status.INVALID_PLATFORM_STATE)
        if self.alias_check is AliasCheck.FOUND:
            raise PspError(Status.INVALID_CONFIG)
        known = buffers.SNP_INIT_RMP | buffers.SNP_INIT_HIDE_CIPHERTEXT | buffers.SNP_INIT_OPTIONS
        hides = bool(init.flags & buffers.SNP_INIT_HIDE_CIPHERTEXT)
        if init.flags & ~known:
            raise PspError(Status.INVALID_PARAM)
        if init.flags & buffers.SNP_INIT_OPTIONS or (hides and not self._bus.can_hide_ciphertext):
            raise PspError(Status.UNSUPPORTED)
        if hides and not self._ranges.can_split_at(init.max_snp_asid):
            raise PspError(Status.INVALID_PARAM)
        if self.wants_fabric_locked and not self._bus.fabric_locked():
            # The status is the laboratory's choice: AMD says only that SNP does not start.
            raise PspError(Status.INVALID_CONFIG)
        check_cores(self._bus)
        rmp = checked_rmp(self._bus)
        fresh = bool(init.flags & buffers.SNP_INIT_RMP)
        if not fresh and not self._rmp_initialised:
            raise PspError(Status.RMP_INIT_REQUIRED)
        buffers_of_iommus = checked_iommu_buffers(self._bus, fresh=fresh)
        if fresh:
            self._bus.rmp_initialise()
            self._rmp_initialised = True
        self._bus.iommus_enforce()
        for buffer in buffers_of_iommus:
            self._bus.rmp_set_pages(buffer.base, buffer.length_bytes, RmpEntry(assigned=True, immutable=True))
        self._memory.pages.rmp = rmp
        self._memory.pages.iommu_buffers = tuple((one.base, one.length_bytes) for one in buffers_of_iommus)
        self._hide_ciphertext(init.max_snp_asid if hides else 0)
        self.state = SnpPlatformState.INIT
        self._memory.pages.snp_initialised = True
        self._flush.require_all()

    def _hide_ciphertext(self, max_snp_asid: int) -> None:
        self._ranges.max_snp_asid = max_snp_asid
        self._bus.hide_ciphertext(max_snp_asid)

    def _shutdown_ex(self, shutdown: buffers.SnpShutdownEx) -> None:
        if shutdown.length != buffers.SnpShutdownEx.SIZE:
            raise PspError(Status.INVALID_LENGTH)
        if shutdown.flags & ~(buffers.SNP_SHUTDOWN_IOMMU | buffers.SNP_SHUTDOWN_X86):
            raise PspError(Status.INVALID_PARAM)
        if shutdown.flags & buffers.SNP_SHUTDOWN_X86:
            # FEATURE_INFO does not offer it.
            raise PspError(Status.UNSUPPORTED)
        if self._flush.dirty:
            raise PspError(Status.DFFLUSH_REQUIRED)
        for spa, guest in self.guests.items():
            self._drop_asid(guest)
            self._bus.rmp_set(spa, RmpEntry(assigned=True))
        self.guests.clear()
        if shutdown.flags & buffers.SNP_SHUTDOWN_IOMMU:
            self._bus.iommus_release()
            for spa, length in self._memory.pages.iommu_buffers:
                self._bus.rmp_set_pages(spa, length, RmpEntry(assigned=True))
            self._memory.pages.iommu_buffers = ()
        self._hide_ciphertext(0)
        self.state = SnpPlatformState.UNINIT
        self._memory.pages.snp_initialised = False

    def _platform_status(self, where: buffers.SnpAddress) -> None:
        self._memory.check_writable(where.address, buffers.SnpPlatformStatus.SIZE)
        major, minor, build = self._api
        flags = self._rmp_initialised | (self.alias_check is AliasCheck.COMPLETE) << 1
        policy_flags = buffers.SNP_STATUS_FEATURE_INFO
        if self._bus.can_hide_ciphertext:
            policy_flags |= buffers.SNP_STATUS_CAN_HIDE_CIPHERTEXT
        if self._ranges.max_snp_asid:
            policy_flags |= buffers.SNP_STATUS_HIDES_CIPHERTEXT
        status = buffers.SnpPlatformStatus(
            api_major=major, api_minor=minor, state=self.state, flags=flags,
            build=build, policy_flags=policy_flags, guest_count=len(self.guests),
        )  # fmt: skip
        self._memory.write(where.address, status.pack())

    def _feature_info(self, asked: buffers.SnpFeatureInfo) -> None:
        if asked.length != buffers.SnpFeatureInfo.SIZE:
            raise PspError(Status.INVALID_LENGTH)
        if asked.ecx_in:
            raise PspError(Status.INVALID_PARAM)
        self._memory.check_writable(asked.address, 16)
        # Index 0 is the only one.
        ecx = buffers.SNP_FEATURE_HIDING if self._bus.can_hide_ciphertext else 0
        self._memory.write(asked.address, bytes(8) + ecx.to_bytes(4, "little") + bytes(4))

    # Contexts.

    def _guest(self, gctx: int, command: SnpCommand) -> SnpGuest:
        guest = self.guests.get(gctx)
        if guest is None:
            raise PspError(Status.INVALID_GUEST)
        if guest.state not in GUEST_STATES[command]:
            raise PspError(Status.INVALID_GUEST_STATE)
        return guest

    def _gctx_create(self, page: buffers.GuestContextPage) -> None:
        entry = self._page(page.address)
        if page_state(entry) is not PageState.FIRMWARE:
            raise PspError(Status.INVALID_PAGE_STATE)
        if entry.large:
            raise PspError(Status.INVALID_PAGE_SIZE)
        self._bus.rmp_set(page.address, replace(entry, vmsa=True))
        self.guests[page.address] = SnpGuest()

    def _decommission(self, page: buffers.GuestContextPage) -> None:
        """The context page goes back to Firmware state; some descriptions say Reclaim."""
        self._drop_asid(self._guest(page.address, SnpCommand.DECOMMISSION))
        del self.guests[page.address]
        self._bus.write(page.address, bytes(PAGE_BYTES))
        self._bus.rmp_set(page.address, RmpEntry(assigned=True, immutable=True))

    def _drop_asid(self, guest: SnpGuest) -> None:
        if guest.asid:
            self._bus.remove_key(guest.asid)
            self._flush.disown(guest.asid)
            guest.asid = 0

    def _activate(self, activate: buffers.SnpActivate) -> None:
        guest = self._guest(activate.gctx, SnpCommand.ACTIVATE)
        if activate.asid not in self._ranges.snp:
            raise PspError(Status.INVALID_ASID)
        if activate.asid in self._flush.owned:
            raise PspError(Status.ASID_OWNED)
        if guest.asid:
            raise PspError(Status.ACTIVE)
        self._flush.check_usable(activate.asid)
        if self._bus.rmp_pages_of_asid(activate.asid):
            raise PspError(Status.INVALID_CONFIG)
        self._flush.own(activate.asid)
        guest.asid = activate.asid
        self._bus.install_key(guest.asid, guest.key)

    def _guest_status(self, asked: buffers.SnpGuestStatus) -> None:
        guest = self._guest(asked.gctx, SnpCommand.GUEST_STATUS)
        self._memory.check_writable(asked.address, buffers.SnpGuestStatusPage.SIZE)
        status = buffers.SnpGuestStatusPage(guest.policy, guest.asid, guest.state)
        self._memory.write(asked.address, status.pack())

    # Launch.

    def _launch_start(self, start: buffers.SnpLaunchStart) -> None:
        guest = self._guest(start.gctx, SnpCommand.LAUNCH_START)
        if start.ma_gctx or start.flags or start.desired_tsc_khz:
            raise PspError(Status.UNSUPPORTED)
        smt, hidden = self._bus.core_configuration().smt_enabled, bool(self._ranges.max_snp_asid)
        aes_256_xts = self._bus.memory_key_bytes == AES_256_XTS_KEY_BYTES
        check_snp_policy(start.policy, PlatformFacts(self._api[:2], smt, hidden, aes_256_xts))
        guest.policy = start.policy
        guest.gosvw = start.gosvw
        guest.key = self._random("memory key", self._bus.memory_key_bytes)
        guest.vmpcks = tuple(self._random("VMPCK", VMPCK_BYTES) for _ in range(VMPCKS))
        guest.report_id = self._random("report id", REPORT_ID_BYTES)
        guest.state = SnpGuestState.LAUNCH

    def _launch_update(self, update: buffers.SnpLaunchUpdate) -> None:
        guest = self._guest(update.gctx, SnpCommand.LAUNCH_UPDATE)
        if not guest.asid:
            raise PspError(Status.INACTIVE)
        entry = self._page(update.address)
        if page_state(entry) is not PageState.PRE_GUEST:
            raise PspError(Status.INVALID_PAGE_STATE)
        if entry.asid != guest.asid:
            raise PspError(Status.INVALID_PAGE_OWNER)
        if entry.large or update.large:
            # Sizes must agree; whether real firmware takes 2 MiB, and how it measures them, is not known.
            raise PspError(Status.INVALID_PAGE_SIZE)
        kind = LAUNCH_PAGES.get(update.page_type)
        if kind is None or update.imi:
            # No guest is launched with IMI_EN, so none has pages of an initial migration image.
            raise PspError(Status.INVALID_PARAM)
        page = self._bus.read(update.address, PAGE_BYTES)
        contents = kind.contents(guest, page)
        permissions = (update.permissions >> 8 & 0xFF, update.permissions >> 16 & 0xFF, update.permissions >> 24)
        guest.digest.update(kind.page_type, entry.gpa, contents, vmpl_permissions=permissions)
        if contents is page:
            self._bus.encrypt_in_place(update.address, PAGE_BYTES, guest.asid)
        else:
            self._bus.write_guest(update.address, contents, guest.asid)
        self._bus.rmp_set(
            update.address,
            replace(
                entry,
                immutable=False,
                validated=True,
                vmsa=kind.page_type is PageType.VMSA,
                vmpl_permissions=(entry.vmpl_permissions[0], *permissions),
            ),
        )

    def _launch_finish(self, finish: buffers.SnpLaunchFinish) -> None:
        guest = self._guest(finish.gctx, SnpCommand.LAUNCH_FINISH)
        with_block, with_author = (finish.flags & flag for flag in _FINISH_FLAGS)
        if finish.flags & buffers.SNP_FINISH_NO_VCEK:
            raise PspError(Status.UNSUPPORTED)
        if finish.flags & ~sum(_FINISH_FLAGS) or (with_author and not with_block):
            raise PspError(Status.INVALID_PARAM)
        if with_block:
            block = IdBlock.parse(self._memory.read(finish.id_block_address, IdBlock.SIZE))
            auth = IdAuth.parse(self._memory.read(finish.id_auth_address, IdAuth.SIZE))
            guest.identity = checked_identity(
                block, auth, guest.digest.value, guest.policy, with_author=bool(with_author)
            )
        guest.host_data = finish.host_data
        guest.state = SnpGuestState.RUNNING

    def _dbg_decrypt(self, debug: buffers.SnpDebug) -> None:
        guest = self._guest(debug.gctx, SnpCommand.DBG_DECRYPT)
        debug_decrypt(self._bus, self._memory, guest.policy, guest.asid, debug)

    def _dbg_encrypt(self, debug: buffers.SnpDebug) -> None:
        guest = self._guest(debug.gctx, SnpCommand.DBG_ENCRYPT)
        debug_encrypt(self._bus, self._memory, guest.policy, guest.asid, debug)

    # Pages.

    def _page(self, spa: int, length: int = PAGE_BYTES) -> RmpEntry:
        if spa % PAGE_BYTES or not self._bus.rmp_covers(spa):
            raise PspError(Status.INVALID_ADDRESS)
        if self._memory.pages.in_use(spa, length):
            raise PspError(Status.INVALID_PAGE_STATE)
        return self._bus.rmp_entry(spa)

    def _page_reclaim(self, page: buffers.SnpPageReclaim) -> None:
        large = bool(page.address & 1)
        spa, length = page.address & ~1, LARGE_PAGE_BYTES if large else PAGE_BYTES
        if spa % length:
            raise PspError(Status.INVALID_ADDRESS)
        entry = self._page(spa, length)
        if page_state(entry) not in _RECLAIMABLE:
            raise PspError(Status.INVALID_PAGE_STATE)
        if entry.large != large:
            raise PspError(Status.INVALID_PAGE_SIZE)
        self._bus.rmp_set(spa, replace(entry, immutable=False, gpa=entry.gpa if entry.asid else 0))

    def _page_unsmash(self, page: buffers.SnpPageUnsmash) -> None:
        spa = page.address
        # An entry of 2 MiB is covered whole or not at all.
        if spa % LARGE_PAGE_BYTES or not self._bus.rmp_covers(spa + LARGE_PAGE_BYTES - PAGE_BYTES):
            raise PspError(Status.INVALID_ADDRESS)
        self._bus.rmp_set(spa, unsmashed(spa, self._page))


_FINISH_FLAGS = (buffers.SNP_FINISH_ID_BLOCK, buffers.SNP_FINISH_AUTHOR_KEY)
_RECLAIMABLE = frozenset({PageState.FIRMWARE, PageState.METADATA, PageState.PRE_GUEST, PageState.PRE_SWAP})
