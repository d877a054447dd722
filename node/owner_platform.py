"""A host that serves one guest owner through the SEV interface, command by command.

Its board is any other's; the host's part is played here, step by step, because
the owner's answer comes from outside between two commands. Everything follows
from the seed: the same steps on the same seed give the same bytes, so a step of
today can go on where a process of yesterday ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from node import operations as op
from node.board import Board
from node.counter_random import CounterRandom
from node.generation import Generation
from node.nested_table_pages import table_pages
from node.product import PRODUCTS
from psp import command_buffers as buffers
from psp.commands import LegacyCommand, command_name
from psp.policy import LegacyPolicy
from psp.secret_packet import PacketHeader
from psp.sev_certificate import SevCertificate
from psp.sev_chain import PlatformChain
from psp.sev_session import Session
from psp.status import Status
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES

MEMORY_BYTES = 256 << 20
_COMMAND, _OUT, _IN = 0x1000, 0x2000, 0x8000
_TMR, _TMR_BYTES = 0x10_0000, 1 << 20
_TABLES, _TABLE_PAGES = 0x20_0000, 64
_GUEST = 16 << 20
_RAM_BYTES = 64 << 20
"""RAM from guest-physical zero; hash table and secret area of an OVMF image lie in it."""
_VM = "guest"
HOST = "platform"
"""What the platform is called: its chip follows from that and the seed."""


class PlatformRefusal(Exception):
    """A command that the firmware refused; ``status`` says why."""

    def __init__(self, command: int, status: Status) -> None:
        super().__init__(f"{command_name(command)}: {status.name}")
        self.status = status


@dataclass(frozen=True, slots=True)
class LaunchOrder:
    """What a guest is launched from: (GPA, bytes) ranges, save areas (SEV-ES), the owner's policy, key and session."""

    ranges: Sequence[tuple[int, bytes]]
    save_areas: Sequence[bytes]
    policy: int
    certificate: bytes
    session: bytes


class OwnerPlatform:
    """One emulated platform of a product that has SEV, with nothing on it yet."""

    def __init__(self, product: str, seed: int) -> None:
        chosen = PRODUCTS[product]
        self.api = chosen.firmware_api
        self.line = chosen.line.name
        """Whose root keys sign for its chip."""
        self._min_sev_asid = chosen.min_sev_asid
        self._board = Board(HOST, chosen, MEMORY_BYTES, chosen.min_sev_asid, CounterRandom(seed))
        self._handle = 0
        self._asid = 0
        self._generation = Generation.SEV
        self._ram: list[tuple[int, int, int]] = []
        self._bring_up()

    def _bring_up(self) -> None:
        init = buffers.Init(flags=buffers.INIT_ES, tmr_address=_TMR, tmr_length=_TMR_BYTES)
        self._call(LegacyCommand.INIT, init.pack())
        self._board.execute_host((op.Wbinvd(),))
        self._call(LegacyCommand.DF_FLUSH)

    def chain(self) -> PlatformChain:
        """The certificates as PDH_CERT_EXPORT writes them."""
        size = SevCertificate.SIZE
        export = buffers.PdhCertExport(_OUT, size, _OUT + PAGE_BYTES, 3 * size)
        self._call(LegacyCommand.PDH_CERT_EXPORT, export.pack())
        return PlatformChain.parse(self._read(_OUT, size), self._read(_OUT + PAGE_BYTES, 3 * size))

    def launch(self, order: LaunchOrder) -> bytes:
        """LAUNCH_START to LAUNCH_MEASURE; the 48 bytes of the measurement. Raises PlatformRefusal."""
        self._write(_IN, order.certificate)
        self._write(_IN + PAGE_BYTES, order.session)
        start = buffers.LaunchStart(
            policy=order.policy,
            dh_certificate_address=_IN,
            dh_certificate_length=len(order.certificate),
            session_address=_IN + PAGE_BYTES,
            session_length=len(order.session),
        )
        self._handle = buffers.LaunchStart.parse(self._call(LegacyCommand.LAUNCH_START, start.pack())).handle
        self._generation = Generation.SEV_ES if order.policy & LegacyPolicy.ES else Generation.SEV
        self._asid = 1 if self._generation is Generation.SEV_ES else self._min_sev_asid
        self._call(LegacyCommand.ACTIVATE, buffers.Activate(self._handle, self._asid).pack())
        self._lay_out(order.ranges)
        for gpa, data in order.ranges:
            spa = self._spa(gpa)
            self._write(spa, data)
            update = buffers.LaunchUpdateData(self._handle, spa, len(data))
            self._board.execute_host((op.HostClflush(spa, len(data)),))
            self._call(LegacyCommand.LAUNCH_UPDATE_DATA, update.pack())
        for page in order.save_areas:
            self._write(_IN, page)
            self._board.execute_host((op.HostClflush(_IN, len(page)),))
            self._call(LegacyCommand.LAUNCH_UPDATE_VMSA, buffers.LaunchUpdateVmsa(self._handle, _IN, len(page)).pack())
        measure = buffers.LaunchMeasure(self._handle, _OUT, buffers.MEASUREMENT_BYTES)
        self._call(LegacyCommand.LAUNCH_MEASURE, measure.pack())
        return self._read(_OUT, buffers.MEASUREMENT_BYTES)

    def inject(self, gpa: int, header: bytes, packet: bytes) -> None:
        """LAUNCH_SECRET at a guest-physical address. Raises PlatformRefusal."""
        self._write(_IN, header)
        self._write(_IN + PAGE_BYTES, packet)
        secret = buffers.LaunchSecret(
            self._handle, _IN, len(header), self._spa(gpa), len(packet), _IN + PAGE_BYTES, len(packet)
        )
        self._call(LegacyCommand.LAUNCH_SECRET, secret.pack())

    def finish(self) -> None:
        """LAUNCH_FINISH."""
        self._call(LegacyCommand.LAUNCH_FINISH, buffers.Handle(self._handle).pack())

    def guest_reads(self, gpa: int, length: int) -> bytes:
        """What a vCPU of the guest loads, through its own key and the nested table."""
        batch = [op.VmcbWrite(_VM, 0, self._asid, self._generation.name, _OUT)]
        self._board.execute_host(tuple(batch))
        (answer,) = self._board.execute_guest(self._board.vmcb(_VM, 0), (op.Read(gpa, length),))
        assert isinstance(answer, bytes)
        return answer

    def host_reads(self, gpa: int, length: int) -> bytes:
        """What the host loads from the same memory."""
        return self._read(self._spa(gpa), length)

    def holds(self, gpa: int, length: int) -> bool:
        """Whether a range is the guest's RAM."""
        return 0 <= gpa <= _RAM_BYTES - length

    def _lay_out(self, ranges: Sequence[tuple[int, bytes]]) -> None:
        """Back RAM, and the image above it, with frames one behind the other."""
        self._ram = [(0, _GUEST, _RAM_BYTES)]
        spa = _GUEST + _RAM_BYTES
        for gpa, data in ranges:
            if gpa >= _RAM_BYTES:
                first = gpa // PAGE_BYTES * PAGE_BYTES
                length = -(-(gpa + len(data) - first) // PAGE_BYTES) * PAGE_BYTES
                self._ram.append((first, spa, length))
                spa += -(-length // LARGE_PAGE_BYTES) * LARGE_PAGE_BYTES
        assert table_pages(self._ram) <= _TABLE_PAGES
        maps = [op.NestedMap(_VM, *backing) for backing in self._ram]
        self._board.execute_host((op.NestedFrames(_VM, _TABLES, _TABLE_PAGES * PAGE_BYTES), *maps))

    def _spa(self, gpa: int) -> int:
        return next(spa + gpa - first for first, spa, length in self._ram if first <= gpa < first + length)

    def _call(self, command: int, buffer: bytes = b"") -> bytes:
        (answer,) = self._board.execute_host((op.PspCommand(command, _COMMAND, buffer),))
        assert isinstance(answer, op.PspAnswer)
        if answer.status != Status.SUCCESS:
            raise PlatformRefusal(command, Status(answer.status))
        return answer.buffer

    def _write(self, spa: int, data: bytes) -> None:
        self._board.execute_host((op.HostWrite(spa, data),))

    def _read(self, spa: int, length: int) -> bytes:
        (answer,) = self._board.execute_host((op.HostRead(spa, length),))
        assert isinstance(answer, bytes)
        return answer


SIZES = {"certificate": SevCertificate.SIZE, "session": Session.SIZE, "header": PacketHeader.SIZE}
"""Bytes of the files that an owner and a host exchange."""
