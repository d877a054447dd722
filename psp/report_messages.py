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
from psp.guest_context import DIGEST_BYTES, GuestContext
from psp.guest_message import VMPCKS
from psp.guest_requests import Request
from psp.mitigations import Mitigations
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
        mitigations: Mitigations,
        platform: Callable[[], int],
    ) -> None:
        self.forced_version: int | None = None
        """A version of reports that this firmware makes whatever its age."""
        self._bus = bus
        self._endorsement = endorsement
        self._configuration = configuration
        self._mitigations = mitigations
        self._platform = platform
        self._known: tuple[int, tuple[int, int, int]] | None = None

    @property
    def version(self) -> int:
        """Of the reports that are made: the firmware's own choice, no guest's."""
        return self.forced_version or report.report_version(self._configuration.firmware.current.version)

    def answer(self, request: Request) -> bytes:
        """The response's payload. A VMPL may have reports of itself and of those below it, by number above."""
        asked = ReportRequest.parse(request.payload)
        masked = self._configuration.flags & buffers.SNP_CONFIG_MASK_CHIP_KEY
        try:
            which = self._checked(asked, request)
            key = None if masked else self._endorsement.key(which, self._configuration.firmware.signing_tcb)
        except PspError as refused:
            return ReportResponse(refused.status).pack()
        return _GRANTED + report.signed(self._report(asked, request.context, which), key)

    def _checked(self, asked: ReportRequest, request: Request) -> SigningKey:
        if not request.vmpl <= asked.vmpl < VMPCKS or any(asked.reserved):
            raise PspError(Status.INVALID_PARAM)
        return self._endorsement.chosen(asked.flags, request.context)

    def _report(self, asked: ReportRequest, guest: GuestContext, which: SigningKey) -> bytes:
        """What is signed, field by field in the order of the table: this is made with every report."""
        configuration, version = self._configuration, self.version
        firmware, mask = configuration.firmware, configuration.flags
        current, committed = firmware.current, firmware.committed
        named = which is not SigningKey.VLEK and not mask & buffers.SNP_CONFIG_MASK_CHIP_ID
        key_info = which << report.KEY_SIGNING_SHIFT
        if mask & buffers.SNP_CONFIG_MASK_CHIP_KEY:
            key_info = report.KEY_MASK_CHIP_KEY | SigningKey.NONE << report.KEY_SIGNING_SHIFT
        if guest.author_key_digest != _NO_DIGEST:
            key_info |= report.KEY_AUTHOR_EN
        info, processor = self._machine
        return AttestationReport.packed(
            version, guest.guest_svn, guest.policy, guest.family_id, guest.image_id, asked.vmpl,
            report.ECDSA_P384_SHA384, current.tcb, info | self._platform(), key_info, asked.report_data,
            guest.digest, guest.host_data, guest.id_key_digest, guest.author_key_digest, guest.report_id,
            guest.report_id_ma, firmware.reported_tcb,
            *(processor if version >= report.VERSION_WITH_PROCESSOR else _NO_PROCESSOR),
            self._endorsement.chip_id if named else b"", committed.tcb,
            *current.version[::-1], *committed.version[::-1], guest.launch_tcb,
            *(
                (guest.launch_mitigations, self._mitigations.verified)
                if version >= report.VERSION_WITH_MITIGATIONS
                else _NO_MITIGATIONS
            ),
        )  # fmt: skip

    @property
    def _machine(self) -> tuple[int, tuple[int, int, int]]:
        """Bits of the platform's state that never change, and the processor."""
        if self._known is None:
            machine = self._bus.machine_facts
            info = (
                (report.PLATFORM_SMT if machine.smt else 0)
                | (report.PLATFORM_TSME if machine.tsme else 0)
                | (report.PLATFORM_ECC if machine.ecc else 0)
            )
            self._known = info, report.family_model_stepping(machine.cpuid_1_eax)
        return self._known


_GRANTED = ReportResponse(Status.SUCCESS, report.REPORT_BYTES).pack()
_NO_DIGEST = bytes(DIGEST_BYTES)
_NO_PROCESSOR, _NO_MITIGATIONS = (0, 0, 0), (0, 0)
