"""Boards with a guest that builds page tables of its own, for tests; made by operations but for its save areas."""

from __future__ import annotations

from dataclasses import dataclass, field

from sealed_areas import seal
from snp_cores import enable_snp

from node import operations as op
from node.board import Board
from node.counter_random import CounterRandom
from node.generation import Generation
from node.platform import HostMode, Platform, Protection
from node.product import PRODUCTS
from node.vmsa import VMSA_BYTES, write_field
from psp.system_bus import RmpEntry

PAGE, LARGE, MIB = 4096, 2 << 20, 1 << 20
MIN_SEV_ASID = 100
MEMORY_SPA, MEMORY_BYTES = 8 * MIB, 8 * MIB
"""Of each guest, one after another: guest-physical zero on."""
FRAMES_SPA, SAVE_AREA_SPA, SAVE_AREA_GPA = 32 * MIB, 4 * MIB + PAGE, 1 << 30
ROOT = 0x10_0000
P, W, U, A, D, PS, G, NX = 1, 2, 4, 0x20, 0x40, 0x80, 0x100, 1 << 63
C = 1 << 51
"""Of Milan."""
PG, PE, WP, PAE, NXE, LME, LMA = 1 << 31, 1, 1 << 16, 1 << 5, 1 << 11, 1 << 8, 1 << 10
LONG = {"CR0": PG | PE | WP, "CR4": PAE, "EFER": LME | LMA | NXE, "CR3": ROOT}
"""A save area in long mode."""


@dataclass
class PagedGuest:
    """One guest with the vCPUs whose save areas it was made with, and the tables that it wrote."""

    board: Board
    vm: str
    private: bool
    tables: dict[int, int] = field(default_factory=dict)
    next_table: int = ROOT + PAGE

    def guest(self, *batch: op.GuestOperation, vcpu: int = 0) -> tuple[op.Answer, ...]:
        """Execute as a vCPU."""
        return self.board.execute_guest(self.board.vmcb(self.vm, vcpu), batch)

    def do(self, one: op.GuestOperation, vcpu: int = 0) -> op.Answer:
        """Execute one operation as a vCPU."""
        return self.guest(one, vcpu=vcpu)[0]

    def host(self, *batch: op.HypervisorOperation) -> tuple[op.Answer, ...]:
        """Execute as the hypervisor."""
        return self.board.execute_host(batch)

    def put(self, gpa: int, word: int, size: int = 8) -> None:
        """Write an entry."""
        assert self.do(op.Write(gpa, word.to_bytes(size, "little"))) is None

    def word(self, gpa: int) -> int:
        """Read an entry."""
        data = self.do(op.Read(gpa, 8))
        assert isinstance(data, bytes)
        return int.from_bytes(data, "little")

    def map(self, gva: int, entry: int, level: int = 1, root: int = ROOT) -> int:
        """Map a page of a level's size with an entry in four levels of tables; where the entry lies."""
        table = root
        for above in range(4, level, -1):
            at = table + (gva >> 12 + 9 * (above - 1) & 511) * 8
            if at not in self.tables:
                self.tables[at] = self.next_table
                assert self.do(op.Write(self.next_table, bytes(PAGE))) is None
                self.put(at, self.next_table | P | W | U)
                self.next_table += PAGE
            table = self.tables[at]
        at = table + (gva >> 12 + 9 * (level - 1) & 511) * 8
        self.put(at, entry)
        return at


def save_area(fields: dict[str, int]) -> bytes:
    """A save area with these fields."""
    page = bytearray(VMSA_BYTES)
    for name, value in {"EFER": 0x1000, "CR0": 0x10, "RFLAGS": 2, **fields}.items():
        write_field(page, name, value)
    return bytes(page)


def new_board(
    *,
    tlb: int | None = None,
    disabled: tuple[Protection, ...] = (),
    product: str = "Milan",
    mode: HostMode = HostMode.NONE,
    caches: bool = False,
) -> Board:
    """A board without guests; its RMP is set up."""
    random = CounterRandom(1)
    platform = Platform(mode=mode, tlb_entries=tlb, disabled=frozenset(disabled), caches=caches)
    board = Board("board", PRODUCTS[product], 64 * MIB, MIN_SEV_ASID, random, platform)
    if board.rmp is not None:
        enable_snp(board)
        board.rmp.initialise()
    return board


def paged_guest(
    generation: Generation,
    *areas: dict[str, int],
    board: Board | None = None,
    asid: int = 1,
    tlb: int | None = None,
    disabled: tuple[Protection, ...] = (),
    tlb_control: int = 0,
) -> PagedGuest:
    """A guest of a generation with 8 MiB of memory in 4 KiB nested pages, all private where that means something.

    Its tables' root is at ``ROOT``; its vCPUs start with these fields in their save areas. ``asid`` numbers guests
    from one; plain SEV has its ASIDs from MinSEVASID on instead.
    """
    board = board or new_board(tlb=tlb, disabled=disabled)
    vm, number = f"vm{asid}", asid - 1
    memory = MEMORY_SPA + number * MEMORY_BYTES
    snp, encrypted = generation is Generation.SEV_SNP, generation is not Generation.PLAIN
    if generation is Generation.SEV:
        asid = MIN_SEV_ASID + number
    if encrypted:
        board.controller.install_key(asid, CounterRandom(1).octets(vm, "key", 0, 16))
    frames = op.NestedFrames(vm, FRAMES_SPA + number * MIB, 16 * PAGE)
    batch: list[op.HypervisorOperation] = [frames, op.NestedMap(vm, 0, memory, MEMORY_BYTES, large=False)]
    first_area = SAVE_AREA_SPA + number * 16 * PAGE
    for vcpu, fields in enumerate(areas or (LONG,)):
        spa = first_area + vcpu * PAGE
        page = save_area({"SEV_FEATURES": 1 if snp else 0, **fields})
        if snp:
            assert board.rmp is not None
            gpa, rights = SAVE_AREA_GPA + vcpu * PAGE, (15, 0, 0, 0)
            entry = RmpEntry(assigned=True, validated=True, vmsa=True, gpa=gpa, asid=asid, vmpl_permissions=rights)
            board.rmp.set_entry(spa, entry)
        own = encrypted and generation is not Generation.SEV
        board.controller.write(spa, page, asid if own else 0)
        if generation is Generation.SEV_ES:
            seal(board, spa, asid)
        batch.append(
            op.VmcbWrite(vm, vcpu, asid if encrypted else 0, generation.name, spa, tlb_control=tlb_control)
        )
    if snp:
        batch.append(op.RmpUpdate(memory, MEMORY_BYTES, RmpEntry(assigned=True, asid=asid)))
    batch += [op.VmRun(vm, vcpu) for vcpu in range(len(areas or (LONG,)))]
    assert not any(board.execute_host(tuple(batch)))
    guest = PagedGuest(board, vm, encrypted)
    if snp:
        assert guest.do(op.PValidate(0, MEMORY_BYTES, large=False)) == op.PValidateResult(0, unchanged=False)
    assert guest.do(op.Write(ROOT, bytes(PAGE))) is None
    return guest
