"""Bytes that DMTF's programs put on the wire (the opening of a connection, opaque data), and what a layout refuses."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tio.doe import parse_data_object
from tio.spdm import identity_messages, session_messages
from tio.spdm.binding import MCTP, PCI_DOE, TCP, Packet
from tio.spdm.capabilities import Capabilities, Capability, GetCapabilities
from tio.spdm.codes import Version
from tio.spdm.connection_messages import GetVersion, VersionList
from tio.spdm.faults import MalformedMessage
from tio.spdm.message_layout import Message, Shape
from tio.spdm.negotiation import Algorithms, NegotiateAlgorithms, parse_tables
from tio.spdm.opaque_data import choose_version, parse_selection, selected_version, supported_versions

REQUEST = bytes.fromhex("12e1000000000000c6f702000012000000800200")
RESPONSE = bytes.fromhex("1261000000000000f7fb1a000012000000800200")
OFFER = bytes.fromhex("12e30400300001028000000002000000" + "00" * 16 + "022010000320020004200f0005200100")
CHOICE = bytes.fromhex("1263040034000102080000008000000002000000" + "00" * 16 + "02201000032002000420080005200100")


def test_the_opening_is_as_on_the_wire():
    assert PCI_DOE.wrap(Packet(GetVersion().pack(Version.V1_0))).hex() == "010001000300000010840000"
    assert VersionList.of((Version.V1_2,)).pack(Version.V1_0).hex() == "1004000000010012"
    assert TCP.wrap(Packet(GetVersion().pack(Version.V1_0))).hex() == "0600010510840000"
    assert MCTP.wrap(Packet(GetVersion().pack(Version.V1_0))).hex() == "0510840000"


def test_capabilities_are_as_on_the_wire():
    asked, answered = GetCapabilities.parse(REQUEST), Capabilities.parse(RESPONSE)
    assert (asked.flags, asked.data_transfer_bytes, asked.max_message_bytes) == (0x2F7C6, 0x1200, 0x28000)
    assert Capability.CHUNK in asked.capabilities
    assert asked.acceptable
    assert answered.acceptable
    assert (asked.pack(0x12), answered.pack(0x12)) == (REQUEST, RESPONSE)


def test_algorithms_are_as_on_the_wire():
    offer, choice = NegotiateAlgorithms.parse(OFFER), Algorithms.parse(CHOICE)
    assert (offer.base_asym, offer.base_hash, offer.other_parameters) == (0x80, 0x02, 0x02)
    assert parse_tables(offer.tables) == {2: 0x10, 3: 0x02, 4: 0x0F, 5: 0x01}
    assert choice.measurement_hash == 0x08  # the responder's own choice: SHA-512
    assert parse_tables(choice.tables) == {2: 0x10, 3: 0x02, 4: 0x08, 5: 0x01}
    assert (offer.pack(0x12), choice.pack(0x12)) == (OFFER, CHOICE)


def test_opaque_data_are_as_on_the_wire():
    assert supported_versions().hex() == "0100000000000900010103001000110012000000"
    assert selected_version(0x1200).hex() == "010000000000040001000012"
    assert choose_version(supported_versions()) == 0x1200
    assert parse_selection(selected_version(0x1100)) == 0x1100


@pytest.mark.parametrize(
    ("message", "size"),
    [
        (identity_messages.Challenge(nonce=bytes(32)), 36),
        (identity_messages.Challenge(nonce=bytes(32), context=bytes(8)), 44),
        (identity_messages.GetMeasurements(nonce=bytes(32), slot=b"\0"), 37),
        (identity_messages.GetMeasurements(context=bytes(8)), 12),
        (identity_messages.GetMeasurements(nonce=bytes(32), slot=b"\0", context=bytes(8)), 45),
        (session_messages.KeyExchange(random=bytes(32), exchange_data=bytes(96), opaque=bytes(20)), 158),
        (session_messages.Heartbeat(), 4),
    ],
)
def test_messages_have_the_sizes_of_the_standard(message, size):
    assert len(message.pack(Version.V1_2)) == size


LAYOUTS = [
    layout
    for module in (identity_messages, session_messages)
    for layout in vars(module).values()
    if isinstance(layout, type) and issubclass(layout, Message) and layout is not Message
]
SHAPE = Shape(48, 48, 96, 96, 48, 32, 1, 8)


@settings(max_examples=25, deadline=None)
@given(data=st.binary(min_size=4, max_size=700), layout=st.sampled_from(LAYOUTS))
def test_any_bytes_are_a_message_or_are_refused_with_the_name_of_a_field(data, layout):
    try:
        parsed = layout.parse(data, SHAPE, padding=3)
    except MalformedMessage as refusal:
        assert layout.__name__ in refusal.field
    else:
        assert parsed.wire == data[: len(parsed.wire)]
        assert len(data) - len(parsed.wire) <= 3
        again = layout.parse(parsed.pack(data[0]), SHAPE, padding=0)
        assert again == parsed


@settings(max_examples=25, deadline=None)
@given(data=st.binary(max_size=80))
def test_any_bytes_are_opaque_data_or_refused(data):
    for parse in (choose_version, parse_selection):
        try:
            found = parse(data)
        except MalformedMessage:
            continue
        assert found is None or found & 0xF000 == 0x1000


@settings(max_examples=25, deadline=None)
@given(data=st.binary(max_size=40), binding=st.sampled_from([PCI_DOE, MCTP, TCP]))
def test_any_bytes_are_a_packet_or_refused(data, binding):
    try:
        packet = binding.unwrap(data)
    except MalformedMessage:
        return
    assert binding.wrap(packet)[: len(data)] == data or binding is PCI_DOE
    if binding is PCI_DOE:
        assert parse_data_object(data).payload == packet.payload
