"""Translations of one vCPU serve another of its VM, because nobody flushes them (row 22; Li et al., ACSAC 2021).

Both vCPUs have the ASID of their VM, and page tables of their own. The hypervisor owes a flush when another of them
comes to the thread where one ran.
"""

from __future__ import annotations

from node.operations import VmPreempt, VmRun
from workloads.attacks.target import LET_IT_RUN, Attack, Target

_THREAD = 9


def share_a_thread(target: Target) -> Attack:
    """Row 22: run one process of the victim on a thread, then the other there, and ask VMRUN for no flush."""
    vm = target.victim.vm
    yield LET_IT_RUN
    for vcpu in (0, 1):
        yield (VmPreempt(vm, vcpu), VmRun(vm, vcpu, _THREAD))
        yield LET_IT_RUN
