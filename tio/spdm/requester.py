"""A requester, sans I/O: each step yields a packet and is sent its answer, whoever carries them (DSP0274, DSP0277).

Nothing that a responder says is believed before it is proved. A step raises PeerRefused where the responder answers
ERROR, PeerUntrusted where an answer proves nothing, MalformedMessage where it is none, RecordRejected where a record is
not its own; after PeerUntrusted and RecordRejected a session is of no use.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TypeVar

from tio.spdm.algorithms import BaseAsym
from tio.spdm.binding import Binding, Packet
from tio.spdm.capabilities import Capabilities, Capability, GetCapabilities, psk_in_common
from tio.spdm.certificate_chain import CertificateChain, TrustAnchors, leaf_key, parse_chain
from tio.spdm.chunking import ChunkAssembly, ChunkedMessage
from tio.spdm.codes import SKIPS_CHALLENGE, ErrorCode, KeyUpdateOperation, Request, Response, SummaryType, Version
from tio.spdm.connection_messages import (
    EARLY_ERROR,
    NOT_READY_BYTES,
    ChunkGet,
    ChunkResponse,
    ChunkResponseFirst,
    ChunkSend,
    ChunkSendAck,
    ChunkSendFirst,
    GetVersion,
    RespondIfReady,
    VendorDefinedRequest,
    VendorDefinedResponse,
    VersionList,
)
from tio.spdm.faults import MalformedMessage, PeerRefused, PeerUntrusted, RecordRejected
from tio.spdm.identity_messages import (
    CONTEXT_BYTES,
    NEW_MEASUREMENT_REQUESTED,
    NONCE_BYTES,
    RAW_BIT_STREAM_REQUESTED,
    SIGNATURE_REQUESTED,
    SLOTS,
    WHOLE_CHAIN,
    Certificate,
    Challenge,
    ChallengeAuth,
    Digests,
    GetCertificate,
    GetDigests,
    GetMeasurements,
    Measurements,
)
from tio.spdm.key_agreement import Random, ephemeral
from tio.spdm.key_schedule import KeySchedule
from tio.spdm.measurement import ALL_OPERATION, COUNT_OPERATION, MeasurementBlock, parse_record
from tio.spdm.message_layout import HEADER_BYTES, Message, Shape
from tio.spdm.negotiation import Algorithms, Negotiated, Offer, accepted, request_of
from tio.spdm.opaque_data import parse_selection, supported_versions
from tio.spdm.secured_message import RecordFormat, session_id_of
from tio.spdm.session import Session
from tio.spdm.session_messages import (
    CLEAR_NEGOTIATED_STATE,
    RANDOM_BYTES,
    EndSession,
    EndSessionAck,
    Finish,
    FinishResponse,
    Heartbeat,
    HeartbeatAck,
    KeyExchange,
    KeyExchangeResponse,
    KeyUpdate,
    KeyUpdateAck,
    PskExchange,
    PskExchangeResponse,
    PskFinish,
    PskFinishResponse,
)
from tio.spdm.signing import (
    CHALLENGE_CONTEXT,
    KEY_EXCHANGE_CONTEXT,
    MEASUREMENTS_CONTEXT,
    PublicKey,
    signed_message,
    verifies,
)
from tio.spdm.transcript import ConnectionTranscript, MeasurementLog, SessionTranscript

_REQUESTER_CAPABILITIES = (
    Capability.CERT
    | Capability.ENCRYPT
    | Capability.MAC
    | Capability.KEY_EX
    | Capability.HBEAT
    | Capability.KEY_UPD
)
_SECRET = Capability.ENCRYPT | Capability.MAC
_MOST_PATIENCE = 16
"""How often in a row an answer may not be ready, or a responder busy."""
_LONGEST_WAIT_EXPONENT = 22
"""What a responder may make us wait at once: 2^22 us, 4 s."""
_MUTUAL_AUTHENTICATION = 0x80
_MOST_CHAIN_BYTES = 1 << 16

_M = TypeVar("_M", bound=Message)
Step = Generator[Packet, Packet, _M]


@dataclass(frozen=True, slots=True)
class RequesterSettings:
    """How a requester is built; where ``anchors`` pin nothing it believes the root that a chain brings itself."""

    versions: tuple[Version, ...] = (Version.V1_2, Version.V1_3)
    capabilities: Capability = _REQUESTER_CAPABILITIES
    offer: Offer = field(default_factory=Offer)
    anchors: TrustAnchors = field(default_factory=TrustAnchors)
    ct_exponent: int = 20
    data_transfer_bytes: int = 0x1200
    max_message_bytes: int = 0x1200
    psk_salt_ones: bool = True
    """As of ``ResponderSettings``."""
    wants_encryption: bool = False
    """A peer whose sessions would not encrypt is refused as soon as it says so: for who has secrets to give it."""


class Requester:
    """One connection to one responder. ``random`` hands in randomness."""

    def __init__(self, settings: RequesterSettings, binding: Binding, random: Random) -> None:
        self.settings = settings
        self.version = Version.V1_0
        self.peer = Capability(0)
        self.peer_transfer_bytes = settings.data_transfer_bytes
        self.chains: dict[int, CertificateChain] = {}
        """Chains that were read and hold, by slot."""
        self.evidence = b""
        """The last GET_MEASUREMENTS and its MEASUREMENTS, as they went by: for who shows them to somebody else."""
        self._binding = binding
        self._random = random
        self._algorithms: Negotiated | None = None
        self._transcript = ConnectionTranscript()
        self._log = MeasurementLog(self._transcript)
        self._authenticated = False
        self._keys: dict[int, PublicKey] = {}
        self._next_session = 1
        self._handles = 0

    @property
    def algorithms(self) -> Negotiated:
        """What was agreed on. Only after ``connect``."""
        assert self._algorithms is not None, "expected a connection"
        return self._algorithms

    # Set-up.

    def connect(self) -> Generator[Packet, Packet, None]:
        """GET_VERSION, GET_CAPABILITIES, NEGOTIATE_ALGORITHMS."""
        self._transcript = ConnectionTranscript()
        self._log = MeasurementLog(self._transcript)
        self._authenticated = False
        self._keys.clear()
        self.chains.clear()
        self.version = Version.V1_0
        self.peer = Capability(0)
        asked, answer = yield from self._ask(GetVersion(), VersionList)
        self._transcript.negotiate(asked, answer.wire)
        common = {one for one in self.settings.versions if one in answer.versions}
        if not common:
            raise PeerUntrusted(f"VERSION: expected one of {list(map(str, self.settings.versions))}")
        self.version = max(common)
        settings = self.settings
        request = GetCapabilities(
            ct_exponent=settings.ct_exponent,
            flags=settings.capabilities,
            data_transfer_bytes=settings.data_transfer_bytes,
            max_message_bytes=settings.max_message_bytes,
        )
        asked, found = yield from self._ask(request, Capabilities)
        if not found.acceptable:
            raise PeerUntrusted(f"CAPABILITIES: expected flags that go together, found {found.flags:#x}")
        self._transcript.negotiate(asked, found.wire)
        self.peer, self.peer_transfer_bytes = found.capabilities, found.data_transfer_bytes
        own = settings.capabilities
        if settings.wants_encryption and _SECRET & ~(own & self.peer):
            raise PeerUntrusted("CAPABILITIES: expected encryption and authentication of messages")
        sessions = bool(own & self.peer & Capability.KEY_EX) or psk_in_common(own, self.peer)
        asked, chosen = yield from self._ask(request_of(self.settings.offer, sessions=sessions), Algorithms)
        self._algorithms = accepted(chosen, self.settings.offer)
        self._transcript.negotiate(asked, chosen.wire)
        self._transcript.agree(self._algorithms.hash.value)

    # Identity.

    def digests(self, session: Session | None = None) -> Generator[Packet, Packet, dict[int, bytes]]:
        """GET_DIGESTS: the hash of each slot's chain."""
        size = self.algorithms.hash.value.size_bytes
        if session is None:
            self._transcript.forget_identity()
        request = GetDigests()
        raw = yield from self._raw(request.pack(self.version), session)
        count = raw[3].bit_count() if len(raw) > 3 else 0
        answer = self._parsed(raw, Digests, self._shape(digests_bytes=count * size), session)
        if session is None:
            self._transcript.identify(request.pack(self.version), answer.wire)
        slots = [slot for slot in range(SLOTS) if answer.slot_mask >> slot & 1]
        return {slot: answer.digests[at * size : (at + 1) * size] for at, slot in enumerate(slots)}

    def certificates(
        self, slot: int = 0, session: Session | None = None
    ) -> Generator[Packet, Packet, CertificateChain]:
        """GET_CERTIFICATE until all is there: a chain that holds, and whose key counts from now on."""
        raw, remainder = b"", WHOLE_CHAIN
        while remainder:
            request = GetCertificate(slot=slot, offset=len(raw), length=remainder)
            asked, answer = yield from self._ask(request, Certificate, session=session)
            if session is None:
                self._transcript.identify(asked, answer.wire)
            raw += answer.portion
            remainder = answer.remainder_bytes
            if answer.slot & 0xF != slot or not answer.portion or len(raw) + remainder > _MOST_CHAIN_BYTES:
                raise PeerUntrusted(f"CERTIFICATE: expected a portion of slot {slot}")
        algorithm = self.algorithms.hash.value
        chain = parse_chain(raw, algorithm)
        self._keys[slot] = leaf_key(chain, self.settings.anchors, algorithm, self._asym())
        self.chains[slot] = chain
        return chain

    def challenge(self, slot: int = 0, summary: SummaryType = SummaryType.NONE) -> Generator[Packet, Packet, bytes]:
        """CHALLENGE: the device holds the key of its chain. The summary of measurements, if one was asked for."""
        nonce = self._random(NONCE_BYTES)
        request = Challenge(slot=slot, summary=summary, nonce=nonce, context=self._context())
        shape = self._shape(summary_bytes=self._summary_bytes(summary), signature_bytes=self._signature_bytes())
        asked, answer = yield from self._ask(request, ChallengeAuth, shape)
        signed = answer.wire[: -len(answer.signature)]
        if answer.slot & 0xF != slot or answer.slot & _MUTUAL_AUTHENTICATION or answer.context != request.context:
            raise PeerUntrusted(f"CHALLENGE_AUTH: expected slot {slot} and the context of its request")
        self._check_chain(slot, answer.chain_hash)
        digest = self._transcript.challenge(asked, signed)
        self._transcript.forget_identity()
        self._authenticated = True
        self._check(slot, CHALLENGE_CONTEXT, digest, answer.signature)
        return answer.summary_hash

    def measurements(
        self,
        operation: int = ALL_OPERATION,
        *,
        slot: int | None = None,
        raw: bool = False,
        nonce: bytes | None = None,
        session: Session | None = None,
    ) -> Generator[Packet, Packet, tuple[MeasurementBlock, ...]]:
        """GET_MEASUREMENTS: blocks; with ``slot`` signed, over all that was answered since the last signature."""
        signs = slot is not None
        attributes = SIGNATURE_REQUESTED * signs | RAW_BIT_STREAM_REQUESTED * raw
        if self.version >= Version.V1_3 and self.peer & Capability.MEAS_FRESH:
            attributes |= NEW_MEASUREMENT_REQUESTED
        request = GetMeasurements(
            attributes=attributes,
            operation=operation,
            nonce=(nonce or self._random(NONCE_BYTES)) if signs else b"",
            slot=b"" if slot is None else bytes((slot,)),
            context=self._context(),
        )
        shape = self._shape(signature_bytes=self._signature_bytes() if signs else 0)
        asked, answer = yield from self._ask(request, Measurements, shape, session=session)
        log = self._log if session is None else session.log
        log.add(asked, answer.wire[: -len(answer.signature)] if signs else answer.wire)
        if answer.context != request.context:
            raise PeerUntrusted("MEASUREMENTS: expected the context of its request")
        if slot is not None:
            digest = log.digest()
            log.clear()
            self._check(slot, MEASUREMENTS_CONTEXT, digest, answer.signature)
        self.evidence = asked + answer.wire
        blocks = parse_record(answer.record, answer.block_count)
        if operation not in (COUNT_OPERATION, ALL_OPERATION) and [one.index for one in blocks] != [operation]:
            raise PeerUntrusted(f"MEASUREMENTS: expected block {operation}")
        return blocks

    # Sessions.

    def open_session(
        self, slot: int = 0, summary: SummaryType = SummaryType.NONE, policy: int = 0
    ) -> Generator[Packet, Packet, Session]:
        """KEY_EXCHANGE and FINISH with the key of a chain that was read."""
        chosen = self.algorithms
        if chosen.dhe is None or chosen.aead is None:
            raise PeerUntrusted("ALGORITHMS: expected a group and a cipher for sessions")
        group = chosen.dhe.value
        key = ephemeral(group, self._random)
        clear = bool(self.settings.capabilities & self.peer & Capability.HANDSHAKE_IN_THE_CLEAR)
        size = chosen.hash.value.size_bytes
        request = KeyExchange(
            summary=summary,
            slot=slot,
            session_id=self._session_number(),
            policy=policy,
            random=self._random(RANDOM_BYTES),
            exchange_data=key.public,
            opaque=supported_versions(),
        )
        shape = self._shape(
            exchange_bytes=group.exchange_bytes,
            summary_bytes=self._summary_bytes(summary),
            signature_bytes=self._signature_bytes(),
            verify_bytes=0 if clear else size,
        )
        asked, answer = yield from self._ask(request, KeyExchangeResponse, shape)
        parse_selection(answer.opaque)
        if answer.mutual:
            raise PeerUntrusted("KEY_EXCHANGE_RSP: expected no mutual authentication")
        transcript = SessionTranscript(self._transcript, chosen.hash.value.digest(self._chain(slot).raw))
        tail = len(answer.signature) + len(answer.verify_data)
        self._check(slot, KEY_EXCHANGE_CONTEXT, transcript.add(asked, answer.wire[:-tail]), answer.signature)
        session = self._session(answer.session_id << 16 | request.session_id, transcript, answer.heartbeat_s, psk=False)
        th1 = transcript.add(answer.signature)
        session.begin(key.agree(answer.exchange_data), th1)
        if not clear:
            self._check_proof(session.responder_proof(th1), answer.verify_data, "KEY_EXCHANGE_RSP")
            transcript.add(answer.verify_data)
        yield from self._finish(session, clear=clear)
        return session

    def _finish(self, session: Session, *, clear: bool) -> Generator[Packet, Packet, None]:
        head = Finish().pack(self.version)[:HEADER_BYTES]
        proof = session.requester_proof(session.transcript.add(head))
        session.transcript.add(proof)
        size = self.algorithms.hash.value.size_bytes
        shape = self._shape(verify_bytes=size if clear else 0)
        _, answer = yield from self._ask(
            Finish(verify_data=proof), FinishResponse, shape, session=None if clear else session
        )
        th2 = session.transcript.add(answer.wire[:HEADER_BYTES])
        if clear:
            self._check_proof(session.responder_proof(th2), answer.verify_data, "FINISH_RSP")
            th2 = session.transcript.add(answer.verify_data)
        session.establish(th2)

    def open_psk_session(
        self, hint: bytes, secret: bytes, summary: SummaryType = SummaryType.NONE
    ) -> Generator[Packet, Packet, Session]:
        """PSK_EXCHANGE, and PSK_FINISH where the responder adds to the keys."""
        size = self.algorithms.hash.value.size_bytes
        context, opaque = self._random(size), supported_versions()
        request = PskExchange(
            summary=summary,
            session_id=self._session_number(),
            hint_bytes=len(hint),
            context_size=len(context),
            opaque_bytes=len(opaque),
            hint=hint,
            context=context,
            opaque=opaque,
        )
        asked, answer = yield from self._ask(
            request, PskExchangeResponse, self._shape(summary_bytes=self._summary_bytes(summary))
        )
        parse_selection(answer.opaque)
        transcript = SessionTranscript(self._transcript)
        th1 = transcript.add(asked, answer.wire[: -len(answer.verify_data)])
        session = self._session(answer.session_id << 16 | request.session_id, transcript, answer.heartbeat_s, psk=True)
        session.begin(secret, th1)
        self._check_proof(session.responder_proof(th1), answer.verify_data, "PSK_EXCHANGE_RSP")
        th2 = transcript.add(answer.verify_data)
        if self.peer & Capability.PSK_WITH_CONTEXT:
            head = PskFinish().pack(self.version)[:HEADER_BYTES]
            proof = session.requester_proof(transcript.add(head))
            transcript.add(proof)
            _, done = yield from self._ask(PskFinish(verify_data=proof), PskFinishResponse, session=session)
            th2 = transcript.add(done.wire)
        session.establish(th2)
        return session

    def heartbeat(self, session: Session) -> Generator[Packet, Packet, None]:
        """HEARTBEAT."""
        yield from self._ask(Heartbeat(), HeartbeatAck, session=session)

    def update_keys(self, session: Session, *, both: bool = True) -> Generator[Packet, Packet, None]:
        """KEY_UPDATE of requests, or of both directions, and VerifyNewKey under the new one."""
        operation = KeyUpdateOperation.UPDATE_ALL_KEYS if both else KeyUpdateOperation.UPDATE_KEY
        yield from self._key_update(session, operation, responses_change=both)
        session.requests = session.requests.rekeyed
        yield from self._key_update(session, KeyUpdateOperation.VERIFY_NEW_KEY)

    def _key_update(
        self, session: Session, operation: KeyUpdateOperation, *, responses_change: bool = False
    ) -> Generator[Packet, Packet, None]:
        tag = self._random(1)[0]
        packet = self._sealed(KeyUpdate(operation=operation, tag=tag).pack(self.version), session)
        if responses_change:  # The acknowledgement is under the new key already.
            session.responses = session.responses.rekeyed
        raw = self._opened((yield packet), session)
        answer = self._parsed(raw, KeyUpdateAck, Shape(), session)
        if (answer.operation, answer.tag) != (operation, tag):
            raise PeerUntrusted("KEY_UPDATE_ACK: expected the operation and tag of its request")

    def end_session(self, session: Session) -> Generator[Packet, Packet, None]:
        """END_SESSION."""
        yield from self._ask(EndSession(attributes=CLEAR_NEGOTIATED_STATE), EndSessionAck, session=session)

    def vendor_defined(
        self, payload: bytes, standard: int, vendor: bytes, session: Session | None = None
    ) -> Generator[Packet, Packet, bytes]:
        """VENDOR_DEFINED_REQUEST: the payload of the answer."""
        request = VendorDefinedRequest(standard=standard, vendor_bytes=len(vendor), vendor=vendor, payload=payload)
        _, answer = yield from self._ask(request, VendorDefinedResponse, session=session)
        if (answer.standard, answer.vendor) != (standard, vendor):
            raise PeerUntrusted("VENDOR_DEFINED_RESPONSE: expected the registry and vendor of its request")
        return answer.payload

    # Exchanges.

    def _ask(
        self, request: Message, response: type[_M], shape: Shape | None = None, session: Session | None = None
    ) -> Generator[Packet, Packet, tuple[bytes, _M]]:
        """The request as it went out, and its answer."""
        if request.CODE != Request.GET_MEASUREMENTS:
            (self._log if session is None else session.log).clear()
        if request.CODE in SKIPS_CHALLENGE and not self._authenticated:
            self._transcript.forget_identity()
        asked = request.pack(self.version)
        raw = yield from self._raw(asked, session)
        return asked, self._parsed(raw, response, shape or self._shape(), session)

    def _raw(self, asked: bytes, session: Session | None) -> Generator[Packet, Packet, bytes]:
        """An answer that is no ERROR, however it had to be fetched."""
        raw = yield from self._sent(asked, session)
        for _ in range(_MOST_PATIENCE):
            if raw[1:2] != bytes((Response.ERROR,)):
                return raw
            code, data, extended = raw[2] if len(raw) > 2 else 0, raw[3] if len(raw) > 3 else 0, raw[HEADER_BYTES:]
            if code == ErrorCode.RESPONSE_NOT_READY and len(extended) >= NOT_READY_BYTES:
                again = RespondIfReady(request_code=extended[1], token=extended[2]).pack(self.version)
                if extended[0] > _LONGEST_WAIT_EXPONENT:
                    raise PeerUntrusted(f"{Request(asked[1]).name}: expected an answer within seconds")
                delay_us = 1 << extended[0]
                raw = self._opened((yield self._sealed(again, session, delay_us)), session)
            elif code == ErrorCode.LARGE_RESPONSE and extended:
                raw = yield from self._fetched(extended[0], session)
            else:
                (self._log if session is None else session.log).clear()
                raise PeerRefused(Request(asked[1]).name, code, data)
        raise PeerUntrusted(f"{Request(asked[1]).name}: expected an answer at some time")

    def _sent(self, asked: bytes, session: Session | None) -> Generator[Packet, Packet, bytes]:
        """Send a request, in chunks where the responder does not take it in one piece; its answer."""
        if len(asked) <= self.peer_transfer_bytes or not self._chunks:
            return self._opened((yield self._sealed(asked, session)), session)
        self._handles = (self._handles + 1) & 0xFF
        parts = ChunkedMessage(self._handles, asked, self.peer_transfer_bytes)
        while True:
            sequence = parts.sequence
            chunk = parts.next(ChunkSendFirst, ChunkSend).pack(self.version)
            raw = self._opened((yield self._sealed(chunk, session)), session)
            if raw[1:2] == bytes((Response.ERROR,)):
                return raw
            head = self._parsed(raw[:6], ChunkSendAck, Shape(), session)
            if (head.handle, head.sequence) != (self._handles, sequence):
                raise PeerUntrusted("CHUNK_SEND_ACK: expected the handle and number of its request")
            if parts.done or head.attributes & EARLY_ERROR:
                return raw[6:]

    def _fetched(self, handle: int, session: Session | None) -> Generator[Packet, Packet, bytes]:
        """An answer in chunks."""
        assembly: ChunkAssembly | None = None
        padding = self._binding.excess_bytes if session is None else 0
        while assembly is None or assembly.message is None:
            sequence = 0 if assembly is None else assembly.sequence
            asked = ChunkGet(handle=handle, sequence=sequence).pack(self.version)
            raw = self._opened((yield self._sealed(asked, session)), session)
            self._check_head(raw, ChunkResponse)
            if assembly is None:
                first = ChunkResponseFirst.parse(raw, padding=padding)
                if first.handle != handle:
                    raise PeerUntrusted("CHUNK_RESPONSE: expected the handle of its request")
                assembly = ChunkAssembly(first, self.settings.max_message_bytes)
            else:
                assembly.add(ChunkResponse.parse(raw, padding=padding))
        return assembly.message

    def _sealed(self, message: bytes, session: Session | None, delay_us: int = 0) -> Packet:
        if session is None:
            return Packet(message, delay_us=delay_us)
        most, padding = self._binding.random_bytes, b""
        if most and session.requests.encrypts:
            padding = self._random(self._random(1)[0] % (most + 1))
        record = session.requests.seal(session.session_id, self._binding.enclose(message), padding)
        return Packet(record, secured=True, delay_us=delay_us)

    def _opened(self, packet: Packet, session: Session | None) -> bytes:
        if session is None:
            if packet.secured:
                raise MalformedMessage("answer", "a message outside of a session", "a record")
            return packet.payload
        if not packet.secured:
            # Outside of the session nobody proves anything: it says at most that the session is of no use.
            raise RecordRejected(f"answer: expected a record, found a message {packet.payload[1:3].hex()}")
        if session_id_of(packet.payload) != session.session_id:
            raise RecordRejected("record: of another session")
        return self._binding.disclose(session.responses.open(packet.payload, self._binding.excess_bytes))

    def _parsed(self, raw: bytes, response: type[_M], shape: Shape, session: Session | None) -> _M:
        self._check_head(raw, response)
        return response.parse(raw, shape, self._binding.excess_bytes if session is None else 0)

    def _check_head(self, raw: bytes, response: type[Message]) -> None:
        if raw[1:2] == bytes((Response.ERROR,)):
            raise PeerRefused(response.__name__, raw[2] if len(raw) > 2 else 0, raw[3] if len(raw) > 3 else 0)
        if raw[:2] != bytes((self.version, response.CODE)):
            expected = f"{self.version:02x}{response.CODE:02x}"
            raise MalformedMessage(f"head of {response.__name__}", expected, raw[:2].hex())

    # What it knows of its peer.

    @property
    def _chunks(self) -> bool:
        return bool(self.settings.capabilities & self.peer & Capability.CHUNK)

    def _asym(self) -> BaseAsym:
        if self.algorithms.asym is None:
            raise PeerUntrusted("ALGORITHMS: expected an algorithm for signatures")
        return self.algorithms.asym

    def _shape(self, **widths: int) -> Shape:
        size = self._algorithms.hash.value.size_bytes if self._algorithms else 0
        context = CONTEXT_BYTES if self.version >= Version.V1_3 else 0
        return Shape(hash_bytes=size, context_bytes=context, **widths)

    def _context(self) -> bytes:
        return self._random(CONTEXT_BYTES) if self.version >= Version.V1_3 else b""

    def _signature_bytes(self) -> int:
        return self._asym().value.signature_bytes

    def _summary_bytes(self, summary: SummaryType) -> int:
        return 0 if summary is SummaryType.NONE else self.algorithms.hash.value.size_bytes

    def _session_number(self) -> int:
        number = self._next_session
        self._next_session = number % 0xFFFF + 1
        return number

    def _session(self, session_id: int, transcript: SessionTranscript, heartbeat_s: int, *, psk: bool) -> Session:
        chosen = self.algorithms
        if chosen.aead is None:
            raise PeerUntrusted("ALGORITHMS: expected a cipher for sessions")
        ones = self.settings.psk_salt_ones and self.version >= Version.V1_3
        encrypted = bool(self.settings.capabilities & self.peer & Capability.ENCRYPT)
        return Session(
            session_id,
            KeySchedule(self.version, chosen.hash.value, ones),
            chosen.aead.value,
            RecordFormat(self._binding.sequence_bytes, encrypted),
            transcript,
            MeasurementLog(self._transcript),
            psk,
            heartbeat_s,
        )

    def _chain(self, slot: int) -> CertificateChain:
        if slot not in self.chains:
            raise PeerUntrusted(f"slot {slot}: expected its certificates to be read first")
        return self.chains[slot]

    def _check_chain(self, slot: int, digest: bytes) -> None:
        if digest != self.algorithms.hash.value.digest(self._chain(slot).raw):
            raise PeerUntrusted(f"slot {slot}: expected the chain that was read")

    def _check(self, slot: int, context: str, transcript_hash: bytes, signature: bytes) -> None:
        self._chain(slot)
        message = signed_message(self.version, context, transcript_hash)
        if not verifies(self._keys[slot], signature, message, self._asym(), self.algorithms.hash):
            raise PeerUntrusted(f"{context}: expected the device's own signature")

    @staticmethod
    def _check_proof(expected: bytes, proof: bytes, name: str) -> None:
        if not Session.same(proof, expected):
            raise PeerUntrusted(f"{name}: expected a proof of the session's keys")
