"""Fields of a control block that a hypervisor loads and stores one by one, beside those that fill it whole.

Offsets: APM volume 2, appendix B, table B-1, as Linux lays them out in ``struct vmcb_control_area``. All of the
control area is the hypervisor's, of every generation of guests.
"""

from __future__ import annotations

from collections.abc import Mapping

VMCB_FIELDS: Mapping[str, tuple[int, int]] = {
    "TSC_OFFSET": (0x050, 8),
    "V_INTR": (0x060, 8),
    "INTERRUPT_STATE": (0x068, 8),
    "EXITCODE": (0x070, 8),
    "EXITINFO1": (0x078, 8),
    "EXITINFO2": (0x080, 8),
    "EXITINTINFO": (0x088, 8),
    "GHCB_GPA": (0x0A0, 8),
    "EVENTINJ": (0x0A8, 8),
    "ALLOWED_SEV_FEATURES": (0x138, 8),
}
"""Offset and width of each. GHCB_GPA, the GHCB MSR, counts while a vCPU is held in reset; else exits carry it."""

GUEST_INTERRUPT_MASK = 1 << 1
"""INTERRUPT_STATE: RFLAGS.IF of a guest whose RFLAGS is encrypted."""

ALLOWED_FEATURES_ENABLE = 1 << 63
"""ALLOWED_SEV_FEATURES: VMRUN holds SEV_FEATURES against the other bits."""


class ControlFields:
    """The fields of one control block; what nobody stored is zero."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: dict[str, int] = dict.fromkeys(VMCB_FIELDS, 0)
