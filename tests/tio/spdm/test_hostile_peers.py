"""Whatever a requester sends, one answer comes; whatever a responder answers is believed or refused in a word."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from spdm_device import EVERYTHING, MEASUREMENTS, REQUESTER, Line, chain_of

from tio.spdm import (
    ErrorCode,
    Packet,
    RequesterSettings,
    ResponderSettings,
    SpdmFault,
    TrustAnchors,
    Version,
    session_messages,
)
from tio.spdm.algorithms import BaseAsym
from tio.spdm.codes import Request, Response
from tio.spdm.identity_messages import Challenge, GetMeasurements
from tio.spdm.session import Phase

KNOWN = {int(code) for code in Response}


def mutated(packet, rng):
    """A packet that is almost this one."""
    data = bytearray(packet.payload)
    for _ in range(rng.randint(1, 3)):
        match rng.randrange(4):
            case 0 if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
            case 1:
                del data[rng.randrange(len(data) + 1) :]
            case 2:
                at = rng.randrange(len(data) + 1)
                data[at:at] = rng.randbytes(rng.randrange(9))
            case _ if data:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return Packet(bytes(data), secured=packet.secured ^ (rng.random() < 0.05))


def attested(line):
    """All that a requester does to believe a device, and a session; the measurements it believes in."""
    one = line.connected().requester
    line.do(one.challenge())
    blocks = line.do(one.measurements(slot=0))
    session = line.do(one.open_session())
    line.do(one.update_keys(session, both=True))
    line.do(one.end_session(session))
    return blocks


def line_of():
    root = TrustAnchors(chain_of(BaseAsym.ECDSA_P384)[:1])
    return Line(requester=RequesterSettings(anchors=root, capabilities=REQUESTER))


@pytest.fixture(scope="module")
def asked():
    """What a requester sends for an attestation."""
    line = line_of()
    attested(line)
    return [packet for way, packet in line.packets if way == "asked"]


def test_a_responder_survives_mutated_messages_of_a_session(asked):
    """``sevfleet bench tio`` runs a million of these; here each place of the session gets a few."""
    rng = random.Random(2323)
    for stop, packet in enumerate(asked):
        for _ in range(3):
            responder = line_of().responder
            for before in asked[:stop]:
                responder.answer(before)
            for _ in range(10):
                answer = responder.answer(mutated(packet, rng))
                assert answer.secured or answer.payload[1] in KNOWN
                assert len(responder.connection.sessions) <= responder.connection.settings.most_sessions
            assert responder.answer(asked[0]).payload[1] == Response.VERSION


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 32), place=st.integers(0, 11))
def test_a_requester_believes_no_mutated_answer(asked, seed, place):
    rng = random.Random(seed)
    line = line_of()
    assert place < len(asked)

    def spoil(number, way, packet):
        if (number // 2, way) != (place, "answered"):
            return packet
        changed = mutated(packet, rng)
        return changed if changed != packet else Packet(b"", secured=packet.secured)

    line.between = spoil
    try:
        blocks = attested(line)
    except SpdmFault:
        return
    # What was changed counts for nothing: bits that a receiver ignores and that nobody signs.
    assert [block.index for block in blocks] == [one.index for one in MEASUREMENTS]
    assert line.requester.chains[0].certificates == chain_of(BaseAsym.ECDSA_P384)


def test_a_requester_does_not_ask_for_ever():
    line = line_of().connected()
    before = len(line.packets)
    busy = Packet(bytes((line.requester.version, Response.ERROR, ErrorCode.BUSY, 0)))
    line.between = lambda _number, way, packet: packet if way == "asked" else busy
    with pytest.raises(SpdmFault):
        line.do(line.requester.challenge())
    assert len(line.packets) - before < 50


class ResponderAutomaton(RuleBasedStateMachine):
    """Random walks of a requester, against what the standard says a responder must answer."""

    def __init__(self):
        super().__init__()
        settings = RequesterSettings(versions=(Version.V1_2,), capabilities=REQUESTER)
        self.both = Line(requester=settings, responder=ResponderSettings(capabilities=EVERYTHING, most_sessions=2))
        self.stage = 0
        self.sessions = {}

    def plain(self, request):
        return self.both.responder.answer(Packet(request)).payload

    def inside(self, session, message):
        record = session.requests.seal(session.session_id, message.pack(0x12))
        return session.responses.open(self.both.responder.answer(Packet(record, secured=True)).payload)

    def expect(self, answer, needed_stage, response, version=0x12):
        """A response from its stage on; before that the version is wrong, or the request comes too early."""
        if self.stage == 0:
            assert answer[:3] == bytes((0x10, Response.ERROR, ErrorCode.UNEXPECTED_REQUEST))
        elif self.stage < needed_stage:
            assert answer[:2] == bytes((version if self.stage > 1 else answer[0], Response.ERROR))
            assert answer[2] in {ErrorCode.UNEXPECTED_REQUEST, ErrorCode.VERSION_MISMATCH}
        else:
            assert answer[:2] == bytes((version, response))

    @rule()
    def get_version(self):
        assert self.plain(bytes.fromhex("10840000"))[1] == Response.VERSION
        self.stage, self.sessions = 1, {}

    @rule()
    def connect(self):
        self.both.do(self.both.requester.connect())
        self.stage, self.sessions = 3, {}

    @rule()
    def digests(self):
        self.expect(self.plain(bytes.fromhex("12810000")), 3, Response.DIGESTS)

    @rule()
    def certificate(self):
        self.expect(self.plain(bytes.fromhex("12820000000000ff")), 3, Response.CERTIFICATE)

    @rule(kind=st.sampled_from([0, 1, 0xFF]))
    def challenge(self, kind):
        request = Challenge(summary=kind, nonce=bytes(32)).pack(0x12)
        self.expect(self.plain(request), 3, Response.CHALLENGE_AUTH)

    @rule(signed=st.booleans(), raw=st.booleans(), operation=st.sampled_from([0, 1, 2, 0xFD, 0xFF]))
    def measurements(self, signed, raw, operation):
        nonce, slot = (bytes(32), b"\0") if signed else (b"", b"")
        request = GetMeasurements(attributes=signed | raw << 1, operation=operation, nonce=nonce, slot=slot)
        self.expect(self.plain(request.pack(0x12)), 3, Response.MEASUREMENTS)

    @precondition(lambda self: self.stage == 3)
    @rule()
    def open_session(self):
        self.both.do(self.both.requester.digests())
        self.both.do(self.both.requester.certificates())
        full = len(self.sessions) == 2
        try:
            session = self.both.do(self.both.requester.open_session())
        except SpdmFault as refusal:
            assert full
            assert "SESSION_LIMIT_EXCEEDED" in str(refusal)
        else:
            assert not full
            self.sessions[session.session_id] = (session, False)

    @precondition(lambda self: self.sessions)
    @rule(operation=st.integers(0, 4), choose=st.randoms(use_true_random=False))
    def key_update(self, operation, choose):
        number = choose.choice(sorted(self.sessions))
        session, pending = self.sessions[number]
        legal = operation == 3 if pending else operation in {1, 2}
        record = session.requests.seal(number, session_messages.KeyUpdate(operation=operation, tag=9).pack(0x12))
        if legal and operation == 2:
            session.responses = session.responses.rekeyed
        answer = session.responses.open(self.both.responder.answer(Packet(record, secured=True)).payload, 3)
        assert answer[1] == (Response.KEY_UPDATE_ACK if legal else Response.ERROR)
        if legal and operation != 3:
            session.requests = session.requests.rekeyed
        self.sessions[number] = (session, pending if not legal else operation != 3)

    @precondition(lambda self: self.sessions)
    @rule(choose=st.randoms(use_true_random=False), ends=st.booleans())
    def heartbeat_or_end(self, choose, ends):
        number = choose.choice(sorted(self.sessions))
        session, pending = self.sessions[number]
        message = session_messages.EndSession() if ends else session_messages.Heartbeat()
        answer = self.inside(session, message)
        if pending:
            assert answer[1:3] == bytes((Response.ERROR, ErrorCode.UNEXPECTED_REQUEST))
        else:
            assert answer[1] == (Response.END_SESSION_ACK if ends else Response.HEARTBEAT_ACK)
            if ends:
                del self.sessions[number]

    @precondition(lambda self: self.sessions)
    @rule(choose=st.randoms(use_true_random=False))
    def forge(self, choose):
        number = choose.choice(sorted(self.sessions))
        self.both.responder.answer(Packet(number.to_bytes(4, "little") + b"\x20\0" + bytes(32), secured=True))
        del self.sessions[number]

    @rule(code=st.sampled_from(sorted(Request)))
    def outside_of_sessions(self, code):
        if code in {Request.HEARTBEAT, Request.KEY_UPDATE, Request.END_SESSION, Request.FINISH}:
            answer = self.plain(bytes((0x12, code, 1, 0)))
            if self.stage == 3:
                assert answer[:3] == bytes((0x12, Response.ERROR, ErrorCode.SESSION_REQUIRED))

    @invariant()
    def the_same_sessions_live(self):
        assert set(self.both.responder.connection.sessions) == set(self.sessions)


TestResponderAutomaton = ResponderAutomaton.TestCase
TestResponderAutomaton.settings = settings(max_examples=20, stateful_step_count=40, deadline=None)


def test_one_bit_of_any_message_on_the_way_and_the_device_is_not_believed(asked):
    """Each message there and back, until a session: what a transcript covers nobody may touch (DSP0274, 10.8)."""
    session_at = next(number for number, packet in enumerate(asked) if packet.secured)
    for number in range(2 * session_at):
        line = line_of()

        def spoil(at, _way, packet, number=number):
            middle = max(2, len(packet.payload) // 2)
            data = bytearray(packet.payload)
            data[middle] ^= 0x10
            return Packet(bytes(data)) if at == number else packet

        line.between = spoil
        with pytest.raises(SpdmFault):
            attested(line)
        # Nothing of it is left but a handshake that nobody finished.
        assert all(one.phase is Phase.HANDSHAKE for one in line.responder.connection.sessions.values())


def test_a_record_of_another_session_answers_nothing():
    line = line_of().connected()
    first, second = (line.do(line.requester.open_session()) for _ in range(2))
    sealed = second.responses.seal(second.session_id, bytes((line.requester.version, Response.HEARTBEAT_ACK, 0, 0)))
    line.between = lambda _number, way, packet: packet if way == "asked" else Packet(sealed, secured=True)
    with pytest.raises(SpdmFault, match="another session"):
        line.do(line.requester.heartbeat(first))


def test_a_record_that_comes_twice_ends_its_session():
    line = line_of().connected()
    session = line.do(line.requester.open_session())
    line.do(line.requester.measurements(session=session))
    replayed = next(packet for way, packet in reversed(line.packets) if way == "asked")
    answer = line.responder.answer(replayed)
    assert answer.payload[1:3] == bytes((Response.ERROR, ErrorCode.DECRYPT_ERROR))
    assert not line.responder.connection.sessions
