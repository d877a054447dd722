"""How a hypervisor brings interrupts to its guests, and the exits about that.

A guest without features of its own gets an interrupt queued in its control block (V_INTR), which the processor hands
over when the guest lets it. One with restricted injection has a doorbell page: the vector goes there, and #HV is
injected unless the guest was told already. Into one with alternate injection nobody out here brings anything. As in
KVM's patches for restricted injection (arch/x86/kvm/svm/sev.c).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping

from node import nae_event as nae
from node import operations as op
from node.ap_creation import start_vcpu
from node.ap_reset_hold import receive_init, receive_sipi
from node.event_injection import V_IRQ, ExceptionVector, exception, virtual_interrupt_field
from node.ghcb_page import BadInput, GhcbExit, GhcbRefused
from node.hv_doorbell import NO_FURTHER_SIGNAL, NOWHERE, PENDING_BYTES, Doorbell, DoorbellAction
from node.hypervisor_port import Answers, Batch
from node.interrupt_command import ALL, FIXED, INIT, LOWEST_VECTOR, OTHERS, SELF, STARTUP
from node.launched_vm import LaunchedVm
from node.nae_event import NaeEvent
from node.nae_reply import NOTHING, NaeReply, Serve
from node.vmsa import SevFeature
from psp.system_bus import PAGE_BYTES

Bringing = Generator[Batch, Answers, bool]

_DOORBELL_MODES = frozenset({FIXED, INIT})
ICR_MODES = _DOORBELL_MODES | {STARTUP}
"""Delivery modes: INIT counts for a vCPU that has a save area waiting or is held in reset, SIPI for the latter."""


class InterruptServer:
    """Serves one hypervisor's guests."""

    def __init__(self) -> None:
        self.events: Mapping[int, Callable[..., Serve]] = {
            NaeEvent.HV_DOORBELL_PAGE: self._doorbell,
            NaeEvent.HV_IPI: self._ipi,
        }

    def interrupt(self, vm: str, record: LaunchedVm, vcpu: int, vector: int) -> Bringing:
        """Bring an interrupt to a vCPU while it is stopped; False where it cannot be, or one waits already."""
        if vcpu in record.starts.holds:
            return False
        if record.sev_features & SevFeature.RESTRICTED_INJECTION:
            return (yield from self._ring(vm, record, vcpu, vector))
        if record.sev_features & SevFeature.ALTERNATE_INJECTION:
            return False
        (queued,) = yield (op.VmcbLoad(vm, vcpu, "V_INTR"),)
        if not isinstance(queued, int) or queued & V_IRQ:
            return False
        tpr = queued & 0xFF
        _, code = yield (
            op.VmcbStore(vm, vcpu, "V_INTR", virtual_interrupt_field(vector, tpr)), op.VmKick(vm, vcpu)
        )  # fmt: skip
        return code == 0

    def _ring(self, vm: str, record: LaunchedVm, vcpu: int, vector: int) -> Bringing:
        gpa = record.doorbells.get(vcpu)
        spa = None if gpa is None else record.page_spa(gpa)
        if spa is None:
            return False
        (octets,) = yield (op.HostRead(spa, PENDING_BYTES),)
        if not isinstance(octets, bytes):
            return False
        pending = Doorbell.of(octets)
        if pending.vector:
            return False
        flags = pending.flags | NO_FURTHER_SIGNAL
        (wrote,) = yield (op.HostWrite(spa, bytes((vector, flags))),)
        if wrote is not None:
            return False
        if pending.silent:
            return True
        doorbell = op.VmcbStore(vm, vcpu, "EVENTINJ", exception(ExceptionVector.HV).field)
        _, code = yield (doorbell, op.VmKick(vm, vcpu))
        return code == 0

    # Exits.

    def _doorbell(self, _vm: str, record: LaunchedVm, vcpu: int, _exit: GhcbExit, asked: nae.InfoRequest) -> Serve:
        _only_restricted(record)
        if asked.info1 == DoorbellAction.GET_PREFERRED:
            return NaeReply(info2=NOWHERE)
        if asked.info1 == DoorbellAction.SET:
            if asked.info2 % PAGE_BYTES or record.page_spa(asked.info2) is None:
                raise GhcbRefused(BadInput.INVALID_INPUT, "SW_EXITINFO2")
            record.doorbells[vcpu] = asked.info2
            return NaeReply(info2=asked.info2)
        if asked.info1 == DoorbellAction.QUERY:
            return NaeReply(info2=record.doorbells.get(vcpu, NOWHERE))
        if asked.info1 == DoorbellAction.CLEAR:
            record.doorbells.pop(vcpu, None)
            return NOTHING
        raise GhcbRefused(BadInput.INVALID_INPUT, "SW_EXITINFO1")
        yield ()

    def _ipi(self, vm: str, record: LaunchedVm, vcpu: int, _exit: GhcbExit, asked: nae.InfoRequest) -> Serve:
        _only_restricted(record)
        return (yield from self.send(vm, record, vcpu, asked.info1, _DOORBELL_MODES))

    def send(self, vm: str, record: LaunchedVm, vcpu: int, icr: int, modes: frozenset[int]) -> Serve:
        """An interrupt, INIT or SIPI to one vCPU or several, as an interrupt command register says it.

        One for which an interrupt waits already misses the next. Raises GhcbRefused for what is none of ``modes``.
        """
        vector, mode, shorthand, target = icr & 0xFF, icr >> 8 & 7, icr >> 18 & 3, icr >> 32
        if mode not in modes or (mode == FIXED and vector < LOWEST_VECTOR):
            raise GhcbRefused(BadInput.INVALID_INPUT, "SW_EXITINFO1")
        everyone = range(len(record.save_areas))
        to = {
            SELF: [vcpu],
            ALL: list(everyone),
            OTHERS: [one for one in everyone if one != vcpu],
        }.get(shorthand, [target] if target in everyone else [])
        for one in to:
            if mode == FIXED:
                yield from self.interrupt(vm, record, one, vector)
            elif one == vcpu:
                continue
            elif mode == STARTUP:
                yield from receive_sipi(vm, record, one)
            elif one in record.on_init:
                yield from start_vcpu(vm, record, one, record.on_init[one])
            else:
                receive_init(record, one)
        return NOTHING


def _only_restricted(record: LaunchedVm) -> None:
    """These exits came with restricted injection; to others they are as good as unknown."""
    if not record.sev_features & SevFeature.RESTRICTED_INJECTION:
        raise GhcbRefused(BadInput.INVALID_EVENT, "SW_EXITCODE")
