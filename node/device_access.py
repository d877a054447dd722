"""The devices that a hypervisor emulates, where its guests' loads and stores find them."""

from __future__ import annotations

from node.guest_memory_map import NIC_GPA, NIC_WINDOW_BYTES
from node.hypervisor_port import Reply
from node.operations import NicRead, NicWrite


def device_access(vm: str, vcpu: int, gpa: int, length: int, value: int | None) -> Reply:
    """Do a load, or with ``value`` a store, that no memory answers: what was loaded, all ones if there is no device.

    Each vCPU has a network card of its own, and reaches no other.
    """
    offset = gpa - NIC_GPA - vcpu * NIC_WINDOW_BYTES
    answer: object = None
    if 0 <= offset <= NIC_WINDOW_BYTES - length:
        one = NicRead(vm, vcpu, offset, length) if value is None else NicWrite(vm, vcpu, offset, value, length)
        (answer,) = yield (one,)
    return answer if isinstance(answer, int) else (1 << 8 * length) - 1
