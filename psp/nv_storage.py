"""The file that INIT_EX keeps a platform's persistent data in, instead of the machine's flash (SEV API, INIT_EX).

Which bytes real firmware writes is not published. Here: a format number, a nonce, and OCA, PEK and PDH with the
interfaces that made them and an owner's certificates under AES-256-GCM with a key of the chip, so that no other
chip reads them and nobody changes them. An older file of the same chip is as good as the newest.
"""

from __future__ import annotations

from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from psp import elliptic
from psp.host_memory import HostMemory
from psp.platform_keys import PlatformKeys
from psp.sev_certificate import SevCertificate

NV_BYTES = 0x8000
_FORMAT = b"sevfleet NV 2\0\0\0"
_KEY_LABEL = "sev-nv-storage"
_NONCE_BYTES = 12
_TAG_BYTES = 16
_OWNER_BYTES = 2 * SevCertificate.SIZE
_API_BYTES = 4
_BODY_BYTES = 3 * elliptic.SEED_BYTES + _API_BYTES + 1 + _OWNER_BYTES
_EMPTY = (bytes(NV_BYTES), b"\xff" * NV_BYTES)
"""What a driver hands in that has no file yet."""


class CorruptNv(ValueError):
    """A file that this chip's firmware did not write so."""


def packed(keys: PlatformKeys, nonce: bytes) -> bytes:
    """The file with a platform's persistent data."""
    apis = bytes([*keys.pek_api, *keys.pdh_api])
    body = keys.oca_seed + keys.pek_seed + keys.pdh_seed + apis + bytes([keys.externally_owned])
    cipher = AESGCM(keys.chip.symmetric_key(_KEY_LABEL))
    sealed = cipher.encrypt(nonce, body + keys.owner.ljust(_OWNER_BYTES, b"\0"), _FORMAT)
    return (_FORMAT + nonce + sealed).ljust(NV_BYTES, b"\xff")


def restore(keys: PlatformKeys, data: bytes) -> bool:
    """Take persistent data out of a file; False for an empty one. Raises CorruptNv, and then takes nothing."""
    if data in _EMPTY:
        return False
    head = len(_FORMAT)
    nonce, sealed = data[head : head + _NONCE_BYTES], data[head + _NONCE_BYTES :][: _BODY_BYTES + _TAG_BYTES]
    if data[:head] != _FORMAT:
        raise CorruptNv
    try:
        body = AESGCM(keys.chip.symmetric_key(_KEY_LABEL)).decrypt(nonce, sealed, _FORMAT)
    except InvalidTag:
        raise CorruptNv from None
    size = elliptic.SEED_BYTES
    keys.oca_seed, keys.pek_seed, keys.pdh_seed = (body[at : at + size] for at in range(0, 3 * size, size))
    apis, owned = body[3 * size :][:_API_BYTES], body[3 * size + _API_BYTES :]
    keys.pek_api, keys.pdh_api = (apis[0], apis[1]), (apis[2], apis[3])
    keys.owner = owned[1:] if owned[0] else b""
    return True


class NvFile:
    """Where the host keeps the file: named by INIT_EX, and written by every command that changes persistent data."""

    def __init__(self, memory: HostMemory, keys: PlatformKeys, random: Callable[[str, int], bytes]) -> None:
        self.address: int | None = None
        """None while persistent data is in the machine's flash, as INIT has it."""
        self._memory = memory
        self._keys = keys
        self._random = random

    def check(self) -> None:
        """Before persistent data changes. Raises PspError where the file's memory can no longer be written."""
        if self.address is not None:
            self._memory.check_writable(self.address, NV_BYTES)

    def save(self) -> None:
        """Write persistent data, or an empty file where there is none."""
        if self.address is not None:
            nonce = self._random("NV nonce", _NONCE_BYTES)
            self._memory.write(self.address, packed(self._keys, nonce) if self._keys.pek_seed else _EMPTY[1])
