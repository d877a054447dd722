"""What people write after ``--set PATH=`` and ``--seeds``: values with commas between, and ranges such as ``1..4``."""

from __future__ import annotations

import re
import tomllib

from cluster.errors import UserError
from cluster.units import shown
from node.program import Scalar

MOST_VALUES = 10_000
"""Of one setting; also the most grid points of a sweep."""

_COMMA_OUTSIDE_QUOTES = re.compile(r""",(?=(?:[^"]*"[^"]*")*[^"]*$)""")
_RANGE = re.compile(r"(-?[0-9]{1,18})\.\.(-?[0-9]{1,18})(?:\.\.([0-9]{1,18}))?")
_COUNT = re.compile(r"[0-9]{1,19}")


class ValuesError(UserError):
    """A list of values that cannot be read; ``where`` is the path they are for."""

    def __init__(self, expected: str, got: str, where: str = "") -> None:
        super().__init__(f"{where}: expected {expected}, got {got}" if where else f"expected {expected}, got {got}")
        self.expected = expected
        self.got = got


def setting_of(text: str) -> tuple[str, tuple[Scalar, ...]]:
    """``PATH=VALUES`` as the path and its values. Raises ValuesError."""
    path, equals, values = text.partition("=")
    if not equals or not path.strip():
        raise ValuesError("PATH=VALUES, such as vms.database.vcpus=1,2,4", shown(text))
    try:
        return path.strip(), values_of(values)
    except ValuesError as error:
        raise ValuesError(error.expected, error.got, shown(path.strip(), 120)[1:-1]) from None


def values_of(text: str) -> tuple[Scalar, ...]:
    """The values in a text. Raises ValuesError.

    Each is a number, ``true`` or ``false``, a text in double quotes as TOML has
    it, or anything else as a text without quotes: ``4 GiB``, ``SEV_SNP``.
    ``1..4`` is 1, 2, 3, 4; ``0..16..4`` takes steps of 4.
    """
    values: list[Scalar] = []
    for word in _COMMA_OUTSIDE_QUOTES.split(text):
        piece = word.strip()
        if not piece:
            raise ValuesError("a value on each side of a comma", shown(text))
        span = _range(piece)
        values.extend([_scalar(piece)] if span is None else span)
        if len(values) > MOST_VALUES:
            raise ValuesError(f"at most {MOST_VALUES:,} values", "more")
    return tuple(values)


def seeds_of(text: str) -> int | tuple[int, ...]:
    """Seeds as the command line takes them: how many, or which (``1..20``, ``3,5,8``). Raises ValuesError."""
    expected = "how many seeds, or which: 8, or 1..20, or 3,5,8"
    if _COUNT.fullmatch(text):
        return int(text)
    try:
        seeds = values_of(text)
    except ValuesError:
        raise ValuesError(expected, shown(text)) from None
    if not all(type(seed) is int for seed in seeds):
        raise ValuesError(expected, shown(text))
    return tuple(int(seed) for seed in seeds)


def _range(piece: str) -> range | None:
    match = _RANGE.fullmatch(piece)
    if match is None:
        return None
    first, last, step = int(match[1]), int(match[2]), int(match[3] or 1)
    if last < first or step < 1:
        raise ValuesError("a range from low to high, such as 1..4", shown(piece))
    if (last - first) // step >= MOST_VALUES:
        raise ValuesError(f"a range of at most {MOST_VALUES:,} values", shown(piece))
    return range(first, last + 1, step)


def _scalar(piece: str) -> Scalar:
    try:
        read = tomllib.loads(f"value = {piece}")
    except (ValueError, RecursionError):
        return piece
    value = read.get("value")
    return value if len(read) == 1 and isinstance(value, (bool, int, float, str)) else piece
