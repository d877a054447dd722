"""A VM's software elsewhere, as its host reaches it: a batch's answers and the next batch are one exchange of bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from node.operation_codec import load_packed_registers, packed, packed_registers, unpacked
from node.operations import Answer
from node.program import Demand, Registers
from node.tenant import NoBlock, Outcome, TenantSpec
from node.tenant_server import ANSWERS, BATCH, DEMANDS, ENDING, SPEC, Came, TenantVerb

Exchange = Callable[[bytes], bytes]
"""Hands a request to a server and waits for its reply."""


class RemoteTenant:
    """A ``TenantPort`` over an exchange with a ``TenantServer``, which is loaded anew.

    ``gone`` is called once, when the VM is.
    """

    def __init__(self, spec: TenantSpec, exchange: Exchange, gone: Callable[[], None]) -> None:
        self._exchange = exchange
        self._gone = gone
        self._closed = False
        self._ahead: list[tuple[bytes, bytes, Any] | None] = [None] * spec.threads
        """What was read ahead for each vCPU, until its next block begins."""
        entry, demands = self._ask(TenantVerb.LOAD, SPEC.pack(spec))
        self.entry: int = entry
        self.demands: tuple[tuple[Demand, ...], ...] = DEMANDS.parse(demands)

    def begin(self, vcpu: int, registers: Registers) -> Outcome:
        """Start the block at RIP. Raises NoBlock."""
        now = packed_registers(registers)
        ahead, self._ahead[vcpu] = self._ahead[vcpu], None
        if ahead is not None and ahead[0] == now:
            load_packed_registers(ahead[1], registers)
            return _outcome(ahead[2])
        return self._taken(vcpu, registers, self._ask(TenantVerb.BEGIN, vcpu, now))

    def go_on(self, vcpu: int, registers: Registers, answers: tuple[Answer, ...]) -> Outcome:
        """Give the block that runs its answers."""
        request = (vcpu, packed_registers(registers), ANSWERS.pack(answers))
        return self._taken(vcpu, registers, self._ask(TenantVerb.GO_ON, *request))

    def drop(self, vcpu: int) -> None:
        """Break a vCPU's block off."""
        self._tell(TenantVerb.DROP, vcpu)

    def forget(self, vcpu: int) -> None:
        """Throw away every object of a vCPU's program."""
        self._tell(TenantVerb.FORGET, vcpu)

    def rebuild(self, vcpu: int) -> None:
        """Make a vCPU's program anew from its specification."""
        self._tell(TenantVerb.REBUILD, vcpu)

    def close(self) -> None:
        """The VM is gone, and its software with it; a host may say so again."""
        if not self._closed:
            self._closed = True
            self._ask(TenantVerb.CLOSE)
            self._gone()

    def _taken(self, vcpu: int, registers: Registers, reply: Any) -> Outcome:
        after, came, self._ahead[vcpu] = reply
        load_packed_registers(after, registers)
        return _outcome(came)

    def _tell(self, verb: TenantVerb, vcpu: int) -> None:
        self._ahead[vcpu] = None
        if not self._closed:
            self._ask(verb, vcpu)

    def _ask(self, verb: TenantVerb, *arguments: object) -> Any:
        return unpacked(self._exchange(packed((verb, *arguments))))


def _outcome(came: Any) -> Outcome:
    kind, body = came
    if kind == Came.NO_BLOCK:
        raise NoBlock
    outcome: Outcome = BATCH.parse(body) if kind == Came.BATCH else ENDING.parse(body)
    return outcome
