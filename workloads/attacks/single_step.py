"""One instruction of a vCPU that the attacker entered: the laboratory's core executes it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """Let the first vCPU of a VM execute what lies at its RIP, until it exits, and save its registers.

    Answer: what the control block says then. A Fault for a nested page fault, else EXITCODE: INVALID where no VMRUN
    has entered it, SHUTDOWN where code without handlers gets an exception, or where there is no code.
    """

    vm: str
