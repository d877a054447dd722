"""vCPUs in virtual time: blocks, phases, sleeps and pauses.

A vCPU goes on as its registers say. What a block asks of the hardware takes
effect when the time of its batch has passed; a phase runs on the cores; a pause
waits for the end of a block and leaves everything in the save area.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from node import operations as op
from node.batch_books import count_batch
from node.batch_execution import execute_logged, up_to_a_fault
from node.board import Board
from node.clock import Clock
from node.contention import Contention, PhaseAccount
from node.cores import Cores
from node.disk_books import counted
from node.event_delivery import Delivered
from node.event_log import EventLog
from node.exit_charges import ExitTimes
from node.exit_registers import load_stored, store_registers
from node.fault_answers import FAULTS
from node.guest import Guest, GuestSpec, GuestState
from node.host_events import HostEvent
from node.host_prices import HostPrices
from node.injected_vc import met_first, take_injected_vc
from node.issued_batch import IssuedBatch
from node.mechanism import no_time
from node.phase_cost import PhaseCost
from node.program import FORGOTTEN, Demand, Ending
from node.seats import Seats
from node.tenant import NoBlock, Outcome
from node.vcpu import AWAITING, HALFWAY, HALTED, SLEEPING, Vcpu, VcpuState
from node.vcpu_levels import charge_svsm, leave_level
from node.vcpu_throttle import held_load
from node.vmexit import ExitCode

PROGRAM_FAULT = 0xFE
"""Shutdown code of a VM whose registers named no block, or whose blocks never take time."""

TERMINATED = 1 << 16
"""Shutdown code of a VM that ended itself through its GHCB: this, the reason set in bits 15:8 and the code in 7:0."""

_MOST_IDLE_BLOCKS = 1000
_BLOCK, _COMPUTING, _SLEEPING = VcpuState.BLOCK, VcpuState.COMPUTING, VcpuState.SLEEPING
_WAITING, _PAUSED, _STOPPED = VcpuState.WAITING, VcpuState.PAUSED, VcpuState.STOPPED
_BATCH, _PHASE, _PARKED = HostEvent.BATCH, HostEvent.PHASE, HostEvent.PAUSED
"""What every phase and pause names: an enumeration looks its members up at ten times the price of a module's name."""
_MIDWAY = (_BLOCK, *HALFWAY)
_STOPS_LATER = (_BLOCK, _WAITING, *HALFWAY)
_OF_MEMORY = (op.Read, op.Write)


class VcpuRunner:
    """Runs the vCPUs of one host."""

    def __init__(self, clock: Clock, board: Board, contention: Contention, log: EventLog, prices: HostPrices) -> None:
        self.phase_completions = 0
        self.operations = 0
        self.sent: Callable[[], None] = board.sent.clear
        """Whom to tell when network cards have sent something."""
        self.served: Callable[[tuple[op.HypervisorOperation, ...], int, Guest], int] = lambda _, ready_ns, __: ready_ns
        """When a hypervisor's batch, ready for the mailbox, is through with it: who keeps the security processor's."""
        self.cores = Cores(clock, contention, self._phases_ended)
        self.disk = prices.new_disk()
        self.seats = Seats()
        self._clock = clock
        self._board = board
        self._contention = contention
        self._log = log
        self._prices = prices
        self._passes = (self._passed,)

    # What a host asks for.

    def prepare(self, guest: Guest) -> None:
        """Price the demands of a VM that is about to run for the first time here; its program moves in."""
        name = guest.spec.name
        self.seats.take(name, len(guest.vcpus))
        self._board.settle(name)
        guest.operation_cost, guest.chain = self._prices.guest(guest.spec.generation), self._log.chain(name)
        guest.demands = guest.software.demands
        guest.phase_costs = self.phase_costs(guest.spec, guest.demands)

    def phase_costs(self, spec: GuestSpec, demands: tuple[tuple[Demand, ...], ...]) -> dict[int, tuple[PhaseCost, ...]]:
        """What each vCPU's phases cost, in a VM whose memory lies as it does now."""
        backing, phases = self._board.backing(spec.name), self._prices.phases
        return {index: phases(of_one, spec.generation, backing) for index, of_one in enumerate(demands)}

    def start(self, vcpu: Vcpu) -> None:
        """Enter a vCPU that is off its core, and go on with it."""
        if self._enter(vcpu):
            self.go_on(vcpu)

    def _enter(self, vcpu: Vcpu) -> bool:
        """VMRUN; a VM whose registers were tampered with ends."""
        guest = vcpu.guest
        code = self._board.enter(guest.spec.name, vcpu.index)
        if code:
            self._power_off(guest, code & 0xFF)
        elif vcpu.levels is not None:
            vmpl = self._board.vmcb(guest.spec.name, vcpu.index).vmpl
            vcpu.thread = vcpu.threads[-1] if vmpl == 0 else vcpu.index
        return not code

    def go_on(self, vcpu: Vcpu) -> None:
        """Go on with a vCPU as its registers say: the rest of a phase or sleep, else the next block."""
        registers = vcpu.registers
        if registers.r15 and registers.r14 in HALTED:
            self._sleep(vcpu)
        elif registers.r15 and registers.r14 >= len(vcpu.guest.phase_costs[vcpu.index]):
            self._power_off(vcpu.guest, PROGRAM_FAULT)  # Somebody stored to the save area.
        elif registers.r15:
            self.compute(vcpu)
        else:
            self._run_blocks(vcpu, None)

    def pause(self, guest: Guest, parked: Callable[[], None] | None = None) -> None:
        """Stop a VM's vCPUs at the end of their blocks; ``parked`` is called when the last has stopped."""
        guest.when_parked = parked
        for vcpu in guest.vcpus:
            if vcpu.state in _STOPS_LATER:
                # One that waits for its start goes to its save area when the boot processor starts it.
                vcpu.pause_wanted = True
            elif vcpu.state in (_COMPUTING, _SLEEPING):
                self.halt(vcpu, _PAUSED)
                self._park(vcpu)
        guest.tell_parked()

    def resume(self, guest: Guest) -> None:
        """Rebuild a paused VM's programs from its specification and go on from its save areas."""
        guest.when_parked = None
        for vcpu in guest.vcpus:
            vcpu.pause_wanted = False
            # One in the middle of a block is past its last pause: it goes on with what it has.
            if vcpu.state not in _MIDWAY:
                for thread in vcpu.threads:
                    guest.software.rebuild(thread)
        self.start_paused(guest)

    def start_paused(self, guest: Guest) -> None:
        """Go on with a VM's paused vCPUs from their save areas."""
        for vcpu in guest.vcpus:
            if vcpu.state is _PAUSED:
                self.load(vcpu)
                self.start(vcpu)

    def halt(self, vcpu: Vcpu, state: VcpuState) -> None:
        """Take a vCPU off its core at once; what is left of a phase or sleep goes to R15."""
        if vcpu.state is _COMPUTING:
            account = self.cores.stop(vcpu)
            self._note_cut(vcpu, account, self._clock.now_ns)
            self._credit(vcpu, account)
            vcpu.registers.r15 = -int(-account.remaining // 1)
            if not vcpu.registers.r15:
                self._count_phase(vcpu)
        elif vcpu.state is _SLEEPING:
            vcpu.registers.r15 -= self._clock.now_ns - vcpu.slept_from_ns
        elif vcpu.state is _PAUSED:
            self.load(vcpu)
        self._board.leave(vcpu.guest.spec.name, vcpu.index)
        vcpu.epoch += 1
        vcpu.state = state

    def stop(self, guest: Guest) -> None:
        """Take all of a VM's vCPUs off the host; its software is gone."""
        for vcpu in guest.vcpus:
            self.halt(vcpu, _STOPPED)
            for thread in vcpu.threads:
                guest.software.drop(thread)
        guest.software.close()
        self.seats.free(guest.spec.name)

    def let_go(self, guest: Guest) -> None:
        """Forget a paused VM that lives on another host: its registers are there too."""
        for vcpu in guest.vcpus:
            self._board.leave(guest.spec.name, vcpu.index)
            vcpu.epoch += 1
            vcpu.state = _STOPPED
            vcpu.instructions, vcpu.moved_instructions, vcpu.phases = {}, {}, {}  # Void timers still hold the vCPU.
        guest.software.close()
        self.seats.free(guest.spec.name)

    def close(self, guest: Guest, end_ns: int) -> None:
        """Credit phases that still run with what they did until ``end_ns``."""
        self._contention.advance(end_ns)
        for vcpu in guest.vcpus:
            if vcpu.state is _COMPUTING:
                account = self._contention.stop(vcpu.slot)
                self._note_cut(vcpu, account, end_ns)
                self._credit(vcpu, account)
                vcpu.state = _STOPPED
            elif vcpu.state is _PAUSED:
                self.load(vcpu)

    def load(self, vcpu: Vcpu) -> None:
        """Take a vCPU's registers from its save area; one that nobody can read any more no VMRUN accepts."""
        load_stored(self._board, vcpu)

    # Blocks.

    def _run_blocks(self, vcpu: Vcpu, answers: tuple[op.Answer, ...] | None) -> None:
        vcpu.state = _BLOCK
        software, index, registers = vcpu.guest.software, vcpu.thread, vcpu.registers
        for _ in range(_MOST_IDLE_BLOCKS):
            if answers is None:
                if vcpu.out and not self._enter(vcpu):
                    return
                events, own = self._board.events, index == vcpu.index  # An SVSM is not disturbed.
                if own and (events.waiting or events.raised or events.stepping) and not self._take_events(vcpu):
                    return
                if vcpu.pause_wanted and not (vcpu.levels and vcpu.levels.waiting):
                    self._park(vcpu)
                    vcpu.guest.tell_parked()
                    return
                try:
                    outcome: Outcome = software.begin(index, registers)
                except NoBlock:
                    break
            else:
                outcome = software.go_on(index, registers, answers)
                answers = None
            if type(outcome) is tuple:
                self._issue(vcpu, outcome)
                return
            if self._end_block(vcpu, outcome):  # type: ignore[arg-type]  # a tuple is the only batch
                return
        self._power_off(vcpu.guest, PROGRAM_FAULT)

    def _take_events(self, vcpu: Vcpu) -> bool:
        """Deliver what waits for a vCPU; False where it does not go on."""
        if take_injected_vc(self._board, vcpu):
            return True
        guest, memory = vcpu.guest, self._board.virtual_memory
        vmcb = self._board.vmcb(guest.spec.name, vcpu.index)
        log, now_ns = guest.dirty_log, self._clock.now_ns
        if log is not None:
            memory.stored = lambda gpa, length: log.mark(gpa, length, now_ns)
        try:
            came = self._board.delivery.take(vmcb, vcpu.registers)
        finally:
            memory.stored = None
        if came is Delivered.SHUTDOWN:
            self._power_off(guest, ExitCode.SHUTDOWN)
        elif came is Delivered.EXIT:
            self._park(vcpu)
            guest.tell_parked()
        return came in (Delivered.NOTHING, Delivered.TAKEN)

    def _try_again(self, vcpu: Vcpu) -> None:
        """One that was held executes the operation that faulted once more, with what its save area holds.

        The exit of one that was held in reset has its answer now.
        """
        self.load(vcpu)
        batch, answers = vcpu.held
        if vcpu.state is VcpuState.IN_RESET:
            vmcb = self._board.vmcb(vcpu.guest.spec.name, vcpu.index)
            batch, answers = batch[1:], (*answers, self._board.leave_reset(vmcb, batch[0]))
        vcpu.state = _BLOCK
        self._after(0, vcpu, partial(self._take_effect, batch=batch, spent=0, before=answers))

    def _event_ready(self, vcpu: Vcpu) -> bool:
        return self._board.events.ready(self._board.vmcb(vcpu.guest.spec.name, vcpu.index))

    def kicked(self, vcpu: Vcpu, code: int) -> None:
        """The hypervisor took a vCPU off its thread and entered it anew: ``code`` is what VMRUN came to.

        One that halts goes on if something waits for it, as after any interrupt; one that computes takes it when
        its phase ends. One that VMRUN refused stays out.
        """
        guest = vcpu.guest
        vmcb = self._board.vmcb(guest.spec.name, vcpu.index)
        if not vmcb.consistent:
            # It has no save area any more: what it was about to do is nobody's.
            if vcpu.state is not _PAUSED:
                self.halt(vcpu, _STOPPED)
            vcpu.state = _STOPPED
            guest.software.drop(vcpu.index)
            guest.tell_parked()
            return
        if code:
            if vcpu.state is _BLOCK:
                vcpu.pause_wanted = True
            elif vcpu.state in (_COMPUTING, _SLEEPING):
                self.halt(vcpu, _PAUSED)
                self._park(vcpu)
                guest.tell_parked()
            return
        if vcpu.state in HALFWAY:
            self._try_again(vcpu)
            return
        if guest.state is GuestState.PAUSED and vcpu.state in _NOT_YET:
            # Started while the VM is paused: it goes on from its save area with the others.
            self._board.leave(guest.spec.name, vcpu.index)
            vcpu.state, vcpu.save_area_spa, vcpu.registers = _PAUSED, vmcb.save_area_spa, FORGOTTEN
            for thread in vcpu.threads:
                guest.software.forget(thread)
            return
        if guest.state is not GuestState.RUNNING:
            return
        vcpu.pause_wanted = False
        ready = self._event_ready(vcpu)
        if vcpu.state is _PAUSED or vcpu.state in _NOT_YET:
            vcpu.save_area_spa = vmcb.save_area_spa
            self.load(vcpu)
            for thread in vcpu.threads:
                guest.software.rebuild(thread)
        elif vcpu.state is not _SLEEPING or not ready:
            return
        if ready and vcpu.registers.r14 in HALTED:
            vcpu.registers.r15 = 0
        vcpu.epoch += 1
        vcpu.state = _BLOCK
        self._after(0, vcpu, self.go_on)

    def _after(self, delay_ns: int, vcpu: Vcpu, then: Callable[[Vcpu], None]) -> None:
        """Go on with a vCPU when so much time has passed, if nobody has stopped it by then."""
        self._clock.after(delay_ns, partial(_if_not_void, vcpu, vcpu.epoch, then))

    def _next_block(self, vcpu: Vcpu) -> None:
        self._run_blocks(vcpu, None)

    def _issue(self, vcpu: Vcpu, batch: tuple[op.GuestOperation, ...]) -> None:
        guest = vcpu.guest
        lost_ns = guest.lost_ns if (own := vcpu.thread == vcpu.index) else no_time()
        spent = guest.operation_cost.price(batch, self._contention.latency_ns, lost_ns, guest.row_ns)
        if len(batch) != 1 or type(batch[0]) not in _OF_MEMORY:
            spent += self.disk.wait(self._clock.now_ns, batch, lost_ns, guest.spec.name)
        spent = spent or vcpu.patience_ns(self._clock.now_ns)
        if not own:
            charge_svsm(guest, spent)
        vcpu.elapsed_ns += spent
        guest.operation_ns += spent
        guest.operations += len(batch)
        self.operations += len(batch)
        before: tuple[op.Answer, ...] = ()
        if vcpu.vc_code is not None:
            batch, before = met_first(vcpu, batch)
        self._clock.plan(spent, IssuedBatch(self._passes, vcpu, batch, spent, before))

    def _passed(self, due: IssuedBatch) -> None:
        """The time of a batch has passed."""
        vcpu = due.vcpu
        if vcpu.epoch == due.epoch:
            preempted = self._board.running.preempted
            if not (preempted and (vcpu.guest.spec.name, vcpu.index) in preempted) or self._enter(vcpu):
                self._take_effect(vcpu, due.batch, due.spent, due.before)
        self._clock.settle()

    def _take_effect(
        self, vcpu: Vcpu, batch: tuple[op.GuestOperation, ...], spent: int, before: tuple[op.Answer, ...] = ()
    ) -> None:
        """Execute a batch whose time has passed; ``before`` is what its begin was answered at an earlier time."""
        guest, board, name, index = vcpu.guest, self._board, vcpu.guest.spec.name, vcpu.index
        vmcb = board.vmcb(name, index)
        if not (vmcb.consistent and board.residents.at_home(vmcb)):  # Taken, or behind another's key meanwhile.
            self._power_off(guest, (ExitCode.SHUTDOWN if vmcb.consistent else ExitCode.INVALID) & 0xFF)
            return
        if board.exit_work:
            board.exit_work = []  # Of exits that nobody waited for: somebody else's hands on the board.
        held = False
        lone = len(batch) == 1 and type(batch[0]) in _OF_MEMORY  # Of which nothing is left but the answer.
        if lone and guest.dirty_log is None and not (before or board.traced):
            answers = board.execute_guest(vmcb, batch)
            if board.sent:
                self.sent()
            count_batch(guest, batch, answers)
            guest.chain.record(self._clock.now_ns, _BATCH, 1, vcpu.registers.r13, index, spent)
            if board.card_memory.traffic:
                self._wait_for_exits(vcpu, answers)
            else:
                self._run_blocks(vcpu, answers)
            return
        if board.traced and name in board.traced:
            answers, held = up_to_a_fault(board, vmcb, batch)
        elif guest.dirty_log is None:
            answers = board.execute_guest(vmcb, batch)
        else:
            answers = execute_logged(board, guest.dirty_log, self._clock.now_ns, vmcb, batch)
        if board.sent:
            self.sent()
        done = len(answers)
        if count_batch(guest, batch[:done], answers):
            guest.disk = counted(guest.disk, batch[:done], answers, guest.operation_cost.disk_ns)
        if held:
            vcpu.state, vcpu.held = VcpuState.HELD, (batch[done:], before + answers)
            return
        if board.held_in_reset and (name, index) in board.held_in_reset:
            board.held_in_reset.remove((name, index))
            vcpu.state, vcpu.held = VcpuState.IN_RESET, (batch[done:], before + answers)
            guest.tell_parked()
            return
        guest.chain.record(self._clock.now_ns, _BATCH, len(batch), vcpu.registers.r13, index, spent)
        if board.terminated and name in board.terminated:
            self._power_off(guest, TERMINATED | board.terminated.pop(name))
            return
        if before:
            answers = before + answers
        after: tuple[op.Answer, ...] | None = answers
        if board.vmcb(name, index).save_area_spa != vmcb.save_area_spa:
            leave_level(board, vcpu, vmcb, answers, batch[done:])
            if not self._enter(vcpu):
                return
            if vcpu.levels is not None:
                vcpu.registers = vcpu.levels.registers_at(board.vmcb(name, index).vmpl)
            self.load(vcpu)
            after = None
        if board.exit_work or board.card_memory.traffic:
            self._wait_for_exits(vcpu, after)
        elif after is not None:
            self._run_blocks(vcpu, after)
        else:
            self._resume_level(vcpu, after)

    def _resume_level(self, vcpu: Vcpu, answers: tuple[op.Answer, ...] | None) -> None:
        """Go on with a vCPU's block, or where None with whatever is to run at its VMPL."""
        if answers is None and vcpu.levels is not None:
            waiting = vcpu.levels.come_back(self._board.vmcb(vcpu.guest.spec.name, vcpu.index).vmpl)
            if waiting is not None and waiting.rest:
                # Priced with its batch.
                self._take_effect(vcpu, waiting.rest, 0, waiting.answers)
                return
            answers = None if waiting is None else waiting.answers
        self._run_blocks(vcpu, answers)

    def _wait_for_exits(self, vcpu: Vcpu, answers: tuple[op.Answer, ...] | None) -> None:
        """Go on when what the hypervisor did in a batch's exits has taken its time."""
        work, self._board.exit_work = self._board.exit_work, []
        link, ide = self._prices.cards.transfer_ns(self._board.card_memory.take_traffic())
        guest, epoch = vcpu.guest, vcpu.epoch
        changed = round(self._prices.host.exits_ns(work, guest.row_ns))
        times = ExitTimes(changed, round(link + ide), ide, guest.psp_wait_ns, guest.psp_service_ns)
        now_ns = self._clock.now_ns
        end_ns = now_ns + changed + times.moved
        for batch in work:
            end_ns = self.served(batch, end_ns, guest)
        spent = end_ns - now_ns
        if not spent:
            self._resume_level(vcpu, answers)
            return
        vcpu.elapsed_ns += spent
        times.charge(guest, spent, below=answers is None)

        def go_on() -> None:
            if vcpu.epoch == epoch:
                guest.chain.note(self._clock.now_ns, HostEvent.EXITS, len(work), 0, spent, vcpu.index)
                self._resume_level(vcpu, answers)

        self._clock.after(spent, go_on)

    def _end_block(self, vcpu: Vcpu, ending: Ending) -> bool:
        """Do what a block's end asks for; whether the vCPU now waits for something."""
        if ending is None:
            if vcpu.index == 0:
                self._start_application_processors(vcpu.guest)
            return False
        registers = vcpu.registers
        if isinstance(ending, op.Compute):
            if ending.instructions <= 0:
                return False
            registers.r14, registers.r15 = ending.demand, ending.instructions
            begin = self.compute
        elif isinstance(ending, op.Shutdown):
            self._power_off(vcpu.guest, ending.code)
            return True
        elif isinstance(ending, op.Sleep):
            if ending.duration_ns <= 0 or (self._board.events.waiting and self._event_ready(vcpu)):
                return False
            registers.r14, registers.r15 = SLEEPING, ending.duration_ns
            begin = self._sleep
        else:
            if ending.most_ns <= 0:
                return False
            registers.r14, registers.r15 = AWAITING, ending.most_ns
            begin = self._sleep
        if vcpu.pause_wanted:
            self._park(vcpu)
            vcpu.guest.tell_parked()
        else:
            begin(vcpu)
        return True

    def _start_application_processors(self, guest: Guest) -> None:
        if guest.vcpus[0].registers.rip != guest.software.entry:
            return
        for vcpu in guest.vcpus[1:]:
            if vcpu.state is _WAITING:
                if not self._enter(vcpu):
                    return
                self._run_blocks(vcpu, None)

    # Phases and sleeps.

    def compute(self, vcpu: Vcpu) -> None:
        """Let a vCPU go on with its phase, or begin it."""
        registers = vcpu.registers
        cost = vcpu.guest.phase_costs[vcpu.index][registers.r14]
        vcpu.state = _COMPUTING
        load = cost.load if vcpu.guest.throttle is None else held_load(vcpu, cost.load, self._contention.latency_ns)
        self.cores.start(vcpu, load, registers.r15)
        if vcpu.guest.changed is not None:
            vcpu.guest.changed()

    def call(self, vcpu: Vcpu) -> None:
        """Its network card has something for a vCPU: it awakes if it waits for that, else it will not wait."""
        vcpu.called = True
        if vcpu.state is _SLEEPING and vcpu.registers.r14 == AWAITING:
            self.awake(vcpu)

    def awake(self, vcpu: Vcpu) -> None:
        """Enter a halted vCPU again, which costs its exits and, where its thread slept, bringing that back."""
        guest, registers = vcpu.guest, vcpu.registers
        slept_ns = self._clock.now_ns - vcpu.slept_from_ns if vcpu.state is _SLEEPING else 0
        timer = registers.r14 == SLEEPING
        spent = guest.operation_cost.halt(guest.lost_ns, slept_ns, timer=timer, row_ns=guest.row_ns)
        vcpu.called, vcpu.state, registers.r15 = False, _BLOCK, 0
        vcpu.elapsed_ns += spent
        guest.operation_ns += spent
        vcpu.epoch += 1
        self._after(spent, vcpu, self._next_block)

    def _sleep(self, vcpu: Vcpu) -> None:
        if vcpu.called and vcpu.registers.r14 == AWAITING:
            self.awake(vcpu)
            return
        vcpu.state = _SLEEPING
        vcpu.slept_from_ns = self._clock.now_ns
        if vcpu.guest.changed is not None:
            vcpu.guest.changed()
        self._after(vcpu.registers.r15, vcpu, self.awake)

    def _phases_ended(self, ended: list[tuple[Vcpu, PhaseAccount]]) -> None:
        now = self._clock.now_ns
        for vcpu, account in ended:
            self._credit(vcpu, account)
            registers = vcpu.registers
            vcpu.guest.chain.record(now, _PHASE, registers.r14, registers.r15, vcpu.index, account.elapsed_ns)
            registers.r15 = 0
            self._count_phase(vcpu)
            vcpu.state = _BLOCK
        for vcpu, _ in ended:
            if vcpu.state is _BLOCK:  # Another vCPU's end may have been the end of the VM.
                self._run_blocks(vcpu, None)

    def _credit(self, vcpu: Vcpu, account: PhaseAccount) -> None:
        demand, done = vcpu.registers.r14, vcpu.instructions
        done[demand] = done.get(demand, 0.0) + account.instructions
        vcpu.book(account)

    def _note_cut(self, vcpu: Vcpu, account: PhaseAccount, now_ns: int) -> None:
        chain = vcpu.guest.chain
        if chain.keeps:
            done, demand = round(account.instructions), vcpu.registers.r14
            chain.note(now_ns, HostEvent.PHASE_CUT, demand, done, account.elapsed_ns, vcpu.index)

    def _count_phase(self, vcpu: Vcpu) -> None:
        demand = vcpu.registers.r14
        vcpu.phases[demand] = vcpu.phases.get(demand, 0) + 1
        self.phase_completions += 1

    # Ends and pauses.

    def _park(self, vcpu: Vcpu) -> None:
        """Save a paused vCPU's registers and forget every object of its program."""
        guest = vcpu.guest
        try:
            if not vcpu.out:
                store_registers(self._board, vcpu)
        except FAULTS:  # Its key is gone: nothing keeps its registers, and no VMRUN would find them.
            self._power_off(guest, ExitCode.INVALID & 0xFF)
            return
        if vcpu.state is not _PAUSED:  # Which left when it was halted.
            self._board.leave(guest.spec.name, vcpu.index)
        vcpu.state, vcpu.out = _PAUSED, False
        vcpu.registers = FORGOTTEN
        for thread in vcpu.threads:
            guest.software.forget(thread)
        guest.chain.record(self._clock.now_ns, _PARKED, vcpu.index, vcpu=vcpu.index)

    def _power_off(self, guest: Guest, code: int) -> None:
        self.stop(guest)
        guest.state = GuestState.STOPPED
        guest.powered_off, guest.shutdown_code = True, code
        guest.ended_ns = self._clock.now_ns
        self._log.chain(guest.spec.name).record(self._clock.now_ns, HostEvent.STOPPED, code)
        guest.tell_parked()


def _if_not_void(vcpu: Vcpu, epoch: int, then: Callable[[Vcpu], None]) -> None:
    if vcpu.epoch == epoch:
        then(vcpu)


_NOT_YET = (_WAITING, _STOPPED)
