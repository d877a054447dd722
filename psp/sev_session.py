"""A guest owner's session: the keys that owner and firmware share for one launch (SEV API, chapter 4 and LAUNCH_START).

Both agree on Z with ECDH. From Z come a master secret, KEK and KIK; those wrap
TEK (transport encryption) and TIK (transport integrity), which the owner chose.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from typing import ClassVar

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from psp.byte_layout import ByteLayout, at
from psp.key_derivation import derive

KEY_BYTES = 16
NONCE_BYTES = 16


class SessionError(ValueError):
    """A session block whose MACs do not fit: another key, another policy, or changed bytes."""


@dataclass(frozen=True, slots=True)
class TransportKeys:
    """TEK and TIK."""

    tek: bytes = field(repr=False)
    tik: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Session(ByteLayout):
    """The session block of LAUNCH_START, SEND_START and RECEIVE_START."""

    SIZE: ClassVar[int] = 0x80
    nonce: bytes = at(0x00, 16, bytes(16))
    wrapped_keys: bytes = at(0x10, 32, bytes(32))
    wrap_iv: bytes = at(0x30, 16, bytes(16))
    wrap_mac: bytes = at(0x40, 32, bytes(32))
    policy_mac: bytes = at(0x60, 32, bytes(32))


@dataclass(frozen=True, slots=True)
class WrappingKeys:
    """Master secret, KEK and KIK."""

    master: bytes = field(repr=False)
    kek: bytes = field(repr=False)
    kik: bytes = field(repr=False)


def wrapping_keys(z: bytes, nonce: bytes) -> WrappingKeys:
    """What Z and the session's nonce give."""
    master = derive(z, "sev-master-secret", nonce, KEY_BYTES)
    return WrappingKeys(master, derive(master, "sev-kek", b"", KEY_BYTES), derive(master, "sev-kik", b"", KEY_BYTES))


def seal(z: bytes, policy: int, keys: TransportKeys, nonce: bytes, iv: bytes) -> Session:
    """The owner's part: a block that only the firmware with this Z can open, under this policy."""
    wrapping = wrapping_keys(z, nonce)
    wrapped = counter_mode(wrapping.kek, iv, keys.tek + keys.tik)
    return Session(
        nonce=nonce,
        wrapped_keys=wrapped,
        wrap_iv=iv,
        wrap_mac=hmac.digest(wrapping.kik, wrapped, "sha256"),
        policy_mac=_policy_mac(keys.tik, policy),
    )


def open_session(z: bytes, policy: int, session: Session) -> TransportKeys:
    """The firmware's part. Raises SessionError unless both MACs fit."""
    wrapping = wrapping_keys(z, session.nonce)
    if not hmac.compare_digest(hmac.digest(wrapping.kik, session.wrapped_keys, "sha256"), session.wrap_mac):
        raise SessionError("session: the MAC over the wrapped keys does not fit")
    unwrapped = counter_mode(wrapping.kek, session.wrap_iv, session.wrapped_keys)
    keys = TransportKeys(unwrapped[:KEY_BYTES], unwrapped[KEY_BYTES:])
    if not hmac.compare_digest(_policy_mac(keys.tik, policy), session.policy_mac):
        raise SessionError("session: the MAC over the policy does not fit")
    return keys


def counter_mode(key: bytes, iv: bytes, data: bytes) -> bytes:
    """AES-128-CTR, either way."""
    return Cipher(algorithms.AES(key), modes.CTR(iv)).encryptor().update(data)


def _policy_mac(tik: bytes, policy: int) -> bytes:
    return hmac.digest(tik, policy.to_bytes(4, "little"), "sha256")
