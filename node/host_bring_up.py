"""How a hypervisor brings a host up, step by step: the IOMMU, the cores, then the firmware.

SNP's order (``spec/firmware/rmp.md`` section 6): IOMMU on, RMP zeroed and caches written
back, MtrrFixDramModEn and only then SNP_EN on all cores, VM_HSAVE_PA zero, SNP_INIT_EX,
caches and data fabric flushed, legacy INIT.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from node import operations as op
from node.core_msrs import MEM_ENCRYPTION_MODE_EN, MFDM, SNP_EN, VMPL_EN, Msr
from node.generation import Generation
from node.iommu_driver import enabling
from node.product import Product
from node.rmp_layout import BOOKKEEPING_BYTES, RmpLayout
from psp import command_buffers as buffers
from psp.commands import LegacyCommand, SnpCommand
from psp.legacy import INIT_ES
from psp.status import Status
from psp.system_bus import LARGE_PAGE_BYTES, RmpEntry

TRUSTED_REGION_BYTES = LARGE_PAGE_BYTES
"""Memory given up at INIT for SEV-ES guests; 1 MiB would do without SNP."""


class Step(NamedTuple):
    """One batch; what is to be done before the next."""

    name: str
    batch: tuple[op.HypervisorOperation, ...]


def trusted_region(rmp: RmpLayout | None) -> int:
    """Where it is given up: below the RMP, or the second 2 MiB of memory where there is none."""
    if rmp is None:
        return LARGE_PAGE_BYTES
    return (rmp.base - TRUSTED_REGION_BYTES) // LARGE_PAGE_BYTES * LARGE_PAGE_BYTES


def bring_up_steps(product: Product, rmp: RmpLayout | None, command_page: int, syscfg: int) -> Iterator[Step]:
    """The steps of a host whose SYSCFG reads ``syscfg``; ``rmp`` is None where there is no SNP."""
    yield Step("IOMMU", enabling())
    if rmp is not None:
        table = [(rmp.base, BOOKKEEPING_BYTES), *((one.spa, one.end - one.spa) for one in rmp.arrays)]
        init = buffers.SnpInitEx(flags=buffers.SNP_INIT_RMP)
        # Zeros are what the table's own accesses read as zeros.
        keyed = bool(syscfg & MEM_ENCRYPTION_MODE_EN) and product.rmp.under_host_key
        yield Step("RMP zeroed", (*[op.HostClear(spa, length, keyed) for spa, length in table], op.Wbinvd()))
        yield Step("MtrrFixDramModEn", (op.WriteMsr(None, Msr.SYSCFG, syscfg | MFDM),))
        yield Step("SNP_EN", (op.WriteMsr(None, Msr.SYSCFG, syscfg | MFDM | SNP_EN | VMPL_EN),))
        yield Step("VM_HSAVE_PA", (op.WriteMsr(None, Msr.VM_HSAVE_PA, 0),))
        yield Step("SNP_INIT_EX", (op.PspCommand(SnpCommand.INIT_EX, command_page, init.pack()),))
        yield Step("SNP_DF_FLUSH", (op.Wbinvd(), op.PspCommand(SnpCommand.DF_FLUSH)))
    if Generation.SEV in product.generations:
        init_es = buffers.Init(INIT_ES, trusted_region(rmp), TRUSTED_REGION_BYTES)
        if rmp is not None:
            entry = RmpEntry(assigned=True, immutable=True, large=True)
            yield Step("trusted region", (op.RmpUpdate(trusted_region(rmp), TRUSTED_REGION_BYTES, entry),))
        yield Step("INIT", (op.PspCommand(LegacyCommand.INIT, command_page, init_es.pack()),))
        yield Step("DF_FLUSH", (op.Wbinvd(), op.PspCommand(LegacyCommand.DF_FLUSH)))


def refusal(step: Step, answers: tuple[op.Answer, ...]) -> str:
    """What went wrong in a step, in words; empty if nothing did."""
    for one, answer in zip(step.batch, answers, strict=True):
        if isinstance(answer, op.PspAnswer):
            if answer.status:
                return f"{step.name}: {Status(answer.status).name}"
        elif answer not in (None, 0):
            return f"{step.name}: {type(one).__name__}: {answer!r}"
    return ""
