"""Instructions of a core in host mode: what each operation of a hypervisor does, and which faults come of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from node import operations as op
from node.cache_instructions import CacheInstructions
from node.dimm_cells import MachineCheck
from node.disk import blocks_of, refusal
from node.fault_answers import FAULTS, answer_to, undefined
from node.generation import Generation
from node.memory_controller import HOST_KEY
from node.platform_instructions import platform_instructions
from node.vmcb import Vmcb
from node.vmexit import ExitCode
from psp.command_buffers import SnpLaunchUpdate
from psp.commands import SnpCommand
from psp.status import PspError
from tio.nvme_format import Status

if TYPE_CHECKING:
    from node.board import Board

VMEXIT_INVALID = int(ExitCode.INVALID)
"""Exit code of VMRUN when a check of the control block fails (APM volume 2, 15.5.1)."""
VMEXIT_BUSY = int(ExitCode.BUSY)
"""Exit code of VMRUN when another core runs with the save area."""
_GENERATIONS = dict(Generation.__members__)


_WIDTHS = (1, 2, 4, 8)
"""Bytes of one access to a register."""


class HostInstructions:
    """Executes one operation of a hypervisor at a time."""

    def __init__(self, board: Board) -> None:
        self._board = board
        caches = CacheInstructions(board)
        self.table: Mapping[type, Callable[..., op.Answer]] = {
            op.HostRead: self._host_read,
            op.PaidRead: self._host_read,
            op.HostReadWritten: self._host_read_written,
            op.HostWrite: self._host_write,
            op.PaidWrite: self._host_write,
            op.HostClear: self._host_clear,
            op.PaidClear: self._host_clear,
            op.HostWork: lambda _: None,
            op.RmpUpdate: self._rmpupdate,
            op.PSmash: self._psmash,
            op.RmpRead: self._rmpread,
            op.NestedFrames: self._nested_frames,
            op.NestedMap: self._nested_map,
            op.NestedBuild: self._nested_build,
            op.NestedUnmap: self._nested_unmap,
            op.VmcbWrite: self._vmcb_write,
            op.VmcbClear: self._vmcb_clear,
            op.VmRun: self._vmrun,
            op.VmKick: self._vmkick,
            op.TraceFaults: self._trace_faults,
            **board.events.host_table,
            **board.branches.host_table,
            op.VmPreempt: self._vm_preempt,
            op.FetchCertificates: lambda _: board.certificates(),
            op.AskLaunchOwner: lambda one: board.launch_owner(one.vm, one.shown),
            op.AgentCall: board.agents.call,
            op.HandlerCall: board.handlers.call,
            op.SwapRowOut: lambda one: _row(lambda: board.psp.snp.swap.row_out(
                one.gctx, one.spa, one.pages, one.mdata, large=one.large
            )),
            op.SwapRowIn: lambda one: _row(lambda: board.psp.snp.swap.row_in(one.gctx, one.spa, one.mdata)),
            op.DiskRead: self._disk_read,
            op.DiskWrite: self._disk_write,
            op.NicRead: self._nic_read,
            op.NicWrite: self._nic_write,
            op.DevicesTold: lambda one: board.devices_told(one.vm, one.value),
            op.PspCommand: self._psp_command,
            op.Wbinvd: caches.wbinvd,
            op.HostClflush: caches.clflush,
            op.Invd: caches.invd,
            op.VmPageFlush: caches.vm_page_flush,
            op.HostTimedRead: caches.timed_read,
            **platform_instructions(board),
        }

    def _host_read(self, one: op.HostRead) -> op.Answer:
        if one.length > op.MOST_BYTES:
            return op.Fault(op.FaultKind.GENERAL_PROTECTION, one.spa)
        try:
            return self._board.bus.host_view.read(one.spa, one.length, HOST_KEY if one.encrypted else 0)
        except FAULTS as fault:
            return answer_to(fault, one.spa)

    def _host_read_written(self, one: op.HostReadWritten) -> op.Answer:
        try:
            read, key = self._board.bus.host_view.read, _key(one)
            runs = self._board.controller.written_runs(one.spa, one.length, key)
            return op.Runs(tuple([(spa, read(spa, length, key)) for spa, length in runs]))
        except FAULTS as fault:
            return answer_to(fault, one.spa)

    def _host_write(self, one: op.HostWrite) -> op.Answer:
        try:
            if self._board.rmp is not None:
                self._board.rmp.check_host_write(one.spa, len(one.data))
            self._board.controller.lay(one.spa, one.data, HOST_KEY if one.encrypted else 0)
        except FAULTS as fault:
            return answer_to(fault, one.spa)
        return None

    def _host_clear(self, one: op.HostClear) -> op.Answer:
        try:
            if self._board.rmp is not None:
                self._board.rmp.check_host_write(one.spa, one.length)
            self._board.controller.clear(one.spa, one.length, HOST_KEY if one.encrypted else 0)
        except FAULTS as fault:
            return answer_to(fault, one.spa)
        return None

    def _rmpupdate(self, one: op.RmpUpdate) -> op.Answer:
        if self._board.rmp is None or not self._board.snp_enabled:
            return undefined()
        if self._board.unlaid.vms or self._board.unlaid.free_memory.starts:
            # What was accepted for pages is stored there before their owner changes. Of a range that goes on beyond
            # memory the first pages may change owner, too.
            with suppress(MachineCheck):
                self._board.dram.cells.touch(one.spa, min(one.length, self._board.dram.size_bytes - one.spa))
        return int(self._board.rmp.rmpupdate(one.spa, one.length, one.entry))

    def _psmash(self, one: op.PSmash) -> op.Answer:
        if self._board.rmp is None or not self._board.snp_enabled:
            return undefined()
        return int(self._board.rmp.psmash(one.spa))

    def _rmpread(self, one: op.RmpRead) -> op.Answer:
        if self._board.rmp is None or not self._board.snp_enabled or not self._board.product.rmp.rmpread:
            return undefined()
        code, state = self._board.rmp.rmpread(one.spa)
        return op.RmpReadResult(int(code), state)

    def _nested_frames(self, one: op.NestedFrames) -> op.Answer:
        try:
            self._board.nested_table(one.vm).give(one.spa, one.length, encrypted=one.encrypted)
        except FAULTS as fault:
            return answer_to(fault, one.spa)
        return None

    def _nested_map(self, one: op.NestedMap) -> op.Answer:
        table = self._board.nested_table(one.vm)
        try:
            return table.map(one.gpa, one.spa, one.length, large=one.large, encrypted=one.encrypted) or None
        except FAULTS as fault:
            return answer_to(fault, one.gpa)

    def _nested_build(self, one: op.NestedBuild) -> op.Answer:
        table, at = self._board.nested_table(one.vm), 0
        try:
            for at, length in one.frames:
                table.give(at, length, encrypted=one.encrypted)
            if table.lay_out(one.maps, encrypted=one.encrypted):
                return None
            for at, spa, length in one.maps:
                missing = table.map(at, spa, length, encrypted=one.encrypted)
                if missing:
                    return missing
        except FAULTS as fault:
            return answer_to(fault, at)
        return None

    def _nested_unmap(self, one: op.NestedUnmap) -> op.Answer:
        try:
            return self._board.nested_table(one.vm).unmap(one.gpa, one.length) or None
        except FAULTS as fault:
            return answer_to(fault, one.gpa)

    def _vmcb_write(self, one: op.VmcbWrite) -> op.Answer:
        generation = _GENERATIONS.get(one.generation)
        if generation is None:
            return undefined()
        nested = self._board.nested_table_at(one.vm, one.nested_cr3)
        self._board.controls.forget(one.vm, one.vcpu)
        consistent = self._board.vmrun_checks.consistent(generation, one.asid, one.save_area_spa)
        vmcb = Vmcb(
            one.vm, one.vcpu, one.asid, generation, one.save_area_spa, nested, one.tlb_control, consistent=consistent
        )  # fmt: skip
        # A vCPU that runs goes on with what it was entered with: it has left, and VMRUN judges the new block.
        self._board.running.preempt((one.vm, one.vcpu))
        self._board.vmcbs.setdefault(one.vm, {})[one.vcpu] = vmcb
        self._board.look_up_vmpl(vmcb)
        self._board.events.forget(one.vm, one.vcpu)
        return None

    def _vmcb_clear(self, one: op.VmcbClear) -> op.Answer:
        board = self._board
        board.unlaid.look(one.vm)
        board.controls.forget(one.vm)
        board.events.forget(one.vm)
        board.traced.discard(one.vm)
        board.running.forget(one.vm)
        board.agents.forget(one.vm)
        nested = board.nested.pop(one.vm, None)
        for table in (board.vmcbs, board.disks, board.disk_files, board.nics):
            table.pop(one.vm, None)
        answers = [self._host_clear(op.HostClear(*pages)) for pages in (nested.close() if nested else ())]
        return next((answer for answer in answers if answer is not None), None)

    def _vmrun(self, one: op.VmRun) -> op.Answer:
        vmcb = self._board.vmcbs.get(one.vm, {}).get(one.vcpu)
        if vmcb is None or not 0 <= one.core < self._board.product.threads:
            return VMEXIT_INVALID
        self._board.running.vacate(one.core)
        checks = self._board.vmrun_checks
        code = checks.code(vmcb) or checks.on_thread(vmcb, one.core)
        if code:
            return int(code)
        return 0 if self._board.switch_to(vmcb, one.core) else VMEXIT_INVALID

    def _vm_preempt(self, one: op.VmPreempt) -> op.Answer:
        if one.vcpu in self._board.vmcbs.get(one.vm, {}):
            if self._board.put_out is not None:
                self._board.put_out(one.vm, one.vcpu)
            self._board.preempt(one.vm, one.vcpu)
        return None

    def _vmkick(self, one: op.VmKick) -> op.Answer:
        vmcb = self._board.vmcbs.get(one.vm, {}).get(one.vcpu)
        return VMEXIT_INVALID if vmcb is None else self._board.kick(vmcb)

    def _trace_faults(self, one: op.TraceFaults) -> op.Answer:
        (self._board.traced.add if one.on else self._board.traced.discard)(one.vm)
        return None

    def _disk_read(self, one: op.DiskRead) -> op.Answer:
        disk = self._board.disks.get(one.vm)
        return op.Runs(() if disk is None else tuple(disk.media.runs()))

    def _disk_write(self, one: op.DiskWrite) -> op.Answer:
        blocks, rest = divmod(len(one.data), op.BLOCK_BYTES)
        there = blocks_of(self._board.disk_files.get(one.vm))
        refused = Status.INVALID_FIELD if rest else refusal(one.lba, blocks, there)
        if refused:
            return int(refused)
        self._board.disk(one.vm).media.write(one.lba, one.data)
        return None

    def answers(self, batch: tuple[op.HypervisorOperation, ...]) -> list[op.Answer]:
        """Execute a batch, one operation after another. Launches come in batches of one command."""
        table = self.table
        answers: list[op.Answer] = []
        if len(batch) >= _FEWEST and type(batch[0]) is op.PspCommand and batch[0].command == SnpCommand.LAUNCH_UPDATE:
            while len(answers) < len(batch) and type(batch[len(answers)]) is op.PspCommand:
                in_run = self._launched(batch, len(answers))
                answers += in_run or [table[op.PspCommand](batch[len(answers)])]
        return answers + [table[type(one)](one) if type(one) in table else undefined() for one in batch[len(answers) :]]

    def _launched(self, batch: tuple[op.HypervisorOperation, ...], first: int) -> list[op.Answer]:
        """Answers to the SNP_LAUNCH_UPDATEs from ``first`` on that could be carried out as runs; none where it matters.

        All use one buffer, whose last contents are what is left in memory.
        """
        board = self._board
        if board.caches is not None or board.dram.has_routes or board.bus.fast_registers.page is not None:
            return []
        updates = _updates_of_one_buffer(batch, first)
        if len(updates) < _FEWEST:
            return []
        spa, contents = updates[0].spa, [one.buffer for one in updates]
        if self._host_write(op.HostWrite(spa, contents[0])) is not None:
            return []
        done = board.psp.submit_launch_updates(contents, spa)
        if done:
            self._host_write(op.HostWrite(spa, contents[done - 1]))
        return [op.PspAnswer(0, one) for one in contents[:done]]

    def _nic_read(self, one: op.NicRead) -> op.Answer:
        if one.length not in _WIDTHS:
            return undefined()
        card = self._board.nics.get(one.vm, {}).get(one.vcpu)
        return (1 << 8 * one.length) - 1 if card is None else card.read_register(one.offset, one.length)

    def _nic_write(self, one: op.NicWrite) -> op.Answer:
        card = self._board.nics.get(one.vm, {}).get(one.vcpu)
        frames = () if card is None else card.write_register(one.offset, one.value, one.length)
        if frames:
            self._board.sent.append((one.vm, one.vcpu, frames))
        return None

    def _psp_command(self, one: op.PspCommand) -> op.Answer:
        if one.buffer:
            laid = self._host_write(op.HostWrite(one.spa, one.buffer))
            if laid is not None:
                return laid
        status = self._board.psp.submit(one.command, one.spa)
        buffer = b""
        if one.buffer:
            # The register has the status also where the command has put its own buffer out of the host's reach.
            with suppress(*FAULTS):
                buffer = self._board.bus.host_view.read(one.spa, len(one.buffer), 0)
        return op.PspAnswer(int(status), buffer)


_FEWEST, _MOST = 4, 64
"""Commands from which on looking for a run pays, and that are looked at for one."""


def _updates_of_one_buffer(batch: tuple[op.HypervisorOperation, ...], first: int) -> list[op.PspCommand]:
    found: list[op.PspCommand] = []
    size, update = SnpLaunchUpdate.SIZE, SnpCommand.LAUNCH_UPDATE
    for one in batch[first : first + _MOST]:
        if type(one) is not op.PspCommand or one.command != update or len(one.buffer) != size:
            break
        if found and one.spa != found[0].spa:
            break
        found.append(one)
    return found


def _row(command: Callable[[], int]) -> int:
    try:
        return command()
    except PspError as refused:
        return -int(refused.status)


def _key(one: op.HostRead | op.HostReadWritten | op.HostWrite | op.HostClear) -> int:
    """The key of an access of the host: its own where the mapping has C=1, else none."""
    return HOST_KEY if one.encrypted else 0
