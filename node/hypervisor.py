"""The host's hypervisor: programs that yield operations, and the books it keeps itself.

It holds no reference to a chip. What it knows are answers and its own records:
which frames, ASIDs and firmware contexts belong to which VM. Order of commands:
firmware ABI sections 3 and 4, and what KVM and QEMU do with them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace

from node import operations as op
from node.agent_transfer import agent_context, launch_agent, restart_agent
from node.asid_pool import AsidPool, AsidsExhausted
from node.by_vm import ByVm
from node.card_driver import release_cards, roll_card_keys
from node.core_msrs import Msr
from node.cpu_model import model_of, shown_leaves
from node.cpuid_page import CpuidEntry, cpuid_page
from node.device_access import device_access
from node.device_moves import ask_devices, give_devices
from node.expected_answers import expect_done, expect_gone, expect_success, is_success
from node.firmware_driver import LEGACY, commit_firmware, update_firmware
from node.firmware_image import FirmwareImage
from node.frame_allocator import FrameAllocator, OutOfMemory, joined
from node.generation import Generation
from node.ghcb_server import GhcbServer
from node.guest_requests import GuestRequests
from node.handler_transfer import is_of_image
from node.host_bring_up import TRUSTED_REGION_BYTES, bring_up_steps, refusal
from node.hypervisor_port import (
    Answers,
    Batch,
    CpuidReply,
    HypervisorFigures,
    LaunchRefused,
    LaunchTask,
    Reply,
    Task,
)
from node.launched_vm import LaunchedVm, page_runs
from node.machine_spec import MachineSpec
from node.measured_launch import VMSA_GPA, LaunchPage, launch_vmsas, sev_launch_ranges
from node.nested_table_pages import table_pages
from node.ovmf import FirmwareImageError
from node.owned_launch import LAUNCH_SECRET_GPA, OWNERS_PAGES, OwnedLaunch, in_a_row
from node.page_state_change import change_page_state
from node.port_window import PortWindow
from node.product import Product
from node.rmp_layout import at_end_of_memory
from node.sealed_transfer import depart, open_session, seal, unseal
from node.sev_features import launch_features
from node.svsm_launch import guest_launch_pages, svsm_below
from node.tio_host import TioHost
from node.tio_memory import TioMemory
from node.vm_place import VmPlace
from node.vm_transfer import export, fill, receive, set_clock
from node.vmsa import VMSA_BYTES, SevFeature
from psp import command_buffers as buffers
from psp.commands import LegacyCommand, SnpCommand
from psp.launch_digest import PageType
from psp.policy import LegacyPolicy, SnpPolicy
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES, RmpEntry

Launch = Callable[["Hypervisor", MachineSpec, LaunchedVm], Task]
Call = Generator[Batch, Answers, bytes]

LEGACY_POLICY = 0x1
"""NODBG; firmware ABI section 3."""
SNP_POLICY = 0x3_0000
"""SMT allowed and the bit that must be one; firmware ABI section 5."""
SPARE_TABLES = 8
"""Pages for nested tables that a VM has beyond its first mappings, to split large pages later."""
COMMANDS_AT_ONCE = 64
"""LAUNCH_UPDATE commands between which another launch may take the mailbox."""

_HYPERVISOR = RmpEntry()
_FIRMWARE = RmpEntry(assigned=True, immutable=True)


class Hypervisor:
    """One host's hypervisor. Every public generator yields batches and receives answers."""

    def __init__(
        self,
        product: Product,
        memory_bytes: int,
        min_sev_asid: int,
        images: Mapping[str, FirmwareImage],
        max_snp_asid: int = 0,
        ports: Sequence[PortWindow] = (),
    ) -> None:
        self.product = product
        self._images = images
        self._max_snp_asid = max_snp_asid
        self.snp = Generation.SEV_SNP in product.generations
        self.asids = AsidPool(product.max_asid, min_sev_asid, max_snp_asid)
        trusted = bool(ports) and Generation.SEV_TIO in product.generations
        reserved = 0
        if self.snp:
            rmp = product.rmp
            reserved = memory_bytes - at_end_of_memory(memory_bytes, segmented=rmp.segmented, mmio=rmp.mmio).base
        # The first 2 MiB stay with the host, as real-mode memory does, and what firmware gets at INIT.
        first, end = LARGE_PAGE_BYTES, memory_bytes - reserved
        self._trusted_region = (end - TRUSTED_REGION_BYTES) // LARGE_PAGE_BYTES * LARGE_PAGE_BYTES
        self.frames = FrameAllocator([(first, self._trusted_region - first)])
        self.rmp_bytes = reserved
        self.command_page = self._frame()
        self.frames.stays(self.command_page)
        self.tio = TioHost(ports, TioMemory(self.frames, self.command_page), trusted=trusted)
        self.updating = False
        """Whether firmware is just being replaced: no SEV guest can come then."""
        self.places: dict[str, VmPlace] = {}
        """What VMs have that nobody has asked for; ``_vms`` has the others."""
        self._vms: dict[str, LaunchedVm] = ByVm(self._look)
        self._ghcb = GhcbServer(product, self.page_state_change, self.small_page, self.tio)

    @property
    def requests(self) -> GuestRequests:
        """What carries guests' messages to the firmware."""
        return self._ghcb.requests

    def cpuid_leaves(self, record: LaunchedVm) -> tuple[CpuidEntry, ...]:
        """What CPUID tells a VM."""
        return self._ghcb.leaves[record.generation] if record.leaves is None else record.leaves

    def record_for(self, spec: MachineSpec) -> LaunchedVm:
        """A new record for a VM. Raises LaunchRefused where it is to be shown what the host does not have."""
        model, launched_on = spec.cpu_model, spec.launched_on
        leaves = shown_leaves(self.product, spec.generation, model, launched_on) if model or launched_on else None
        record = self._vms[spec.name] = LaunchedVm(
            spec.generation, self._images[spec.firmware], leaves, agent=spec.migration_agent
        )
        return record

    def _look(self, vm: str) -> bool:
        """Somebody asks for a VM's record: make it, if only its place is here."""
        place = self.places.pop(vm, None)
        if place is not None:
            self._vms[vm] = place.record()
        return place is not None

    def has_record(self, vm: str) -> bool:
        """Whether there is one of a VM; that is no look."""
        return dict.__contains__(self._vms, vm)

    def image(self, key: str) -> FirmwareImage:
        """The firmware of that key."""
        return self._images[key]

    def launched(self, vm: str) -> LaunchedVm:
        """The record of a VM; KeyError if there is none."""
        return self._vms[vm]

    def figures(self) -> HypervisorFigures:
        """The books as they stand."""
        return HypervisorFigures.of(self.frames, self.rmp_bytes, self.asids)

    def bring_up(self) -> Task:
        """Bring the host up: IOMMU, cores, and firmware, SNP first where the product has it, then legacy."""
        (syscfg,) = yield (op.ReadMsr(0, Msr.SYSCFG),)
        assert isinstance(syscfg, int)
        for step in bring_up_steps(
            self.product, self.command_page, syscfg, self._max_snp_asid, self._trusted_region, self.tio.device_table,
            tio=self.tio.trusted,
        ):  # fmt: skip
            refused = refusal(step, (yield step.batch))
            if refused:
                raise LaunchRefused(refused)
        yield from self.tio.start()

    def launch(self, spec: MachineSpec) -> LaunchTask:
        """Launch a VM up to the entry of its boot processor. Raises LaunchRefused with everything given back."""
        record = self.record_for(spec)
        try:
            launch = self._way_to_launch(spec.generation)
            record.svsm = svsm_below(record.firmware, spec)
            yield from self._take_memory(spec, record)
            yield from launch(self, spec, record)
            if spec.devices:
                yield from give_devices(self, spec, record)
            yield from self._checked([op.VmRun(spec.name, 0)])
        except LaunchRefused:
            yield from self._give_back(spec.name, record)
            raise
        except (OutOfMemory, AsidsExhausted, FirmwareImageError) as error:
            yield from self._give_back(spec.name, record)
            raise LaunchRefused(str(error)) from error
        return record.entered()

    def _way_to_launch(self, generation: Generation) -> Launch:
        if generation not in self.product.generations:
            raise LaunchRefused(f"generation: {self.product.name} has no {generation.name}")
        if self.updating and generation in LEGACY:
            raise LaunchRefused("firmware of the security processor is being replaced")
        return _LAUNCHES[generation]

    def destroy(self, vm: str) -> Task:
        """Take a VM apart and give every resource back; one that is gone is left alone."""
        if vm in self._vms:
            yield from self._give_back(vm, self._vms[vm])

    def vmgexit(self, vm: str, vcpu: int, value: int) -> Reply:
        """Answer VMGEXIT: the GHCB MSR's new value, or a negative number that holds the vCPU or ends the VM."""
        return self._ghcb.serve(vm, self._vms[vm], vcpu, value)

    def cpuid(self, vm: str, vcpu: int, function: int, index: int) -> CpuidReply:
        """What CPUID tells a guest whose registers are there to be written."""
        return op.CpuidResult(*self._ghcb.leaf(self._vms[vm], vcpu, function, index))
        yield ()

    def mmio(self, vm: str, vcpu: int, gpa: int, length: int, value: int | None) -> Reply:
        """Answer a load or store to a device by a guest whose registers are not encrypted."""
        return device_access(self._vms[vm], vm, vcpu, gpa, length, value)

    update_firmware = update_firmware
    commit_firmware = commit_firmware
    launch_agent, restart_agent = launch_agent, restart_agent
    roll_card_keys, release_cards = roll_card_keys, release_cards
    ask_devices = ask_devices
    export, receive, fill, set_clock = export, receive, fill, set_clock
    seal, unseal, open_session, depart = seal, unseal, open_session, depart

    def page_state_change(self, vm: str, change: op.PageStateChange) -> Reply:
        """Answer a guest's page state change: reassign the pages in the RMP. Returns 0, or 1 if refused."""
        return change_page_state(vm, self._vms[vm], change, self.tio.shows)

    # What every launch takes and gives back.

    def _take_memory(self, spec: MachineSpec, record: LaunchedVm) -> Task:
        ranges = (*spec.memory.ram, record.flash)
        row = self.frames.allocate_row([part.length for part in ranges], LARGE_PAGE_BYTES)
        for part, pieces in zip(ranges, row, strict=True):
            gpa = part.gpa
            for spa, length in pieces:
                record.ram.append((gpa, spa, length))
                gpa += length
        self.small_page(record)
        record.tables = self.frames.allocate_last((table_pages(record.ram) + SPARE_TABLES) * PAGE_BYTES, PAGE_BYTES)
        c_bit = record.c_bit
        build = (op.NestedBuild(spec.name, tuple(record.tables), tuple(record.ram), c_bit),)
        answers = yield build
        if c_bit and isinstance(answers[0], op.Fault):
            raise LaunchRefused("generation: SME needs a host whose own memory encryption is on")
        expect_done(build, answers)
        if c_bit:
            # Zeros without the C-bit would read as garbage with it.
            yield from self._checked([op.HostClear(spa, length, encrypted=True) for spa, length in record.frames])

    def _take_asid(self, record: LaunchedVm) -> Task:
        if self.asids.needs_flush(record.generation):
            # One batch: an ASID given up between the two would make the firmware refuse the flush (KVM holds a lock).
            flush = SnpCommand.DF_FLUSH if self.snp else LegacyCommand.DF_FLUSH
            expect_success((yield (op.Wbinvd(), op.PspCommand(flush)))[1:], flush)
            self.asids.after_flush()
        record.asid = self.asids.allocate(record.generation)

    def _write(self, record: LaunchedVm, contents: list[tuple[int, bytes]]) -> Task:
        yield from self._checked([op.HostWrite(record.spa_of(gpa), data, record.c_bit) for gpa, data in contents])

    def _write_save_areas(self, spec: MachineSpec, record: LaunchedVm) -> Task:
        """Save areas without a guest's key: a VMCB's, as PLAIN, SME and SEV guests have."""
        batch: list[op.HypervisorOperation] = []
        for index, page in enumerate(launch_vmsas(record.firmware, spec.vcpus, model_of(spec.cpu_model), 0)):
            spa = self.small_page(record)
            record.save_areas.append(spa)
            batch.append(op.HostWrite(spa, page, record.c_bit))
            batch.append(op.VmcbWrite(spec.name, index, record.asid, spec.generation.name, spa))
        yield from self._checked(batch)

    def _give_back(self, vm: str, record: LaunchedVm) -> Task:
        """Return everything in ``record``, in the order that firmware and RMP demand."""
        command = record.small[0] if record.small else 0
        yield from self.tio.take_all(vm, record.gctx)
        if record.gctx:
            context = buffers.GuestContextPage(address=record.gctx)
            expect_gone((yield (op.PspCommand(SnpCommand.DECOMMISSION, command, context.pack()),)))
        if record.handle:
            for code in (LegacyCommand.DEACTIVATE, LegacyCommand.DECOMMISSION):
                yield from self.must(code, command, buffers.Handle(handle=record.handle).pack())
            # The guest's lines would be written back later, over whoever has the frames next; KVM does it on all parts.
            yield (op.Wbinvd(),)
        if record.assigned:
            yield from self._reclaim(record)
        if record.lent:
            yield from self._take_back(record)
        for spa in record.firmware_pages:
            yield from self.take_from_firmware(spa)
        memory, small = list(joined(record.frames)), [(spa, PAGE_BYTES) for spa in record.small]
        clears = [op.HostClear(spa, length) for spa, length in memory]
        clears += [op.PaidClear(spa, length) for spa, length in small]
        pieces = list(joined(memory + small))
        yield (*clears, op.VmcbClear(vm))
        self.frames.release(pieces + record.tables)
        if record.asid:
            self.asids.release(record.asid)
        del self._vms[vm]

    def _reclaim(self, record: LaunchedVm) -> Task:
        """Take the guest's pages back in the RMP, one range after another."""
        # Pages whose launch was cut short are still immutable: only firmware can let them go.
        for spa in sorted(record.immutable):
            yield from self._page_reclaim(spa)
        yield from self._checked(
            [
                op.RmpUpdate(piece, size, _sized(_HYPERVISOR, piece_large))
                for spa, length, large in record.assigned
                for piece, size, piece_large in (record.pieces(spa, length) if large else [(spa, length, False)])
            ]
        )

    # Commands and frames.

    def _frame(self) -> int:
        ((spa, _),) = self.frames.allocate(PAGE_BYTES, PAGE_BYTES)
        return spa

    def small_page(self, record: LaunchedVm) -> int:
        """A frame for a VM, until it goes. Raises LaunchRefused where there is none, for a move or a launch ends so."""
        try:
            spa = self._frame()
        except OutOfMemory as error:
            raise LaunchRefused(str(error)) from error
        record.small.append(spa)
        return spa

    def must(self, command: int, spa: int = 0, buffer: bytes = b"") -> Task:
        expect_success((yield (op.PspCommand(command, spa, buffer),)), command)

    def _call(self, command: int, spa: int, buffer: bytes) -> Call:
        """A command whose buffer firmware writes: under SNP the page must be firmware's during the call."""
        if not self.snp:
            answers = yield (op.PspCommand(command, spa, buffer),)
            expect_success(answers, command)
            assert isinstance(answers[0], op.PspAnswer)
            return answers[0].buffer
        yield from self._checked([op.PaidWrite(spa, buffer)])
        yield from self.give_to_firmware(spa)
        answers = yield (op.PspCommand(command, spa),)
        yield from self.take_from_firmware(spa)
        expect_success(answers, command)
        (back,) = yield (op.PaidRead(spa, len(buffer)),)
        assert isinstance(back, bytes)
        return back

    def give_to_firmware(self, spa: int) -> Task:
        if self.snp:
            yield from self._checked([op.RmpUpdate(spa, PAGE_BYTES, _FIRMWARE)])

    def take_from_firmware(self, spa: int) -> Task:
        if self.snp:
            yield from self._page_reclaim(spa)
            yield from self._checked([op.RmpUpdate(spa, PAGE_BYTES, _HYPERVISOR)])

    def _lend(self, record: LaunchedVm, spa: int, length: int) -> Task:
        """Firmware encrypts in place, so under SNP the pages are its own meanwhile; in 2 MiB where they fit."""
        if not self.snp:
            return
        first = spa // PAGE_BYTES * PAGE_BYTES
        end = -(-(spa + length) // PAGE_BYTES) * PAGE_BYTES
        large = not (first | end) % LARGE_PAGE_BYTES
        yield from self._checked([op.RmpUpdate(first, end - first, _sized(_FIRMWARE, large))])
        record.lent += [(at, large) for at in range(first, end, LARGE_PAGE_BYTES if large else PAGE_BYTES)]

    def _take_back(self, record: LaunchedVm) -> Task:
        """Reclaim what was lent to the firmware."""
        while record.lent:
            some = record.lent[:COMMANDS_AT_ONCE]
            reclaims = tuple(
                op.PspCommand(
                    SnpCommand.PAGE_RECLAIM, self.command_page, buffers.SnpPageReclaim(address=spa | large).pack()
                )
                for spa, large in some
            )
            expect_success((yield reclaims), SnpCommand.PAGE_RECLAIM)
            yield from self._checked(
                [
                    op.RmpUpdate(spa, LARGE_PAGE_BYTES if large else PAGE_BYTES, _sized(_HYPERVISOR, large))
                    for spa, large in some
                ]
            )
            del record.lent[: len(some)]

    def _page_reclaim(self, spa: int) -> Task:
        page = buffers.SnpPageReclaim(address=spa)
        yield from self.must(SnpCommand.PAGE_RECLAIM, self.command_page, page.pack())

    def _checked(self, batch: list[op.HypervisorOperation]) -> Task:
        """Operations that must succeed: anything but None or 0 ends the launch."""
        if not batch:
            return
        expect_done(batch, (yield tuple(batch)))

    # Launches by generation.

    def launch_plain(self, spec: MachineSpec, record: LaunchedVm) -> Task:
        """PLAIN and SME: firmware and save areas, written by the host."""
        yield from self._write(record, sev_launch_ranges(record.firmware))
        yield from self._write_save_areas(spec, record)

    def launch_sev(self, spec: MachineSpec, record: LaunchedVm) -> Task:
        """SEV: the legacy launch, measured and finished."""
        yield from self._take_asid(record)
        yield from self._begin_legacy_launch(spec, record, LEGACY_POLICY | spec.sev_policy)
        yield from self._end_legacy_launch(record)
        yield from self._write_save_areas(spec, record)

    def _begin_legacy_launch(self, spec: MachineSpec, record: LaunchedVm, policy: int) -> Task:
        """LAUNCH_START and the firmware image."""
        command = record.small[0]
        yield from self._write(record, sev_launch_ranges(record.firmware))
        wanted = buffers.LaunchStart(policy=policy)
        if spec.owned:
            record.owner = self._owned_launch(spec, record)
            wanted = yield from record.owner.start()
        record.policy = wanted.policy
        started = yield from self._call(LegacyCommand.LAUNCH_START, command, wanted.pack())
        record.handle = buffers.LaunchStart.parse(started).handle
        activate = buffers.Activate(handle=record.handle, asid=record.asid)
        yield from self.must(LegacyCommand.ACTIVATE, command, activate.pack())
        yield (op.HostWork("psp.launch_region_ns"),)
        for gpa, data in sev_launch_ranges(record.firmware):
            spa = record.spa_of(gpa)
            update = buffers.LaunchUpdateData(handle=record.handle, address=spa, length=len(data))
            yield from self._lend(record, spa, len(data))
            if not self.product.coherent_across_keys:
                # What the host wrote there would be written back later, over what firmware encrypts in place.
                yield from self._checked([op.HostClflush(spa, len(data))])
            yield from self.must(LegacyCommand.LAUNCH_UPDATE_DATA, command, update.pack())
            yield from self._take_back(record)

    def _owned_launch(self, spec: MachineSpec, record: LaunchedVm) -> OwnedLaunch:
        pieces = self.frames.allocate(OWNERS_PAGES * PAGE_BYTES, PAGE_BYTES)
        record.small += [spa + at for spa, part in pieces for at in range(0, part, PAGE_BYTES)]
        ways = self._call, self.give_to_firmware, self.take_from_firmware
        return OwnedLaunch(spec.name, record.small[0], in_a_row(pieces), *ways, record.firmware_pages)

    def _end_legacy_launch(self, record: LaunchedVm) -> Task:
        """LAUNCH_MEASURE, LAUNCH_SECRET where there is an owner, and LAUNCH_FINISH."""
        if record.owner is None:
            yield from self._measure(record)
        else:
            yield from record.owner.deliver(record.handle, record.spa_of(LAUNCH_SECRET_GPA))
        finish = buffers.Handle(handle=record.handle)
        yield from self.must(LegacyCommand.LAUNCH_FINISH, record.small[0], finish.pack())

    def launch_sev_es(self, spec: MachineSpec, record: LaunchedVm) -> Task:
        """SEV-ES: as SEV, with every save area measured and encrypted by firmware before the launch is measured."""
        yield from self._take_asid(record)
        yield from self._begin_legacy_launch(spec, record, LEGACY_POLICY | LegacyPolicy.ES | spec.sev_policy)
        command = record.small[0]
        pages = launch_vmsas(record.firmware, spec.vcpus, model_of(spec.cpu_model), 0)
        record.save_areas += [self.small_page(record) for _ in pages]
        yield from self._checked(
            [op.HostWrite(spa, page) for spa, page in zip(record.save_areas, pages, strict=True)]
        )
        for spa in record.save_areas:
            yield from self._lend(record, spa, VMSA_BYTES)
            if not self.product.coherent_across_keys:
                yield from self._checked([op.HostClflush(spa, VMSA_BYTES)])
            update = buffers.LaunchUpdateVmsa(handle=record.handle, address=spa, length=VMSA_BYTES)
            yield from self.must(LegacyCommand.LAUNCH_UPDATE_VMSA, command, update.pack())
            yield from self._take_back(record)
        yield from self._end_legacy_launch(record)
        yield tuple(
            op.VmcbWrite(spec.name, index, record.asid, spec.generation.name, spa)
            for index, spa in enumerate(record.save_areas)
        )

    def _measure(self, record: LaunchedVm) -> Task:
        """LAUNCH_MEASURE, whose answer a guest owner would check."""
        page = self.small_page(record)
        yield from self.give_to_firmware(page)
        record.firmware_pages.append(page)
        measure = buffers.LaunchMeasure(handle=record.handle, address=page, length=buffers.MEASUREMENT_BYTES)
        yield from self._call(LegacyCommand.LAUNCH_MEASURE, record.small[0], measure.pack())
        yield from self.take_from_firmware(page)
        record.firmware_pages.remove(page)

    def launch_snp(self, spec: MachineSpec, record: LaunchedVm) -> Task:
        """SNP: context, pages in the order of KVM and QEMU, finish."""
        features = launch_features(self.product.name, spec.sev_features)
        model, cpuid = model_of(spec.cpu_model), cpuid_page(self.cpuid_leaves(record))
        pages = tuple(guest_launch_pages(record.images, spec.vcpus, model, features, cpuid))
        yield from self.launch_pages(spec, record, pages)

    def launch_pages(self, spec: MachineSpec, record: LaunchedVm, pages: tuple[LaunchPage, ...]) -> Task:
        """The same with these pages."""
        yield from self._take_asid(record)
        record.sev_features = features = launch_features(self.product.name, spec.sev_features)
        command, gctx = record.small[0], self.small_page(record)
        yield from self.give_to_firmware(gctx)
        record.firmware_pages.append(gctx)
        yield from self.must(SnpCommand.GCTX_CREATE, command, buffers.GuestContextPage(address=gctx).pack())
        record.gctx = gctx
        khz = self.product.base_hz // 1000 if features & SevFeature.SECURE_TSC else 0
        start = buffers.SnpLaunchStart(gctx=gctx, desired_tsc_khz=khz, policy=SNP_POLICY)
        if spec.migration_agent:
            agent, policy = agent_context(self), SNP_POLICY | SnpPolicy.MIGRATE_MA
            start = replace(start, policy=policy, ma_gctx=agent, flags=buffers.SNP_START_MA)
        if spec.migration_handler:
            record.handler = True
            flags = start.flags | buffers.SNP_START_IMI
            start = replace(start, policy=SNP_POLICY | SnpPolicy.MIGRATE_MA, flags=flags)
        yield from self.must(SnpCommand.LAUNCH_START, command, start.pack())
        activate = buffers.SnpActivate(gctx=gctx, asid=record.asid)
        yield from self.must(SnpCommand.ACTIVATE, command, activate.pack())
        record.launched_gpas = tuple(page.gpa for page in pages if page.page_type is not PageType.VMSA)
        given = [(page.gpa, page.data) for page in pages if page.page_type is PageType.CPUID and page.data]
        yield from self._checked([op.PaidWrite(record.spa_of(gpa), data) for gpa, data in given])
        launched = set(record.launched_gpas)
        images = [(image.gpa, image.data) for image in record.images if image.gpa in launched]
        yield from self._write(record, images)
        yield from self._assign(spec, record)
        yield (op.HostWork("psp.launch_region_ns"),)
        yield from self._update(spec, record, pages)
        if spec.small_monitor:
            yield (op.HostWork("boot.firecracker_snp_ns"),)
        finish = buffers.SnpLaunchFinish(gctx=gctx, host_data=record.host_data).pack()
        done = op.PspCommand(SnpCommand.LAUNCH_FINISH, command, finish, with_rest=not spec.small_monitor)
        expect_success((yield (done,)), done.command)

    def _assign(self, spec: MachineSpec, record: LaunchedVm) -> Task:
        """RMPUPDATE all of RAM to the guest: launched pages as Pre-Guest in 4 KiB, the rest as Guest-Invalid."""
        ranges = [*spec.memory.private_ranges(record.launched_gpas), spec.memory.shared]
        batch: list[op.HypervisorOperation] = []
        for part in ranges:
            for gpa, spa, length in record.backing(part):
                entry = RmpEntry(assigned=True, large=part.large, gpa=gpa, asid=record.asid)
                batch.append(op.RmpUpdate(spa, length, entry))
                record.assigned.append((spa, length, part.large))
        for first, length in page_runs(record.launched_gpas):
            spa = record.spa_of(first)
            entry = RmpEntry(assigned=True, immutable=True, gpa=first, asid=record.asid)
            batch.append(op.RmpUpdate(spa, length, entry))
            record.smashed.add(spa // LARGE_PAGE_BYTES * LARGE_PAGE_BYTES)
            record.immutable.update(range(spa, spa + length, PAGE_BYTES))
            record.assigned.append((spa, length, False))
        yield from self._checked(batch)

    def _update(self, spec: MachineSpec, record: LaunchedVm, pages: tuple[LaunchPage, ...]) -> Task:
        """SNP_LAUNCH_UPDATE of every page, in the order that the digest wants."""
        vmsas: list[op.HypervisorOperation] = []
        spas = record.spas_of(record.launched_gpas)
        for number, page in [one for one in enumerate(pages) if one[1].page_type is PageType.VMSA]:
            assert page.data is not None
            spa = self.small_page(record)
            entry = RmpEntry(assigned=True, immutable=True, gpa=VMSA_GPA, asid=record.asid)
            vmsas += [op.HostWrite(spa, page.data), op.RmpUpdate(spa, PAGE_BYTES, entry)]
            record.immutable.add(spa)
            record.assigned.append((spa, PAGE_BYTES, False))
            record.save_areas.append(spa)
            spas.insert(number, spa)
        yield from self._checked(vmsas)
        buffer_of, command = buffers.SnpLaunchUpdate.packer(), record.small[0]
        for at in range(0, len(pages), COMMANDS_AT_ONCE):
            batch = tuple([
                op.PspCommand(
                    SnpCommand.LAUNCH_UPDATE, command, buffer_of(record.gctx, _flags(record, page), spa, 0)
                )
                for page, spa in zip(pages[at : at + COMMANDS_AT_ONCE], spas[at : at + COMMANDS_AT_ONCE], strict=True)
            ])  # fmt: skip
            answers = yield batch
            # Of a batch with one that was refused all others are done, and no page of theirs can be reclaimed.
            sent = zip(spas[at : at + COMMANDS_AT_ONCE], answers, strict=True)
            record.immutable.difference_update([spa for spa, answer in sent if is_success(answer)])
            expect_success(answers, SnpCommand.LAUNCH_UPDATE)
        record.open_vmpls()
        yield tuple(
            op.VmcbWrite(spec.name, index, record.asid, spec.generation.name, spa)
            for index, spa in enumerate(record.save_areas)
        )


def _flags(record: LaunchedVm, page: LaunchPage) -> int:
    """Page type, and whether a page is of an initial migration image."""
    return page.page_type << 1 | (buffers.SNP_UPDATE_IMI if record.handler and is_of_image(record, page) else 0)


def _sized(entry: RmpEntry, large: bool) -> RmpEntry:
    return replace(entry, large=large)


_LAUNCHES: Mapping[Generation, Launch] = {
    Generation.PLAIN: Hypervisor.launch_plain,
    Generation.SME: Hypervisor.launch_plain,
    Generation.SEV: Hypervisor.launch_sev,
    Generation.SEV_ES: Hypervisor.launch_sev_es,
    Generation.SEV_SNP: Hypervisor.launch_snp,
    Generation.SEV_TIO: Hypervisor.launch_snp,
}
"""How each generation starts."""
