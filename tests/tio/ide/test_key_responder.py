"""IDE_KM: which keys a device takes, from whom, and what it answers to the rest."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tio.ide import (
    Direction,
    IdePort,
    IdeStream,
    KeyMessage,
    KeyResponder,
    KeyStatus,
    ObjectId,
    PortRegisters,
    StreamState,
    SubStream,
)
from tio.ide.capability import IdeCapability
from tio.ide.key_messages import KeyMessageError, KeySlot, parse_key_message, parse_query_response, query

SESSION, STREAM, PORT = 11, 3, 1
SLOTS = [KeySlot(0, way, sub) for way in Direction for sub in SubStream]


def responder() -> tuple[KeyResponder, IdeStream]:
    port = IdePort()
    capability = IdeCapability(port)
    capability.set_up(0, STREAM)
    place = PortRegisters(0x08, 0x21, 1, capability.dump)
    return KeyResponder({0: (PortRegisters(), IdePort()), PORT: (place, port)}), port.streams[STREAM]


def message(object_id: ObjectId, slot: KeySlot = SLOTS[0], **fields: int) -> bytes:
    """A message for the stream; KEY_PROG with a key."""
    values = {"stream_id": STREAM, "port_index": PORT, "initial": 1, **fields}
    key = hashlib.sha256(repr(slot).encode()).digest() if object_id is ObjectId.KEY_PROG else b""
    return KeyMessage(object_id, values["stream_id"], slot, values["port_index"], 0, key, values["initial"]).pack()


def status(answer: bytes | None) -> int:
    assert answer is not None
    return parse_key_message(answer).status


def program_all(device: KeyResponder, session: int = SESSION) -> None:
    for slot in SLOTS:
        assert status(device.answer(session, message(ObjectId.KEY_PROG, slot))) == KeyStatus.SUCCESS


def test_key_prog_as_it_lies_on_the_wire() -> None:
    """Object, two reserved bytes, stream, reserved, key and sub-stream, port; the key's first byte last; IFV."""
    key = bytes(range(32))
    wire = KeyMessage(ObjectId.KEY_PROG, 3, KeySlot(1, Direction.TX, 2), 1, 0, key, 1).pack()
    assert wire == bytes.fromhex("02 0000 03 00 23 01") + bytes(range(31, -1, -1)) + bytes.fromhex("0000000001000000")
    assert parse_key_message(wire).key == key


def test_lengths_are_those_seen_on_the_wire() -> None:
    """SPDM's vendor-defined header of 12 bytes before them: 15, 59, 19 and 19."""
    kp_ack = KeyMessage(ObjectId.KP_ACK, 3, SLOTS[0], 1).pack()
    lengths = [len(one) for one in (query(1), message(ObjectId.KEY_PROG), message(ObjectId.K_SET_GO), kp_ack)]
    assert [12 + length for length in lengths] == [15, 59, 19, 19]


def test_a_stream_comes_up_when_its_keys_are_programmed_and_started_and_it_is_enabled() -> None:
    device, stream = responder()
    program_all(device)
    assert device.complete_for(SESSION, PORT, STREAM)
    for slot in SLOTS:
        answer = device.answer(SESSION, message(ObjectId.K_SET_GO, slot))
        assert answer is not None
        assert parse_key_message(answer).object_id is ObjectId.K_GOSTOP_ACK
    assert stream.state is StreamState.INSECURE
    stream.enable()
    assert stream.state is StreamState.SECURE
    device.answer(SESSION, message(ObjectId.K_SET_STOP))
    assert stream.state is StreamState.INSECURE
    assert not device.complete_for(SESSION, PORT, STREAM)


@pytest.mark.parametrize("missing", range(6))
def test_a_stream_with_a_key_missing_is_not_complete(missing: int) -> None:
    device, _ = responder()
    for slot in SLOTS[:missing] + SLOTS[missing + 1 :]:
        device.answer(SESSION, message(ObjectId.KEY_PROG, slot))
    assert not device.complete_for(SESSION, PORT, STREAM)


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (message(ObjectId.KEY_PROG, port_index=2), KeyStatus.UNSUPPORTED_PORT_INDEX),
        (message(ObjectId.KEY_PROG, stream_id=4), KeyStatus.UNSUPPORTED_VALUE),
        *[
            (message(ObjectId.KEY_PROG, KeySlot(0, Direction.RX, sub)), KeyStatus.UNSUPPORTED_VALUE)
            for sub in range(3, 16)
        ],
        (message(ObjectId.KEY_PROG, initial=0), KeyStatus.UNSUPPORTED_VALUE),
        (message(ObjectId.KEY_PROG, initial=2), KeyStatus.UNSUPPORTED_VALUE),
        (message(ObjectId.KEY_PROG)[:-1], KeyStatus.INCORRECT_LENGTH),
        (message(ObjectId.KEY_PROG) + b"\0", KeyStatus.INCORRECT_LENGTH),
        (bytes((ObjectId.KEY_PROG,)), KeyStatus.INCORRECT_LENGTH),
    ],
)
def test_a_key_that_cannot_be_is_refused_and_nothing_changes(asked: bytes, answer: KeyStatus) -> None:
    device, stream = responder()
    assert status(device.answer(SESSION, asked)) == answer
    assert not stream.has_any_key()
    assert device.programmed_by == {}


def test_another_session_neither_replaces_nor_starts_nor_stops_keys() -> None:
    """It is answered, and gains nothing; the first session's stream goes on."""
    device, stream = responder()
    program_all(device)
    for slot in SLOTS:
        device.answer(SESSION, message(ObjectId.K_SET_GO, slot))
    stream.enable()
    for slot in SLOTS:
        assert status(device.answer(SESSION + 1, message(ObjectId.KEY_PROG, slot))) == KeyStatus.UNSPECIFIED_FAILURE
        assert device.answer(SESSION + 1, message(ObjectId.K_SET_STOP, slot)) is None
        assert device.answer(SESSION + 1, message(ObjectId.K_SET_GO, slot)) is None
    assert stream.state is StreamState.SECURE
    assert device.complete_for(SESSION, PORT, STREAM)
    assert not device.complete_for(SESSION + 1, PORT, STREAM)
    device.end_session(SESSION)
    assert stream.state is StreamState.INSECURE
    program_all(device, SESSION + 1)


def test_a_query_tells_where_a_port_is_and_what_streams_it_has() -> None:
    device, stream = responder()
    answer = device.answer(SESSION, query(PORT))
    assert answer is not None
    found = parse_query_response(answer)
    assert (found.port_index, found.max_port_index) == (1, 1)
    assert (found.device_function, found.bus, found.segment) == (8, 0x21, 1)
    assert found.registers[0] & 0xFFFF == 0x30
    assert [word >> 24 for word in found.registers[4:5]] == [STREAM]
    assert device.answer(SESSION, query(9)) is None
    assert stream.state is StreamState.INSECURE


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=64))
def test_any_bytes_are_answered_or_ignored(data: bytes) -> None:
    device, _ = responder()
    answer = device.answer(SESSION, data)
    if answer is not None and data[:1] != b"\0":
        assert parse_key_message(answer).object_id in (ObjectId.KP_ACK, ObjectId.K_GOSTOP_ACK)
    try:
        assert parse_key_message(data).pack()[0] == data[0]
    except KeyMessageError as error:
        assert error.field in ("object id", "length")
