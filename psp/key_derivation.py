"""The firmware's key derivation: SP 800-108 in counter mode with HMAC-SHA256.

Counter and length are little-endian 32-bit numbers, unlike the standard's
example (SEV API, section 2.2; known answers of virtee/sev).
"""

from __future__ import annotations

import hmac

_BLOCK_BYTES = 32


def derive(key: bytes, label: str, context: bytes, length: int) -> bytes:
    """``length`` bytes for a label and a context."""
    tail = label.encode() + b"\0" + context + (8 * length).to_bytes(4, "little")
    blocks = range(1, -(-length // _BLOCK_BYTES) + 1)
    return b"".join(hmac.digest(key, i.to_bytes(4, "little") + tail, "sha256") for i in blocks)[:length]
