"""What a hypervisor puts into the GHCB page in answer to an exit."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass

from node.ghcb_page import Outcome
from node.hypervisor_port import Answers, Batch


@dataclass(frozen=True, slots=True)
class NaeReply:
    """What goes back into the page; ``ends`` is a ``terminated`` reply, or holds the vCPU."""

    info1: int = Outcome.SUCCESS
    info2: int = 0
    registers: Mapping[str, int] | None = None
    ends: int = 0


Serve = Generator[Batch, Answers, NaeReply]
NOTHING = NaeReply()
"""Done, and nothing to say."""
