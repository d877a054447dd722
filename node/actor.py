"""Who asked the board for something, and the tap that sees what each was told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from node.operations import Answer


class Role(StrEnum):
    """Where an operation came from; no operation says so itself."""

    GUEST = "guest"
    HYPERVISOR = "hypervisor"
    DEVICE = "device"
    DIMM = "dimm"
    """Somebody with a hand on the memory modules or their bus."""
    LINK = "link"
    """Somebody between a root port and its card."""


@dataclass(frozen=True, slots=True)
class Actor:
    """A role and its name: a guest's is its VM's, a device's its requester's; and a guest's VMPL.

    The vCPUs of a guest are one actor.
    """

    role: Role
    name: str = ""
    vcpu: int = field(default=0, compare=False)
    vmpl: int = 0


HYPERVISOR = Actor(Role.HYPERVISOR)

Observer = Callable[[Actor, tuple[object, ...], tuple[Answer, ...]], None]
"""Called with each batch when its answers are given; it must change nothing."""
