"""Transcripts: what each signature and each key covers (DSP0274, 10.8, 10.11 and chapter 12).

Messages go in as they were on the wire, without what a transport added behind
them. Only running hashes are kept, so that no peer can make a transcript grow.

    A         GET_VERSION to ALGORITHMS
    M1 = M2   A, B (digests and certificates), C (challenge)
    L1 = L2   A, the measurements since the last signed ones
    TH        A, the hash of the certificate chain, the key exchange, FINISH
"""

from __future__ import annotations

import hashlib

from tio.spdm.algorithms import HashAlgorithm


class ConnectionTranscript:
    """A, B and C of one connection."""

    __slots__ = ("_b", "_hash", "vca")

    def __init__(self) -> None:
        self.vca = b""
        self._hash: HashAlgorithm | None = None
        self._b: hashlib._Hash | None = None

    def negotiate(self, *messages: bytes) -> None:
        """Take messages into A. It is bounded: three requests and their answers, each of a bounded size."""
        self.vca += b"".join(messages)

    def agree(self, algorithm: HashAlgorithm) -> None:
        """A is complete, and the hash is known."""
        self._hash = algorithm
        self.forget_identity()

    def over(self, *messages: bytes) -> hashlib._Hash:
        """A running hash of A and what follows it."""
        running = self.negotiated.new(self.vca)
        for message in messages:
            running.update(message)
        return running

    def forget_identity(self) -> None:
        """B and C are void: a challenge was answered, digests are asked for again, or the challenge is skipped."""
        self._b = None

    def identify(self, *messages: bytes) -> None:
        """Take digests or certificates into B."""
        if self._b is None:
            self._b = self.over()
        for message in messages:
            self._b.update(message)

    def challenge(self, *messages: bytes) -> bytes:
        """The hash of M1, with the challenge and its answer up to the signature."""
        running = self.over() if self._b is None else self._b.copy()
        for message in messages:
            running.update(message)
        return running.digest()

    @property
    def negotiated(self) -> HashAlgorithm:
        """The hash that was agreed on."""
        assert self._hash is not None, "expected a hash to be agreed on"
        return self._hash


class MeasurementLog:
    """L1 of a connection, or of one session, which keeps its own."""

    __slots__ = ("_connection", "_running")

    def __init__(self, connection: ConnectionTranscript) -> None:
        self._connection = connection
        self._running: hashlib._Hash | None = None

    def clear(self) -> None:
        """Start anew: after a signature, an error, or any other request."""
        self._running = None

    def add(self, *messages: bytes) -> None:
        """Take a request and its answer."""
        if self._running is None:
            self._running = self._connection.over()
        for message in messages:
            self._running.update(message)

    def digest(self) -> bytes:
        """The hash of what was taken."""
        return (self._running or self._connection.over()).digest()


class SessionTranscript:
    """TH of one session, which grows to TH1 and TH2."""

    __slots__ = ("_running",)

    def __init__(self, connection: ConnectionTranscript, chain_hash: bytes = b"") -> None:
        """``chain_hash`` is that of the responder's certificate chain; nothing for a PSK."""
        self._running = connection.over(chain_hash)

    def add(self, *messages: bytes) -> bytes:
        """Take messages or parts of them; the hash so far."""
        for message in messages:
            self._running.update(message)
        return self._running.digest()
