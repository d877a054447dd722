"""``sevfleet bench psp``: launches through the security processor, hosts without guests, and what guests leave."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from cluster.errors import ToolError
from cluster.figure import Figure
from cluster.fleet_garbage import collect_fleet, spare_fleet
from node import operations as op
from node.board import Board
from node.cost_table import load_cost_table
from node.counter_random import CounterRandom
from node.firmware_image import FirmwareImage, firmware_image
from node.generation import Generation
from node.guest import GuestSpec, GuestState
from node.host import Host, HostSpec
from node.host_bring_up import TRUSTED_REGION_BYTES, bring_up_steps, refusal
from node.laboratory_firmware import build_image
from node.physical_port import PhysicalPort
from node.product import PRODUCTS
from node.program import ProgramSpec
from psp import command_buffers as buffers
from psp.byte_layout import ByteLayout
from psp.commands import LegacyCommand, SnpCommand, command_name
from psp.launch_digest import PageType
from psp.policy import LegacyPolicy
from psp.status import Status
from psp.system_bus import PAGE_BYTES, RmpEntry
from workloads.library import PROGRAMS, validate_parameters

IMAGE_BYTES = 4 << 20
FIRST_S, AGAIN_S, HOSTS_S = 0.060, 0.015, 1.0
"""What is asked of a launch, of one more, and of the hosts."""
LAUNCHES = 12
HOSTS = 1000
GUESTS = 2000
_PRODUCT = PRODUCTS["Milan"]
_HOST_BYTES = 8 << 30
_BOARD_BYTES = 64 << 20
_TMR, _COMMAND, _CONTEXT, _PAGE, _OUT = 0x200_0000, 0x100_0000, 0x100_1000, 0x100_2000, 0x100_3000
_FIRMWARE, _HYPERVISOR = RmpEntry(assigned=True, immutable=True), RmpEntry()
_MIN_SEV_ASID = 100
_SNP_ASID, _ES_ASID = 1, 2
_DEATHS = 10
"""States in which a guest ends: five of SNP's life, five of a SEV-ES guest's."""


def run() -> Iterator[Figure]:
    """Launches of a 4 MiB image, hosts without guests, and guests destroyed in any state.

    Raises ToolError if a host is not as it was before its guests.
    """
    image = firmware_image(build_image(IMAGE_BYTES), "4 MiB")
    host = _host("host", image)
    first, *again = [_launch_s(host, f"vm{number}") for number in range(LAUNCHES)]
    yield Figure("launch of a 4 MiB image on a host, the first", first, "s", FIRST_S, "asked for")
    yield Figure("launch of the same image again", statistics.median(again), "s", AGAIN_S, "asked for")
    spare_fleet()  # as a process that runs a fleet does
    try:
        took = _seconds(lambda: [_host(f"host{number}", image) for number in range(HOSTS)])
    finally:
        collect_fleet()
    yield Figure("1,000 hosts without guests", took, "s", HOSTS_S, "asked for")
    took = _seconds(partial(live_and_die, GUESTS))
    yield Figure("2,000 guests launched and destroyed, tables as before", took, "s")


def live_and_die(guests: int) -> None:
    """Take guests of both interfaces through the firmware, each to another end.

    Raises ToolError for what they leave behind.
    """
    lab = _Laboratory()
    fresh = lab.state()
    for number in range(guests):
        lab.snp(number % _DEATHS) if number % 2 else lab.sev(number % _DEATHS)
    left = lab.state()
    differing = [name for name, value in left.items() if value != fresh[name]]
    if differing:
        raise ToolError(f"bench psp: expected a host as before its guests, got other {', '.join(differing)}")


class _Laboratory:
    """A board whose hypervisor has a page for each purpose and one guest at a time."""

    def __init__(self) -> None:
        self.board = Board("board", _PRODUCT, _BOARD_BYTES, _MIN_SEV_ASID, CounterRandom(1))
        (syscfg,) = self.board.execute_host((op.ReadMsr(0, 0xC001_0010),))
        assert isinstance(syscfg, int)
        for step in bring_up_steps(_PRODUCT, _COMMAND, syscfg, trusted_region=_TMR):
            refused = refusal(step, self.board.execute_host(step.batch))
            if refused:
                raise ToolError(f"bench psp: {refused}")
        assert TRUSTED_REGION_BYTES <= _BOARD_BYTES - _TMR
        self._do(op.HostClear(_COMMAND, PAGE_BYTES))

    def state(self) -> Mapping[str, object]:
        """All that a guest could leave behind."""
        board, psp = self.board, self.board.psp
        pages = [*range(0, _BOARD_BYTES, PAGE_BYTES)]
        rmp = board.rmp
        assert rmp is not None
        return {
            "DRAM": [one for one in PhysicalPort(board.dram).dump_written() if any(one[1])],
            "RMP": [rmp.entry(spa) for spa in pages if rmp.covers(spa)],
            "keys": [asid for asid in range(1, _PRODUCT.max_asid + 1) if board.controller.has_key(asid)],
            "contexts": list(psp.snp.guests.pages.spas),
            "guests": dict(psp.legacy.guests),
            "pages of ASIDs": [rmp.pages_of_asid(asid) for asid in (_SNP_ASID, _ES_ASID)],
            "states": (psp.legacy.state, psp.snp.state),
        }

    def snp(self, end: int) -> None:
        """An SNP guest that ends after so many steps of its life."""
        gctx = buffers.GuestContextPage(_CONTEXT)
        entry = RmpEntry(assigned=True, immutable=True, gpa=0x5000, asid=_SNP_ASID)
        steps: tuple[Callable[[], object], ...] = (
            lambda: self._call(SnpCommand.LAUNCH_START, buffers.SnpLaunchStart(_CONTEXT, 0x3_0000)),
            lambda: self._call(SnpCommand.ACTIVATE, buffers.SnpActivate(_CONTEXT, _SNP_ASID)),
            lambda: self._do(op.RmpUpdate(_PAGE, PAGE_BYTES, entry)),
            lambda: self._call(SnpCommand.LAUNCH_UPDATE, buffers.SnpLaunchUpdate.of(_CONTEXT, PageType.NORMAL, _PAGE)),
            lambda: self._call(SnpCommand.LAUNCH_FINISH, buffers.SnpLaunchFinish(_CONTEXT)),
        )
        self._do(op.RmpUpdate(_CONTEXT, PAGE_BYTES, _FIRMWARE))
        self._call(SnpCommand.GCTX_CREATE, gctx)
        for step in steps[: end // 2 + 1]:
            step()
        if end // 2 == 2:
            self._call(SnpCommand.PAGE_RECLAIM, buffers.SnpPageReclaim(_PAGE))
        self._do(op.RmpUpdate(_PAGE, PAGE_BYTES, _HYPERVISOR), op.HostClear(_PAGE, PAGE_BYTES))
        self._call(SnpCommand.DECOMMISSION, gctx)
        self._call(SnpCommand.PAGE_RECLAIM, buffers.SnpPageReclaim(_CONTEXT))
        self._do(op.RmpUpdate(_CONTEXT, PAGE_BYTES, _HYPERVISOR), op.HostClear(_CONTEXT, PAGE_BYTES))
        self._flush()

    def sev(self, end: int) -> None:
        """The same of a SEV-ES guest."""
        start = buffers.LaunchStart(policy=LegacyPolicy.ES)
        handle = buffers.LaunchStart.parse(self._lent(LegacyCommand.LAUNCH_START, start)).handle
        update = buffers.LaunchUpdateVmsa(handle, _PAGE, PAGE_BYTES)
        steps: tuple[Callable[[], object], ...] = (
            lambda: self._call(LegacyCommand.ACTIVATE, buffers.Activate(handle, _ES_ASID)),
            lambda: self._call(LegacyCommand.LAUNCH_UPDATE_VMSA, update, _PAGE),
            lambda: self._lent(LegacyCommand.LAUNCH_MEASURE, buffers.LaunchMeasure(handle, _OUT, 48), _OUT),
            lambda: self._call(LegacyCommand.LAUNCH_FINISH, buffers.Handle(handle)),
        )
        for step in steps[: end // 2]:
            step()
        self._do(op.HostClear(_PAGE, PAGE_BYTES), op.HostClear(_OUT, PAGE_BYTES))
        self._call(LegacyCommand.DEACTIVATE, buffers.Handle(handle))
        self._call(LegacyCommand.DECOMMISSION, buffers.Handle(handle))
        self._flush()

    def _flush(self) -> None:
        self._do(op.Wbinvd(), op.PspCommand(SnpCommand.DF_FLUSH), op.HostClear(_COMMAND, PAGE_BYTES))

    def _lent(self, command: int, buffer: ByteLayout, *pages: int) -> bytes:
        """A command that returns fields in its buffer; the page is firmware's meanwhile."""
        self._do(op.HostWrite(_COMMAND, buffer.pack()), op.RmpUpdate(_COMMAND, PAGE_BYTES, _FIRMWARE))
        self._call_on(command, pages)
        self._reclaim(_COMMAND)
        (answer,) = self.board.execute_host((op.HostRead(_COMMAND, buffer.SIZE),))
        assert isinstance(answer, bytes)
        return answer

    def _call(self, command: int, buffer: ByteLayout, *pages: int) -> None:
        """A command; ``pages`` are firmware's meanwhile."""
        self._do(op.HostWrite(_COMMAND, buffer.pack()))
        self._call_on(command, pages)

    def _call_on(self, command: int, pages: tuple[int, ...]) -> None:
        self._do(*[op.RmpUpdate(spa, PAGE_BYTES, _FIRMWARE) for spa in pages])
        self._do(op.PspCommand(command, _COMMAND))
        for spa in pages:
            self._reclaim(spa)

    def _reclaim(self, spa: int) -> None:
        # The command page itself may be firmware's now, so the buffer lies elsewhere.
        reclaim = op.PspCommand(SnpCommand.PAGE_RECLAIM, _OUT + PAGE_BYTES, buffers.SnpPageReclaim(spa).pack())
        self._do(reclaim, op.RmpUpdate(spa, PAGE_BYTES, _HYPERVISOR), op.HostClear(_OUT + PAGE_BYTES, PAGE_BYTES))

    def _do(self, *batch: op.HypervisorOperation) -> None:
        for one, answer in zip(batch, self.board.execute_host(batch), strict=True):
            if isinstance(answer, op.PspAnswer) and isinstance(one, op.PspCommand):
                if answer.status:
                    name, found = command_name(one.command), Status(answer.status).name
                    raise ToolError(f"bench psp: expected {name} to succeed, got {found}")
            elif answer not in (None, 0):
                raise ToolError(f"bench psp: expected {one!r} to succeed, got {answer!r}")


def _host(name: str, image: FirmwareImage) -> Host:
    spec = HostSpec(name, _PRODUCT, _HOST_BYTES, _MIN_SEV_ASID, 7, 10**9)
    return Host(spec, PROGRAMS, {"auto": image}, _COSTS)


def _launch_s(host: Host, name: str) -> float:
    """What a launch takes; the VM goes before it does anything."""
    spec = GuestSpec(name, Generation.SEV_SNP, 1, 64 << 20, _PROGRAM, 1)

    def launch() -> None:
        host.launch(spec, lambda _: None)
        while host.guests[name].state is GuestState.LAUNCHING:
            host.clock.env.step()

    took = _seconds(launch)
    host.destroy(name)
    return took


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


_PROGRAM = ProgramSpec("random-access", validate_parameters("random-access", {}))
_COSTS = dict(load_cost_table())
