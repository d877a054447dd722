"""A VM's nested page table: guest-physical to system-physical, held as runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from node.extent_map import ExtentMap
from psp.system_bus import PAGE_BYTES


class NestedPageFault(Exception):
    """#NPF: no mapping at the guest-physical address."""

    def __init__(self, gpa: int) -> None:
        super().__init__(f"no mapping at GPA {gpa:#x}")
        self.gpa = gpa


@dataclass(frozen=True, slots=True)
class _Target:
    spa: int

    def advanced(self, distance: int) -> Self:
        return type(self)(self.spa + distance)


class NestedPageTable:
    """Mappings in whole 4 KiB pages."""

    def __init__(self) -> None:
        self._runs: ExtentMap[_Target] = ExtentMap()

    def __len__(self) -> int:
        """Number of runs held."""
        return len(self._runs)

    def map(self, gpa: int, spa: int, length: int) -> None:
        """Point a range at memory, replacing what was there. Raises ValueError off page borders."""
        _check(gpa | spa | length)
        self._runs.put(gpa, gpa + length, _Target(spa))

    def unmap(self, gpa: int, length: int) -> None:
        """Take a range out; parts without a mapping are left alone."""
        _check(gpa | length)
        self._runs.put(gpa, gpa + length, None)

    def translate(self, gpa: int, length: int) -> list[tuple[int, int]]:
        """(SPA, length) pieces of a guest-physical range. Raises NestedPageFault where there is no mapping.

        Even an empty range needs a mapping at its address; a length below zero, which a guest may name, has none.
        """
        if length < 0:
            raise NestedPageFault(gpa)
        found = self._runs.find(gpa)
        if found is not None and gpa + length <= found[1]:
            return [(found[2].spa + gpa - found[0], length)]
        out = []
        for start, end, target in self._runs.pieces(gpa, gpa + length):
            if target is None:
                raise NestedPageFault(start)
            out.append((target.spa, end - start))
        if not out:
            raise NestedPageFault(gpa)
        return out


def _check(bits: int) -> None:
    if bits < 0 or bits % PAGE_BYTES:
        raise ValueError("nested page table: expected whole 4 KiB pages")
