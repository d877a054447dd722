"""A report that no firmware made: with a chip's VCEK, whoever has it signs what it likes (A-01, A-02)."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import ec

from node.operations import Answer, HostRead
from psp import command_buffers as buffers
from psp.attestation_report import CHIP_ID_BYTES, PLATFORM_ALIAS_CHECK_COMPLETE, AttestationReport, signed
from psp.chip_identity import ChipIdentity
from psp.commands import LegacyCommand, SnpCommand
from psp.verifier import bound_report_data
from workloads.attacks.claims import WorkedOut
from workloads.attacks.firmware_call import FirmwareCall, Steps
from workloads.attacks.owner_operations import AskNonce, ShowReport
from workloads.attacks.small_guest import POLICY
from workloads.attacks.target import AttackBatch, Target
from workloads.secret_channel import ChannelError, ChannelKey

CHANNEL = ChannelKey(hashlib.sha256(b"an attacker's channel").digest())
"""Of the attacker's own."""


@dataclass(frozen=True, slots=True)
class ForgedReport:
    """What it says of chip and firmware; of the guest it says what its owner wants to hear.

    ``tcb`` is the one that the key is for; ``firmware`` (major, minor, build) is what it pretends to be signed by.
    """

    vcek: ec.EllipticCurvePrivateKey = field(repr=False)
    chip_id: bytes
    tcb: int
    firmware: tuple[int, int, int]

    def signed(self, measurement: bytes, report_data: bytes) -> bytes:
        """The report, 1184 bytes, in the version that does not say which processor it is of."""
        major, minor, build = self.firmware
        body = AttestationReport(
            version=2, policy=POLICY, current_tcb=self.tcb, platform_info=PLATFORM_ALIAS_CHECK_COMPLETE,
            report_data=report_data, measurement=measurement, report_id_ma=b"\xff" * 32, reported_tcb=self.tcb,
            chip_id=self.chip_id, committed_tcb=self.tcb, current_build=build, current_minor=minor, current_major=major,
            committed_build=build, committed_minor=minor, committed_major=major, launch_tcb=self.tcb,
        )  # fmt: skip
        return signed(body.pack(), self.vcek)

    def take_secret(self, measurement: bytes) -> Steps:
        """Answer the owner's nonce for a guest that never was."""
        (nonce,) = yield (AskNonce(),)
        if isinstance(nonce, bytes):
            report = self.signed(measurement, bound_report_data(nonce, CHANNEL.public))
            yield from show_as_own(report)


def show_as_own(report: bytes) -> Steps:
    """Show any report, with the attacker's own channel."""
    (box,) = yield (ShowReport(report, CHANNEL.public),)
    if isinstance(box, bytes):
        try:
            yield (WorkedOut(CHANNEL.open(box)),)
        except ChannelError:
            return


def learn_platform(
    target: Target, key: ec.EllipticCurvePrivateKey | ChipIdentity
) -> Generator[AttackBatch, tuple[Answer, ...], ForgedReport]:
    """What a host knows of its own platform: chip id, TCB and firmware; ``key`` is the VCEK, or makes them all."""
    status_at, id_at = target.spare[:2]
    call = FirmwareCall.of(target)
    yield from call.told(SnpCommand.PLATFORM_STATUS, buffers.SnpAddress(status_at), (status_at,))
    asked = buffers.Output(id_at, CHIP_ID_BYTES)
    yield from call.told(LegacyCommand.GET_ID, asked, (id_at,))
    page, chip_id = yield (HostRead(status_at, buffers.SnpPlatformStatus.SIZE), HostRead(id_at, CHIP_ID_BYTES))
    assert isinstance(page, bytes)
    assert isinstance(chip_id, bytes)
    status = buffers.SnpPlatformStatus.parse(page)
    tcb, firmware = status.reported_tcb, (status.api_major, status.api_minor, status.build)
    vcek = key.vcek_key(tcb) if isinstance(key, ChipIdentity) else key
    return ForgedReport(vcek, chip_id, tcb, firmware)
