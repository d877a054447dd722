"""A device that is not what its victim takes it for (rows 72, 73, 78 and 85).

It is of another make, runs other firmware since it was attested or since before, or is another of the same make.
"""

from __future__ import annotations

from node.operations import CardUpdate, HostRead
from workloads.attacks.slot_operations import CardConfide, CardRecall
from workloads.attacks.target import LET_IT_RUN, Attack, Target

_EVIL = "2.0", 2, b"firmware that tells everything"


def impersonate(target: Target) -> Attack:
    """Row 72: what stands in the slot is of the attacker's make, and tells what it is given."""
    port = target.device.port
    yield (CardConfide(port),)
    yield LET_IT_RUN
    yield LET_IT_RUN
    yield (CardRecall(port),)


def update_firmware(target: Target) -> Attack:
    """Row 73: once the device is trusted, other firmware is brought to it, which tells what it is given."""
    port = target.device.port
    yield LET_IT_RUN
    yield (CardUpdate(port, *_EVIL),)
    yield (CardConfide(port),)
    yield LET_IT_RUN
    yield (CardRecall(port),)


def give_another(target: Target) -> Attack:
    """Row 78: the victim was given another device of the kind, with more memory; that is all."""
    yield (HostRead(target.spare[0], 16),)
    yield LET_IT_RUN
