"""A function with three kinds of memory in two BARs, programmed as a host would, for tests."""

from __future__ import annotations

from tio.dma_port import DmaFault
from tio.pci import Command, ConfigurationSpace, Identity, MsixPlace, PciFunction, Region, Register
from tio.tdisp import RangeAttributes, Tampering

BAR0, BAR2 = 0x10_0000_0000, 0x20_0000_0000
IDENTITY = Identity(0x1AF4, 0x1234, 0x12_0000, 3, 0x1AF4, 0x5678)
REGIONS = (
    Region(0, 0, 0x4000),
    Region(0, 0x4000, 0x2000, RangeAttributes.IS_NON_TEE_MEM),
    Region(2, 0, 0x1000, RangeAttributes.MSIX_TABLE),
    Region(2, 0x1000, 0x1000, RangeAttributes.MSIX_PBA),
)


class Registers:
    """A device that keeps what is stored to it."""

    def __init__(self) -> None:
        self.kept: dict[tuple[int, int], int] = {}
        self.calls: list[str] = []

    def load(self, bar: int, offset: int, width: int) -> int:
        return self.kept.get((bar, offset), 0) & (1 << 8 * width) - 1

    def store(self, bar: int, offset: int, value: int, width: int) -> None:
        self.kept[bar, offset] = value & (1 << 8 * width) - 1

    def reset(self) -> None:
        self.calls.append("reset")
        self.kept.clear()

    def scrub(self) -> None:
        self.calls.append("scrub")
        self.kept.clear()


class Bus:
    """Memory that takes interrupts, but for addresses that it refuses."""

    def __init__(self) -> None:
        self.written: list[tuple[int, bytes]] = []
        self.refuses = False

    def read(self, address: int, length: int) -> bytes:
        raise DmaFault(address, length, write=False)

    def write(self, address: int, data: bytes) -> None:
        if self.refuses:
            raise DmaFault(address, len(data), write=True)
        self.written.append((address, data))


def function(*, programmed: bool = True) -> tuple[PciFunction, Registers, list[Tampering]]:
    space = ConfigurationSpace(IDENTITY, {0: 0x8000, 2: 0x2000}, tee_io=True, msix=MsixPlace(4, 2, 0, 0x1000))
    device = Registers()
    one = PciFunction(space, device, REGIONS, b"a toy")
    if programmed:
        program(one)
    events: list[Tampering] = []
    changed = space.changed

    def noted(event: Tampering) -> None:
        events.append(event)
        changed(event)

    space.changed = noted
    return one, device, events


def program(one: PciFunction) -> None:
    for index, address in ((0, BAR0), (2, BAR2)):
        one.space.write(Register.VENDOR_ID + 0x10 + 4 * index, address & 0xFFFF_FFFF)
        one.space.write(0x14 + 4 * index, address >> 32)
    one.space.write(Register.COMMAND, Command.MEMORY_SPACE | Command.BUS_MASTER, 2)
