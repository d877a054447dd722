"""Old firmware of the security processor, and a hole in it (rows 50, 61 and 63)."""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.asymmetric import ec

from node.operations import HostRead, HostWrite
from psp.system_bus import PAGE_BYTES
from workloads.attacks.asking_guest import SECRET_BYTES, SECRET_OFFSET, AskingGuest
from workloads.attacks.chip_operations import ExtractKeys, ReadAsFirmware
from workloads.attacks.elsewhere import Elsewhere, LeftBehind
from workloads.attacks.forged_platform import impersonate
from workloads.attacks.forged_report import learn_platform
from workloads.attacks.owner_operations import GuestAsks
from workloads.attacks.small_codes import VICTIMS_CODE
from workloads.attacks.small_sev_guest import SmallSevGuest
from workloads.attacks.target import Attack, Target
from workloads.attacks.undefended import by_generation
from workloads.attacks.wrong_launch import small_guest_digest

_SCALAR_BYTES = 48


def _extract_sev(target: Target) -> Attack:
    (keys,) = yield (ExtractKeys(),)
    if isinstance(keys, bytes):
        yield from impersonate(SmallSevGuest.of(target), _key(keys[:_SCALAR_BYTES]), sev_digest())


def _extract_snp(target: Target) -> Attack:
    (keys,) = yield (ExtractKeys(),)
    if isinstance(keys, bytes):
        forged = yield from learn_platform(target, _key(keys[_SCALAR_BYTES:]))
        yield from forged.take_secret(small_guest_digest(VICTIMS_CODE))


extract_keys = by_generation(_extract_sev, _extract_snp)
"""Row 50: run code in old firmware, take the keys that it can make, and vouch with them for a guest that is none."""


def _launch_there_sev(target: Target) -> Attack:
    guest = SmallSevGuest.of(target)
    yield from guest.launch(VICTIMS_CODE)
    if guest.handle:
        yield from guest.receive()
        yield (ReadAsFirmware(guest.code + SECRET_OFFSET, SECRET_BYTES, guest.asid),)


def _launch_there_snp(target: Target) -> Attack:
    asking = AskingGuest.of(target)
    yield from asking.guest.launch(VICTIMS_CODE)
    yield from asking.guest.finish()
    yield from asking.ask()
    yield _read_secret(asking)


launch_there = by_generation(_launch_there_sev, _launch_there_snp)
"""Row 61: launch the owner's guest on the host with old firmware, and read it through the hole."""


def relay_request(target: Target) -> Attack:
    """Row 63: have a request of a guest on old firmware answered by another chip, which has its message key, too.

    The guest's owner learns nothing of the firmware that its guest runs on.
    """
    asking = AskingGuest.of(target)
    guest = asking.guest
    yield from guest.launch(VICTIMS_CODE)
    yield from guest.finish()
    (context,) = yield (LeftBehind(guest.context),)
    yield (GuestAsks(guest.code, guest.secrets, guest.asid, asking.request),)
    (request,) = yield (HostRead(asking.request, PAGE_BYTES),)
    if isinstance(request, bytes) and isinstance(context, int):
        answers = yield (Elsewhere(context, request),)
        (response,) = answers
        if isinstance(response, bytes):
            yield (HostWrite(asking.response, response),)
    yield from asking.show()
    yield _read_secret(asking)


def sev_digest() -> bytes:
    """Of a SEV guest of one page, the owner's code."""
    return hashlib.sha256(VICTIMS_CODE.ljust(PAGE_BYTES, b"\0")).digest()


def _read_secret(asking: AskingGuest) -> tuple[ReadAsFirmware, ...]:
    return (ReadAsFirmware(asking.guest.code + SECRET_OFFSET, SECRET_BYTES, asking.guest.asid),)


def _key(scalar: bytes) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(scalar, "big"), ec.SECP384R1())
