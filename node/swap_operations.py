"""Operations by which a hypervisor moves a guest of SEV-SNP with its migration agent (``node/agent_transfer.py``)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SwapRowOut:
    """Swap out pages that nobody wrote, as many commands in one. Answer: how many, or less: -1 times the status.

    ``mdata`` is where their one entry goes. What they cost is charged by the page, for all that a migration copies.
    """

    gctx: int
    spa: int
    pages: int
    mdata: int
    large: bool


@dataclass(frozen=True, slots=True)
class SwapRowIn:
    """Swap such a row in. Answer: how many pages, or -1 times the status."""

    gctx: int
    spa: int
    mdata: int


@dataclass(frozen=True, slots=True)
class HandlerCall:
    """As ``AgentCall``, with the migration handler in a guest's SVSM: at VMPL0, with the save area of its first vCPU.

    ``code`` is where its image begins in the guest's memory, ``area`` where that save area lies.
    """

    vm: str
    order: bytes
    code: int
    area: int
    gctx: int
    command: int
    request: int
    response: int


@dataclass(frozen=True, slots=True)
class AgentCall:
    """A whole exchange with a migration agent. Answer: bytes, of ``node.migration_agent``, or a Fault of who is none.

    An order is laid into its shared page, it runs, its requests are carried to the firmware, and what it says at last
    is read. That stands for the agent's exits, as ``PageStateChange`` does for others'. Requests go as
    SNP_GUEST_REQUEST of ``gctx``, whose buffer is laid at ``command``, from page ``request`` to ``response``, which
    firmware may write.
    """

    vm: str
    order: bytes
    gctx: int
    command: int
    request: int
    response: int
