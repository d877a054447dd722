"""Somebody on the link between a root port and the victim's device (rows 76, 77 and 86 to 88).

What the device sends back of the deposit is altered, dropped, or followed by that of an earlier round.
"""

from __future__ import annotations

from collections.abc import Callable

from psp.system_bus import PAGE_BYTES
from tio.ide.link import Tap
from workloads.attacks.depositor import DEPOSIT_AT, LARGE_BYTES
from workloads.attacks.link_taps import Alter, AnswerLater, Delay, Drop, Overtake, Repeat, Wanted, listen, written_to
from workloads.attacks.slot_operations import LinkLeave, LinkTap
from workloads.attacks.target import LET_IT_RUN, Attack, Target

_DEPOSIT_BYTES = 64


def sniff(target: Target) -> Attack:
    """Row 77: look at every packet of a round."""
    yield LET_IT_RUN
    yield (LinkTap(target.device.port, listen),)
    yield LET_IT_RUN
    yield (LinkLeave(target.device.port),)


def alter(target: Target) -> Attack:
    """Row 76: flip bits of what comes back."""
    yield from _meddle(target, Alter)


def drop(target: Target) -> Attack:
    """Row 76: let it not come back: what came in the round before is there still."""
    yield from _meddle(target, Drop)


def repeat(target: Target) -> Attack:
    """Row 76: let what came back once come again after what comes now."""
    yield from _meddle(target, Repeat)


def _meddle(target: Target, kind: Callable[[Wanted], Tap]) -> Attack:
    device = target.device
    yield LET_IT_RUN
    yield (LinkTap(device.port, kind(written_to(device.inbox.gpa + DEPOSIT_AT, _DEPOSIT_BYTES)), tells=False),)
    yield LET_IT_RUN
    yield LET_IT_RUN
    yield (LinkLeave(device.port),)


def reorder(target: Target) -> Attack:
    """Row 86: what says that data has come arrives before the data, which the device sent first."""
    device = target.device
    yield LET_IT_RUN
    yield (LinkTap(device.port, Overtake(written_to(device.inbox.gpa + PAGE_BYTES, LARGE_BYTES)), tells=False),)
    yield LET_IT_RUN
    yield (LinkLeave(device.port),)


def redirect(target: Target) -> Attack:
    """Row 87: an answer is held until its request has timed out, and answers the next one."""
    device = target.device
    yield LET_IT_RUN
    yield (LinkTap(device.port, AnswerLater(), tells=False),)
    yield LET_IT_RUN
    yield (LinkLeave(device.port),)


def outlast(target: Target) -> Attack:
    """Row 88: what the device sent while the victim had it is held until it is given away again, and comes then."""
    device = target.device
    delay = Delay(written_to(device.inbox.gpa + PAGE_BYTES, LARGE_BYTES))
    yield LET_IT_RUN
    yield LET_IT_RUN
    yield (LinkTap(device.port, delay, tells=False),)
    yield LET_IT_RUN
    delay.due = True
    yield LET_IT_RUN
    yield LET_IT_RUN
