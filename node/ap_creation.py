"""AP creation as a hypervisor serves it: a vCPU runs with a save area that the guest made for it.

As KVM (arch/x86/kvm/svm/sev.c, sev_snp_ap_creation): the vCPU exists, the features are the VM's, the page is the
guest's memory and not at the beginning of 2 MiB. That it is a save area, validated and of no other VM, is for VMRUN to
find. Here a vCPU cannot replace or end the save area that it exits from.
"""

from __future__ import annotations

from collections.abc import Generator

from node import operations as op
from node.ghcb_page import BadInput, GhcbRefused
from node.hypervisor_port import Answers, Batch
from node.launched_vm import LaunchedVm
from node.nae_event import ApCreation, ApCreationKind
from psp.system_bus import LARGE_PAGE_BYTES

NO_SAVE_AREA = (1 << 64) - 1
"""In place of a save area's SPA: VMRUN accepts no such block."""

Creating = Generator[Batch, Answers, None]


def serve_ap_creation(vm: str, record: LaunchedVm, vcpu: int, asked: ApCreation) -> Creating:
    """Start another vCPU at VMPL0, keep its save area for its next INIT, or end it. Raises GhcbRefused."""
    if asked.apic_id >= len(record.save_areas):
        raise GhcbRefused(BadInput.INVALID_INPUT, "SW_EXITINFO1")
    if asked.kind is ApCreationKind.CREATE_ON_INIT:
        record.on_init[asked.apic_id] = _area(record, asked)
        return
    if asked.apic_id == vcpu:
        raise GhcbRefused(BadInput.INVALID_INPUT, "SW_EXITINFO1")
    if asked.kind is ApCreationKind.DESTROY:
        yield _point(vm, record, asked.apic_id, NO_SAVE_AREA)
        return
    yield from start_vcpu(vm, record, asked.apic_id, _area(record, asked))


def start_vcpu(vm: str, record: LaunchedVm, vcpu: int, spa: int) -> Creating:
    """Run a vCPU with a save area and no other. Raises GhcbRefused if VMRUN refuses it, with the vCPU out."""
    *_, code = yield (*_point(vm, record, vcpu, NO_SAVE_AREA), *_point(vm, record, vcpu, spa))
    if code != 0:
        raise GhcbRefused(BadInput.INVALID_INPUT, "SW_EXITINFO2")
    record.created[vcpu] = spa
    if record.vmpls is not None:
        record.vmpls.areas[vcpu, 0] = spa
        record.vmpls.running.pop(vcpu, None)


def _area(record: LaunchedVm, asked: ApCreation) -> int:
    spa = record.page_spa(asked.vmsa_gpa)
    if spa is None or not asked.vmsa_gpa % LARGE_PAGE_BYTES:
        raise GhcbRefused(BadInput.INVALID_INPUT, "SW_EXITINFO2")
    if asked.sev_features != record.sev_features:
        raise GhcbRefused(BadInput.INVALID_INPUT, "RAX")
    return spa


def _point(vm: str, record: LaunchedVm, vcpu: int, spa: int) -> Batch:
    # Whoever waited there for a start does not any more, nor does a save area for an INIT.
    record.starts.holds.pop(vcpu, None)
    record.on_init.pop(vcpu, None)
    return op.VmcbWrite(vm, vcpu, record.asid, record.generation.name, spa), op.VmKick(vm, vcpu)
