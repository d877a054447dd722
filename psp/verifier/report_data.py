"""How a report answers a nonce and binds a channel: 32 bytes of nonce, then SHA-256 of the channel's public key.

A convention between a guest and whoever relies on it; the firmware copies the 64 bytes as they are.
"""

from __future__ import annotations

import hashlib

from psp.verifier.expectations import NONCE_BYTES


def bound_report_data(nonce: bytes, channel_key: bytes) -> bytes:
    """The 64 bytes that a guest puts into its report. ValueError for a nonce that has not 32."""
    if len(nonce) != NONCE_BYTES:
        raise ValueError(f"nonce: expected {NONCE_BYTES} bytes, got {len(nonce)}")
    return nonce + hashlib.sha256(channel_key).digest()


def nonce_of(report_data: bytes) -> bytes:
    """What answers the nonce."""
    return report_data[:NONCE_BYTES]


def binds(report_data: bytes, channel_key: bytes) -> bool:
    """Whether it names this public key."""
    return report_data[NONCE_BYTES:] == hashlib.sha256(channel_key).digest()
