"""Packets between an owner or another firmware and this one (SEV API, LAUNCH_SECRET and the SEND commands).

That of LAUNCH_SECRET is bound to what was measured of the guest.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

from psp.byte_layout import ByteLayout, at
from psp.launch_digest import API_WITH_VERSION
from psp.sev_session import TransportKeys, counter_mode

COMPRESSED = 1 << 0
BLOCK_BYTES = 16
MOST_BYTES = 16 * 1024
"""Laboratory's bound on one secret; the specification's own could not be read."""
_LENGTHS = struct.Struct("<II")


class PacketKind(IntEnum):
    """The byte that a packet's MAC begins with. That of VMSA is recalled, its neighbours are from sev-tool."""

    SECRET = 0x01
    DATA = 0x02
    VMSA = 0x03


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
    bound = measure if api >= API_WITH_VERSION else b""
    return packet_mac(tik, PacketKind.SECRET, header, guest_bytes, ciphertext, bound)


def packet_mac(
    tik: bytes, kind: PacketKind, header: PacketHeader, guest_bytes: int, ciphertext: bytes, bound: bytes = b""
) -> bytes:
    """HMAC-SHA256 over a packet of a kind, and what it is bound to."""
    head = bytes([kind]) + header.flags.to_bytes(4, "little") + header.iv
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
