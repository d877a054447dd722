"""A guest tries to keep its host, and with it everybody else, from going on (row 42).

Its vCPU spins, and its operations name as much as their operands hold.
"""

from __future__ import annotations

from node.operations import Clflush, PageStateChange, PValidate, Read, RmpAdjust, VirtualRead, VmPreempt
from workloads.attacks.target import LET_IT_RUN, Attack, Target

_ALL = 1 << 46
"""As much as any guest can name."""


def never_yield(target: Target) -> Attack:
    """Row 42: ask for everything at once, from a vCPU that spins; the host takes its thread back and goes on."""
    gpa = target.tenant.value.gpa
    for one in (
        Read(0, _ALL), Read(0, _ALL, private=False), Clflush(0, _ALL), VirtualRead(0, _ALL),
        PValidate(0, _ALL, large=False), RmpAdjust(0, _ALL, False, 1, 0), PageStateChange(0, _ALL, shared=True),
        Read(gpa, 1),
    ):  # fmt: skip
        yield (one,)
        yield (VmPreempt(target.tenant.vm, 0),)
        yield LET_IT_RUN
