"""MSRs of the cores: reserved bits, wrong order and locked registers are #GP, and change no core."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from iommu_boards import host, switched_on

from node import operations as op
from node.core_msrs import MEM_ENCRYPTION_MODE_EN, MFDM, SMM_LOCK, SNP_EN, VMPL_EN, CoreMsrs, Msr
from node.platform import HostMode, Platform
from node.rmp import ProtectionFault

THREADS = 128
"""Of a Milan: 64 cores, two threads each."""


def gp(msr: int) -> op.Fault:
    return op.Fault(op.FaultKind.GENERAL_PROTECTION, msr)


def write(msr: int, value: int, core: int | None = None) -> op.WriteMsr:
    return op.WriteMsr(core, msr, value)


PREPARED = (write(Msr.SYSCFG, MFDM),)
ENABLED = (*PREPARED, write(Msr.SYSCFG, MFDM | SNP_EN))

REFUSED = {
    "a reserved bit of SYSCFG": ("Milan", (), write(Msr.SYSCFG, 1)),
    "SNP_EN without MtrrFixDramModEn": ("Milan", (), write(Msr.SYSCFG, SNP_EN)),
    "SNP_EN together with MtrrFixDramModEn": ("Milan", (), write(Msr.SYSCFG, MFDM | SNP_EN)),
    "SNP_EN on a core that is behind": ("Milan", (write(Msr.SYSCFG, MFDM, core=3),), write(Msr.SYSCFG, MFDM | SNP_EN)),
    "SNP_EN on a part without SNP": ("Rome", PREPARED, write(Msr.SYSCFG, MFDM | SNP_EN)),
    "VMPL_EN on a part without SNP": ("Rome", PREPARED, write(Msr.SYSCFG, MFDM | VMPL_EN)),
    "SME that firmware has not enabled": ("Milan", (), write(Msr.SYSCFG, MEM_ENCRYPTION_MODE_EN)),
    "a reserved bit of HWCR": ("Milan", (), write(Msr.HWCR, 1 << 1)),
    "VM_HSAVE_PA off a page": ("Milan", (), write(Msr.VM_HSAVE_PA, 0x1800)),
    "VM_HSAVE_PA beyond the address bits": ("Milan", (), write(Msr.VM_HSAVE_PA, 1 << 48)),
    "RMP_BASE off its granule": ("Milan", (), write(Msr.RMP_BASE, 0x1000)),
    "RMP_BASE beyond the address bits": ("Milan", (), write(Msr.RMP_BASE, 1 << 48)),
    "RMP_BASE once SNP_EN is set": ("Milan", ENABLED, write(Msr.RMP_BASE, 1 << 20)),
    "RMP_END once SNP_EN is set": ("Milan", ENABLED, write(Msr.RMP_END, 1 << 20)),
    "RMP_CFG once SNP_EN is set": ("Turin", ENABLED, write(Msr.RMP_CFG, 0)),
    "RMP_CFG on a part without segments": ("Genoa", (), write(Msr.RMP_CFG, 0x2401)),
    "a reserved bit of RMP_CFG": ("Turin", (), write(Msr.RMP_CFG, 0b10)),
    "RMP_BASE on a part without SNP": ("Naples", (), write(Msr.RMP_BASE, 1 << 20)),
    "an MSR that nobody has": ("Milan", (), write(0xC001_FFFF, 0)),
    "a core that is not there": ("Milan", (), write(Msr.SYSCFG, MFDM, core=THREADS)),
    "a core below zero": ("Milan", (), write(Msr.SYSCFG, MFDM, core=-1)),
    "more than 64 bits": ("Milan", (), write(Msr.SYSCFG, 1 << 64)),
    "less than nothing": ("Milan", (), write(Msr.SYSCFG, -1)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_register_cannot_take_is_gp_and_changes_no_core(case: str) -> None:
    product, before, wrong = REFUSED[case]
    board = switched_on(product)
    assert host(board, *before) == (None,) * len(before)
    known = {msr: board.msrs.values(msr) for msr in Msr}
    assert host(board, wrong) == (gp(wrong.msr),)
    assert {msr: board.msrs.values(msr) for msr in Msr} == known


def test_snp_en_stays_until_reset() -> None:
    board = switched_on()
    assert host(board, *ENABLED, write(Msr.SYSCFG, 0)) == (None, None, None)
    assert host(board, op.ReadMsr(5, Msr.SYSCFG)) == (SNP_EN,)


def test_firmware_locks_smm_and_nobody_unlocks_it() -> None:
    board = switched_on()
    assert host(board, write(Msr.HWCR, 0), op.ReadMsr(0, Msr.HWCR)) == (None, SMM_LOCK)


@pytest.mark.parametrize("mode", HostMode)
def test_sme_is_what_the_platform_has(mode: HostMode) -> None:
    board = switched_on("Milan", Platform(mode=mode))
    (syscfg,) = host(board, op.ReadMsr(0, Msr.SYSCFG))
    assert syscfg == (MEM_ENCRYPTION_MODE_EN if mode is HostMode.SME else 0)


def test_the_last_byte_of_the_rmp_has_its_low_bits_set() -> None:
    board = switched_on()
    assert host(board, write(Msr.RMP_END, 0x30_0000), op.ReadMsr(0, Msr.RMP_END)) == (None, 0x30_1FFF)


@pytest.mark.parametrize("core", [0, THREADS - 1])
def test_a_core_has_registers_of_its_own(core: int) -> None:
    board = switched_on()
    assert host(board, write(Msr.VM_HSAVE_PA, 0x5000, core)) == (None,)
    assert [host(board, op.ReadMsr(one, Msr.VM_HSAVE_PA))[0] for one in (core, 7)] == [0x5000, 0]
    assert sorted(board.msrs.values(Msr.VM_HSAVE_PA)) == [0, 0x5000]


def test_a_read_of_what_is_not_there_is_gp() -> None:
    board = switched_on()
    assert host(board, op.ReadMsr(0, 0x1234), op.ReadMsr(THREADS, Msr.SYSCFG)) == (gp(0x1234), gp(Msr.SYSCFG))


WRITES = st.tuples(
    st.none() | st.integers(0, 3),
    st.sampled_from([Msr.SYSCFG, Msr.VM_HSAVE_PA, Msr.RMP_BASE]),
    st.sampled_from([0, MFDM, MFDM | SNP_EN, SNP_EN, 0x2000, 0x10_0000]),
)


@given(st.lists(WRITES, max_size=30))
def test_what_is_kept_for_all_is_what_each_core_would_have_kept(writes: list[tuple[int | None, int, int]]) -> None:
    together = CoreMsrs(4, 48, {}, snp=True, segmented=False)
    alone = [CoreMsrs(1, 48, {}, snp=True, segmented=False) for _ in range(4)]
    for core, msr, value in writes:
        touched = range(4) if core is None else [core]
        # The reference knows of one core only; a store to all is refused if any core refuses it.
        if any(refuses(alone[one], msr, value) for one in touched):
            with pytest.raises(ProtectionFault):
                together.write(core, msr, value)
            continue
        together.write(core, msr, value)
        for one in touched:
            alone[one].write(0, msr, value)
    for msr in (Msr.SYSCFG, Msr.VM_HSAVE_PA, Msr.RMP_BASE):
        expected = [one.read(0, msr) for one in alone]
        assert [together.read(core, msr) for core in range(4)] == expected
        assert set(together.values(msr)) == set(expected)


def refuses(core: CoreMsrs, msr: int, value: int) -> bool:
    syscfg, had = core.read(0, Msr.SYSCFG), core.read(0, msr)
    if msr == Msr.SYSCFG:
        return bool(value & ~(MFDM | SNP_EN | 1 << 20) or (value & ~syscfg & SNP_EN and not syscfg & MFDM))
    if msr == Msr.VM_HSAVE_PA:
        return bool(value % 0x1000)
    return bool(value % 0x2000 or (syscfg & SNP_EN and value != had))
