"""Events at VMRUN: which of them it refuses, and what is pending when the guest begins.

The injection fields are the control block's, and the hypervisor's, unless the guest's own SEV_FEATURES say otherwise
(APM volume 2, 15.36.16, as Linux and published guests tell of it: the manual was not at hand). With restricted
injection #HV is all that may be injected, and nothing is queued; without it #HV may not. With alternate injection
the fields of the save area take the place of the control block's: encrypted, for whoever may write there, the guest's
VMPL0. With both, #HV comes from the control block and all else from the save area.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from node import operations as op
from node.control_registers import RFLAGS_IF, RFLAGS_TF
from node.event_injection import V_IRQ, V_TPR, Event, EventType, VirtualInterrupt, virtual_interrupt
from node.fault_answers import FAULTS, answer_to, undefined
from node.generation import CAPABILITIES
from node.platform import Protection
from node.sev_features import features_of
from node.vmcb_fields import ALLOWED_FEATURES_ENABLE, GUEST_INTERRUPT_MASK, VMCB_FIELDS, ControlFields
from node.vmsa import SevFeature

if TYPE_CHECKING:
    from node.board import Board
    from node.vmcb import Vmcb

Key = tuple[str, int]
_SWITCHED = {
    Protection.RESTRICTED_INJECTION: SevFeature.RESTRICTED_INJECTION,
    Protection.ALTERNATE_INJECTION: SevFeature.ALTERNATE_INJECTION,
    Protection.BTB_ISOLATION: SevFeature.BTB_ISOLATION,
    Protection.PMC_VIRTUALIZATION: SevFeature.PMC_VIRTUALIZATION,
}
_OFFSET = "TSC_OFFSET"
_OWN_INJECTION = SevFeature.RESTRICTED_INJECTION | SevFeature.ALTERNATE_INJECTION


class VmrunEvents:
    """The injection fields of every control block of a board, and the events that its vCPUs have not taken yet."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._known = features_of(board.product.name)
        disabled = [feature for protection, feature in _SWITCHED.items() if protection in board.platform.disabled]
        self._honoured = ~sum(disabled)
        self._fields: dict[Key, ControlFields] = {}
        self.waiting: dict[Key, Event | None] = {}
        """vCPUs that may have to take something before their next instruction: the event injected, None for a
        virtual interrupt that waits for the guest to let it."""
        self.raised: dict[Key, int] = {}
        """vCPUs that executed INT n, and the vector."""
        self.stepping: dict[Key, bool] = {}
        """vCPUs with RFLAGS.TF set, and whether an instruction has begun since."""
        self.host_table: Mapping[type, Callable[..., op.Answer]] = {op.VmcbLoad: self._load, op.VmcbStore: self._store}

    def fields(self, vmcb: Vmcb) -> ControlFields:
        """The fields of a control block."""
        found = self._fields.get((vmcb.vm, vmcb.vcpu))
        if found is None:
            found = self._fields[vmcb.vm, vmcb.vcpu] = ControlFields()
        return found

    def field(self, vmcb: Vmcb, name: str) -> int:
        """One field of a control block, of which there may be none yet."""
        found = self._fields.get((vmcb.vm, vmcb.vcpu))
        return 0 if found is None else found.values[name]

    def tsc_offset(self, vm: str) -> int:
        """What is added to the counter that a VM reads: alike for all its vCPUs, whose first one's this is."""
        found = self._fields.get((vm, 0)) if self._fields else None
        return 0 if found is None else found.values[_OFFSET]

    def forget(self, vm: str, vcpu: int | None = None) -> None:
        """A control block was filled anew, which leaves its vCPU the clock that it had, or all of a VM's are gone."""
        if not (self._fields or self.waiting or self.raised or self.stepping):
            return
        known = None if vcpu is None else self._fields.get((vm, vcpu))
        for key in {*self._fields, *self.waiting, *self.raised, *self.stepping}:
            if key[0] == vm and vcpu in (None, key[1]):
                for table in (self._fields, self.waiting, self.raised, self.stepping):
                    table.pop(key, None)
        if known is not None and vcpu is not None and known.values[_OFFSET]:
            self._fields[vm, vcpu] = kept = ControlFields()
            kept.values[_OFFSET] = known.values[_OFFSET]

    # The hypervisor's loads and stores.

    def _load(self, one: op.VmcbLoad) -> op.Answer:
        vmcb = self._board.vmcbs.get(one.vm, {}).get(one.vcpu)
        if vmcb is None or one.field not in VMCB_FIELDS:
            return undefined()
        value = self.fields(vmcb).values[one.field]
        if one.field == "INTERRUPT_STATE" and CAPABILITIES[vmcb.generation].encrypted_registers:
            try:
                flags = self._board.controls.of(vmcb).rflags
            except FAULTS as fault:
                return answer_to(fault, 0)
            value = value & ~GUEST_INTERRUPT_MASK | (GUEST_INTERRUPT_MASK if flags & RFLAGS_IF else 0)
        return value

    def _store(self, one: op.VmcbStore) -> op.Answer:
        vmcb = self._board.vmcbs.get(one.vm, {}).get(one.vcpu)
        if vmcb is None or one.field not in VMCB_FIELDS:
            return undefined()
        if not 0 <= one.value < 1 << 8 * VMCB_FIELDS[one.field][1]:
            return op.Fault(op.FaultKind.GENERAL_PROTECTION, 0)
        self.fields(vmcb).values[one.field] = one.value
        return None

    # VMRUN.

    def accepts(self, vmcb: Vmcb) -> bool:
        """Whether VMRUN accepts the features that the guest asks for and what is to be injected."""
        features = self.features(vmcb)
        known = self._fields.get((vmcb.vm, vmcb.vcpu))
        if not features and known is None:
            return True
        if features & ~self._known:
            return False
        if known is not None and not _allowed(known.values["ALLOWED_SEV_FEATURES"], features):
            return False
        event = None if known is None else Event.of(known.values["EVENTINJ"])
        restricted = bool(features & SevFeature.RESTRICTED_INJECTION)
        if event is not None and (not event.legal or event.doorbell is not restricted):
            return False
        if not features & SevFeature.ALTERNATE_INJECTION:
            return True
        if event is not None and not event.doorbell and self._board.platform.alternate_injection_refuses:
            return False
        own = Event.of(self._saved(vmcb, "EVENTINJ"))
        return own is None or own.legal

    def enter(self, vmcb: Vmcb) -> None:
        """A vCPU begins: its event is taken out of the field, and waits for the next instruction."""
        key = vmcb.vm, vmcb.vcpu
        known = self._fields.get(key)
        features = self.features(vmcb)
        if features and features & SevFeature.IBPB_ON_ENTRY:
            self._board.predictor.barrier(vmcb.core)
        self.waiting.pop(key, None)
        if known is None and (not features or not features & _OWN_INJECTION):
            return
        event = None
        if known is not None:
            event = Event.of(known.values["EVENTINJ"])
            known.values["EVENTINJ"] = 0
            known.values["EXITINTINFO"] = 0
        if features & SevFeature.ALTERNATE_INJECTION and (event is None or not event.doorbell):
            event = Event.of(self._saved(vmcb, "EVENTINJ"))
            if event is not None:
                self._board.controls.store(vmcb, "EVENTINJ", 0)
        if event is not None or self._queued(vmcb, features) is not None:
            self.waiting[key] = event

    def leave(self, vm: str, vcpu: int) -> None:
        """A vCPU exits before it took its event: EXITINTINFO tells of that."""
        event = self.waiting.pop((vm, vcpu), None)
        if event is not None:
            self._fields.setdefault((vm, vcpu), ControlFields()).values["EXITINTINFO"] = event.field

    def put_back(self, vmcb: Vmcb) -> None:
        """What every hypervisor does before it enters a vCPU again: inject what the exit kept from it."""
        known = self._fields.get((vmcb.vm, vmcb.vcpu))
        if known is not None and Event.of(known.values["EVENTINJ"]) is None:
            known.values["EVENTINJ"] = known.values["EXITINTINFO"]

    # While the guest runs.

    def ready(self, vmcb: Vmcb) -> bool:
        """Whether a vCPU takes something before its next instruction; a masked interrupt wakes nobody."""
        key = vmcb.vm, vmcb.vcpu
        if key not in self.waiting:
            return False
        return self.waiting[key] is not None or self._let_in(vmcb, self.features(vmcb)) is not None

    def next_event(self, vmcb: Vmcb) -> Event | None:
        """What a vCPU takes now: an injected event whatever its flags say, a virtual interrupt if it lets it."""
        key = vmcb.vm, vmcb.vcpu
        if key not in self.waiting:
            return None
        event, features = self.waiting[key], self.features(vmcb)
        if event is None:
            interrupt = self._let_in(vmcb, features)
            if interrupt is not None:
                event = Event(interrupt.vector, EventType.INTERRUPT)
                self._set_queue(vmcb, features, self._queue(vmcb, features) & ~V_IRQ)
        if self._queued(vmcb, features) is None:
            del self.waiting[key]
        else:
            self.waiting[key] = None
        return event

    def _let_in(self, vmcb: Vmcb, features: int) -> VirtualInterrupt | None:
        interrupt = self._queued(vmcb, features)
        if interrupt is None or not interrupt.above_tpr:
            return None
        return interrupt if self._board.controls.of(vmcb).rflags & RFLAGS_IF else None

    def flags_changed(self, vmcb: Vmcb, flags: int) -> None:
        """RFLAGS was written: TF traps after the instruction that follows."""
        key = vmcb.vm, vmcb.vcpu
        if not flags & RFLAGS_TF:
            self.stepping.pop(key, None)
        else:
            self.stepping.setdefault(key, False)

    def stepped(self, vmcb: Vmcb) -> bool:
        """Between two instructions: whether the one before is to be followed by #DB."""
        key = vmcb.vm, vmcb.vcpu
        begun = self.stepping.get(key)
        if begun is not None:
            self.stepping[key] = not begun
        return bool(begun)

    def write_tpr(self, vmcb: Vmcb, value: int) -> None:
        """MOV to CR8."""
        features = self.features(vmcb)
        self._set_queue(vmcb, features, self._queue(vmcb, features) & ~V_TPR | value)

    def _queued(self, vmcb: Vmcb, features: int) -> VirtualInterrupt | None:
        if features & SevFeature.RESTRICTED_INJECTION and not features & SevFeature.ALTERNATE_INJECTION:
            return None
        return virtual_interrupt(self._queue(vmcb, features))

    def _queue(self, vmcb: Vmcb, features: int) -> int:
        if features & SevFeature.ALTERNATE_INJECTION:
            return self._saved(vmcb, "VINTR_CTRL")
        known = self._fields.get((vmcb.vm, vmcb.vcpu))
        return 0 if known is None else known.values["V_INTR"]

    def _set_queue(self, vmcb: Vmcb, features: int, value: int) -> None:
        if features & SevFeature.ALTERNATE_INJECTION:
            self._board.controls.store(vmcb, "VINTR_CTRL", value)
        else:
            self.fields(vmcb).values["V_INTR"] = value

    def features(self, vmcb: Vmcb) -> int:
        """SEV_FEATURES that count for a vCPU: of an SNP guest's save area, what works on this board."""
        return self._saved(vmcb, "SEV_FEATURES") & self._honoured if vmcb.rmp_checked else 0

    def _saved(self, vmcb: Vmcb, name: str) -> int:
        return self._board.controls.load(vmcb, name)


def _allowed(allowed: int, features: int) -> bool:
    return not allowed & ALLOWED_FEATURES_ENABLE or not features & ~allowed
