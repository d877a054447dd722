"""The host's hardware threads in virtual time: phases that run, and one event for the next that ends.

When the set of running phases changes, the next completion is found anew, and
an event for another time than that is void.
"""

from __future__ import annotations

from collections.abc import Callable

from node.clock import Clock
from node.contention import NEVER_NS, Contention, PhaseAccount, PhaseLoad
from node.vcpu import Vcpu


class Cores:
    """Who computes. ``ended`` is called with the vCPUs whose phases end at one instant, in the order of their slots."""

    def __init__(
        self, clock: Clock, contention: Contention, ended: Callable[[list[tuple[Vcpu, PhaseAccount]]], None]
    ) -> None:
        self.contention = contention
        self._clock = clock
        self._ended = ended
        self._computing: dict[int, Vcpu] = {}
        self._completion_ns = -1
        clock.settle = self.settle

    def start(self, vcpu: Vcpu, load: PhaseLoad, instructions: int) -> None:
        """Let a vCPU retire instructions from now on."""
        self.contention.advance(self._clock.now_ns)
        if self.contention.ledger is not None:
            load = load._replace(owner=vcpu.phase)
        vcpu.slot = self.contention.start(load, float(instructions))
        self._computing[vcpu.slot] = vcpu
        self._clock.unsettled = True

    def stop(self, vcpu: Vcpu) -> PhaseAccount:
        """Take a vCPU off its thread before its phase is through."""
        self.contention.advance(self._clock.now_ns)
        del self._computing[vcpu.slot]
        self._clock.unsettled = True
        return self.contention.stop(vcpu.slot)

    def settle(self) -> None:
        """After any change of the running phases: share the host anew and set the completion event."""
        clock = self._clock
        if not clock.unsettled:
            return
        clock.unsettled = False
        # Whoever changed the set brought it up to the present time first.
        completion = self.contention.solve()
        if completion != self._completion_ns:
            self._completion_ns = completion
            if completion != NEVER_NS:
                clock.wake(completion - clock.now_ns, self._on_completion)

    def _on_completion(self, _: object) -> None:
        now = self._clock.now_ns
        if now == self._completion_ns:
            self._completion_ns = -1
            contention = self.contention
            contention.advance(now)
            # First all that end now, then what follows them: a phase that starts now cannot end now.
            slots = contention.completed()
            self._ended([(self._computing.pop(slot), contention.stop(slot)) for slot in slots])
            self._clock.unsettled = True
        self.settle()
