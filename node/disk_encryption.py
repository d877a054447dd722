"""Encryption of a guest's disk by its own kernel, as dm-crypt does it: AES-256-XTS, each block under its number.

The host sees what goes through the pool and lies on the disk, and that is ciphertext. The key
follows from the scenario's seed and the machine's name: how a guest comes by one is attestation's matter.
Source: Linux Documentation/admin-guide/device-mapper/dm-crypt.rst (aes-xts-plain64).
"""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from node.operations import BLOCK_BYTES

KEY_BYTES = 64
REQUEST, BLOCK = "disk.crypt_request_ns", "disk.crypt_block_ns"
"""Rows of the cost table: of a request, and of each of its blocks."""


def disk_key(vm: str, seed: int) -> bytes:
    """The key of a machine's disk."""
    return hashlib.shake_256(f"disk key {seed} {vm}".encode()).digest(KEY_BYTES)


def encrypted(key: bytes, lba: int, data: bytes) -> bytes:
    """Whole blocks as they lie on the disk from ``lba`` on."""
    return b"".join([_cipher(key, lba + number).encryptor().update(block) for number, block in _blocks(data)])


def decrypted(key: bytes, lba: int, data: bytes) -> bytes:
    """The same back."""
    return b"".join([_cipher(key, lba + number).decryptor().update(block) for number, block in _blocks(data)])


def _cipher(key: bytes, lba: int) -> Cipher[modes.XTS]:
    # plain64: the number's low 64 bits.
    return Cipher(algorithms.AES(key), modes.XTS((lba & (1 << 64) - 1).to_bytes(16, "little")))


def _blocks(data: bytes) -> list[tuple[int, bytes]]:
    return [(at // BLOCK_BYTES, data[at : at + BLOCK_BYTES]) for at in range(0, len(data), BLOCK_BYTES)]
