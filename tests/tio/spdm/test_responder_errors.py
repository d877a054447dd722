"""Every malformed or misplaced request gets the standard's error, in the version it must have, and changes nothing."""

import hashlib
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from spdm_device import EVERYTHING, REQUESTER, Line, chain_of, personality

from tio.spdm import (
    MCTP,
    PCI_DOE,
    Capability,
    ErrorCode,
    Offer,
    Packet,
    PeerRefused,
    PeerUntrusted,
    RequesterSettings,
    ResponderSettings,
    Version,
)
from tio.spdm.algorithms import BaseAsym
from tio.spdm.codes import Response
from tio.spdm.session_messages import EndSession, Finish, Heartbeat, KeyUpdate

IR, UR, UN = ErrorCode.INVALID_REQUEST, ErrorCode.UNEXPECTED_REQUEST, ErrorCode.UNSUPPORTED_REQUEST
VM, SR, DE = ErrorCode.VERSION_MISMATCH, ErrorCode.SESSION_REQUIRED, ErrorCode.DECRYPT_ERROR
CAPABILITIES = "12e1000000000000c6f702000012000000800200"
MEASUREMENTS = "12e000ff"
CHALLENGE = "1283{slot:02x}{kind:02x}" + "00" * 32


def line_of(binding=PCI_DOE, **device):
    """A line of SPDM 1.2."""
    requester = RequesterSettings(versions=(Version.V1_2,), capabilities=REQUESTER)
    return Line(binding, requester, ResponderSettings(capabilities=EVERYTHING & ~Capability.PSK_WITH_CONTEXT, **device))


def plain(line, request):
    """What the device answers to bytes outside of sessions."""
    return line.responder.answer(Packet(request)).payload


def whole(line):
    """The line with a session."""
    line.connected()
    line.do(line.requester.challenge())
    return line.do(line.requester.open_session())


def refusal(answer):
    assert answer[1] == Response.ERROR
    return ErrorCode(answer[2])


@pytest.mark.parametrize(
    ("request_hex", "expected", "version"),
    [
        ("", IR, 0x10),
        ("10", IR, 0x10),
        ("108400", IR, 0x10),
        ("12840000", VM, 0x10),
        ("12810000", UR, 0x10),
        ("10810000", UR, 0x10),
        ("10e40000", UR, 0x10),
        ("10ff0000", UR, 0x10),
        ("10000000", UN, 0x10),
        ("10ea0000", UN, 0x10),
    ],
)
def test_before_a_version_is_agreed_on_nothing_else_is_answered(request_hex, expected, version):
    both = line_of(MCTP)
    answer = plain(both, bytes.fromhex(request_hex))
    assert (refusal(answer), answer[0]) == (expected, version)


@pytest.mark.parametrize(
    ("request_hex", "expected"),
    [
        ("14" + CAPABILITIES[2:], VM),
        ("11e1000000000000c6f70200", VM),
        (CAPABILITIES[:-2], IR),
        (CAPABILITIES + "00", IR),
        # flags that do not go together, sizes that cannot be, a time that nobody waits
        ("12e1000000000000" + "06000200" + "2900000000800200", IR),
        ("12e1000000000000" + "06020200" + "0012000000800200", IR),
        ("12e1000000000000" + "46f50000" + "0012000000120000", IR),
        ("12e1000000000000" + "c6f70200" + "0012000000110000", IR),
        ("12e1000000000000" + "c6f70000" + "0012000001120000", IR),
        ("12e10000002000" + "00c6f70200" + "0012000000800200", IR),
        ("12e30000", VM),
    ],
)
def test_capabilities_that_make_no_sense_are_refused_and_may_be_said_anew(request_hex, expected):
    both = line_of(MCTP)
    plain(both, bytes.fromhex("10840000"))
    assert refusal(plain(both, bytes.fromhex(request_hex))) == expected
    assert plain(both, bytes.fromhex(CAPABILITIES))[1] == Response.CAPABILITIES


def test_set_up_is_repeated_word_for_word_or_not_at_all():
    both = line_of(MCTP)
    plain(both, bytes.fromhex("10840000"))
    asked = bytes.fromhex(CAPABILITIES)
    answer = plain(both, asked)
    before = both.responder.connection.transcript.vca
    assert plain(both, asked) == answer
    assert refusal(plain(both, asked[:3] + b"\x01" + asked[4:])) is UR
    assert both.responder.connection.transcript.vca == before


@pytest.mark.parametrize(
    "tables",
    ["02200000", "0220100002201000", "0320020002201000", "01200100", "06200100", "02211000", "0200ffff"],
)
def test_tables_of_algorithms_rise_have_one_bitmap_and_a_bit_in_it(tables):
    both = line_of(MCTP)
    plain(both, bytes.fromhex("10840000"))
    plain(both, bytes.fromhex(CAPABILITIES))
    raw = bytes.fromhex(tables)
    head = bytes((0x12, 0xE3, len(raw) // 4, 0)) + (32 + len(raw)).to_bytes(2, "little")
    body = bytes.fromhex("01028000000002000000") + bytes(16)
    assert refusal(plain(both, head + body + raw)) is IR
    good = bytes.fromhex("0220100003200200" + "05200100")
    head = bytes((0x12, 0xE3, 3, 0)) + (32 + len(good)).to_bytes(2, "little")
    assert plain(both, head + body + good)[1] == Response.ALGORITHMS


NEGOTIATED = [
    ("13810000", VM),
    ("11810000", VM),
    ("128100", IR),
    ("1281000000", IR),
    ("12ea0000", UN),
    ("12ef0000", UN),
    ("12850000", UN),
    ("12e60000" + "00" * 8, UN),
    ("12810000" * 2, IR),
    ("12820100" + "0000ffff", IR),
    ("12820800" + "0000ffff", IR),
    ("12820000" + "ffffffff", IR),
    ("12820000" + "00000000", IR),
    ("12820000", IR),
    (CHALLENGE.format(slot=0, kind=2), IR),
    (CHALLENGE.format(slot=0, kind=0xFE), IR),
    (CHALLENGE.format(slot=1, kind=0), IR),
    (CHALLENGE.format(slot=0xFF, kind=0), IR),
    (CHALLENGE.format(slot=0, kind=0)[:-2], IR),
    ("12e00077", IR),
    ("12e001ff", IR),
    ("12e001ff" + "00" * 32 + "01", IR),
    ("12e001ff" + "00" * 32 + "ff", IR),
    ("12e400000000", IR),
    ("12e50000" + "00" * 48, SR),
    ("12e80000", SR),
    ("12e90100", SR),
    ("12ec0000", SR),
    ("12e70000" + "00" * 48, UN),
    ("12ff8301", UR),
    ("12fe0000" + "0300" + "02" + "0100" + "0000", UN),
    ("12fe0000" + "0300" + "02" + "0100" + "ffff", IR),
    ("12e10000" + CAPABILITIES[8:-2] + "01", UR),
]


@pytest.fixture(scope="module")
def negotiated():
    both = line_of(MCTP)
    return both.connected()


@pytest.mark.parametrize(("request_hex", "expected"), NEGOTIATED)
def test_a_request_that_is_wrong_is_refused_and_the_challenge_still_holds(negotiated, request_hex, expected):
    both = negotiated
    answer = plain(both, bytes.fromhex(request_hex))
    assert (refusal(answer), answer[0]) == (expected, Version.V1_2)
    if expected is UN:
        assert answer[3] == int(request_hex[2:4], 16)
    assert not both.responder.connection.sessions


def test_after_all_that_the_device_still_proves_itself(negotiated):
    both = negotiated
    both.do(both.requester.digests())
    both.do(both.requester.certificates())
    both.do(both.requester.challenge())


def test_points_off_the_curve_and_opaque_data_of_nobody_make_no_session(negotiated):
    both = negotiated
    both.packets.clear()
    both.do(both.requester.open_session())
    request = both.packets[0][1].payload
    for at in (8, 40, 41, 136, 138, 142, 143, 144, 146, 147, 148):
        answer = plain(both, request[:at] + bytes((request[at] ^ 0x55,)) + request[at + 1 :])
        # ReqRandom at 8 is anybody's; everything else must be as it is.
        assert answer[1] == (Response.KEY_EXCHANGE_RSP if at == 8 else Response.ERROR)
        both.responder.connection.sessions.clear()


def in_session():
    """A pair, its session, and what that answers to a message."""
    both = line_of()
    session = whole(both)
    return both, session, lambda message: _ask(both, session, message)


def _ask(both, session, message):
    sealed = Packet(session.requests.seal(session.session_id, message), secured=True)
    answer = both.responder.answer(sealed)
    assert answer.secured
    return session.responses.open(answer.payload)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("10840000", UR),
        ("12830000" + "00" * 32, UR),
        ("12e40000" + "00" * 150, UR),
        ("12e50000" + "00" * 48, UR),
        ("13e80000", VM),
        ("11e80000", VM),
        ("12e8000000", IR),
        ("12e90000", IR),
        ("12e90400", IR),
        ("12e90301", IR),
        ("12ec000000", IR),
        ("12e3", IR),
        ("12ed0000", UN),
    ],
)
def test_what_does_not_belong_into_a_session_is_refused_inside_of_it(message, expected):
    both, session, ask = in_session()
    assert refusal(ask(bytes.fromhex(message))) == expected
    assert ask(Heartbeat().pack(0x12))[1] == Response.HEARTBEAT_ACK
    assert session.session_id in both.responder.connection.sessions


def test_between_a_new_key_and_its_proof_nothing_else_goes():
    both, session, ask = in_session()
    assert ask(KeyUpdate(operation=1, tag=1).pack(0x12))[1] == Response.KEY_UPDATE_ACK
    session.requests = session.requests.rekeyed
    assert refusal(ask(Heartbeat().pack(0x12))) is UR
    assert refusal(ask(KeyUpdate(operation=2, tag=1).pack(0x12))) is IR
    assert ask(KeyUpdate(operation=3, tag=2).pack(0x12))[1] == Response.KEY_UPDATE_ACK
    assert ask(EndSession().pack(0x12))[1] == Response.END_SESSION_ACK
    assert not both.responder.connection.sessions


@pytest.mark.parametrize("spoil", range(0, 26, 5))
def test_a_forged_record_ends_its_session_and_no_other(spoil):
    both = line_of()
    session = whole(both)
    other = both.do(both.requester.open_session())
    record = session.requests.seal(session.session_id, Heartbeat().pack(0x12))
    bad = record[:spoil] + bytes((record[spoil] ^ 1,)) + record[spoil + 1 :]
    answer = both.responder.answer(Packet(bad, secured=True))
    assert refusal(answer.payload) is DE
    live = both.responder.connection.sessions
    if spoil >= 4:
        assert set(live) == {other.session_id}
    else:
        assert set(live) == {other.session_id, session.session_id}
    both.do(both.requester.update_keys(other))


@pytest.mark.parametrize("clear", [False, True])
def test_a_finish_that_proves_nothing_ends_the_handshake(clear, monkeypatch):
    flags = Capability.HANDSHAKE_IN_THE_CLEAR if clear else Capability(0)
    requester = RequesterSettings(versions=(Version.V1_2,), capabilities=REQUESTER | flags)
    both = Line(PCI_DOE, requester, ResponderSettings(capabilities=EVERYTHING | flags)).connected()
    monkeypatch.setattr("tio.spdm.session.Session.requester_proof", lambda _session, digest: bytes(len(digest)))
    steps = both.requester.open_session()
    asked = steps.send(both.carry(next(steps)))
    monkeypatch.undo()
    answer = both.carry(asked)
    with pytest.raises(PeerRefused, match="DECRYPT_ERROR"):
        steps.send(answer)
    assert not both.responder.connection.sessions
    if clear:
        assert refusal(plain(both, Finish(verify_data=bytes(64)).pack(0x12))) in {SR, UR}


def test_in_a_handshake_only_finish_is_expected():
    both = line_of().connected()
    steps = both.requester.open_session()
    steps.send(both.carry(next(steps)))
    (session,) = both.responder.connection.sessions.values()
    for message in (Heartbeat(), EndSession(), KeyUpdate(operation=1)):
        sealed = session.requests.seal(session.session_id, message.pack(0x12))
        session.requests.sequence -= 1
        answer = both.responder.answer(Packet(sealed, secured=True))
        session.responses.sequence -= 1
        assert refusal(session.responses.open(answer.payload)) is UR


def test_get_version_ends_all_sessions():
    both = line_of()
    whole(both)
    assert both.responder.connection.sessions
    plain(both, bytes.fromhex("10840000"))
    assert not both.responder.connection.sessions


def test_an_error_begins_the_log_of_measurements_anew():
    both = line_of().connected()
    both.do(both.requester.measurements(1))
    with pytest.raises(PeerRefused):
        both.do(both.requester.measurements(0x77))
    both.do(both.requester.measurements(1, slot=0))


@pytest.mark.parametrize(
    ("before", "skip", "covered"),
    [
        (None, None, True),
        (None, "measurements", False),
        (None, "open_session", False),
        ("challenge", "measurements", True),
    ],
)
def test_a_challenge_covers_certificates_unless_one_went_on_without_it(before, skip, covered):
    """What is signed is put together here, from the bytes that went over the line (DSP0274, 10.8)."""
    both = line_of().connected()
    if before:
        both.do(getattr(both.requester, before)())
        both.do(both.requester.digests())
        both.do(both.requester.certificates())
    if skip:
        both.do(getattr(both.requester, skip)())
    both.do(both.requester.challenge())
    messages = [packet.payload for _, packet in both.packets if not packet.secured]
    last_digests = max(at for at, one in enumerate(messages) if one[1] == 0x81)
    identity = [one for one in messages[last_digests:] if one[1] in {0x81, 0x01, 0x82, 0x02}]
    answer = messages[-1]
    signed = b"".join([*messages[:6], *(identity if covered else []), messages[-2], answer[: -2 * 48]])
    prefix = b"dmtf-spdm-v1.2.*" * 4 + bytes(4) + b"responder-challenge_auth signing"
    digest = both.requester.algorithms.hash.value.digest_name
    r, s = (int.from_bytes(part, "big") for part in (answer[-96:-48], answer[-48:]))
    key = x509.load_der_x509_certificate(chain_of(BaseAsym.ECDSA_P384)[-1]).public_key()
    scheme = ec.ECDSA(both.requester.algorithms.hash.value.primitive())
    key.verify(encode_dss_signature(r, s), prefix + hashlib.new(digest, signed).digest(), scheme)


def test_a_second_slot_opens_sessions_too():
    """SlotIDParam of the answer is of the requester's certificates, of which there are none."""
    one = personality()
    both = Line(device=replace(one, slots={0: one.slots[0], 1: one.slots[0]})).connected()
    both.do(both.requester.certificates(1))
    both.packets.clear()
    both.do(both.requester.open_session(slot=1))
    assert both.packets[1][1].payload[6:8] == bytes(2)


def test_a_device_cannot_make_a_requester_wait_for_minutes():
    both = line_of().connected()
    never = Packet(bytes((0x12, Response.ERROR, ErrorCode.RESPONSE_NOT_READY, 0, 31, 0x83, 1, 255)))
    both.between = lambda _number, way, packet: packet if way == "asked" else never
    with pytest.raises(PeerUntrusted, match="within seconds"):
        both.do(both.requester.challenge())


CHUNKED = EVERYTHING | Capability.CHUNK


def chunk(sequence, size, data, *, last=False, handle=7, whole=None):
    head = bytes((0x12, 0x85, last, handle)) + sequence.to_bytes(2, "little") + bytes(2) + size.to_bytes(4, "little")
    return head + (b"" if whole is None else whole.to_bytes(4, "little")) + data


@pytest.mark.parametrize(
    "chunks",
    [
        [chunk(0, 4, bytes(4), whole=0)],
        [chunk(0, 4, bytes(4), whole=1 << 20)],
        [chunk(0, 4, bytes(4), whole=3)],
        [chunk(0, 4, bytes(4), whole=4)],
        [chunk(0, 4, bytes(4), whole=8, last=True)],
        [chunk(0, 0, b"", whole=8)],
        [chunk(0, 9, bytes(4), whole=8)],
        [chunk(0, 4, bytes(4), whole=8), chunk(2, 4, bytes(4), last=True)],
        [chunk(0, 4, bytes(4), whole=8), chunk(1, 4, bytes(4), last=True, handle=8)],
        [chunk(0, 4, bytes(4), whole=8), chunk(1, 5, bytes(5), last=True)],
        [chunk(0, 4, bytes(4), whole=8), chunk(1, 4, bytes(4))],
    ],
)
def test_a_chunk_that_does_not_fit_is_an_early_error_and_the_message_is_forgotten(chunks):
    settings = ResponderSettings(capabilities=CHUNKED, max_message_bytes=0x4000)
    requester = RequesterSettings(versions=(Version.V1_2,), capabilities=REQUESTER | Capability.CHUNK)
    both = Line(MCTP, requester, settings).connected()
    *good, bad = chunks
    for one in good:
        assert plain(both, one)[:4] == bytes((0x12, Response.CHUNK_SEND_ACK, 0, 7))
    answer = plain(both, bad)
    assert answer[:6] == bytes((0x12, Response.CHUNK_SEND_ACK, 1)) + bad[3:6]
    assert refusal(answer[6:]) is IR
    assert refusal(plain(both, chunk(1, 4, bytes(4), last=True))) is UR
    both.do(both.requester.challenge())


@pytest.mark.parametrize("asym", [BaseAsym.ECDSA_P256, BaseAsym.RSASSA_3072, BaseAsym.ED25519])
def test_a_signature_that_no_key_of_the_device_makes_is_not_agreed_on(asym):
    """Whatever its settings offer: otherwise the first signature would be the device's end."""
    both = Line(MCTP, RequesterSettings(offer=Offer(asym=(asym,)), capabilities=REQUESTER), ResponderSettings())
    with pytest.raises(PeerRefused, match="INVALID_REQUEST"):
        both.do(both.requester.connect())
