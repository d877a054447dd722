"""Secured messages: records under one direction's key (DSP0277, chapters 5 to 7).

A direction counts its messages; the count is the nonce and never wraps. Nothing of
the count moves for a record that does not open, so that a forged one costs its
sender's effort and nothing else here; what it does to a session is the session's.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.exceptions import InvalidTag

from tio.spdm.algorithms import IV_BYTES, TAG_BYTES, AeadAlgorithm
from tio.spdm.faults import RecordRejected
from tio.spdm.key_schedule import KeySchedule, TrafficKey

LAST_SEQUENCE_NUMBER = (1 << 64) - 2
"""The number after it stays unused: a count must not come round."""

SESSION_ID_BYTES = 4
_LENGTH_BYTES = 2


@dataclass(frozen=True, slots=True)
class RecordFormat:
    """What a transport and a session's capabilities make of records."""

    sequence_bytes: int = 0
    """How many bytes of the sequence number a record carries: 2 for MCTP, else none."""
    encrypted: bool = True
    """False: the message stays readable and is authenticated only."""


def session_id_of(record: bytes) -> int | None:
    """The session that a record names; None for what is too short to be one."""
    return int.from_bytes(record[:SESSION_ID_BYTES], "little") if len(record) >= SESSION_ID_BYTES else None


class Direction:
    """One direction of a session: its key, and how many messages went by under it."""

    __slots__ = ("_aead", "_cipher", "_format", "_iv", "_schedule", "_secret", "sequence")

    def __init__(self, schedule: KeySchedule, aead: AeadAlgorithm, record_format: RecordFormat, secret: bytes) -> None:
        self._schedule = schedule
        self._aead = aead
        self._format = record_format
        self._install(schedule.traffic(secret, aead))

    @property
    def encrypts(self) -> bool:
        """Whether messages are hidden, so that padding may be."""
        return self._format.encrypted

    @property
    def rekeyed(self) -> Direction:
        """This direction after KEY_UPDATE, counting from zero."""
        return Direction(self._schedule, self._aead, self._format, self._schedule.updated(self._secret))

    def seal(self, session_id: int, content: bytes, padding: bytes = b"") -> bytes:
        """The record of one message. Raises RecordRejected once the numbers are used up."""
        plain = len(content).to_bytes(2, "little") + content + padding if self._format.encrypted else content
        head = self._head(session_id, len(plain) + TAG_BYTES)
        if self._format.encrypted:
            sealed = self._cipher.encrypt(self._nonce(), plain, head)
        else:
            sealed = plain + self._cipher.encrypt(self._nonce(), b"", head + plain)
        self.sequence += 1
        return head + sealed

    def open(self, record: bytes, excess: int = 0) -> bytes:
        """The message in a record behind which at most ``excess`` bytes follow. Raises RecordRejected."""
        head_bytes = SESSION_ID_BYTES + self._format.sequence_bytes + _LENGTH_BYTES
        if len(record) < head_bytes + TAG_BYTES:
            raise RecordRejected(f"record: expected at least {head_bytes + TAG_BYTES} bytes, found {len(record)}")
        length = int.from_bytes(record[head_bytes - _LENGTH_BYTES : head_bytes], "little")
        end = head_bytes + length
        if length < TAG_BYTES or not 0 <= len(record) - end <= excess:
            raise RecordRejected(f"record length: expected {len(record) - head_bytes}, found {length}")
        head, sealed = record[:head_bytes], record[head_bytes:end]
        if head != self._head(int.from_bytes(head[:SESSION_ID_BYTES], "little"), length):
            raise RecordRejected(f"sequence number: expected {self.sequence}")
        try:
            if self._format.encrypted:
                content = self._unwrapped(self._cipher.decrypt(self._nonce(), sealed, head))
            else:
                content = sealed[:-TAG_BYTES]
                self._cipher.decrypt(self._nonce(), sealed[-TAG_BYTES:], head + content)
        except InvalidTag:
            raise RecordRejected("record: not authentic") from None
        self.sequence += 1
        return content

    def _install(self, traffic: TrafficKey) -> None:
        self._secret = traffic.secret
        self._iv = traffic.iv
        self._cipher = self._aead.cipher(traffic.key)
        self.sequence = 0

    def _head(self, session_id: int, length: int) -> bytes:
        """What a record begins with; all of it is authenticated."""
        sequence = (self.sequence & 0xFFFF).to_bytes(2, "little")[: self._format.sequence_bytes]
        return session_id.to_bytes(SESSION_ID_BYTES, "little") + sequence + length.to_bytes(_LENGTH_BYTES, "little")

    def _nonce(self) -> bytes:
        """The IV with the number, little-endian, laid over its first eight bytes."""
        if self.sequence > LAST_SEQUENCE_NUMBER:
            raise RecordRejected("sequence number: used up")
        return (int.from_bytes(self._iv, "little") ^ self.sequence).to_bytes(IV_BYTES, "little")

    @staticmethod
    def _unwrapped(plain: bytes) -> bytes:
        """The message without its length and padding."""
        length = int.from_bytes(plain[:2], "little")
        if len(plain) < 2 + length or len(plain) < 2:
            raise RecordRejected(f"message length: expected at most {len(plain) - 2}, found {length}")
        return plain[2 : 2 + length]
