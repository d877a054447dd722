"""SNP_INIT is SNP_INIT_EX without a buffer; both leave a fresh RMP and ASIDs that wait for a flush."""

from __future__ import annotations

import dataclasses

import pytest
from toy_machine import RMP_SPA, UNCOVERED, Machine, new_machine

from psp import command_buffers as buffers
from psp.commands import LegacyCommand, SnpCommand, SnpPlatformState
from psp.status import Status
from psp.system_bus import IommuBuffer, IommuConfiguration, RmpEntry, RmpPlacement, RmpRegisters

OUT = 0x30_0000
INITS = [
    (SnpCommand.INIT, b""),
    (SnpCommand.INIT_EX, buffers.SnpInitEx(flags=buffers.SNP_INIT_RMP).pack()),
]


@pytest.mark.parametrize(("command", "buffer"), INITS)
def test_initialisation_clears_the_rmp_and_brings_the_platform_up(command: int, buffer: bytes) -> None:
    machine = new_machine()
    machine.bus.rmp_set(OUT, RmpEntry(assigned=True, gpa=0x5000, asid=3))
    assert machine.call(command, buffer) == Status.SUCCESS
    assert machine.bus.rmp_entry(OUT) == RmpEntry()
    assert machine.psp.snp.state is SnpPlatformState.INIT
    assert machine.call(SnpCommand.DF_FLUSH) == Status.WBINVD_REQUIRED
    assert machine.call(command, buffer) == Status.INVALID_PLATFORM_STATE


@pytest.mark.parametrize(("command", "buffer"), INITS)
@pytest.mark.parametrize("wrong", ["snp_enabled", "vmpl_enabled", "mtrr_fix_dram_mod_enabled", "hsave_pa_zero"])
def test_initialisation_demands_every_setting_of_the_cores(command: int, buffer: bytes, wrong: str) -> None:
    machine = new_machine()
    machine.bus.cores = dataclasses.replace(machine.bus.cores, **{wrong: False})
    machine.bus.rmp_set(OUT, RmpEntry(assigned=True, gpa=0x5000, asid=3))
    assert machine.call(command, buffer) == Status.INVALID_CONFIG
    assert machine.bus.rmp_entry(OUT).asid == 3


@pytest.mark.parametrize("flags", [0, buffers.SNP_INIT_RMP, 1 << 1, 1 << 31])
def test_legacy_firmware_that_is_up_comes_before_every_other_reason(flags: int) -> None:
    machine = new_machine()
    assert machine.call(LegacyCommand.INIT, buffers.Init().pack()) == Status.SUCCESS
    assert machine.call(SnpCommand.INIT_EX, buffers.SnpInitEx(flags=flags).pack()) == Status.INVALID_PLATFORM_STATE
    assert machine.call(SnpCommand.INIT) == Status.INVALID_PLATFORM_STATE


def shut_down(machine: Machine) -> None:
    assert machine.call(SnpCommand.SHUTDOWN_EX, buffers.SnpShutdownEx(length=8).pack()) == Status.SUCCESS


def test_a_second_initialisation_may_keep_the_rmp() -> None:
    machine = new_machine()
    assert machine.call(SnpCommand.INIT) == Status.SUCCESS
    shut_down(machine)
    machine.bus.rmp_set(OUT, RmpEntry(assigned=True, gpa=0x5000, asid=3))
    assert machine.call(SnpCommand.INIT_EX, buffers.SnpInitEx().pack()) == Status.SUCCESS
    assert machine.bus.rmp_entry(OUT).asid == 3


def test_shutdown_gives_back_contexts_and_leaves_other_firmware_pages() -> None:
    machine = new_machine()
    assert machine.call(SnpCommand.INIT) == Status.SUCCESS
    firmware = RmpEntry(assigned=True, immutable=True)
    machine.bus.rmp_set(OUT, firmware)
    machine.bus.rmp_set(OUT + 4096, firmware)
    assert machine.call(SnpCommand.GCTX_CREATE, buffers.GuestContextPage(OUT).pack()) == Status.SUCCESS
    shut_down(machine)
    assert machine.bus.rmp_entry(OUT) == RmpEntry(assigned=True)
    assert machine.bus.rmp_entry(OUT + 4096) == firmware


# Where the RMP is, and what the IOMMUs are.

RMP = (RmpRegisters(0xF0_0000, 0xFF_FFFF),)
LOG = 0x50_0000


def iommu(*buffers_of_it: IommuBuffer, enabled: bool = True, supports_snp: bool = True) -> dict[str, object]:
    return {"iommu": IommuConfiguration(enabled, supports_snp, buffers_of_it)}


def cores(*rmp: RmpRegisters) -> dict[str, object]:
    return {"cores": dataclasses.replace(new_machine().bus.cores, rmp=rmp)}


def placed(*ranges: tuple[int, int], covers_itself: bool = True) -> dict[str, object]:
    return {"placement": RmpPlacement(ranges, covers_itself)}


MACHINES = {
    "cores that differ about the RMP": (cores(*RMP, RmpRegisters(0xE0_0000, 0xFF_FFFF)), Status.INVALID_CONFIG),
    "cores without an RMP": (cores(), Status.INVALID_CONFIG),
    "registers that describe no table": ({"placement": None}, Status.INVALID_CONFIG),
    "an RMP between megabytes": (cores(RmpRegisters(0xF0_2000, 0xFF_FFFF)), Status.INVALID_CONFIG),
    "an RMP that ends between megabytes": (cores(RmpRegisters(0xF0_0000, 0xFF_DFFF)), Status.INVALID_CONFIG),
    "an RMP beyond memory": (placed((0xF0_0000, 0x20_0000)), Status.INVALID_CONFIG),
    "an RMP without entries for itself": (placed((0xF0_0000, 0x10_0000), covers_itself=False), Status.INVALID_CONFIG),
    "an IOMMU that is off": (iommu(enabled=False), Status.HWERROR_PLATFORM),
    "an IOMMU without SNPSup": (iommu(supports_snp=False), Status.HWERROR_PLATFORM),
    "a log that is too short": (iommu(IommuBuffer(LOG, 0x1000, 0x8_0000)), Status.INVALID_CONFIG),
    "a log without length": (iommu(IommuBuffer(LOG, -0x1000, 0x1000)), Status.INVALID_CONFIG),
    "a log without end": (iommu(IommuBuffer(0, 1 << 50, 0x1000)), Status.INVALID_CONFIG),
    "a log beyond memory": (iommu(IommuBuffer(1 << 40, 0x1000, 0x1000)), Status.INVALID_CONFIG),
    "a log half beyond memory": (iommu(IommuBuffer((1 << 24) - 0x1000, 0x2000, 0x1000)), Status.INVALID_CONFIG),
    "a log without RMP entries": (iommu(IommuBuffer(UNCOVERED, 0x1000, 0x1000)), Status.INVALID_CONFIG),
    "a log in the RMP": (iommu(IommuBuffer(RMP_SPA, 0x1000, 0x1000)), Status.INVALID_CONFIG),
}


@pytest.mark.parametrize(("command", "buffer"), INITS)
@pytest.mark.parametrize("case", MACHINES)
def test_a_machine_that_is_not_ready_is_refused_as_it_was(command: int, buffer: bytes, case: str) -> None:
    machine = new_machine()
    wrong, status = MACHINES[case]
    for name, value in wrong.items():
        setattr(machine.bus, name, value)
    machine.bus.rmp_set(OUT, RmpEntry(assigned=True, gpa=0x5000, asid=3))
    machine.bus.write(0x1000, buffer)
    before = machine.snapshot()
    assert machine.call(command, buffer) == status
    assert machine.snapshot() == before
    assert not machine.bus.enforced


@pytest.mark.parametrize("entry", [RmpEntry(assigned=True, gpa=0x5000, asid=3), RmpEntry(assigned=True)])
def test_a_kept_rmp_must_leave_the_logs_free(entry: RmpEntry) -> None:
    machine = new_machine()
    machine.bus.iommu = IommuConfiguration(enabled=True, supports_snp=True, buffers=(IommuBuffer(LOG, 0x2000, 0x1000),))
    assert machine.call(SnpCommand.INIT) == Status.SUCCESS
    shut_down(machine)
    machine.bus.rmp_set(LOG + 0x1000, entry)
    kept = buffers.SnpInitEx().pack()
    assert machine.call(SnpCommand.INIT_EX, kept) == Status.INVALID_CONFIG
    machine.bus.rmp_set(LOG + 0x1000, RmpEntry())
    assert machine.call(SnpCommand.INIT_EX, kept) == Status.SUCCESS


@pytest.mark.parametrize("flags", [0, buffers.SNP_SHUTDOWN_IOMMU])
def test_logs_are_firmware_s_from_initialisation_until_the_iommu_is_shut_down(flags: int) -> None:
    machine = new_machine()
    machine.bus.iommu = IommuConfiguration(enabled=True, supports_snp=True, buffers=(IommuBuffer(LOG, 0x2000, 0x1000),))
    assert machine.call(SnpCommand.INIT) == Status.SUCCESS
    pages = (LOG, LOG + 0x1000)
    assert [machine.bus.rmp_entry(page) for page in pages] == [RmpEntry(assigned=True, immutable=True)] * 2
    assert machine.bus.enforced
    assert machine.call(SnpCommand.SHUTDOWN_EX, buffers.SnpShutdownEx(8, flags).pack()) == Status.SUCCESS
    left = RmpEntry(assigned=True, immutable=not flags)
    assert [machine.bus.rmp_entry(page) for page in pages] == [left] * 2
    assert machine.bus.enforced is not bool(flags)


@pytest.mark.parametrize("locked", [False, True])
def test_fixed_firmware_starts_snp_only_on_a_locked_data_fabric(locked: bool) -> None:
    machine = new_machine()
    machine.bus.locked = locked
    machine.psp.snp.wants_fabric_locked = True
    assert machine.call(SnpCommand.INIT) == (Status.SUCCESS if locked else Status.INVALID_CONFIG)
