"""Operations that do nothing but leave traces: branches, arithmetic, and the host's look at performance counters.

They are handed on by ``node.operations``, beside all others.
"""

from __future__ import annotations

from dataclasses import dataclass

MOST_DISCLOSING = 64
"""Pieces of code that one jump may name."""
MOST_TIMES = 1 << 32

# Of a guest's vCPU.


@dataclass(frozen=True, slots=True)
class Branch:
    """A conditional branch, which counters count. Answer: None."""

    taken: bool


@dataclass(frozen=True, slots=True)
class IndirectBranch:
    """A jump at ``site`` to ``target`` through a register. Answer: None, or a Fault (#GP) where it names too much.

    ``disclosing`` says what the program's code would load (GPA, without the C-bit) with the registers of the moment, by
    its address, if it were run there by mistake.
    """

    site: int
    target: int
    disclosing: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """An instruction that computes with one operand, executed ``times`` times: it takes energy, and no time of its own.

    Answer: None, or a Fault (#GP) for an operand that no register holds, or more than ``MOST_TIMES``.
    """

    operand: int
    times: int


# Of the hypervisor.


@dataclass(frozen=True, slots=True)
class HostBranch:
    """A jump at ``site`` to ``target`` on hardware thread ``core``. Answer: None, or a Fault (#UD) for no thread."""

    core: int
    site: int
    target: int


@dataclass(frozen=True, slots=True)
class HostReadCounter:
    """RDPMC on one thread: how often ``event`` happened there. Answer: int, or a Fault (#GP)."""

    core: int
    event: int
