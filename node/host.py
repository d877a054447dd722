"""One physical host in virtual time: its board, its hypervisor and the VMs on it.

The host takes commands from outside and wires the parts: tasks of the
hypervisor, vCPUs on the cores, the digest of what happened.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from node.actor import Observer
from node.agent_transfer import AGENT
from node.ap_wake import starts_others_by_sipi
from node.arrivals import Arrivals
from node.board import Board
from node.card_operator import CardOperator
from node.card_slot import windows, with_cards
from node.certificate_store import CertificateStore
from node.clock import Clock
from node.contention import NEVER_NS, Contention
from node.core_sharing import CoreSharing
from node.counter_random import CounterRandom
from node.departures import Departures
from node.device_notice import Told, told_of
from node.disk_file import DiskFileError, disk_file
from node.event_log import EventLog
from node.exit_registers import store_and_stay_out, store_at_exit, take_registers
from node.firmware_image import FirmwareImage
from node.firmware_operator import FirmwareOperator
from node.generation import Generation
from node.guest import GONE, Guest, GuestSpec, GuestState
from node.host_events import HostEvent
from node.host_interrupts import HostInterrupts
from node.host_kind import HostKind
from node.host_network import HostNetwork
from node.host_prices import host_prices
from node.hypervisor import Hypervisor
from node.hypervisor_port import Answers, Batch, Entered, HypervisorFactory, HypervisorPort, LaunchRefused
from node.hypervisor_tasks import HypervisorTasks
from node.launch_promise import least_launch_ns
from node.mechanism import no_time
from node.migration_loads import NO_STREAMS, MigrationLoads, StreamRates
from node.neighbour_ledger import NeighbourLedger
from node.platform import AS_USUAL, Platform
from node.port_window import PortWindow
from node.product import Product
from node.program import ProgramFactory
from node.record_buffer import NO_LOG, LogWish
from node.svsm_memory import SvsmGuest, guest_reset_rips, svsm_guest
from node.svsm_use import SvsmUse
from node.tenant import TenantFactory, TenantPort, local_tenants
from node.tenant_order import tenant_order
from node.unlaid_moves import UnlaidMoves
from node.vcpu import Vcpu, VcpuState
from node.vcpu_levels import VcpuLevels
from node.vcpu_runner import VcpuRunner
from node.vm_state import NO_TIME_BASE, TimeBase
from psp.status import PspError
from tio.device_identity import CardKind

_NS_PER_S = 1_000_000_000
_ALL = (1 << 64) - 1
LaunchNotice = Callable[[Guest], None]
R = TypeVar("R")

_ATTESTING = frozenset({Generation.SEV_SNP, Generation.SEV_TIO})
"""What can ask for a report that a chip's certificates prove."""
_RUNNING, _PAUSED = GuestState.RUNNING, GuestState.PAUSED
_SEATED = (_RUNNING, _PAUSED)
"""States of a VM with vCPUs."""


@dataclass(frozen=True, slots=True)
class HostSpec:
    """A host as a scenario orders it."""

    name: str
    product: Product
    memory_bytes: int
    min_sev_asid: int
    seed: int
    bucket_ns: int
    log: LogWish = NO_LOG
    platform: Platform = AS_USUAL
    attributes: bool = False
    """Whether it keeps books of who costs whom."""
    streams: StreamRates = NO_STREAMS
    """Of migrations."""


class Host:
    """A host and everything on it. Times are virtual nanoseconds.

    ``tenants`` makes the software of each VM, here where nobody says; ``hypervisor`` the host's own. ``observer``
    is the board's tap from its first operation on.
    """

    def __init__(
        self,
        spec: HostSpec,
        programs: Mapping[str, ProgramFactory],
        images: Mapping[str, FirmwareImage],
        costs: Mapping[str, float],
        tenants: TenantFactory | None = None,
        hypervisor: HypervisorFactory = Hypervisor,
        observer: Observer | None = None,
    ) -> None:
        self.spec = spec
        product = with_cards(spec.product, spec.memory_bytes, spec.platform.cards)
        self.clock = Clock()
        random = CounterRandom(spec.seed)
        self.board = Board(spec.name, product, spec.memory_bytes, spec.min_sev_asid, random, spec.platform)
        self.board.observer = observer
        ports = tuple([
            PortWindow(one.slot.port, one.base, one.length) for one in windows(spec.memory_bytes, spec.platform.cards)
        ])  # fmt: skip
        self.hypervisor: HypervisorPort = hypervisor(
            product, spec.memory_bytes, spec.min_sev_asid, images, spec.platform.max_snp_asid, ports
        )
        self.board.exit_handler = self.hypervisor.page_state_change
        self.board.exits = self.hypervisor
        self.board.tsc = lambda: self.clock.now_ns * product.base_hz // _NS_PER_S
        self.time_base: TimeBase = (product.base_hz, 0)
        """By what a VM reads the time here, unless somebody adds to that."""
        self.threads = product.threads
        self.contention = Contention(
            self.threads,
            product.memory_bandwidth_bytes_per_s * costs["dram.usable_bandwidth_share"],
            costs["dram.latency_ns"],
            costs["dram.loaded_latency_factor"],
            CoreSharing.of(product, costs),
        )
        if spec.attributes:
            self.contention.ledger = NeighbourLedger()
        self.log = EventLog(spec.bucket_ns, spec.log)
        self.guests: dict[str, Guest] = {}
        self._tenants = tenants or local_tenants(programs)
        self.software_from: object = tenants or programs
        """Where VMs have their software from: of one specification it is the same from the same place."""
        self.images = images
        prices = host_prices(costs, HostKind.of(product, spec.platform))
        self._cost = prices.host
        self.chain = self.log.chain(spec.name)
        self.tasks = HypervisorTasks(self.clock, self.board, self._cost, self.chain)
        self.unlaid_moves = UnlaidMoves(self.board, self.hypervisor, self.tasks, self._cost)
        self.vcpus = VcpuRunner(self.clock, self.board, self.contention, self.log, prices)
        self.board.kicked = self._kicked
        self.board.exited = self._of_a_vcpu(store_at_exit)
        self.board.put_out = self._of_a_vcpu(store_and_stay_out)
        self.board.entered = self._of_a_vcpu(take_registers)
        self.board.devices_told = self._devices_told
        self.board.unlaid.placed = self._placed
        self.board.unlaid.asked = self._asked
        self.streams = MigrationLoads(self.clock, self.contention, spec.streams, costs)
        self.departures = Departures(self)
        self.arrivals = Arrivals(self)
        self.network = HostNetwork(self, costs)
        self._speakers = (
            self.departures.under_way, self.arrivals.settling, self.network.guests, self.tasks.promises,
        )  # fmt: skip
        """Of whom something may be said: asked after every step, and empty most of the time."""
        self.interrupts = HostInterrupts(self)
        self.board.card_memory.arrived = self.interrupts.arrived
        self.firmware = FirmwareOperator(self)
        self.cards = CardOperator(self, spec.platform.key_refresh_ns)
        self.certificates: CertificateStore | None = None
        self.vcpus.sent = self.network.flush
        self.vcpus.served = self.tasks.served
        self.tasks.ledger = self.vcpus.disk.ledger = self.contention.ledger
        self.tasks.at_once(self.hypervisor.bring_up())
        self._agent_restarts = False
        if spec.platform.migration_agent:
            self.tasks.at_once(self.hypervisor.launch_agent(spec.platform.migration_agent_floor))

    @property
    def now_ns(self) -> int:
        """The host's present time."""
        return self.clock.now_ns

    # Commands from outside; they take effect at the present time.

    def launch(self, spec: GuestSpec, notice: LaunchNotice, running: bool = False) -> None:
        """Launch a VM; ``notice`` is called when it runs or is refused, never before ``tasks.promises`` says.

        ``running`` puts a VM there as if its launch lay before time zero: the
        same operations, charged to nobody.
        """
        self.check_name(spec.name)
        guest = Guest(spec, self.clock.now_ns)
        guest.lost_ns, guest.row_ns = no_time(), {}
        self.guests[spec.name] = guest
        if spec.network:
            self.network.expect(guest)
        self.want_certificates(spec)
        self.chain.record_octets(self.clock.now_ns, HostEvent.ORDERED, spec.name.encode())
        task = self.with_disk(spec, self.hypervisor.launch(spec.machine))
        if running:
            try:
                entered = self.tasks.at_once(task)
            except LaunchRefused as refusal:
                self._refuse(guest, refusal)
            else:
                self._enter(guest, entered)
            notice(guest)
            return
        guest.least_left_ns = least_launch_ns(
            self.images[spec.firmware], spec.generation, self._cost, small_monitor=spec.machine.small_monitor
        )
        self.tasks.promise(guest, self.clock.now_ns)

        def is_through(entered: object) -> None:
            self._enter(guest, entered)
            self.tasks.when_due(guest, lambda: notice(guest))
            if guest.unwanted:
                self.destroy(spec.name)

        def is_refused(refusal: LaunchRefused) -> None:
            self._refuse(guest, refusal)
            self.tasks.when_due(guest, lambda: notice(guest))

        self.tasks.run(task, guest, is_through, is_refused)
        self.clock.settle()

    def fetch_certificates(self, store: CertificateStore) -> None:
        """Have certificates for guests from here on, as ``store`` gets them."""
        self.certificates = store
        self.board.certificates = store.fetch

    def want_certificates(self, spec: GuestSpec) -> None:
        """A VM comes, which may attest if it is of SEV-SNP."""
        if self.certificates is not None and spec.generation in _ATTESTING:
            self.certificates.want()

    def check_name(self, name: str) -> None:
        """Raise ValueError if a VM of this name is here already."""
        known = self.guests.get(name)
        if known is not None and known.state not in GONE:
            raise ValueError(f"{name}: a VM of this name is on {self.spec.name} already")

    def earliest_output_ns(self, next_event_ns: int) -> int:
        """Before which nothing will be said of any VM here, if nobody asks; NEVER_NS for a quiet host."""
        departing, settling, wired, promises = self._speakers
        earliest_ns = self.departures.earliest_output_ns(next_event_ns) if departing else NEVER_NS
        if settling and self.arrivals.says_something():
            earliest_ns = min(earliest_ns, next_event_ns)
        if wired:
            earliest_ns = min(earliest_ns, self.network.earliest_output_ns(next_event_ns))
        if self.certificates is not None:
            earliest_ns = min(earliest_ns, self.certificates.earliest_output_ns(next_event_ns))
        if promises and earliest_ns > next_event_ns:
            # A promise that is over says no more than that nothing happens before the next event.
            earliest_ns = min(earliest_ns, max(next_event_ns, min(promises.values())))
        return earliest_ns

    def destroy(self, name: str) -> None:
        """Take a VM off the host and give every resource back; a VM that is not there is left alone."""
        guest = self.guests.get(name)
        if guest is None or guest.state in GONE:
            return
        if guest.state in (GuestState.LAUNCHING, GuestState.ARRIVING):
            guest.unwanted = True
            return
        self.vcpus.stop(guest)
        if guest.state is not GuestState.STOPPED:
            guest.ended_ns = self.clock.now_ns
        guest.state = GuestState.DESTROYED
        self.board.residents.leave(name)
        self.network.unplug(guest)
        self.interrupts.release_all(name)
        self.chain.record_octets(self.clock.now_ns, HostEvent.DESTROYED, name.encode())
        self.tasks.run(self.hypervisor.destroy(name), guest, lambda _: None)
        self.clock.settle()

    def crash(self) -> None:
        """The host is switched off and on: whatever ran on it, came or left is gone, with its memory and keys."""
        for name, guest in list(self.guests.items()):
            if self.departures.has_books_elsewhere(name):
                self.departures.crash(name)
                continue
            if guest.state in GONE:
                continue
            self.departures.forget(name)
            if guest.state is GuestState.ARRIVING:
                self.arrivals.abandon(name)
            else:
                guest.reason = "host crashed"
                self.destroy(name)
        self.restart_agent()

    def restart_agent(self) -> None:
        """The host's migration agent begins anew, and keeps nothing. Does nothing on a host that has none."""
        if self.spec.platform.migration_agent and not self._agent_restarts:
            # One that is being launched keeps nothing yet.
            self._agent_restarts = True
            self.board.leave(AGENT, 0)
            again = self.hypervisor.restart_agent(self.spec.platform.migration_agent_floor)
            self.tasks.run(again, None, self._agent_is_back)

    def _agent_is_back(self, _: object) -> None:
        self._agent_restarts = False

    def pause(self, name: str, parked: Callable[[], None] | None = None) -> None:
        """Stop a VM's vCPUs at the end of their blocks; their registers go to their save areas.

        ``parked`` is called once when the last vCPU has come to rest, also if the VM powered itself off.
        """
        guest = self.guests[name]
        if guest.state is not _RUNNING:
            return
        guest.state = _PAUSED
        if guest.newcomer is None:
            self.vcpus.pause(guest, parked)
        else:
            guest.newcomer.stop()
            if parked is not None:
                parked()
        if self.clock.unsettled:
            self.clock.settle()

    def resume(self, name: str) -> None:
        """Rebuild a paused VM's programs from its specification and go on from its save areas."""
        guest = self.guests[name]
        if guest.state is not _PAUSED:
            return
        guest.state = _RUNNING
        self.vcpus.resume(guest)
        if self.clock.unsettled:
            self.clock.settle()

    def close(self, end_ns: int) -> None:
        """Bring the books up to ``end_ns``: phases that still run are credited with what they did."""
        end_ns = max(end_ns, self.clock.now_ns)
        self.board.unlaid.look_at_all()
        for guest in self.guests.values():
            self.vcpus.close(guest, end_ns)
            self.network.settle(guest)
            guest.units_of_work = sum(vcpu.units_of_work for vcpu in guest.vcpus)
            if guest.ended_ns < 0:
                guest.ended_ns = end_ns

    def with_disk(self, spec: GuestSpec, task: Generator[Batch, Answers, R]) -> Generator[Batch, Answers, R]:
        """A task that brings a VM here, its disk first. Raises LaunchRefused where the file behind that is missing."""
        return self._with_disk(spec, task) if spec.disk else task

    def _with_disk(self, spec: GuestSpec, task: Generator[Batch, Answers, R]) -> Generator[Batch, Answers, R]:
        try:
            self.board.disk_files[spec.name] = disk_file(spec.disk)
        except DiskFileError as error:
            raise LaunchRefused(str(error)) from None
        return (yield from task)

    def note_firmware(self, text: str) -> None:
        """Record what came of an order to the security processor's operator."""
        self.chain.record_octets(self.clock.now_ns, HostEvent.FIRMWARE, text.encode())

    # The two ends of a launch.

    def _refuse(self, guest: Guest, refusal: LaunchRefused) -> None:
        guest.state = GuestState.REFUSED
        guest.reason = str(refusal)
        guest.ended_ns = self.clock.now_ns
        self.chain.record_octets(self.clock.now_ns, HostEvent.REFUSED, guest.reason.encode(), guest.spec.name)

    def _enter(self, guest: Guest, entered: object) -> None:
        """The hypervisor has entered the VM: its boot processor comes out of reset."""
        assert isinstance(entered, Entered)
        guest.state = _RUNNING
        guest.running_ns = self.clock.now_ns
        self._note_launch(guest, entered)
        self.put_up(guest, entered, None)
        digest = bytes.fromhex(guest.launch_digest)
        self.chain.record_octets(self.clock.now_ns, HostEvent.ENTERED, digest, guest.spec.name)
        self.vcpus.start(guest.vcpus[0])
        if starts_others_by_sipi(guest.spec.generation):
            # Firmware has started them once, and has each wait in its own registers.
            for vcpu in guest.vcpus[1:]:
                if vcpu.state is VcpuState.WAITING:
                    self.vcpus.start(vcpu)
        self.clock.settle()

    def software(
        self, spec: GuestSpec, launched: tuple[int, ...], reset_rips: tuple[int, ...], svsm: SvsmGuest | None = None
    ) -> TenantPort:
        """Make the software of a VM that was launched so."""
        return self._tenants(tenant_order(spec, launched, reset_rips, self.images[spec.firmware], svsm))

    def put_up(
        self, guest: Guest, entered: Entered, reset_rips: tuple[int, ...] | None, vcpus: Sequence[Vcpu] = (),
        software: TenantPort | None = None,
    ) -> None:  # fmt: skip
        """Make the vCPUs and the software of a VM that the hypervisor has laid down, where they are not there yet.

        ``reset_rips`` are those of its launch; where this is it, None, they are in the registers, which are loaded.
        """
        spec = guest.spec
        guest.asid, guest.launched = entered.asid, entered.launched_gpas
        guest.vcpus = list(vcpus) or [Vcpu(guest, index, spa) for index, spa in enumerate(entered.save_areas)]
        if reset_rips is None:
            for vcpu in guest.vcpus:
                self.vcpus.load(vcpu)
            reset_rips = tuple(vcpu.registers.rip for vcpu in guest.vcpus)
        svsm = None
        guest.boot_rips = reset_rips
        if spec.svsm:
            image = self.images[spec.firmware]
            svsm, reset_rips = svsm_guest(image, reset_rips), guest_reset_rips(image, spec.vcpus)
            guest.svsm = SvsmUse()
            for vcpu in guest.vcpus:
                vcpu.levels = VcpuLevels()
                vcpu.thread = spec.vcpus + vcpu.index
        guest.reset_rips = reset_rips
        guest.software = software or self.software(spec, guest.launched, reset_rips, svsm)
        self.vcpus.prepare(guest)
        for kind, requester in zip(spec.devices, entered.cards, strict=True):
            self.interrupts.assign(requester, spec.name)
            if kind is CardKind.NIC:
                self.network.wire(guest, requester)
        if spec.network:
            self.network.plug(guest)

    def _asked(self, vm: str) -> None:
        """Somebody is about to look at a VM's memory."""
        guest = self.guests.get(vm)
        if guest is not None and guest.newcomer is not None:
            guest.newcomer.put_up()

    def keep_time(self, guest: Guest, before: TimeBase) -> None:
        """Have a VM that came, and read the time by that before, go on as if its counter had never stood still.

        Hosts' counters began together, and their clocks tell the same time: that KVM asks for, too, where a guest's
        offset is worked out at a target (KVM_VCPU_TSC_OFFSET). From now on it counts as fast as this host's does.
        """
        hz, offset = before
        if before not in (self.time_base, NO_TIME_BASE):
            shown = self.clock.now_ns * hz // _NS_PER_S + offset
            ahead = shown - self.board.tsc() & _ALL
            self.tasks.at_once(self.hypervisor.set_clock(guest.spec.name, len(guest.vcpus), ahead))

    def _placed(self, vm: str, areas: tuple[int, ...]) -> None:
        """Where save areas are that nobody had asked for."""
        guest = self.guests.get(vm)
        if guest is None or guest.newcomer is not None:
            return  # Its place is being given back, or it will find out when it is put up.
        if guest.state is GuestState.ARRIVING:
            self.arrivals.placed(vm, areas)  # It has no vCPUs yet.
            return
        for vcpu, spa in zip(guest.vcpus, areas, strict=False):  # None of one that has left.
            vcpu.save_area_spa = spa

    def _kicked(self, vm: str, vcpu: int, code: int) -> None:
        guest = self.guests.get(vm)
        if guest is not None and 0 <= vcpu < len(guest.vcpus):
            self.vcpus.kicked(guest.vcpus[vcpu], code)

    def _devices_told(self, vm: str, value: int) -> None:
        """A guest says what it has done about its devices, as its hypervisor has it."""
        guest = self.guests.get(vm)
        if guest is None or guest.state not in _SEATED:
            return
        told, trusted = guest.devices_told = told_of(value)
        guest.chain.record(self.clock.now_ns, HostEvent.DEVICES, told, trusted)
        if told is Told.LET_GO:
            self.departures.let_go(vm)
        elif told is Told.SETTLED:
            self.arrivals.settled(vm, trusted)

    def _of_a_vcpu(self, what: Callable[[Board, Vcpu], None]) -> Callable[[str, int], None]:
        def of_a_vcpu(vm: str, vcpu: int) -> None:
            guest = self.guests.get(vm)
            if guest is not None and 0 <= vcpu < len(guest.vcpus):
                what(self.board, guest.vcpus[vcpu])

        return of_a_vcpu

    def _note_launch(self, guest: Guest, entered: Entered) -> None:
        """What the firmware keeps of a launch: the laboratory's own view, no host command returns it."""
        if not entered.gctx and not entered.handle:
            return
        psp = self.board.psp
        try:
            launched = psp.launch_record(entered.gctx) if entered.gctx else psp.legacy_launch_record(entered.handle)
        except PspError:
            return  # somebody has damaged the context
        guest.launch_digest, guest.launch_tcb = launched.digest.hex(), launched.tcb
