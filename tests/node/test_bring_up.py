"""A host comes up in AMD's order; in any other it is refused, with the documented status, and nothing has changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from iommu_boards import MEMORY_BYTES, brought_up, do, host, switched_on

from node import operations as op
from node.board import Board
from node.core_msrs import MFDM, SNP_EN, VMPL_EN, Msr
from node.counter_random import CounterRandom
from node.host_bring_up import Step, bring_up_steps, refusal
from node.hypervisor import Hypervisor
from node.iommu_driver import COMMANDS, DEVICE_TABLE, EVENTS, EVENTS_BYTES, SEMAPHORE, write_register
from node.iommu_registers import EVENT_LOG_ENABLE, IOMMU_ENABLE, PARKED, Register, ring_register
from node.platform import HostMode, Platform
from node.product import PRODUCTS
from node.rmp_layout import RMP_CFG_64_GIB, at_end_of_memory
from psp import command_buffers as buffers
from psp.commands import LegacyCommand, SnpCommand, SnpPlatformState
from psp.page_state import PageState, page_state
from psp.status import Status
from psp.system_bus import PAGE_BYTES, RmpEntry

COMMAND_PAGE = 2 << 20
MIB = 1 << 20
RMP_BASE = MEMORY_BYTES - 2 * MIB
"""Of a flat table for 64 MiB: 16 KiB and 256 KiB, in whole 2 MiB."""


def steps(board: Board) -> list[Step]:
    return list(bring_up_steps(board.product, COMMAND_PAGE, 0))


def run(board: Board, some: Sequence[Step]) -> str:
    """The first refusal, if there is any."""
    for step in some:
        refused = refusal(step, board.execute_host(step.batch))
        if refused:
            return refused
    return ""


def without(*names: str):
    return lambda before: [step for step in before if step.name not in names]


def with_before(name: str, *operations: op.HypervisorOperation):
    """The same, with something done just before a step."""

    def change(before: list[Step]) -> list[Step]:
        at = [step.name for step in before].index(name)
        return [*before[:at], Step("besides", operations), *before[at:]]

    return change


def moved(name: str, ahead_of: str):
    def change(before: list[Step]) -> list[Step]:
        (step,) = [one for one in before if one.name == name]
        return with_before(ahead_of, *step.batch)(without(name)(before))

    return change


def msr(register: Msr, value: int, core: int | None = None) -> op.WriteMsr:
    return op.WriteMsr(core, register, value)


def at_init(*operations: op.HypervisorOperation):
    return with_before("SNP_INIT_EX", *operations)


def before_snp_en(*operations: op.HypervisorOperation):
    return with_before("SNP_EN", *operations)


def one_core(register: Msr, value: int, core: int = 77):
    return msr(register, value, core)


ALL = MFDM | SNP_EN | VMPL_EN
NO_VMPL = msr(Msr.SYSCFG, MFDM | SNP_EN)
FULL_LOG = ring_register(EVENTS, EVENTS_BYTES)
INVALID_CONFIG, PLATFORM = "SNP_INIT_EX: INVALID_CONFIG", "SNP_INIT_EX: HWERROR_PLATFORM"
GP = "WriteMsr: Fault(kind=<FaultKind.GENERAL_PROTECTION"

WRONG = {
    "no SNP_EN": ("Milan", without("SNP_EN"), INVALID_CONFIG),
    "no MtrrFixDramModEn": ("Milan", without("MtrrFixDramModEn"), GP),
    "SNP_EN before MtrrFixDramModEn": ("Milan", moved("SNP_EN", "MtrrFixDramModEn"), GP),
    "SNP_EN on one core only": (
        "Milan",
        lambda before: at_init(one_core(Msr.SYSCFG, ALL))(without("SNP_EN")(before)),
        INVALID_CONFIG,
    ),
    "no VMPL_EN": ("Milan", lambda before: at_init(NO_VMPL)(without("SNP_EN")(before)), INVALID_CONFIG),
    "VMPL_EN on one core only": (
        "Turin",
        lambda before: at_init(NO_VMPL, one_core(Msr.SYSCFG, ALL))(without("SNP_EN")(before)),
        INVALID_CONFIG,
    ),
    "MtrrFixDramModEn taken back on one core": ("Milan", at_init(one_core(Msr.SYSCFG, SNP_EN)), INVALID_CONFIG),
    "VM_HSAVE_PA set on all cores": ("Milan", at_init(msr(Msr.VM_HSAVE_PA, 0x5000)), INVALID_CONFIG),
    "VM_HSAVE_PA set on one core": ("Genoa", at_init(one_core(Msr.VM_HSAVE_PA, 0x5000)), INVALID_CONFIG),
    "RMP_BASE differs on one core": ("Milan", before_snp_en(one_core(Msr.RMP_BASE, MIB)), INVALID_CONFIG),
    "RMP_END differs on one core": ("Milan", before_snp_en(one_core(Msr.RMP_END, MEMORY_BYTES - MIB)), INVALID_CONFIG),
    "RMP_BASE between megabytes": ("Milan", before_snp_en(msr(Msr.RMP_BASE, RMP_BASE + 0x2000)), INVALID_CONFIG),
    "RMP_END between megabytes": ("Milan", before_snp_en(msr(Msr.RMP_END, MEMORY_BYTES - 0x4000)), INVALID_CONFIG),
    "an RMP that ends before it begins": ("Milan", before_snp_en(msr(Msr.RMP_END, RMP_BASE - 1)), INVALID_CONFIG),
    "an RMP over the event log": (
        "Milan",
        before_snp_en(msr(Msr.RMP_BASE, MIB), msr(Msr.RMP_END, 2 * MIB - 1)),
        INVALID_CONFIG,
    ),
    "an RMP beyond memory": (
        "Milan",
        before_snp_en(msr(Msr.RMP_BASE, 1 << 40), msr(Msr.RMP_END, (1 << 40) + MIB - 1)),
        INVALID_CONFIG,
    ),
    "an RMP half beyond memory": ("Milan", before_snp_en(msr(Msr.RMP_END, MEMORY_BYTES + MIB - 1)), INVALID_CONFIG),
    "an RMP at nothing": ("Milan", before_snp_en(msr(Msr.RMP_BASE, 0), msr(Msr.RMP_END, 0)), INVALID_CONFIG),
    "segments of no size": ("Turin", before_snp_en(msr(Msr.RMP_CFG, 1)), INVALID_CONFIG),
    "segments without a table of them": ("Turin", before_snp_en(msr(Msr.RMP_BASE, 8 * MIB)), INVALID_CONFIG),
    "no IOMMU": ("Milan", without("IOMMU"), PLATFORM),
    "IOMMU disabled": ("Turin", at_init(write_register(Register.CONTROL, EVENT_LOG_ENABLE)), PLATFORM),
    "event log beyond memory": (
        "Milan",
        at_init(write_register(Register.EVENT_BASE, ring_register(1 << 40, EVENTS_BYTES))),
        INVALID_CONFIG,
    ),
    "event log over the RMP": (
        "Milan",
        at_init(write_register(Register.EVENT_BASE, ring_register(RMP_BASE, EVENTS_BYTES))),
        INVALID_CONFIG,
    ),
    "completion range that ends before it begins": (
        "Milan",
        at_init(write_register(Register.COMPLETION_LIMIT, SEMAPHORE - 2 * PAGE_BYTES)),
        INVALID_CONFIG,
    ),
    "completion range of all memory": (
        "Milan",
        at_init(write_register(Register.COMPLETION_LIMIT, MEMORY_BYTES - PAGE_BYTES)),
        INVALID_CONFIG,
    ),
    "legacy INIT first": ("Milan", moved("INIT", "SNP_INIT_EX"), "SNP_INIT_EX: INVALID_PLATFORM_STATE"),
    "no flush": ("Milan", without("SNP_DF_FLUSH", "DF_FLUSH"), ""),
    "SNP_INIT_EX again": (
        "Milan",
        lambda before: [*before, *[step for step in before if step.name == "SNP_INIT_EX"]],
        "SNP_INIT_EX: INVALID_PLATFORM_STATE",
    ),
    "as it should be": ("Milan", list, ""),
    "as it should be, in segments": ("Turin", list, ""),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_order_is_refused_and_has_changed_nothing(case: str) -> None:
    product, change, refused = WRONG[case]
    board = switched_on(product)
    assert board.rmp is not None
    plan = change(steps(board))
    answer = run(board, plan)
    assert refused in answer if refused else answer == ""
    up = not refused or case == "SNP_INIT_EX again"
    assert (board.psp.snp.state is SnpPlatformState.INIT) is up
    assert board.iommu.memory.enforced is up
    if not up:
        assert not any(any(board.dram.read(one.spa, one.end - one.spa)) for one in board.rmp.layout.arrays)
        assert all(board.iommu.read_register(one) != PARKED for one in Register)


@pytest.mark.parametrize(
    "case",
    ["VM_HSAVE_PA set on one core", "MtrrFixDramModEn taken back on one core", "IOMMU disabled", "no SNP_EN"],
)
def test_what_was_forgotten_can_be_made_up_for(case: str) -> None:
    product, change, refused = WRONG[case]
    board = switched_on(product)
    assert run(board, change(steps(board))) == refused
    assert run(board, steps(board)) == ""


@pytest.mark.parametrize(("asked", "refused"), [(True, INVALID_CONFIG), (False, "")])
def test_whether_firmware_asks_for_vmpl_en_is_a_switch(asked: bool, refused: str) -> None:
    board = board_with(init_needs_vmpl_en=asked)
    assert run(board, at_init(NO_VMPL)(without("SNP_EN")(steps(board)))) == refused


@pytest.mark.parametrize(("mode", "refused"), [(HostMode.NONE, INVALID_CONFIG), (HostMode.SME, "")])
def test_firmware_that_asks_for_memory_encryption_starts_snp_where_the_bit_is_set(mode: HostMode, refused: str) -> None:
    board = board_with(mode, init_needs_memory_encryption=True)
    (syscfg,) = board.execute_host((op.ReadMsr(0, Msr.SYSCFG),))
    assert isinstance(syscfg, int)
    assert run(board, list(bring_up_steps(board.product, COMMAND_PAGE, syscfg))) == refused


def board_with(mode: HostMode = HostMode.NONE, **switches: bool) -> Board:
    row = PRODUCTS["Milan"]
    row = replace(row, rmp=replace(row.rmp, **switches))
    board = Board("board", row, MEMORY_BYTES, 100, CounterRandom(1), Platform(mode=mode))
    assert board.rmp is not None
    return board


def test_an_rmp_that_does_not_reach_itself_is_refused() -> None:
    board = switched_on(memory_bytes=512 * MIB)
    # 1 MiB holds entries of 252 MiB.
    small = before_snp_en(msr(Msr.RMP_BASE, 400 * MIB), msr(Msr.RMP_END, 401 * MIB - 1))
    assert run(board, small(steps(board))) == INVALID_CONFIG
    board = switched_on(memory_bytes=512 * MIB)
    enough = before_snp_en(msr(Msr.RMP_BASE, 200 * MIB), msr(Msr.RMP_END, 201 * MIB - 1))
    assert run(board, enough(steps(board))) == ""


def test_an_iommu_without_snp_support_is_refused() -> None:
    board = switched_on("Milan", Platform(iommu_supports_snp=False))
    assert run(board, steps(board)) == PLATFORM
    assert board.psp.snp.state is SnpPlatformState.UNINIT


@pytest.mark.parametrize(("platform", "refused"), [(Platform(), ""), (Platform(iommu_write_safe=True), INVALID_CONFIG)])
def test_fixed_firmware_wants_the_log_of_family_19h_in_full_length(platform: Platform, refused: str) -> None:
    board = switched_on("Genoa", platform)
    short = at_init(write_register(Register.EVENT_BASE, ring_register(EVENTS, 8 << 10)))
    assert run(board, short(steps(board))) == refused


@pytest.mark.parametrize("product", ["Naples", "Rome", "Milan", "Genoa", "Turin"])
def test_every_product_comes_up_in_the_right_order(product: str) -> None:
    board = switched_on(product)
    assert run(board, steps(board)) == ""
    snp = product not in ("Naples", "Rome")
    assert board.snp_enabled is snp
    assert board.iommu.memory.enforced is snp


@pytest.mark.parametrize("mode", HostMode)
@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("product", ["Milan", "Turin"])
def test_however_the_host_encrypts_its_memory_the_rmp_comes_up_empty(product: str, mode: HostMode, keyed: bool) -> None:
    row = PRODUCTS[product]
    row = replace(row, rmp=replace(row.rmp, under_host_key=keyed))
    board = Board("board", row, MEMORY_BYTES, 100, CounterRandom(1), Platform(mode=mode))
    do(board, Hypervisor(row, MEMORY_BYTES, 100, {}).bring_up())
    page = 32 * MIB
    assert board.rmp is not None
    assert board.rmp.entry(page) == RmpEntry()
    assert host(board, op.HostWrite(page, b"x"), op.RmpUpdate(page, PAGE_BYTES, RmpEntry(assigned=True))) == (None, 0)
    (answer,) = host(board, op.HostWrite(page, b"x"))
    assert isinstance(answer, op.Fault)


def test_rmp_instructions_are_there_only_with_snp_en_on_every_core() -> None:
    board = switched_on("Turin")
    pages = (op.RmpUpdate(4 * MIB, PAGE_BYTES, RmpEntry()), op.PSmash(4 * MIB), op.RmpRead(4 * MIB))
    undefined = (op.Fault(op.FaultKind.UNDEFINED_OPCODE, 0),) * 3
    assert host(board, *pages) == undefined
    host(board, msr(Msr.SYSCFG, MFDM), msr(Msr.SYSCFG, MFDM | SNP_EN, core=0))
    assert host(board, *pages) == undefined
    host(board, msr(Msr.SYSCFG, MFDM | SNP_EN))
    assert host(board, *pages)[0] == 0


def test_the_rmp_is_where_the_registers_say() -> None:
    board = switched_on()
    elsewhere = before_snp_en(msr(Msr.RMP_BASE, 8 * MIB), msr(Msr.RMP_END, 10 * MIB - 1))
    assert run(board, elsewhere(steps(board))) == ""
    page = 32 * MIB
    assert host(board, op.RmpUpdate(page, PAGE_BYTES, RmpEntry(assigned=True, gpa=0x7000, asid=5))) == (0,)
    raw = board.dram.read(8 * MIB + 0x4000 + page // PAGE_BYTES * 16, 8)
    assert int.from_bytes(raw, "little") == 1 | 0x7000 | 5 << 51
    # The table keeps itself from the host, and where it might have been is memory like any other.
    (answer,) = host(board, op.HostWrite(8 * MIB, b"x"))
    assert isinstance(answer, op.Fault)
    assert host(board, op.HostWrite(RMP_BASE, b"x")) == (None,)


def test_segments_are_where_their_table_says() -> None:
    board = switched_on("Turin")
    there, base = at_end_of_memory(MEMORY_BYTES, segmented=True), 8 * MIB
    # The hypervisor lays its own segment table, with the same segments, elsewhere.
    laid = op.HostWrite(base + 0x4000, there.segment_table())
    assert run(board, before_snp_en(laid, msr(Msr.RMP_BASE, base))(steps(board))) == ""
    assert board.rmp is not None
    assert board.rmp.layout.base == base
    assert board.msrs.values(Msr.RMP_CFG) == (RMP_CFG_64_GIB,)


# What becomes of the IOMMU's own pages.

OWN_PAGES = [SEMAPHORE, EVENTS, EVENTS + EVENTS_BYTES - PAGE_BYTES]


def state(board: Board, spa: int) -> PageState:
    assert board.rmp is not None
    return page_state(board.rmp.entry(spa))


def shut_down(board: Board, flags: int) -> int:
    shutdown = buffers.SnpShutdownEx(8, flags).pack()
    assert host(board, op.PspCommand(LegacyCommand.SHUTDOWN))[0].status == 0
    (answer,) = host(board, op.PspCommand(SnpCommand.SHUTDOWN_EX, COMMAND_PAGE, shutdown))
    assert isinstance(answer, op.PspAnswer)
    return answer.status


def test_logs_are_firmware_s_while_snp_is_on_and_the_tables_stay_the_host_s() -> None:
    board = brought_up()
    for spa in OWN_PAGES:
        assert state(board, spa) is PageState.FIRMWARE
        (answer,) = host(board, op.HostWrite(spa, b"x"))
        assert isinstance(answer, op.Fault)
    for spa in (DEVICE_TABLE, COMMANDS):
        assert host(board, op.HostWrite(spa + 0xFF0, b"x")) == (None,)


@pytest.mark.parametrize("register", [
    Register.DEVICE_TABLE_BASE, Register.COMMAND_BASE, Register.EVENT_BASE, Register.COMPLETION_BASE,
    Register.COMPLETION_LIMIT, Register.PPR_BASE, Register.PPR_B_BASE, Register.EVENT_B_BASE,
])  # fmt: skip
def test_bases_are_locked_while_snp_is_on(register: Register) -> None:
    board = brought_up()
    before = board.iommu.read_register(register)
    assert host(board, write_register(register, 0x30_0000)) == (None,)
    assert board.iommu.read_register(register) == before


def test_the_iommu_cannot_be_switched_off_while_snp_is_on() -> None:
    board = brought_up()
    host(board, write_register(Register.CONTROL, 0))
    assert board.iommu.read_register(Register.CONTROL) == IOMMU_ENABLE


def test_logs_that_are_off_are_parked() -> None:
    board = brought_up()
    parked = (Register.PPR_BASE, Register.PPR_B_BASE, Register.EVENT_B_BASE)
    assert [board.iommu.read_register(one) for one in parked] == [PARKED] * 3
    assert board.iommu.read_register(Register.EVENT_BASE) == FULL_LOG


def test_a_log_that_was_off_when_snp_came_on_cannot_be_aimed_afterwards() -> None:
    board = switched_on()
    assert run(board, at_init(write_register(Register.CONTROL, IOMMU_ENABLE))(steps(board))) == ""
    on = IOMMU_ENABLE | EVENT_LOG_ENABLE
    host(board, write_register(Register.EVENT_BASE, ring_register(32 * MIB, EVENTS_BYTES)))
    host(board, write_register(Register.CONTROL, on), op.DeviceRead(0, 0, 8))
    assert board.iommu.read_register(Register.EVENT_BASE) == PARKED
    assert board.iommu.read_register(Register.EVENT_TAIL) == 0
    assert board.dram.read(32 * MIB, 64) == bytes(64)


def test_firmware_is_of_the_platform_s_version() -> None:
    board = switched_on("Rome", Platform(firmware_api=(0, 17, 9)))
    status = op.PspCommand(LegacyCommand.PLATFORM_STATUS, COMMAND_PAGE, buffers.PlatformStatus().pack())
    (answer,) = host(board, status)
    assert isinstance(answer, op.PspAnswer)
    found = buffers.PlatformStatus.parse(answer.buffer)
    assert (found.api_major, found.api_minor, found.config >> 24) == (0, 17, 9)


@pytest.mark.parametrize("flags", [0, buffers.SNP_SHUTDOWN_IOMMU])
def test_shutdown_gives_the_logs_back_only_with_the_iommu(flags: int) -> None:
    board = brought_up()
    assert shut_down(board, flags) == Status.SUCCESS
    for spa in OWN_PAGES:
        assert state(board, spa) is (PageState.RECLAIM if flags else PageState.FIRMWARE)
    assert board.iommu.memory.enforced is not bool(flags)
    if flags:
        assert host(board, op.RmpUpdate(EVENTS, EVENTS_BYTES, RmpEntry()), op.HostWrite(EVENTS, b"x")) == (0, None)
        assert host(board, write_register(Register.EVENT_BASE, 0)) == (None,)
        assert board.iommu.read_register(Register.EVENT_BASE) == 0


@pytest.mark.parametrize("taken", [EVENTS + 3 * PAGE_BYTES, SEMAPHORE])
def test_an_rmp_that_is_kept_must_not_have_a_guest_s_page_in_a_log(taken: int) -> None:
    board = brought_up()
    assert shut_down(board, buffers.SNP_SHUTDOWN_IOMMU) == Status.SUCCESS
    back = (op.RmpUpdate(EVENTS, EVENTS_BYTES, RmpEntry()), op.RmpUpdate(SEMAPHORE, PAGE_BYTES, RmpEntry()))
    assert host(board, *back) == (0, 0)
    assert host(board, op.RmpUpdate(taken, PAGE_BYTES, RmpEntry(assigned=True, gpa=0x1000, asid=3))) == (0,)
    again = op.PspCommand(SnpCommand.INIT_EX, COMMAND_PAGE, buffers.SnpInitEx().pack())
    (answer,) = host(board, again)
    assert isinstance(answer, op.PspAnswer)
    assert answer.status == Status.INVALID_CONFIG
    assert not board.iommu.memory.enforced
    assert host(board, op.RmpUpdate(taken, PAGE_BYTES, RmpEntry())) == (0,)
    (answer,) = host(board, again)
    assert isinstance(answer, op.PspAnswer)
    assert answer.status == Status.SUCCESS
