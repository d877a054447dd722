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
    INVALID = "Invalid"
    """No row of the table: only a damaged entry reads so, and no command takes such a page."""


def page_state(entry: RmpEntry) -> PageState:
    """The state of a page: the row of the table that its entry fits."""
    key = (entry.assigned, entry.validated, entry.asid > 0, entry.immutable)
    found = _STATES.get(key, PageState.INVALID)
    if found is PageState.FIRMWARE and entry.gpa:
        return PageState.METADATA
    return PageState.CONTEXT if found is PageState.FIRMWARE and entry.vmsa else found


_STATES = {
    (False, False, False, False): PageState.HYPERVISOR,
    (False, False, False, True): PageState.HV_FIXED,
    (True, False, False, False): PageState.RECLAIM,
    (True, False, False, True): PageState.FIRMWARE,
    (True, False, True, True): PageState.PRE_GUEST,
    (True, True, True, True): PageState.PRE_SWAP,
    (True, False, True, False): PageState.GUEST_INVALID,
    (True, True, True, False): PageState.GUEST_VALID,
}
"""By (assigned, validated, ASID > 0, immutable). Of firmware's own pages Metadata has a GPA, Context the VMSA bit."""
