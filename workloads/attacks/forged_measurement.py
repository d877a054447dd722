"""A guest that reports another's measurement (row 35b, BadRAM).

The launch digest is part of the guest's Context page, which lies in DRAM, encrypted
but without integrity. Through a ghost of the page its old ciphertext is put back: first
the victim's own image is launched, then the attacker's in the same frames.
"""

from __future__ import annotations

from node.operations import HostRead, HostWrite
from psp.guest_context import MEASUREMENT_BYTES, MEASUREMENT_OFFSET
from workloads.attacks.owner_operations import AskOwner
from workloads.attacks.small_guest import SmallGuest
from workloads.attacks.target import WRITE_BACK, Attack, Target

VICTIMS_CODE = b"asks its owner for a secret and keeps it"
ATTACKERS_CODE = b"asks its owner for a secret and tells it"


def through_ghost(target: Target) -> Attack:
    """Row 35b: copy the victim's digest over the attacker's before SNP_LAUNCH_FINISH."""
    guest = SmallGuest.of(target)
    ghost = (guest.context | target.ghost_line) + MEASUREMENT_OFFSET
    yield from guest.launch(VICTIMS_CODE)
    yield WRITE_BACK
    (measured,) = yield (HostRead(ghost, MEASUREMENT_BYTES),)
    yield from guest.take_down()
    yield from guest.launch(ATTACKERS_CODE)
    yield WRITE_BACK
    if isinstance(measured, bytes):
        yield (HostWrite(ghost, measured),)
        yield WRITE_BACK
    yield from guest.finish()
    yield (AskOwner(guest.context, guest.code, guest.secrets),)
