"""``sevfleet bench attestation``: reports held against bare signatures, fleets that never attest, and product roots."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives import hashes

from cluster.errors import ToolError
from cluster.figure import Figure
from cluster.fleet_garbage import collect_fleet, spare_fleet
from cluster.root_keys import RootKeys
from node import operations as op
from node.cost_table import load_cost_table
from node.firmware_image import laboratory_image
from node.generation import Generation
from node.guest import GuestSpec
from node.guest_messages import GuestMessages, MessageRefused
from node.host import Host, HostSpec
from node.hypervisor import Hypervisor
from node.operations import Shutdown, Sleep
from node.product import PRODUCTS
from node.program import Block, Demand, Placement, ProgramSpec, Registers
from psp import elliptic
from psp.attestation_report import SIGNED_BYTES
from psp.command_buffers import SnpGuestRequest
from psp.commands import SnpCommand
from psp.guest_message import MessageKey, MessageType
from psp.product_line import PRODUCT_LINES
from psp.product_root import ProductRoot, RootName
from psp.report_messages import ReportRequest
from psp.system_bus import PAGE_BYTES, RmpEntry

REPORTS = 400
"""How many of each are made."""
HOSTS = 10_000
LABORATORY = b"bench"
"""Whose root keys nobody has found before."""
MOST_OF_FIRMWARE, MOST_OF_WHOLE_WAY = 1.5, 4.0
_PRODUCT = PRODUCTS["Milan"]
_HOST_BYTES = 4 << 30
_NAME, _ENTRY = "asking", 0x40_0000


@dataclass(frozen=True, slots=True)
class Asking:
    """A program of nothing but requests for reports, one at a time: R13 counts them."""

    placement: Placement

    entry = _ENTRY
    demands: tuple[Demand, ...] = ()

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        """The block by RIP."""
        return {_ENTRY: self._ask}

    def _ask(self, registers: Registers) -> Block:
        place = self.placement
        assert place.messages is not None
        messages = GuestMessages(place.messages, place.shared_gpa, place.shared_gpa + PAGE_BYTES)
        try:
            yield from messages.ask(MessageType.REPORT_REQ, ReportRequest(b"bench").pack())
        except MessageRefused:
            return Shutdown(1)
        registers.r13 += 1
        return Sleep(1_000_000)


def build(_: ProgramSpec, placement: Placement) -> Asking:
    """Program factory."""
    return Asking(placement)


def run() -> Iterator[Figure]:
    """Time the three ways in turns, one at a time, so that caches and whatever else there is meet them alike."""
    bench = _Attesting()
    ways: tuple[Callable[[], object], ...] = (bench.signature, bench.firmware_report, bench.guest_report)
    rounds = []
    spare_fleet()  # as a process that runs a fleet does
    try:
        for number in range(REPORTS):
            bench.lay_request(number)
            rounds.append([_seconds(way) for way in ways])
    finally:
        collect_fleet()
    bare, firmware, whole = (statistics.median(column) for column in zip(*rounds, strict=True))
    yield Figure("a bare P-384 signature, RFC 6979", bare * 1e6, "us")
    yield Figure("a report by the firmware: open, build, sign, seal", firmware * 1e6, "us")
    yield Figure("a report for a guest, by GHCB and firmware", whole * 1e6, "us")
    for what, took, most in (
        ("the firmware's report", firmware, MOST_OF_FIRMWARE),
        ("the guest's report", whole, MOST_OF_WHOLE_WAY),
    ):
        yield Figure(f"{what} in signatures", took / bare, "x", most, "the most allowed")
    yield from _fleet()
    yield from _roots()


class _Attesting:
    """A host with a guest that asks, and messages that were sealed for its firmware before."""

    def __init__(self) -> None:
        self.host = _host("host", {_NAME: build})
        spec = GuestSpec("guest", Generation.SEV_SNP, 1, 64 << 20, ProgramSpec(_NAME), 1)
        self.host.launch(spec, lambda _: None, running=True)
        self.board = self.host.board
        psp, hypervisor = self.board.psp, self.host.hypervisor
        self._key = psp.legacy.keys.chip.vcek_key(psp.firmware.reported_tcb)
        assert isinstance(hypervisor, Hypervisor)
        self._gctx = hypervisor.launched("guest").gctx
        self._vmpck = MessageKey(psp.snp.guests.pages.read(self._gctx).vmpck(1))
        ((self._response, _),) = hypervisor.frames.allocate(3 * PAGE_BYTES, PAGE_BYTES)
        self._request, self._command = self._response + PAGE_BYTES, self._response + 2 * PAGE_BYTES
        firmware = RmpEntry(assigned=True, immutable=True)
        self.board.execute_host((op.RmpUpdate(self._response, PAGE_BYTES, firmware),))

    def lay_request(self, number: int) -> None:
        """The next message, with the key of VMPL1, which the guest does not use."""
        payload = ReportRequest(b"bench", 1).pack()
        message = self._vmpck.seal(1, 1 + 2 * number, MessageType.REPORT_REQ, 1, payload)
        buffer = SnpGuestRequest(self._gctx, self._request, self._response).pack()
        self.board.execute_host((op.HostWrite(self._request, message), op.HostWrite(self._command, buffer)))

    def signature(self) -> None:
        """Over as many bytes as a report's."""
        elliptic.sign(self._key, bytes(SIGNED_BYTES), hashes.SHA384())

    def firmware_report(self) -> None:
        """SNP_GUEST_REQUEST."""
        status = self.board.psp.submit(SnpCommand.GUEST_REQUEST, self._command)
        if status:
            raise ToolError(f"bench attestation: expected a report, got {status.name}")

    def guest_report(self) -> None:
        """On the guest's own way, the machinery of virtual time and all."""
        events, (vcpu,) = self.host.clock.env, self.host.guests["guest"].vcpus
        last = vcpu.registers.r13
        while vcpu.registers.r13 == last:
            events.step()


def _fleet() -> Iterator[Figure]:
    spare_fleet()
    try:
        began = time.process_time()
        fleet = [_host(f"host{number}", {}) for number in range(HOSTS)]
        took = time.process_time() - began
        touched = sum(not host.board.psp.legacy.keys.chip.untouched for host in fleet)
        del fleet
    finally:
        collect_fleet()
    yield Figure("10,000 hosts that do not attest", took, "s")
    yield Figure("chips among them that made a key", touched, "chips")


def _roots() -> Iterator[Figure]:
    """A laboratory that nobody has asked for before, then the same in another process."""
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys.json"
        yield Figure("product root of a new laboratory, the first time", _seconds(partial(_certified, keys)), "s")
        yield Figure("the same, from the disk", _seconds(partial(_certified, keys)), "s")


def _certified(keys: Path) -> None:
    root = ProductRoot(PRODUCT_LINES[_PRODUCT.name], LABORATORY, RootKeys(keys))
    for name in RootName:
        root.certificate(name)
    root.revocation_list()


def _host(name: str, programs: Mapping[str, Callable[[ProgramSpec, Placement], Asking]]) -> Host:
    spec = HostSpec(name, _PRODUCT, _HOST_BYTES, _PRODUCT.min_sev_asid, 7, 10**9)
    return Host(spec, programs, {"auto": _IMAGE}, _COSTS)


_IMAGE, _COSTS = laboratory_image(), load_cost_table()


def _seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began
