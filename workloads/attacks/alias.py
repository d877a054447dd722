"""Two addresses for one cell: what the RMP says of one of them it does not say of the other (rows 35a, 39)."""

from __future__ import annotations

from collections.abc import Generator

from node.operations import Answer, HostRead, HostWrite
from workloads.attacks.dimm_operations import DimmGround, DimmUnground
from workloads.attacks.target import LET_IT_RUN, WRITE_BACK, Attack, AttackBatch, Target
from workloads.attacks.vault import PAGE_BYTES

Look = Generator[AttackBatch, tuple[Answer, ...], Answer]


def replay_through_ghost(target: Target) -> Attack:
    """Row 35a (BadRAM): the modules claim a line that they do not have; replay through the ghost of the page."""
    ghost = target.victim.value.spa | target.ghost_line
    yield LET_IT_RUN
    yield WRITE_BACK
    (old,) = yield (HostRead(ghost, PAGE_BYTES),)
    yield LET_IT_RUN
    yield WRITE_BACK
    if isinstance(old, bytes):
        yield (HostWrite(ghost, old),)
        yield WRITE_BACK


def replay_through_interposer(target: Target) -> Attack:
    """Row 39 (Battering RAM): the same, but the ghost is there only while a switch on the bus is on."""
    ghost = target.victim.value.spa | target.ghost_line
    yield LET_IT_RUN
    yield WRITE_BACK
    old = yield from _while_grounded(target, HostRead(ghost, PAGE_BYTES))
    yield LET_IT_RUN
    yield WRITE_BACK
    if isinstance(old, bytes):
        yield from _while_grounded(target, HostWrite(ghost, old))


def _while_grounded(target: Target, one: HostRead | HostWrite) -> Look:
    yield (DimmGround(target.ghost_line),)
    (answer,) = yield (one,)
    yield WRITE_BACK
    yield (DimmUnground(target.ghost_line),)
    return answer
