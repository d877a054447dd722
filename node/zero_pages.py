"""Pages of a VM that hold bytes, and are zero all the same: what a hypervisor finds that looks before it sends a page.

It finds them where it reads what the guest reads. Pages that hold no bytes are accounted, not looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from node import operations as op
from node.generation import Generation
from node.guest import GuestSpec
from psp.system_bus import PAGE_BYTES

if TYPE_CHECKING:
    from node.board import Board

READABLE = frozenset({Generation.PLAIN, Generation.SME})
"""Generations whose memory their host reads."""
_ZEROS = bytes(PAGE_BYTES)


def held_and_zero_bytes(board: Board, spec: GuestSpec) -> tuple[int, int]:
    """Bytes of memory that are held, and how many of them are pages of zeros; nothing where the host reads none."""
    if spec.generation not in READABLE:
        return 0, 0
    nested, encrypted = board.vmcb(spec.name, 0).nested, spec.generation is Generation.SME
    segments = [one for ram in spec.memory.ram for one in nested.translate(ram.gpa, ram.length)]
    answers = board.execute_host(tuple([op.HostReadWritten(one[0], one[1], encrypted) for one in segments]))
    runs = [data for one in answers if isinstance(one, op.Runs) for _, data in one.runs]
    pages = [data[at : at + PAGE_BYTES] for data in runs for at in range(0, len(data), PAGE_BYTES)]
    return len(pages) * PAGE_BYTES, pages.count(_ZEROS) * PAGE_BYTES
