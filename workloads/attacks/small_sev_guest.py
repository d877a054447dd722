"""A SEV guest of one page that a hypervisor launches by hand, for an owner whose session it asks for."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from node.operations import Answer, Fault, HostClflush, HostRead, HostWrite, PspAnswer, PspCommand, RmpUpdate, Wbinvd
from psp import command_buffers as buffers
from psp.byte_layout import ByteLayout
from psp.commands import LegacyCommand, SnpCommand
from psp.secret_packet import PacketHeader
from psp.sev_certificate import SevCertificate
from psp.sev_session import Session
from psp.system_bus import PAGE_BYTES, RmpEntry
from workloads.attacks.owner_operations import OpenSession, ReadInjected, ShowMeasurement
from workloads.attacks.target import AttackBatch, Target

SECRET_OFFSET, SECRET_BYTES = 2048, 64
"""Where in the page of its code the owner's secret goes."""
_SESSION_OFFSET = 0x900
_FIRMWARE, _HYPERVISOR = RmpEntry(assigned=True, immutable=True), RmpEntry()

Steps = Generator[AttackBatch, tuple[Answer, ...], None]
Bytes = Generator[AttackBatch, tuple[Answer, ...], bytes]


@dataclass(slots=True)
class SmallSevGuest:
    """Where its frames are, and how far it has come. ``handle`` is 0 while the firmware knows nothing of it."""

    code: int
    inside: int
    out: tuple[int, ...]
    lent: int
    command_page: int
    asid: int
    handle: int = 0
    firmware: tuple[int, int, int] = (0, 0, 0)

    @classmethod
    def of(cls, target: Target) -> SmallSevGuest:
        """One in the target's spare frames, three of which, neighbours, are for what firmware writes."""
        code, inside, lent, *out = target.spare[:6]
        return cls(code, inside, tuple(out), lent, target.command_page, target.free_asid)

    def platform(self) -> Generator[AttackBatch, tuple[Answer, ...], OpenSession]:
        """The platform's certificates, as its firmware writes them; also learn what firmware that is."""
        size = SevCertificate.SIZE
        pdh, chain = self.out[0], self.out[1]
        status = yield from self._told(LegacyCommand.PLATFORM_STATUS, buffers.PlatformStatus(), ())
        if status:
            found = buffers.PlatformStatus.parse(status)
            self.firmware = (found.api_major, found.api_minor, found.config >> 24)
        export = buffers.PdhCertExport(pdh, size, chain, 3 * size)
        yield from self._told(LegacyCommand.PDH_CERT_EXPORT, export, self.out)
        written = yield (HostRead(pdh, size), HostRead(chain, 3 * size))
        return OpenSession(*(one if isinstance(one, bytes) else b"" for one in written))

    def launch(self, code: bytes, policy: int) -> Steps:
        """From the owner's session to LAUNCH_UPDATE_DATA; whoever refuses, ``handle`` stays 0."""
        asked = yield from self.platform()
        (session,) = yield (asked,)
        if isinstance(session, bytes):
            yield from self.start(session, policy)
        if not self.handle:
            return
        yield self.call(LegacyCommand.ACTIVATE, buffers.Activate(self.handle, self.asid))
        yield (HostWrite(self.code, code.ljust(PAGE_BYTES, b"\0")), HostClflush(self.code, PAGE_BYTES), Wbinvd())
        lends = yield from self._lend((self.code,))
        update = buffers.LaunchUpdateData(self.handle, self.code, PAGE_BYTES)
        yield self.call(LegacyCommand.LAUNCH_UPDATE_DATA, update)
        yield from self._take_back((self.code,) if lends else ())

    def start(self, session: bytes, policy: int) -> Steps:
        """LAUNCH_START with an owner's certificate and session block, under any policy."""
        size = SevCertificate.SIZE
        yield (HostWrite(self.inside, session[:size]), HostWrite(self.inside + _SESSION_OFFSET, session[size:]))
        start = buffers.LaunchStart(0, policy, self.inside, size, 0, self.inside + _SESSION_OFFSET, Session.SIZE)
        answer = yield from self._told(LegacyCommand.LAUNCH_START, start, ())
        self.handle = buffers.LaunchStart.parse(answer).handle if answer else 0

    def measure(self) -> Bytes:
        """LAUNCH_MEASURE; its 48 bytes."""
        page = self.out[0]
        measure = buffers.LaunchMeasure(self.handle, page, buffers.MEASUREMENT_BYTES)
        yield from self._told(LegacyCommand.LAUNCH_MEASURE, measure, (page,))
        (found,) = yield (HostRead(page, buffers.MEASUREMENT_BYTES),)
        return found if isinstance(found, bytes) else b""

    def receive(self) -> Steps:
        """Show the measurement, inject what the owner sends, and let the code go on."""
        measurement = yield from self.measure()
        (packed,) = yield (ShowMeasurement(measurement, self.firmware),)
        if isinstance(packed, bytes):
            header, packet = packed[: PacketHeader.SIZE], packed[PacketHeader.SIZE :]
            yield (HostWrite(self.inside, header), HostWrite(self.inside + _SESSION_OFFSET, packet))
            place, lends = self.code + SECRET_OFFSET, (yield from self._lend((self.code,)))
            secret = buffers.LaunchSecret(
                self.handle, self.inside, len(header), place, len(packet), self.inside + _SESSION_OFFSET, len(packet)
            )
            yield self.call(LegacyCommand.LAUNCH_SECRET, secret)
            yield from self._take_back((self.code,) if lends else ())
        yield self.call(LegacyCommand.LAUNCH_FINISH, buffers.Handle(self.handle))
        yield (ReadInjected(self.code, self.asid, SECRET_OFFSET, SECRET_BYTES),)

    def debug(self) -> Steps:
        """DBG_DECRYPT of the secret, and read what comes out."""
        page = self.out[0]
        decrypt = buffers.Debug(self.handle, self.code + SECRET_OFFSET, page, SECRET_BYTES)
        yield (Wbinvd(),)
        yield from self._told(LegacyCommand.DBG_DECRYPT, decrypt, (page,))
        yield (HostRead(page, SECRET_BYTES),)

    def call(self, command: int, buffer: ByteLayout) -> AttackBatch:
        """One command that writes nothing of the host's."""
        return (PspCommand(command, self.command_page, buffer.pack()),)

    def _told(self, command: int, buffer: ByteLayout, out: tuple[int, ...]) -> Bytes:
        """A command that answers in its buffer, and writes to ``out``; nothing if it was refused."""
        data = buffer.pack()
        yield (HostWrite(self.lent, data),)
        lends = yield from self._lend((self.lent, *out))
        (answer,) = yield (PspCommand(command, self.lent),)
        yield from self._take_back((self.lent, *out) if lends else ())
        (back,) = yield (HostRead(self.lent, len(data)),)
        done = isinstance(answer, PspAnswer) and answer.status == 0
        return back if done and isinstance(back, bytes) else b""

    def _lend(self, frames: tuple[int, ...]) -> Generator[AttackBatch, tuple[Answer, ...], bool]:
        """Under SNP firmware writes to pages of its own alone; whether there is SNP."""
        answers = yield tuple(RmpUpdate(spa, PAGE_BYTES, _FIRMWARE) for spa in frames)
        return not any(isinstance(one, Fault) for one in answers)

    def _take_back(self, frames: tuple[int, ...]) -> Steps:
        for spa in frames:
            yield self.call(SnpCommand.PAGE_RECLAIM, buffers.SnpPageReclaim(spa))
            yield (RmpUpdate(spa, PAGE_BYTES, _HYPERVISOR),)


def minimum_api(policy: int, api: tuple[int, int]) -> int:
    """A legacy policy that demands this firmware interface at least (SEV API, chapter 3)."""
    return policy | api[0] << 16 | api[1] << 24


