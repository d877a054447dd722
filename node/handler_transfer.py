"""How a hypervisor moves a guest of SEV-SNP by the handler in its SVSM: it stops and starts it, and carries ciphertext.

Source: it has the handler greet and meet the target's; stops the guest; has the handler hand over what was written,
save areas and identity. Target: it launches the SVSM's image alone, as an initial migration image under the guest's
policy, gives that the guest's memory, and has its handler take in what came, become the guest and make its save areas,
which it enters then. What the guest shares travels as it is. A guest that stays after all is told so.

What a round copies while the guest runs is accounted, as everywhere; the last copy carries every page that holds bytes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import msgpack

from node import operations as op
from node.agent_core import DONE
from node.agent_messages import AgentRefusal, Hello, Voucher
from node.agent_transfer import greet, let_go, meet, meet_sender, order_agent
from node.cpu_model import model_of
from node.cpuid_page import cpuid_page
from node.device_moves import bring_devices, park_devices, unpark_devices
from node.frame_allocator import joined
from node.hypervisor_port import Answers, Batch, ExportTask, LaunchRefused, NoAnswer, ReceiveTask, Task
from node.launched_vm import LaunchedVm
from node.machine_spec import MachineSpec
from node.measured_launch import LaunchPage
from node.migration_handler import OWN
from node.migration_refusal import MigrationRefusal
from node.packing import packed
from node.page_state_change import change_page_state
from node.svsm_launch import guest_launch_pages
from node.svsm_memory import GUEST_VMPL
from node.vm_state import Run, VmState
from psp.launch_digest import PageType
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES, RmpEntry

if TYPE_CHECKING:
    from node.hypervisor import Hypervisor

Piece = tuple[int, int, bool]
_Call = Generator[Batch, Answers, object]


def is_of_image(record: LaunchedVm, page: LaunchPage) -> bool:
    """Whether a page of the launch is of the initial migration image: all but the firmware above the SVSM."""
    return page.page_type is PageType.VMSA or not record.firmware.gpa <= page.gpa < record.firmware.end


def _order(self: Hypervisor, vm: str, record: LaunchedVm, *order: object) -> _Call:
    """Have the handler do something; its result. Raises LaunchRefused."""
    own = record.request_pages or (yield from self.requests.own_pages(record))
    if own is None or record.svsm is None:
        raise LaunchRefused(MigrationRefusal.HANDLER_REFUSES)
    call = op.HandlerCall(
        vm, packed(order), record.svsm.gpa, record.save_areas[0], record.gctx, record.small[0], *own
    )
    (answer,) = yield (call,)
    if not isinstance(answer, bytes):
        raise NoAnswer("the migration handler does not answer")
    found: tuple[str, object] = msgpack.unpackb(answer, use_list=False)
    if found[0] != DONE:
        raise LaunchRefused(f"migration handler: {found[1]}")
    return found[1]


def handler_greets(self: Hypervisor, vm: str, record: LaunchedVm) -> ReceiveTask:
    """What the handler shows another one."""
    hello = yield from _order(self, vm, record, "hello")
    assert isinstance(hello, bytes)
    return hello


def meet_target(self: Hypervisor, record: LaunchedVm, vm: str, peer: bytes) -> ReceiveTask:
    """Source: have the handler believe the target's; its own greeting. Raises LaunchRefused; the guest is as before.

    Of a guest with an agent, agents meet first, and the handler's has the word of its own; ``peer`` is both greetings
    then, and this chip's certificates.
    """
    book = record.vmpls
    waits = any((vcpu, GUEST_VMPL) not in book.areas for vcpu in range(len(record.save_areas))) if book else True
    if waits or record.starts.halfway:
        raise LaunchRefused(MigrationRefusal.VCPU_IN_RESET)
    agents = b""
    certificates: tuple[bytes, ...] = ()
    if record.agent:
        peer, theirs, certificates = _three(peer)
        agents = yield from meet(self, record, vm, theirs)
        record.sealed = False
    try:
        hello = yield from handler_greets(self, vm, record)
        voucher = b""
        if record.agent:
            said = yield from order_agent(self, "vouch", vm, record.gctx, Hello.parse(hello).public_key)
            assert isinstance(said, bytes)
            voucher = replace(Voucher.parse(said), certificates=certificates).pack()
        yield from _order(self, vm, record, "meet", record.gctx, peer, True, voucher)
    except (LaunchRefused, AgentRefusal):
        if record.agent:
            yield from let_go(self, vm)
        raise LaunchRefused(MigrationRefusal.HANDLER_REFUSES) from None
    record.sealed = True
    return packed((hello, agents)) if record.agent else hello


def meet_source(self: Hypervisor, record: LaunchedVm, vm: str, peer: bytes) -> Task:
    """Target: the other way."""
    if record.agent:
        peer, theirs = _two(peer)
        yield from meet_sender(self, vm, theirs)
    yield from _order(self, vm, record, "meet", record.gctx, peer, False, b"")


def _two(said: bytes) -> tuple[bytes, bytes]:
    """A handler's word, and an agent's, from the wire. Raises LaunchRefused."""
    match _unpacked(said):
        case (bytes(handler), bytes(agent)):
            return handler, agent
    raise LaunchRefused(MigrationRefusal.HANDLER_REFUSES)


def _three(said: bytes) -> tuple[bytes, bytes, tuple[bytes, ...]]:
    """The same, and certificates."""
    match _unpacked(said):
        case (bytes(handler), bytes(agent), tuple(certificates)) if all(type(one) is bytes for one in certificates):
            return handler, agent, certificates
    raise LaunchRefused(MigrationRefusal.HANDLER_REFUSES)


def _unpacked(said: bytes) -> object:
    try:
        return msgpack.unpackb(said, use_list=False)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError):
        return None


# Out.


def export_by_handler(
    self: Hypervisor, record: LaunchedVm, vm: str, started: tuple[bool, ...], reset_rips: tuple[int, ...]
) -> ExportTask:
    """A stopped guest as its handler sealed it, and what the host can read as it is."""
    book = record.vmpls
    elsewhere = any(book.vmpl(vcpu) != GUEST_VMPL for vcpu in range(len(started))) if book else True
    if elsewhere or not all(started) or record.starts.halfway:
        raise LaunchRefused(MigrationRefusal.VCPU_IN_RESET)
    yield from park_devices(self, vm, record)
    ranges = tuple([(gpa, length) for gpa, length in _moved(record)])
    # From when it is asked, for one that fails may have taken the save areas before.
    record.handed_over = True
    try:
        found = yield from _order(self, vm, record, "out", record.gctx, ranges)
    except NoAnswer:
        record.handed_over = False  # Who says nothing has not begun: the guest may be entered as before.
        raise
    match found:
        case (tuple(packets), tuple(areas), bytes(identity)):
            pass
        case _:
            raise LaunchRefused(MigrationRefusal.HANDLER_REFUSES)
    if record.agent:
        identity = packed((identity, (yield from order_agent(self, "export live", vm, record.gctx))))
    _, *answers, disk = yield (
        op.HostWork("migration.stop_ns"),
        *[op.HostWork("migration.pause_vcpu_ns")] * len(started),
        *[op.HostReadWritten(spa, length) for spa, length in joined(record.frames)],
        op.DiskRead(vm),
    )
    assert isinstance(disk, op.Runs)
    plain: list[Run] = []
    for answer in answers[len(started) :]:
        assert isinstance(answer, op.Runs)
        for at, data in answer.runs:
            for gpa, spa, length in record.shown(at, len(data)):
                plain += [
                    (part, data[part - gpa + spa - at :][:size])
                    for part, size, shared in record.shared.parts(gpa, length)
                    if shared
                ]
    return VmState(
        vm, (), started, record.launched_gpas, reset_rips, tuple(sorted(plain)), disk.runs, packets, areas,
        record.shared.ranges(), record.told_by_vcpus(), identity,
    )  # fmt: skip


def stays(self: Hypervisor, record: LaunchedVm, vm: str) -> Task:
    """The guest goes on here. Raises LaunchRefused where its handler does not let it."""
    record.sealed = False
    try:
        yield from _order(self, vm, record, "stays")
        record.handed_over = False
    except NoAnswer:
        if record.handed_over:
            raise
    if record.agent:
        yield from let_go(self, vm)
    yield from unpark_devices(self, vm, record)


def _moved(record: LaunchedVm) -> Iterator[tuple[int, int]]:
    """(GPA, length) of what its handlers move: all that it does not share, but what each has of its own."""
    first, length = OWN
    image = (record.flash.gpa, record.firmware.gpa - record.flash.gpa)
    for gpa, _, size in sorted(record.ram):
        for part, piece, shared in record.shared.parts(gpa, size):
            if not shared:
                yield from _without(part, piece, ((first, length), image))


def _without(gpa: int, length: int, holes: tuple[tuple[int, int], ...]) -> Iterator[tuple[int, int]]:
    end = gpa + length
    for start, size in sorted(holes):
        if gpa < start + size and start < end:
            if gpa < start:
                yield gpa, start - gpa
            gpa = max(gpa, min(end, start + size))
    if gpa < end:
        yield gpa, end - gpa


# In.


def launch_image(self: Hypervisor, spec: MachineSpec, record: LaunchedVm) -> ReceiveTask:
    """Launch the SVSM's image alone, with the guest's memory behind it: what its handler shows. Raises as a launch."""
    model, cpuid = model_of(spec.cpu_model), cpuid_page(self.cpuid_leaves(record))
    pages = guest_launch_pages(record.images, spec.vcpus, model, 0, cpuid)
    yield from self.launch_pages(spec, record, tuple([page for page in pages if is_of_image(record, page)]))
    batch: list[op.HypervisorOperation] = []
    image = record.firmware
    length = -(-len(image.data) // PAGE_BYTES) * PAGE_BYTES
    for gpa, spa, size in record.behind(image.gpa, length):
        batch.append(op.RmpUpdate(spa, size, RmpEntry(assigned=True, gpa=gpa, asid=record.asid)))
        record.assigned.append((spa, size, False))
        record.smashed |= set(range(spa // LARGE_PAGE_BYTES * LARGE_PAGE_BYTES, spa + size, LARGE_PAGE_BYTES))
    yield from self._checked(batch)
    try:
        hello = yield from handler_greets(self, spec.name, record)
    except LaunchRefused:
        raise LaunchRefused(MigrationRefusal.HANDLER_REFUSES) from None
    return packed((hello, (yield from greet(self)))) if record.agent else hello


def share_pages(self: Hypervisor, spec: MachineSpec, record: LaunchedVm, state: VmState) -> Task:
    """What the guest shared it shares here, before a byte is laid there. Raises LaunchRefused."""
    for gpa, length in state.shared:
        change = op.PageStateChange(gpa, length, shared=True)
        if (yield from change_page_state(spec.name, record, change, self.tio.shows)):
            raise LaunchRefused(f"shared memory: none at {gpa:#x}")
    record.hear_of_vcpus(state.told)


def fill_by_handler(self: Hypervisor, spec: MachineSpec, record: LaunchedVm, state: VmState) -> Task:
    """Have the handler take in what came, and enter the guest's own save areas. Raises LaunchRefused."""
    pieces = tuple(
        (gpa + start - spa, size, large)
        for gpa, length in _moved(record)
        for gpa, spa, behind in record.behind(gpa, length)
        for start, size, large in record.pieces(spa, behind)
    )
    identity = state.context
    if record.agent:
        identity, context = _two(state.context)
        yield from order_agent(self, "absorb", spec.name, record.gctx, context)
    areas = yield from _order(self, spec.name, record, "in", state.packets, state.sealed_areas, identity, pieces)
    if not isinstance(areas, tuple) or len(areas) != spec.vcpus or record.vmpls is None:
        raise LaunchRefused(MigrationRefusal.HANDLER_REFUSES)
    for vcpu, gpa in enumerate(areas):
        spa = record.page_spa(gpa)
        if spa is None:
            raise LaunchRefused(f"save area: no memory at {gpa:#x}")
        record.vmpls.areas[vcpu, GUEST_VMPL] = spa
        record.vmpls.running[vcpu] = GUEST_VMPL
        yield (op.VmcbWrite(spec.name, vcpu, record.asid, record.generation.name, spa),)
    yield from bring_devices(self, spec, record)
