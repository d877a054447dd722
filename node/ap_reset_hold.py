"""AP reset hold: a vCPU with encrypted registers waits in an exit until another vCPU starts it.

No hypervisor can set such a vCPU's registers as INIT and SIPI would. So it says itself, by message 006 or event
80000004, that it waits, and runs on from there when they come: the answer is not zero then (KVM,
sev_vcpu_deliver_sipi_vector). As on hardware a SIPI counts for a vCPU that has had an INIT and not run since; one that
comes before the vCPU waits is kept for it. What waits takes no interrupts.
"""

from __future__ import annotations

from node import operations as op
from node.exit_instructions import HELD_IN_RESET
from node.ghcb_msr import ApResetHold
from node.ghcb_page import GhcbExit, Outcome, build_reply
from node.launched_vm import LaunchedVm
from node.nae_reply import NOTHING, NaeReply, Serve

_WOKEN = 1
"""Any number but zero."""


def hold_by_message(record: LaunchedVm, vcpu: int) -> int:
    """The answer to message 006, at once or when the vCPU is started."""
    woken = ApResetHold(_WOKEN).value
    return woken if _hold(record, vcpu, woken, None) else HELD_IN_RESET


def hold_by_event(record: LaunchedVm, vcpu: int, exit_: GhcbExit) -> NaeReply:
    """The answer to event 80000004."""
    if _hold(record, vcpu, exit_.gpa, record.page_spa(exit_.gpa)):
        return NaeReply(info2=_WOKEN)
    return NaeReply(ends=HELD_IN_RESET)


def _hold(record: LaunchedVm, vcpu: int, value: int, page_spa: int | None) -> bool:
    """Whether a start has come already."""
    if vcpu in record.starts.had_sipi:
        record.starts.had_sipi.remove(vcpu)
        return True
    record.starts.holds[vcpu] = value, page_spa
    return False


def receive_init(record: LaunchedVm, vcpu: int) -> None:
    """INIT of a vCPU whose registers are its own: what it does is its affair, but a SIPI counts from now on."""
    record.starts.had_init.add(vcpu)


def receive_sipi(vm: str, record: LaunchedVm, vcpu: int) -> Serve:
    """SIPI: a vCPU that waits goes on."""
    starts = record.starts
    if vcpu not in starts.had_init:
        return NOTHING
    starts.had_init.remove(vcpu)
    if vcpu not in starts.holds:
        starts.had_sipi.add(vcpu)
        return NOTHING
    value, spa = starts.holds.pop(vcpu)
    reply = () if spa is None else (op.HostWrite(spa, build_reply(Outcome.SUCCESS, _WOKEN)),)
    yield (*reply, op.VmcbStore(vm, vcpu, "GHCB_GPA", value), op.VmKick(vm, vcpu))
    return NOTHING
