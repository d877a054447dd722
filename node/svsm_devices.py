"""The laboratory's own protocol of an SVSM: rights of the kernel above to the memory of its trusted devices.

Firmware marks pages of a device valid for whoever sends MMIO_VALIDATE, with VMPL0's rights alone, as PVALIDATE does;
only VMPL0 can hand them on (RMPADJUST). OpenHCL, which is its guest's VMPL0, accepts devices so. No protocol of the
SVSM specification has a call for it, and Coconut has no trusted I/O; so number and call are the laboratory's.

The kernel says where the pages are. They must lie in a window of devices, where no memory is that the SVSM ever
validated: firmware validates pages of devices there and nothing else, so that a hypervisor that maps anything else
has RMPADJUST fault.
"""

from __future__ import annotations

from node.device_window import BAR_STRIDE, DEVICES_GPA, bar_gpa
from node.guest_functions import MOST_DEVICES
from node.svsm import Svsm, grant
from node.svsm_books import Steps, must
from node.svsm_call import CallRefused, DeviceCall, SvsmResult
from node.svsm_request import Request
from psp.system_bus import PAGE_BYTES


def device_service(_: Svsm, call: int, request: Request) -> Steps:
    """RCX: the first page of a device's memory, RDX: how many follow in the same BAR. Raises CallRefused."""
    if call != DeviceCall.GRANT:
        raise CallRefused(SvsmResult.UNSUPPORTED_CALL)
    gpa, pages = request.rcx, request.rdx
    if gpa % PAGE_BYTES or not DEVICES_GPA <= gpa < bar_gpa(MOST_DEVICES, 0):
        raise CallRefused(SvsmResult.INVALID_ADDRESS)
    if not 0 < pages <= (BAR_STRIDE - gpa % BAR_STRIDE) // PAGE_BYTES:
        raise CallRefused(SvsmResult.INVALID_PARAMETER)
    yield from must(grant(gpa, pages * PAGE_BYTES))
