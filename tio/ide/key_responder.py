"""The device's side of IDE_KM: it takes keys for the streams of its ports, each from one session alone.

Source: PCI Express base specification, 6.33.3; which status answers which bad field is what public validators of
devices expect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tio.ide.key_messages import (
    KeyMessage,
    KeyMessageError,
    KeyStatus,
    ObjectId,
    QueryResponse,
    parse_key_message,
    parse_query,
    sub_stream_of,
)
from tio.ide.keys import FIRST_INVOCATION
from tio.ide.port import IdePort
from tio.ide.stream import Failure, IdeError, IdeStream

_NO_STREAMS = (0x0001_0030, 0, 0)
"""Registers of a port on which no stream ends."""


@dataclass(frozen=True, slots=True)
class PortRegisters:
    """Where a port stands, and what its IDE extended capability holds now."""

    device_function: int = 0
    bus: int = 0
    segment: int = 0
    registers: Callable[[], tuple[int, ...]] = lambda: _NO_STREAMS


class KeyResponder:
    """Answers IDE_KM for the ports of one device, by index.

    ``programmed_by`` says which session programmed a stream's keys; another session's are refused while they last.
    """

    def __init__(self, ports: Mapping[int, tuple[PortRegisters, IdePort]]) -> None:
        self._ports = dict(ports)
        self.programmed_by: dict[tuple[int, int], int] = {}
        """Session ids, by port index and stream id."""

    def answer(self, session_id: int, data: bytes) -> bytes | None:
        """The answer to a message of a session; None where there is none to give."""
        if data[:1] == bytes((ObjectId.QUERY,)):
            return self._query(data)
        try:
            asked = parse_key_message(data)
        except KeyMessageError as error:
            return self._malformed(data, error)
        if asked.object_id is ObjectId.KEY_PROG:
            return self._reply(asked, ObjectId.KP_ACK, self._program(session_id, asked))
        if asked.object_id in (ObjectId.K_SET_GO, ObjectId.K_SET_STOP):
            return self._reply(asked, ObjectId.K_GOSTOP_ACK) if self._start_or_stop(session_id, asked) else None
        return None

    def end_session(self, session_id: int) -> None:
        """A session is over: the streams whose keys it programmed are Insecure."""
        for place in [place for place, owner in self.programmed_by.items() if owner == session_id]:
            del self.programmed_by[place]
            stream = self._ports[place[0]][1].streams.get(place[1])
            if stream is not None:
                stream.fail(Failure.SESSION)

    def complete_for(self, session_id: int, port_index: int, stream_id: int) -> bool:
        """Whether a stream has keys for all its sub-streams, all of this session."""
        found = self._ports.get(port_index)
        stream = None if found is None else found[1].streams.get(stream_id)
        mine = self.programmed_by.get((port_index, stream_id)) == session_id
        return stream is not None and mine and stream.has_keys()

    def _query(self, data: bytes) -> bytes | None:
        try:
            index = parse_query(data)
        except KeyMessageError:
            return None
        found = self._ports.get(index)
        if found is None:
            return None
        place, most = found[0], max(self._ports)
        return QueryResponse(
            index, place.device_function, place.bus, place.segment, most, place.registers()
        ).pack()

    def _malformed(self, data: bytes, error: KeyMessageError) -> bytes | None:
        """KEY_PROG of another length is answered, as far as it can be read."""
        if data[:1] != bytes((ObjectId.KEY_PROG,)) or error.field != "length":
            return None
        padded = data.ljust(7, b"\0")
        return bytes((ObjectId.KP_ACK, 0, 0, padded[3], KeyStatus.INCORRECT_LENGTH, padded[5], padded[6]))

    def _program(self, session_id: int, asked: KeyMessage) -> KeyStatus:
        found = self._ports.get(asked.port_index)
        if found is None:
            return KeyStatus.UNSUPPORTED_PORT_INDEX
        stream, sub_stream = found[1].streams.get(asked.stream_id), sub_stream_of(asked.slot)
        if stream is None or sub_stream is None or asked.initial != FIRST_INVOCATION:
            return KeyStatus.UNSUPPORTED_VALUE
        place = asked.port_index, asked.stream_id
        if self._belongs_to_another(place, session_id, stream):
            return KeyStatus.UNSPECIFIED_FAILURE
        try:
            stream.program(asked.slot.key_set, asked.slot.direction, sub_stream, asked.key, asked.initial)
        except IdeError:
            return KeyStatus.UNSUPPORTED_VALUE
        self.programmed_by[place] = session_id
        return KeyStatus.SUCCESS

    def _belongs_to_another(self, place: tuple[int, int], session_id: int, stream: IdeStream) -> bool:
        owner = self.programmed_by.get(place)
        return owner not in (None, session_id) and stream.has_any_key()

    def _start_or_stop(self, session_id: int, asked: KeyMessage) -> bool:
        found = self._ports.get(asked.port_index)
        stream = None if found is None else found[1].streams.get(asked.stream_id)
        sub_stream = sub_stream_of(asked.slot)
        place = asked.port_index, asked.stream_id
        if stream is None or sub_stream is None or self.programmed_by.get(place) != session_id:
            return False
        if asked.object_id is ObjectId.K_SET_STOP:
            stream.stop(asked.slot.key_set, asked.slot.direction, sub_stream)
            return True
        try:
            stream.go(asked.slot.key_set, asked.slot.direction, sub_stream)
        except IdeError:
            return False
        return True

    @staticmethod
    def _reply(asked: KeyMessage, object_id: ObjectId, status: int = 0) -> bytes:
        return KeyMessage(object_id, asked.stream_id, asked.slot, asked.port_index, status).pack()
