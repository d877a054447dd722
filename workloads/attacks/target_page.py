"""Where a page of a VM lies."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a VM: where the guest has it, and where the hypervisor put it."""

    gpa: int
    spa: int
