"""One physical host in virtual time: its board, its hypervisor and the VMs on it.

This is the only file of the floor that knows a clock. The host has a SimPy
environment of its own in integer nanoseconds. All running phases share one
completion event: when the set of phases changes, the next completion is found
anew, and an event for another time than that is void.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass

import simpy

from node import operations as op
from node.board import Board
from node.contention import NEVER_NS, Contention, PhaseAccount
from node.counter_random import CounterRandom
from node.event_log import EventLog
from node.firmware_image import FirmwareImage
from node.generation import Generation
from node.guest import Guest, GuestSpec, GuestState
from node.guest_kernel import GuestKernel
from node.host_events import HostEvent
from node.hypervisor import Hypervisor, LaunchRefused
from node.operation_cost import GuestOperationCost, HostOperationCost
from node.phase_cost import Mechanism, PhaseCost
from node.product import Product
from node.program import Demand, Ending, ProgramFactory, Registers
from node.psp_queue import PspQueue
from node.vcpu import SLEEPING, Vcpu, VcpuState
from node.vmsa import load_registers, save_registers

PROGRAM_FAULT = 0xFE
"""Shutdown code of a VM whose registers named no block, or whose blocks never take time."""

_MOST_IDLE_BLOCKS = 1000

HypervisorTask = Generator[tuple[op.HypervisorOperation, ...], tuple[op.Answer, ...], None]
LaunchNotice = Callable[[Guest], None]


@dataclass(frozen=True, slots=True)
class HostSpec:
    """A host as a scenario orders it."""

    name: str
    product: Product
    memory_bytes: int
    min_sev_asid: int
    seed: int
    bucket_ns: int


class Host:
    """A host and everything on it. Times are virtual nanoseconds."""

    def __init__(
        self,
        spec: HostSpec,
        programs: Mapping[str, ProgramFactory],
        images: Mapping[str, FirmwareImage],
        costs: Mapping[str, float],
    ) -> None:
        self.spec = spec
        self.env = simpy.Environment(initial_time=0)
        self.board = Board(spec.name, spec.product, spec.memory_bytes, spec.min_sev_asid, CounterRandom(spec.seed))
        self.hypervisor = Hypervisor(spec.product, spec.memory_bytes, spec.min_sev_asid, images)
        self.board.exit_handler = self.hypervisor.page_state_change
        self.threads = spec.product.sockets * spec.product.cores * spec.product.threads_per_core
        self.contention = Contention(
            self.threads,
            spec.product.memory_bandwidth_bytes_per_s * costs["dram.usable_bandwidth_share"],
            costs["dram.latency_ns"],
            costs["dram.loaded_latency_factor"],
        )
        self.psp_queue = PspQueue()
        self.log = EventLog(spec.bucket_ns)
        self.guests: dict[str, Guest] = {}
        self.promises: dict[str, int] = {}
        """For each launch under way, the earliest time at which anything will be said of it."""
        self.phase_completions = 0
        self.peak_vcpus = 0
        self._programs = programs
        self._costs = costs
        self._host_cost = HostOperationCost(costs)
        self._guest_costs: dict[str, GuestOperationCost] = {}
        self._chain = self.log.chain(spec.name)
        self._known_costs: dict[tuple[tuple[Demand, ...], Generation], tuple[PhaseCost, ...]] = {}
        self._computing: dict[int, Vcpu] = {}
        self._completion_ns = -1
        self._changed = False
        self._run_at_once(self.hypervisor.bring_up())

    @property
    def now_ns(self) -> int:
        """The host's present time."""
        return self.env.now  # type: ignore[return-value]  # every delay is a whole number

    # Commands from outside; they take effect at the present time.

    def launch(self, spec: GuestSpec, notice: LaunchNotice, running: bool = False) -> None:
        """Launch a VM; ``notice`` is called when it runs or is refused, never before ``promises`` says.

        ``running`` puts a VM there as if its launch lay before time zero: the
        same operations, charged to nobody.
        """
        known = self.guests.get(spec.name)
        if known is not None and known.state not in (GuestState.DESTROYED, GuestState.REFUSED):
            raise ValueError(f"{spec.name}: a VM of this name is on {self.spec.name} already")
        guest = Guest(spec, ordered_ns=self.now_ns, lost_ns=dict.fromkeys(Mechanism, 0.0))
        self.guests[spec.name] = guest
        self._chain.record_octets(self.now_ns, HostEvent.ORDERED, spec.name.encode())
        task = self.hypervisor.launch(guest)
        if running:
            try:
                self._run_at_once(task)
            except LaunchRefused as refusal:
                self._refuse(guest, refusal)
            else:
                self._enter(guest)
            notice(guest)
            return
        guest.least_left_ns = self.hypervisor.least_launch_ns(guest.spec, self._host_cost)
        self._promise(guest, self.now_ns)

        def tell() -> None:
            def say() -> None:
                del self.promises[spec.name]
                notice(guest)

            self._after(max(0, self.promises[spec.name] - self.now_ns), say)

        def entered() -> None:
            self._enter(guest)
            tell()
            if guest.unwanted:
                self.destroy(spec.name)

        def refused(refusal: LaunchRefused) -> None:
            self._refuse(guest, refusal)
            tell()

        self._step_task(task, None, guest, entered, refused)
        self._settle()

    def _promise(self, guest: Guest, from_ns: int) -> None:
        """Nothing will be said of a launch before what is left of it is served, behind what is queued already."""
        if guest.least_left_ns:
            from_ns = max(from_ns, self.psp_queue.free_ns)
        promised = self.promises.get(guest.spec.name, 0)
        self.promises[guest.spec.name] = max(promised, from_ns + guest.least_left_ns)

    def destroy(self, name: str) -> None:
        """Take a VM off the host and give every resource back; a VM that is not there is left alone."""
        guest = self.guests.get(name)
        if guest is None or guest.state in (GuestState.DESTROYED, GuestState.REFUSED):
            return
        if guest.state is GuestState.LAUNCHING:
            guest.unwanted = True
            return
        for vcpu in guest.vcpus:
            self._halt(vcpu, VcpuState.STOPPED)
            vcpu.block = None
        if guest.state is not GuestState.STOPPED:
            guest.ended_ns = self.now_ns
        guest.state = GuestState.DESTROYED
        self._chain.record_octets(self.now_ns, HostEvent.DESTROYED, name.encode())
        self._step_task(self.hypervisor.destroy(name), None, guest, lambda: None, None)
        self._settle()

    def pause(self, name: str) -> None:
        """Stop a VM's vCPUs at the end of their blocks; their registers go to their save areas."""
        guest = self.guests[name]
        if guest.state is not GuestState.RUNNING:
            return
        guest.state = GuestState.PAUSED
        for vcpu in guest.vcpus:
            if vcpu.state in (VcpuState.BLOCK, VcpuState.WAITING):
                # One that waits for its start goes to its save area when the boot processor starts it.
                vcpu.pause_wanted = True
            elif vcpu.state in (VcpuState.COMPUTING, VcpuState.SLEEPING):
                self._halt(vcpu, VcpuState.PAUSED)
                self._park(vcpu)
        self._settle()

    def resume(self, name: str) -> None:
        """Rebuild a paused VM's programs from its specification and go on from its save areas."""
        guest = self.guests[name]
        if guest.state is not GuestState.PAUSED:
            return
        guest.state = GuestState.RUNNING
        self._build_programs(guest)
        for vcpu in guest.vcpus:
            vcpu.pause_wanted = False
            if vcpu.state is VcpuState.PAUSED:
                self._load(vcpu)
                self._continue(vcpu)
        self._settle()

    def close(self, end_ns: int) -> None:
        """Bring the books up to ``end_ns``: phases that still run are credited with what they did."""
        end_ns = max(end_ns, self.now_ns)
        self.contention.advance(end_ns)
        for guest in self.guests.values():
            for vcpu in guest.vcpus:
                if vcpu.state is VcpuState.COMPUTING:
                    self._credit(vcpu, self.contention.stop(vcpu.slot))
                    vcpu.state = VcpuState.STOPPED
                elif vcpu.state is VcpuState.PAUSED:
                    self._load(vcpu)
            guest.units_of_work = sum(vcpu.registers.r13 for vcpu in guest.vcpus)
            if guest.ended_ns < 0:
                guest.ended_ns = end_ns
        self._computing.clear()

    # The hypervisor's tasks.

    def _run_at_once(self, task: HypervisorTask) -> None:
        answers: tuple[op.Answer, ...] | None = None
        try:
            while True:
                batch = task.send(answers)  # type: ignore[arg-type]
                answers = self.board.execute_host(batch)
        except StopIteration:
            return

    def _step_task(
        self,
        task: HypervisorTask,
        answers: tuple[op.Answer, ...] | None,
        guest: Guest,
        done: Callable[[], None],
        refused: Callable[[LaunchRefused], None] | None,
    ) -> None:
        try:
            batch = task.send(answers)  # type: ignore[arg-type]
        except StopIteration:
            done()
            return
        except LaunchRefused as refusal:
            if refused is None:
                raise
            refused(refusal)
            return
        cost = self._host_cost
        host_ns = round(sum([cost.price(one) for one in batch]))
        commands = [one for one in batch if type(one) is op.PspCommand]
        ready = self.now_ns + host_ns
        if commands:
            served = [(one.command, round(cost.psp_service_ns(one))) for one in commands]
            end, waited = self.psp_queue.serve(ready, served)
            guest.psp_wait_ns += waited
            service = sum([ns for _, ns in served])
            guest.psp_service_ns += service
            if guest.spec.name in self.promises:
                guest.least_left_ns = max(0, guest.least_left_ns - service)
                self._promise(guest, end)
        else:
            end = ready

        def take_effect() -> None:
            self._step_task(task, self.board.execute_host(batch), guest, done, refused)

        self._after(end - self.now_ns, take_effect)

    def _refuse(self, guest: Guest, refusal: LaunchRefused) -> None:
        guest.state = GuestState.REFUSED
        guest.reason = str(refusal)
        guest.ended_ns = self.now_ns
        self._chain.record_octets(self.now_ns, HostEvent.REFUSED, guest.reason.encode())

    # vCPUs.

    def _enter(self, guest: Guest) -> None:
        """The hypervisor has entered the VM: its boot processor comes out of reset."""
        spec = guest.spec
        launched = self.hypervisor.launched(spec.name)
        guest.state = GuestState.RUNNING
        guest.running_ns = self.now_ns
        guest.asid, guest.launched = launched.asid, launched.launched_gpas
        guest.launch_digest = self.hypervisor.launch_digest(spec.name, self.board.psp)
        guest.vcpus = [Vcpu(guest, index, spa) for index, spa in enumerate(launched.save_areas)]
        for vcpu in guest.vcpus:
            self._load(vcpu)
        guest.reset_rips = tuple(vcpu.registers.rip for vcpu in guest.vcpus)
        self._build_programs(guest)
        for vcpu in guest.vcpus:
            assert vcpu.program is not None
            demands = vcpu.program.demands
            vcpu.instructions, vcpu.phases = [0.0] * len(demands), [0] * len(demands)
            guest.demand_names += (tuple(one.name for one in demands),)
        self.peak_vcpus = max(self.peak_vcpus, sum(len(one.vcpus) for one in self._running()))
        self._chain.record_octets(self.now_ns, HostEvent.ENTERED, bytes.fromhex(guest.launch_digest))
        self._continue(guest.vcpus[0])
        self._settle()

    def _running(self) -> list[Guest]:
        return [guest for guest in self.guests.values() if guest.state in (GuestState.RUNNING, GuestState.PAUSED)]

    def _build_programs(self, guest: Guest) -> None:
        """Make the Python objects of a VM's programs anew from its specification.

        A vCPU in the middle of a block is past its last pause: it goes on with what it has.
        """
        spec = guest.spec
        factory = self._programs[spec.program.name]
        memory = spec.memory
        for vcpu, reset_rip in zip(guest.vcpus, guest.reset_rips, strict=True):
            if vcpu.state is VcpuState.BLOCK:
                continue
            program = factory(spec.program, memory.placement(spec.name, vcpu.index, spec.seed))
            kernel = GuestKernel(spec.generation, memory, guest.launched, vcpu.index, reset_rip, program.entry)
            vcpu.program = program
            vcpu.blocks = {**kernel.blocks, **program.blocks}
            vcpu.block = None
            guest.phase_costs[vcpu.index] = self._phase_costs(program.demands, spec.generation)

    def _phase_costs(self, demands: tuple[Demand, ...], generation: Generation) -> tuple[PhaseCost, ...]:
        """Costs of a program's demands, worked out once for all VMs that make the same."""
        key = (demands, generation)
        found = self._known_costs.get(key)
        if found is None:
            hz = float(self.spec.product.base_hz)
            found = tuple(PhaseCost.of(demand, generation, hz, self._costs) for demand in demands)
            self._known_costs[key] = found
        return found

    def _continue(self, vcpu: Vcpu) -> None:
        """Go on with a vCPU as its registers say: the rest of a phase or sleep, else the next block."""
        registers = vcpu.registers
        if registers.r15 and registers.r14 == SLEEPING:
            self._sleep(vcpu)
        elif registers.r15:
            self._compute(vcpu)
        else:
            self._run_blocks(vcpu, None)

    def _run_blocks(self, vcpu: Vcpu, answers: tuple[op.Answer, ...] | None) -> None:
        vcpu.state = VcpuState.BLOCK
        for _ in range(_MOST_IDLE_BLOCKS):
            block = vcpu.block
            try:
                if block is None:
                    if vcpu.pause_wanted:
                        self._park(vcpu)
                        return
                    start = vcpu.blocks.get(vcpu.registers.rip)
                    if start is None:
                        break
                    block = start(vcpu.registers)
                    batch = next(block)
                    vcpu.block = block
                else:
                    assert answers is not None
                    batch = block.send(answers)
            except StopIteration as end:
                vcpu.block = None
                if self._end_block(vcpu, end.value):
                    return
                continue
            self._issue(vcpu, batch)
            return
        self._power_off(vcpu.guest, PROGRAM_FAULT)

    def _issue(self, vcpu: Vcpu, batch: tuple[op.GuestOperation, ...]) -> None:
        guest = vcpu.guest
        spent = self._guest_cost(guest).price(batch, self.contention.latency_ns, guest.lost_ns)
        vcpu.elapsed_ns += spent
        guest.operation_ns += spent
        guest.operations += len(batch)
        epoch = vcpu.epoch

        def take_effect() -> None:
            if vcpu.epoch != epoch:
                return
            vmcb = self.board.vmcb(guest.spec.name, vcpu.index)
            answers = self.board.execute_guest(vmcb, batch)
            self._count(guest, batch, answers)
            self.log.chain(guest.spec.name).record(self.now_ns, HostEvent.BATCH, len(batch), vcpu.registers.r13)
            self._run_blocks(vcpu, answers)

        self._after(spent, take_effect)

    def _count(self, guest: Guest, batch: tuple[op.GuestOperation, ...], answers: tuple[op.Answer, ...]) -> None:
        for one, answer in zip(batch, answers, strict=True):
            kind = type(answer)
            if kind is bytes:
                guest.bytes_read += len(answer)  # type: ignore[arg-type]
            elif kind is op.Fault:
                guest.faults += 1
            elif type(one) is op.Write:
                guest.bytes_written += len(one.data)

    def _guest_cost(self, guest: Guest) -> GuestOperationCost:
        generation = guest.spec.generation
        found = self._guest_costs.get(generation.name)
        if found is None:
            found = self._guest_costs[generation.name] = GuestOperationCost(generation, self._costs)
        return found

    def _end_block(self, vcpu: Vcpu, ending: Ending) -> bool:
        """Do what a block's end asks for; whether the vCPU now waits for something."""
        if ending is None:
            if vcpu.index == 0:
                self._start_application_processors(vcpu.guest)
            return False
        if isinstance(ending, op.Shutdown):
            self._power_off(vcpu.guest, ending.code)
            return True
        registers = vcpu.registers
        if isinstance(ending, op.Sleep):
            if ending.duration_ns <= 0:
                return False
            registers.r14, registers.r15 = SLEEPING, ending.duration_ns
            if vcpu.pause_wanted:
                self._park(vcpu)
            else:
                self._sleep(vcpu)
            return True
        if ending.instructions <= 0:
            return False
        registers.r14, registers.r15 = ending.demand, ending.instructions
        if vcpu.pause_wanted:
            self._park(vcpu)
        else:
            self._compute(vcpu)
        return True

    def _start_application_processors(self, guest: Guest) -> None:
        boot = guest.vcpus[0]
        if boot.program is None or boot.registers.rip != boot.program.entry:
            return
        for vcpu in guest.vcpus[1:]:
            if vcpu.state is VcpuState.WAITING:
                self._run_blocks(vcpu, None)

    def _compute(self, vcpu: Vcpu) -> None:
        registers = vcpu.registers
        cost = vcpu.guest.phase_costs[vcpu.index][registers.r14]
        self.contention.advance(self.now_ns)
        vcpu.slot = self.contention.start(cost.load, float(registers.r15))
        vcpu.state = VcpuState.COMPUTING
        self._computing[vcpu.slot] = vcpu
        self._changed = True

    def _sleep(self, vcpu: Vcpu) -> None:
        vcpu.state = VcpuState.SLEEPING
        vcpu.slept_from_ns = self.now_ns
        epoch = vcpu.epoch

        def wake() -> None:
            if vcpu.epoch == epoch:
                vcpu.registers.r15 = 0
                self._run_blocks(vcpu, None)

        self._after(vcpu.registers.r15, wake)

    def _halt(self, vcpu: Vcpu, state: VcpuState) -> None:
        """Take a vCPU off its core at once; what is left of a phase or sleep goes to R15."""
        if vcpu.state is VcpuState.COMPUTING:
            self.contention.advance(self.now_ns)
            account = self.contention.stop(vcpu.slot)
            del self._computing[vcpu.slot]
            self._changed = True
            self._credit(vcpu, account)
            vcpu.registers.r15 = -int(-account.remaining // 1)
            if not vcpu.registers.r15:
                self._count_phase(vcpu)
        elif vcpu.state is VcpuState.SLEEPING:
            vcpu.registers.r15 -= self.now_ns - vcpu.slept_from_ns
        elif vcpu.state is VcpuState.PAUSED:
            self._load(vcpu)
        vcpu.epoch += 1
        vcpu.state = state

    def _load(self, vcpu: Vcpu) -> None:
        """Take a vCPU's registers from its save area."""
        vmcb = self.board.vmcb(vcpu.guest.spec.name, vcpu.index)
        load_registers(self.board.load_save_area(vmcb), vcpu.registers)

    def _park(self, vcpu: Vcpu) -> None:
        """Save a paused vCPU's registers and forget every object of its program."""
        guest = vcpu.guest
        vmcb = self.board.vmcb(guest.spec.name, vcpu.index)
        page = bytearray(self.board.load_save_area(vmcb))
        save_registers(vcpu.registers, page)
        self.board.store_save_area(vmcb, bytes(page))
        vcpu.state = VcpuState.PAUSED
        vcpu.block = vcpu.program = None
        vcpu.blocks = {}
        vcpu.registers = Registers()
        self.log.chain(guest.spec.name).record(self.now_ns, HostEvent.PAUSED, vcpu.index)

    def _power_off(self, guest: Guest, code: int) -> None:
        for vcpu in guest.vcpus:
            self._halt(vcpu, VcpuState.STOPPED)
            vcpu.block = None
        guest.state = GuestState.STOPPED
        guest.shutdown_code = code
        guest.ended_ns = self.now_ns
        self.log.chain(guest.spec.name).record(self.now_ns, HostEvent.STOPPED, code)

    def _credit(self, vcpu: Vcpu, account: PhaseAccount) -> None:
        vcpu.instructions[vcpu.registers.r14] += account.instructions
        vcpu.loaded_ns += account.loaded_ns
        vcpu.core_wait_ns += account.core_wait_ns
        vcpu.elapsed_ns += account.elapsed_ns

    # The one completion event.

    def _complete(self) -> None:
        now = self.now_ns
        if now != self._completion_ns:
            return
        self._completion_ns = -1
        contention = self.contention
        contention.advance(now)
        # First all that end now, then what follows them: a phase that starts now cannot end now.
        ended = [self._computing.pop(slot) for slot in contention.completed()]
        for vcpu in ended:
            self._credit(vcpu, contention.stop(vcpu.slot))
            registers = vcpu.registers
            self.log.chain(vcpu.guest.spec.name).record(now, HostEvent.PHASE, registers.r14, registers.r15)
            registers.r15 = 0
            self._count_phase(vcpu)
            vcpu.state = VcpuState.BLOCK
        for vcpu in ended:
            if vcpu.state is VcpuState.BLOCK:  # Another vCPU's end may have been the end of the VM.
                self._run_blocks(vcpu, None)
        self._changed = True

    def _count_phase(self, vcpu: Vcpu) -> None:
        vcpu.phases[vcpu.registers.r14] += 1
        self.phase_completions += 1

    def _settle(self) -> None:
        """After any change of the running phases: share the host anew and set the completion event."""
        if not self._changed:
            return
        self._changed = False
        # Whoever changed the set brought it up to the present time first.
        self.contention.solve()
        completion = self.contention.next_completion_ns()
        if completion not in (self._completion_ns, NEVER_NS):
            timeout = self.env.timeout(completion - self.now_ns)
            timeout.callbacks.append(self._on_completion)
        self._completion_ns = completion

    def _on_completion(self, _: simpy.Event) -> None:
        self._complete()
        self._settle()

    def _after(self, delay_ns: int, action: Callable[[], None]) -> None:
        def fire(_: simpy.Event) -> None:
            action()
            self._settle()

        self.env.timeout(delay_ns).callbacks.append(fire)
