"""The ID block of SNP_LAUNCH_FINISH: an owner's signed word on which guest this may become (SEV-SNP firmware ABI).

Names of statuses are those that the checks suggest; the specification's own
table could not be read.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar

from cryptography.hazmat.primitives import hashes

from psp import elliptic
from psp.byte_layout import ByteLayout, at
from psp.status import PspError, Status

ECDSA_P384_SHA384 = 1
_VERSION = 1
_NO_DIGEST = bytes(48)


@dataclass(frozen=True, slots=True)
class IdBlock(ByteLayout):
    """What the ID key signs."""

    SIZE: ClassVar[int] = 0x60
    digest: bytes = at(0x00, 48, bytes(48))
    family_id: bytes = at(0x30, 16, bytes(16))
    image_id: bytes = at(0x40, 16, bytes(16))
    version: int = at(0x50, 4, _VERSION)
    guest_svn: int = at(0x54, 4)
    policy: int = at(0x58, 8)


@dataclass(frozen=True, slots=True)
class IdAuth(ByteLayout):
    """Keys and signatures: the ID key's over the block, the author's over the ID key."""

    SIZE: ClassVar[int] = 0x1000
    id_key_algorithm: int = at(0x000, 4)
    author_key_algorithm: int = at(0x004, 4)
    block_signature: bytes = at(0x040, elliptic.SIGNATURE_BYTES, bytes(elliptic.SIGNATURE_BYTES))
    id_key: bytes = at(0x240, elliptic.PUBLIC_KEY_BYTES, bytes(elliptic.PUBLIC_KEY_BYTES))
    key_signature: bytes = at(0x680, elliptic.SIGNATURE_BYTES, bytes(elliptic.SIGNATURE_BYTES))
    author_key: bytes = at(0x880, elliptic.PUBLIC_KEY_BYTES, bytes(elliptic.PUBLIC_KEY_BYTES))


@dataclass(frozen=True, slots=True)
class Identity:
    """What reports say of a guest's owner."""

    family_id: bytes
    image_id: bytes
    guest_svn: int
    id_key_digest: bytes
    author_key_digest: bytes


def checked_identity(block: IdBlock, auth: IdAuth, digest: bytes, policy: int, *, with_author: bool) -> Identity:
    """The identity that a block gives a guest of a launch digest and policy.

    Raises PspError: INVALID_PARAM for another version or algorithm, BAD_SIGNATURE,
    BAD_MEASUREMENT for another digest, POLICY_FAILURE for another policy.
    """
    algorithms = [auth.id_key_algorithm, *([auth.author_key_algorithm] if with_author else [])]
    if block.version != _VERSION or any(one != ECDSA_P384_SHA384 for one in algorithms):
        raise PspError(Status.INVALID_PARAM)
    _check(auth.id_key, auth.block_signature, block.pack())
    if with_author:
        _check(auth.author_key, auth.key_signature, auth.id_key)
    if block.digest != digest:
        raise PspError(Status.BAD_MEASUREMENT)
    if block.policy != policy:
        raise PspError(Status.POLICY_FAILURE)
    return Identity(
        block.family_id,
        block.image_id,
        block.guest_svn,
        hashlib.sha384(auth.id_key).digest(),
        hashlib.sha384(auth.author_key).digest() if with_author else _NO_DIGEST,
    )


def _check(key: bytes, signature: bytes, message: bytes) -> None:
    try:
        public = elliptic.parse_public_key(key)
    except ValueError:
        raise PspError(Status.BAD_SIGNATURE) from None
    if not elliptic.verifies(public, signature, message, hashes.SHA384()):
        raise PspError(Status.BAD_SIGNATURE)
