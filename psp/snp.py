"""The firmware's SNP interface: the platform, and which command is whose (SEV-SNP firmware ABI, chapter 8)."""

from __future__ import annotations

from collections.abc import Callable

from psp import command_buffers as buffers
from psp.alias_check import AliasCheck
from psp.asid_flush import AsidFlush
from psp.asid_ranges import AsidRanges
from psp.attestation_report import (
    PLATFORM_ALIAS_CHECK_COMPLETE,
    PLATFORM_CIPHERTEXT_HIDING,
    PLATFORM_RAPL_DISABLED,
    PLATFORM_TIO,
)
from psp.byte_layout import ByteLayout
from psp.chip_identity import VLEK_WRAPPING, ChipIdentity
from psp.commands import SnpCommand, SnpPlatformState
from psp.core_permits import CorePermits
from psp.endorsement import Endorsement
from psp.firmware_pages import Ranges
from psp.fixed_ranges import fixed_ranges
from psp.guest_requests import GuestRequests
from psp.host_memory import HostMemory
from psp.installed_firmware import InstalledFirmware
from psp.key_messages import KeyMessages
from psp.launch_runs import LaunchRuns
from psp.message_table import message_rows
from psp.migration_messages import MigrationMessages
from psp.mitigations import MitigationCommand
from psp.page_swap import PageSwap
from psp.report_messages import ReportMessages
from psp.snp_configuration import SnpConfiguration
from psp.snp_debug import SnpDebugging
from psp.snp_guests import SnpGuests
from psp.snp_init import check_cores, checked_iommu_buffers, checked_rmp
from psp.snp_launch import SnpLaunch
from psp.snp_pages import SnpPages
from psp.snp_policy import SnpPolicyCheck
from psp.status import PspError, Status
from psp.system_bus import RmpEntry, SystemBus
from psp.tsm.security_manager import TeeSecurityManager


class SnpFirmware:
    """State of the SNP interface. Handlers get the parsed buffer."""

    def __init__(
        self,
        bus: SystemBus,
        memory: HostMemory,
        flush: AsidFlush,
        ranges: AsidRanges,
        permits: CorePermits,
        random: Callable[[str, int], bytes],
        firmware: InstalledFirmware,
        legacy_is_up: Callable[[], bool],
        chip: Callable[[], ChipIdentity],
    ) -> None:
        self.state = SnpPlatformState.UNINIT
        self.alias_check = AliasCheck.NOT_DONE
        self._bus = bus
        self._memory = memory
        self._firmware = firmware
        self._legacy_is_up = legacy_is_up
        self._flush = flush
        self._ranges = ranges
        self.wants_fabric_locked = False
        """Firmware of after AMD-SB-3034."""
        self._rmp_initialised = False
        self._fixed: Ranges = ()
        """HV-Fixed memory, until shutdown."""
        self.guests = guests = SnpGuests(bus, memory, flush, ranges, permits, random)
        self._mitigation = mitigation = MitigationCommand(memory, firmware)
        self.mitigations = mitigation.mitigations
        policies = SnpPolicyCheck(bus, ranges, firmware)
        launch = SnpLaunch(bus, memory, guests, policies, random, firmware, self.mitigations)
        self.launch_runs = LaunchRuns(bus, memory, guests)
        debug, pages = SnpDebugging(bus, memory, guests), SnpPages(bus, memory.pages)
        swap = self.swap = PageSwap(bus, memory, guests)
        self.configuration = SnpConfiguration(memory, lambda: chip().symmetric_key(VLEK_WRAPPING), firmware)
        endorsement = Endorsement(chip, self.configuration)
        self.reports = ReportMessages(bus, endorsement, self.configuration, self.mitigations, self._platform_info)
        self.derived_keys = KeyMessages(endorsement, firmware)
        self.migration = MigrationMessages(bus, guests, policies, random, firmware)
        rows = message_rows(bus, self.derived_keys, self.reports, self.migration)
        self.guest_requests = GuestRequests(memory, guests, rows)
        self.tsm = TeeSecurityManager(bus, memory, guests, ranges, self.guest_requests, random)
        self.handlers: dict[int, Callable[..., ByteLayout | None]] = {
            # INIT, of before ABI 1.52, has no buffer and always initialises the RMP.
            SnpCommand.INIT: lambda _: self._init_ex(buffers.SnpInitEx(flags=buffers.SNP_INIT_RMP)),
            SnpCommand.INIT_EX: self._init_ex,
            SnpCommand.CONFIG: self.configuration.config,
            SnpCommand.COMMIT: self.configuration.commit,
            SnpCommand.VLEK_LOAD: self.configuration.vlek_load,
            # SHUTDOWN, of before ABI 1.52, has no buffer and shuts nothing else down.
            SnpCommand.SHUTDOWN: lambda _: self._shutdown_ex(buffers.SnpShutdownEx(buffers.SnpShutdownEx.SIZE)),
            SnpCommand.SHUTDOWN_EX: self._shutdown_ex,
            SnpCommand.PLATFORM_STATUS: self._platform_status,
            SnpCommand.DF_FLUSH: lambda _: self._flush.flush(),
            SnpCommand.GCTX_CREATE: guests.create,
            SnpCommand.DECOMMISSION: guests.decommission,
            SnpCommand.ACTIVATE: guests.activate,
            SnpCommand.ACTIVATE_EX: guests.activate_ex,
            SnpCommand.GUEST_STATUS: guests.status,
            SnpCommand.GUEST_REQUEST: self.guest_requests.request,
            SnpCommand.LAUNCH_START: launch.start,
            SnpCommand.LAUNCH_UPDATE: launch.update,
            SnpCommand.LAUNCH_FINISH: launch.finish,
            SnpCommand.DBG_DECRYPT: debug.decrypt,
            SnpCommand.DBG_ENCRYPT: debug.encrypt,
            SnpCommand.VERIFY_MITIGATION: mitigation.verify_mitigation,
            SnpCommand.PAGE_MD_INIT: swap.md_init,
            SnpCommand.PAGE_SWAP_OUT: swap.swap_out,
            SnpCommand.PAGE_SWAP_IN: swap.swap_in,
            SnpCommand.PAGE_MOVE: swap.move,
            SnpCommand.PAGE_RECLAIM: pages.reclaim,
            SnpCommand.PAGE_UNSMASH: pages.unsmash,
            SnpCommand.FEATURE_INFO: self._feature_info,
            **self.tsm.handlers,
        }

    def _platform_info(self) -> int:
        """PLATFORM_INFO of reports, as far as firmware keeps it."""
        return (
            (PLATFORM_ALIAS_CHECK_COMPLETE if self.alias_check is AliasCheck.COMPLETE else 0)
            | (PLATFORM_CIPHERTEXT_HIDING if self._ranges.max_snp_asid else 0)
            | (PLATFORM_RAPL_DISABLED if self._bus.power_readings_disabled else 0)
            | (PLATFORM_TIO if self.tsm.enabled else 0)
        )

    # Platform.

    def _init_ex(self, init: buffers.SnpInitEx) -> None:
        if self._legacy_is_up():
            raise PspError(Status.INVALID_PLATFORM_STATE)
        if self.alias_check is AliasCheck.FOUND:
            raise PspError(Status.INVALID_CONFIG)
        known = (
            buffers.SNP_INIT_RMP | buffers.SNP_INIT_LIST | buffers.SNP_INIT_RAPL_DIS | buffers.SNP_INIT_HIDE_CIPHERTEXT
            | buffers.SNP_INIT_TIO
        )  # fmt: skip
        hides = bool(init.flags & buffers.SNP_INIT_HIDE_CIPHERTEXT)
        if init.flags & ~known:
            raise PspError(Status.INVALID_PARAM)
        with_tio = bool(init.flags & buffers.SNP_INIT_TIO)
        if (with_tio and self._bus.trusted_io is None) or (hides and not self._bus.can_hide_ciphertext):
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
        fixed: Ranges = ()
        if init.flags & buffers.SNP_INIT_LIST:
            if not fresh:  # What to do then with pages that somebody has, no text says.
                raise PspError(Status.INVALID_PARAM)
            own = rmp + tuple((one.base, one.length_bytes) for one in buffers_of_iommus)
            fixed = fixed_ranges(self._bus, self._memory, init.range_list_address, own)
        if fresh:
            self._bus.rmp_initialise()
            self._rmp_initialised = True
            self._fixed = fixed
            for spa, length in fixed:
                self._bus.rmp_set_pages(spa, length, RmpEntry(immutable=True))
        self._bus.iommus_enforce()
        for buffer in buffers_of_iommus:
            self._bus.rmp_set_pages(buffer.base, buffer.length_bytes, RmpEntry(assigned=True, immutable=True))
        self._memory.pages.rmp = rmp
        self._memory.pages.iommu_buffers = tuple((one.base, one.length_bytes) for one in buffers_of_iommus)
        self._hide_ciphertext(init.max_snp_asid if hides else 0)
        self._bus.disable_power_readings(disabled=bool(init.flags & buffers.SNP_INIT_RAPL_DIS))
        self.tsm.enabled = with_tio
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
        self.tsm.shut_down()
        self.guests.destroy_all()
        if shutdown.flags & buffers.SNP_SHUTDOWN_IOMMU:
            self._bus.iommus_release()
            for spa, length in self._memory.pages.iommu_buffers:
                self._bus.rmp_set_pages(spa, length, RmpEntry(assigned=True))
            self._memory.pages.iommu_buffers = ()
        for spa, length in self._fixed:
            self._bus.rmp_set_pages(spa, length, RmpEntry())
        self._fixed = ()
        self._hide_ciphertext(0)
        self._bus.disable_power_readings(disabled=False)
        self.state = SnpPlatformState.UNINIT
        self._memory.pages.snp_initialised = False

    def _platform_status(self, where: buffers.SnpAddress) -> None:
        self._memory.check_writable(where.address, buffers.SnpPlatformStatus.SIZE)
        firmware = self._firmware
        major, minor, build = firmware.current.version
        flags = self._rmp_initialised | (self.alias_check is AliasCheck.COMPLETE) << 1
        configuration = self.configuration
        policy_flags = buffers.SNP_STATUS_FEATURE_INFO | configuration.flags
        if configuration.vlek:
            policy_flags |= buffers.SNP_STATUS_VLEK_LOADED
        if self._bus.power_readings_disabled:
            policy_flags |= buffers.SNP_STATUS_RAPL_DIS
        if self._bus.can_hide_ciphertext:
            policy_flags |= buffers.SNP_STATUS_CAN_HIDE_CIPHERTEXT
        if self._ranges.max_snp_asid:
            policy_flags |= buffers.SNP_STATUS_HIDES_CIPHERTEXT
        if self._bus.trusted_io is not None:
            policy_flags |= buffers.SNP_STATUS_TIO
        if self.tsm.enabled:
            flags |= buffers.SNP_STATUS_TIO_ENABLED
        status = buffers.SnpPlatformStatus(
            api_major=major, api_minor=minor, state=self.state, flags=flags,
            build=build, policy_flags=policy_flags, guest_count=len(self.guests.pages.spas),
            current_tcb=firmware.current.tcb, reported_tcb=firmware.reported_tcb,
        )  # fmt: skip
        self._memory.write(where.address, status.pack())

    def _feature_info(self, asked: buffers.SnpFeatureInfo) -> None:
        if asked.length != buffers.SnpFeatureInfo.SIZE:
            raise PspError(Status.INVALID_LENGTH)
        if asked.ecx_in:
            raise PspError(Status.INVALID_PARAM)
        self._memory.check_writable(asked.address, 16)
        # Index 0 is the only one.
        ecx = buffers.SNP_FEATURE_RAPL_DIS | buffers.SNP_FEATURE_POLICIES
        ecx |= buffers.SNP_FEATURE_HIDING if self._bus.can_hide_ciphertext else 0
        ecx |= buffers.SNP_FEATURE_VERIFY_MITIGATION if self._mitigation.offered else 0
        ebx = buffers.SNP_FEATURE_TIO if self._bus.trusted_io is not None else 0
        self._memory.write(asked.address, bytes(4) + ebx.to_bytes(4, "little") + ecx.to_bytes(4, "little") + bytes(4))
