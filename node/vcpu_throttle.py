"""How a hypervisor slows the vCPUs of a VM that writes faster than it can be copied.

QEMU has each stand still for a share of its time (auto-converge), or for as long as keeps what it writes below a limit
(dirty-limit, on the dirty ring). Here a phase is held to the rate that this leaves it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from node.contention import PhaseLoad
from node.host_events import HostEvent
from node.vcpu import Vcpu, VcpuState

if TYPE_CHECKING:
    from node.guest import Guest
    from node.vcpu_runner import VcpuRunner


@dataclass(frozen=True, slots=True)
class Throttle:
    """``standing_still`` is a share of time; ``most_bytes_per_s`` what a vCPU may write, 0 for no limit."""

    standing_still: float
    most_bytes_per_s: float

    def held(self, load: PhaseLoad, latency_ns: float, written_bytes: float) -> PhaseLoad:
        """A load under this throttle; ``written_bytes`` an instruction are written to the set that is copied."""
        caps = [load.cap_per_ns] if load.cap_per_ns else []
        if self.standing_still:
            caps.append((1.0 - self.standing_still) / (load.core_ns + load.miss * latency_ns))
        if self.most_bytes_per_s and written_bytes:
            caps.append(self.most_bytes_per_s * 1e-9 / written_bytes)
        return load._replace(cap_per_ns=min(caps)) if caps else load


def held_load(vcpu: Vcpu, load: PhaseLoad, latency_ns: float) -> PhaseLoad:
    """The load of the phase that a vCPU is about to begin, in a VM that is slowed down."""
    throttle = vcpu.guest.throttle
    assert throttle is not None
    vcpu.slowed = True
    demand = vcpu.guest.software.demands[vcpu.index][vcpu.registers.r14]
    written = demand.written_bytes_per_kilo_instruction / 1000.0 if demand.written_set_bytes else 0.0
    return throttle.held(load, latency_ns, written)


def slow_down(runner: VcpuRunner, guest: Guest, throttle: Throttle | None, now_ns: int) -> None:
    """Slow a VM down, or let it go at its own pace again: phases that run are entered anew."""
    guest.throttle = throttle
    still, most = (throttle.standing_still, throttle.most_bytes_per_s) if throttle is not None else (0.0, 0.0)
    guest.chain.note(now_ns, HostEvent.SLOWED, round(still * 1e6), round(most), 0)
    for vcpu in guest.vcpus:
        if vcpu.state is VcpuState.COMPUTING:
            runner.halt(vcpu, VcpuState.BLOCK)
            runner.start(vcpu)
