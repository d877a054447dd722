"""A toy machine with a root port and a real card, and a host that carries packets between firmware and the card."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from asking_guest import opened, sealed
from toy_machine import FIRMWARE, GCTX, MEMORY_BYTES, PAGE, POLICY, Machine, ToyBus, context, snp_guest

from psp import command_buffers as snp_buffers
from psp import tsm
from psp.commands import SnpCommand
from psp.firmware import SecurityProcessor
from psp.guest_context import SnpGuestState
from psp.product_line import PRODUCT_LINES
from psp.status import Status
from psp.system_bus import RmpEntry
from psp.tsm.secure_device_entry import SecureDeviceEntry
from psp.tsm.trusted_io import RootPortKeys, TdiBinding
from tio.card import Card
from tio.device_identity import CardKind
from tio.doe import DataObject, parse_data_object
from tio.ide import Association, Direction, IdeError, IdePort, IdeStream, StreamSettings, StreamState, SubStream
from tio.loose_device import LooseDevice
from tio.spdm import ResponderSettings
from tio.tdisp import InterfaceId

CONTEXT, TDI_CONTEXT = 0x70_0000, 0x70_1000
REQUEST, RESPONSE, SCRATCH, OUTPUT, STATUS = 0x71_0000, 0x71_4000, 0x71_8000, 0x71_C000, 0x72_0000
MESSAGE, ANSWER, SCATTER = 0x73_0000, 0x73_1000, 0x74_0000
RID, PORT, STREAM = 0x0100, 3, 1
GUEST_DEVICE_ID = 0x0208
OTHER_GCTX = 0x61_0000
MMIO, MMIO_BYTES = 0xC0_0000_0000, 64 << 20


def draws(name: str) -> Callable[[int], bytes]:
    """What a DRBG would draw."""
    count = iter(range(1 << 40))
    return lambda length: hashlib.shake_128(f"{name} {next(count)}".encode()).digest(length)


class BenchRootPort:
    """A root port's end: a real one of the link's ends, and every key that it was given, in order."""

    def __init__(self, streams: tuple[int, ...] = (STREAM,)) -> None:
        self.port = IdePort()
        self.keys: list[bytes] = []
        for one in streams:
            self.port.streams[one] = IdeStream(one, StreamSettings(tee_limited=True))
            self.port.associations.append(Association(one, (RID, RID)))

    def _stream(self, stream_id: int) -> IdeStream:
        if stream_id not in self.port.streams:
            raise IdeError("expected a stream that was set up")
        return self.port.streams[stream_id]

    def program(
        self, stream_id: int, key_set: int, direction: Direction, sub_stream: SubStream, key: bytes, initial: int
    ) -> None:
        self._stream(stream_id).program(key_set, direction, sub_stream, key, initial)
        self.keys.append(key)

    def go(self, stream_id: int, key_set: int, direction: Direction, sub_stream: SubStream) -> None:
        self._stream(stream_id).go(key_set, direction, sub_stream)

    def stop(self, stream_id: int, key_set: int, direction: Direction, sub_stream: SubStream) -> None:
        self._stream(stream_id).stop(key_set, direction, sub_stream)

    def is_free(self, stream_id: int, key_set: int) -> bool:
        return self._stream(stream_id).is_free(key_set)

    def is_secure(self, stream_id: int) -> bool:
        return self._stream(stream_id).state is StreamState.SECURE


@dataclass
class BenchTrustedIo:
    """What the board would hold: root ports, and whose each requester is."""

    ports: dict[tuple[int, int], BenchRootPort] = field(default_factory=lambda: {(0, PORT): BenchRootPort()})
    bindings: dict[int, TdiBinding] = field(default_factory=dict)
    running: set[int] = field(default_factory=set)
    entries: dict[int, SecureDeviceEntry] = field(default_factory=dict)
    fences: dict[int, int] = field(default_factory=dict)
    windows: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    """What leads to a port, where that is not all of the machine's MMIO."""

    def root_port(self, segment: int, port: int) -> RootPortKeys | None:
        return self.ports.get((segment, port))

    def leads(self, segment: int, port: int, spa: int, length: int) -> bool:
        first, size = self.windows.get((segment, port), (MMIO, MMIO_BYTES))
        return first <= spa and spa + length <= first + size

    def bind(self, requester: int, binding: TdiBinding) -> None:
        self.bindings[requester] = binding

    def start(self, requester: int) -> None:
        self.running.add(requester)

    def write_entry(self, requester: int, entry: SecureDeviceEntry) -> None:
        self.entries[requester] = entry

    def unbind(self, requester: int) -> None:
        self.bindings.pop(requester, None)
        self.running.discard(requester)
        self.entries.pop(requester, None)

    def fence_status(self, asid: int) -> int:
        return self.fences.get(asid, 0b1111)

    def fence_clear(self, asid: int) -> bool:
        if any(self.bindings[one].asid == asid for one in self.running):
            return False
        self.fences[asid] = 0
        return True

    def state(self) -> tuple[object, ...]:
        """All of it, as a value."""
        ports = tuple((place, tuple(port.keys)) for place, port in sorted(self.ports.items()))
        parts = (self.bindings, self.entries, self.fences)
        return ports, *(tuple(sorted(one.items(), key=lambda row: row[0])) for one in parts), frozenset(self.running)


@dataclass
class BenchBus(ToyBus):
    """The toy bus with a window of MMIO that the RMP covers."""

    def rmp_covers(self, spa: int, pages: int = 1) -> bool:
        if spa >= MMIO and spa + pages * PAGE <= MMIO + MMIO_BYTES:
            return True
        return super().rmp_covers(spa, pages)

    def rmp_run(self, spa: int, pages: int) -> RmpEntry | None:
        return super().rmp_run(spa, pages) if spa < MEMORY_BYTES else None


Changed = Callable[[int, bytes], bytes | None]
"""What a carrier makes of an answer, by its number in the command; None loses it."""


def _honest(_: int, answer: bytes) -> bytes:
    return answer


@dataclass
class Bench:
    """The machine, its card, and the host's habits."""

    machine: Machine
    card: Card
    trusted_io: BenchTrustedIo
    seen: bytearray = field(default_factory=bytearray)
    """All that the host carried."""
    statuses: list[int] = field(default_factory=list)
    requester: int = RID
    port: int = PORT
    shift: int = 0
    """Where its buffers and contexts are, from where those of the first are."""

    def at(self, spa: int) -> int:
        """The address that stands for one of the first bench's."""
        return spa + self.shift

    # Buffers.

    def lend(self, *pages: int) -> None:
        """Pages become firmware's."""
        for one in pages:
            self.machine.bus.rmp_set(one, FIRMWARE)

    def take(self, *pages: int) -> None:
        """Pages become the host's."""
        for one in pages:
            self.machine.bus.rmp.pop(one // PAGE, None)

    def lay_buffers(self, *, output_bytes: int = PAGE) -> None:
        """Empty buffers, in the states in which they must be."""
        bus = self.machine.bus
        for spa, size in ((REQUEST, PAGE), (SCRATCH, PAGE), (OUTPUT, output_bytes), (RESPONSE, PAGE)):
            bus.write(self.at(spa), tsm.BufferHeader(size).pack())
        self.lend(self.at(REQUEST), self.at(SCRATCH), *range(self.at(OUTPUT), self.at(OUTPUT) + output_bytes, PAGE))

    def order(self, kind: type[tsm.SpdmOrder], **fields: object) -> tsm.SpdmOrder:
        """A command with the four buffers."""
        ours = {
            "length": kind.SIZE, "request": self.at(REQUEST), "response": self.at(RESPONSE),
            "scratch": self.at(SCRATCH), "output": self.at(OUTPUT), "device": self.at(CONTEXT),
        }  # fmt: skip
        return kind(**(ours | fields))

    def give(self, command: int, order: tsm.TioOrder) -> int:
        """Give a command once."""
        return self.machine.call(command, order.pack())

    def ask(self, command: int, kind: type[tsm.TioOrder], **fields: object) -> int:
        """A command without an exchange."""
        return self.give(command, kind(**({"length": kind.SIZE} | fields)))

    def asked(self) -> tuple[bytes, bool]:
        """What lies in the request buffer, and whether it is a record."""
        bus = self.machine.bus
        header = tsm.BufferHeader.parse(bus.read(self.at(REQUEST), tsm.BufferHeader.SIZE))
        assert header.payload % 32 == 0
        packet = tsm.parse_message(tsm.ObjectId.REQUEST, bus.read(self.at(REQUEST) + header.SIZE, header.payload))
        return packet.payload, packet.secured

    def answer(self, payload: bytes, *, secured: bool) -> None:
        """Lay an answer into the response buffer."""
        head = tsm.MessageObject(tsm.ObjectId.RESPONSE, 16 + len(payload), data_type=1 + secured).pack()
        whole = (head + payload).ljust(tsm.padded(16 + len(payload)), b"\0")
        self.machine.bus.write(self.at(RESPONSE), tsm.BufferHeader(PAGE, len(whole)).pack() + whole)

    def device_says(self, payload: bytes, *, secured: bool) -> tuple[bytes, bool]:
        """What the card's mailbox answers to a data object."""
        found = self.card._exchanged(parse_data_object(DataObject(1, 1 + secured, payload).pack()))
        assert found is not None
        return found.payload, found.object_type == 2

    def carry(self, change: Changed = _honest) -> bool:
        """Bring what was asked to the card and its answer back, changed; whether there is one."""
        payload, secured = self.asked()
        answer, is_record = self.device_says(payload, secured=secured)
        self.seen += payload + answer
        changed = change(len(self.statuses), answer)
        if changed is not None:
            self.answer(changed, secured=is_record)
        return changed is not None

    def run(self, command: int, order: tsm.SpdmOrder, change: Changed = _honest, most: int = 200) -> int:
        """Give a command until it is done; its last status."""
        self.statuses.clear()
        for _ in range(most):
            status = self.give(command, order)
            if status != Status.SPDM_REQUEST:
                return status
            self.carry(change)
            self.statuses.append(status)
        raise AssertionError(f"expected an end within {most} packets")

    # Guests.

    def another_guest(self, asid: int = 3) -> None:
        """A second running guest."""
        self.lend(OTHER_GCTX)
        steps = (
            (SnpCommand.GCTX_CREATE, snp_buffers.GuestContextPage(OTHER_GCTX)),
            (SnpCommand.LAUNCH_START, snp_buffers.SnpLaunchStart(OTHER_GCTX, POLICY)),
            (SnpCommand.ACTIVATE, snp_buffers.SnpActivate(OTHER_GCTX, asid)),
            (SnpCommand.LAUNCH_FINISH, snp_buffers.SnpLaunchFinish(OTHER_GCTX)),
        )
        for command, buffer in steps:
            assert self.machine.call(command, buffer.pack()) == Status.SUCCESS

    # Commands.

    def create(self) -> int:
        """TIO_DEV_CREATE."""
        self.lend(self.at(CONTEXT))
        return self.ask(
            SnpCommand.TIO_DEV_CREATE, tsm.DeviceCreate,
            device=self.at(CONTEXT), requester=self.requester, root_port=self.port,
        )  # fmt: skip

    def connect(self, change: Changed = _honest, **fields: object) -> int:
        """TIO_DEV_CONNECT."""
        self.lay_buffers()
        ours: dict[str, object] = {"tc_mask": 1, "stream_ids": bytes((STREAM,)).ljust(8, b"\0")}
        return self.run(SnpCommand.TIO_DEV_CONNECT, self.order(tsm.DeviceConnect, **(ours | fields)), change)

    def enable_streams(self) -> None:
        """What the host sets in both ends' IDE control."""
        for port in (self.card.port, self.trusted_io.ports[0, self.port].port):
            for stream in port.streams.values():
                stream.enable()

    def create_tdi(self, tdi: int = TDI_CONTEXT, requester: int = 0) -> int:
        """TIO_TDI_CREATE."""
        tdi = self.at(tdi)
        self.lend(tdi)
        interface_id = InterfaceId(requester or self.requester).pack()
        return self.ask(
            SnpCommand.TIO_TDI_CREATE, tsm.TdiCreate, device=self.at(CONTEXT), tdi=tdi, interface_id=interface_id
        )

    def bind_order(self, **fields: object) -> tsm.SpdmOrder:
        """TIO_TDI_BIND's buffer."""
        ours: dict[str, object] = {"tdi": self.at(TDI_CONTEXT), "gctx": GCTX, "guest_device_id": GUEST_DEVICE_ID}
        return self.order(tsm.TdiBind, **(ours | fields))

    def bind(self, change: Changed = _honest, **fields: object) -> int:
        """TIO_TDI_BIND."""
        return self.run(SnpCommand.TIO_TDI_BIND, self.bind_order(**fields), change)

    def tdi_order(self, **fields: object) -> tsm.SpdmOrder:
        """TIO_TDI_UNBIND's and TIO_TDI_REPORT's buffer."""
        ours: dict[str, object] = {"tdi": self.at(TDI_CONTEXT), "gctx": GCTX}
        return self.order(tsm.TdiOrder, **(ours | fields))

    def unbind(self, **fields: object) -> int:
        """TIO_TDI_UNBIND."""
        return self.run(SnpCommand.TIO_TDI_UNBIND, self.tdi_order(**fields))

    def tdi_info(self) -> tsm.TdiInfoRecord:
        """TIO_TDI_INFO."""
        self.lend(self.at(STATUS))
        status = self.ask(
            SnpCommand.TIO_TDI_INFO, tsm.TdiInfo,
            device=self.at(CONTEXT), tdi=self.at(TDI_CONTEXT), address=self.at(STATUS),
        )  # fmt: skip
        assert status == Status.SUCCESS
        return tsm.TdiInfoRecord.parse(self.machine.bus.read(self.at(STATUS), tsm.TdiInfoRecord.SIZE))

    def report(self) -> bytes:
        """TIO_TDI_REPORT's blob."""
        self.lay_buffers()
        assert self.run(SnpCommand.TIO_TDI_REPORT, self.tdi_order()) == Status.SUCCESS
        return self.result()[1]

    def guest_order(self, **fields: object) -> tsm.SpdmOrder:
        """TIO_GUEST_REQUEST's buffer."""
        ours: dict[str, object] = {"tdi": self.at(TDI_CONTEXT), "gctx": GCTX}
        ours |= {"message": self.at(MESSAGE), "answer": self.at(ANSWER)}
        return self.order(tsm.TioGuestRequest, **(ours | fields))

    def guest_asks(self, kind: int, payload: bytes, *, vmpl: int = 0, version: int = 1, **fields: object) -> int:
        """The status of TIO_GUEST_REQUEST with the guest's next message."""
        guest = context(self.machine)
        message = sealed(guest.vmpck(vmpl), guest.message_counts[vmpl] + 1, kind, payload, vmpl, version)
        self.machine.bus.write(self.at(MESSAGE), message.ljust(PAGE, b"\0"))
        self.lend(self.at(ANSWER))
        return self.run(SnpCommand.TIO_GUEST_REQUEST, self.guest_order(**fields))

    def guest_hears(self, kind: int, payload: bytes, *, vmpl: int = 0) -> bytes:
        """The answer to a message, opened by its guest."""
        count = context(self.machine).message_counts[vmpl]
        assert self.guest_asks(kind, payload, vmpl=vmpl) == Status.SUCCESS
        key = context(self.machine).vmpck(vmpl)
        sequence, answered, version, answer = opened(key, self.machine.bus.read(self.at(ANSWER), PAGE))
        assert (sequence, answered, version) == (count + 2, kind + 1, 1)
        return answer

    def device_status(self) -> tsm.DeviceStatusRecord:
        """TIO_DEV_STATUS."""
        self.lend(self.at(STATUS))
        status = self.ask(SnpCommand.TIO_DEV_STATUS, tsm.DeviceStatus, device=self.at(CONTEXT), address=self.at(STATUS))
        assert status == Status.SUCCESS
        return tsm.DeviceStatusRecord.parse(self.machine.bus.read(self.at(STATUS), tsm.DeviceStatusRecord.SIZE))

    def result(self) -> tuple[tsm.ResultObject, bytes]:
        """What lies in the output buffer."""
        bus = self.machine.bus
        header = tsm.BufferHeader.parse(bus.read(self.at(OUTPUT), tsm.BufferHeader.SIZE))
        data = bus.read(self.at(OUTPUT) + header.SIZE, header.payload)
        head = tsm.ResultObject.parse(data)
        return head, data[head.SIZE : head.length]

    def result_in(self, pages: list[int]) -> bytes:
        """The blob in an output buffer of several pages."""
        whole = b"".join([self.machine.bus.read(one, PAGE) for one in pages])
        header = tsm.BufferHeader.parse(whole)
        data = whole[header.SIZE : header.SIZE + header.payload]
        head = tsm.ResultObject.parse(data)
        return data[head.SIZE : head.length]

    def snapshot(self) -> dict[str, object]:
        """Everything that a refused command must leave alone."""
        return {**self.machine.snapshot(), "trusted I/O": self.trusted_io.state()}


def new_bench(
    *,
    tio_init: bool = True,
    settings: ResponderSettings | None = None,
    enabled: bool = True,
    wants_encryption: tuple[bool, bool] = (True, True),
) -> Bench:
    """A machine whose firmware has TIO up, and a card in the slot of a root port.

    ``wants_encryption``: whether firmware asks for it, and whether the card does.
    """
    trusted_io = BenchTrustedIo()
    bus = BenchBus(trusted_io=trusted_io)

    def octets(purpose: str, counter: int, length: int) -> bytes:
        return hashlib.shake_128(f"{purpose} {counter}".encode()).digest(length)

    machine = Machine(bus, SecurityProcessor(bus, octets, line=PRODUCT_LINES["Turin"]))
    flags = snp_buffers.SNP_INIT_RMP | snp_buffers.SNP_INIT_TIO * enabled
    assert machine.call(SnpCommand.INIT_EX, snp_buffers.SnpInitEx(flags=flags).pack()) == 0
    machine.flush(SnpCommand.DF_FLUSH)
    machine.psp.snp.tsm.device_switches.wants_encryption = wants_encryption[0]
    card = Card(
        CardKind.NVME, LooseDevice(), draws("card"), settings=settings, requester_id=RID, programmed=True,
        wants_encryption=wants_encryption[1],
    )  # fmt: skip
    bench = Bench(machine, card, trusted_io)
    if tio_init:
        assert bench.ask(SnpCommand.TIO_INIT, tsm.TioInit) == 0
    return bench


def beside(bench: Bench, requester: int = 0x0200, port: int = 4, streams: tuple[int, ...] = (STREAM,)) -> Bench:
    """Another card of the same machine, with buffers and contexts of its own, connected."""
    bench.trusted_io.ports[0, port] = BenchRootPort(streams)
    card = Card(
        CardKind.NIC, LooseDevice(), draws("another card"), serial="0009", requester_id=requester, streams=streams,
        programmed=True,
    )  # fmt: skip
    other = Bench(bench.machine, card, bench.trusted_io, requester=requester, port=port, shift=0x8_0000)
    assert other.create() == 0
    stream_ids = bytes(streams).ljust(8, b"\0")
    assert other.connect(tc_mask=(1 << len(streams)) - 1, stream_ids=stream_ids) == 0
    other.enable_streams()
    return other


def connected(**changes: object) -> Bench:
    """The same with the card connected and its streams enabled."""
    bench = new_bench(**changes)  # type: ignore[arg-type]
    assert bench.create() == 0
    assert bench.connect() == 0
    bench.enable_streams()
    return bench


def with_guest(**changes: object) -> Bench:
    """The same with a running guest, and a TDI that is nobody's."""
    bench = connected(**changes)
    snp_guest(bench.machine, SnpGuestState.RUNNING)
    assert bench.create_tdi() == 0
    return bench


def bound(*, lock_flags: int = 0, **changes: object) -> Bench:
    """The same with the TDI locked for the guest."""
    bench = with_guest(**changes)
    assert bench.bind(lock_flags=lock_flags) == 0
    return bench


def running(**changes: object) -> Bench:
    """The same with the TDI started, and its guest knowing what it is."""
    bench = bound(**changes)
    assert bench.bind(run_flags=tsm.RUN) == 0
    tdi = bench.machine.psp.snp.tsm.contexts.devices[CONTEXT].tdis[TDI_CONTEXT]
    assert tdi.binding is not None
    # As after TDI_INFO, without a message that tests would have to count.
    tdi.binding = replace(tdi.binding, shown=True)
    return bench
