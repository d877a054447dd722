"""The hypervisor fills cache sets with lines of its own and sees which of them the victim used (row 29a).

Where a line goes follows from its system-physical address, which the hypervisor chose. Keys part lines of one address
from each other, not the sets: what the victim loads takes the place of one of the attacker's lines.
"""

from __future__ import annotations

from node.cache_timing import USUAL
from node.data_cache import LINE_BYTES
from node.operations import Answer, HostTimedRead
from workloads.attacks.claims import Claim
from workloads.attacks.target import LET_IT_RUN, Attack, Target
from workloads.attacks.target_page import Page

_ROUNDS = 32
_WAYS, _APART = USUAL.shared.ways, USUAL.shared.sets * LINE_BYTES
"""So many lines fill a set of the shared cache, and so far apart they lie in it; the cores' own is smaller."""


def time_two_sets(target: Target) -> Attack:
    """Row 29a: fill the sets of the two lines that the victim chooses from, and time them after each of its rounds."""
    if_no, if_yes = (_lines(target, page) for page in (target.victim.value, target.victim.other))
    bits = [0]  # its first round was before the attack
    for _ in range(_ROUNDS):
        yield if_no
        yield if_yes
        yield LET_IT_RUN
        no = _together((yield if_no))
        yes = _together((yield if_yes))
        bits.append(int(yes > no))
    yield (Claim(tuple(bits)),)


def _lines(target: Target, page: Page) -> tuple[HostTimedRead, ...]:
    """Loads of the attacker's that fill the set where the first line of a page goes."""
    first = target.ghost_line + page.spa % _APART
    return tuple(HostTimedRead(first + way * _APART) for way in range(_WAYS))


def _together(times: tuple[Answer, ...]) -> int:
    return sum(one for one in times if isinstance(one, int))
