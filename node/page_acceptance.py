"""How an SNP guest accepts its memory: all of it at boot, or a chunk of 2 MiB when it is first touched.

Whoever accepts lazily keeps a book, one byte a chunk, in memory that is accepted at
boot. A page of an accepted chunk that turns out not to be validated was replaced
behind the guest's back: the kernel does not accept it again but ends the VM.
Book-keeping and PVALIDATE are one batch, so two vCPUs that touch a chunk at once
do not take each other for an attacker.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from node.guest_memory_map import SHARED_GPA, VALIDATION_BOOK_GPA, GuestMemoryMap, Range
from node.kernel_settings import KernelSettings
from node.operations import Answer, GuestOperation, PValidate, PValidateResult, UpkeepRead, UpkeepWrite
from node.rmp_faults import RmpCode
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES

_FRESH, _PENDING, _ACCEPTED = range(3)
"""States of a chunk."""
_MOST_LOOKS = 1 << 16
"""At a chunk that another vCPU accepts: 512 PVALIDATEs take thousands of loads."""

T = TypeVar("T")
Steps = Generator[tuple[GuestOperation, ...], tuple[Answer, ...], T]


class ValidationRefused(Exception):
    """Memory that the kernel will not use: it was valid too early, replaced since, or PVALIDATE failed."""


@dataclass(frozen=True, slots=True)
class PageAcceptance:
    """Acceptance by one kernel; ``taken`` are GPAs of pages that firmware validated or that are shared."""

    memory: GuestMemoryMap
    taken: tuple[int, ...]
    settings: KernelSettings

    def at_boot(self) -> Iterator[Range]:
        """What is accepted before the program runs; of lazy kernels their own memory."""
        for part in self.memory.private_ranges(self.taken):
            if not self.settings.lazy_validation:
                yield part
            elif part.gpa < SHARED_GPA:
                yield replace(part, length=min(part.length, SHARED_GPA - part.gpa))

    def open_book(self) -> tuple[GuestOperation, ...]:
        """What begins the book of a lazy kernel."""
        if not self.settings.lazy_validation:
            return ()
        size = -(-self._end // LARGE_PAGE_BYTES)
        return tuple(
            [
                UpkeepWrite(VALIDATION_BOOK_GPA + at, bytes(min(PAGE_BYTES, size - at)))
                for at in range(0, size, PAGE_BYTES)
            ]
        )  # fmt: skip

    def holds(self, answer: Answer) -> bool:
        """Whether PVALIDATE came to what an honest hypervisor lets it come to."""
        return is_fresh(answer, self.settings)

    def touched(self, gpa: int, *, again: bool) -> Steps[None]:
        """A page was found not to be validated; ``again``: by an access that this was done for before.

        Raises ValidationRefused.
        """
        chunk = gpa // LARGE_PAGE_BYTES * LARGE_PAGE_BYTES
        if not self.settings.tracks_validation:
            yield from self._whatever_it_is(gpa // PAGE_BYTES * PAGE_BYTES, chunk)
            return
        if not self.settings.lazy_validation or chunk < SHARED_GPA or chunk >= self._end:
            raise ValidationRefused(f"{gpa:#x}: accepted at boot, and not validated now")
        note = VALIDATION_BOOK_GPA + chunk // LARGE_PAGE_BYTES
        state = yield from _state(note)
        if state == _FRESH:
            state = yield from self._accept(chunk, note)
        elif state == _ACCEPTED and again:
            raise ValidationRefused(f"{gpa:#x}: accepted, and not validated now")
        # Where another vCPU was first, the access is tried once more when it is done.
        for _ in range(_MOST_LOOKS):
            if state == _ACCEPTED:
                return
            state = yield from _state(note)
        raise ValidationRefused(f"{chunk:#x}: its book is never closed")

    def _accept(self, chunk: int, note: int) -> Steps[int]:
        before, answer, _ = yield (
            UpkeepRead(note, 1), PValidate(chunk, LARGE_PAGE_BYTES, large=True), UpkeepWrite(note, bytes((_PENDING,)))
        )  # fmt: skip
        if before != bytes((_FRESH,)):
            # Another vCPU came in between, and has validated the chunk or is about to.
            if isinstance(answer, PValidateResult) and not answer.code and not answer.unchanged:
                raise ValidationRefused(f"{chunk:#x}: accepted, and not validated now")
            if before == bytes((_ACCEPTED,)):
                yield (UpkeepWrite(note, before),)
            return _PENDING
        done = UpkeepWrite(note, bytes((_ACCEPTED,)))
        if _small(answer):
            answer, _ = yield (PValidate(chunk, LARGE_PAGE_BYTES, large=False), done)
        else:
            yield (done,)
        if not self.holds(answer):
            raise ValidationRefused(f"{chunk:#x}: {answer!r}")
        return _ACCEPTED

    def _whatever_it_is(self, page: int, chunk: int) -> Steps[None]:
        """Without books: validate what is not validated, whenever that may be."""
        (answer,) = yield (PValidate(chunk, LARGE_PAGE_BYTES, large=True),)
        if _small(answer):
            (answer,) = yield (PValidate(page, PAGE_BYTES, large=False),)
        if not self.holds(answer):
            raise ValidationRefused(f"{page:#x}: {answer!r}")

    @property
    def _end(self) -> int:
        last = self.memory.ram[-1]
        return last.gpa + last.length


def is_fresh(answer: Answer, settings: KernelSettings) -> bool:
    """Whether a kernel takes what PVALIDATE came to for memory that nobody has used yet."""
    if not isinstance(answer, PValidateResult) or answer.code:
        return False
    # A page that was valid before the guest asked is in use already, whatever its hypervisor says of it.
    return not answer.unchanged or not settings.checks_carry


def _small(answer: Answer) -> bool:
    """Whether the RMP has the chunk in pages of 4 KiB."""
    return isinstance(answer, PValidateResult) and answer.code == RmpCode.FAIL_SIZEMISMATCH


def _state(note: int) -> Steps[int]:
    (noted,) = yield (UpkeepRead(note, 1),)
    if not isinstance(noted, bytes) or noted[0] > _ACCEPTED:
        raise ValidationRefused(f"book of chunks: {noted!r}")
    return noted[0]
