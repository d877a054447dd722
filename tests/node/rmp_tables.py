"""RMPs without a host around them, for tests."""

from __future__ import annotations

from dataclasses import replace

from snp_cores import enable_snp

from node import operations as op
from node.board import Board
from node.counter_random import CounterRandom
from node.dram import Dram
from node.generation import Generation
from node.platform import Platform
from node.product import PRODUCTS
from node.rmp import ReverseMapTable
from node.rmp_layout import BOOKKEEPING_BYTES, EntryArray, RmpLayout
from node.rmp_memory import WordCipher
from node.rmp_switches import RmpSwitches
from psp.system_bus import PAGE_BYTES, RmpEntry

GIB = 1 << 30
SEGMENT_PAGES = 16 * GIB // PAGE_BYTES


def rmp_of(covered_bytes: int, switches: RmpSwitches | None = None) -> ReverseMapTable:
    """A flat RMP of so many bytes, right after them."""
    return flat_rmp(covered_bytes, switches)[0]


def flat_rmp(
    covered_bytes: int, switches: RmpSwitches | None = None, cipher: WordCipher | None = None
) -> tuple[ReverseMapTable, Dram]:
    """The same with its memory."""
    end = covered_bytes + BOOKKEEPING_BYTES + covered_bytes // PAGE_BYTES * 16
    dram = Dram(end)
    return ReverseMapTable(dram, RmpLayout.flat(covered_bytes, end - 1), switches, cipher=cipher), dram


def segmented_rmp(
    switches: RmpSwitches | None = None, cipher: WordCipher | None = None
) -> tuple[ReverseMapTable, Dram]:
    """Two segments of 16 GiB, the second's array before the first's; the second covers 1 GiB."""
    base = 32 * GIB
    first, second = base + (2 << 20) + (8 << 20), base + (2 << 20)
    dram = Dram(first + SEGMENT_PAGES * 16)
    arrays = (EntryArray(0, SEGMENT_PAGES, first), EntryArray(SEGMENT_PAGES, GIB // PAGE_BYTES, second))
    return ReverseMapTable(dram, RmpLayout(base, arrays, SEGMENT_PAGES), switches, cipher=cipher), dram


AS_USUAL = Platform()
VMPLS = 4
GUEST_BYTES = 4 << 20
GUEST_SPA = 8 << 20
_AREAS_GPA = 16 << 20
_TABLES_BYTES = 64 << 10
_VMPL_OFFSET = 0xCA
VMS = {"one": 1, "two": 2}


def snp_board(product: str = "Turin", *, platform: Platform = AS_USUAL, **switches: object) -> Board:
    """A board with two SNP guests of a vCPU at each VMPL, made by operations but for the keys.

    Both see the same 4 MiB of memory, at guest-physical zero; nobody owns it yet.
    """
    row = PRODUCTS[product]
    random = CounterRandom(1)
    board = Board("board", replace(row, rmp=replace(row.rmp, **switches)), 64 << 20, 100, random, platform)
    assert board.rmp is not None
    enable_snp(board)
    board.rmp.initialise()
    for vm, asid in VMS.items():
        board.controller.install_key(asid, random.octets(vm, "key", 0, 16))
        areas = (2 << 20) + asid * VMPLS * PAGE_BYTES
        board.controller.write(areas, bytes(PAGE_BYTES), asid)  # of whoever makes the others, at CPL 0
        host: list[op.HypervisorOperation] = [op.NestedFrames(vm, (4 << 20) + asid * _TABLES_BYTES, _TABLES_BYTES)]
        host += [op.NestedMap(vm, 0, GUEST_SPA, GUEST_BYTES)]
        host += [op.NestedMap(vm, _AREAS_GPA, areas, VMPLS * PAGE_BYTES)]
        entry = RmpEntry(assigned=True, gpa=_AREAS_GPA, asid=asid)
        host += [op.RmpUpdate(areas, VMPLS * PAGE_BYTES, entry)]
        host += [
            op.VmcbWrite(vm, vmpl, asid, Generation.SEV_SNP.name, areas + vmpl * PAGE_BYTES) for vmpl in range(VMPLS)
        ]
        assert not any(board.execute_host(tuple(host)))
        guest: list[op.GuestOperation] = [op.PValidate(_AREAS_GPA, VMPLS * PAGE_BYTES, large=False)]
        for vmpl in range(VMPLS):
            page = bytearray(PAGE_BYTES)
            page[_VMPL_OFFSET] = vmpl
            gpa = _AREAS_GPA + vmpl * PAGE_BYTES
            guest += [op.Write(gpa, bytes(page)), op.RmpAdjust(gpa, PAGE_BYTES, False, 1, 0, vmsa=True)]
        answers = board.execute_guest(board.vmcb(vm, 0), tuple(guest))
        assert answers[1:] == (None, 0) * VMPLS
        assert board.execute_host(tuple(op.VmRun(vm, vmpl) for vmpl in range(VMPLS))) == (0,) * VMPLS
        assert [board.vmcb(vm, vmpl).vmpl for vmpl in range(VMPLS)] == list(range(VMPLS))
    return board


def save_area(vm: str, vmpl: int) -> int:
    """Where ``snp_board`` put the save area of a vCPU."""
    return (2 << 20) + (VMS[vm] * VMPLS + vmpl) * PAGE_BYTES
