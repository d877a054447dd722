"""Page states as the firmware names them, read from an RMP entry (SEV-SNP firmware ABI, section 5.4)."""

from __future__ import annotations

from enum import Enum

from psp.system_bus import RmpEntry


class PageState(Enum):
    """Who owns a page and what may be done with it."""

    HYPERVISOR = "Hypervisor"
    HV_FIXED = "HV-Fixed"
    FIRMWARE = "Firmware"
    RECLAIM = "Reclaim"
    CONTEXT = "Context"
    METADATA = "Metadata"
    PRE_GUEST = "Pre-Guest"
    PRE_SWAP = "Pre-Swap"
    GUEST_INVALID = "Guest-Invalid"
    GUEST_VALID = "Guest-Valid"


def page_state(entry: RmpEntry) -> PageState:
    """The state of a page: the first row of the table that fits its entry."""
    key = (entry.assigned, entry.validated, entry.asid > 0, entry.immutable)
    if key == (True, False, False, True):
        if entry.vmsa:
            return PageState.CONTEXT
        return PageState.METADATA if entry.gpa else PageState.FIRMWARE
    return _STATES[key]


# (assigned, validated, ASID > 0, immutable); VALIDATED without an ASID never comes to be.
_STATES = {
    (False, False, False, False): PageState.HYPERVISOR,
    (False, False, False, True): PageState.HV_FIXED,
    (True, False, False, False): PageState.RECLAIM,
    (True, False, True, True): PageState.PRE_GUEST,
    (True, True, True, True): PageState.PRE_SWAP,
    (True, False, True, False): PageState.GUEST_INVALID,
    (True, True, True, False): PageState.GUEST_VALID,
}
