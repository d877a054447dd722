"""The devices that a hypervisor emulates, where its guests' loads and stores find them."""

from __future__ import annotations

from node.device_notice import NOTICE_BYTES, NOTICE_GPA
from node.guest_functions import ECAM_BYTES, ECAM_GPA, configuration_load
from node.guest_memory_map import NIC_GPA, NIC_WINDOW_BYTES
from node.hypervisor_port import Reply
from node.launched_vm import LaunchedVm
from node.operations import DevicesTold, NicRead, NicWrite


def device_access(record: LaunchedVm, vm: str, vcpu: int, gpa: int, length: int, value: int | None) -> Reply:
    """Do a load, or with ``value`` a store, that no memory answers: what was loaded, all ones if there is no device.

    Each vCPU has a network card of its own, and reaches no other. Of the configuration spaces of functions that were
    given to the VM nothing can be changed; beside them it finds what its hypervisor has to say of them.
    """
    if (gpa, length) == (NOTICE_GPA, NOTICE_BYTES) and record.functions:
        if value is not None:
            yield (DevicesTold(vm, value),)
        return record.notice.word
    if 0 <= gpa - ECAM_GPA <= ECAM_BYTES - length:
        return configuration_load(record.functions, gpa, length)
    offset = gpa - NIC_GPA - vcpu * NIC_WINDOW_BYTES
    answer: object = None
    if 0 <= offset <= NIC_WINDOW_BYTES - length:
        one = NicRead(vm, vcpu, offset, length) if value is None else NicWrite(vm, vcpu, offset, value, length)
        (answer,) = yield (one,)
    return answer if isinstance(answer, int) else (1 << 8 * length) - 1
