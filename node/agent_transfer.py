"""How a hypervisor moves a guest of SEV-SNP by migration agents: stop-and-copy, at the security processor's pace.

Source: every private page goes out by SNP_PAGE_SWAP_OUT, its VMSAs and then the Metadata pages too, up to the entry
that the guest's context holds; the agent has the firmware EXPORT the context, and the guest is there no more. Target:
the agent IMPORTs it into an empty context, ACTIVATE gives it a key and an ASID, and all comes in the other way round,
each page to the address that it left. What the guest shares travels as it is. A guest that stays after all is taken
back in the same way, by the agent that exported it, into the frames that it had.

A page that is out is gone for its guest, so nothing is copied while it runs. AMD's firmware interface has all of this,
and no product ships it. Source: SEV-SNP firmware ABI (56860), SNP_PAGE_SWAP_OUT and the messages EXPORT and IMPORT.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import msgpack

from node import operations as op
from node.agent_core import AGENT_IMAGE, DONE
from node.agent_messages import AgentRefusal, Hello
from node.device_moves import bring_devices, park_devices, unpark_devices
from node.expected_answers import expect_success
from node.frame_allocator import joined
from node.generation import Generation
from node.guest_memory_map import SMALLEST_GUEST_BYTES
from node.hypervisor_port import Answers, Batch, ExportTask, LaunchRefused, NoAnswer, ReceiveTask, Task
from node.launched_vm import LaunchedVm
from node.machine_spec import MachineSpec
from node.measured_launch import VMSA_GPA
from node.migration_refusal import MigrationRefusal
from node.moved_areas import MovedArea, areas_in, areas_of
from node.packing import packed
from node.page_swaps import PageSwaps, counted, held_row
from node.platform import NO_FLOOR
from node.sev_features import launch_features
from node.vm_state import Packet, Run, VmState
from psp import command_buffers as buffers
from psp.commands import SnpCommand
from psp.page_swap import DATA, VMSA
from psp.secret_packet import PacketHeader
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES, RmpEntry

if TYPE_CHECKING:
    from node.hypervisor import Hypervisor

BY_AGENT = frozenset({Generation.SEV_SNP, Generation.SEV_TIO})
"""Generations that move this way."""
AGENT = "migration agent"
"""The name of a host's own."""
_NO_HEADER = bytes(PacketHeader.SIZE)
_HYPERVISOR, _FIRMWARE = RmpEntry(), RmpEntry(assigned=True, immutable=True)
_Call = Generator[Batch, Answers, object]


def launch_agent(self: Hypervisor, floor: bytes = NO_FLOOR) -> Task:
    """Launch the host's migration agent; ``floor`` is its HOST_DATA. Raises LaunchRefused."""
    spec = MachineSpec(AGENT, Generation.SEV_SNP, 1, SMALLEST_GUEST_BYTES, AGENT)
    record = self._vms[AGENT] = LaunchedVm(Generation.SEV_SNP, AGENT_IMAGE, host_data=floor)
    yield from self._take_memory(spec, record)
    yield from self.launch_snp(spec, record)
    there, back = self.small_page(record), self.small_page(record)
    yield from self.give_to_firmware(back)
    record.firmware_pages.append(back)
    record.request_pages = there, back
    yield from self._checked([op.VmRun(AGENT, 0)])
    self.requests.agent_report = lambda: own_report(self)


def own_report(self: Hypervisor) -> ReceiveTask:
    """The agent's report, for guests to show with theirs; nothing of one that says nothing."""
    try:
        return Hello.parse((yield from greet(self))).report
    except (LaunchRefused, AgentRefusal):
        return b""


def restart_agent(self: Hypervisor, floor: bytes = NO_FLOOR) -> Task:
    """The host was switched off and on: its agent begins anew, and keeps nothing."""
    yield from self.destroy(AGENT)
    yield from launch_agent(self, floor)


def has_agent(self: Hypervisor) -> bool:
    """Whether this host's agent is there, and is launched."""
    return AGENT in self._vms and self._vms[AGENT].request_pages is not None


def agent_context(self: Hypervisor) -> int:
    """Where the agent's context lies. Raises LaunchRefused on a host that has none."""
    if not has_agent(self):
        raise LaunchRefused("migration_agent: this host has none")
    return self._vms[AGENT].gctx


def order_agent(self: Hypervisor, *order: object) -> _Call:
    """Have the agent do something; its result. Raises LaunchRefused."""
    agent_context(self)
    agent = self._vms[AGENT]
    assert agent.request_pages is not None
    (answer,) = yield (op.AgentCall(AGENT, packed(order), agent.gctx, agent.small[0], *agent.request_pages),)
    if not isinstance(answer, bytes):
        raise NoAnswer("the migration agent does not answer")
    found: tuple[str, object] = msgpack.unpackb(answer, use_list=False)
    if found[0] != DONE:
        raise LaunchRefused(f"migration agent: {found[1]}")
    return found[1]


def greet(self: Hypervisor) -> ReceiveTask:
    """What this host's agent shows others. Raises LaunchRefused."""
    try:
        hello = yield from order_agent(self, "hello")
    except LaunchRefused:
        raise LaunchRefused(MigrationRefusal.AGENT_REFUSES) from None
    assert isinstance(hello, bytes)
    return hello


def meet(self: Hypervisor, record: LaunchedVm, vm: str, peer: bytes) -> ReceiveTask:
    """Source: have the agent believe the target's; its own greeting. Raises LaunchRefused; the guest is as before."""
    if record.starts.halfway:
        raise LaunchRefused(MigrationRefusal.VCPU_IN_RESET)
    try:
        hello = yield from greet(self)
        yield from order_agent(self, "meet", vm, peer, False)
    except LaunchRefused:
        raise LaunchRefused(MigrationRefusal.AGENT_REFUSES) from None
    record.sealed = True
    return hello


def meet_sender(self: Hypervisor, vm: str, peer: bytes) -> Task:
    """Target: the other way; the source's firmware may be older."""
    yield from order_agent(self, "meet", vm, peer, True)


# Out.


def export_by_agent(
    self: Hypervisor, record: LaunchedVm, vm: str, started: tuple[bool, ...], reset_rips: tuple[int, ...]
) -> ExportTask:
    """A stopped guest's pages as firmware swapped them out, and its context as the agent says it to its peer."""
    if record.starts.halfway:
        raise LaunchRefused(MigrationRefusal.VCPU_IN_RESET)
    yield from park_devices(self, vm, record)
    seats = areas_of(record)
    areas = [spa for _, _, spa in seats]
    _, *answers = yield (
        op.HostWork("migration.stop_ns"),
        *[op.HostWork("migration.pause_vcpu_ns")] * len(started),
        *[op.HostReadWritten(spa, length) for spa, length in joined(record.frames)],
        op.DiskRead(vm),
    )
    *answers, disk = answers[len(started) :]
    assert isinstance(disk, op.Runs)
    plain: list[Run] = []
    private: list[tuple[int, int]] = []
    for answer in answers:
        assert isinstance(answer, op.Runs)
        for at, data in answer.runs:
            for gpa, spa, length in record.shown(at, len(data)):
                for part, size, shared in record.shared.parts(gpa, length):
                    if shared:
                        plain.append((part, data[part - gpa + spa - at :][:size]))
                    else:
                        first = spa + part - gpa
                        private += [(part + page, first + page) for page in range(0, size, PAGE_BYTES)]
    private = sorted(one for one in private if one[1] not in areas)
    in_memory = {spa: gpa for gpa, spa in ((gpa, record.page_spa(gpa)) for gpa in _gpas_of(record, areas)) if spa}
    swaps = PageSwaps(self, record)
    yield from swaps.begin()
    try:
        yield from _smash(self, record, [spa for _, spa in private] + [spa for spa in areas if spa in in_memory])
        yield from _hold(self, record, areas, in_memory)
        packets, sealed, rows, metadata = yield from _swap_out(record, swaps, private, seats, in_memory)
    except LaunchRefused:
        # Part of it is out: that comes back, and firmware lets go of what it holds besides.
        yield from _as_far_as_it_goes(record, swaps.undo())
        if record.torn:
            record.firmware_pages += swaps.pages
        yield from _reclaim_each(self, record, [spa for spa in areas if spa not in in_memory])
        raise
    yield from swaps.end()
    state = VmState(
        vm, (), started, record.launched_gpas, reset_rips, tuple(plain), disk.runs, packets, sealed,
        record.shared.ranges(), record.told_by_vcpus(), b"", metadata, rows,
    )  # fmt: skip
    try:
        context = yield from order_agent(self, "export", vm, record.gctx)
    except LaunchRefused:
        # The guest is the firmware's still, and all of it is out.
        yield from self._checked(
            [held_row(record, gpa, record.spa_of(gpa), pages, large=large) for gpa, pages, large in rows]
        )
        yield from _as_far_as_it_goes(record, _come_in(self, record, state, [spa for _, spa in private], areas))
        if record.torn:
            yield from _reclaim_each(self, record, [spa for spa in areas if spa not in in_memory])
        raise
    assert isinstance(context, bytes)
    # EXPORT has taken the context; its page is firmware's, and the pages are nobody's but the host's to take back.
    record.gctx, record.left = 0, record.gctx
    record.immutable.update({spa for _, spa in private} | set(areas))
    record.out = state._replace(context=context)
    return record.out


def _as_far_as_it_goes(record: LaunchedVm, back: Task) -> Task:
    """Have pages come back; where firmware takes one no more the guest cannot go on, and its record says why."""
    try:
        yield from back
    except LaunchRefused as why:
        record.torn = str(why)


_Out = tuple[tuple[Packet, ...], tuple[Packet, ...], tuple[tuple[int, int, bool], ...], tuple[bytes, ...]]
"""Pages, save areas, rows as (GPA, pages, large), and Metadata pages."""


def _swap_out(
    record: LaunchedVm, swaps: PageSwaps, private: list[tuple[int, int]], seats: list[tuple[int, int, int]],
    in_memory: dict[int, int],
) -> Generator[Batch, Answers, _Out]:  # fmt: skip
    """SNP_PAGE_SWAP_OUT of all that is the guest's alone. Raises LaunchRefused, with part of it out."""
    packets: list[Packet] = []
    for gpa, spa in private:
        page = yield from swaps.out(DATA, spa)
        packets.append((gpa, _NO_HEADER, page))
    sealed: list[Packet] = []
    for number, (vcpu, vmpl, spa) in enumerate(seats):
        page = yield from swaps.out(VMSA, spa)
        one = MovedArea(in_memory.get(spa, VMSA_GPA), vcpu, vmpl, record.seat(vcpu) == (vcpu, vmpl))
        sealed.append((number, one.pack(), page))
    gone = {spa for _, spa in private} | {spa for _, _, spa in seats}
    rows = []
    for gpa, spa, pages, large in list(_rows(record, gone)):
        done, size = 0, LARGE_PAGE_BYTES if large else PAGE_BYTES
        while done < pages:
            taken = yield from swaps.row(gpa + done * size, spa + done * size, pages - done, large=large)
            rows.append((gpa + done * size, taken, large))
            done += taken
    metadata = yield from swaps.close()
    return tuple(packets), tuple(sealed), tuple(rows), metadata


def _gpas_of(record: LaunchedVm, areas: list[int]) -> list[int]:
    """GPAs of those save areas that lie in the guest's own memory."""
    return [gpa for spa in areas for gpa, _, _ in record.shown(spa, PAGE_BYTES)]


def _smash(self: Hypervisor, record: LaunchedVm, spas: list[int]) -> Task:
    """Entries of 4 KiB where pages go one by one."""
    blocks = sorted({spa // LARGE_PAGE_BYTES * LARGE_PAGE_BYTES for spa in spas} - record.smashed)
    record.smashed.update(blocks)
    yield from self._checked([op.PSmash(block) for block in blocks])


def _private(record: LaunchedVm) -> Iterator[tuple[int, int, int, bool]]:
    """(GPA, SPA, length, large) of all that the guest does not share."""
    for gpa, spa, length in record.ram:
        for part, size, shared in record.shared.parts(gpa, length):
            if not shared:
                for start, piece, large in record.pieces(spa + part - gpa, size):
                    yield part + start - (spa + part - gpa), start, piece, large


def _hold(self: Hypervisor, record: LaunchedVm, areas: list[int], in_memory: dict[int, int]) -> Task:
    """RMPUPDATE of every private page to Pre-Swap, or Pre-Guest where the guest has not validated it, or not got it."""
    batch: list[op.HypervisorOperation] = []
    for gpa, spa, length, large in _private(record):
        entry = RmpEntry(assigned=True, immutable=True, large=large, gpa=gpa, asid=record.asid)
        batch.append(op.RmpUpdate(spa, length, entry))
    entry = RmpEntry(assigned=True, immutable=True, gpa=VMSA_GPA, asid=record.asid)
    batch += [op.RmpUpdate(spa, PAGE_BYTES, entry) for spa in areas if spa not in in_memory]
    yield from self._checked(batch)


def _rows(record: LaunchedVm, gone: set[int]) -> Iterator[tuple[int, int, int, bool]]:
    """(GPA, SPA, pages, large) of private pages but those that are gone."""
    for gpa, spa, length, large in _private(record):
        if large:
            yield gpa, spa, length // LARGE_PAGE_BYTES, True
            continue
        first = spa
        for page in range(spa, spa + length + PAGE_BYTES, PAGE_BYTES):
            if page in gone or page == spa + length:
                if first < page:
                    yield gpa + first - spa, first, (page - first) // PAGE_BYTES, False
                first = page + PAGE_BYTES


# In.


def fill_by_agent(self: Hypervisor, spec: MachineSpec, record: LaunchedVm, state: VmState) -> Task:
    """A guest that came: its context, and all of its pages. Raises LaunchRefused."""
    found = areas_in(state, spec.vcpus, levels=spec.svsm)
    for gpa, length in state.shared:
        record.shared.change(gpa, length, shared=True)
    record.hear_of_vcpus(state.told)
    record.sev_features = launch_features(self.product.name, spec.sev_features)
    record.gctx = gctx = self.small_page(record)
    yield from self.give_to_firmware(gctx)
    record.firmware_pages.append(gctx)
    yield from _enter(self, record, "import", spec.name, state.context)
    spas = record.spas_of(gpa for gpa, _, _ in state.packets)
    areas = []
    for one in found:
        spa = self.small_page(record) if one.gpa == VMSA_GPA else record.page_spa(one.gpa)
        if spa is None:
            raise LaunchRefused(f"save area: no memory at {one.gpa:#x}")
        areas.append((spa, one.gpa))
    smashed = {spa // LARGE_PAGE_BYTES * LARGE_PAGE_BYTES for spa in spas}
    smashed |= {spa // LARGE_PAGE_BYTES * LARGE_PAGE_BYTES for spa, gpa in areas if gpa != VMSA_GPA}
    small_rows = record.spas_of(gpa for gpa, _, large in state.rows if not large)
    smashed |= {spa // LARGE_PAGE_BYTES * LARGE_PAGE_BYTES for spa in small_rows}
    record.smashed |= smashed
    record.assigned += [(spa, length, large) for _, spa, length, large in _private(record)]
    record.assigned += [(spa, PAGE_BYTES, False) for spa, gpa in areas if gpa == VMSA_GPA]
    yield from _hold(self, record, [spa for spa, _ in areas], {spa: gpa for spa, gpa in areas if gpa != VMSA_GPA})
    try:
        yield from _come_in(self, record, state, spas, [spa for spa, _ in areas])
    except LaunchRefused:
        yield from _reclaim_each(self, record, [spa for spa, gpa in areas if gpa == VMSA_GPA])
        raise
    record.save_areas = [spa for spa, _ in areas[: spec.vcpus]]
    record.open_vmpls()
    entered = {}
    for one, (spa, _) in zip(found, areas, strict=True):
        if record.vmpls is not None:
            record.vmpls.areas[one.vcpu, one.vmpl] = spa
        if one.entered:
            entered[one.vcpu] = one.vmpl, spa
    if record.vmpls is not None:
        record.vmpls.running |= {vcpu: vmpl for vcpu, (vmpl, _) in entered.items()}
    yield tuple(
        op.VmcbWrite(spec.name, vcpu, record.asid, spec.generation.name, entered[vcpu][1])
        for vcpu in range(spec.vcpus)
    )
    yield from bring_devices(self, spec, record)


def _enter(self: Hypervisor, record: LaunchedVm, order: str, vm: str, *more: object) -> Task:
    """A context that the agent brings, and its ASID."""
    command = record.small[0]
    yield from self.must(SnpCommand.GCTX_CREATE, command, buffers.GuestContextPage(address=record.gctx).pack())
    yield from order_agent(self, order, vm, record.gctx, *more)
    activate = buffers.SnpActivate(gctx=record.gctx, asid=record.asid)
    yield from self.must(SnpCommand.ACTIVATE, command, activate.pack())


def _reclaim_each(self: Hypervisor, record: LaunchedVm, areas: list[int]) -> Task:
    """PAGE_RECLAIM of all that did not come in; of what did, and is the guest's, firmware says so."""
    pages = [(spa, False) for spa in areas]
    for _, spa, length, large in _private(record):
        pages += [(page, large) for page in range(spa, spa + length, LARGE_PAGE_BYTES if large else PAGE_BYTES)]
    yield tuple(
        op.PspCommand(
            SnpCommand.PAGE_RECLAIM, self.command_page, buffers.SnpPageReclaim(address=spa | large).pack(), paid=True
        )
        for spa, large in pages
    )


def _come_in(self: Hypervisor, record: LaunchedVm, state: VmState, spas: list[int], areas: list[int]) -> Task:
    """Every page, in the order of its entries."""
    swaps = PageSwaps(self, record)
    yield from swaps.open(state.metadata, len(state.packets) + len(state.sealed_areas) + len(state.rows))
    for (_, _, sealed), spa in zip(state.packets, spas, strict=True):
        yield from swaps.back(DATA, spa, sealed, swaps.next_entry())
    for (_, _, sealed), spa in zip(state.sealed_areas, areas, strict=True):
        yield from swaps.back(VMSA, spa, sealed, swaps.next_entry())
    for gpa, pages, _ in state.rows:
        (taken,) = yield (op.SwapRowIn(record.gctx, record.spa_of(gpa), swaps.next_entry()),)
        if counted(taken, SnpCommand.PAGE_SWAP_IN) != pages:
            raise LaunchRefused(f"row at {gpa:#x}: expected {pages} pages, got others")
    yield from swaps.shut()


def take_back(self: Hypervisor, record: LaunchedVm, vm: str) -> Task:
    """The guest stays after all: into the frames, and with the ASID, that it had. Raises LaunchRefused: it is lost."""
    record.sealed = False
    if record.torn:
        raise LaunchRefused(record.torn)
    state, record.out = record.out, None
    if state is None:
        # It never left: what the agent says, or that it says nothing, changes nothing of that.
        yield from let_go(self, vm)
        yield from unpark_devices(self, vm, record)
        return
    record.gctx = record.left
    expect_success((yield (op.Wbinvd(), op.PspCommand(SnpCommand.DF_FLUSH)))[1:], SnpCommand.DF_FLUSH)
    self.asids.after_flush()
    # ACTIVATE takes no ASID that has pages.
    yield from take_frames(self, record)
    yield from _enter(self, record, "take back", vm)
    yield from lay_back(self, record, state)
    yield from unpark_devices(self, vm, record)


def take_frames(self: Hypervisor, record: LaunchedVm) -> Task:
    """The frames of a guest that is out: they are nobody's, and its hypervisor's again."""
    yield from self._reclaim(record)
    record.immutable.clear()


def lay_back(self: Hypervisor, record: LaunchedVm, state: VmState) -> Task:
    """All pages of a guest that is out, into the frames that it had."""
    areas = [spa for _, _, spa in areas_of(record)]
    places = [MovedArea.parse(header).gpa for _, header, _ in state.sealed_areas]
    in_memory = {spa: gpa for spa, gpa in zip(areas, places, strict=True) if gpa != VMSA_GPA}
    yield from _hold(self, record, areas, in_memory)
    try:
        yield from _come_in(self, record, state, record.spas_of(gpa for gpa, _, _ in state.packets), areas)
    except LaunchRefused:
        yield from _reclaim_each(self, record, [spa for spa in areas if spa not in in_memory])
        raise


def let_go(self: Hypervisor, vm: str) -> Task:
    """The agent forgets a guest that it has no part in any more, unless it was switched off meanwhile."""
    with suppress(LaunchRefused):
        yield from order_agent(self, "forget", vm)
