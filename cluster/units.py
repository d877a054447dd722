"""Quantities as people write them ("4 GiB", "10 Gb/s", "30 s"), and the integers the simulator keeps.

Each ``Quantity`` has one base unit; parsing is exact and refuses what is no
whole number of it. ``format`` is exact too: ``parse(format(n)) == n``.
``about`` rounds, for tables that people read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema
from pydantic_core import PydanticCustomError

LARGEST = (1 << 63) - 1
"""Quantities are 64-bit signed everywhere, in messages and in result tables."""

_MOST_DIGITS = 20
"""Before the point, of what may still be a quantity: of bytes a second in bits a second."""
_NUMBER_AND_UNIT = re.compile(r"([0-9]++)(\.[0-9]{1,18})? ?([A-Za-zµ/]{1,5})")


class UnitError(ValueError):
    """A text that is no quantity; ``expected`` and ``got`` make the line a person reads."""

    def __init__(self, expected: str, got: object) -> None:
        super().__init__(f"expected {expected}, got {shown(got)}")
        self.expected = expected
        self.got = got


def shown(value: object, longest: int = 60) -> str:
    """A value as it may stand in a one-line message, whatever somebody put into it."""
    text = f"{value!r}" if not isinstance(value, str) else '"' + value.encode("unicode_escape").decode("ascii") + '"'
    return text if len(text) <= longest else text[: longest - 3] + "..."


@dataclass(frozen=True, slots=True)
class Quantity:
    """One kind of quantity: its units, as multiples of the base unit."""

    name: str
    base: str
    units: Mapping[str, Fraction]
    preferred: tuple[str, ...]
    """The units that ``format`` and ``about`` choose from, largest first."""
    example: str

    @property
    def expectation(self) -> str:
        """What an error says it wanted."""
        return f'a {self.name} such as "{self.example}" (units: {", ".join(self.units)})'

    def parse(self, text: object) -> int:
        """The number of base units; raises UnitError."""
        match = _NUMBER_AND_UNIT.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None or match[3] not in self.units:
            raise UnitError(self.expectation, text)
        # However many digits there are, no more are calculated with.
        whole = match[1].lstrip("0")[: _MOST_DIGITS + 1]
        value = Fraction(f"0{whole}{match[2] or ''}") * self.units[match[3]]
        if value >= LARGEST + 1:
            raise UnitError(f"a {self.name} below 2^63 {self.base}", text)
        if value.denominator != 1:
            raise UnitError(f"a whole number of {self.base}", text)
        return int(value)

    def format(self, value: int) -> str:
        """The value exactly, in the largest unit that needs at most three decimals."""
        for unit in self.preferred:
            number = Fraction(value) / self.units[unit]
            if number >= 1 and (number * 1000).denominator == 1:
                return f"{_decimal(number)} {unit}"
        return f"{_decimal(Fraction(value) / self.units[self.preferred[-1]])} {self.preferred[-1]}"

    def about(self, value: float) -> str:
        """The value to three digits, in the largest unit in which it is at least one."""
        for unit in self.preferred:
            number = value / float(self.units[unit])
            if abs(number) >= 1:
                return f"{number:.0f} {unit}" if abs(number) >= 100 else f"{number:.3g} {unit}"
        return f"{value / float(self.units[self.preferred[-1]]):.3g} {self.preferred[-1]}"


def _decimal(number: Fraction) -> str:
    """A fraction with a finite decimal expansion, written out."""
    whole, rest = divmod(number.numerator, number.denominator)
    digits = ""
    while rest:
        digit, rest = divmod(rest * 10, number.denominator)
        digits += str(digit)
    return f"{whole}.{digits}" if digits else str(whole)


def _scaled(suffix: str, factor: Fraction, prefixes: Mapping[str, int]) -> dict[str, Fraction]:
    return {prefix + suffix: factor * scale for prefix, scale in prefixes.items()}


_DECIMAL = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}
_ONE = Fraction(1)

SIZE = Quantity(
    "size",
    "bytes",
    _scaled("B", _ONE, _DECIMAL | _BINARY),
    ("TiB", "GiB", "MiB", "KiB", "B"),
    "4 GiB",
)
DURATION = Quantity(
    "time",
    "nanoseconds",
    {
        unit: Fraction(ns)
        for unit, ns in {
            "ns": 1,
            "us": 10**3,
            "µs": 10**3,
            "ms": 10**6,
            "s": 10**9,
            "min": 60 * 10**9,
            "h": 3600 * 10**9,
            "d": 86400 * 10**9,
        }.items()
    },
    ("d", "h", "min", "s", "ms", "us", "ns"),
    "30 s",
)
RATE = Quantity(
    "rate",
    "bytes per second",
    _scaled("b/s", Fraction(1, 8), _DECIMAL) | _scaled("B/s", _ONE, _DECIMAL | _BINARY),
    ("TB/s", "GB/s", "MB/s", "kB/s", "B/s"),
    "10 Gb/s",
)
FREQUENCY = Quantity(
    "frequency",
    "hertz",
    _scaled("Hz", _ONE, _DECIMAL),
    ("GHz", "MHz", "kHz", "Hz"),
    "2.5 GHz",
)


def _field(quantity: Quantity) -> tuple[BeforeValidator, PlainSerializer, WithJsonSchema]:
    """How a scenario field holds a quantity: read from text, written as text, an integer in between."""

    def read(value: object) -> int:
        try:
            return quantity.parse(value)
        except UnitError as error:
            raise PydanticCustomError("expected", "{expected}", {"expected": error.expected}) from None

    units = "|".join(re.escape(unit) for unit in quantity.units)
    schema = {
        "type": "string",
        "pattern": rf"^ *[0-9]+(\.[0-9]{{1,18}})? ?({units}) *$",
        "examples": [quantity.example],
    }
    return BeforeValidator(read), PlainSerializer(quantity.format, return_type=str), WithJsonSchema(schema)


Size = Annotated[int, *_field(SIZE)]
Duration = Annotated[int, *_field(DURATION)]
Rate = Annotated[int, *_field(RATE)]
