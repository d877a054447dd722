"""What a hypervisor does about the devices of a guest that it moves: wanted back, taken, brought again, disconnected.

While the guest works it is only asked (``node.device_notice``). Once it stands still its devices are reset and reach
nothing, before a page of it leaves; they stay its own until the move is decided. Where it came others stand in their
places before it runs. A source that has let the guest go disconnects cards that nobody uses any more, so that no key
of their links is left either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from node.hypervisor_port import LaunchRefused, Task
from node.launched_vm import LaunchedVm
from node.machine_spec import MachineSpec
from node.migration_refusal import MigrationRefusal

if TYPE_CHECKING:
    from node.hypervisor import Hypervisor


def ask_devices(self: Hypervisor, vm: str, wanted: bool) -> Task:
    """Say to a guest that its devices are wanted, or that they are not any more. One that is gone hears nothing."""
    record = self._vms.get(vm)
    if record is not None:
        record.notice.wanted = wanted
    return
    yield ()


def give_devices(self: Hypervisor, spec: MachineSpec, record: LaunchedVm) -> Task:
    """Functions for a VM that is about to run. Raises LaunchRefused with nothing given."""
    c_bit = 1 << self.product.c_bit if record.c_bit else 0
    record.functions = yield from self.tio.give(
        spec.name, spec.devices, record.shown_to_devices(), c_bit, record.tables, record.asid
    )


def park_devices(self: Hypervisor, vm: str, record: LaunchedVm) -> Task:
    """Stop the devices of a guest that stands still. Raises LaunchRefused where the guest trusts one of them still."""
    if not record.functions:
        return
    if self.tio.trusts(vm):
        raise LaunchRefused(MigrationRefusal.DEVICES_KEPT)
    yield from self.tio.park(vm)
    record.parked = True


def unpark_devices(self: Hypervisor, vm: str, record: LaunchedVm) -> Task:
    """The guest stays: it finds its devices as if others had come in their places."""
    if record.parked:
        record.parked = False
        yield from self.tio.unpark(vm)
        record.notice.arrivals += 1


def bring_devices(self: Hypervisor, spec: MachineSpec, record: LaunchedVm) -> Task:
    """The guest came: others in the places of those it had. Raises LaunchRefused."""
    if spec.devices:
        yield from give_devices(self, spec, record)
        record.notice.arrivals += 1
