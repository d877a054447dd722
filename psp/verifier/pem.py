"""Certificates and lists out of files, in PEM (RFC 7468) or DER."""

from __future__ import annotations

import binascii
import re

from psp.verifier.certificate import MOST_CRL_BYTES

_BLOCK = re.compile(
    rb"-----BEGIN (CERTIFICATE|X509 CRL)-----(?:([A-Za-z0-9+/=\s]*)-----END \1-----|(?:(?!-----BEGIN ).)*)", re.DOTALL
)
_MOST_BYTES = 2 * MOST_CRL_BYTES
_MOST_BLOCKS = 64


def der_blocks(data: bytes) -> tuple[bytes, ...]:
    """The DER of each block of a PEM file; of anything else, the file itself, which whoever parses it may refuse.

    A block that is cut short or no Base64 stands as it was written, and so does a file of
    too many: none of it is passed over in silence.
    """
    if len(data) > _MOST_BYTES:
        return (data,)
    blocks: list[bytes] = []
    for found in _BLOCK.finditer(data):
        if len(blocks) == _MOST_BLOCKS:
            return (data,)
        blocks.append(_decoded(found))
    return tuple(blocks) or (data,)


def _decoded(block: re.Match[bytes]) -> bytes:
    if block[2] is None:
        return block[0]
    try:
        return binascii.a2b_base64(b"".join(block[2].split()), strict_mode=True)
    except binascii.Error:
        return block[0]
