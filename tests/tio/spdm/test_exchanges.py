"""A requester and a device: connections, proofs and sessions, over every transport and with every algorithm."""

from __future__ import annotations

import pytest
from spdm_device import EVERYTHING, MEASUREMENTS, PSK, PSK_HINT, REQUESTER, Line, chain_of, personality

from tio.spdm import (
    MCTP,
    PCI_DOE,
    TCP,
    Binding,
    Capability,
    Offer,
    PeerRefused,
    RequesterSettings,
    ResponderSettings,
    SpdmFault,
    SummaryType,
    TrustAnchors,
    Version,
)
from tio.spdm.algorithms import Aead, BaseAsym, BaseHash, DheGroup
from tio.spdm.codes import ErrorCode

C = Capability


def whole_life(line: Line) -> None:
    """Everything that a requester does in the life of a connection."""
    one = line.connected().requester
    summary = line.do(one.challenge(summary=SummaryType.ALL))
    assert len(summary) == one.algorithms.hash.value.size_bytes
    assert len(line.do(one.measurements(slot=0))) == len(MEASUREMENTS)
    session = line.do(one.open_session(summary=SummaryType.TCB))
    assert [block.index for block in line.do(one.measurements(slot=0, session=session))] == [1, 2, 0x10, 0xFD]
    if session.heartbeat_s:
        line.do(one.heartbeat(session))
    for both in (True, False, True):
        line.do(one.update_keys(session, both=both))
        assert line.do(one.measurements(0x10, session=session))[0].value == (7).to_bytes(8, "little")
    line.do(one.end_session(session))
    assert line.responder.connection.sessions == {}


@pytest.mark.parametrize("binding", [PCI_DOE, MCTP, TCP], ids=lambda one: one.name)
@pytest.mark.parametrize("version", [Version.V1_2, Version.V1_3])
@pytest.mark.parametrize("clear", [False, True])
def test_a_device_proves_itself_and_holds_sessions(binding: Binding, version: Version, clear: bool) -> None:
    more = C.HANDSHAKE_IN_THE_CLEAR if clear else C(0)
    requester = RequesterSettings(
        versions=(version,), capabilities=REQUESTER | more, anchors=TrustAnchors(chain_of(BaseAsym.ECDSA_P384)[:1])
    )
    responder = ResponderSettings(capabilities=EVERYTHING | more, heartbeat_s=3)
    line = Line(binding, requester, responder)
    whole_life(line)
    assert line.requester.version is version
    # In the clear FINISH and its answer are no records.
    assert sum(packet.payload[1] in (0xE5, 0x65) for _, packet in line.packets if not packet.secured) == 2 * clear


@pytest.mark.parametrize("asym", [one for one in BaseAsym if "4096" not in one.name], ids=lambda one: one.name)
def test_every_signature_algorithm(asym: BaseAsym) -> None:
    line = Line(asym=asym, requester=RequesterSettings(capabilities=REQUESTER, offer=Offer(asym=(asym,))))
    whole_life(line)
    assert line.requester.algorithms.asym is asym


@pytest.mark.parametrize("base_hash", list(BaseHash), ids=lambda one: one.name)
def test_every_hash(base_hash: BaseHash) -> None:
    offer = Offer(hashes=(base_hash,), measurement_hash=BaseHash.SHA_512)
    whole_life(Line(requester=RequesterSettings(capabilities=REQUESTER, offer=offer)))


@pytest.mark.parametrize("dhe", list(DheGroup), ids=lambda one: one.name)
def test_every_group(dhe: DheGroup) -> None:
    whole_life(Line(requester=RequesterSettings(capabilities=REQUESTER, offer=Offer(dhe=(dhe,)))))


@pytest.mark.parametrize("aead", list(Aead), ids=lambda one: one.name)
@pytest.mark.parametrize("encrypts", [True, False])
def test_every_cipher_hidden_or_only_authenticated(aead: Aead, encrypts: bool) -> None:
    less = C(0) if encrypts else C.ENCRYPT
    responder = ResponderSettings(capabilities=EVERYTHING & ~less)
    line = Line(requester=RequesterSettings(capabilities=REQUESTER, offer=Offer(aead=(aead,))), responder=responder)
    whole_life(line)
    records = b"".join([packet.payload for _, packet in line.packets if packet.secured])
    assert (b"manifest" in records) is not encrypts


@pytest.mark.parametrize("version", [Version.V1_2, Version.V1_3])
@pytest.mark.parametrize("context", [C.PSK, C.PSK_WITH_CONTEXT])
def test_a_key_that_both_have_makes_a_session_without_certificates(version: Version, context: Capability) -> None:
    capabilities = EVERYTHING & ~C.PSK_WITH_CONTEXT | context
    line = Line(
        requester=RequesterSettings(versions=(version,), capabilities=REQUESTER),
        responder=ResponderSettings(capabilities=capabilities),
    )
    one = line.requester
    line.do(one.connect())
    session = line.do(one.open_psk_session(PSK_HINT, PSK))
    assert line.do(one.measurements(2, session=session))[0].index == 2
    with pytest.raises(PeerRefused) as refused:
        line.do(one.open_psk_session(b"another hint", PSK))
    assert refused.value.code == ErrorCode.INVALID_REQUEST
    line.do(one.end_session(session))


def test_several_sessions_have_keys_of_their_own() -> None:
    line = Line().connected()
    one = line.requester
    sessions = [line.do(one.open_session()) for _ in range(3)]
    sessions.append(line.do(one.open_psk_session(PSK_HINT, PSK)))
    with pytest.raises(PeerRefused) as refused:
        line.do(one.open_session())
    assert refused.value.code == ErrorCode.SESSION_LIMIT_EXCEEDED
    assert len({one.session_id for one in sessions}) == 4
    for session in reversed(sessions):
        line.do(one.measurements(session=session))
    line.do(one.update_keys(sessions[1]))
    line.do(one.end_session(sessions[0]))
    line.do(one.measurements(session=sessions[1]))
    assert len(line.responder.connection.sessions) == 3


def test_one_measurement_their_number_and_raw_streams() -> None:
    line = Line().connected()
    one = line.requester
    assert line.do(one.measurements(0)) == ()
    (block,) = line.do(one.measurements(2, raw=True))
    assert (block.is_raw, block.value) == (True, b"firmware of the toy")
    (block,) = line.do(one.measurements(2))
    assert (block.is_raw, len(block.value)) == (False, one.algorithms.hash.value.size_bytes)
    with pytest.raises(PeerRefused) as refused:
        line.do(one.measurements(9))
    assert refused.value.code == ErrorCode.INVALID_REQUEST


@pytest.mark.parametrize("transfer", [64, 200])
def test_what_is_too_long_for_one_transfer_goes_in_chunks(transfer: int) -> None:
    requester = RequesterSettings(
        capabilities=REQUESTER | C.CHUNK, data_transfer_bytes=transfer, max_message_bytes=0x1200
    )
    responder = ResponderSettings(
        capabilities=EVERYTHING | C.CHUNK, data_transfer_bytes=transfer, max_message_bytes=0x1200
    )
    line = Line(requester=requester, responder=responder)
    whole_life(line)
    assert all(len(packet.payload) <= transfer + 64 for _, packet in line.packets)


def test_without_chunks_an_answer_that_is_too_long_is_an_error_with_its_size() -> None:
    requester = RequesterSettings(capabilities=REQUESTER, data_transfer_bytes=100, max_message_bytes=100)
    line = Line(requester=requester).connected()
    with pytest.raises(PeerRefused) as refused:
        line.do(line.requester.challenge())
    assert refused.value.code == ErrorCode.RESPONSE_TOO_LARGE


def test_an_answer_may_take_its_time() -> None:
    slow = frozenset({0x83, 0xE0, 0xE4})
    line = Line(responder=ResponderSettings(capabilities=EVERYTHING, slow=slow))
    whole_life(line)
    assert any(packet.delay_us == 1024 for _, packet in line.packets)


@pytest.mark.parametrize("began_ns", [0, 10**15])
def test_a_session_that_is_not_heard_of_is_over(began_ns: int) -> None:
    """After two periods to the nanosecond, also on a machine that has run for long."""
    line = Line(responder=ResponderSettings(capabilities=EVERYTHING, heartbeat_s=2)).connected()
    line.now_ns = began_ns
    session = line.do(line.requester.open_session())
    for seconds in (3, 6, 10):
        line.now_ns = began_ns + seconds * 10**9
        line.do(line.requester.heartbeat(session))
    line.now_ns = began_ns + 14 * 10**9
    line.do(line.requester.digests())  # is outside of the session, which is not heard of by it
    assert set(line.responder.connection.sessions) == {session.session_id}
    line.now_ns += 1
    line.do(line.requester.digests())
    assert line.responder.connection.sessions == {}
    with pytest.raises(SpdmFault):
        line.do(line.requester.heartbeat(session))


def test_equal_seeds_give_equal_bytes() -> None:
    lines = [Line(), Line()]
    for line in lines:
        whole_life(line)
    assert lines[0].packets == lines[1].packets


def test_an_ended_session_is_told_to_the_device() -> None:
    ended: list[int] = []
    line = Line(device=personality(ended=ended.append)).connected()
    sessions = [line.do(line.requester.open_session()) for _ in range(3)]
    line.do(line.requester.end_session(sessions[1]))
    assert ended == [sessions[1].session_id]
    line.do(line.requester.connect())
    assert sorted(ended) == sorted(one.session_id for one in sessions)
