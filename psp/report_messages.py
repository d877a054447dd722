"""MSG_REPORT_REQ: a guest asks firmware to vouch for it (SEV-SNP firmware ABI, sections 7.3 and 8.26)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from psp import attestation_report as report
from psp import command_buffers as buffers
from psp.attestation_report import AttestationReport
from psp.byte_layout import ByteLayout, at
from psp.endorsement import Endorsement, SigningKey
from psp.guest_context import GuestContext
from psp.guest_message import VMPCKS
from psp.guest_requests import Request
from psp.snp_configuration import SnpConfiguration
from psp.status import PspError, Status
from psp.system_bus import SystemBus


@dataclass(frozen=True, slots=True)
class ReportRequest(ByteLayout):
    """MSG_REPORT_REQ; KEY_SEL in bits 1:0 of the flags."""

    SIZE: ClassVar[int] = 0x60
    report_data: bytes = at(0x00, report.REPORT_DATA_BYTES, bytes(report.REPORT_DATA_BYTES))
    vmpl: int = at(0x40, 4)
    flags: int = at(0x44, 4)
    reserved: bytes = at(0x48, 0x18, bytes(0x18))


@dataclass(frozen=True, slots=True)
class ReportResponse(ByteLayout):
    """MSG_REPORT_RSP: what stands before the report."""

    SIZE: ClassVar[int] = 0x20
    status: int = at(0x00, 4)
    report_bytes: int = at(0x04, 4)


class ReportMessages:
    """Answers them. ``platform`` are the bits of the platform's state that firmware keeps itself."""

    def __init__(
        self,
        bus: SystemBus,
        endorsement: Endorsement,
        configuration: SnpConfiguration,
        platform: Callable[[], int],
    ) -> None:
        self.forced_version: int | None = None
        """A version of reports that this firmware makes whatever its age."""
        self.mitigations = 0
        """Those that are on now."""
        self._bus = bus
        self._endorsement = endorsement
        self._configuration = configuration
        self._platform = platform

    @property
    def version(self) -> int:
        """Of the reports that are made: the firmware's own choice, no guest's."""
        return self.forced_version or report.report_version(self._configuration.firmware.current.version)

    def answer(self, request: Request) -> bytes:
        """The response's payload. A VMPL may have reports of itself and of those below it, by number above."""
        asked = ReportRequest.parse(request.payload)
        masked = bool(self._configuration.flags & buffers.SNP_CONFIG_MASK_CHIP_KEY)
        try:
            which = self._checked(asked, request)
            key = None if masked else self._endorsement.key(which)
        except PspError as refused:
            return ReportResponse(refused.status).pack()
        made = self._report(asked, request.context, SigningKey.NONE if masked else which).signed(key)
        return ReportResponse(Status.SUCCESS, len(made)).pack() + made

    def _checked(self, asked: ReportRequest, request: Request) -> SigningKey:
        if not request.vmpl <= asked.vmpl < VMPCKS or any(asked.reserved):
            raise PspError(Status.INVALID_PARAM)
        return self._endorsement.chosen(asked.flags, request.context)

    def _report(self, asked: ReportRequest, guest: GuestContext, which: SigningKey) -> AttestationReport:
        configuration, version = self._configuration, self.version
        machine = self._bus.machine_facts
        processor = version >= report.VERSION_WITH_PROCESSOR
        family, model, stepping = report.family_model_stepping(machine.cpuid_1_eax) if processor else (0, 0, 0)
        mitigations = version >= report.VERSION_WITH_MITIGATIONS
        firmware = configuration.firmware.versions(guest.launch_tcb)
        mask = configuration.flags
        named = which is not SigningKey.VLEK and not mask & buffers.SNP_CONFIG_MASK_CHIP_ID
        key_info = (
            (report.KEY_AUTHOR_EN if any(guest.author_key_digest) else 0)
            | (report.KEY_MASK_CHIP_KEY if mask & buffers.SNP_CONFIG_MASK_CHIP_KEY else 0)
            | which << report.KEY_SIGNING_SHIFT
        )
        return AttestationReport(
            version=version, guest_svn=guest.guest_svn, policy=guest.policy, family_id=guest.family_id,
            image_id=guest.image_id, vmpl=asked.vmpl, current_tcb=firmware.current_tcb,
            platform_info=self._platform_info(), key_info=key_info, report_data=asked.report_data,
            measurement=guest.digest, host_data=guest.host_data, id_key_digest=guest.id_key_digest,
            author_key_digest=guest.author_key_digest, report_id=guest.report_id, report_id_ma=guest.report_id_ma,
            reported_tcb=firmware.reported_tcb, cpuid_family=family, cpuid_model=model,
            cpuid_stepping=stepping, chip_id=self._endorsement.chip_id if named else b"",
            committed_tcb=firmware.committed_tcb, current_build=firmware.current_build,
            current_minor=firmware.current_minor, current_major=firmware.current_major,
            committed_build=firmware.committed_build, committed_minor=firmware.committed_minor,
            committed_major=firmware.committed_major, launch_tcb=firmware.launch_tcb,
            launch_mitigations=guest.launch_mitigations if mitigations else 0,
            current_mitigations=self.mitigations if mitigations else 0,
        )  # fmt: skip

    def _platform_info(self) -> int:
        machine = self._bus.machine_facts
        return (
            (report.PLATFORM_SMT if machine.smt else 0)
            | (report.PLATFORM_TSME if machine.tsme else 0)
            | (report.PLATFORM_ECC if machine.ecc else 0)
            | self._platform()
        )
