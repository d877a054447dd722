"""The key schedule of a session: HKDF over the transcript (DSP0274, chapter 12).

Everything that is expanded is no longer than the hash, so that one round of HKDF
makes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tio.spdm.algorithms import IV_BYTES, AeadAlgorithm, HashAlgorithm


@dataclass(frozen=True, slots=True)
class Pair:
    """The two directions' secrets of one phase."""

    request: bytes = field(repr=False)
    response: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class TrafficKey:
    """What protects one direction: key and IV, and the secret from which the next ones come."""

    secret: bytes = field(repr=False)
    key: bytes = field(repr=False)
    iv: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class KeySchedule:
    """Derivations of one connection."""

    version: int
    hash: HashAlgorithm
    psk_salt_ones: bool = False
    """Whether a PSK is extracted with a salt of FF bytes; DSP0274 1.3 names them, 1.2 zeros."""

    def extract(self, secret: bytes, *, shared_beforehand: bool = False) -> bytes:
        """HandshakeSecret, from a Diffie-Hellman secret or a PSK."""
        ones = self.psk_salt_ones and shared_beforehand
        return self.hash.hmac((b"\xff" if ones else b"\0") * self.hash.size_bytes, secret)

    def handshake(self, handshake_secret: bytes, th1_hash: bytes) -> Pair:
        """Secrets of the handshake phase."""
        return self._pair(handshake_secret, "hs", th1_hash)

    def master(self, handshake_secret: bytes) -> bytes:
        """MasterSecret."""
        salt = self.expand(handshake_secret, "derived", self.hash.size_bytes)
        return self.hash.hmac(salt, bytes(self.hash.size_bytes))

    def application(self, master_secret: bytes, th2_hash: bytes) -> Pair:
        """Secrets of the application phase."""
        return self._pair(master_secret, "app", th2_hash)

    def export_master(self, master_secret: bytes, th2_hash: bytes) -> bytes:
        """ExportMasterSecret, for protocols above."""
        return self.expand(master_secret, "exp master", self.hash.size_bytes, th2_hash)

    def finished_key(self, secret: bytes) -> bytes:
        """The key of verify data, from a direction's handshake secret."""
        return self.expand(secret, "finished", self.hash.size_bytes)

    def traffic(self, secret: bytes, aead: AeadAlgorithm) -> TrafficKey:
        """Key and IV of a direction's secret."""
        key = self.expand(secret, "key", aead.key_bytes)
        return TrafficKey(secret, key, self.expand(secret, "iv", IV_BYTES))

    def updated(self, secret: bytes) -> bytes:
        """The secret after KEY_UPDATE."""
        return self.expand(secret, "traffic upd", self.hash.size_bytes)

    def expand(self, secret: bytes, label: str, length: int, context: bytes = b"") -> bytes:
        """HKDF-Expand of BinConcat(length, version, label, context)."""
        version = f"spdm{self.version >> 4}.{self.version & 0xF} ".encode()
        info = length.to_bytes(2, "little") + version + label.encode() + context
        return self.hash.hmac(secret, info + b"\x01")[:length]

    def _pair(self, secret: bytes, phase: str, transcript: bytes) -> Pair:
        size = self.hash.size_bytes
        return Pair(
            self.expand(secret, f"req {phase} data", size, transcript),
            self.expand(secret, f"rsp {phase} data", size, transcript),
        )
