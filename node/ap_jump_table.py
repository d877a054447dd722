"""The AP jump table of a SEV-ES guest: its firmware tells the hypervisor where it lies, its kernel asks for it.

The hypervisor keeps the address and does not look there (KVM, sev_handle_vmgexit). It is that of a page, or zero.
"""

from __future__ import annotations

from node.ghcb_page import BadInput, GhcbRefused
from node.launched_vm import LaunchedVm
from node.nae_event import InfoRequest, JumpTable
from node.nae_reply import NOTHING, NaeReply
from psp.system_bus import PAGE_BYTES


def serve_jump_table(record: LaunchedVm, asked: InfoRequest) -> NaeReply:
    """Keep the address, or tell it. Raises GhcbRefused."""
    if asked.info1 == JumpTable.GET:
        return NaeReply(info2=record.jump_table)
    if asked.info1 != JumpTable.SET:
        raise GhcbRefused(BadInput.INVALID_INPUT, "SW_EXITINFO1")
    if asked.info2 % PAGE_BYTES or (asked.info2 and record.page_spa(asked.info2) is None):
        raise GhcbRefused(BadInput.INVALID_INPUT, "SW_EXITINFO2")
    record.jump_table = asked.info2
    return NOTHING
