"""Loads, stores and copies of a guest's vCPU by guest-physical address. They are handed on by ``node.operations``.

Some of them a guest makes only because it has a key: a plain VM keeps no book of bounce buffers, fills no GHCB and
looks for no canary. These do the same and have names of their own, for what they cost encryption costs.
"""

from __future__ import annotations

from dataclasses import dataclass

from node.mechanism import Mechanism

MOST_BYTES = 32 << 20
"""Of one load: a longer one is #GP before anything else is looked at.

Hostile tables show memory at every address, and a host may have more memory than the machine that models it: so
the answer is bounded, and with it the pages that are walked for it, 8,192 at most.
"""


@dataclass(frozen=True, slots=True)
class Read:
    """Load ``length`` bytes, at most ``MOST_BYTES``; ``private`` is the C-bit. Answer: bytes, or a Fault."""

    gpa: int
    length: int
    private: bool = True


@dataclass(frozen=True, slots=True)
class Write:
    """Store ``data``; ``private`` is the C-bit. Answer: None, or a Fault with nothing stored.

    A core would store in many instructions and fault at one of them; here the operation is one.
    """

    gpa: int
    data: bytes
    private: bool = True


@dataclass(frozen=True, slots=True)
class Copy:
    """REP MOVSB of ``length`` bytes; each end has its C-bit. Answer: the bytes that passed, or a Fault of either end.

    They pass through the vCPU's registers, so its program may look at them; a fault leaves the target as it was.
    """

    source: int
    target: int
    length: int
    source_private: bool = True
    target_private: bool = True


@dataclass(frozen=True, slots=True)
class UpkeepRead(Read):
    """A load that no plain VM makes, booked to ``mechanism``. Answer: bytes, or a Fault.

    ``paid`` is one that costs nothing more: of a GHCB page, which the figure of a round trip holds, or one made again.
    """

    mechanism: Mechanism = Mechanism.ACCEPTANCE
    paid: bool = False


@dataclass(frozen=True, slots=True)
class UpkeepWrite(Write):
    """A store that no plain VM makes; as ``UpkeepRead``. Answer: None, or a Fault with nothing stored."""

    mechanism: Mechanism = Mechanism.ACCEPTANCE
    paid: bool = False
