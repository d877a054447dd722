"""The security processor's accesses to one page end at registers of the Control Fabric, on Zen 4 and 5 alone."""

from __future__ import annotations

import pytest
from iommu_boards import host, switched_on

from node import operations as op
from node.fast_registers import IOMMU_ENFORCEMENT, PAIR, FastRegisters
from node.platform import AS_USUAL, Platform
from node.product import PRODUCTS
from psp.commands import LegacyCommand
from psp.status import Status

OFF = PAIR.pack(IOMMU_ENFORCEMENT, 0)
BUFFER = 16 << 20


def registers(*, reachable: bool = True, least_privilege: bool = False) -> tuple[FastRegisters, list[str]]:
    done: list[str] = []
    made = FastRegisters(
        reachable=reachable, least_privilege=least_privilege, release_iommu=lambda: done.append("off")
    )
    made.divert(0x5123)
    return made, done


def test_the_pair_at_the_page_s_begin_switches_enforcement_off() -> None:
    fast, done = registers()
    assert fast.page == 0x5000
    fast.store(0, OFF.ljust(4096, b"\0"))
    assert done == ["off"]


@pytest.mark.parametrize(
    ("offset", "data"),
    [(8, OFF), (0, OFF[:7]), (0, b""), (0, PAIR.pack(IOMMU_ENFORCEMENT, 1)), (0, PAIR.pack(IOMMU_ENFORCEMENT + 4, 0))],
    ids=["behind", "in part", "nothing", "on", "another register"],
)
def test_nothing_else_does(offset: int, data: bytes) -> None:
    fast, done = registers()
    fast.store(offset, data)
    assert done == []


def test_least_privilege_takes_the_right_away() -> None:
    fast, done = registers(least_privilege=True)
    fast.store(0, OFF)
    assert done == []


@pytest.mark.parametrize("name", PRODUCTS)
def test_accesses_are_turned_on_zen_4_and_5(name: str) -> None:
    zen_4_or_5 = {"Genoa", "Bergamo", "Siena", "Turin"}
    assert PRODUCTS[name].turns_psp_accesses == (name in zen_4_or_5)
    assert (registers(reachable=PRODUCTS[name].turns_psp_accesses)[0].page is not None) == (name in zen_4_or_5)


@pytest.mark.parametrize(("product", "turned"), [("Genoa", True), ("Milan", False)])
def test_what_firmware_writes_there_does_not_reach_memory(product: str, turned: bool) -> None:
    board = switched_on(product, AS_USUAL)
    status = op.PspCommand(LegacyCommand.PLATFORM_STATUS, BUFFER, b"\xee" * 12)
    assert host(board, op.FabricDivert(BUFFER + 8)) == (None,)
    (answer,) = host(board, status)
    assert isinstance(answer, op.PspAnswer)
    assert answer.status == Status.SUCCESS
    assert (answer.buffer == b"\xee" * 12) is turned
    assert host(board, op.FabricDivert(None)) == (None,)
    (answer,) = host(board, status)
    assert isinstance(answer, op.PspAnswer)
    assert answer.buffer != b"\xee" * 12


def test_the_fix_is_a_switch_of_the_platform() -> None:
    assert not AS_USUAL.psp_least_privilege
    board = switched_on("Genoa", Platform(psp_least_privilege=True))
    board.iommu.enforce()
    host(board, op.FabricDivert(BUFFER))
    board.bus.write(BUFFER, OFF)
    assert board.iommu.memory.enforced
    weak = switched_on("Genoa", AS_USUAL)
    weak.iommu.enforce()
    host(weak, op.FabricDivert(BUFFER))
    weak.bus.write(BUFFER, OFF)
    assert not weak.iommu.memory.enforced
