"""A root port: the host's end of a link, between the memory and cores of a machine and one card.

What its host writes to its configuration space sets streams up; keys come from firmware, which reaches them here and
nowhere else. Loads and stores of cores go down as packets, and what comes up reaches memory through whoever guards it.
Source: PCI Express base specification, 2.2 and 2.3 (requests), 6.33 (IDE), 11.4 (a root port neither makes nor takes
away a T bit).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

from tio.card_link import Wire
from tio.dma_port import DmaFault
from tio.ide import (
    Arrived,
    ArrivedWrites,
    Direction,
    Failure,
    IdeError,
    IdePort,
    IdeStream,
    IdeTlp,
    Link,
    Outcome,
    Packet,
    Run,
    StreamChecks,
    StreamState,
    SubStream,
    Tlp,
    TlpError,
    TlpKind,
    Waiting,
    WaitingRequests,
    Way,
)
from tio.ide.capability import IdeCapability
from tio.ide.prefix import PREFIX_BYTES
from tio.ide.requests import (
    completions,
    configuration_read,
    configuration_write,
    read_bytes,
    refusal,
    span,
    write_bytes,
    written,
)
from tio.ide.stream import ALL_CHECKS
from tio.pci import ConfigurationSpace, Identity

_IDENTITY = Identity(0x1022, 0x5EFF, 0x06_0400)
"""AMD's; which device is the laboratory's to say."""
_STREAM_BLOCKS = 8
_BRIDGE_CONTROL, _BUS_RESET = 0x3E, 1 << 6
"""Secondary Bus Reset (7.5.1.3.13). The bit reads zero: here a reset is over as soon as it is asked for."""
_ALL_BYTES = 0xFF
"""Byte enables of a request for whole double words."""
_MOST_ROUNDS = 8
"""How often packets go down and up for one request: answers to what somebody injects bring no more of it."""


class Memory(Protocol):
    """What stands behind a root port: the machine's memory, and whoever guards it. Each raises DmaFault."""

    def read(self, requester: int, address: int, length: int, *, tee: bool, stream_id: int | None) -> bytes:
        """Load for a requester; ``tee`` is the T bit, ``stream_id`` the IDE stream, None in the clear."""

    def write(self, requester: int, address: int, data: bytes, *, tee: bool, stream_id: int | None) -> None:
        """Store for a requester."""


class Plugged(Protocol):
    """What stands in the slot."""

    upstream: Callable[[Wire], Wire]

    def receive(self, packets: Iterable[Packet | Run]) -> Wire:
        """Take packets that came down: what goes up for them."""

    def configuration_read(self, requester: int, offset: int, width: int) -> int:
        """What a configuration request finds that nobody on the link looks at."""

    def configuration_write(self, requester: int, offset: int, value: int, width: int) -> None:
        """Likewise."""

    def reset(self) -> None:
        """Conventional reset."""


class RootPort:
    """Port ``number``, whose own requester id is device ``number`` on bus 0; ``space`` is its configuration space.

    ``tag_fence`` and ``checks`` are ``IdePort``'s, ``reorder_check`` and ``rekey_flush`` ``StreamSettings``'.
    """

    def __init__(
        self,
        number: int,
        link: Link,
        memory: Memory,
        *,
        most_payload_bytes: int = 256,
        tag_fence: bool = False,
        reorder_check: bool = False,
        rekey_flush: bool = False,
        checks: StreamChecks = ALL_CHECKS,
    ) -> None:
        self.number = number
        self.link = link
        self.port = IdePort(tag_fence=tag_fence, checks=checks)
        self.ide = IdeCapability(self.port, _STREAM_BLOCKS, reorder_check=reorder_check, rekey_flush=rekey_flush)
        self.space = ConfigurationSpace(_IDENTITY, {}, extended=(self.ide,), root_port=number)
        self.requester_id = (number & 0x1F) << 3
        self.refused_reads = 0
        self.refused_writes = 0
        """What came up and memory did not take."""
        self._memory = memory
        self._most_payload_bytes = most_payload_bytes
        self._waiting = WaitingRequests(self.port)
        self._card: Plugged | None = None
        self.pass_on: Callable[[IdeTlp], None] | None = None
        """Takes what came up on streams that do not end here (``tio.peer_path``); without it such packets are lost."""

    # The slot.

    def plug(self, card: Plugged) -> None:
        """Put a card into the slot."""
        self.unplug()
        self.port.forget_requests()
        self._card = card
        card.upstream = self._from_card

    def unplug(self) -> None:
        """Take out what is in the slot."""
        if self._card is not None:
            self._card.upstream = _nowhere
            self._card = None

    def reset(self) -> None:
        """Secondary bus reset: a conventional reset of what is in the slot; no stream goes on."""
        for stream in self.port.streams.values():
            stream.fail(Failure.RESET)
        self.port.forget_requests()
        if self._card is not None:
            self._card.reset()

    # What cores ask for.

    def load(self, address: int, width: int, *, tee: bool) -> int:
        """Load from the card's memory; ones where nothing answers. Raises ValueError for what no core can ask."""
        _check_access(address, width)
        found = self._asked([partial(read_bytes, self.requester_id, address, width)], tee=tee)
        return _value(found, width)

    def store(self, address: int, value: int, width: int, *, tee: bool) -> None:
        """Store to the card's memory; nobody hears whether anything took it. Raises ValueError."""
        _check_access(address, width)
        data = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
        packet = write_bytes(self.requester_id, address, data)
        if not tee or self._protects(packet):
            self._down(self.port.send([packet], tee=tee))

    def forward(self, packet: Tlp, *, tee: bool) -> None:
        """Pass a peer's write on to the card, its T bit as it came, on the stream that holds its address.

        Whether peers may reach each other at all is for whoever joins root ports to say: a request with T that is
        passed on is a trusted one to the card, whoever made it.
        """
        if not tee or self._protects(packet):
            self._down(self.port.send([packet], tee=tee))

    def pass_down(self, packet: IdeTlp) -> None:
        """Bring the card a packet of a stream that does not end here, as it came."""
        self._down([packet])

    def configuration_read(self, requester: int, offset: int, width: int = 4) -> int:
        """A register of function ``requester``, of the card or this port; ones where there is none, or no register."""
        if not _is_register(offset, width):
            return (1 << 8 * width) - 1
        if requester == self.requester_id:
            return self.space.read(offset, width)
        if self._card is not None and self.link.is_bare:
            return self._card.configuration_read(requester, offset, width)
        return _value(self._asked([partial(configuration_read, self.requester_id, requester, offset, width)]), width)

    def configuration_write(self, requester: int, offset: int, value: int, width: int = 4) -> None:
        """Store to a register of function ``requester``, of the card or this port."""
        if not _is_register(offset, width):
            return
        value &= (1 << 8 * width) - 1
        if requester == self.requester_id:
            if offset <= _BRIDGE_CONTROL < offset + width and value >> 8 * (_BRIDGE_CONTROL - offset) & _BUS_RESET:
                self.reset()
            self.space.write(offset, value, width)
        elif self._card is not None and self.link.is_bare:
            self._card.configuration_write(requester, offset, value, width)
        else:
            self._asked([partial(configuration_write, self.requester_id, requester, offset, value, width)])

    # What firmware does with keys.

    def program(
        self, stream_id: int, key_set: int, direction: Direction, sub_stream: SubStream, key: bytes, initial: int
    ) -> None:
        """Take a key; directions are this port's. Raises IdeError, as the rest here for a stream not set up."""
        self._stream(stream_id).program(key_set, direction, sub_stream, key, initial)

    def go(self, stream_id: int, key_set: int, direction: Direction, sub_stream: SubStream) -> None:
        """Use a key from now on. Raises IdeError."""
        self._stream(stream_id).go(key_set, direction, sub_stream)

    def stop(self, stream_id: int, key_set: int, direction: Direction, sub_stream: SubStream) -> None:
        """Use a key no more. Raises IdeError."""
        self._stream(stream_id).stop(key_set, direction, sub_stream)

    def is_free(self, stream_id: int, key_set: int) -> bool:
        """Whether a stream can take a key set without failing by it. Raises IdeError."""
        return self._stream(stream_id).is_free(key_set)

    def is_secure(self, stream_id: int) -> bool:
        """Whether a stream is enabled, with all its keys running. Raises IdeError."""
        return self._stream(stream_id).state is StreamState.SECURE

    # Within: down.

    def _stream(self, stream_id: int) -> IdeStream:
        found = self.port.streams.get(stream_id)
        if found is None:
            raise IdeError(f"expected a stream that is set up at port {self.number}, found {stream_id}")
        return found

    def _protects(self, packet: Tlp) -> bool:
        """Whether a trusted packet has a stream to go on: there is no T bit outside of one."""
        stream = self.port.stream_of(packet)
        return stream is not None and stream.state is StreamState.SECURE

    def _asked(self, build: list[Callable[[int], Tlp]], *, tee: bool = False) -> Waiting | None:
        """Send one request; None where it cannot be sent."""
        if tee and not self._protects(build[0](0)):
            return None
        try:
            return self._waiting.ask(build, self._down, tee=tee)[0]
        except IdeError:
            return None

    def _down(self, wire: Iterable[Packet | Run]) -> None:
        """Carry packets to the card and what it sends for them back, until nothing is to be answered."""
        packets: Wire = list(wire)
        for _ in range(_MOST_ROUNDS):
            arrived = self.link.carry(Way.DOWN, packets)
            up = [] if self._card is None else self._card.receive(arrived)
            packets = self._taken(self.link.carry(Way.UP, up))
            if not packets:
                return

    # Within: up.

    def _from_card(self, packets: Wire) -> Wire:
        return self.link.carry(Way.DOWN, self._taken(self.link.carry(Way.UP, packets)))

    def _taken(self, packets: Iterable[Packet | Run]) -> Wire:
        """Take what came up: the completions that go down for it."""
        down: Wire = []
        together: list[tuple[Arrived, bytes]] = []
        for one in self.port.receive(packets if self.pass_on is None else self._ending_here(packets)):
            if isinstance(one, ArrivedWrites):
                self._write(one.requester, one.address, bytes(one.data), tee=True, stream_id=one.stream_id)
                continue
            if self._waiting.take(one) or not isinstance(one, Arrived):
                continue
            data = self._memory_of(one) if self._is_block(one) else None
            if together and (data is None or not _alike(together[0], (one, data))):
                down += self._answered(together)
                together = []
            if data is not None:
                together.append((one, data))
            else:
                answers = [refusal(self.requester_id, one.packet)] if self._is_block(one) else self._served(one)
                down += self.port.send(answers, tee=one.tee, answers_on=one.stream_id)
        if together:
            down += self._answered(together)
        return down + self.port.fail_messages(self.requester_id)

    def _ending_here(self, packets: Iterable[Packet | Run]) -> Iterable[Packet | Run]:
        """All of it but what is passed on."""
        for one in packets:
            ends = not isinstance(one, IdeTlp) or len(one.prefix) != PREFIX_BYTES or one.prefix[3] in self.port.streams
            if isinstance(one, IdeTlp) and not ends and self.pass_on is not None:
                self.pass_on(one)
            else:
                yield one

    def _is_block(self, arrived: Arrived) -> bool:
        """Whether a read on a stream asks for whole packets."""
        packet, size = arrived.packet, self._most_payload_bytes
        if packet.kind is not TlpKind.MEMORY_READ or arrived.stream_id is None or packet.header[7] != _ALL_BYTES:
            return False
        return not packet.address % size and not packet.length_bytes % size and packet.length_bytes > size

    def _answered(self, together: list[tuple[Arrived, bytes]]) -> Wire:
        """The completions of reads that are alike."""
        first = together[0][0]
        assert first.stream_id is not None
        requests, size = [one.packet for one, _ in together], self._most_payload_bytes
        run = self.port.send_completions(
            self.requester_id,
            requests,
            b"".join([data for _, data in together]),
            size,
            tee=first.tee,
            answers_on=first.stream_id,
        )
        if run is not None:
            return [run]
        answers = [
            answer for one, data in together for answer in completions(self.requester_id, one.packet, data, size)
        ]
        return list(self.port.send(answers, tee=first.tee, answers_on=first.stream_id))

    def _served(self, arrived: Arrived) -> list[Tlp]:
        packet = arrived.packet
        try:
            if packet.kind is TlpKind.MEMORY_WRITE:
                address, data = written(packet)
                if data and not packet.poisoned:
                    self._write(packet.requester, address, data, tee=arrived.tee, stream_id=arrived.stream_id)
                return []
            if packet.kind is TlpKind.MEMORY_READ:
                return self._read(arrived)
        except TlpError:
            self.refused_writes += packet.sub_stream is SubStream.PR
        return [refusal(self.requester_id, packet)] if packet.sub_stream is SubStream.NPR else []

    def _read(self, arrived: Arrived) -> list[Tlp]:
        packet = arrived.packet
        data = self._memory_of(arrived)
        if data is None:
            return [refusal(self.requester_id, packet)]
        return list(completions(self.requester_id, packet, data, self._most_payload_bytes))

    def _memory_of(self, arrived: Arrived) -> bytes | None:
        """What a read asks for; None where memory refuses it. Raises TlpError."""
        packet, (address, length) = arrived.packet, span(arrived.packet)
        if not length:
            return b""
        try:
            return self._memory.read(packet.requester, address, length, tee=arrived.tee, stream_id=arrived.stream_id)
        except DmaFault:
            self.refused_reads += 1
            return None

    def _write(self, requester: int, address: int, data: bytes, *, tee: bool, stream_id: int | None) -> None:
        try:
            self._memory.write(requester, address, data, tee=tee, stream_id=stream_id)
        except DmaFault:
            self.refused_writes += 1


def _alike(one: tuple[Arrived, bytes], other: tuple[Arrived, bytes]) -> bool:
    """Whether reads can be answered in one go."""
    sorts = [
        (arrived.packet.requester, arrived.tee, arrived.stream_id, len(data)) for arrived, data in (one, other)
    ]
    return sorts[0] == sorts[1]


def _check_access(address: int, width: int) -> None:
    if width not in (1, 2, 4, 8) or address % width or not 0 <= address < 1 << 64:
        raise ValueError(f"access: expected 1, 2, 4 or 8 bytes at their own alignment, got {width} at {address:#x}")


def _is_register(offset: int, width: int) -> bool:
    return width in (1, 2, 4) and not offset % width and 0 <= offset < 4096


def _value(found: Waiting | None, width: int) -> int:
    """What was answered; ones where nothing was."""
    if found is None or found.outcome is not Outcome.ANSWERED:
        return (1 << 8 * width) - 1
    return int.from_bytes(found.data, "little")


def _nowhere(_: Wire) -> Wire:
    return []
