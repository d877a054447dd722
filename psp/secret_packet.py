"""The packet of LAUNCH_SECRET: a secret for one guest, bound to what was measured of it (SEV API, LAUNCH_SECRET)."""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass
from typing import ClassVar

from psp.byte_layout import ByteLayout, at
from psp.launch_digest import API_WITH_VERSION
from psp.sev_session import TransportKeys, counter_mode

COMPRESSED = 1 << 0
BLOCK_BYTES = 16
MOST_BYTES = 16 * 1024
"""Laboratory's bound on one secret; the specification's own could not be read."""
_SECRET_TAG = 0x01
_LENGTHS = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class PacketHeader(ByteLayout):
    """Header of a packet for LAUNCH_SECRET and for the SEND and RECEIVE commands."""

    SIZE: ClassVar[int] = 0x34
    flags: int = at(0x00, 4)
    iv: bytes = at(0x04, 16, bytes(16))
    mac: bytes = at(0x14, 32, bytes(32))


def secret_mac(
    tik: bytes, header: PacketHeader, guest_bytes: int, ciphertext: bytes, measure: bytes, api: tuple[int, int]
) -> bytes:
    """HMAC-SHA256 over a packet; ``measure`` (32 bytes) is part of it from API 0.17 on."""
    head = bytes([_SECRET_TAG]) + header.flags.to_bytes(4, "little") + header.iv
    bound = measure if api >= API_WITH_VERSION else b""
    return hmac.digest(tik, head + _LENGTHS.pack(guest_bytes, len(ciphertext)) + ciphertext + bound, "sha256")


def pack_secret(
    keys: TransportKeys, secret: bytes, measure: bytes, iv: bytes, api: tuple[int, int]
) -> tuple[PacketHeader, bytes]:
    """The owner's part: header and ciphertext of a secret, whole blocks of 16 bytes."""
    if not 0 < len(secret) <= MOST_BYTES or len(secret) % BLOCK_BYTES:
        raise ValueError(f"secret: expected whole blocks of {BLOCK_BYTES} up to {MOST_BYTES} bytes, got {len(secret)}")
    ciphertext = counter_mode(keys.tek, iv, secret)
    header = PacketHeader(iv=iv)
    mac = secret_mac(keys.tik, header, len(secret), ciphertext, measure, api)
    return PacketHeader(iv=iv, mac=mac), ciphertext
