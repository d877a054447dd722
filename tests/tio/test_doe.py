"""DOE: the bytes that spdm-emu's requester and responder put on the wire, and hostile ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tio.doe import (
    MAX_PAYLOAD_BYTES,
    NO_PROTOCOL,
    PCI_SIG,
    DataObject,
    DiscoveryTable,
    DoeError,
    ObjectType,
    discovery_request,
    parse_data_object,
    parse_discovery_response,
)

EMULATOR = DiscoveryTable((ObjectType.CMA_SPDM, ObjectType.SECURED_CMA_SPDM))

CAPTURED_DISCOVERY = (
    ("01 00 00 00 03 00 00 00 00 00 00 00", "01 00 00 00 03 00 00 00 01 00 00 01"),
    ("01 00 00 00 03 00 00 00 01 00 00 00", "01 00 00 00 03 00 00 00 01 00 01 02"),
    ("01 00 00 00 03 00 00 00 02 00 00 00", "01 00 00 00 03 00 00 00 01 00 02 00"),
)


@pytest.mark.parametrize(("request_hex", "response_hex"), CAPTURED_DISCOVERY)
def test_discovery_answers_what_the_captured_responder_answered(request_hex, response_hex):
    answer = EMULATOR.answer(parse_data_object(bytes.fromhex(request_hex)))
    assert answer is not None
    assert answer.pack() == bytes.fromhex(response_hex)


def test_a_captured_spdm_request_parses_and_packs_to_its_own_bytes():
    captured = bytes.fromhex("01 00 01 00 03 00 00 00 10 84 00 00")
    parsed = parse_data_object(captured)
    assert (parsed.vendor_id, parsed.object_type, parsed.payload) == (PCI_SIG, 1, bytes.fromhex("10840000"))
    assert DataObject(PCI_SIG, ObjectType.CMA_SPDM, bytes.fromhex("10840000")).pack() == captured


def test_a_requester_that_follows_the_indices_sees_every_protocol_once():
    index, seen = 0, []
    while True:
        answer = EMULATOR.answer(discovery_request(index))
        assert answer is not None
        protocol, index = parse_discovery_response(parse_data_object(answer.pack()))
        seen.append((protocol.vendor_id, protocol.object_type))
        if index == 0:
            break
    assert seen == [(1, 0), (1, 1), (1, 2)]


def test_an_index_behind_the_last_protocol_names_no_vendor():
    answer = EMULATOR.answer(discovery_request(3))
    assert answer is not None
    protocol, following = parse_discovery_response(answer)
    assert (protocol.vendor_id, following) == (NO_PROTOCOL, 0)


def test_objects_that_are_no_discovery_request_get_no_answer():
    assert EMULATOR.answer(DataObject(PCI_SIG, ObjectType.CMA_SPDM, bytes(4))) is None
    assert EMULATOR.answer(DataObject(0x1E98, ObjectType.DISCOVERY, bytes(4))) is None
    assert EMULATOR.answer(DataObject(PCI_SIG, ObjectType.DISCOVERY, bytes(8))) is None


@pytest.mark.parametrize(("payload_bytes", "object_bytes"), [(0, 8), (1, 12), (0x25, 8 + 0x28), (230, 8 + 232)])
def test_payloads_are_padded_with_zeros_to_a_dword(payload_bytes, object_bytes):
    packed = DataObject(PCI_SIG, ObjectType.CMA_SPDM, b"\xff" * payload_bytes).pack()
    assert len(packed) == object_bytes
    assert parse_data_object(packed).payload == (b"\xff" * payload_bytes).ljust(object_bytes - 8, b"\0")


def test_the_longest_object_says_zero_and_comes_back_whole():
    packed = DataObject(PCI_SIG, ObjectType.CMA_SPDM, bytes(MAX_PAYLOAD_BYTES)).pack()
    assert len(packed) == 1 << 20
    assert packed[4:8] == bytes(4)
    assert len(parse_data_object(packed).payload) == MAX_PAYLOAD_BYTES
    with pytest.raises(ValueError, match="payload"):
        DataObject(PCI_SIG, ObjectType.CMA_SPDM, bytes(MAX_PAYLOAD_BYTES + 1)).pack()


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (bytes(7), "header"),
        (bytes.fromhex("0100010001000000"), "length"),
        (bytes.fromhex("0100010003000000"), "length"),
        (bytes.fromhex("010001000200000000000000"), "length"),
        (bytes.fromhex("0100010000000000"), "length"),
    ],
)
def test_a_wrong_length_is_named(data, field):
    with pytest.raises(DoeError) as error:
        parse_data_object(data)
    assert error.value.field == field


@given(st.binary(max_size=64))
def test_any_bytes_are_an_object_or_a_doe_error(data):
    try:
        parsed = parse_data_object(data)
    except DoeError:
        return
    assert len(parsed.payload) == len(data) - 8
    again = parse_data_object(parsed.pack())
    assert again == parsed
    EMULATOR.answer(parsed)


@given(st.binary(max_size=8), st.integers(0, 3), st.integers(0, 3))
def test_any_discovery_response_is_read_or_refused(payload, vendor, kind):
    try:
        parse_discovery_response(DataObject(vendor, kind, payload))
    except DoeError:
        return
    assert (vendor, kind, len(payload)) == (1, 0, 4)
