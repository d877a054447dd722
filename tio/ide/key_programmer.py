"""The other side of IDE_KM: whoever holds the session asks for a port, gives a stream its keys, and starts them.

Each step yields a message and is sent its answer, so that somebody else may carry them. Source: PCI Express base
specification, 6.33.3.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping

from tio.ide.key_messages import (
    KeyMessage,
    KeyMessageError,
    KeySlot,
    KeyStatus,
    ObjectId,
    QueryResponse,
    parse_key_message,
    parse_query_response,
    query,
)
from tio.ide.keys import FIRST_INVOCATION, KEY_BYTES, Direction
from tio.ide.tlp import SubStream

Exchange = Generator[bytes, bytes, None]
Keys = Mapping[tuple[Direction, SubStream], bytes]
"""Of one key set, by direction as the device sees it."""


class KeyProgrammingError(Exception):
    """A device did not do what it was asked; names the message and its answer."""


def draw_keys(draw: Callable[[int], bytes]) -> dict[tuple[Direction, SubStream], bytes]:
    """Six keys from a source of random bytes."""
    return {(way, sub): draw(KEY_BYTES) for way in Direction for sub in SubStream}


def ask_for_port(port_index: int) -> Generator[bytes, bytes, QueryResponse]:
    """QUERY. Raises KeyProgrammingError for an answer that is none, or of another port."""
    answer = yield query(port_index)
    try:
        found = parse_query_response(answer)
    except KeyMessageError as error:
        raise KeyProgrammingError(str(error)) from None
    if found.port_index != port_index:
        raise KeyProgrammingError(f"expected port {port_index}, found {found.port_index}")
    return found


def program_keys(port_index: int, stream_id: int, key_set: int, keys: Keys) -> Exchange:
    """KEY_PROG for each sub-stream, receiving first. Raises KeyProgrammingError."""
    for slot in _slots(key_set):
        key = keys[slot.direction, SubStream(slot.sub_stream)]
        asked = KeyMessage(ObjectId.KEY_PROG, stream_id, slot, port_index, 0, key, FIRST_INVOCATION)
        yield from _exchange(asked, ObjectId.KP_ACK)


def start_keys(port_index: int, stream_id: int, key_set: int) -> Exchange:
    """K_SET_GO for each sub-stream, receiving first, so that nothing is sent that nobody can open."""
    for slot in _slots(key_set):
        yield from _exchange(KeyMessage(ObjectId.K_SET_GO, stream_id, slot, port_index), ObjectId.K_GOSTOP_ACK)


def stop_keys(port_index: int, stream_id: int, key_set: int) -> Exchange:
    """K_SET_STOP for each sub-stream."""
    for slot in _slots(key_set):
        yield from _exchange(KeyMessage(ObjectId.K_SET_STOP, stream_id, slot, port_index), ObjectId.K_GOSTOP_ACK)


def _slots(key_set: int) -> Iterator[KeySlot]:
    for direction in (Direction.RX, Direction.TX):
        for sub_stream in SubStream:
            yield KeySlot(key_set, direction, sub_stream)


def _exchange(asked: KeyMessage, expected: ObjectId) -> Exchange:
    answer = yield asked.pack()
    try:
        found = parse_key_message(answer)
    except KeyMessageError as error:
        raise KeyProgrammingError(f"{asked.object_id.name}: {error}") from None
    same = (found.stream_id, found.slot, found.port_index) == (asked.stream_id, asked.slot, asked.port_index)
    if found.object_id is not expected or not same or found.status != KeyStatus.SUCCESS:
        raise KeyProgrammingError(f"{asked.object_id.name} of {asked.slot}: answered by {found}")
