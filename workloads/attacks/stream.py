"""What travels of a VM that moves, as whoever carries it handles it: opened, page by page, and framed again."""

from __future__ import annotations

import msgpack

from node.migration_frames import Expected, frames_of, state_of
from node.packing import packed
from node.vm_state import VmState
from psp.system_bus import PAGE_BYTES
from workloads.attacks.target import Household

_ANY_DISK_BLOCKS = 1 << 48
Page = tuple[bytes, bytes]
"""Header and body; a page that lies open has no header."""


def framed(state: VmState) -> bytes:
    """One stream of frames."""
    return packed(frames_of(state))


def opened(household: Household, stream: bytes) -> VmState:
    """Back from one."""
    sealed = bool(household.gctx or household.handle)
    expected = Expected(
        household.vm, lambda _gpa, _length: True, _ANY_DISK_BLOCKS, by_firmware=sealed,
        hidden_registers=not household.registers_in_the_clear, by_agent=bool(household.gctx),
    )  # fmt: skip
    return state_of(msgpack.unpackb(stream, use_list=False), expected)


def page_of(state: VmState, gpa: int) -> Page:
    """One private page. Raises LookupError."""
    for at, header, body in state.packets:
        if at == gpa:
            return header, body
    for first, data in state.pages:
        if first <= gpa < first + len(data):
            return b"", data[gpa - first :][:PAGE_BYTES]
    raise LookupError(f"page {gpa:#x} does not travel")


def with_page(state: VmState, gpa: int, page: Page) -> VmState:
    """The VM with another page at an address."""
    header, body = page
    packets = tuple([(gpa, header, body) if one[0] == gpa else one for one in state.packets])
    pages = tuple([
        (first, data[: gpa - first] + body + data[gpa - first + PAGE_BYTES :])
        if first <= gpa < first + len(data) and not header else (first, data)
        for first, data in state.pages
    ])  # fmt: skip
    return state._replace(packets=packets, pages=pages)
