"""What a vCPU's time in its hypervisor goes to: pages, cards' links, the security processor, and its queue."""

from __future__ import annotations

from typing import NamedTuple

from node.guest import Guest
from node.mechanism import Mechanism
from node.vcpu_levels import charge_svsm


class ExitTimes(NamedTuple):
    """Nanoseconds of a batch's exits; those at the security processor are what the guest's books say more than here."""

    changed: int
    moved: int
    ide: float
    """The part of ``moved`` that is IDE's."""
    waited_before: int
    served_before: int

    def charge(self, guest: Guest, spent: int, *, below: bool) -> None:
        """Book ``spent``, all of them; ``below`` where they were an SVSM's."""
        waited, served = guest.psp_wait_ns - self.waited_before, guest.psp_service_ns - self.served_before
        guest.operation_ns += spent
        guest.lost_ns[Mechanism.PSP_WAIT] += waited
        if below:
            charge_svsm(guest, spent - waited)
        else:
            guest.lost_ns[Mechanism.PSP] += served
            guest.lost_ns[Mechanism.ACCEPTANCE] += self.changed
            guest.lost_ns[Mechanism.LINK] += self.moved - self.ide
            guest.lost_ns[Mechanism.IDE] += self.ide
