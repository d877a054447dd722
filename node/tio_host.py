"""A hypervisor's book of its cards, and how it gives them to VMs: placed, connected, locked for a guest, taken back.

Where a VM is of SEV-TIO the security processor speaks with the device and with its guest, and the hypervisor carries
what they say. Elsewhere a device is given as ever: its registers are mapped, and it reaches what the IOMMU shows it.

Each public generator is a task. Source: ``spec/tio/tio-overview.md``, section 6, which follows Linux.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from node import operations as op
from node.device_table import ENTRY_BYTES
from node.device_window import bar_gpa
from node.doe_driver import DoeDriver
from node.expected_answers import expect_done
from node.frame_allocator import OutOfMemory
from node.guest_functions import GuestFunction, guest_device_id
from node.hypervisor_port import Answers, Batch, LaunchRefused, Task
from node.ide_driver import associate, enable_streams
from node.iommu_driver import DEVICE_TABLE, DEVICE_TABLE_PAGES, IommuDriver
from node.iommu_guest_table import LEVELS, GuestTable, Piece
from node.pci_driver import Function, enable, find, is_there, reset
from node.port_window import PortWindow
from node.tio_carrier import TioCarrier, TioRefused
from node.tio_memory import TioMemory
from psp.commands import SnpCommand
from psp.status import Status
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES, RmpEntry
from psp.tsm import tio_buffers as tio
from psp.tsm.exchange_records import ObjectId
from psp.tsm.scatter_address import data_page
from psp.tsm.status_records import TioStatusRecord
from tio.device_identity import CardKind
from tio.tdisp import InterfaceId, LockFlags

CLASSES = {CardKind.GPU: 0x03_0200, CardKind.NIC: 0x02_0000, CardKind.NVME: 0x01_0802}
"""By which a hypervisor tells what a function is."""
_HYPERVISOR = RmpEntry()
_TABLES_OF_BAR = 3
"""Nested tables above a BAR's pages, none of which another BAR needs share."""
_NO_FLAGS = LockFlags(0)
_FENCE_BYTES, _DMA_FENCE, _ERROR_FENCE = 8, 0b11, 1
"""The status of a fence, and what it says of DMA (``spec/tio/iommu.md``, section 6)."""


@dataclass(slots=True)
class Card:
    """What is known of one card. ``context`` is its page with the firmware, once it was created there."""

    physical: Function
    carrier: TioCarrier | None = None
    context: int = 0
    contexts: tuple[int, ...] = ()
    """All pages of its context."""
    stream_id: int = 0
    certificates: bytes = b""
    measurements: bytes = b""


@dataclass(slots=True)
class Interface:
    """A function of a card that a VM can have: the virtual ones of a card that has any, else the physical one."""

    card: Card
    function: Function
    given_to: tuple[str, int] | None = None
    """The VM that has it, and its number there."""


@dataclass(slots=True)
class Given:
    """A function in a VM's hands. ``context`` is its TDI's page with the firmware, while there is one."""

    interface: Interface
    device: int
    table: GuestTable
    asid: int = 0
    context: int = 0
    bound: bool = False
    ran: bool = False
    report: bytes = b""
    assigned: dict[int, int] = field(default_factory=dict)
    """Pages of MMIO that the guest has in the RMP: SPA and GPA."""

    @property
    def card(self) -> Card:
        """What the function is of."""
        return self.interface.card

    @property
    def function(self) -> Function:
        """As the hypervisor found it."""
        return self.interface.function


class TioHost:
    """The cards of one host. ``ports`` are its root ports; ``trusted``: its part has SEV-TIO.

    ``lock_flags`` are those that it asks for when it locks an interface.
    """

    def __init__(
        self,
        ports: Sequence[PortWindow],
        memory: TioMemory,
        *,
        trusted: bool,
        lock_flags: LockFlags = _NO_FLAGS,
    ) -> None:
        self.trusted = trusted
        self.lock_flags = lock_flags
        self.measures_anew = True
        """A device is measured when its guest asks for evidence; otherwise it gets what there is, however old."""
        self.reports_anew = True
        """A guest is shown the interface report of its device's present lock; otherwise of the first one it had."""
        self.unbinds = True
        """An interface is unbound when its guest asks for it; otherwise the guest is only told so."""
        self._ports = tuple(ports)
        self._memory = memory
        self.device_table = DEVICE_TABLE, DEVICE_TABLE_PAGES
        """The IOMMU's, as (SPA, pages): with an entry for every function that can be."""
        if ports:
            pages = -(-(ports[-1].card + 256) * ENTRY_BYTES // PAGE_BYTES)
            self.device_table = memory.row(pages), pages
        self._iommu = IommuDriver(lambda: memory.take(1)[0], self.device_table[0])
        self._cards: list[Card] = []
        self._interfaces: list[Interface] | None = None
        self._given: dict[tuple[str, int], Given] = {}
        self._sizes: TioStatusRecord | None = None

    # Bring-up.

    def start(self) -> Task:
        """Start the firmware's part, after SNP_INIT_EX with SEV-TIO."""
        if not self.trusted:
            return
        yield from self._command(SnpCommand.TIO_INIT, tio.TioInit(tio.TioInit.SIZE))
        (page,) = yield from self._memory.lend((b"",))
        yield from self._command(SnpCommand.TIO_STATUS, tio.TioStatus(tio.TioStatus.SIZE, address=page))
        (data,) = yield (op.HostRead(page, TioStatusRecord.SIZE),)
        assert isinstance(data, bytes)
        self._sizes = TioStatusRecord.parse(data)
        yield from self._memory.reclaim((page,))

    # Giving and taking.

    def give(
        self,
        vm: str,
        kinds: Sequence[CardKind],
        pieces: Sequence[Piece],
        c_bit: int,
        tables: list[tuple[int, int]],
        asid: int = 0,
    ) -> Generator[Batch, Answers, tuple[GuestFunction, ...]]:
        """Give a VM of this ASID a card of each of these kinds; what it is shown of them. ``pieces`` are its memory.

        Frames that its nested tables take are added to ``tables``, and stay with the VM. Raises LaunchRefused with
        nothing given.
        """
        out: list[GuestFunction] = []
        try:
            for device, kind in enumerate(kinds):
                interface = yield from self._free(kind)
                try:
                    yield from self._show(vm, device, interface, pieces, c_bit, tables)
                except OutOfMemory as error:
                    raise LaunchRefused(str(error)) from error
                interface.given_to = vm, device
                self._given[vm, device].asid = asid
                function = interface.function
                bars = tuple([(bar, size) for bar, _, size in function.bars])
                what = function.vendor_id, function.device_id, function.class_code
                out.append(GuestFunction(device, *what, bars, function.tee_io, function.requester))
        except LaunchRefused:
            yield from self.take_all(vm)
            raise
        return tuple(out)

    def take_all(self, vm: str, gctx: int = 0) -> Task:
        """Take every card back from a VM that is going, whatever its guest says."""
        for name, device in sorted(key for key in self._given if key[0] == vm):
            given = self._given.pop((name, device))
            yield from self._unlocked(given, gctx, force=True)
            function = given.function
            yield from enable(function, on=False)
            yield from self._iommu.detach(function.requester)
            yield from reset(function)
            yield from self._memory.give_back(given.table.pages)
            given.interface.given_to = None
            card = given.card
            if card.context and not self.is_given(card) and not (yield from is_there(card.physical)):
                yield from self._abandon(card, card.contexts)  # Somebody has taken it out.

    def shows(self, vm: str, pieces: Iterable[Piece]) -> Task:
        """A VM's memory is in other pages now: its devices' tables follow."""
        for name, device in sorted(key for key in self._given if key[0] == vm):
            table = self._given[name, device].table
            table.map(pieces)
            yield from self._write(table)
            yield from self._iommu.forget(self._domain(self._given[name, device].function))

    def trusts(self, vm: str) -> bool:
        """Whether a device of a VM's is locked for it."""
        return any(one.bound for (name, _), one in self._given.items() if name == vm)

    def park(self, vm: str) -> Task:
        """Stop the devices of a VM that stands still and trusts none: they reach nothing, and stay its own."""
        for given in self._of(vm):
            yield from self._unlocked(given, 0, force=True)
            yield from enable(given.function, on=False)
            yield from self._iommu.detach(given.function.requester)
            yield from reset(given.function)

    def unpark(self, vm: str) -> Task:
        """Let them answer and reach its memory again, as after a reset."""
        for given in self._of(vm):
            function = given.function
            yield from self._iommu.show(function.requester, self._domain(function), given.table.root, LEVELS)
            yield from enable(function, on=True)

    def _of(self, vm: str) -> list[Given]:
        return [self._given[key] for key in sorted(self._given) if key[0] == vm]

    def given(self, vm: str, guest_id: int) -> Given | None:
        """The card that a VM knows by a requester id."""
        for (name, device), one in self._given.items():
            if name == vm and guest_device_id(device) == guest_id:
                return one
        return None

    @property
    def cards(self) -> tuple[Card, ...]:
        """Those that were found, in the order of their ports; none before somebody wanted one."""
        return tuple(self._cards)

    def has(self, vm: str) -> bool:
        """Whether a VM has a card."""
        return any(name == vm for name, _ in self._given)

    # Upkeep.

    def is_given(self, card: Card) -> bool:
        """Whether any VM has a function of a card."""
        return any(one.card is card for one in self._given.values())

    def is_bound(self, card: Card) -> bool:
        """Whether a function of a card is locked for a guest."""
        return any(one.card is card and one.bound for one in self._given.values())

    def roll_keys(self, card: Card) -> Generator[Batch, Answers, bool]:
        """Have the firmware give a connected card's link fresh keys; False where it does not."""
        assert card.carrier is not None
        try:
            yield from card.carrier.call(SnpCommand.TIO_ROLL_KEY, tio.DeviceOrder(device=data_page(card.context)))
        except TioRefused:
            return False
        return True

    def let_go(self, card: Card) -> Task:
        """End the connection to a card that no VM has, in good order if the card still answers."""
        assert card.carrier is not None
        with suppress(TioRefused):  # Then it is by force.
            order = tio.DeviceOrder(device=data_page(card.context))
            yield from card.carrier.call(SnpCommand.TIO_DEV_DISCONNECT, order)
        yield from self._abandon(card, card.contexts)

    # A trusted device's life.

    def bind(self, given: Given, gctx: int) -> Task:
        """Lock an interface for its guest. Raises TioRefused."""
        card = given.card
        yield from self._connected(card)
        assert card.carrier is not None
        if not given.context:
            (page,) = yield from self._memory.lend((b"",))
            interface = InterfaceId(given.function.requester).pack()
            create = tio.TdiCreate(
                tio.TdiCreate.SIZE, device=data_page(card.context), tdi=data_page(page), interface_id=interface
            )
            try:
                yield from self._command(SnpCommand.TIO_TDI_CREATE, create)
            except TioRefused:
                yield from self._memory.reclaim((page,))
                raise
            given.context = page
        yield from card.carrier.call(SnpCommand.TIO_TDI_BIND, self._binding(given, gctx, run=False))
        given.bound = True
        if self.reports_anew or not given.report:
            given.report = yield from card.carrier.fetch(
                SnpCommand.TIO_TDI_REPORT, tio.TdiOrder(**self._named(given, gctx)), ObjectId.REPORT
            )

    def run(self, given: Given, gctx: int) -> Task:
        """Start an interface that is locked. Raises TioRefused."""
        if given.card.carrier is None or not given.context:
            raise TioRefused(SnpCommand.TIO_TDI_BIND, Status.INVALID_TDI_STATE, "nobody has locked it")
        yield from given.card.carrier.call(SnpCommand.TIO_TDI_BIND, self._binding(given, gctx, run=True))
        given.ran = True

    def unbind(self, given: Given, gctx: int) -> Task:
        """Stop an interface, and take its registers back. Raises TioRefused."""
        yield from self._unlocked(given, gctx, force=False)

    def unbind_asked(self, given: Given, gctx: int) -> Task:
        """Its guest wants it unbound. Raises TioRefused."""
        if self.unbinds:
            yield from self.unbind(given, gctx)

    def ask(self, given: Given, gctx: int, message: int, answer: int) -> Generator[Batch, Answers, Status]:
        """Carry a guest's message to the firmware, and its answer back, in these pages: the status."""
        order = tio.TioGuestRequest(**self._named(given, gctx), message=message, answer=answer)
        assert given.card.carrier is not None
        try:
            yield from given.card.carrier.call(SnpCommand.TIO_GUEST_REQUEST, order)
        except TioRefused as refused:
            return refused.status
        return Status.SUCCESS

    def assign(self, given: Given, asid: int, gpa: int, pages: int) -> Generator[Batch, Answers, bool]:
        """Give the guest pages of its device's memory in the RMP; False if they are not its device's."""
        batch, taken = [], {}
        for at in range(gpa, gpa + pages * PAGE_BYTES, PAGE_BYTES):
            spa = self._behind(given, at)
            if spa is None:
                return False
            taken[spa] = at
            batch.append(op.RmpUpdate(spa, PAGE_BYTES, RmpEntry(assigned=True, gpa=at, asid=asid)))
        given.assigned |= taken
        return all(code == 0 for code in (yield tuple(batch)))

    def release(self, given: Given, gpa: int, pages: int) -> Task:
        """Take pages of a device's memory back."""
        spas = [spa for spa, at in given.assigned.items() if gpa <= at < gpa + pages * PAGE_BYTES]
        if spas:
            yield tuple(op.RmpUpdate(spa, PAGE_BYTES, _HYPERVISOR) for spa in spas)
        for spa in spas:
            del given.assigned[spa]

    # Within.

    def _free(self, kind: CardKind) -> Generator[Batch, Answers, Interface]:
        """The first function of a card of a kind that nobody has. Raises LaunchRefused."""
        if self._interfaces is None:
            self._interfaces = []
            for port in self._ports:
                found = yield from find(port)
                if found:
                    card = Card(found[0])
                    self._cards.append(card)
                    self._interfaces += [Interface(card, one) for one in found[1:] or found]
        for interface in self._interfaces:
            if interface.function.class_code != CLASSES[kind] or interface.given_to is not None:
                continue
            if (yield from is_there(interface.function)):
                return interface
        raise LaunchRefused(f"devices: no free {kind.value} on this host")

    def _show(
        self,
        vm: str,
        device: int,
        interface: Interface,
        pieces: Sequence[Piece],
        c_bit: int,
        tables: list[tuple[int, int]],
    ) -> Task:
        """Map a function's registers into a VM, and the VM's memory for the function."""
        table = GuestTable(lambda: self._memory.take(1)[0], c_bit)
        self._given[vm, device] = Given(interface, device, table)
        table.map(pieces)
        yield from self._write(table)
        function = interface.function
        encrypted = bool(c_bit)
        frames = self._memory.take(sum([_TABLES_OF_BAR + size // LARGE_PAGE_BYTES for *_, size in function.bars]))
        tables += [(spa, PAGE_BYTES) for spa in frames]
        maps: list[op.HypervisorOperation] = [
            op.NestedFrames(vm, spa, PAGE_BYTES, encrypted=encrypted) for spa in frames
        ]
        maps += [
            op.NestedMap(vm, bar_gpa(device, bar), spa, size, encrypted=encrypted) for bar, spa, size in function.bars
        ]
        expect_done(maps, (yield tuple(maps)))
        yield from self._iommu.show(function.requester, self._domain(function), table.root, LEVELS)
        yield from enable(function, on=True)

    def _write(self, table: GuestTable) -> Task:
        writes = [op.PaidWrite(spa, data) for spa, data in table.taken()]
        if writes:
            expect_done(writes, (yield tuple(writes)))

    @staticmethod
    def _domain(function: Function) -> int:
        return function.requester

    def _connected(self, card: Card) -> Task:
        """Have the firmware connect to a device: session, certificates, measurements, keys of its stream."""
        if card.context:
            return
        function = card.physical
        if not self.trusted or not (function.mailbox and function.ide and function.tee_io):
            raise TioRefused(SnpCommand.TIO_DEV_CREATE, Status.INVALID_PARAM, "no device of TEE-IO")
        assert self._sizes is not None
        pages = -(-self._sizes.device_context_bytes // PAGE_BYTES)
        contexts = yield from self._memory.lend((b"",) * pages)
        context = contexts[0]
        create = tio.DeviceCreate(
            tio.DeviceCreate.SIZE, device=data_page(context), requester=function.requester, root_port=function.port.port
        )
        try:
            yield from self._command(SnpCommand.TIO_DEV_CREATE, create)
        except TioRefused:
            yield from self._memory.reclaim(contexts)
            raise
        try:
            yield from self._connect(card, context)
        except (LaunchRefused, OutOfMemory):
            yield from self._abandon(card, contexts)
            raise
        card.context, card.contexts = context, contexts

    def _abandon(self, card: Card, contexts: tuple[int, ...]) -> Task:
        """Have the firmware forget a device, whatever came of their connection, and take back what that took."""
        named, carrier = data_page(contexts[0]), card.carrier
        card.carrier, card.certificates, card.measurements = None, b"", b""
        card.context, card.contexts = 0, ()
        if carrier is not None and carrier.is_open:
            with suppress(TioRefused):  # One that never came so far is disconnected already.
                yield from carrier.call(
                    SnpCommand.TIO_DEV_DISCONNECT, tio.DeviceOrder(flags=tio.FORCE, device=named)
                )
            yield from carrier.close()
        yield from self._command(SnpCommand.TIO_DEV_RECLAIM, tio.DeviceReclaim(tio.DeviceReclaim.SIZE, device=named))
        yield from self._memory.reclaim(contexts)

    def _connect(self, card: Card, context: int) -> Task:
        function = card.physical
        card.stream_id = function.port.port & 0xFF
        yield from associate(function, card.stream_id)
        carrier = card.carrier = TioCarrier(self._memory, DoeDriver(function.requester, function.mailbox))
        yield from carrier.open()
        connect = tio.DeviceConnect(
            device=data_page(context), tc_mask=1, stream_ids=bytes((card.stream_id,)).ljust(tio.TRAFFIC_CLASSES, b"\0")
        )
        yield from carrier.call(SnpCommand.TIO_DEV_CONNECT, connect)
        yield from enable_streams(function, card.stream_id)
        named = data_page(context)
        card.certificates = yield from carrier.fetch(
            SnpCommand.TIO_DEV_CERTIFICATES, tio.DeviceOrder(device=named), ObjectId.CERTIFICATES
        )
        yield from self._measure(card, context, bytes(tio.NONCE_BYTES))

    def measure(self, card: Card, nonce: bytes = bytes(tio.NONCE_BYTES)) -> Task:
        """Have a device measured anew."""
        yield from self._measure(card, card.context, nonce)

    def _measure(self, card: Card, context: int, nonce: bytes) -> Task:
        assert card.carrier is not None
        card.measurements = yield from card.carrier.fetch(
            SnpCommand.TIO_DEV_MEASUREMENTS,
            tio.DeviceMeasurements(device=data_page(context), nonce=nonce),
            ObjectId.MEASUREMENTS,
        )

    def _unlocked(self, given: Given, gctx: int, *, force: bool) -> Task:
        card = given.card
        if given.bound:
            assert card.carrier is not None
            flags = tio.FORCE if force else 0
            order = tio.TdiOrder(flags=flags, **self._named(given, gctx))
            yield from card.carrier.call(SnpCommand.TIO_TDI_UNBIND, order)
            given.bound = False
        if given.assigned:
            yield from self.release(given, 0, 1 << 52)
        if given.context:
            named = tio.TdiReclaim(tio.TdiReclaim.SIZE, device=data_page(card.context), tdi=data_page(given.context))
            yield from self._command(SnpCommand.TIO_TDI_RECLAIM, named)
            yield from self._memory.reclaim((given.context,))
            given.context = 0
        ran, given.ran = given.ran, False
        if ran and not any(one.ran for one in self._given.values() if one.asid == given.asid):
            yield from self._clear_fence(given, gctx)

    def _clear_fence(self, given: Given, gctx: int) -> Task:
        """Whatever stopped a guest's I/O ends with the last of its devices: its next one begins afresh, as on Linux."""
        named = data_page(given.card.context)
        (page,) = yield from self._memory.lend((b"",))
        asked = tio.FenceStatus(tio.FenceStatus.SIZE, device=named, asid=given.asid, address=page)
        yield from self._command(SnpCommand.TIO_ASID_FENCE_STATUS, asked)
        (said,) = yield (op.HostRead(page, _FENCE_BYTES),)
        yield from self._memory.reclaim((page,))
        assert isinstance(said, bytes)
        if int.from_bytes(said, "little") & _DMA_FENCE == _ERROR_FENCE:
            clear = tio.FenceClear(tio.FenceClear.SIZE, device=named, gctx=gctx)
            yield from self._command(SnpCommand.TIO_ASID_FENCE_CLEAR, clear)

    def _binding(self, given: Given, gctx: int, *, run: bool) -> tio.TdiBind:
        return tio.TdiBind(
            **self._named(given, gctx),
            guest_device_id=guest_device_id(given.device),
            lock_flags=int(self.lock_flags),
            run_flags=tio.RUN if run else 0,
        )

    @staticmethod
    def _named(given: Given, gctx: int) -> dict[str, int]:
        return {"device": data_page(given.card.context), "tdi": data_page(given.context), "gctx": gctx}

    @staticmethod
    def _behind(given: Given, gpa: int) -> int | None:
        for bar, spa, size in given.function.bars:
            offset = gpa - bar_gpa(given.device, bar)
            if 0 <= offset < size:
                return spa + offset
        return None

    def _command(self, command: SnpCommand, order: tio.TioOrder) -> Task:
        (answer,) = yield (op.PspCommand(command, self._memory.command_page, order.pack()),)
        if not isinstance(answer, op.PspAnswer):
            raise TioRefused(command, Status.INVALID_ADDRESS, repr(answer))
        if answer.status:
            raise TioRefused(command, Status(answer.status))
