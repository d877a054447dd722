"""What a hypervisor keeps of the starts of one VM's vCPUs."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class ApStarts:
    """Written by ``node.ap_reset_hold``, in the order in which the exits come."""

    holds: dict[int, tuple[int, int | None]] = field(default_factory=dict)
    """Who waits: the GHCB MSR's value when it goes on, and the SPA of its GHCB page if it asked by that."""
    had_init: set[int] = field(default_factory=set)
    had_sipi: set[int] = field(default_factory=set)
    """After their INIT and before they waited."""

    @property
    def halfway(self) -> bool:
        """Whether a vCPU is on its way out of reset, which no other hypervisor would know."""
        return bool(self.holds or self.had_init or self.had_sipi)
