"""Results for objects that are too long to be hashed each time: found again by which object it is.

Equal objects that are not the same one are worked out again, so results must follow from the object's value alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")
R = TypeVar("R", bound=tuple[Any, ...])

MOST_KEPT = 256
MOST_RECORDS = 1 << 14


class IdentityCache(Generic[K, V]):
    """``make``'s results of the objects asked for lately; these live as long as their results are kept."""

    def __init__(self, make: Callable[[K], V]) -> None:
        self._make = make
        self._kept: dict[int, tuple[K, V]] = {}

    def __call__(self, key: K) -> V:
        """What ``make`` says of this object."""
        found = self._kept.get(id(key))
        if found is not None:
            return found[1]
        value = self._make(key)
        if len(self._kept) >= MOST_KEPT:
            self._kept.clear()
        # The object itself is kept, or another could get its identity.
        self._kept[id(key)] = (key, value)
        return value


class RecordsById(dict[int, R]):
    """The latest record of each object, which is the first thing in it and lives as long as it is kept, by its ``id``.

    For results that follow from more than the object: whoever finds a record looks whether the rest of it fits.
    """

    def keep(self, record: R) -> R:
        """The record, which replaces the one before."""
        if len(self) >= MOST_RECORDS:
            self.clear()
        self[id(record[0])] = record
        return record
