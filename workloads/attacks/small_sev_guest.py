"""A SEV guest of one page that a hypervisor launches by hand, for an owner whose session it asks for."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from node.operations import Answer, HostClflush, HostRead, HostWrite, PspCommand, Wbinvd
from psp import command_buffers as buffers
from psp.commands import LegacyCommand
from psp.secret_packet import PacketHeader
from psp.sev_certificate import SevCertificate
from psp.sev_session import Session
from psp.system_bus import PAGE_BYTES
from workloads.attacks.firmware_call import Bytes, FirmwareCall, Steps
from workloads.attacks.owner_operations import OpenSession, ReadInjected, ShowMeasurement
from workloads.attacks.target import AttackBatch, Target

SECRET_OFFSET, SECRET_BYTES = 2048, 64
"""Where in the page of its code the owner's secret goes."""
_SESSION_OFFSET = 0x900


@dataclass(slots=True)
class SmallSevGuest:
    """Where its frames are, and how far it has come. ``handle`` is 0 while the firmware knows nothing of it."""

    code: int
    inside: int
    out: tuple[int, ...]
    asid: int
    calls: FirmwareCall
    handle: int = 0
    firmware: tuple[int, int, int] = (0, 0, 0)

    @classmethod
    def of(cls, target: Target) -> SmallSevGuest:
        """One in the target's spare frames, three of which, neighbours, are for what firmware writes."""
        code, inside, *out = target.spare[:5]
        return cls(code, inside, tuple(out), target.free_asid, FirmwareCall.of(target))

    def platform(self) -> Generator[AttackBatch, tuple[Answer, ...], OpenSession]:
        """The platform's certificates, as its firmware writes them; also learn what firmware that is."""
        size = SevCertificate.SIZE
        pdh, chain = self.out[0], self.out[1]
        status = yield from self.calls.told(LegacyCommand.PLATFORM_STATUS, buffers.PlatformStatus())
        if status:
            found = buffers.PlatformStatus.parse(status)
            self.firmware = (found.api_major, found.api_minor, found.config >> 24)
        export = buffers.PdhCertExport(pdh, size, chain, 3 * size)
        yield from self.calls.told(LegacyCommand.PDH_CERT_EXPORT, export, self.out)
        written = yield (HostRead(pdh, size), HostRead(chain, 3 * size))
        return OpenSession(*(one if isinstance(one, bytes) else b"" for one in written))

    def launch(self, code: bytes, policy_cleared: int = 0) -> Steps:
        """From the owner's session to LAUNCH_UPDATE_DATA, under its policy without some bits.

        Whoever refuses, ``handle`` stays 0.
        """
        asked = yield from self.platform()
        (session,) = yield (asked,)
        if isinstance(session, bytes):
            yield from self.start(session, policy_cleared)
        if not self.handle:
            return
        yield self.calls.plain(LegacyCommand.ACTIVATE, buffers.Activate(self.handle, self.asid))
        yield (HostWrite(self.code, code.ljust(PAGE_BYTES, b"\0")), HostClflush(self.code, PAGE_BYTES), Wbinvd())
        lends = yield from self.calls.lend(self.code)
        update = buffers.LaunchUpdateData(self.handle, self.code, PAGE_BYTES)
        yield self.calls.plain(LegacyCommand.LAUNCH_UPDATE_DATA, update)
        if lends:
            yield from self.calls.take_back(self.code)

    def start(self, session: bytes, policy_cleared: int = 0) -> Steps:
        """LAUNCH_START with what an owner sent."""
        size, end = SevCertificate.SIZE, SevCertificate.SIZE + Session.SIZE
        policy = int.from_bytes(session[end:], "little") & ~policy_cleared
        yield (HostWrite(self.inside, session[:size]), HostWrite(self.inside + _SESSION_OFFSET, session[size:end]))
        start = buffers.LaunchStart(0, policy, self.inside, size, self.inside + _SESSION_OFFSET, Session.SIZE)
        answer = yield from self.calls.told(LegacyCommand.LAUNCH_START, start)
        self.handle = buffers.LaunchStart.parse(answer).handle if answer else 0

    def measure(self) -> Bytes:
        """LAUNCH_MEASURE; its 48 bytes."""
        page = self.out[0]
        measure = buffers.LaunchMeasure(self.handle, page, buffers.MEASUREMENT_BYTES)
        yield from self.calls.told(LegacyCommand.LAUNCH_MEASURE, measure, (page,))
        (found,) = yield (HostRead(page, buffers.MEASUREMENT_BYTES),)
        return found if isinstance(found, bytes) else b""

    def receive(self) -> Steps:
        """Show the measurement, inject what the owner sends, and let the code go on."""
        measurement = yield from self.measure()
        (packed,) = yield (ShowMeasurement(measurement, self.firmware),)
        if isinstance(packed, bytes):
            header, packet = packed[: PacketHeader.SIZE], packed[PacketHeader.SIZE :]
            yield (HostWrite(self.inside, header), HostWrite(self.inside + _SESSION_OFFSET, packet))
            place = self.code + SECRET_OFFSET
            lends = yield from self.calls.lend(self.code)
            secret = buffers.LaunchSecret(
                self.handle, self.inside, len(header), place, len(packet), self.inside + _SESSION_OFFSET, len(packet)
            )
            yield self.calls.plain(LegacyCommand.LAUNCH_SECRET, secret)
            if lends:
                yield from self.calls.take_back(self.code)
        yield self.calls.plain(LegacyCommand.LAUNCH_FINISH, buffers.Handle(self.handle))
        yield (ReadInjected(self.code, self.asid, SECRET_OFFSET, SECRET_BYTES),)

    def attest(self, nonce: bytes) -> Bytes:
        """ATTESTATION for a nonce: the report."""
        page = self.out[0]
        asked = buffers.Attestation(self.handle, page, nonce, buffers.AttestationReport.SIZE)
        yield from self.calls.told(LegacyCommand.ATTESTATION, asked, (page,))
        (found,) = yield (HostRead(page, buffers.AttestationReport.SIZE),)
        return found if isinstance(found, bytes) else b""

    def take_down(self) -> Steps:
        """DEACTIVATE, flush, DECOMMISSION."""
        yield self.calls.plain(LegacyCommand.DEACTIVATE, buffers.Handle(self.handle))
        yield (Wbinvd(),)
        yield (PspCommand(LegacyCommand.DF_FLUSH),)
        yield self.calls.plain(LegacyCommand.DECOMMISSION, buffers.Handle(self.handle))

    def debug(self) -> Steps:
        """DBG_DECRYPT of the secret, and read what comes out."""
        page = self.out[0]
        decrypt = buffers.Debug(self.handle, self.code + SECRET_OFFSET, page, SECRET_BYTES)
        yield (Wbinvd(),)
        yield from self.calls.told(LegacyCommand.DBG_DECRYPT, decrypt, (page,))
        yield (HostRead(page, SECRET_BYTES),)


def minimum_api(policy: int, api: tuple[int, int]) -> int:
    """A legacy policy that demands this firmware interface at least (SEV API, chapter 3)."""
    return policy | api[0] << 16 | api[1] << 24


