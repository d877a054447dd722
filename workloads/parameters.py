"""Parameters of programs: what a scenario may say, checked field by field.

Each program has a frozen dataclass of parameters. A field is declared with
``whole``, ``share`` or ``text``, which carry its limits; what only several
fields together show is checked in ``__post_init__``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import Field, dataclass, field, fields
from functools import cache, lru_cache
from typing import Any, ClassVar, Protocol, TypeVar

from node.program import Placement, Scalar

PAGE_BYTES = 4096
MOST_INSTRUCTIONS = 10**15
"""Some days of one core: longer phases are certainly a slip of the pen."""


class WorkloadParameterError(ValueError):
    """A parameter that a program does not have or cannot take."""

    def __init__(self, parameter: str, expected: str) -> None:
        super().__init__(f"{parameter}: expected {expected}")
        self.field = parameter
        self.expected = expected

    def __reduce__(self) -> tuple[type[WorkloadParameterError], tuple[str, str]]:
        return type(self), (self.field, self.expected)


class Rule(Protocol):
    """What one parameter may be."""

    @property
    def expected(self) -> str: ...

    def accepts(self, value: object) -> bool: ...


@dataclass(frozen=True, slots=True)
class _Whole:
    low: int
    high: int
    multiple_of: int

    @property
    def expected(self) -> str:
        of = f", a multiple of {self.multiple_of}" if self.multiple_of > 1 else ""
        return f"a whole number from {self.low} to {self.high}{of}"

    def accepts(self, value: object) -> bool:
        return type(value) is int and self.low <= value <= self.high and value % self.multiple_of == 0


@dataclass(frozen=True, slots=True)
class _Share:
    @property
    def expected(self) -> str:
        return "a number from 0 to 1"

    def accepts(self, value: object) -> bool:
        return type(value) in {int, float} and math.isfinite(value) and 0 <= value <= 1  # type: ignore[arg-type, operator]


@dataclass(frozen=True, slots=True)
class _Text:
    longest: int

    @property
    def expected(self) -> str:
        return f"a text of at most {self.longest} characters"

    def accepts(self, value: object) -> bool:
        return type(value) is str and len(value) <= self.longest


def whole(default: int, low: int, high: int, multiple_of: int = 1) -> Any:
    """A field that holds a whole number."""
    return field(default=default, metadata={"rule": _Whole(low, high, multiple_of)})


def share(default: float) -> Any:
    """A field that holds a share of a whole."""
    return field(default=default, metadata={"rule": _Share()})


def text(default: str, longest: int) -> Any:
    """A field that holds a text."""
    return field(default=default, metadata={"rule": _Text(longest)})


class Parameters(Protocol):
    """What every program's parameters offer."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def private_bytes(self) -> int:
        """Private memory the program lays out."""
        ...

    @property
    def shared_bytes(self) -> int:
        """Memory shared with the host that the program lays out."""
        ...

    @property
    def disk_bytes(self) -> int:
        """The program's part of the disk."""
        ...


P = TypeVar("P", bound=Parameters)


def parameters_from(kind: type[P], given: Iterable[tuple[str, Scalar]]) -> P:
    """Parameters of ``kind`` with defaults where nothing was given; the same object for the same values."""
    pairs = tuple(given)
    types = tuple([type(value) for _, value in pairs])
    if not _HASHED.issuperset(types):
        return _parsed(kind, pairs)  # Something in it will be refused.
    # True and 1.0 equal 1, and are not what a whole number may be.
    return _kept(kind, pairs, types)  # type: ignore[return-value]


_HASHED = frozenset({int, float, str})


@lru_cache(maxsize=256)
def _kept(kind: type[Parameters], given: tuple[tuple[str, Scalar], ...], _: tuple[type, ...]) -> Parameters:
    return _parsed(kind, given)


def _parsed(kind: type[P], given: tuple[tuple[str, Scalar], ...]) -> P:
    rules = _rules_of(kind)
    values: dict[str, Scalar] = {}
    for name, value in given:
        if name not in rules:
            raise WorkloadParameterError(name, f"one of the parameters {', '.join(rules)}")
        if name in values:
            raise WorkloadParameterError(name, "to be given once")
        if not rules[name].accepts(value):
            raise WorkloadParameterError(name, rules[name].expected)
        values[name] = value
    return kind(**values)


@cache
def _rules_of(kind: type[Parameters]) -> dict[str, Rule]:
    return {one.name: one.metadata["rule"] for one in fields(kind)}


def check_placement(parameters: Parameters, placement: Placement) -> None:
    """Refuse a placement that is too small for the program."""
    if parameters.private_bytes > placement.length:
        raise WorkloadParameterError("memory", f"at least {parameters.private_bytes} private bytes for each vCPU")
    if parameters.shared_bytes > placement.shared_length:
        raise WorkloadParameterError("memory", f"at least {parameters.shared_bytes} shared bytes for each vCPU")


def pages(length: int) -> int:
    """``length`` rounded up to whole pages."""
    return -(-length // PAGE_BYTES) * PAGE_BYTES
