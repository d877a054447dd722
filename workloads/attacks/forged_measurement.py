"""A guest that reports another's measurement (row 35b, BadRAM).

The launch digest is part of the guest's Context page, which lies in DRAM, encrypted
but without integrity. Through a ghost of the page its old ciphertext is put back: first
the victim's own image is launched, then the attacker's in the same frames.
"""

from __future__ import annotations

from node.operations import HostRead, HostWrite
from psp.guest_context import MEASUREMENT_BYTES, MEASUREMENT_OFFSET
from workloads.attacks.asking_guest import AskingGuest
from workloads.attacks.small_codes import ATTACKERS_CODE, VICTIMS_CODE
from workloads.attacks.target import WRITE_BACK, Attack, Target


def through_ghost(target: Target) -> Attack:
    """Row 35b: copy the victim's digest over the attacker's before SNP_LAUNCH_FINISH."""
    asking = AskingGuest.of(target)
    guest = asking.guest
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
    yield from asking.ask()
