"""Certificates and lists out of files, in PEM (RFC 7468) or DER."""

from __future__ import annotations

import binascii
import re

from psp.verifier.certificate import MOST_CRL_BYTES

_BLOCK = re.compile(rb"-----BEGIN (CERTIFICATE|X509 CRL)-----([A-Za-z0-9+/=\s]*)-----END \1-----")
_MOST_BYTES = 2 * MOST_CRL_BYTES
_MOST_BLOCKS = 16


def der_blocks(data: bytes) -> tuple[bytes, ...]:
    """The DER of each block of a PEM file; of anything else, the file itself, which whoever parses it may refuse."""
    if len(data) > _MOST_BYTES or not _BLOCK.search(data):
        return (data,)
    blocks = []
    for found in _BLOCK.finditer(data):
        try:
            blocks.append(binascii.a2b_base64(b"".join(found[2].split()), strict_mode=True))
        except binascii.Error:
            blocks.append(b"")
        if len(blocks) == _MOST_BLOCKS:
            break
    return tuple(blocks)
