"""How many vCPUs a host holds: those of VMs that run or are paused."""

from __future__ import annotations


class Seats:
    """The seats that VMs have taken, one for each of their vCPUs, and how many there were at most."""

    def __init__(self) -> None:
        self.peak = 0
        self._taken = 0
        self._by_vm: dict[str, int] = {}

    def take(self, vm: str, vcpus: int) -> None:
        """A VM is put up; one that has seats keeps those."""
        if vm not in self._by_vm:
            self._by_vm[vm] = vcpus
            self._taken += vcpus
            self.peak = max(self.peak, self._taken)

    def free(self, vm: str) -> None:
        """It does not run here any more; one without seats is left alone."""
        self._taken -= self._by_vm.pop(vm, 0)
