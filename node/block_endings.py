"""How a block of a program may end."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Compute:
    """Retire instructions with the program's demand number ``demand``. Divisible."""

    demand: int
    instructions: int


@dataclass(frozen=True, slots=True)
class Sleep:
    """Halt the vCPU until a timer fires. Divisible."""

    duration_ns: int


@dataclass(frozen=True, slots=True)
class Await:
    """Halt the vCPU until its network card has something for it, or a timer fires. Divisible.

    It does not halt at all if something came since it last awoke.
    """

    most_ns: int


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Power the virtual machine off. ``code`` 0 is a normal end."""

    code: int = 0
