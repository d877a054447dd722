"""What a guest's stack instructions do to RSP; their loads and stores are operations of their own.

Handed on by ``node.operations``, beside all others.
"""

from __future__ import annotations

from dataclasses import dataclass

MOST_STACK_BYTES = 1 << 16
"""Of one move: the largest that an instruction can make (ENTER)."""


@dataclass(frozen=True, slots=True)
class StackMove:
    """RSP goes ``by`` bytes up or down, as at POP and RET or PUSH and CALL. Answer: RSP, or a Fault (#GP).

    ``rsp`` is what the program has in that register; no instruction moves it by more than ``MOST_STACK_BYTES``.
    """

    rsp: int
    by: int
