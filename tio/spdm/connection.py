"""What a responder knows of one connection; its handlers work on this (DSP0274, chapter 10)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, IntEnum

from cryptography import x509

from tio.spdm.algorithms import BaseAsym, BaseHash
from tio.spdm.binding import Binding
from tio.spdm.capabilities import Capability
from tio.spdm.certificate_chain import pack_chain
from tio.spdm.chunking import ChunkAssembly, ChunkedMessage
from tio.spdm.codes import ErrorCode, SummaryType, Version
from tio.spdm.device_personality import CertificateSlot, Personality, ResponderSettings
from tio.spdm.faults import Refused
from tio.spdm.key_agreement import Random
from tio.spdm.key_schedule import KeySchedule
from tio.spdm.measurement import summary_hash
from tio.spdm.message_layout import Shape
from tio.spdm.negotiation import Negotiated, Offer
from tio.spdm.secured_message import RecordFormat
from tio.spdm.session import Session
from tio.spdm.signing import fits, signed_message
from tio.spdm.transcript import ConnectionTranscript, MeasurementLog

NOTHING = Capability(0)


class Stage(IntEnum):
    """How far a connection is."""

    NOTHING = 0
    VERSION = 1
    CAPABILITIES = 2
    NEGOTIATED = 3


class Place(Enum):
    """Where a request came."""

    OUTSIDE = "outside"
    HANDSHAKE = "handshake"
    APPLICATION = "application"


@dataclass(slots=True)
class Deferred:
    """A request whose answer was not ready."""

    request: bytes
    place: Place
    session_id: int | None
    token: int


@dataclass(slots=True)
class Connection:
    """One requester's connection. GET_VERSION makes a new one in place of the old."""

    personality: Personality
    settings: ResponderSettings
    binding: Binding
    random: Random = field(repr=False)
    stage: Stage = Stage.NOTHING
    version: Version = Version.V1_0
    peer: Capability = NOTHING
    peer_transfer_bytes: int = 42
    peer_message_bytes: int = 42
    algorithms: Negotiated | None = None
    authenticated: bool = False
    """Whether a challenge was answered."""
    sessions: dict[int, Session] = field(default_factory=dict)
    clear_handshake: int | None = None
    """The session whose FINISH is to come outside of it."""
    next_session: int = 0xFFFF
    transcript: ConnectionTranscript = field(default_factory=ConnectionTranscript)
    log: MeasurementLog = field(init=False)
    last_set_up: tuple[bytes, bytes] = (b"", b"")
    """The last request of the set-up and its answer, for one that is repeated."""
    deferred: Deferred | None = None
    tokens: int = 0
    incoming: dict[int | None, ChunkAssembly] = field(default_factory=dict)
    """Requests that come in chunks, by session; None is outside."""
    outgoing: dict[int | None, ChunkedMessage] = field(default_factory=dict)
    """Answers that are fetched in chunks."""
    handles: int = 0
    now_ns: int = 0
    """When the packet came that is being answered."""
    _chains: dict[int, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.log = MeasurementLog(self.transcript)

    @property
    def own(self) -> Capability:
        """The responder's flags."""
        return self.settings.capabilities

    @property
    def chosen(self) -> Negotiated:
        """The algorithms. Only after ALGORITHMS."""
        assert self.algorithms is not None, "expected algorithms to be negotiated"
        return self.algorithms

    @property
    def hash(self) -> BaseHash:
        """The hash of everything."""
        return self.chosen.hash

    @property
    def asym(self) -> BaseAsym:
        """The signature algorithm; a request that needs one where there is none is refused."""
        if self.chosen.asym is None:
            raise Refused(ErrorCode.INVALID_REQUEST)
        return self.chosen.asym

    @property
    def context_bytes(self) -> int:
        """Width of RequesterContext."""
        return 8 if self.version >= Version.V1_3 else 0

    @property
    def padding(self) -> int:
        """What may follow a message outside of sessions."""
        return self.binding.excess_bytes

    @property
    def in_the_clear(self) -> bool:
        """Whether handshakes are not encrypted."""
        return bool(self.own & self.peer & Capability.HANDSHAKE_IN_THE_CLEAR)

    @property
    def slots(self) -> Mapping[int, CertificateSlot]:
        """The slots that have certificates."""
        return self.personality.slots

    @property
    def offer(self) -> Offer:
        """What the device has, of signatures those that the keys of all its slots make."""
        keys = [x509.load_der_x509_certificate(one.certificates[-1]).public_key() for one in self.slots.values()]
        offer = self.settings.offer
        return replace(offer, asym=tuple([one for one in offer.asym if all(fits(key, one) for key in keys)]))

    def shape(self, **widths: int) -> Shape:
        """Widths of this connection, and those a message adds."""
        return Shape(hash_bytes=self.hash.value.size_bytes, context_bytes=self.context_bytes, **widths)

    def chain(self, slot: int) -> bytes:
        """A slot's structure. Raises Refused for a slot without one."""
        found = self._chains.get(slot)
        if found is None:
            if slot not in self.slots:
                raise Refused(ErrorCode.INVALID_REQUEST)
            found = self._chains[slot] = pack_chain(self.hash.value, self.slots[slot].certificates)
        return found

    def chain_hash(self, slot: int) -> bytes:
        """The digest of a slot's structure."""
        return self.hash.value.digest(self.chain(slot))

    def sign(self, slot: int, context: str, transcript_hash: bytes) -> bytes:
        """The device's signature over a transcript."""
        message = signed_message(self.version, context, transcript_hash)
        return self.slots[slot].signer(message, self.asym, self.hash)

    def summary(self, kind: int) -> bytes:
        """MeasurementSummaryHash. Raises Refused for a type that is none, or without measurements."""
        if kind not in set(SummaryType):
            raise Refused(ErrorCode.INVALID_REQUEST)
        if kind == SummaryType.NONE:
            return b""
        measurement_hash = self.chosen.measurement_hash
        if not self.own & (Capability.MEAS_SIG | Capability.MEAS_NO_SIG) or measurement_hash is None:
            raise Refused(ErrorCode.INVALID_REQUEST)
        return summary_hash(self.personality.measurements(), SummaryType(kind), self.hash.value, measurement_hash)

    @property
    def schedule(self) -> KeySchedule:
        """Derivations under this version and hash."""
        ones = self.settings.psk_salt_ones and self.version >= Version.V1_3
        return KeySchedule(self.version, self.hash.value, ones)

    @property
    def record_format(self) -> RecordFormat:
        """What records of this connection look like."""
        return RecordFormat(self.binding.sequence_bytes, bool(self.own & self.peer & Capability.ENCRYPT))

    def drop(self, session_id: int | None) -> None:
        """End a session: its keys and all that hangs on it are gone."""
        if session_id is None:
            return
        if self.sessions.pop(session_id, None) is not None:
            self.personality.ended(session_id)
        self.incoming.pop(session_id, None)
        self.outgoing.pop(session_id, None)
        if self.clear_handshake == session_id:
            self.clear_handshake = None
        if self.deferred is not None and self.deferred.session_id == session_id:
            self.deferred = None
