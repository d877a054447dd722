"""One session, as either side sees it: phase, keys of both directions, transcript (DSP0274, chapter 12)."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from enum import Enum

from tio.spdm.algorithms import AeadAlgorithm
from tio.spdm.key_schedule import KeySchedule, Pair
from tio.spdm.secured_message import Direction, RecordFormat
from tio.spdm.transcript import MeasurementLog, SessionTranscript


class Phase(Enum):
    """How far a session is."""

    HANDSHAKE = "handshake"
    APPLICATION = "application"


@dataclass(slots=True)
class Session:
    """One session. ``requests`` and ``responses`` are the two directions under the keys of the phase."""

    session_id: int
    schedule: KeySchedule
    aead: AeadAlgorithm
    record_format: RecordFormat
    transcript: SessionTranscript
    log: MeasurementLog
    uses_psk: bool
    heartbeat_s: int = 0
    heard_ns: int = 0
    """When the last record came that opened."""
    phase: Phase = Phase.HANDSHAKE
    awaits_new_key: bool = False
    """Between UpdateKey and VerifyNewKey nothing else goes."""
    requests: Direction = field(init=False, repr=False)
    responses: Direction = field(init=False, repr=False)
    exporter: bytes = field(default=b"", init=False, repr=False)
    """ExportMasterSecret, once the session is established."""
    _handshake_secret: bytes = field(default=b"", init=False, repr=False)
    _secrets: Pair = field(init=False, repr=False)

    def begin(self, shared: bytes, th1_hash: bytes) -> None:
        """Handshake keys, from the shared secret (or PSK) and the transcript up to the signature."""
        self._handshake_secret = self.schedule.extract(shared, shared_beforehand=self.uses_psk)
        self._secrets = self.schedule.handshake(self._handshake_secret, th1_hash)
        self._install(self._secrets)

    def establish(self, th2_hash: bytes) -> None:
        """Application keys: the handshake is over."""
        master = self.schedule.master(self._handshake_secret)
        self._handshake_secret = b""
        self.exporter = self.schedule.export_master(master, th2_hash)
        self._install(self.schedule.application(master, th2_hash))
        self.phase = Phase.APPLICATION

    def responder_proof(self, transcript_hash: bytes) -> bytes:
        """ResponderVerifyData over a transcript."""
        return self.schedule.hash.hmac(self.schedule.finished_key(self._secrets.response), transcript_hash)

    def requester_proof(self, transcript_hash: bytes) -> bytes:
        """RequesterVerifyData over a transcript."""
        return self.schedule.hash.hmac(self.schedule.finished_key(self._secrets.request), transcript_hash)

    @staticmethod
    def same(proof: bytes, expected: bytes) -> bool:
        """Whether two proofs are the same, in constant time."""
        return hmac.compare_digest(proof, expected)

    def silent_at(self, now_ns: int) -> bool:
        """Whether no message came for two heartbeat periods."""
        return bool(self.heartbeat_s) and now_ns - self.heard_ns > 2 * self.heartbeat_s * 1_000_000_000

    def _install(self, secrets: Pair) -> None:
        self.requests = Direction(self.schedule, self.aead, self.record_format, secrets.request)
        self.responses = Direction(self.schedule, self.aead, self.record_format, secrets.response)
