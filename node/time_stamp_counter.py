"""RDTSC in guests: the host's counter with what the hypervisor adds, or with Secure TSC what the save area says.

A guest's counter is the host's times a scale plus an offset. Both are the hypervisor's to choose in its control block,
so that it can tell its guest any time; with Secure TSC they are GUEST_TSC_SCALE and GUEST_TSC_OFFSET of the save area,
which firmware set at launch (APM volume 2, 15.36.18). Of the hypervisor's only the offset is modelled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from node import operations as op
from node.fault_answers import FAULTS, answer_to
from node.vmsa import SevFeature

if TYPE_CHECKING:
    from node.board import Board
    from node.vmcb import Vmcb

SCALE_BITS = 32
"""Behind the point of GUEST_TSC_SCALE."""
_ALL = (1 << 64) - 1


class TimeStampCounter:
    """Executes it. ``board.tsc`` is the host's counter."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self.table: Mapping[type, Callable[..., op.Answer]] = {op.ReadTsc: self._read}

    def _read(self, vmcb: Vmcb, _: op.ReadTsc) -> op.Answer:
        events, controls, counted = self._board.events, self._board.controls, self._board.tsc()
        try:
            if events.features(vmcb) & SevFeature.SECURE_TSC:
                scale, offset = (controls.load(vmcb, f"GUEST_TSC_{name}") for name in ("SCALE", "OFFSET"))
                return (counted * scale >> SCALE_BITS) + offset & _ALL
        except FAULTS as fault:
            return answer_to(fault, 0)
        return counted + events.field(vmcb, "TSC_OFFSET") & _ALL
