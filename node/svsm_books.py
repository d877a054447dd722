"""What an SVSM remembers of its guest, in its own memory: calling areas, save areas, and pages lent to it.

Whatever the SVSM reads or writes for a guest, it does with VMPL0's rights. So it must not be talked into
touching a page that the guest has no rights to itself: a save area, whose VMPL a store could raise, or a page
that it deposited. The books say which those are, for RMPQUERY is not on every product.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from node import operations as op
from node.svsm_call import ENTRY_BYTES, PROTOCOL_BASE, CallRefused, SvsmResult, entry_words
from node.svsm_memory import BOOK_GPA, BOOK_RECORD, POOL_GPA
from psp.system_bus import PAGE_BYTES

if TYPE_CHECKING:
    from node.svsm import Svsm

Steps = Generator[tuple[op.GuestOperation, ...], tuple[op.Answer, ...], None]
Data = Generator[tuple[op.GuestOperation, ...], tuple[op.Answer, ...], bytes]


@dataclass(frozen=True, slots=True)
class Books:
    """One look at them. By vCPU: GPAs, 0 for none. ``pool`` are the deposited pages."""

    calling_areas: tuple[int, ...]
    save_areas: tuple[int, ...]
    pool: tuple[int, ...]

    def expect(self, svsm: Svsm, gpa: int, length: int = PAGE_BYTES) -> None:
        """Raises CallRefused unless a range is RAM, none of the SVSM's, no save area, and not deposited."""
        first, last = gpa // PAGE_BYTES * PAGE_BYTES, gpa + length - 1
        taken = any(first <= page <= last for page in (*self.save_areas, *self.pool) if page)
        if taken or not svsm.holds(gpa, length):
            raise CallRefused(SvsmResult.INVALID_ADDRESS)

    def read(self, svsm: Svsm, gpa: int, length: int) -> Data:
        """What the guest has somewhere. Raises CallRefused."""
        self.expect(svsm, gpa, length)
        (answer,) = yield (op.Read(gpa, length),)
        if not isinstance(answer, bytes):
            raise CallRefused(SvsmResult.INVALID_ADDRESS)
        return answer


def read_books(svsm: Svsm) -> Generator[tuple[op.GuestOperation, ...], tuple[op.Answer, ...], Books]:
    """The books as they are. Raises CallRefused if somebody took their pages away."""
    size = len(svsm.place.boot_rips) * BOOK_RECORD.size
    records, pool = yield (op.Read(BOOK_GPA, size), op.Read(POOL_GPA, PAGE_BYTES))
    if not isinstance(records, bytes) or not isinstance(pool, bytes):
        raise CallRefused(SvsmResult.BUSY)
    calling_areas, save_areas = zip(*BOOK_RECORD.iter_unpack(records), strict=True)
    end = ENTRY_BYTES * (1 + int.from_bytes(pool[:ENTRY_BYTES], "little"))
    return Books(calling_areas, save_areas, tuple(entry_words(pool[ENTRY_BYTES:end])))


def must(*batch: op.GuestOperation) -> Steps:
    """Operations that must succeed. Raises CallRefused with what the first that did not was answered."""
    for answer in (yield batch):
        if answer not in (None, 0):
            raise refused_by(answer)


def refused_by(answer: op.Answer) -> CallRefused:
    """What to tell of an operation that did not do it: the code of an RMP instruction, or that there is no page."""
    if isinstance(answer, op.PValidateResult):
        answer = answer.code
    return CallRefused(PROTOCOL_BASE + answer if isinstance(answer, int) else SvsmResult.INVALID_ADDRESS)
