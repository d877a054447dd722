"""Binary layouts as tables: a frozen dataclass whose fields say where they lie."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Self


def at(offset: int, width: int, default: int | bytes = 0) -> Any:
    """A little-endian integer of ``width`` bytes at ``offset``, or raw bytes if the default is bytes."""
    return dataclasses.field(default=default, metadata={"offset": offset, "width": width})


_TABLES: dict[type, tuple[tuple[str, int, int, bool], ...]] = {}
"""Read once for each layout, for the firmware parses one with every command."""


def _table(layout: type[ByteLayout]) -> tuple[tuple[str, int, int, bool], ...]:
    found = _TABLES.get(layout)
    if found is None:
        found = _TABLES[layout] = _read_table(layout)
    return found


def _read_table(layout: type[ByteLayout]) -> tuple[tuple[str, int, int, bool], ...]:
    return tuple(
        (entry.name, entry.metadata["offset"], entry.metadata["width"], isinstance(entry.default, bytes))
        for entry in dataclasses.fields(layout)
    )


@dataclasses.dataclass(frozen=True, slots=True)
class ByteLayout:
    """A record of ``SIZE`` bytes; bytes between its fields are reserved and zero unless given."""

    SIZE: ClassVar[int] = 0

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a record from its first ``SIZE`` bytes; ValueError if there are fewer."""
        if len(data) < cls.SIZE:
            raise ValueError(f"{cls.__name__}: expected {cls.SIZE} bytes, got {len(data)}")
        return cls(**{
            name: data[offset : offset + width] if raw else int.from_bytes(data[offset : offset + width], "little")
            for name, offset, width, raw in _table(cls)
        })  # fmt: skip

    def pack(self, onto: bytes = b"") -> bytes:
        """The record as bytes; OverflowError for a value wider than its field. ``onto`` gives the reserved bytes."""
        out = bytearray(onto[: self.SIZE].ljust(self.SIZE, b"\0"))
        for name, offset, width, raw in _table(type(self)):
            value = getattr(self, name)
            if raw and len(value) > width:
                raise OverflowError(f"{type(self).__name__}.{name}: expected at most {width} bytes, got {len(value)}")
            out[offset : offset + width] = value.ljust(width, b"\0") if raw else value.to_bytes(width, "little")
        return bytes(out)
