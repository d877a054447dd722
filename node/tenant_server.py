"""A VM's software behind bytes: where it lives in a process of its own, a request goes in and a reply comes out.

Reading ahead: when a block has ended, what the vCPU will begin next is known but
for what happens to it meanwhile, so the next block is begun at once, and its
first batch travels with the reply. The caller uses it if the registers are then
as they were foreseen; otherwise it says BEGIN, and nothing was lost: between
blocks a program is nothing but its registers and memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum
from functools import partial
from typing import Any

from node.operation_codec import form_of, load_packed_registers, packed, packed_registers, unpacked
from node.operations import Answer, Await, Compute, GuestOperation, Sleep
from node.program import Demand, Ending, ProgramFactory, Registers
from node.tenant import NoBlock, Outcome, Tenant, TenantSpec
from node.vcpu import AWAITING, SLEEPING


class TenantVerb(IntEnum):
    """What is asked; what comes with it, and what the reply is made of."""

    LOAD = 0
    """The specification. Reply: entry and demands."""
    BEGIN = 1
    """vCPU, registers. Reply: registers, outcome, and what was read ahead: registers before and after, and outcome."""
    GO_ON = 2
    """vCPU, registers, answers. Reply: as for BEGIN."""
    DROP = 3
    """vCPU. Reply: nothing, as of all that follow."""
    FORGET = 4
    REBUILD = 5
    CLOSE = 6


class Came(IntEnum):
    """What a block came to."""

    BATCH = 0
    END = 1
    NO_BLOCK = 2


SPEC = form_of(TenantSpec)
DEMANDS = form_of(tuple[tuple[Demand, ...], ...])
BATCH = form_of(tuple[GuestOperation, ...])
ANSWERS = form_of(tuple[Answer, ...])
ENDING = form_of(Ending)


class TenantServer:
    """Holds one VM's software at a time; ``operations`` counts those whose answers came back."""

    def __init__(self, programs: Mapping[str, ProgramFactory]) -> None:
        self.operations = 0
        self._programs = programs
        self._tenant: Tenant | None = None
        self._registers: list[Registers] = []
        """Those that each vCPU's block was begun with."""
        self._verbs: Mapping[int, Callable[..., Any]] = {
            TenantVerb.LOAD: self._load,
            TenantVerb.BEGIN: self._begin,
            TenantVerb.GO_ON: self._go_on,
            TenantVerb.DROP: partial(self._change, Tenant.drop),
            TenantVerb.FORGET: partial(self._change, Tenant.forget),
            TenantVerb.REBUILD: partial(self._change, Tenant.rebuild),
            TenantVerb.CLOSE: self._close,
        }

    def exchange(self, request: bytes) -> bytes:
        """Do what is asked. Raises CodecError for what is no request, and whatever a program raises."""
        verb, *arguments = unpacked(request)
        return packed(self._verbs[verb](*arguments))

    @property
    def _there(self) -> Tenant:
        assert self._tenant is not None
        return self._tenant

    def _load(self, spec: Any) -> tuple[int, Any]:
        wanted: TenantSpec = SPEC.parse(spec)
        self._tenant = tenant = Tenant(wanted, self._programs[wanted.program.name])
        self._registers = [Registers() for _ in range(wanted.threads)]
        self.operations = 0
        return tenant.entry, DEMANDS.pack(tenant.demands)

    def _begin(self, vcpu: int, data: Any) -> tuple[Any, ...]:
        return self._reply(vcpu, *self._begun(vcpu, data))

    def _begun(self, vcpu: int, data: Any) -> tuple[Registers, Outcome | NoBlock]:
        registers = self._registers[vcpu] = Registers()
        load_packed_registers(data, registers)
        try:
            return registers, self._there.begin(vcpu, registers)
        except NoBlock as none:
            return registers, none

    def _go_on(self, vcpu: int, data: Any, answers: Any) -> tuple[Any, ...]:
        there = ANSWERS.parse(answers)
        self.operations += len(there)
        registers = self._registers[vcpu]
        load_packed_registers(data, registers)
        return self._reply(vcpu, registers, self._there.go_on(vcpu, registers, there))

    def _reply(self, vcpu: int, registers: Registers, outcome: Outcome | NoBlock) -> tuple[Any, ...]:
        return packed_registers(registers), _came(outcome), self._ahead(vcpu, registers, outcome)

    def _ahead(self, vcpu: int, registers: Registers, outcome: Outcome | NoBlock) -> tuple[Any, ...] | None:
        """The next block begun with the registers that its vCPU will have if it is left alone."""
        if not (outcome is None or isinstance(outcome, (Compute, Sleep, Await))):
            return None
        foreseen = _after(registers, outcome)
        try:
            then, following = self._begun(vcpu, foreseen)
        except Exception:  # noqa: BLE001 - if it comes to this block, it will be raised again
            self._there.drop(vcpu)
            return None
        return foreseen, packed_registers(then), _came(following)

    def _change(self, change: Callable[[Tenant, int], None], vcpu: int) -> None:
        change(self._there, vcpu)

    def _close(self) -> None:
        self._tenant, self._registers = None, []


def _after(registers: Registers, ending: Ending) -> bytes:
    """A vCPU's registers when its next block begins, as ``VcpuRunner`` leaves them after a whole phase or sleep."""
    r14 = registers.r14
    if isinstance(ending, Compute) and ending.instructions > 0:
        r14 = ending.demand
    elif isinstance(ending, Sleep) and ending.duration_ns > 0:
        r14 = SLEEPING
    elif isinstance(ending, Await) and ending.most_ns > 0:
        r14 = AWAITING
    else:
        return packed_registers(registers)
    following = Registers()
    load_packed_registers(packed_registers(registers), following)
    following.r14, following.r15 = r14, 0
    return packed_registers(following)


def _came(outcome: Outcome | NoBlock) -> tuple[int, Any]:
    if isinstance(outcome, tuple):
        return Came.BATCH, BATCH.pack(outcome)
    if isinstance(outcome, NoBlock):
        return Came.NO_BLOCK, None
    return Came.END, ENDING.pack(outcome)
