"""How a hypervisor brings a host up, step by step: the IOMMU, the cores, then the firmware.

SNP's order (``spec/firmware/rmp.md`` section 6): IOMMU on, caches written back,
MtrrFixDramModEn and only then SNP_EN on all cores, VM_HSAVE_PA zero, SNP_INIT_EX, caches
and data fabric flushed, legacy INIT. Linux zeroes the RMP itself before it asks the
firmware to; here the firmware alone does it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from node import operations as op
from node.core_msrs import MFDM, SNP_EN, VMPL_EN, Msr
from node.generation import Generation
from node.iommu_driver import DEVICE_TABLE, DEVICE_TABLE_PAGES, enabling
from node.product import Product
from psp import command_buffers as buffers
from psp.commands import LegacyCommand, SnpCommand
from psp.status import Status
from psp.system_bus import LARGE_PAGE_BYTES, RmpEntry

TRUSTED_REGION_BYTES = LARGE_PAGE_BYTES
"""Memory given up at INIT for SEV-ES guests; 1 MiB would do without SNP."""


class Step(NamedTuple):
    """One batch; what is to be done before the next."""

    name: str
    batch: tuple[op.HypervisorOperation, ...]


def bring_up_steps(
    product: Product,
    command_page: int,
    syscfg: int,
    max_snp_asid: int = 0,
    trusted_region: int = 0,
    device_table: tuple[int, int] = (DEVICE_TABLE, DEVICE_TABLE_PAGES),
    *,
    tio: bool = False,
) -> tuple[Step, ...]:
    """The steps of a host whose SYSCFG reads ``syscfg``: with SNP where the product has it.

    With a ``max_snp_asid`` the host asks for ciphertext hiding. With a ``trusted_region``, of
    ``TRUSTED_REGION_BYTES``, SEV-ES guests can come. ``device_table`` is the IOMMU's, as (SPA, pages); with ``tio``
    firmware is to serve SEV-TIO.
    """
    snp, sev = (one in product.generations for one in (Generation.SEV_SNP, Generation.SEV))
    return _steps(command_page, syscfg, max_snp_asid, trusted_region, device_table, snp=snp, sev=sev, tio=tio)


@lru_cache(maxsize=64)
def _steps(
    command_page: int, syscfg: int, max_snp_asid: int, trusted_region: int, device_table: tuple[int, int],
    *, snp: bool, sev: bool, tio: bool,
) -> tuple[Step, ...]:
    """Made once for the many equal hosts of a fleet."""
    return tuple(
        _each_step(command_page, syscfg, max_snp_asid, trusted_region, device_table, snp=snp, sev=sev, tio=tio)
    )


def _each_step(
    command_page: int, syscfg: int, max_snp_asid: int, trusted_region: int, device_table: tuple[int, int],
    *, snp: bool, sev: bool, tio: bool,
) -> Iterator[Step]:
    yield Step("IOMMU", enabling(*device_table))
    if snp:
        options = buffers.SNP_INIT_HIDE_CIPHERTEXT if max_snp_asid else 0
        options |= buffers.SNP_INIT_TIO if tio else 0
        init = buffers.SnpInitEx(flags=buffers.SNP_INIT_RMP | options, max_snp_asid=max_snp_asid)
        yield Step("WBINVD", (op.Wbinvd(),))
        yield Step("MtrrFixDramModEn", (op.WriteMsr(None, Msr.SYSCFG, syscfg | MFDM),))
        yield Step("SNP_EN", (op.WriteMsr(None, Msr.SYSCFG, syscfg | MFDM | SNP_EN | VMPL_EN),))
        yield Step("VM_HSAVE_PA", (op.WriteMsr(None, Msr.VM_HSAVE_PA, 0),))
        yield Step("SNP_INIT_EX", (op.PspCommand(SnpCommand.INIT_EX, command_page, init.pack()),))
        yield Step("SNP_DF_FLUSH", (op.Wbinvd(), op.PspCommand(SnpCommand.DF_FLUSH)))
    if sev:
        legacy = buffers.Init()
        if trusted_region:
            legacy = buffers.Init(buffers.INIT_ES, trusted_region, TRUSTED_REGION_BYTES)
            if snp:
                entry = RmpEntry(assigned=True, immutable=True, large=True)
                yield Step("trusted region", (op.RmpUpdate(trusted_region, TRUSTED_REGION_BYTES, entry),))
        yield Step("INIT", (op.PspCommand(LegacyCommand.INIT, command_page, legacy.pack()),))
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
