"""A tenant that does nothing: its vCPUs are halted from their first block on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from node.operations import Sleep
from node.program import Block, Demand, Placement, ProgramSpec, Registers
from workloads.parameters import check_placement, parameters_from

NAME = "idle"
_REST_RIP = 0x40_0000
_FOR_EVER_NS = 10**17


@dataclass(frozen=True, slots=True)
class IdleParameters:
    """It has none."""

    @property
    def private_bytes(self) -> int:
        """None."""
        return 0

    @property
    def shared_bytes(self) -> int:
        """None."""
        return 0

    @property
    def disk_bytes(self) -> int:
        """None."""
        return 0


@dataclass(frozen=True, slots=True)
class Idle:
    """The program. Its state is nothing."""

    @classmethod
    def build(cls, spec: ProgramSpec, placement: Placement) -> Idle:
        """Rebuild the program whole."""
        check_placement(parameters_from(IdleParameters, spec.parameters), placement)
        return _IDLE

    @property
    def entry(self) -> int:
        """RIP of its only block."""
        return _REST_RIP

    @property
    def demands(self) -> tuple[Demand, ...]:
        """None."""
        return ()

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        """The block by RIP."""
        return {_REST_RIP: _rest}


def _rest(_: Registers) -> Block:
    yield from ()
    return Sleep(_FOR_EVER_NS)


_IDLE = Idle()
