"""What a card answers to requests that reach it: loads, stores and configuration requests end in its functions.

Source: PCI Express base specification, 2.3.1 (requests, and what is an Unsupported Request) and 2.2.6.2 (a function
captures its bus number from configuration writes).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from tio.ide import Arrived, ArrivedWrites, Tlp, TlpError, TlpKind, completion
from tio.ide.requests import completions, refusal, span, target, written
from tio.pci import ConfigurationSpace, PciFunction

_WIDEST_BYTES = 8
"""Of one load or store of a core."""


class Completer:
    """Functions of one card, by device and function number."""

    def __init__(self, functions: Mapping[int, PciFunction], most_payload_bytes: int = 256) -> None:
        self._functions = functions
        self._most_payload_bytes = most_payload_bytes

    def space(self, requester: int) -> ConfigurationSpace | None:
        """The configuration space of a function by its requester id, whatever its bus."""
        function = self._functions.get(requester & 0xFF)
        return None if function is None else function.space

    def serve(self, arrived: Arrived | ArrivedWrites) -> list[Tlp]:
        """The completions of a request; none of a posted one, and of what is no request."""
        if isinstance(arrived, ArrivedWrites):
            self._store(arrived.address, bytes(arrived.data), tee=True, stream_id=arrived.stream_id)
            return []
        serve = _SERVED.get(arrived.packet.kind)
        if serve is None:
            return []
        try:
            return serve(self, arrived)
        except TlpError:
            return [] if arrived.packet.kind is TlpKind.MEMORY_WRITE else [refusal(0, arrived.packet)]

    def memory_read(self, arrived: Arrived) -> list[Tlp]:
        """A load, of which every part must be admitted."""
        address, length = span(arrived.packet)
        data = b""
        for at, width in _parts(address, length):
            value = self._load(at, width, arrived)
            if value is None:
                return [refusal(self._id(arrived.packet), arrived.packet)]
            data += value.to_bytes(width, "little")
        return list(completions(self._id(arrived.packet), arrived.packet, data, self._most_payload_bytes))

    def memory_write(self, arrived: Arrived) -> list[Tlp]:
        """A store; what is not admitted of it is lost. A poisoned one is not taken (2.7.2.2)."""
        if not arrived.packet.poisoned:
            address, data = written(arrived.packet)
            self._store(address, data, tee=arrived.tee, stream_id=arrived.stream_id)
        return []

    def configuration_read(self, arrived: Arrived) -> list[Tlp]:
        """A register of a function; on a stream nobody may ask for one."""
        packet = arrived.packet
        function = self._functions.get(target(packet) & 0xFF)
        if function is None or arrived.stream_id is not None:
            return [refusal(target(packet), packet)]
        offset, width = span(packet)
        value = function.space.read(offset, width) << 8 * (offset & 3) if width else 0
        data = value.to_bytes(4, "little")
        return [completion(target(packet), packet.requester, packet.tag, data)]

    def configuration_write(self, arrived: Arrived) -> list[Tlp]:
        """A store to a register, and the bus number that comes with it."""
        packet = arrived.packet
        function = self._functions.get(target(packet) & 0xFF)
        if function is None or arrived.stream_id is not None:
            return [refusal(target(packet), packet)]
        offset, width = span(packet)
        value = int.from_bytes(packet.payload[offset & 3 : (offset & 3) + width], "little")
        function.space.write(offset, value, width, target(packet) >> 8)
        return [completion(target(packet), packet.requester, packet.tag, b"", byte_count=4)]

    def _load(self, address: int, width: int, arrived: Arrived) -> int | None:
        for one in self._functions.values():
            value = one.answer(address, width, tee=arrived.tee, stream_id=arrived.stream_id)
            if value is not None:
                return value
        return None

    def _store(self, address: int, data: bytes, *, tee: bool, stream_id: int | None) -> None:
        for at, width in _parts(address, len(data)):
            value = int.from_bytes(data[at - address : at - address + width], "little")
            for one in self._functions.values():
                if one.store(at, value, width, tee=tee, stream_id=stream_id):
                    break

    def _id(self, request: Tlp) -> int:
        """Whoever answers: any function of the card, for its requester looks at nothing but the tag."""
        return next(iter(self._functions.values())).requester_id if self._functions else request.requester


_SERVED: dict[TlpKind, Callable[[Completer, Arrived], list[Tlp]]] = {
    TlpKind.MEMORY_READ: Completer.memory_read,
    TlpKind.MEMORY_WRITE: Completer.memory_write,
    TlpKind.CONFIG_READ: Completer.configuration_read,
    TlpKind.CONFIG_WRITE: Completer.configuration_write,
}


def _parts(address: int, length: int) -> Iterator[tuple[int, int]]:
    """Loads or stores of 1, 2, 4 or 8 bytes at their own alignment."""
    end = address + length
    while address < end:
        width = _WIDEST_BYTES
        while address % width or address + width > end:
            width //= 2
        yield address, width
        address += width
