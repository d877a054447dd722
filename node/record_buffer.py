"""Records of a host, packed: what an event log keeps when somebody asked for it.

48 bytes a record and the octets it carries, whatever Python would make of one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

NO_VCPU = -1

_PACKED = struct.Struct("<qqqqiiihh")
RECORD = np.dtype([
    ("time_ns", "<i8"), ("took_ns", "<i8"), ("first", "<i8"), ("second", "<i8"),
    ("entity", "<i4"), ("about", "<i4"), ("octets", "<i4"), ("kind", "<i2"), ("vcpu", "<i2"),
])  # fmt: skip
"""One event. ``time_ns`` is when it ended, ``took_ns`` how long it took. ``entity`` and ``about`` are places in
``RecordBuffer.names``, ``octets`` one in ``RecordBuffer.octets``, -1 for none; ``vcpu`` may be NO_VCPU."""
assert RECORD.itemsize == _PACKED.size


@dataclass(frozen=True, slots=True)
class LogWish:
    """Whose records are kept: everybody's, those of named hosts and VMs, or nobody's.

    A host's records about a VM that is named are kept with the VM's own.
    """

    everything: bool = False
    entities: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return self.everything or bool(self.entities)

    def wants(self, entity: str, about: str = "") -> bool:
        """Whether a record of ``entity`` about a VM is kept."""
        return self.everything or entity in self.entities or about in self.entities


NO_LOG = LogWish()


class RecordBuffer:
    """Appends records and gives them back in the order in which they were made."""

    def __init__(self) -> None:
        self.names: list[str] = [""]
        self.octets: list[bytes] = []
        self._codes: dict[str, int] = {"": 0}
        self._packed = bytearray()

    def __len__(self) -> int:
        return len(self._packed) // RECORD.itemsize

    def append(
        self,
        entity: str,
        time_ns: int,
        kind: int,
        first: int = 0,
        second: int = 0,
        vcpu: int = NO_VCPU,
        took_ns: int = 0,
        about: str = "",
        octets: bytes | None = None,
    ) -> None:
        """Keep one record."""
        place = -1
        if octets is not None:
            place = len(self.octets)
            self.octets.append(octets)
        whose, of = self._code(entity), self._code(about)
        self._packed += _PACKED.pack(time_ns, took_ns, first, second, whose, of, place, kind, vcpu)

    def rows(self) -> np.ndarray[tuple[int], np.dtype[Any]]:
        """Every record so far, of type ``RECORD``."""
        return np.frombuffer(bytes(self._packed), RECORD)

    def _code(self, name: str) -> int:
        code = self._codes.get(name)
        if code is None:
            code = self._codes[name] = len(self.names)
            self.names.append(name)
        return code
