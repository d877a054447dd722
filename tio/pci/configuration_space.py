"""The configuration space of one function: 4 KiB of registers, and what a write to them changes.

Source: PCI Express base specification, 7.5 (header, command, BARs, power management, PCI Express and MSI-X
capabilities), 5.3 (power states) and 7.6.3 (extended capabilities). Stores of 1, 2 and 4 bytes at their own alignment
count; others change nothing, and loads of them read ones, as what no device answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import Protocol

from tio.tdisp.interface import Tampering

CONFIGURATION_BYTES = 4096
_PCIE_AT, _MSIX_AT, _POWER_AT = 0x40, 0x80, 0x90
FIRST_EXTENDED = 0x100
_BARS_AT, _BAR_SLOTS = 0x10, 6
_FLAG_MEMORY_64 = 0b1100
"""A prefetchable BAR of 64 bits."""
_LEAST_BAR_BYTES = 1 << 12
"""So that no page holds two."""


class Register(IntEnum):
    """Offsets in the header and in the capabilities that every function here has."""

    VENDOR_ID = 0x00
    DEVICE_ID = 0x02
    COMMAND = 0x04
    STATUS = 0x06
    REVISION = 0x08
    CLASS_CODE = 0x09
    HEADER_TYPE = 0x0E
    SUBSYSTEM_VENDOR_ID = 0x2C
    SUBSYSTEM_ID = 0x2E
    EXPANSION_ROM = 0x30
    CAPABILITIES = 0x34
    DEVICE_CAPABILITIES = _PCIE_AT + 0x04
    DEVICE_CONTROL = _PCIE_AT + 0x08
    LINK_CAPABILITIES = _PCIE_AT + 0x0C
    """The port's number in the highest byte."""
    MSIX_CONTROL = _MSIX_AT + 0x02
    MSIX_TABLE = _MSIX_AT + 0x04
    MSIX_PBA = _MSIX_AT + 0x08
    POWER_CONTROL = _POWER_AT + 0x04


class Command(IntFlag):
    """COMMAND."""

    MEMORY_SPACE = 1 << 1
    BUS_MASTER = 1 << 2
    INTERRUPT_DISABLE = 1 << 10


class DeviceControl(IntFlag):
    """DEVICE_CONTROL; the payload sizes are left out."""

    PHANTOM_FUNCTIONS = 1 << 9
    FUNCTION_LEVEL_RESET = 1 << 15


class MsixControl(IntFlag):
    """MSIX_CONTROL above the table's size."""

    FUNCTION_MASK = 1 << 14
    ENABLE = 1 << 15


_CAPABILITIES_LIST = 1 << 4
_FLR_CAPABLE, _TEE_IO = 1 << 28, 1 << 30
_ROM_ENABLE = 1
_POWER_STATE, _D0, _D3_HOT = 0b11, 0, 3
"""Of POWER_CONTROL; the states between are not supported, and what a function knew is lost on its way back."""
_NOT_SAID = 0xFFFF_FFFF
"""Vendor and device of a virtual function are its physical one's to say."""
_ROOT_PORT = 4
"""Device/Port Type."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a function says it is."""

    vendor_id: int
    device_id: int
    class_code: int
    revision: int = 1
    subsystem_vendor_id: int = 0
    subsystem_id: int = 0


@dataclass(frozen=True, slots=True)
class MsixPlace:
    """How many vectors there are, and in which BAR their table and pending bits lie."""

    vectors: int
    bar: int
    table_offset: int
    pba_offset: int


class ExtendedRegisters(Protocol):
    """An extended capability whose registers mean something of their own: a DOE mailbox, an IDE control."""

    capability_id: int
    size_bytes: int

    def load(self, offset: int) -> int:
        """A double word; ``offset`` is from the capability's beginning, behind its header."""

    def store(self, offset: int, value: int) -> Tampering | None:
        """Store a double word; what it does to a lock."""


class Place(Protocol):
    """What a virtual function has from its physical one (``tio.pci.sr_iov``)."""

    @property
    def memory_enabled(self) -> bool:
        """Whether its memory answers."""

    def bar_address(self, index: int) -> int:
        """Where a BAR begins."""


@dataclass(slots=True)
class _Extended:
    at: int
    registers: ExtendedRegisters
    header: int = field(default=0)


class ConfigurationSpace:
    """``bars`` are sizes in bytes by BAR index, each of two slots (0, 2 and 4).

    ``changed`` hears of every write that a lock does not survive, after it was done. ``root_port`` is the number of the
    port that this is; its header is of the type that functions have, for what a bridge's own says is fixed here.
    ``place`` makes it a virtual function's, whose BARs and memory enable are not its own (9.3.4).
    """

    def __init__(
        self,
        identity: Identity,
        bars: Mapping[int, int],
        *,
        tee_io: bool = False,
        msix: MsixPlace | None = None,
        extended: Sequence[ExtendedRegisters] = (),
        root_port: int | None = None,
        place: Place | None = None,
    ) -> None:
        for index, size in bars.items():
            if index not in range(0, _BAR_SLOTS, 2) or size < _LEAST_BAR_BYTES or size & size - 1:
                raise ValueError(f"BAR {index}: expected 0, 2 or 4 and a power of two of 4 KiB or more, got {size}")
        self.changed: Callable[[Tampering], None] = _nobody
        self.reset_asked: Callable[[], None] = _nothing
        """Function-level reset was written."""
        self.bars = dict(bars)
        self.msix = msix
        self.bus: int | None = None
        """As captured from the last write (2.2.6.2)."""
        self._place = place
        self._octets = bytearray(FIRST_EXTENDED)
        self._writable = bytearray(FIRST_EXTENDED)
        self._initial = b""
        self._extended = _placed(extended)
        self._fill(identity, tee_io=tee_io, root_port=root_port)

    # What the host does.

    def read(self, offset: int, width: int = 4) -> int:
        """Load from the space; all ones where there is nothing."""
        if not _aligned(offset, width):
            return (1 << 8 * width) - 1
        if offset >= FIRST_EXTENDED:
            word = self._load_extended(offset & ~3)
            return word >> 8 * (offset & 3) & (1 << 8 * width) - 1
        return int.from_bytes(self._octets[offset : offset + width], "little")

    def write(self, offset: int, value: int, width: int = 4, bus: int | None = None) -> None:
        """Store to the space. ``bus`` is the number that the write itself carries; read-only bits stay."""
        if not _aligned(offset, width) or not 0 <= value < 1 << 8 * width:
            return
        if bus is not None:
            moved, self.bus = self.bus not in (None, bus), bus
            if moved:
                self.changed(Tampering.REQUESTER_ID)
        if offset >= FIRST_EXTENDED:
            self._store_extended(offset, value, width)
            return
        before, power = bytes(self._octets), self.power_state
        for at, octet in enumerate(value.to_bytes(width, "little"), offset):
            kept = self._writable[at]
            self._octets[at] = self._octets[at] & ~kept | octet & kept
        for event in self._tampering(before):
            self.changed(event)
        self._change_power(power)
        if offset <= Register.DEVICE_CONTROL + 1 < offset + width and self.control & DeviceControl.FUNCTION_LEVEL_RESET:
            self._put(Register.DEVICE_CONTROL, self.control & ~int(DeviceControl.FUNCTION_LEVEL_RESET), 2)
            self.changed(Tampering.FUNCTION_RESET)
            self.reset()
            self.reset_asked()

    @property
    def power_state(self) -> int:
        """0 for D0, 3 for D3hot."""
        return self._octets[Register.POWER_CONTROL] & _POWER_STATE

    def _change_power(self, before: int) -> None:
        """What a store to the power state does (5.3.1): a function that comes back from D3hot begins anew."""
        after = self.power_state
        if after not in (_D0, _D3_HOT):
            self._octets[Register.POWER_CONTROL] = before
        elif after != before:
            self.changed(Tampering.POWER_STATE)
            if after == _D0:
                self.reset()
                self.reset_asked()

    def reset(self) -> None:
        """Back to how it was made, but for the bus number and what extended capabilities keep."""
        self._octets[:] = self._initial

    # What the device knows of itself.

    @property
    def command(self) -> Command:
        """COMMAND, as far as it has effect now: a virtual function has the memory enable of its physical one.

        In D3hot neither memory answers nor is anything asked for.
        """
        if self.power_state:
            return Command(0)
        found = Command(self.read(Register.COMMAND, 2))
        return found | Command.MEMORY_SPACE if self._place is not None and self._place.memory_enabled else found

    @property
    def control(self) -> int:
        """DEVICE_CONTROL."""
        return self.read(Register.DEVICE_CONTROL, 2)

    @property
    def msix_control(self) -> int:
        """MSIX_CONTROL; 0 without the capability."""
        return 0 if self.msix is None else self.read(Register.MSIX_CONTROL, 2)

    @property
    def rom_enabled(self) -> bool:
        """Whether the expansion ROM answers."""
        return bool(self._octets[Register.EXPANSION_ROM] & _ROM_ENABLE)

    def bar_address(self, index: int) -> int:
        """Where a BAR begins; 0 before anybody programmed it."""
        if self._place is not None:
            return self._place.bar_address(index)
        low = _BARS_AT + 4 * index
        return int.from_bytes(self._octets[low : low + 8], "little") & ~(self.bars[index] - 1)

    def extended_at(self, registers: ExtendedRegisters) -> int:
        """Where an extended capability begins."""
        return next(one.at for one in self._extended if one.registers is registers)

    # Within.

    def _fill(self, identity: Identity, *, tee_io: bool, root_port: int | None) -> None:
        kind = 0 if root_port is None else _ROOT_PORT
        power = 0 if root_port is not None else _POWER_AT
        for register, value, width in (
            (Register.VENDOR_ID, identity.vendor_id, 2),
            (Register.DEVICE_ID, identity.device_id, 2),
            (Register.STATUS, _CAPABILITIES_LIST, 2),
            (Register.REVISION, identity.revision, 1),
            (Register.CLASS_CODE, identity.class_code, 3),
            (Register.SUBSYSTEM_VENDOR_ID, identity.subsystem_vendor_id, 2),
            (Register.SUBSYSTEM_ID, identity.subsystem_id, 2),
            (Register.CAPABILITIES, _PCIE_AT, 1),
            (_PCIE_AT, 0x10 | (power if self.msix is None else _MSIX_AT) << 8 | (2 | kind << 4) << 16, 4),
            (Register.DEVICE_CAPABILITIES, _FLR_CAPABLE | (_TEE_IO if tee_io else 0), 4),
            (Register.LINK_CAPABILITIES + 3, root_port or 0, 1),
        ):
            self._put(register, value, width)
        own = Command.MEMORY_SPACE | Command.BUS_MASTER | Command.INTERRUPT_DISABLE
        writable: list[tuple[int, int, int]] = [(Register.DEVICE_CONTROL, 0xFFFF, 2)]
        if power:
            self._put(power, 0x01 | 3 << 16, 4)
            writable.append((Register.POWER_CONTROL, _POWER_STATE, 2))
        if self._place is None:
            writable += [(Register.COMMAND, own, 2), (Register.EXPANSION_ROM, _ROM_ENABLE, 4)]
        else:
            writable.append((Register.COMMAND, Command.BUS_MASTER, 2))
            self._put(Register.VENDOR_ID, _NOT_SAID, 4)
        for index, size in self.bars.items() if self._place is None else ():
            self._put(_BARS_AT + 4 * index, _FLAG_MEMORY_64, 4)
            writable.append((_BARS_AT + 4 * index, -size & (1 << 64) - 1, 8))
        if self.msix is not None:
            self._put(_MSIX_AT, 0x11 | power << 8 | self.msix.vectors - 1 << 16, 4)
            self._put(Register.MSIX_TABLE, self.msix.table_offset | self.msix.bar, 4)
            self._put(Register.MSIX_PBA, self.msix.pba_offset | self.msix.bar, 4)
            writable.append((Register.MSIX_CONTROL, MsixControl.ENABLE | MsixControl.FUNCTION_MASK, 2))
        for offset, mask, width in writable:
            self._writable[offset : offset + width] = mask.to_bytes(width, "little")
        self._initial = bytes(self._octets)

    def _put(self, offset: int, value: int, width: int) -> None:
        self._octets[offset : offset + width] = value.to_bytes(width, "little")

    def _tampering(self, before: bytes) -> list[Tampering]:
        """What a store has changed of what a lock holds."""
        events = []
        bars = slice(_BARS_AT, _BARS_AT + 4 * _BAR_SLOTS)
        rom = slice(Register.EXPANSION_ROM, Register.EXPANSION_ROM + 4)
        if before[bars] != self._octets[bars] or before[rom] != self._octets[rom]:
            events.append(Tampering.BAR)
        needed = Command.MEMORY_SPACE | Command.BUS_MASTER
        place = slice(Register.COMMAND, Register.COMMAND + 2)
        was, now = (int.from_bytes(octets[place], "little") for octets in (before, self._octets))
        if was & ~now & needed:
            events.append(Tampering.MEMORY_SPACE)
        msix = slice(Register.MSIX_CONTROL, Register.MSIX_CONTROL + 2)
        if before[msix] != self._octets[msix]:
            events.append(Tampering.MSIX)
        return events

    def _load_extended(self, offset: int) -> int:
        for one in self._extended:
            if offset == one.at:
                return one.header
            if one.at < offset < one.at + one.registers.size_bytes:
                return one.registers.load(offset - one.at)
        return 0

    def _store_extended(self, offset: int, value: int, width: int) -> None:
        for one in self._extended:
            if one.at + 4 <= offset < one.at + one.registers.size_bytes:
                at, shift = offset & ~3, 8 * (offset & 3)
                if width < 4:
                    mask = (1 << 8 * width) - 1 << shift
                    value = one.registers.load(at - one.at) & ~mask | value << shift
                event = one.registers.store(at - one.at, value)
                if event is not None:
                    self.changed(event)


def _placed(extended: Sequence[ExtendedRegisters]) -> list[_Extended]:
    """Extended capabilities one after another, each header naming the next."""
    found, at = [], FIRST_EXTENDED
    for one in extended:
        found.append(_Extended(at, one))
        at += -(-one.size_bytes // 4) * 4
    if at > CONFIGURATION_BYTES:
        raise ValueError(f"extended capabilities: expected at most {CONFIGURATION_BYTES - FIRST_EXTENDED} bytes")
    for number, place in enumerate(found):
        following = found[number + 1].at if number + 1 < len(found) else 0
        place.header = place.registers.capability_id | 1 << 16 | following << 20
    return found


def _aligned(offset: int, width: int) -> bool:
    return width in (1, 2, 4) and 0 <= offset <= CONFIGURATION_BYTES - width and not offset % width


def _nobody(_: Tampering) -> None:
    """Hear nothing."""


def _nothing() -> None:
    """Do nothing."""
