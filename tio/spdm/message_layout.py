"""Message formats as tables: a frozen dataclass whose fields say how they lie on the wire.

A message is SPDMVersion, the code, then the fields in their order, and never
shorter than its four-byte header. Integers are little-endian. A width that is a
name is taken from a field that came before it, or from the ``Shape``: what was
negotiated and what was asked for. Width 0 means: not there.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

from tio.spdm.faults import MalformedMessage

HEADER_BYTES = 4
DOE_PADDING_BYTES = 3
"""How much may follow a message in a data object, whose length counts DWORDs."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Widths that a message alone does not tell, in bytes; 0 for what is not there."""

    hash_bytes: int = 0
    summary_bytes: int = 0
    """MeasurementSummaryHash, where one was asked for."""
    signature_bytes: int = 0
    exchange_bytes: int = 0
    verify_bytes: int = 0
    nonce_bytes: int = 0
    slot_bytes: int = 0
    context_bytes: int = 0
    """RequesterContext, from 1.3 on."""
    digests_bytes: int = 0


NO_SHAPE = Shape()


def number(width: int, *, before: int = 0) -> Any:
    """An integer of ``width`` bytes behind ``before`` reserved ones."""
    return dataclasses.field(default=0, metadata={"kind": "number", "width": width, "before": before})


def octets(width: int | str, *, before: int = 0, unit: int = 1) -> Any:
    """Raw bytes; ``width`` counts units of ``unit`` bytes."""
    return dataclasses.field(
        default=b"", metadata={"kind": "octets", "width": width, "before": before, "unit": unit}
    )


def counted(*, before: int = 0) -> Any:
    """Raw bytes behind their length, a u16."""
    return dataclasses.field(default=b"", metadata={"kind": "counted", "width": 2, "before": before})


class _Place(NamedTuple):
    name: str
    kind: str
    width: int | str
    before: int
    unit: int


_TABLES: dict[type, tuple[_Place, ...]] = {}


def _places(layout: type[Message]) -> tuple[_Place, ...]:
    found = _TABLES.get(layout)
    if found is None:
        found = _TABLES[layout] = tuple(
            _Place(
                entry.name,
                entry.metadata["kind"],
                entry.metadata["width"],
                entry.metadata["before"],
                entry.metadata.get("unit", 1),
            )
            for entry in dataclasses.fields(layout)
            if entry.metadata
        )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message. ``wire`` is what was parsed, to the byte, without what a transport added behind it."""

    CODE: ClassVar[int]
    wire: bytes = dataclasses.field(default=b"", repr=False, compare=False)

    def pack(self, version: int) -> bytes:
        """The message's bytes under a version."""
        parts = [bytes((version, self.CODE))]
        for place in _places(type(self)):
            value = getattr(self, place.name)
            if place.before:
                parts.append(bytes(place.before))
            if place.kind == "number":
                assert isinstance(place.width, int)
                parts.append(value.to_bytes(place.width, "little"))
                continue
            if place.kind == "counted":
                parts.append(len(value).to_bytes(2, "little"))
            parts.append(value)
        return b"".join(parts).ljust(HEADER_BYTES, b"\0")

    @classmethod
    def parse(cls, data: bytes, shape: Shape = NO_SHAPE, padding: int = 0) -> Self:
        """The message at the head of ``data``, behind which at most ``padding`` bytes may follow.

        Version and code are the caller's to check. Raises MalformedMessage.
        """
        values: dict[str, Any] = {}
        at = 2
        for name, kind, width, before, unit in _places(cls):
            at += before
            if isinstance(width, str):
                size = values[width] if width in values else getattr(shape, width)
                size *= unit
            else:
                size = width
            end = at + size
            if end > len(data):
                raise MalformedMessage(f"{cls.__name__}.{name}", f"{size} bytes at {at}", len(data) - at)
            if kind == "number":
                values[name] = int.from_bytes(data[at:end], "little")
            elif kind == "octets":
                values[name] = data[at:end]
            else:
                at = end
                end += int.from_bytes(data[at - 2 : at], "little")
                if end > len(data):
                    raise MalformedMessage(f"{cls.__name__}.{name}", f"{end - at} bytes at {at}", len(data) - at)
                values[name] = data[at:end]
            at = end
        at = max(at, HEADER_BYTES)
        if not 0 <= len(data) - at <= padding:
            raise MalformedMessage(cls.__name__, f"{at} bytes", len(data))
        return cls(**values, wire=data[:at])
