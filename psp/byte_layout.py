"""Binary layouts as tables: a frozen dataclass whose fields say where they lie."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, ClassVar, NamedTuple, Self

_INTEGERS = {1: "B", 2: "H", 4: "I", 8: "Q"}


def at(offset: int, width: int, default: int | bytes = 0) -> Any:
    """A little-endian integer of ``width`` bytes at ``offset``, or raw bytes if the default is bytes."""
    return dataclasses.field(default=default, metadata={"offset": offset, "width": width})


def secret_at(offset: int, width: int) -> Any:
    """Raw bytes at ``offset`` that no text of a record shows; zeros unless given."""
    return dataclasses.field(default=bytes(width), repr=False, metadata={"offset": offset, "width": width})


class _Table(NamedTuple):
    fields: tuple[tuple[str, int, int, bool], ...]
    """(name, offset, width, raw) in the order of the offsets."""
    form: struct.Struct
    values: Callable[[ByteLayout], tuple[Any, ...]]
    """All fields of a record."""
    raw: tuple[tuple[int, int], ...]
    """Which of them are raw bytes, and their widths."""
    reserved: tuple[slice, ...]
    """Bytes of no field."""
    masks: dict[int, int]
    """The same as ones, by how many records follow each other; those that somebody asked for."""


_TABLES: dict[type, _Table] = {}
"""Read once for each layout, for the firmware parses one with every command."""


def _table(layout: type[ByteLayout]) -> _Table:
    found = _TABLES.get(layout)
    if found is None:
        found = _TABLES[layout] = _read_table(layout)
    return found


def _read_table(layout: type[ByteLayout]) -> _Table:
    """Raises ValueError for fields that overlap, are out of order or reach beyond the record."""
    fields = tuple(
        (entry.name, entry.metadata["offset"], entry.metadata["width"], isinstance(entry.default, bytes))
        for entry in dataclasses.fields(layout)
    )
    form, end, reserved = "<", 0, []
    for name, offset, width, raw in fields:
        if offset < end:
            raise ValueError(f"{layout.__name__}.{name}: expected an offset from {end:#x} on, got {offset:#x}")
        if offset > end:
            reserved.append(slice(end, offset))
        form += f"{offset - end}x" + (f"{width}s" if raw else _INTEGERS[width])
        end = offset + width
    if end > layout.SIZE:
        raise ValueError(f"{layout.__name__}: expected fields within {layout.SIZE:#x} bytes, got {end:#x}")
    if end < layout.SIZE:
        reserved.append(slice(end, layout.SIZE))
    return _Table(
        fields,
        struct.Struct(f"{form}{layout.SIZE - end}x"),
        _getter([name for name, *_ in fields]),
        tuple((number, width) for number, (_, _, width, raw) in enumerate(fields) if raw),
        tuple(reserved),
        {},
    )


def _reserved_mask(layout: type[ByteLayout], count: int) -> int:
    """Ones in the reserved bytes of so many records."""
    table = _table(layout)
    if count not in table.masks:
        one = bytearray(layout.SIZE)
        for part in table.reserved:
            one[part] = b"\xff" * (part.stop - part.start)
        table.masks[count] = int.from_bytes(bytes(one) * count, "little")
    return table.masks[count]


def _getter(names: list[str]) -> Callable[[ByteLayout], tuple[Any, ...]]:
    if len(names) == 1:
        only = attrgetter(*names)
        return lambda record: (only(record),)
    return attrgetter(*names) if names else lambda _: ()


@dataclasses.dataclass(frozen=True, slots=True)
class ByteLayout:
    """A record of ``SIZE`` bytes; bytes between its fields are reserved and zero unless given."""

    SIZE: ClassVar[int] = 0

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a record from its first ``SIZE`` bytes; ValueError if there are fewer."""
        return cls(*cls.values(data))

    @classmethod
    def values(cls, data: bytes) -> tuple[Any, ...]:
        """The fields of ``parse`` without the record, for whoever reads many. Raises as it does."""
        if len(data) < cls.SIZE:
            raise ValueError(f"{cls.__name__}: expected {cls.SIZE} bytes, got {len(data)}")
        return _table(cls).form.unpack_from(data)

    @classmethod
    def values_of_all(cls, records: Sequence[bytes]) -> list[tuple[Any, ...]]:
        """The same for many records of ``SIZE`` bytes each. Raises struct.error for a length that no records have."""
        return list(_table(cls).form.iter_unpack(b"".join(records)))

    @classmethod
    def reserved_is_zero(cls, data: bytes) -> bool:
        """Whether nothing stands in a record's reserved bytes."""
        reserved = _table(cls).reserved
        return not reserved or not any(data[part].strip(b"\0") for part in reserved)

    @classmethod
    def reserved_of_all_are_zero(cls, records: Sequence[bytes]) -> bool:
        """The same for many records; False, too, if one has not exactly its bytes."""
        whole = b"".join(records)
        if len(whole) != cls.SIZE * len(records) or {*map(len, records)} != {cls.SIZE}:
            return False
        return not int.from_bytes(whole, "little") & _reserved_mask(cls, len(records))

    @classmethod
    def packed(cls, *values: int | bytes) -> bytes:
        """The bytes of a record with these fields, none wider than its own. Raises struct.error."""
        return _table(cls).form.pack(*values)

    @classmethod
    def packer(cls) -> Callable[..., bytes]:
        """``packed`` for whoever makes many."""
        return _table(cls).form.pack

    def pack(self, onto: bytes = b"") -> bytes:
        """The record as bytes; OverflowError for a value wider than its field. ``onto`` gives the reserved bytes."""
        table = _table(type(self))
        values = table.values(self)
        for number, width in table.raw:
            if len(values[number]) > width:
                name, found = table.fields[number][0], len(values[number])
                raise OverflowError(f"{type(self).__name__}.{name}: expected at most {width} bytes, got {found}")
        try:
            packed = table.form.pack(*values)
        except struct.error as error:
            raise OverflowError(f"{type(self).__name__}: {error}") from None
        if not onto:
            return packed
        out = bytearray(onto[: self.SIZE].ljust(self.SIZE, b"\0"))
        for _, offset, width, _ in table.fields:
            out[offset : offset + width] = packed[offset : offset + width]
        return bytes(out)
