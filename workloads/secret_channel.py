"""A one-way channel to whoever holds a private key: X25519, HKDF-SHA256, AES-256-GCM.

A guest binds its public key to a report (``psp.verifier.bound_report_data``); what is sealed to that
key only the guest opens, whoever carries it. Each sealing takes a fresh ephemeral key, so nonces never repeat.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32
TAG_BYTES = 16
OVERHEAD_BYTES = KEY_BYTES + TAG_BYTES
"""How much longer a sealed secret is."""
_NONCE = bytes(12)
_PURPOSE = b"sevfleet secret for an attested guest"


class ChannelError(ValueError):
    """A public key that is none, or a box that was not sealed for this key."""


@dataclass(frozen=True, slots=True)
class ChannelKey:
    """A private key of 32 bytes."""

    private: bytes = field(repr=False)

    @property
    def public(self) -> bytes:
        """What others seal for."""
        return _public(X25519PrivateKey.from_private_bytes(self.private))

    def open(self, box: bytes) -> bytes:
        """The secret in a box. Raises ChannelError."""
        if len(box) < OVERHEAD_BYTES:
            raise ChannelError(f"box: expected at least {OVERHEAD_BYTES} bytes, got {len(box)}")
        theirs, sealed = box[:KEY_BYTES], box[KEY_BYTES:]
        key = _derived(X25519PrivateKey.from_private_bytes(self.private), theirs, theirs + self.public)
        try:
            return AESGCM(key).decrypt(_NONCE, sealed, None)
        except InvalidTag:
            raise ChannelError("box: not sealed for this key") from None


def seal_for(public: bytes, secret: bytes, ephemeral: bytes) -> bytes:
    """A box for whoever holds the key behind ``public``. ``ephemeral`` are 32 bytes never used before.

    Raises ChannelError.
    """
    ours = X25519PrivateKey.from_private_bytes(ephemeral)
    own = _public(ours)
    return own + AESGCM(_derived(ours, public, own + public)).encrypt(_NONCE, secret, None)


def _public(key: X25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def _derived(ours: X25519PrivateKey, theirs: bytes, salt: bytes) -> bytes:
    try:
        shared = ours.exchange(X25519PublicKey.from_public_bytes(theirs))
    except ValueError:  # another length, or a point of small order
        raise ChannelError("public key: expected a point of X25519") from None
    return HKDF(hashes.SHA256(), KEY_BYTES, salt, _PURPOSE).derive(shared)
