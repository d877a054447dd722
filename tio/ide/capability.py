"""The IDE extended capability: registers by which a host sets the selective streams of a port up, and sees their state.

Source: PCI Express base specification 6.x, 7.9.26 (registers), 6.33.3 (association) and 6.33.4 (states); places of bits
as Linux has them in ``pci_regs.h``. Rules:

- A block that was written has a stream; one that is written to zero has none. No two blocks have the same.
- While a stream is enabled nothing else of its control and association is taken but that the enable bit is cleared.
- Association holds while a stream is enabled, whether it is Secure or not: what belongs to it goes nowhere else.
- On a device the Default Stream takes what the device itself asks for and no association holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag

from tio.ide.port import Association, IdePort
from tio.ide.stream import IdeStream, StreamSettings, StreamState
from tio.ide.tlp import SubStream
from tio.tdisp.interface import Tampering

CAPABILITY_ID = 0x30
_HEADER_WORD = CAPABILITY_ID | 1 << 16
_WORD_BYTES, _MASK = 4, 0xFFFF_FFFF
_CAPABILITY_AT, _CONTROL_AT, BLOCKS_AT = 0x04, 0x08, 0x0C
_SUPPORTED = 1 << 1 | 1 << 4 | 1 << 6 | 1 << 24
"""Selective streams, aggregation, IDE_KM, TEE-Limited streams; AES-256-GCM is algorithm 0."""
_STREAMS_SHIFT = 16
_VALID = 1
_EVERYBODY, _NOBODY = (0, 0xFFFF), (1, 0)
_MIB_SHIFT = 20


class BlockRegister(IntEnum):
    """Offsets in a selective stream's block; address association blocks of three registers follow."""

    CAPABILITY = 0x00
    CONTROL = 0x04
    STATUS = 0x08
    RID_1 = 0x0C
    RID_2 = 0x10
    ADDRESS_1 = 0x14
    ADDRESS_2 = 0x18
    ADDRESS_3 = 0x1C


ADDRESS_BYTES = 12


class StreamControl(IntFlag):
    """CONTROL of a block; two bits for each sub-stream say how many packets go under a MAC, as a power of two."""

    ENABLE = 1 << 0
    DEFAULT = 1 << 22
    TEE_LIMITED = 1 << 23


STREAM_ID_SHIFT = 24
_AGGREGATION_SHIFT = {SubStream.NPR: 2, SubStream.PR: 4, SubStream.CPL: 6}
_SETTABLE = int(StreamControl.ENABLE | StreamControl.DEFAULT | StreamControl.TEE_LIMITED) | 0xFC | 0xFF << 24
_RID_SETTABLE = 0x00FF_FF00, 0xFFFF_FF01
_ADDRESS_1_SETTABLE = 0xFFFF_FF01


class StreamStatus(IntFlag):
    """STATUS of a block: its state in bits 3:0."""

    SECURE = 2
    FAIL_RECEIVED = 1 << 31


def control_word(
    stream_id: int, *, enable: bool = False, default: bool = False, tee_limited: bool = False, aggregation: int = 1
) -> int:
    """CONTROL as a host writes it; ``aggregation`` is 1, 2, 4 or 8, for all sub-streams."""
    power = aggregation.bit_length() - 1
    word = stream_id << STREAM_ID_SHIFT | sum([power << shift for shift in _AGGREGATION_SHIFT.values()])
    chosen = {StreamControl.ENABLE: enable, StreamControl.DEFAULT: default, StreamControl.TEE_LIMITED: tee_limited}
    return word | sum([int(bit) for bit, is_set in chosen.items() if is_set])


def requester_words(first: int, last: int) -> tuple[int, int]:
    """RID_1 and RID_2 for requester ids from ``first`` to ``last``."""
    return last << 8, first << 8 | _VALID


def address_words(first: int, last: int) -> tuple[int, int, int]:
    """The registers of an address association, which is of whole MiB."""
    low = (last >> _MIB_SHIFT & 0xFFF) << 20 | (first >> _MIB_SHIFT & 0xFFF) << 8 | _VALID
    return low, last >> 32, first >> 32


@dataclass(slots=True)
class _Block:
    control: int = 0
    rid: list[int] = field(default_factory=lambda: [0, 0])
    addresses: list[int] = field(default_factory=list)
    stream: IdeStream | None = None


class IdeCapability:
    """The streams of ``port``, in so many blocks (at most 256), each with ``ranges`` address associations (at most 15).

    ``tampered`` hears of each write that changes the control or association of a stream, before it is done, and of
    which. ``is_device``: the port is a device's, where the Default Stream means something. ``reorder_check`` and
    ``rekey_flush`` are ``StreamSettings``', which no register says.
    """

    capability_id = CAPABILITY_ID

    def __init__(
        self,
        port: IdePort,
        blocks: int = 4,
        ranges: int = 3,
        *,
        is_device: bool = False,
        reorder_check: bool = False,
        rekey_flush: bool = False,
    ) -> None:
        self.port = port
        self.tampered: Callable[[IdeStream], None] = _nobody
        self.size_bytes = BLOCKS_AT + blocks * self.block_bytes(ranges)
        self._ranges = ranges
        self._is_device = is_device
        self._reorder_check = reorder_check
        self._rekey_flush = rekey_flush
        self._blocks = [_Block(addresses=[0] * (3 * ranges)) for _ in range(blocks)]

    @staticmethod
    def block_bytes(ranges: int) -> int:
        """Length of a block."""
        return BlockRegister.ADDRESS_1 + ranges * ADDRESS_BYTES

    def block_at(self, number: int) -> int:
        """Where a block begins in the capability."""
        return BLOCKS_AT + number * self.block_bytes(self._ranges)

    def dump(self) -> tuple[int, ...]:
        """All registers, header first, as QUERY_RESP has them."""
        return (_HEADER_WORD, *[self.load(at) for at in range(_WORD_BYTES, self.size_bytes, _WORD_BYTES)])

    def set_up(self, number: int, stream_id: int, *, tee_limited: bool = True) -> None:
        """Have a stream in a block, as a host would write it."""
        self._configure(self._blocks[number], control_word(stream_id, tee_limited=tee_limited))

    def reset(self) -> None:
        """Conventional reset: no stream is set up."""
        for one in self._blocks:
            self._store_control(one, 0)
            one.rid, one.addresses = [0, 0], [0] * (3 * self._ranges)

    # What a host does.

    def load(self, offset: int) -> int:
        """A double word of the capability."""
        if offset == _CAPABILITY_AT:
            return _SUPPORTED | len(self._blocks) - 1 << _STREAMS_SHIFT
        found = self._place(offset)
        if found is None:
            return 0
        block, at = found
        match at:
            case BlockRegister.CAPABILITY:
                return self._ranges
            case BlockRegister.CONTROL:
                return block.control
            case BlockRegister.STATUS:
                return _status(block.stream)
            case BlockRegister.RID_1 | BlockRegister.RID_2:
                return block.rid[(at - BlockRegister.RID_1) // _WORD_BYTES]
        return block.addresses[(at - BlockRegister.ADDRESS_1) // _WORD_BYTES]

    def store(self, offset: int, value: int) -> Tampering | None:
        """Store a double word; which locks it breaks ``tampered`` is told."""
        found = self._place(offset)
        if found is None:
            return None
        block, at = found
        if at == BlockRegister.CONTROL:
            self._store_control(block, value & _SETTABLE)
        elif at == BlockRegister.STATUS:
            if block.stream is not None and value & StreamStatus.FAIL_RECEIVED:
                block.stream.fail_received = False
        elif at != BlockRegister.CAPABILITY and not block.control & StreamControl.ENABLE:
            self._store_association(block, at, value)
        return None

    # Within.

    def _place(self, offset: int) -> tuple[_Block, int] | None:
        number, at = divmod(offset - BLOCKS_AT, self.block_bytes(self._ranges))
        return (self._blocks[number], at) if 0 <= number < len(self._blocks) and not at % _WORD_BYTES else None

    def _tell(self, block: _Block) -> None:
        if block.stream is not None:
            self.tampered(block.stream)

    def _store_association(self, block: _Block, at: int, value: int) -> None:
        if at <= BlockRegister.RID_2:
            words, number = block.rid, (at - BlockRegister.RID_1) // _WORD_BYTES
            settable = _RID_SETTABLE[number]
        else:
            words, number = block.addresses, (at - BlockRegister.ADDRESS_1) // _WORD_BYTES
            settable = _MASK if number % 3 else _ADDRESS_1_SETTABLE
        if words[number] != value & settable:
            self._tell(block)
            words[number] = value & settable

    def _store_control(self, block: _Block, value: int) -> None:
        before, enable = block.control, int(StreamControl.ENABLE)
        if value == before:
            return
        if before & enable:
            if value & enable:
                return  # fixed while enabled
            self._tell(block)
            block.control &= ~enable
            if block.stream is not None:
                block.stream.disable()
                self._associate()
            if value == block.control != 0:
                return
        else:
            self._tell(block)
        self._configure(block, value)
        if value & enable and block.stream is not None:
            block.stream.enable()
            self._associate()

    def _configure(self, block: _Block, value: int) -> None:
        """Take stream id and settings; keys stay with a stream whose id stays."""
        stream_id, streams = value >> STREAM_ID_SHIFT, self.port.streams
        if block.stream is not None and (block.stream.stream_id != stream_id or not value):
            block.stream.disable()
            del streams[block.stream.stream_id]
            block.stream = None
        block.control = value
        if not value:
            return
        if block.stream is None:
            if stream_id in streams:
                return  # another block's
            block.stream = streams[stream_id] = IdeStream(stream_id, checks=self.port.checks)
        aggregation = {sub: 1 << (value >> shift & 0b11) for sub, shift in _AGGREGATION_SHIFT.items()}
        limited = bool(value & StreamControl.TEE_LIMITED)
        block.stream.settings = StreamSettings(
            limited, aggregation, self._reorder_check, self._rekey_flush
        )

    def _associate(self) -> None:
        """Hand the port what belongs to its enabled streams; the Default Stream comes last."""
        held, default = [], []
        for one in self._blocks:
            if one.stream is None or not one.control & StreamControl.ENABLE:
                continue
            stream_id, addresses = one.stream.stream_id, tuple(_addresses(one.addresses))
            last, first = one.rid[0] >> 8 & 0xFFFF, one.rid[1] >> 8 & 0xFFFF
            if one.rid[1] & _VALID:
                held.append(Association(stream_id, (first, last), addresses))
            elif addresses:
                held.append(Association(stream_id, _NOBODY, addresses))
            if self._is_device and one.control & StreamControl.DEFAULT:
                default.append(Association(stream_id, _EVERYBODY, sent_alone=True))
        self.port.associations[:] = held + default



def _addresses(words: list[int]) -> Iterable[tuple[int, int]]:
    for at in range(0, len(words), 3):
        low, last_high, first_high = words[at : at + 3]
        if low & _VALID:
            first = first_high << 32 | (low >> 8 & 0xFFF) << _MIB_SHIFT
            yield first, last_high << 32 | low >> 20 << _MIB_SHIFT | (1 << _MIB_SHIFT) - 1


def _status(stream: IdeStream | None) -> int:
    if stream is None:
        return 0
    secure = StreamStatus.SECURE if stream.state is StreamState.SECURE else StreamStatus(0)
    return int(secure | (StreamStatus.FAIL_RECEIVED if stream.fail_received else StreamStatus(0)))


def _nobody(_: IdeStream) -> None:
    """Hear nothing."""
