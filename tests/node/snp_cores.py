"""Boards whose cores have SNP on, without the firmware's part of a bring-up."""

from __future__ import annotations

from node import operations as op
from node.board import Board
from node.core_msrs import MFDM, SNP_EN, VMPL_EN, Msr


def enable_snp(board: Board) -> None:
    """MtrrFixDramModEn and then SNP_EN and VMPL_EN on every core, where the part has it: RMP instructions are there."""
    if board.rmp is None:
        return
    (syscfg,) = board.execute_host((op.ReadMsr(0, Msr.SYSCFG),))
    assert isinstance(syscfg, int)
    for bits in (MFDM, MFDM | SNP_EN | VMPL_EN):
        assert board.execute_host((op.WriteMsr(None, Msr.SYSCFG, syscfg | bits),)) == (None,)
