"""A device that is not what its victim takes it for (rows 72, 73, 78, 84 and 85).

It is of another make, runs other firmware since it was attested or since before, is another of the same make, or
forgets nothing.
"""

from __future__ import annotations

from node.operations import CardUpdate, HostRead, MmioRead
from tio.gpu import MEMORY_BAR
from workloads.attacks.depositor import CONTENT_BYTES, SECRET_ON_DEVICE
from workloads.attacks.slot_operations import CardConfide, CardRecall
from workloads.attacks.target import LET_IT_RUN, Attack, Target

EVIL = "2.0", 2, b"firmware that tells everything"


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
    yield (CardUpdate(port, *EVIL),)
    yield (CardConfide(port),)
    yield LET_IT_RUN
    yield (CardRecall(port),)


def give_another(target: Target) -> Attack:
    """Row 78: the victim was given another device of the kind, with more memory; that is all."""
    yield (HostRead(target.spare[0], 16),)
    yield LET_IT_RUN


def hand_over_old_evidence(target: Target) -> Attack:
    """Row 85: the device is measured, then changed, and its evidence of before handed over."""
    device = target.device
    yield from device.tio.bind(device.given, device.gctx)
    yield from device.tio.unbind(device.given, device.gctx)
    device.tio.measures_anew = False
    yield (CardUpdate(device.port, *EVIL),)
    yield (CardConfide(device.port),)
    yield LET_IT_RUN
    yield LET_IT_RUN
    yield (CardRecall(device.port),)


def read_what_is_left(target: Target) -> Attack:
    """Row 84: when the victim has let its device go, whoever has it next reads its memory."""
    memory = target.device.bar(MEMORY_BAR)
    yield LET_IT_RUN
    yield LET_IT_RUN
    yield tuple(MmioRead(memory + SECRET_ON_DEVICE + at) for at in range(0, CONTENT_BYTES, 8))
