"""A legacy launch for an owner who is not here: its session at the start, its secret once it has seen the measurement.

The hypervisor carries what the owner and the firmware say to each other, sealed both ways; it can refuse, and no more.
The owner is whoever answers ``AskLaunchOwner`` (SEV API, LAUNCH_START, LAUNCH_MEASURE and LAUNCH_SECRET).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from node import operations as op
from node.expected_answers import expect_done, octets
from node.hypervisor_port import Answers, Batch, LaunchRefused, Task
from psp import command_buffers as buffers
from psp.commands import LegacyCommand
from psp.secret_packet import PacketHeader
from psp.sev_certificate import SevCertificate
from psp.sev_session import Session
from psp.system_bus import PAGE_BYTES

LAUNCH_SECRET_GPA = 0x81_0000
"""Where the secret goes, in guest-physical memory: OVMF's AmdSev build keeps the page for it."""
OWNERS_PAGES = 4
"""Frames in a row that the talk takes: three that firmware writes, one that it reads."""
_SECOND = 0x900
"""Where in a page a second record lies, behind a certificate."""
_MOST_SECRET_BYTES = PAGE_BYTES - _SECOND
"""What the rest of a page holds: an owner is no reason for a host to write elsewhere."""
_POLICY_BYTES = 4
_CERTIFICATE = SevCertificate.SIZE
_SESSION_END = _CERTIFICATE + Session.SIZE

Call = Generator[Batch, Answers, bytes]
Started = Generator[Batch, Answers, buffers.LaunchStart]


@dataclass(frozen=True, slots=True)
class OwnedLaunch:
    """One launch of a VM. ``frames`` are pages in a row; ``call`` has a command answer, the others lend a page."""

    vm: str
    command_page: int
    frames: int
    call: Callable[[int, int, bytes], Call]
    to_firmware: Callable[[int], Task]
    from_firmware: Callable[[int], Task]
    held: list[int]
    """Pages that are the firmware's now, whatever happens next."""

    def start(self) -> Started:
        """LAUNCH_START's buffer, with what the owner sent for this platform. Raises LaunchRefused."""
        pdh, chain, inside = self.frames, self.frames + PAGE_BYTES, self.frames + 3 * PAGE_BYTES
        export = buffers.PdhCertExport(pdh, _CERTIFICATE, chain, 3 * _CERTIFICATE)
        yield from self._writing(LegacyCommand.PDH_CERT_EXPORT, export.pack(), 3)
        shown = yield (op.HostRead(pdh, _CERTIFICATE), op.HostRead(chain, 3 * _CERTIFICATE))
        session = yield from self._ask(b"".join(octets(shown)), "session")
        if len(session) != _SESSION_END + _POLICY_BYTES:
            raise LaunchRefused(f"owner of {self.vm}: a session of {len(session)} bytes")
        policy = int.from_bytes(session[_SESSION_END:], "little")
        yield from self._lay(inside, session[:_CERTIFICATE], session[_CERTIFICATE:_SESSION_END])
        return buffers.LaunchStart(0, policy, inside, _CERTIFICATE, inside + _SECOND, Session.SIZE)

    def deliver(self, handle: int, place: int) -> Task:
        """Measure, show the owner that, and give the guest what it sends, at an SPA. Raises LaunchRefused."""
        page, inside = self.frames, self.frames + 3 * PAGE_BYTES
        measure = buffers.LaunchMeasure(handle, page, buffers.MEASUREMENT_BYTES)
        yield from self._writing(LegacyCommand.LAUNCH_MEASURE, measure.pack(), 1)
        (measured,) = octets((yield (op.HostRead(page, buffers.MEASUREMENT_BYTES),)))
        packed = yield from self._ask(measured, "secret")
        header, packet = packed[: PacketHeader.SIZE], packed[PacketHeader.SIZE :]
        if not 0 < len(packet) <= _MOST_SECRET_BYTES:
            raise LaunchRefused(f"owner of {self.vm}: a packet of {len(packed)} bytes")
        yield from self._lay(inside, header, packet)
        secret = buffers.LaunchSecret(
            handle, inside, len(header), place, len(packet), inside + _SECOND, len(packet)
        )
        yield from self._lend(place)
        yield from self.call(LegacyCommand.LAUNCH_SECRET, self.command_page, secret.pack())
        yield from self._take_back(place)

    def _writing(self, command: int, buffer: bytes, pages: int) -> Task:
        """A command that writes to the first of the frames."""
        written = [self.frames + page * PAGE_BYTES for page in range(pages)]
        for page in written:
            yield from self._lend(page)
        yield from self.call(command, self.command_page, buffer)
        for page in written:
            yield from self._take_back(page)

    def _lay(self, page: int, first: bytes, second: bytes) -> Task:
        batch = (op.HostWrite(page, first), op.HostWrite(page + _SECOND, second))
        expect_done(batch, (yield batch))

    def _lend(self, page: int) -> Task:
        yield from self.to_firmware(page)
        self.held.append(page)

    def _take_back(self, page: int) -> Task:
        yield from self.from_firmware(page)
        self.held.remove(page)

    def _ask(self, shown: bytes, wanted: str) -> Call:
        (answer,) = yield (op.AskLaunchOwner(self.vm, shown),)
        if not isinstance(answer, bytes):
            raise LaunchRefused(f"owner of {self.vm}: no {wanted}")
        return answer


def in_a_row(pieces: Sequence[tuple[int, int]]) -> int:
    """The first of the frames, of (SPA, length) pieces. Raises LaunchRefused where they are scattered."""
    first, length = pieces[0]
    if length < OWNERS_PAGES * PAGE_BYTES:
        raise LaunchRefused(f"frames for the owner: expected {OWNERS_PAGES} in a row")
    return first
