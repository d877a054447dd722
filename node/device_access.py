"""The devices that a hypervisor emulates, where its guests' loads and stores find them."""

from __future__ import annotations

from collections.abc import Sequence

from node.guest_functions import ECAM_BYTES, ECAM_GPA, GuestFunction, configuration_load
from node.guest_memory_map import NIC_GPA, NIC_WINDOW_BYTES
from node.hypervisor_port import Reply
from node.operations import NicRead, NicWrite


def device_access(
    functions: Sequence[GuestFunction], vm: str, vcpu: int, gpa: int, length: int, value: int | None
) -> Reply:
    """Do a load, or with ``value`` a store, that no memory answers: what was loaded, all ones if there is no device.

    Each vCPU has a network card of its own, and reaches no other. ``functions`` are those that were given to the VM, of
    whose configuration spaces nothing can be changed.
    """
    if 0 <= gpa - ECAM_GPA <= ECAM_BYTES - length:
        return configuration_load(functions, gpa, length)
    offset = gpa - NIC_GPA - vcpu * NIC_WINDOW_BYTES
    answer: object = None
    if 0 <= offset <= NIC_WINDOW_BYTES - length:
        one = NicRead(vm, vcpu, offset, length) if value is None else NicWrite(vm, vcpu, offset, value, length)
        (answer,) = yield (one,)
    return answer if isinstance(answer, int) else (1 << 8 * length) - 1
