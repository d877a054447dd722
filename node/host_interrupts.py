"""Interrupts of cards on one host: whose they are, and that a vCPU which waits for one awakes.

The host routes by who sends: it assigns a function to a vCPU, as it does before it gives a guest the device. What a
vector means is for the device's driver to find out, who looks at the rings that it shares with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from node.card_memory import MessageInterrupt
from node.guest import GuestState

if TYPE_CHECKING:
    from node.host import Host


class HostInterrupts:
    """Routes from functions to vCPUs. ``lost`` counts interrupts of functions that nobody has, or whose VM is gone."""

    def __init__(self, host: Host) -> None:
        self.brought = 0
        self.lost = 0
        self._host = host
        self._routes: dict[int, tuple[str, int]] = {}

    def assign(self, requester: int, vm: str, vcpu: int = 0) -> None:
        """A function's interrupts are a vCPU's from now on."""
        self._routes[requester] = vm, vcpu

    def release(self, requester: int) -> None:
        """They are nobody's any more."""
        self._routes.pop(requester, None)

    def release_all(self, vm: str) -> None:
        """Those of a VM's functions are nobody's any more."""
        if self._routes:
            self._routes = {requester: route for requester, route in self._routes.items() if route[0] != vm}

    def arrived(self, interrupt: MessageInterrupt) -> None:
        """Bring one to its vCPU, after whatever is just taking effect."""
        route = self._routes.get(interrupt.requester)
        if route is None:
            self.lost += 1
            return
        self._host.clock.after(0, lambda: self._bring(*route))

    def _bring(self, vm: str, index: int) -> None:
        guest = self._host.guests.get(vm)
        if guest is None or guest.state is not GuestState.RUNNING or not 0 <= index < len(guest.vcpus):
            self.lost += 1
            return
        self.brought += 1
        self._host.vcpus.call(guest.vcpus[index])
