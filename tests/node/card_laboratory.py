"""SNP guests on a Turin with cards, and ports that note what arrives: registers that keep what is stored."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from rmp_laboratory import Laboratory, laboratory, page_of

from node import operations as op
from node.card_slot import CardSlot, MmioWindow, windows
from node.platform import Platform
from node.root_complex import RootComplex
from psp.system_bus import PAGE_BYTES
from tio.device_identity import CardKind

CARDS = (CardSlot(1, CardKind.GPU), CardSlot(9, CardKind.NVME, serial="0002"))
MMIO_GPA = 0x1_0000_0000
"""Where guests see a card's first page."""


@dataclass
class NotingPort:
    """In place of a root port. ``seen`` is what came: the operation, address or offset, and the T bit."""

    window: MmioWindow
    registers: dict[int, int] = field(default_factory=dict)
    seen: list[tuple[str, int, bool]] = field(default_factory=list)

    def load(self, address: int, width: int, *, tee: bool) -> int:
        self.seen.append(("load", address, tee))
        return self.registers.get(address, 0) & (1 << 8 * width) - 1

    def store(self, address: int, value: int, width: int, *, tee: bool) -> None:
        assert 0 <= value < 1 << 8 * width
        self.seen.append(("store", address, tee))
        self.registers[address] = value

    def program(self, *_: object) -> None:
        self.seen.append(("program", 0, False))

    go = stop = program

    def is_free(self, stream_id: int, key_set: int) -> bool:
        return True

    def is_secure(self, stream_id: int) -> bool:
        return False

    def configuration_read(self, requester: int, offset: int, width: int) -> int:
        return self.registers.get(requester << 12 | offset, 0) & (1 << 8 * width) - 1

    def configuration_write(self, requester: int, offset: int, value: int, width: int) -> None:
        self.seen.append(("configuration", requester << 12 | offset, False))
        self.registers[requester << 12 | offset] = value


def noting(lab: Laboratory) -> RootComplex:
    """Put noting ports into a board's slots."""
    board = lab.board
    slots = RootComplex(windows(board.dram.size_bytes, board.platform.cards), NotingPort)
    board.root_complex = slots
    return slots


def port_of(lab: Laboratory, number: int = 1) -> NotingPort:
    """A slot's port."""
    assert lab.board.root_complex is not None
    port = lab.board.root_complex.port(number)
    assert isinstance(port, NotingPort)
    return port


def with_noting_ports(product: str = "Turin", platform: Platform | None = None) -> Laboratory:
    """Guests that run, and cards that note."""
    lab = laboratory(product, platform or Platform(cards=CARDS))
    noting(lab)
    return lab


def map_page(lab: Laboratory, spa: int, vm: str = "one", gpa: int = MMIO_GPA) -> None:
    """The hypervisor shows a guest a page of MMIO."""
    assert lab.host(op.NestedMap(vm, gpa, spa, PAGE_BYTES, large=False)) == (None,)


def accept(lab: Laboratory, spa: int, asid: int = 1, gpa: int = MMIO_GPA, *, validated: bool = True) -> None:
    """The hypervisor assigns it, and firmware validates it as at MMIO_VALIDATE."""
    assert lab.host(op.RmpUpdate(spa, PAGE_BYTES, page_of(gpa, asid=asid))) == (0,)
    if validated:
        lab.board.bus.rmp_set(spa, replace(lab.board.bus.rmp_entry(spa), validated=True))


def give_back(lab: Laboratory, spa: int) -> None:
    """The page is the hypervisor's again."""
    assert lab.host(op.RmpUpdate(spa, PAGE_BYTES, replace(page_of(), assigned=False, asid=0))) == (0,)
