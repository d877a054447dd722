"""The list of a VM's APIC IDs, for guest software without tables of its hypervisor's to read (event 80000017).

RAX says how many pages the guest has for it, SW_EXITINFO1 where. Where they are too few, RAX comes back with how many
it takes. The list is a count and so many IDs, 32 bits each (the patches that bring SVSMs to KVM, ``sev_get_apic_ids``).
"""

from __future__ import annotations

import struct
from collections.abc import Generator

from node import operations as op
from node.ghcb_page import BadInput, GhcbRefused, GhcbUntrusted
from node.guest_ghcb import page_exit
from node.guest_memory_map import Range
from node.launched_vm import LaunchedVm
from node.nae_event import ApicIdRequest, NaeEvent
from node.nae_reply import NOTHING, NaeReply, Serve
from node.operations import Answer, GuestOperation, Read
from psp.system_bus import PAGE_BYTES

_WORD = struct.Struct("<I")


def serve_apic_ids(record: LaunchedVm, asked: ApicIdRequest) -> Serve:
    """Write the list into the guest's shared pages, or say how many it takes. Raises GhcbRefused."""
    count = len(record.save_areas)
    data = struct.pack(f"<{count + 1}I", count, *range(count))
    pages = -(-len(data) // PAGE_BYTES)
    if asked.pages < pages:
        return NaeReply(registers={"RAX": pages})
    pieces = record.backing(Range(asked.gpa, len(data)))
    if sum(length for _, _, length in pieces) != len(data):
        raise GhcbRefused(BadInput.INVALID_INPUT, "SW_EXITINFO1")
    writes = [
        op.HostWrite(spa, data[gpa - asked.gpa : gpa - asked.gpa + length]) for gpa, spa, length in sorted(pieces)
    ]
    if any(answer is not None for answer in (yield tuple(writes))):
        raise GhcbRefused(BadInput.INVALID_INPUT, "SW_EXITINFO1")  # a page of it is private
    return NOTHING


def ask_apic_ids(
    ghcb_gpa: int, list_gpa: int, pages: int = 1
) -> Generator[tuple[GuestOperation, ...], tuple[Answer, ...], tuple[int, ...]]:
    """The guest's side, with shared pages for the list. Raises GhcbUntrusted, also for a list that does not fit."""
    yield (op.Write(list_gpa, bytes(pages * PAGE_BYTES), private=False),)
    reply = yield from page_exit(
        ghcb_gpa, NaeEvent.APIC_ID_LIST, list_gpa, registers={"RAX": pages}, outputs=()
    )
    if reply.exception is not None:
        raise GhcbUntrusted(f"APIC IDs: exception {reply.exception}")
    (data,) = yield (Read(list_gpa, pages * PAGE_BYTES, private=False),)
    if not isinstance(data, bytes):
        raise GhcbUntrusted(f"APIC IDs: {data!r}")
    (count,) = _WORD.unpack_from(data)
    if not 0 < count <= len(data) // _WORD.size - 1:
        raise GhcbUntrusted(f"APIC IDs: {count} of them in {pages} pages")
    ids: tuple[int, ...] = struct.unpack_from(f"<{count}I", data, _WORD.size)
    if len(set(ids)) != count:
        raise GhcbUntrusted("APIC IDs: one stands there twice")
    return ids
