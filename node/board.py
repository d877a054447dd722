"""One host's board: it executes operations on the hardware it is made of.

The role and identity of whoever yields an operation come from the core that
runs it (a ``Vmcb``, or the host itself), never from the operation. A role that
may not execute an instruction gets #UD. The board knows no time; what an
operation costs is said by ``operation_cost``.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace

from node import operations as op
from node.actor import HYPERVISOR, Actor, Observer, Role
from node.agent_core import AgentCores
from node.alias_scan import aliases_found
from node.branch_instructions import BranchInstructions
from node.branch_target_buffer import BranchTargetBuffer
from node.by_vm import ByVm
from node.cache_timing import USUAL, CacheTiming
from node.cached_controller import CachedController
from node.card_memory import CardMemory
from node.card_slot import windows, with_cards
from node.cipher_modes import CIPHER_DESIGNS
from node.core_msrs import SNP_EN
from node.counter_random import CounterRandom
from node.data_fabric import DataFabric
from node.device_port import DevicePort
from node.disk import Disk
from node.disk_file import DiskFile
from node.dram import Dram, MachineCheck
from node.event_delivery import EventDelivery
from node.exit_instructions import Exits, HeldInReset, SwitchedAway
from node.exit_registers import RegisterMasks
from node.fault_answers import FAULTS, undefined
from node.filled_slots import FilledSlots
from node.firmware_levels import firmware_level
from node.generation import Generation
from node.guest_access import CachedGuestAccess, GuestAccess
from node.guest_backing import Backing
from node.guest_instructions import GuestInstructions
from node.guest_port import GuestPort
from node.handler_core import HandlerCores
from node.host_instructions import HostInstructions
from node.host_system_bus import HostSystemBus
from node.iommu_board import board_iommu
from node.memory_controller import MemoryController
from node.moving_switches import switch_off
from node.msrs_at_reset import msrs_at_reset
from node.nested_page_table import NestedPageTable, TableHost
from node.nested_walk import NestedWalker
from node.page_table_entry import LONG, EntryFormat
from node.performance_counters import PerformanceCounters
from node.physical_port import PhysicalPort
from node.platform import AS_USUAL, HostMode, Platform, Protection
from node.product import Product
from node.random_numbers import RandomNumbers
from node.residents import Residents
from node.rmp import ReverseMapTable
from node.rmp_hidden_form import HiddenForm
from node.rmp_layout import RmpLayout, at_end_of_memory
from node.root_complex import RootComplex
from node.running_vcpus import RunningVcpus
from node.save_areas import SaveAreas
from node.stack_engine import StackEngines
from node.table_entries import TableEntries
from node.tlb import Tlb
from node.tlb_duties import TlbDuties
from node.trusted_dma import TrustedDma
from node.trusted_io import BoardTrustedIo
from node.unlaid_vms import UnlaidVms
from node.vcpu_controls import VcpuControls
from node.virtual_memory import VirtualMemory
from node.vmcb import Vmcb
from node.vmexit import ExitCode
from node.vmrun_checks import VmrunChecks
from node.vmrun_events import VmrunEvents
from node.vmsa import VMSA_FIELDS
from node.walked_memory import WalkedMemory
from psp.alias_check import AliasCheck
from psp.firmware import SecurityProcessor
from psp.guest_requests import GuestMessageSwitches
from psp.system_bus import PAGE_BYTES
from tio.ide import StreamChecks
from tio.virtio_net import VirtioNet

_VMPLS = 4

HypervisorReply = Generator[tuple[op.HypervisorOperation, ...], tuple[op.Answer, ...], int]
ExitHandler = Callable[[str, op.PageStateChange], HypervisorReply]


class Board:
    """DRAM, memory controller, RMP, security processor, disks and the control blocks of VMs."""

    def __init__(
        self,
        name: str,
        product: Product,
        memory_bytes: int,
        min_sev_asid: int,
        random: CounterRandom,
        platform: Platform = AS_USUAL,
    ) -> None:
        product = with_cards(product, memory_bytes, platform.cards)
        self.product = product
        self.platform = platform
        self.dram = Dram(memory_bytes)
        if platform.ghost_line:
            PhysicalPort(self.dram).ground(platform.ghost_line)
        alias_check = _alias_check(self.dram) if platform.alias_check else AliasCheck.NOT_DONE
        self.data_fabric = DataFabric(self.dram, locked=platform.fabric_locked)
        design = CIPHER_DESIGNS[platform.cipher_of(product)]
        ciphers = design.for_boot(
            lambda length: random.octets(name, "memory tweaks", 0, length),
            platform.xts_sector,
            tweaked=Protection.TWEAK not in platform.disabled,
        )
        layout: RmpLayout | None = None
        if Generation.SEV_SNP in product.generations:
            # Firmware reserves the table's place and sets the MSRs before the hypervisor starts.
            layout = at_end_of_memory(memory_bytes, segmented=product.rmp.segmented, mmio=product.rmp.mmio)
        self.caches: CachedController | None = None
        """The controller, where the platform has caches."""
        if platform.caches or platform.cache_timing:
            timing = CacheTiming() if platform.cache_timing else None
            self.caches = CachedController(self.dram, ciphers, product, layout, timing)
        self.controller = self.caches or MemoryController(self.dram, ciphers)
        """Memory as cores load and store it."""
        self.fabric = self.caches.fabric(product.caches.devices) if self.caches else self.controller
        """Memory as devices reach it."""
        self.walks = self._walked_memory()
        """Memory as page walks reach it: they find lines and leave none."""
        transparent = platform.mode is HostMode.TSME
        if platform.mode is not HostMode.NONE:
            key = random.octets(name, "host key", 0, design.key_bytes)
            self.controller.install_host_key(key, transparent=transparent)
        self.tlb = None if platform.tlb_entries is None else Tlb(platform.tlb_entries)
        """What cores remember of walks; None where every access walks anew."""
        self._entry_order = b""
        if product.rmp.segmented and product.rmp.hidden_form:
            self._entry_order = random.octets(name, "RMP entry form", 0, HiddenForm.RANDOM_BYTES)
        self.rmp: ReverseMapTable | None = None if layout is None else self._rmp_at(layout)
        ordinary_bytes = memory_bytes if layout is None else layout.base
        # Firmware clears memory before the cores start: under TSME that leaves ciphertext of zeros.
        self.controller.clear(0, ordinary_bytes, 0)
        self.msrs = msrs_at_reset(product, platform, layout, memory_bytes)
        self.snp_enabled = False
        """SNP_EN on every core: the host's RMP instructions are there."""
        self.iommu = board_iommu(product, platform, self.fabric, lambda: self.rmp)
        tio = Generation.SEV_TIO in product.generations
        asks_entries = Protection.SECURE_DEVICE_ENTRY not in platform.disabled
        form = EntryFormat(LONG, product.physical_address_bits - product.reduced_bits, product.c_bit)
        self.trusted_dma = (
            TrustedDma(
                self.iommu, lambda: self.rmp, asks_entries=asks_entries, peers_open=platform.peers_open, form=form
            ) if tio else None
        )
        """Requests of devices with the T bit; None on a part without SEV-TIO."""
        self.card_memory = CardMemory(self.iommu, self.trusted_dma)
        """Memory as cards in slots reach it, and the interrupts that they sent."""
        self.slots = FilledSlots(
            self.card_memory,
            lambda purpose, counter, length: random.octets(name, purpose, counter, length),
            StreamChecks(
                macs=Protection.IDE_MAC not in platform.disabled,
                numbers=Protection.IDE_PACKET_NUMBER not in platform.disabled,
                ciphers=Protection.IDE not in platform.disabled,
            ),
            reorder_check=platform.ide_reorder_check,
            tag_fence=platform.ide_tag_fence,
            rekey_flush=platform.ide_rekey_flush,
            wants_encryption=Protection.SESSION_ENCRYPTION not in platform.disabled,
        )
        self.root_complex: RootComplex | None = None
        """What leads to slots with cards; None on a board without any."""
        if platform.cards:
            self.root_complex = RootComplex(windows(memory_bytes, platform.cards), self.slots.fill)
            self.iommu.memory.peers = self.root_complex
        self.bus = HostSystemBus(
            product,
            min_sev_asid,
            self.dram,
            self.controller,
            self.walks,
            self.rmp,
            platform,
            self.msrs,
            self.iommu,
            self.data_fabric,
        )
        if self.trusted_dma is not None:
            self.bus.trusted_io = BoardTrustedIo(lambda: self.root_complex, self.trusted_dma)
        self.psp = SecurityProcessor(
            self.bus,
            lambda purpose, counter, length: random.octets(name, f"psp {purpose}", counter, length),
            firmware_level(
                product.name, product.line, platform.firmware_api or product.firmware_api, platform.firmware_tcb
            ),
            line=product.line,
        )
        self.psp.legacy.keys.checks_points = product.checks_points or platform.point_check
        self.psp.snp.wants_fabric_locked = platform.fabric_lock_checked
        self.psp.snp.alias_check = alias_check
        self.psp.snp.reports.forced_version = platform.report_version
        self.psp.snp.derived_keys.root_tcb = platform.derived_keys
        self.psp.firmware.signed_at = platform.reports_signed_for
        self.psp.snp.tsm.tdi_switches.rekeys = platform.ide_rekey_flush
        self.psp.snp.tsm.device_switches.wants_encryption = Protection.SESSION_ENCRYPTION not in platform.disabled
        if Protection.MESSAGE_SEQUENCE in platform.disabled:
            self.psp.snp.guest_requests.switches = GuestMessageSwitches(checks_sequence=False)
        switch_off(self.psp, platform.disabled)
        self.psp.snp.guests.pages.tweaked = platform.context_tweaked
        self.psp.snp.guests.pages.has_mac = platform.context_mac
        self.random_numbers = RandomNumbers(random, name)
        self.tsc: Callable[[], int] = int
        """The cores' time-stamp counter; it stands still where nobody drives the board."""
        self.exit_handler: ExitHandler | None = None
        """The hypervisor's answer to a page state change; runs while the vCPU is stopped."""
        self.observer: Observer | None = None
        """A tap outside of the machine: sees each batch and what its actor was answered."""
        self.exits: Exits | None = None
        self.launch_owner: Callable[[str, bytes], bytes | None] = lambda _vm, _shown: None
        """Who answers for the owners of VMs that are launched here: nobody."""
        self.certificates: Callable[[], bytes] = bytes
        """What the host has for guests: nothing, where nobody fetches certificates."""
        """The hypervisor's answers to VMGEXIT and to what it intercepts."""
        self.exit_work: list[tuple[op.HypervisorOperation, ...]] = []
        """What the hypervisor did in exits since somebody last asked."""
        self.terminated: dict[str, int] = {}
        """VMs that ended themselves through their GHCB, and how: reason set in bits 15:8, code in 7:0."""
        self.held_in_reset: set[tuple[str, int]] = set()
        """vCPUs whose last exit has not come back; whoever ran them takes them out."""
        self.unlaid = UnlaidVms(self)
        self.nested: dict[str, NestedPageTable] = ByVm(self.unlaid.look)
        self.tables = self._table_host()
        self.vmcbs: dict[str, dict[int, Vmcb]] = ByVm(self.unlaid.look)
        self.running = RunningVcpus(lambda: self.rmp)
        self.disks: dict[str, Disk] = {}
        self.disk_files: dict[str, DiskFile] = {}
        """What is behind the disks that are not empty at first."""
        self.nics: dict[str, dict[int, VirtioNet]] = {}
        """The network cards of VMs that have some, by vCPU."""
        self.sent: list[tuple[str, int, tuple[bytes, ...]]] = []
        """Frames that cards have sent since somebody last took them: VM, vCPU, frames."""
        self.controls = VcpuControls(self)
        self.vmrun_checks = VmrunChecks(self)
        """What VMRUN asks of a control block."""
        self.events = VmrunEvents(self)
        self.residents = Residents(self.controller.mark_of)
        self.predictor = BranchTargetBuffer()
        self.delivery = EventDelivery(self)
        self.stack_engines = StackEngines(self.msrs, product.threads_per_core, fixed=platform.stack_engine_fixed)
        self.traced: set[str] = set()
        """VMs whose nested faults are exits."""
        self.kicked: Callable[[str, int, int], None] | None = None
        """Whoever runs vCPUs learns which was taken out and entered anew, and with what exit code."""
        self.exited: Callable[[str, int], None] | None = None
        """And, before that, which the hypervisor makes exit: its registers are to be stored."""
        self.put_out: Callable[[str, int], None] | None = None
        """The same of one that is not to be entered at once."""
        self.entered: Callable[[str, int], None] | None = None
        """And which VMRUN has entered: its registers are those of its save area."""
        self.devices_told: Callable[[str, int], None] = lambda _vm, _value: None
        """Whom a VM's hypervisor tells what that says of its devices."""
        masks = RegisterMasks(lambda count, length: random.octets(name, "register nonce", count, length), platform)
        self.save_areas = SaveAreas(self.controller, self.bus, masks, platform)
        self.tlb_duties = None if self.tlb is None else TlbDuties(self, self.tlb)
        anew = GuestAccess(self)
        way = anew if self.tlb is None else CachedGuestAccess(self, anew, self.tlb)
        self.virtual_memory = VirtualMemory(self, way)
        self.branches = BranchInstructions(self, way, self.predictor, PerformanceCounters())
        self._guest = GuestInstructions(self, way, self.virtual_memory)
        self.agents = AgentCores(self)
        self.handlers = HandlerCores(self)
        self._host = HostInstructions(self)

    def vmcb(self, vm: str, vcpu: int) -> Vmcb:
        """The control block of a vCPU; where the hypervisor wrote none or took it, one that no VMRUN accepts."""
        try:
            return self.vmcbs[vm][vcpu]
        except KeyError:
            nowhere = self.bus.dram_bytes
            return Vmcb(vm, vcpu, 0, Generation.PLAIN, nowhere, NestedPageTable(self.tables), consistent=False)

    def execute_guest(self, vmcb: Vmcb, batch: tuple[op.GuestOperation, ...]) -> tuple[op.Answer, ...]:
        """Execute a guest's batch as the vCPU of ``vmcb``.

        There are fewer answers than operations where an exit came back to another of the vCPU's save areas: with
        the answer to the exit it ends. Or where it did not come back, for the vCPU is held in reset: before that.
        """
        table = self._guest.table
        if self.caches is not None:
            self.caches.move_to(vmcb.core)
        if len(batch) == 1 and self.observer is None and (does := self._guest.memory.get(type(batch[0]))) is not None:
            return (does(vmcb, batch[0]),)  # As most batches are, and such an operation always comes back.
        some: list[op.Answer] = []
        try:
            for one in batch:
                # One at a time: an exit that does not come back leaves the answers before it.
                some.append(table[type(one)](vmcb, one) if type(one) in table else undefined())  # noqa: PERF401
        except SwitchedAway as away:
            some.append(away.value)
            batch = batch[: len(some)]
        except HeldInReset:
            batch = batch[: len(some)]
        answers = tuple(some)
        if self.observer is not None:
            self.observer(Actor(Role.GUEST, vmcb.vm, vmcb.vcpu, vmcb.vmpl), batch, answers)
        return answers

    def fetch(self, vmcb: Vmcb, one: op.Read) -> op.Answer:
        """What a core that runs a vCPU finds at an address of its code: no operation of a program's."""
        return self._guest.table[op.Read](vmcb, one)

    def execute_host(self, batch: tuple[op.HypervisorOperation, ...]) -> tuple[op.Answer, ...]:
        """Execute a hypervisor's batch on a core in host mode."""
        core = 0 if self.caches is None else self.caches.move_to(0)
        answers = tuple(self._host.answers(batch))
        if self.caches is not None:
            self.caches.move_to(core)  # a guest's batch may have stopped half-way for this one
        if self.observer is not None:
            self.observer(HYPERVISOR, batch, answers)
        return answers

    def carry_out(self, batch: tuple[op.HypervisorOperation, ...]) -> tuple[op.Answer, ...]:
        """Execute what a hypervisor has its answers for already."""
        return tuple(self._host.answers(batch))

    def disk(self, vm: str) -> Disk:
        """A VM's disk; made when it is first asked for."""
        disk = self.disks.get(vm)
        if disk is None:
            nested, file = self.nested_table(vm), self.disk_files.get(vm)
            disk = self.disks[vm] = Disk(self.controller, self.bus, nested, file)
        return disk

    def plug_nic(self, vm: str, vcpu: int, mac: bytes) -> None:
        """Give a vCPU a network card that reaches its VM's memory as the hypervisor does."""
        port = GuestPort(self.controller, self.bus, self.nested_table(vm))
        self.nics.setdefault(vm, {})[vcpu] = VirtioNet(port, mac)

    def device_port(self, slot: int) -> DevicePort:
        """The way to memory of the device in a slot."""
        return DevicePort(self.iommu, slot)

    def settle_snp(self) -> None:
        """After a store to an MSR: with SNP_EN on every core the RMP is where their registers say."""
        if self.snp_enabled or self.rmp is None or not self.msrs.all_have(SNP_EN):
            return
        self.snp_enabled = True
        layout = self.bus.rmp_layout()
        if layout is None or layout == self.rmp.layout:
            return
        for spa, _ in self.rmp.layout.ranges():
            self.dram.let_go(spa)
        try:
            self.rmp = self.bus.rmp = self._rmp_at(layout)
        except (MachineCheck, ValueError):
            # Not in memory, or where nested tables are kept already: SNP_INIT will refuse the place.
            return
        if self.caches is not None:
            self.caches.place_rmp(layout)

    def _rmp_at(self, layout: RmpLayout) -> ReverseMapTable:
        under_key = self.platform.mode is HostMode.TSME or self.product.rmp.under_host_key
        cipher = self.controller.host_cipher if under_key else None
        form = HiddenForm(self._entry_order, cipher) if self._entry_order else None
        rmp = ReverseMapTable(
            self.dram, layout, self.product.rmp, cipher=cipher, form=form, disabled=self.platform.disabled,
            max_asid=self.product.max_asid,
        )  # fmt: skip
        rmp.changed = self._entries_changed
        return rmp

    def _entries_changed(self, spa: int, end: int) -> None:
        self.iommu.entries_changed()
        if self.tlb is not None:
            self.tlb.drop(spa, end)

    def nested_table(self, vm: str) -> NestedPageTable:
        """A VM's nested page table; empty when it is first asked for."""
        table = self.nested.get(vm)
        if table is None:
            table = self.nested[vm] = NestedPageTable(self.tables)
        return table

    def backing(self, vm: str) -> Backing:
        """Where a VM's memory lies, as its hypervisor last asked for it."""
        table = self.unlaid.vms.get(vm) or self.nested_table(vm)
        return table.backing(self.dram.size_bytes // self.platform.numa_nodes)

    def settle(self, vm: str) -> None:
        """A VM is about to run here for the first time."""
        if not self.unlaid.settle(vm):
            self.residents.settle(self.vmcb(vm, 0))

    def nested_table_at(self, vm: str, nested_cr3: int) -> NestedPageTable:
        """The tables at a root: a VM's own, or what the hypervisor wrote there itself."""
        own = self.nested_table(vm)
        if nested_cr3 in (-1, own.nested_cr3):
            return own
        c_bit = 1 << self.product.c_bit
        return NestedPageTable.at(self.tables, nested_cr3 & ~c_bit & -PAGE_BYTES, encrypted=bool(nested_cr3 & c_bit))

    def _walked_memory(self) -> WalkedMemory:
        if self.caches:
            return WalkedMemory(self.caches.fabric(self.caches.core_snoop))
        entries = TableEntries(self.controller, self.dram)
        return WalkedMemory(entries, entries)

    def _table_host(self) -> TableHost:
        product = self.product
        bits = product.physical_address_bits - product.reduced_bits
        check_write = None if self.rmp is None else self._check_host_write
        form = EntryFormat(LONG, bits, product.c_bit)
        walker = NestedWalker(self.walks, form, check_write, self.walks)
        return TableHost(self.walks, self.dram, walker, product.c_bit, check_write)

    def _check_host_write(self, spa: int, length: int) -> None:
        """Raises RmpFault by the RMP where it is now: tables may be older than SNP."""
        if self.rmp is not None:
            self.rmp.check_host_write(spa, length)

    @property
    def load_ns(self) -> int:
        """How long the last load took, as far as this board can tell loads apart."""
        return USUAL.memory_ns if self.caches is None else self.caches.load_ns

    # What a core does while a vCPU runs.

    def enter(self, vm: str, vcpu: int) -> int:
        """A vCPU begins to run: its save area is in use until it leaves, and it has the VMPL that stands there.

        0, or the exit code of VMRUN that refuses it, or of what it comes to at once behind another's key, where its
        code is noise. An event that the last exit interrupted is injected again, as hypervisors do.
        """
        if vm in self.unlaid.vms:
            return self.unlaid.enter(vm, vcpu)
        vmcb = self.vmcb(vm, vcpu)
        self.running.preempt((vm, vcpu))
        self.events.put_back(vmcb)
        code = self._enter(vmcb)
        return code if code or self.residents.at_home(self.vmcb(vm, vcpu)) else int(ExitCode.SHUTDOWN)

    def kick(self, vmcb: Vmcb) -> int:
        """A vCPU exits, and is entered as its control block says; the code of that VMRUN, 0 if it runs again."""
        thread = self.running.thread_of((vmcb.vm, vmcb.vcpu))
        self._exit(vmcb)
        self.preempt(vmcb.vm, vmcb.vcpu)
        code = self._enter(vmcb, thread)
        self.events.fields(vmcb).values["EXITCODE"] = (code or ExitCode.INTR) & (1 << 64) - 1
        if self.kicked is not None:
            self.kicked(vmcb.vm, vmcb.vcpu, code)
        return code

    def _enter(self, vmcb: Vmcb, thread: int | None = None) -> int:
        """VMRUN by the host's scheduler, or on the thread where a VMRUN of the hypervisor's own had put the vCPU."""
        vm, vcpu = vmcb.vm, vmcb.vcpu
        code = self.vmrun_checks.code(vmcb)
        if not code and thread is not None:
            refused = self.vmrun_checks.on_thread(vmcb, thread)
            return refused or (0 if self.switch_to(vmcb, thread) else int(ExitCode.INVALID))
        if code or not self.take_vmpl(vmcb):
            return int(code or ExitCode.INVALID)
        self.controls.forget(vm, vcpu)
        self.running.schedule((vm, vcpu), vmcb.save_area_spa)
        if self.tlb_duties is not None:
            core = self.tlb_duties.schedule(vm, vcpu)
            placed = self.vmcbs[vm][vcpu] = replace(self.vmcbs[vm][vcpu], core=core)
            self.tlb_duties.resume(placed)
        self.events.enter(vmcb)
        if self.entered is not None:
            self.entered(vm, vcpu)
        return 0

    def leave(self, vm: str, vcpu: int) -> None:
        """A vCPU is off its core; one that did not run is left alone."""
        if vm in self.unlaid.vms:
            self.running.leave((vm, vcpu))
            return
        self.controls.forget(vm, vcpu)
        self.held_in_reset.discard((vm, vcpu))
        if self.events.waiting:
            self.events.leave(vm, vcpu)
        if self.tlb_duties is not None:
            self.tlb_duties.vacate(vm, vcpu)
        self.running.leave((vm, vcpu))

    def nested_exit(self, vmcb: Vmcb, fault: op.Fault) -> None:
        """A vCPU exits with a nested page fault, and stays out."""
        values = self.events.fields(vmcb).values
        values["EXITCODE"], word = ExitCode.NESTED_PAGE_FAULT, (1 << 64) - 1
        values["EXITINFO1"], values["EXITINFO2"] = fault.error & word, fault.address & word
        self._exit(vmcb)
        self.preempt(vmcb.vm, vmcb.vcpu)

    def hold_in_reset(self, vmcb: Vmcb, one: op.VmgExit) -> None:
        """A vCPU exits with VMGEXIT, and its hypervisor does not enter it before somebody starts it."""
        self.events.fields(vmcb).values["GHCB_GPA"] = one.msr
        self._exit(vmcb)
        self.preempt(vmcb.vm, vmcb.vcpu)
        self.held_in_reset.add((vmcb.vm, vmcb.vcpu))

    def leave_reset(self, vmcb: Vmcb, one: op.GuestOperation) -> op.Answer:
        """It was entered again: what its exit came to."""
        answer = self.events.fields(vmcb).values["GHCB_GPA"]
        if self.observer is not None:
            self.observer(Actor(Role.GUEST, vmcb.vm, vmcb.vcpu, vmcb.vmpl), (one,), (answer,))
        return answer

    def _exit(self, vmcb: Vmcb) -> None:
        if self.exited is not None:
            self.exited(vmcb.vm, vmcb.vcpu)

    def preempt(self, vm: str, vcpu: int) -> None:
        """A vCPU exits, and stays out until its scheduler or a VMRUN enters it again."""
        self.controls.forget(vm, vcpu)
        if self.events.waiting:
            self.events.leave(vm, vcpu)
        self.running.preempt((vm, vcpu))

    def switch_to(self, vmcb: Vmcb, core: int) -> bool:
        """What VMRUN does once its checks are passed; False if the save area holds no VMPL.

        The save area is in use until the vCPU exits (``node.running_vcpus``).
        """
        self.controls.forget(vmcb.vm, vmcb.vcpu)
        if not self.take_vmpl(vmcb):
            return False
        vcpus = self.vmcbs[vmcb.vm]
        vmcb = vcpus[vmcb.vcpu]
        if vmcb.core != core:
            vmcb = vcpus[vmcb.vcpu] = replace(vmcb, core=core)
        self.running.take((vmcb.vm, vmcb.vcpu), core, vmcb.save_area_spa)
        if self.tlb_duties is not None:
            self.tlb_duties.enter(vmcb)
        self.events.enter(vmcb)
        if self.entered is not None:
            self.entered(vmcb.vm, vmcb.vcpu)
        return True

    def take_vmpl(self, vmcb: Vmcb) -> bool:
        """Give a control block the VMPL of its save area; False if there is none such."""
        if not vmcb.rmp_checked:
            return True
        (vmpl,) = self.controller.read(vmcb.save_area_spa + VMSA_FIELDS["VMPL"].offset, 1, vmcb.asid)
        if vmpl >= _VMPLS:
            return False
        if vmpl != vmcb.vmpl:
            self.vmcbs[vmcb.vm][vmcb.vcpu] = replace(vmcb, vmpl=vmpl)
        return True

    def look_up_vmpl(self, vmcb: Vmcb) -> None:
        """Have a new control block mean the VMPL of its save area at once, or else the one with the fewest rights.

        Whoever runs goes on with the block that the hypervisor writes meanwhile; that must raise nobody.
        """
        try:
            found = not vmcb.rmp_checked or (vmcb.consistent and self.take_vmpl(vmcb))
        except FAULTS:
            found = False
        if not found:
            self.vmcbs[vmcb.vm][vmcb.vcpu] = replace(vmcb, vmpl=_VMPLS - 1)


def _alias_check(dram: Dram) -> AliasCheck:
    return AliasCheck.FOUND if aliases_found(dram) else AliasCheck.COMPLETE
