"""What the columns of the attack matrix are in this laboratory: a host's mode and a VM's generation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from node.generation import Generation
from node.platform import HostMode
from node.product import PRODUCTS


class Column(StrEnum):
    """A column of the matrix."""

    PLAIN = "PLAIN"
    SME = "SME"
    TSME = "TSME"
    SEV = "SEV"
    SEV_ES = "SEV_ES"
    SEV_SNP = "SEV_SNP"
    SEV_TIO = "SEV_TIO"


@dataclass(frozen=True, slots=True)
class Protection:
    """How a column's VMs are launched. Those of SEV_TIO have no device unless a row gives them one.

    Hosts of SEV guests have memory encryption on, as SEV demands (APM volume 2,
    15.34.3), so their hypervisor has a key of its own to try.
    """

    mode: HostMode
    launched: Generation
    offered: Generation
    """What a product must have."""


PROTECTIONS: Mapping[Column, Protection] = {
    Column.PLAIN: Protection(HostMode.NONE, Generation.PLAIN, Generation.PLAIN),
    Column.SME: Protection(HostMode.SME, Generation.SME, Generation.SME),
    Column.TSME: Protection(HostMode.TSME, Generation.PLAIN, Generation.SME),
    Column.SEV: Protection(HostMode.SME, Generation.SEV, Generation.SEV),
    Column.SEV_ES: Protection(HostMode.SME, Generation.SEV_ES, Generation.SEV_ES),
    Column.SEV_SNP: Protection(HostMode.SME, Generation.SEV_SNP, Generation.SEV_SNP),
    Column.SEV_TIO: Protection(HostMode.SME, Generation.SEV_TIO, Generation.SEV_TIO),
}

LINES = ("Naples", "Rome", "Milan", "Genoa", "Turin")
"""The products that the matrix speaks of."""


def products(column: Column) -> tuple[str, ...]:
    """Products that have a column."""
    offered = PROTECTIONS[column].offered
    return tuple(name for name in LINES if offered in PRODUCTS[name].generations)
