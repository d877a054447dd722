"""How a hypervisor reads a stopped VM whose memory it can read, and lays down one that came; PLAIN and SME.

Those whose memory and registers only their firmware reads go the way of ``node.sealed_transfer``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from node import operations as op
from node.agent_transfer import BY_AGENT, export_by_agent, fill_by_agent, greet, has_agent
from node.asid_pool import AsidsExhausted
from node.expected_answers import expect_done, octets
from node.frame_allocator import OutOfMemory, joined
from node.handler_transfer import export_by_handler, fill_by_handler, launch_image, share_pages
from node.hypervisor_port import ExportTask, FillTask, LaunchRefused, ReceiveTask, Task
from node.launched_vm import LaunchedVm
from node.machine_spec import MachineSpec
from node.migration_refusal import REFUSALS, MigrationRefusal
from node.sealed_transfer import SEALED, export_sealed, fill_sealed, record_of, show_platform
from node.sev_features import features_of
from node.svsm_launch import svsm_below
from node.vm_state import Run, VmState, whole_runs
from node.vmsa import VMSA_BYTES, StoredArea

if TYPE_CHECKING:
    from node.hypervisor import Hypervisor

STOP, RESUME = op.HostWork("migration.stop_ns"), op.HostWork("migration.resume_ns")
PAUSE = op.HostWork("migration.pause_vcpu_ns")


def export(self: Hypervisor, vm: str, started: tuple[bool, ...], reset_rips: tuple[int, ...]) -> ExportTask:
    """Read a stopped VM whole: registers, memory and disk. Raises LaunchRefused where its firmware does not send it."""
    record = record_of(self, vm)
    if record.generation in SEALED:
        return (yield from export_sealed(self, vm, started, reset_rips))
    if record.sealed and record.handler:
        return (yield from export_by_handler(self, record, vm, started, reset_rips))
    if record.sealed:
        return (yield from export_by_agent(self, record, vm, started, reset_rips))
    c_bit = record.c_bit
    # One batch: the VM stands still, so nothing changes between one read and the next.
    found = yield (
        STOP,
        *[PAUSE] * len(record.save_areas),
        *[op.HostRead(spa, VMSA_BYTES, c_bit) for spa in record.save_areas],
        *[op.HostReadWritten(spa, length, c_bit) for spa, length in joined(record.frames)],
        op.DiskRead(vm),
    )
    _, *answers, disk = found[len(record.save_areas) :]
    areas, memory = answers[: len(record.save_areas)], answers[len(record.save_areas) :]
    pages: list[Run] = []
    for answer in memory:
        assert isinstance(answer, op.Runs)
        pages += [
            (gpa, data if length == len(data) else data[spa - at : spa - at + length])
            for at, data in answer.runs
            for gpa, spa, length in record.shown(at, len(data))
        ]
    assert isinstance(disk, op.Runs)
    pages.sort()
    return VmState(vm, octets(tuple(areas)), started, record.launched_gpas, reset_rips, whole_runs(pages), disk.runs)


def receive(self: Hypervisor, spec: MachineSpec) -> ReceiveTask:
    """Take everything that a VM which is to come will need; the platform's certificates where firmware receives it.

    Raises LaunchRefused with everything given back.
    """
    if spec.generation in REFUSALS and not (spec.migration_agent or spec.migration_handler):
        raise LaunchRefused(REFUSALS[spec.generation])
    if spec.sev_features & ~features_of(self.product.name):
        raise LaunchRefused(MigrationRefusal.SEV_FEATURES)
    if spec.migration_agent and not has_agent(self):
        raise LaunchRefused(MigrationRefusal.NO_AGENT_THERE)
    record = self.record_for(spec)
    shown = b""
    try:
        record.svsm = svsm_below(record.firmware, spec)
        yield from self._take_memory(spec, record)
        if spec.migration_handler:
            shown = yield from launch_image(self, spec, record)
        elif spec.generation in SEALED:
            yield from self._take_asid(record)
            shown = yield from show_platform(self, record)
        elif spec.migration_agent:
            yield from self._take_asid(record)
            shown = yield from greet(self)
    except LaunchRefused:
        yield from self.destroy(spec.name)
        raise
    except (OutOfMemory, AsidsExhausted) as error:
        yield from self.destroy(spec.name)
        raise LaunchRefused(str(error)) from error
    return shown


def fill(self: Hypervisor, spec: MachineSpec, state: VmState) -> FillTask:
    """Lay down a VM that came; its record, and its pages as they can be read back. Raises LaunchRefused."""
    record = record_of(self, spec.name)
    if record.handler:
        yield from share_pages(self, spec, record, state)
    try:
        areas = take_areas(self, record, state)
    except OutOfMemory as error:
        raise LaunchRefused(str(error)) from error
    return (yield from fill_at(self, spec, state, areas))


Areas = list[tuple[int, bytes | StoredArea]]
"""Where each vCPU's registers are to lie, and what lies there."""


def take_areas(self: Hypervisor, record: LaunchedVm, state: VmState) -> Areas:
    """Take frames for the registers of a VM that came. Raises OutOfMemory with none taken."""
    record.launched_gpas = state.launched
    spas = self.frames.allocate_pages(len(state.save_areas))
    for spa in spas:
        record.add_area(spa)
    return list(zip(spas, state.save_areas, strict=True))


def fill_at(self: Hypervisor, spec: MachineSpec, state: VmState, areas: Areas) -> FillTask:
    """As ``fill``, once that is done."""
    record = record_of(self, spec.name)
    pages, c_bit = placed(record, state.pages), record.c_bit
    writes: list[op.HypervisorOperation] = [op.HostWrite(spa, data, c_bit) for spa, data in pages]
    writes += [op.DiskWrite(spec.name, lba, data) for lba, data in state.blocks]
    for index, (spa, area) in enumerate(areas):
        writes += [
            op.HostWrite(spa, bytes(area), c_bit),
            op.VmcbWrite(spec.name, index, record.asid, spec.generation.name, spa),
        ]
    # One batch: before its first VMRUN nobody but the host knows of the VM.
    reads = [op.HostRead(spa, len(data), c_bit) for spa, data in pages]
    answers = yield (*writes, RESUME, *reads)
    expect_done(writes, answers[: len(writes)])
    back = octets(answers[len(writes) + 1 :])
    if spec.generation in SEALED:
        yield from fill_sealed(self, spec, record, state)
    elif record.handler:
        yield from fill_by_handler(self, spec, record, state)
    elif spec.generation in BY_AGENT:
        yield from fill_by_agent(self, spec, record, state)
    run = (op.VmRun(spec.name, 0),)
    expect_done(run, (yield run))
    return record.entered(), b"".join(back)


def set_clock(_: Hypervisor, vm: str, vcpus: int, offset: int) -> Task:
    """TSC_OFFSET of each vCPU's control block. Raises LaunchRefused where one takes none."""
    stores = [op.VmcbStore(vm, vcpu, "TSC_OFFSET", offset) for vcpu in range(vcpus)]
    expect_done(stores, (yield tuple(stores)))


def placed(record: LaunchedVm, pages: tuple[Run, ...]) -> list[Run]:
    """Runs by SPA, of runs by GPA."""
    return [
        (spa, data if length == len(data) else data[first - gpa : first - gpa + length])
        for gpa, data in pages
        for first, spa, length in record.behind(gpa, len(data))
    ]


