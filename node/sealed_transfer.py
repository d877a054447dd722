"""How a hypervisor moves a guest of SEV or SEV-ES: its firmware wraps every page for another's, which unwraps it.

Source: SEND_START, SEND_UPDATE_DATA a page at a time as KVM does it, SEND_UPDATE_VMSA, SEND_FINISH or SEND_CANCEL.
Target: RECEIVE_START, ACTIVATE, RECEIVE_UPDATE_DATA and _VMSA, RECEIVE_FINISH (SEV API, chapters 3 and 6).
What the guest shares travels as it is. Under SNP whatever firmware writes must be lent to it first, the command's
own buffer too.

Of a page's time at the security processor nothing is charged here (``paid``): it was, or is, by the page, for all
that the rounds of the migration copied, not only for the pages that hold bytes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from typing import TYPE_CHECKING

from node import operations as op
from node.agent_transfer import BY_AGENT, let_go, meet, meet_sender, take_back
from node.expected_answers import expect_done, expect_success, octets
from node.frame_allocator import OutOfMemory, joined
from node.generation import Generation
from node.handler_transfer import meet_source, meet_target, stays
from node.hypervisor_port import Answers, Batch, ExportTask, LaunchRefused, ReceiveTask, Task
from node.launched_vm import LaunchedVm
from node.machine_spec import MachineSpec
from node.migration_refusal import MigrationRefusal
from node.vm_state import Packet, Run, VmState
from node.vmsa import VMSA_BYTES
from psp import command_buffers as buffers
from psp.commands import LegacyCommand, SnpCommand
from psp.policy import LegacyPolicy
from psp.secret_packet import PacketHeader
from psp.sev_certificate import SevCertificate
from psp.sev_session import Session
from psp.status import Status
from psp.system_bus import PAGE_BYTES, RmpEntry

if TYPE_CHECKING:
    from node.hypervisor import Hypervisor

SEALED = frozenset({Generation.SEV, Generation.SEV_ES})
"""Generations that move this way."""

_PDH, _CHAIN, _AMD, _SESSION, _HEADER, _TRANSPORT, PAGES = 0, 1, 3, 4, 5, 6, 7
"""Pages of the frames that a transfer takes, in a row: what each holds, and how many there are."""
_CERTIFICATE, _CHAIN_BYTES = SevCertificate.SIZE, 3 * SevCertificate.SIZE
PLATFORM_BYTES = _CERTIFICATE + _CHAIN_BYTES
"""PDH, then PEK, OCA and CEK, as PDH_CERT_EXPORT gives them."""
_POLICY_BYTES = 4
SESSION_BYTES = _POLICY_BYTES + Session.SIZE + _CERTIFICATE
"""Policy, session block and the source's PDH: what RECEIVE_START wants."""

_HYPERVISOR, _FIRMWARE = RmpEntry(), RmpEntry(assigned=True, immutable=True)

_WHY: Mapping[str, MigrationRefusal] = {
    "SEND_START: POLICY_FAILURE": MigrationRefusal.POLICY_FORBIDS_TARGET,
    "SEND_START: INVALID_CERTIFICATE": MigrationRefusal.TARGET_NOT_GENUINE,
    "SEND_START: INVALID_LENGTH": MigrationRefusal.TARGET_NOT_GENUINE,
}
"""What a status of SEND_START means for whoever wants the VM moved."""


def record_of(self: Hypervisor, vm: str) -> LaunchedVm:
    """The record of a VM. Raises LaunchRefused for one that is gone meanwhile."""
    if vm not in self._vms:
        raise LaunchRefused(f"{vm} is gone")
    return self._vms[vm]


def show_platform(self: Hypervisor, record: LaunchedVm) -> ReceiveTask:
    """PDH_CERT_EXPORT: the PDH and its chain, ``PLATFORM_BYTES``."""
    frames = _frames(self, record)
    export = buffers.PdhCertExport(frames, _CERTIFICATE, frames + _CHAIN * PAGE_BYTES, _CHAIN_BYTES)
    yield from _lend(self, record, frames, 3)
    yield from self._call(LegacyCommand.PDH_CERT_EXPORT, record.small[0], export.pack())
    yield from _take_back(self, record, frames, 3)
    shown = yield (op.HostRead(frames, _CERTIFICATE), op.HostRead(frames + _CHAIN * PAGE_BYTES, _CHAIN_BYTES))
    return b"".join(octets(shown))


def _frames(self: Hypervisor, record: LaunchedVm) -> int:
    """The frames in a row that a transfer takes. Raises LaunchRefused where nowhere so many are free."""
    if not record.transfer:
        length = PAGES * PAGE_BYTES
        spa = self.frames.allocate_run(length, PAGE_BYTES)
        if spa is None:
            raise LaunchRefused(str(OutOfMemory(length, self.frames.free_bytes, " in a row")))
        record.transfer = spa
        record.small += range(spa, spa + length, PAGE_BYTES)
    return record.transfer


def _lend(self: Hypervisor, record: LaunchedVm, first: int, pages: int) -> Task:
    for spa in range(first, first + pages * PAGE_BYTES, PAGE_BYTES):
        yield from self.give_to_firmware(spa)
        record.firmware_pages.append(spa)


def _take_back(self: Hypervisor, record: LaunchedVm, first: int, pages: int) -> Task:
    for spa in range(first, first + pages * PAGE_BYTES, PAGE_BYTES):
        yield from self.take_from_firmware(spa)
        record.firmware_pages.remove(spa)


# Out.


def seal(self: Hypervisor, vm: str, platform: bytes) -> ReceiveTask:
    """SEND_START for a platform's certificates, with AMD's behind them if the policy wants those: ``SESSION_BYTES``.

    Raises LaunchRefused; the guest is as before then.
    """
    record = record_of(self, vm)
    if record.handler:
        return (yield from meet_target(self, record, vm, platform))
    if record.generation in BY_AGENT:
        return (yield from meet(self, record, vm, platform))
    _check_may_leave(record)
    own = yield from show_platform(self, record)
    frames = _frames(self, record)
    amd = platform[PLATFORM_BYTES:]
    if len(platform) < PLATFORM_BYTES or len(amd) > PAGE_BYTES:
        raise LaunchRefused(MigrationRefusal.TARGET_NOT_GENUINE)
    laid = [(_PDH, platform[:_CERTIFICATE]), (_CHAIN, platform[_CERTIFICATE:PLATFORM_BYTES]), (_AMD, amd)]
    batch = tuple(op.HostWrite(frames + page * PAGE_BYTES, data) for page, data in laid if data)
    expect_done(batch, (yield batch))
    session = frames + _SESSION * PAGE_BYTES
    start = buffers.SendStart(
        record.handle, 0, frames, _CERTIFICATE, frames + _CHAIN * PAGE_BYTES, _CHAIN_BYTES,
        frames + _AMD * PAGE_BYTES, len(amd), session, Session.SIZE,
    )  # fmt: skip
    yield from _lend(self, record, session, 1)
    try:
        started = yield from self._call(LegacyCommand.SEND_START, record.small[0], start.pack())
    except LaunchRefused as refused:
        yield from _take_back(self, record, session, 1)
        raise LaunchRefused(_WHY.get(str(refused), str(refused))) from None
    yield from _take_back(self, record, session, 1)
    record.sealed = True
    (block,) = octets((yield (op.HostRead(session, Session.SIZE),)))
    policy = buffers.SendStart.parse(started).policy
    return policy.to_bytes(_POLICY_BYTES, "little") + block + own[:_CERTIFICATE]


def _check_may_leave(record: LaunchedVm) -> None:
    """What firmware would say too, and what only the hypervisor knows. Raises LaunchRefused."""
    if record.policy & LegacyPolicy.NOSEND:
        raise LaunchRefused(MigrationRefusal.POLICY_FORBIDS_SENDING)
    if not record.shared.told:
        raise LaunchRefused(MigrationRefusal.SHARED_PAGES_UNKNOWN)
    if record.starts.halfway:
        raise LaunchRefused(MigrationRefusal.VCPU_IN_RESET)


def unseal(self: Hypervisor, vm: str) -> Task:
    """The VM stays: SEND_CANCEL. In the hypervisor's own page: another task may have the VM's in hand."""
    record = self._vms.get(vm)
    if record is not None and record.sealed and record.handler:
        yield from stays(self, record, vm)
    elif record is not None and record.sealed and record.generation in BY_AGENT:
        yield from take_back(self, record, vm)
    elif record is not None and record.sealed:
        record.sealed = False
        yield (op.PspCommand(LegacyCommand.SEND_CANCEL, self.command_page, buffers.Handle(record.handle).pack()),)


def depart(self: Hypervisor, vm: str) -> Task:
    """The VM lives elsewhere: SEND_FINISH, after which firmware lets nothing but its end come, and then that."""
    record = self._vms.get(vm)
    if record is not None and record.sealed and record.generation in BY_AGENT:
        if record.agent or not record.handler:
            yield from let_go(self, vm)
    elif record is not None and record.sealed:
        yield from self.must(LegacyCommand.SEND_FINISH, record.small[0], buffers.Handle(record.handle).pack())
    has_cards = record is not None and record.functions
    yield from self.destroy(vm)
    if has_cards:
        yield from self.release_cards()


def export_sealed(
    self: Hypervisor, vm: str, started: tuple[bool, ...], reset_rips: tuple[int, ...]
) -> ExportTask:
    """A stopped guest's pages and save areas as packets, and what the host can read as it is."""
    record = record_of(self, vm)
    if not record.sealed:
        raise LaunchRefused("SEND_START has not been")
    if record.starts.halfway:
        raise LaunchRefused(MigrationRefusal.VCPU_IN_RESET)
    clean = () if self.product.coherent_across_keys else (op.Wbinvd(),)
    hidden = record.generation is Generation.SEV_ES
    areas: list[int] = [] if hidden else record.save_areas
    pauses = [op.HostWork("migration.pause_vcpu_ns")] * len(record.save_areas)
    # One batch: the VM stands still, so nothing changes between one read and the next.
    _, *answers, disk = yield (
        op.HostWork("migration.stop_ns"),
        *pauses,
        *clean,
        *[op.HostRead(spa, VMSA_BYTES) for spa in areas],
        *[op.HostReadWritten(spa, length) for spa, length in joined(record.frames)],
        op.DiskRead(vm),
    )
    assert isinstance(disk, op.Runs)
    del answers[: len(pauses) + len(clean)]
    plain: list[Run] = []
    private: list[tuple[int, int]] = []
    for gpa, spa, data in sorted(_written(record, answers[len(areas) :])):
        for part, length, shared in record.shared.parts(gpa, len(data)):
            at = part - gpa
            if shared:
                plain.append((part, data[at : at + length]))
            else:
                private += [(part + page, spa + at + page) for page in range(0, length, PAGE_BYTES)]
    packets = yield from _send(self, record, LegacyCommand.SEND_UPDATE_DATA, private)
    sealed = list(enumerate(record.save_areas)) if hidden else []
    registers = yield from _send(self, record, LegacyCommand.SEND_UPDATE_VMSA, sealed)
    return VmState(
        vm, octets(tuple(answers[: len(areas)])), started, record.launched_gpas, reset_rips, tuple(plain), disk.runs,
        packets, registers, record.shared.ranges(), record.told_by_vcpus(),
    )  # fmt: skip


def _written(record: LaunchedVm, answers: list[op.Answer]) -> Iterator[tuple[int, int, bytes]]:
    """(GPA, SPA, bytes) of whole pages that somebody wrote."""
    for answer in answers:
        assert isinstance(answer, op.Runs)
        for at, data in answer.runs:
            for gpa, spa, length in record.shown(at, len(data)):
                yield gpa, spa, data[spa - at : spa - at + length]


def _send(
    self: Hypervisor, record: LaunchedVm, command: LegacyCommand, pages: list[tuple[int, int]]
) -> Generator[Batch, Answers, tuple[Packet, ...]]:
    """(name, SPA) of pages as packets, in their order."""
    if not pages:
        return ()
    frames, buffer_page = _frames(self, record), record.small[0]
    header, transport = frames + _HEADER * PAGE_BYTES, frames + _TRANSPORT * PAGE_BYTES
    yield from _lend(self, record, header, 2)
    batch: list[op.HypervisorOperation] = []
    for _, spa in pages:
        update = buffers.SendUpdate(
            record.handle, header, PacketHeader.SIZE, spa, PAGE_BYTES, transport, PAGE_BYTES
        ).pack()
        if self.snp:
            batch += [op.HostWrite(buffer_page, update), op.RmpUpdate(buffer_page, PAGE_BYTES, _FIRMWARE)]
            batch += [op.PspCommand(command, buffer_page, paid=True), *_reclaimed(self, buffer_page)]
        else:
            batch.append(op.PspCommand(command, buffer_page, update, paid=True))
        batch += [op.HostRead(header, PacketHeader.SIZE), op.HostRead(transport, PAGE_BYTES)]
    answers = yield tuple(batch)
    yield from _take_back(self, record, header, 2)
    _expect(batch, answers)
    found = octets(tuple(answer for one, answer in zip(batch, answers, strict=True) if type(one) is op.HostRead))
    return tuple(
        (name, head, body) for (name, _), head, body in zip(pages, found[::2], found[1::2], strict=True)
    )


def _reclaimed(self: Hypervisor, spa: int) -> tuple[op.HypervisorOperation, ...]:
    reclaim = buffers.SnpPageReclaim(address=spa).pack()
    return (
        op.PspCommand(SnpCommand.PAGE_RECLAIM, self.command_page, reclaim, paid=True),
        op.RmpUpdate(spa, PAGE_BYTES, _HYPERVISOR),
    )


def _expect(batch: list[op.HypervisorOperation], answers: Answers) -> None:
    """Firmware says SUCCESS to everything, the RMP and stores refuse nothing. Raises LaunchRefused."""
    for one, answer in zip(batch, answers, strict=True):
        if isinstance(answer, op.PspAnswer):
            if answer.status != Status.SUCCESS:
                assert isinstance(one, op.PspCommand)
                expect_success((answer,), one.command)
        elif type(one) is not op.HostRead:
            expect_done((one,), (answer,))


# In.


def open_session(self: Hypervisor, spec: MachineSpec, session: bytes) -> Task:
    """RECEIVE_START with what the source's firmware has sealed for this one, and ACTIVATE. Raises LaunchRefused."""
    record = record_of(self, spec.name)
    if record.handler:
        yield from meet_source(self, record, spec.name, session)
        return
    if record.generation in BY_AGENT:
        yield from meet_sender(self, spec.name, session)
        return
    if len(session) != SESSION_BYTES:
        raise LaunchRefused(f"session: expected {SESSION_BYTES} bytes, got {len(session)}")
    frames = _frames(self, record)
    policy = int.from_bytes(session[:_POLICY_BYTES], "little")
    block, pdh = session[_POLICY_BYTES : _POLICY_BYTES + Session.SIZE], session[_POLICY_BYTES + Session.SIZE :]
    at = frames + _SESSION * PAGE_BYTES
    batch = (op.HostWrite(frames, pdh), op.HostWrite(at, block))
    expect_done(batch, (yield batch))
    start = buffers.LaunchStart(0, policy, frames, _CERTIFICATE, at, Session.SIZE)
    started = yield from self._call(LegacyCommand.RECEIVE_START, record.small[0], start.pack())
    record.handle, record.policy = buffers.LaunchStart.parse(started).handle, policy
    activate = buffers.Activate(handle=record.handle, asid=record.asid)
    yield from self.must(LegacyCommand.ACTIVATE, record.small[0], activate.pack())


def fill_sealed(self: Hypervisor, spec: MachineSpec, record: LaunchedVm, state: VmState) -> Task:
    """RECEIVE_UPDATE_DATA and _VMSA of every packet, and RECEIVE_FINISH. Raises LaunchRefused."""
    if not record.handle:
        raise LaunchRefused("RECEIVE_START has not been")
    for gpa, length in state.shared:
        record.shared.change(gpa, length, shared=True)
    record.hear_of_vcpus(state.told)
    if not self.product.coherent_across_keys:
        # Lines that the host has of these frames would be written back later, over what firmware lays there.
        yield (op.Wbinvd(),)
    spas = record.spas_of(gpa for gpa, _, _ in state.packets)
    yield from _receive(self, record, LegacyCommand.RECEIVE_UPDATE_DATA, state.packets, spas)
    if spec.generation is Generation.SEV_ES:
        areas = [self.small_page(record) for _ in state.sealed_areas]
        record.save_areas += areas
        yield from _receive(self, record, LegacyCommand.RECEIVE_UPDATE_VMSA, state.sealed_areas, areas)
        yield tuple(
            op.VmcbWrite(spec.name, index, record.asid, spec.generation.name, spa) for index, spa in enumerate(areas)
        )
    yield from self.must(LegacyCommand.RECEIVE_FINISH, record.small[0], buffers.Handle(record.handle).pack())


def _receive(
    self: Hypervisor, record: LaunchedVm, command: LegacyCommand, packets: tuple[Packet, ...], spas: list[int]
) -> Task:
    frames, buffer_page = _frames(self, record), record.small[0]
    header, transport = frames + _HEADER * PAGE_BYTES, frames + _TRANSPORT * PAGE_BYTES
    batch: list[op.HypervisorOperation] = []
    for (_, head, body), spa in zip(packets, spas, strict=True):
        update = buffers.SendUpdate(
            record.handle, header, PacketHeader.SIZE, spa, len(body), transport, len(body)
        ).pack()
        batch += [op.HostWrite(header, head), op.HostWrite(transport, body)]
        if self.snp:
            batch.append(op.RmpUpdate(spa, PAGE_BYTES, _FIRMWARE))
        batch.append(op.PspCommand(command, buffer_page, update, paid=True))
        if self.snp:
            batch += _reclaimed(self, spa)
    if batch:
        _expect(batch, (yield tuple(batch)))
