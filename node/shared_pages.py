"""Which pages a guest of SEV or SEV-ES shares with its host: what it told, for nobody but the guest can see its C-bits.

Linux tells by KVM_HC_MAP_GPA_RANGE and sets bit 0 of MSR_KVM_MIGRATION_CONTROL once it has told all
(Documentation/virt/kvm/x86/hypercalls.rst and msr.rst). Here a first word is both. Whoever migrates the guest sends
these pages as they are, and the others through the firmware.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class SharedPages:
    """Ranges of guest-physical memory, in ascending order, none touching the next."""

    told: bool = False
    """Whether the guest said anything."""
    _starts: list[int] = field(default_factory=list)
    _ends: list[int] = field(default_factory=list)

    def change(self, gpa: int, length: int, *, shared: bool) -> None:
        """The guest shares a range, or takes it back."""
        self.told = True
        end = gpa + length
        # The ranges that touch it: with a shared one they become one, of a private one their ends are left.
        first, last = bisect_left(self._ends, gpa), bisect_right(self._starts, end)
        starts, ends = self._starts[first:last], self._ends[first:last]
        if shared:
            pieces = [(min([gpa, *starts]), max([end, *ends]))]
        else:
            pieces = [
                piece
                for start, stop in zip(starts, ends, strict=True)
                for piece in ((start, min(stop, gpa)), (max(start, end), stop))
                if piece[0] < piece[1]
            ]
        self._starts[first:last] = [start for start, _ in pieces]
        self._ends[first:last] = [stop for _, stop in pieces]

    def parts(self, gpa: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """A range cut into (GPA, length, shared)."""
        end = gpa + length
        for at in range(bisect_right(self._ends, gpa), len(self._starts)):
            start, stop = max(self._starts[at], gpa), min(self._ends[at], end)
            if start >= end:
                break
            if gpa < start:
                yield gpa, start - gpa, False
            yield start, stop - start, True
            gpa = stop
        if gpa < end:
            yield gpa, end - gpa, False

    def ranges(self) -> tuple[tuple[int, int], ...]:
        """(GPA, length) of what is shared."""
        return tuple((start, end - start) for start, end in zip(self._starts, self._ends, strict=True))
