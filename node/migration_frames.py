"""A stopped VM as frames on a wire, and back: parsed as hostile, one frame after another.

A frame is a msgpack array: version, session, sequence, kind, length and SHA-256
of the body, body. The session names the move, the VM and both hosts, so that no stream
is taken for another's. The first frame is the head, the last says how much there was, so
that a stream that was cut is noticed. The checksum covers what stands before
it too. It finds accidents; who can write the wire can write the checksum.

Frames are made when something crosses a border of processes, or somebody looks at the wire. Between two hosts of one
process a ``Stream`` stands for them; what its frames would hold is checked all the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

import msgpack

from node.operations import BLOCK_BYTES
from node.packing import Unmade, packed
from node.page_swaps import metadata_of
from node.vm_state import MOST_VCPUS, NO_TIME_BASE, Packet, Run, TimeBase, VmState, whole_runs
from node.vmsa import VMSA_BYTES, StoredArea
from psp.secret_packet import PacketHeader
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES

VERSION = 3
SESSION_BYTES = 16
NO_SESSION = bytes(SESSION_BYTES)
MOST_BODY_BYTES = 1 << 20
"""Pages or blocks of one frame hold at most this; a frame's body a little more."""
MOST_FRAME_BYTES = MOST_BODY_BYTES + (64 << 10)
MOST_ROWS = 1 << 15
MOST_CONTEXT_BYTES = 1 << 12
DIGEST_BYTES = 8
"""Of a page's SHA-256: they find accidents, of which none makes two of a fleet's pages alike in 64 bits."""
_LARGEST_NUMBER = 1 << 52
_VMPLS = 4
_MOST_NOTES = (_VMPLS + 1) * MOST_VCPUS
"""Of what vCPUs told: each at each VMPL, and of its doorbell."""
_FIELDS = ("version", "session", "sequence", "kind", "length", "checksum", "body")
_FIELD_TYPES = (int, bytes, int, int, int, bytes, bytes)


class FrameKind(IntEnum):
    """What a frame's body holds."""

    HEAD = 1
    REGISTERS = 2
    PAGES = 3
    BLOCKS = 4
    END = 5
    PACKETS = 6
    """Pages as firmware made them for the target's."""
    SEALED_REGISTERS = 7
    """A save area, likewise."""
    TOLD = 8
    """What the guest has told its hypervisor."""
    CONTEXT = 9
    """What a migration agent says to its peer, and the rows of pages that nobody wrote."""
    METADATA = 10
    """Metadata pages."""


class FrameError(ValueError):
    """A frame that is none, or not the next one; names the field and what was expected."""

    def __init__(self, sequence: int, field: str, expected: object, got: object) -> None:
        super().__init__(f"frame {sequence}: {field}: expected {expected}, got {got}")
        self.field = field


class StreamName(NamedTuple):
    """What the name of a stream is made of; no bytes are needed where no frames are."""

    number: int
    vm: str
    source: str
    destination: str


class Expected(NamedTuple):
    """What a target awaits. ``memory`` says whether a range of GPAs is the VM's."""

    vm: str
    memory: Callable[[int, int], bool]
    disk_blocks: int
    session: bytes | StreamName = NO_SESSION
    vcpus: int = 0
    """0 for as many as come."""
    by_firmware: bool = False
    """Its private pages come as packets."""
    hidden_registers: bool = False
    """So do its save areas."""
    by_agent: bool = False
    """And its context, by a migration agent."""
    levels: bool = False
    """Of its vCPUs each has several save areas, one for each VMPL."""

    def most_areas(self, vcpus: int) -> int:
        """Save areas of a VM of so many vCPUs."""
        return vcpus * _VMPLS if self.levels else vcpus


@lru_cache(maxsize=1024)
def session_of(number: int, vm: str, source: str, destination: str) -> bytes:
    """The name of a move's stream."""
    return hashlib.sha256(packed((number, vm, source, destination))).digest()[:SESSION_BYTES]


def session_bytes(session: bytes | StreamName) -> bytes:
    """A stream's name as its frames have it."""
    return session if isinstance(session, bytes) else session_of(*session)


class Stream(Unmade):
    """A stopped VM on its way, as frames that are made when somebody looks at one."""

    __slots__ = ("_frames", "_shape", "session", "state")

    def __init__(self, state: VmState, session: bytes | StreamName) -> None:
        self.state = state
        self.session = session
        self._shape = _shape_of(state)
        self._frames: tuple[bytes, ...] | None = None

    def made(self) -> tuple[bytes, ...]:
        """The frames."""
        if self._frames is None:
            self._frames = frames_of(self.state, session_bytes(self.session))
        return self._frames

    @property
    def size_bytes(self) -> int:
        """Bytes of all frames: known without them where others of the same shape were made before."""
        shape = self._shape
        if shape is None:
            return sum(map(len, self.made()))
        if not shape.size_bytes:
            shape.size_bytes = sum(map(len, self.made()))
            self._frames = None
        return shape.size_bytes

    def state_for(self, expected: Expected) -> VmState:
        """The VM, checked as its frames would be, which look at nothing but its shape. Raises FrameError."""
        # But for their names, which are compared, VMs of one shape have all in common that is looked at.
        vm, memory, blocks, session, *rest = expected
        shape, besides = self._shape, (memory, blocks, *rest)
        if shape is not None and besides in shape.fitting and self.state.vm == vm and self.session == session:
            return self.state
        reader = _Reader(expected)
        reader.expect_session(session_bytes(self.session))
        for kind, body in _bodies(self.state):
            reader.take_body(kind, body)
        if shape is not None:
            if len(shape.fitting) >= _MOST_FITTING:
                shape.fitting.clear()
            shape.fitting.add(besides)
        return reader.state()


class PageDigests(Unmade):
    """The digests of pages on their way beside a ``Stream``, made when somebody looks at them."""

    __slots__ = ("pages",)

    def __init__(self, pages: tuple[Run, ...]) -> None:
        self.pages = pages

    def made(self) -> bytes:
        """The digests."""
        return page_digests(self.pages)


class _Shape:
    """What is known of streams whose frames are as long, each as the other's."""

    __slots__ = ("fitting", "size_bytes")

    def __init__(self) -> None:
        self.size_bytes = 0
        """Of all frames; 0 as long as nobody has asked."""
        self.fitting: set[tuple[object, ...]] = set()
        """What was expected, besides names, where they were that."""


_SHAPES: dict[tuple[object, ...], _Shape] = {}
_MOST_SHAPES = 4096
_MOST_FITTING = 64
_MOST_IN_SHAPE = 64


def _shape_of(state: VmState) -> _Shape | None:
    """The shape of a VM's stream, by all that lengths of frames follow from; None for one that holds a lot."""
    pages, blocks = state.pages, state.blocks
    if state.packets or state.sealed_areas or state.shared or state.told or len(pages) + len(blocks) > _MOST_IN_SHAPE:
        return None
    lengths = (
        len(state.vm.encode()), state.started, state.launched, state.reset_rips, _length_of(state.time_base),
        *[VMSA_BYTES if type(one) is StoredArea else len(one) for one in state.save_areas], None,
        *[(gpa, len(data)) for gpa, data in pages], None, *[(lba, len(data)) for lba, data in blocks],
    )  # fmt: skip
    shape = _SHAPES.get(lengths)
    if shape is None:
        if len(_SHAPES) >= _MOST_SHAPES:
            _SHAPES.clear()
        shape = _SHAPES[lengths] = _Shape()
    return shape


def _length_of(base: TimeBase) -> TimeBase:
    """A time base with the length of its offset, which is another at each move between hosts of different speeds."""
    hz, offset = base
    # One that is refused stands for itself; no length is negative or as large.
    return (hz, len(packed(offset))) if 0 < offset < 1 << 64 else base


def bytes_of(frames: Stream | Iterable[bytes]) -> int:
    """How long frames are together."""
    return frames.size_bytes if isinstance(frames, Stream) else sum(map(len, frames))


def frames_of(state: VmState, session: bytes = NO_SESSION) -> tuple[bytes, ...]:
    """A stopped VM as frames."""
    return tuple(
        [_framed(session, sequence, int(kind), packed(body)) for sequence, (kind, body) in enumerate(_bodies(state))]
    )


def _bodies(state: VmState) -> list[tuple[FrameKind, object]]:
    """What the frames of a stopped VM hold, in their order."""
    amounts = (_amount(state.pages, PAGE_BYTES), _amount(state.blocks, BLOCK_BYTES), len(state.packets))
    return [
        (FrameKind.HEAD, (state.vm, state.started, state.launched, state.reset_rips, state.time_base)),
        *[(FrameKind.REGISTERS, area) for area in enumerate(map(bytes, state.save_areas))],
        *[(FrameKind.SEALED_REGISTERS, area) for area in state.sealed_areas],
        *([(FrameKind.TOLD, (state.shared, state.told))] if state.shared or state.told else []),
        *[(FrameKind.PAGES, runs) for runs in _bundles(state.pages, PAGE_BYTES, PAGE_BYTES)],
        *[
            (FrameKind.PACKETS, state.packets[at : at + MOST_PACKETS])
            for at in range(0, len(state.packets), MOST_PACKETS)
        ],
        *([(FrameKind.CONTEXT, (state.context, state.rows))] if state.context else []),
        *[
            (FrameKind.METADATA, state.metadata[at : at + MOST_RUNS]) for at in range(0, len(state.metadata), MOST_RUNS)
        ],
        *[(FrameKind.BLOCKS, runs) for runs in _bundles(state.blocks, BLOCK_BYTES, 1)],
        (FrameKind.END, amounts),
    ]


def state_of(frames: Stream | Iterable[bytes], expected: Expected) -> VmState:
    """The VM back from its frames. Raises FrameError."""
    if isinstance(frames, Stream):
        return frames.state_for(expected)
    reader = _Reader(expected)
    for frame in frames:
        reader.take(frame)
    return reader.state()


def page_digests(pages: Iterable[Run]) -> bytes:
    """SHA-256 of every page, ``DIGEST_BYTES`` each, in the order of the runs."""
    sha256 = hashlib.sha256
    return b"".join(
        [
            sha256(view[at : at + PAGE_BYTES]).digest()[:DIGEST_BYTES]
            for _, data in pages
            for view in (memoryview(data),)
            for at in range(0, len(data), PAGE_BYTES)
        ]
    )


def _framed(session: bytes, sequence: int, kind: int, body: bytes) -> bytes:
    return packed((VERSION, session, sequence, kind, len(body), _checksum(session, sequence, kind, body), body))


def _checksum(session: bytes, sequence: int, kind: int, body: bytes) -> bytes:
    found = hashlib.sha256(b"%d %d %d %b" % (VERSION, sequence, kind, session))
    found.update(body)
    return found.digest()


def _bundles(runs: Iterable[Run], unit_bytes: int, step: int) -> Iterator[tuple[Run, ...]]:
    """Runs cut and bundled so that no bundle holds more than a frame takes; ``step`` is an address's unit."""
    bundle: list[Run] = []
    room = MOST_BODY_BYTES
    for start, data in runs:
        if 0 < len(data) <= room - unit_bytes and len(bundle) < MOST_RUNS - 1:  # Most go whole and leave room.
            bundle.append((start, data))
            room -= len(data)
            continue
        at = 0
        while at < len(data):
            size = min(room, len(data) - at)
            bundle.append((start + at // unit_bytes * step, data[at : at + size]))
            at += size
            room -= size
            if room < unit_bytes or len(bundle) == MOST_RUNS:
                yield tuple(bundle)
                bundle, room = [], MOST_BODY_BYTES
    if bundle:
        yield tuple(bundle)


MOST_RUNS = MOST_BODY_BYTES // PAGE_BYTES
MOST_PACKETS = MOST_BODY_BYTES // (PAGE_BYTES + PacketHeader.SIZE)


def _amount(runs: Iterable[Run], unit_bytes: int) -> int:
    return sum([len(data) for _, data in runs]) // unit_bytes


def _numbers(values: object, count: int) -> bool:
    """Whether these are so many numbers of an address's size."""
    return isinstance(values, tuple) and len(values) == count and _all_numbers(values)


def _all_numbers(values: tuple[object, ...]) -> bool:
    return set(map(type, values)) <= _INTEGERS and (not values or (min(values) >= 0 and max(values) < 1 << 64))  # type: ignore[type-var,operator]


_INTEGERS = {int}


def _is_word(said: object) -> bool:
    """Whether this is a vCPU, or -1 for none, and two numbers."""
    if not isinstance(said, tuple) or len(said) != 3 or type(said[0]) is not int:
        return False
    return -1 <= said[0] < _MOST_NOTES and _numbers(said[1:], 2)


class _Reader:
    """Takes frames in their order and holds what they brought."""

    def __init__(self, expected: Expected) -> None:
        self._expected = expected
        self._sequence = 0
        self._head: tuple[tuple[bool, ...], tuple[int, ...], tuple[int, ...]] | None = None
        self._time_base = NO_TIME_BASE
        self._areas: list[bytes] = []
        self._pages: list[Run] = []
        self._blocks: list[Run] = []
        self._packets: list[Packet] = []
        self._sealed: list[Packet] = []
        self._told: tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int, int], ...]] = ((), ())
        self._context: tuple[bytes, tuple[tuple[int, int, bool], ...]] | None = None
        self._metadata: list[bytes] = []
        self._ended = False

    def take(self, frame: bytes) -> None:
        """One frame."""
        self.take_body(*self._opened(frame))

    def take_body(self, kind: int, body: object) -> None:
        """What one frame holds."""
        number = self._sequence
        handler = _HANDLERS.get(kind)
        if handler is None:
            raise FrameError(number, "kind", f"1 to {len(FrameKind)}", kind)
        if (self._head is None) != (kind == FrameKind.HEAD) or self._ended:
            raise FrameError(number, "kind", "a head first and nothing after the end", FrameKind(kind).name)
        handler(self, body)
        self._sequence += 1

    def state(self) -> VmState:
        """What came, once the end was there."""
        if self._head is None or not self._ended:
            raise FrameError(self._sequence, "kind", "a further frame", "the end of the stream")
        started, launched, rips = self._head
        context, rows = self._context or (b"", ())
        return VmState(
            self._expected.vm, tuple(self._areas), started, launched, rips, whole_runs(self._pages),
            tuple(self._blocks), tuple(self._packets), tuple(self._sealed), *self._told, context,
            tuple(self._metadata), rows, self._time_base,
        )  # fmt: skip

    def _opened(self, frame: bytes) -> tuple[int, object]:
        number = self._sequence
        if len(frame) > MOST_FRAME_BYTES:
            raise FrameError(number, "length", f"at most {MOST_FRAME_BYTES} bytes", len(frame))
        try:
            fields = msgpack.unpackb(frame, use_list=False)
            version, session, sequence, kind, length, checksum, body = fields
        except (ValueError, TypeError, msgpack.UnpackException, RecursionError):
            raise FrameError(number, "frame", "seven msgpack fields", "something else") from None
        if tuple(map(type, fields)) != _FIELD_TYPES:
            for name, value, kind_of in zip(_FIELDS, fields, _FIELD_TYPES, strict=True):
                if type(value) is not kind_of:
                    raise FrameError(number, name, kind_of.__name__, type(value).__name__)
        if version != VERSION:
            raise FrameError(number, "version", VERSION, version)
        self.expect_session(session)
        if sequence != number:
            raise FrameError(number, "sequence", number, sequence)
        if length != len(body):
            raise FrameError(number, "length", length, len(body))
        if checksum != _checksum(session, sequence, kind, body):
            raise FrameError(number, "checksum", "that of the body", "another")
        try:
            return kind, msgpack.unpackb(body, use_list=False)
        except (ValueError, TypeError, msgpack.UnpackException, RecursionError):
            raise FrameError(number, "body", "msgpack", "something else") from None

    def expect_session(self, session: bytes) -> None:
        """A frame names the move that is awaited."""
        expected = session_bytes(self._expected.session)
        if session != expected:
            raise FrameError(self._sequence, "session", expected.hex(), session.hex()[:80])

    def take_head(self, body: object) -> None:
        """The body of such a frame."""
        match body:
            case (str(vm), tuple(started), tuple(launched), tuple(rips), tuple(base)):
                pass
            case _:
                wanted = "name, vCPUs, launched pages, reset vectors, time base"
                raise FrameError(self._sequence, "head", wanted, "something else")
        if vm != self._expected.vm:
            raise FrameError(self._sequence, "vm", self._expected.vm, repr(vm)[:80])
        if self._expected.vcpus not in (0, len(started)):
            raise FrameError(self._sequence, "vcpus", self._expected.vcpus, len(started))
        if not 0 < len(started) <= MOST_VCPUS or len(rips) != len(started) or set(map(type, started)) != {bool}:
            raise FrameError(self._sequence, "vcpus", f"1 to {MOST_VCPUS} with a reset vector each", len(started))
        if not _all_numbers((*launched, *rips)):
            raise FrameError(self._sequence, "head", "64-bit addresses", "something else")
        if not _numbers(base, 2):
            raise FrameError(self._sequence, "time base", "a rate and an offset", "something else")
        self._head, self._time_base = (started, launched, rips), base

    def take_registers(self, body: object) -> None:
        """The body of such a frame."""
        assert self._head is not None
        match body:
            case (int(index), bytes(area)) if index == len(self._areas) < len(self._head[0]):
                if len(area) != VMSA_BYTES:
                    raise FrameError(self._sequence, "registers", f"{VMSA_BYTES} bytes", len(area))
                self._areas.append(area)
            case _:
                raise FrameError(self._sequence, "registers", f"those of vCPU {len(self._areas)}", "something else")

    def take_pages(self, body: object) -> None:
        """The body of such a frame."""
        for gpa, data in self._runs(body, PAGE_BYTES):
            if gpa % PAGE_BYTES or not self._expected.memory(gpa, len(data)):
                raise FrameError(self._sequence, "gpa", "whole pages of the VM", f"{gpa:#x}")
            if self._pages and gpa < self._pages[-1][0] + len(self._pages[-1][1]):
                raise FrameError(self._sequence, "gpa", "pages in ascending order", f"{gpa:#x}")
            self._pages.append((gpa, data))

    def take_packets(self, body: object) -> None:
        """The body of such a frame."""
        if not self._expected.by_firmware or not isinstance(body, tuple) or not 0 < len(body) <= MOST_PACKETS:
            raise FrameError(self._sequence, "packets", f"1 to {MOST_PACKETS}, of a VM that has some", "something else")
        for packet in body:
            gpa = self._packet(packet, "packet")[0]
            if gpa % PAGE_BYTES or not self._expected.memory(gpa, PAGE_BYTES):
                raise FrameError(self._sequence, "gpa", "whole pages of the VM", f"{gpa:#x}")
            if self._packets and gpa <= self._packets[-1][0]:
                raise FrameError(self._sequence, "gpa", "pages in ascending order", f"{gpa:#x}")
            self._packets.append(packet)

    def take_sealed_registers(self, body: object) -> None:
        """The body of such a frame."""
        assert self._head is not None
        number = len(self._sealed)
        if not self._expected.hidden_registers or self._packet(body, "registers")[0] != number:
            raise FrameError(self._sequence, "registers", f"sealed ones of vCPU {number}, if any", "something else")
        if number == self._expected.most_areas(len(self._head[0])):
            raise FrameError(self._sequence, "registers", f"those of {len(self._head[0])} vCPUs", "more")
        self._sealed.append(body)  # type: ignore[arg-type]  # it is a packet

    def _packet(self, packet: object, what: str) -> Packet:
        match packet:
            case (int(name), bytes(header), bytes(data)) if (
                0 <= name < _LARGEST_NUMBER and len(header) == PacketHeader.SIZE and len(data) == PAGE_BYTES
            ):
                return name, header, data
        raise FrameError(
            self._sequence, what, f"a number, {PacketHeader.SIZE} bytes and {PAGE_BYTES}", "something else"
        )

    def take_told(self, body: object) -> None:
        """The body of such a frame."""
        match body:
            case (tuple(shared), tuple(told)) if len(shared) <= MOST_RUNS and len(told) <= _MOST_NOTES + 1:
                pass
            case _:
                raise FrameError(self._sequence, "told", "shared ranges, and words of vCPUs", "something else")
        if not all(_numbers(one, 2) and self._expected.memory(*one) and one[1] for one in shared):
            raise FrameError(self._sequence, "told", "ranges of the VM", "something else")
        if not all(map(_is_word, told)):
            raise FrameError(self._sequence, "told", "a vCPU and two numbers", "something else")
        if any(gpa % PAGE_BYTES or length % PAGE_BYTES for gpa, length in shared):
            raise FrameError(self._sequence, "told", "whole pages", "something else")
        self._told = (shared, told)

    def take_context(self, body: object) -> None:
        """The body of such a frame."""
        match body:
            case (bytes(context), tuple(rows)) if (
                self._expected.by_agent and self._context is None and len(rows) <= MOST_ROWS
                and 0 < len(context) <= MOST_CONTEXT_BYTES
            ):
                pass
            case _:
                raise FrameError(self._sequence, "context", "one, of a VM that an agent moves", "something else")
        end = 0
        for row in rows:
            match row:
                case (int(gpa), int(pages), bool(large)) if 0 <= gpa < _LARGEST_NUMBER and 0 < pages < _LARGEST_NUMBER:
                    size = LARGE_PAGE_BYTES if large else PAGE_BYTES
                case _:
                    raise FrameError(self._sequence, "rows", "an address, a number and a size", "something else")
            if gpa % size or gpa < end or not self._expected.memory(gpa, pages * size):
                raise FrameError(self._sequence, "rows", "whole pages of the VM, in ascending order", f"{gpa:#x}")
            end = gpa + pages * size
        self._context = context, rows

    def take_metadata(self, body: object) -> None:
        """The body of such a frame."""
        pages = body if isinstance(body, tuple) else ()
        if not self._expected.by_agent or not 0 < len(pages) <= MOST_RUNS:
            raise FrameError(self._sequence, "metadata", f"1 to {MOST_RUNS} pages", "something else")
        if any(type(page) is not bytes or len(page) != PAGE_BYTES for page in pages):
            raise FrameError(self._sequence, "metadata", f"pages of {PAGE_BYTES} bytes", "something else")
        rows = () if self._context is None else self._context[1]
        most = metadata_of(len(self._packets) + len(self._sealed) + len(rows))
        if len(self._metadata) + len(pages) > most:
            # What they are of came before them, and is bounded by the VM's memory.
            raise FrameError(self._sequence, "metadata", f"at most {most} pages", len(self._metadata) + len(pages))
        self._metadata += pages

    def take_blocks(self, body: object) -> None:
        """The body of such a frame."""
        for lba, data in self._runs(body, BLOCK_BYTES):
            if not 0 <= lba <= self._expected.disk_blocks - len(data) // BLOCK_BYTES:
                raise FrameError(self._sequence, "lba", f"blocks below {self._expected.disk_blocks}", lba)
            if self._blocks and lba < self._blocks[-1][0] + len(self._blocks[-1][1]) // BLOCK_BYTES:
                raise FrameError(self._sequence, "lba", "blocks in ascending order", lba)
            self._blocks.append((lba, data))

    def _runs(self, body: object, unit_bytes: int) -> Iterator[Run]:
        if not isinstance(body, tuple) or not 0 < len(body) <= MOST_RUNS:
            raise FrameError(self._sequence, "runs", f"1 to {MOST_RUNS}", "something else")
        for run in body:
            match run:
                case (int(start), bytes(data)) if 0 <= start < _LARGEST_NUMBER and data and not len(data) % unit_bytes:
                    yield start, data
                case _:
                    raise FrameError(
                        self._sequence, "run", f"an address and whole units of {unit_bytes} bytes", "something else"
                    )

    def take_end(self, body: object) -> None:
        """The body of such a frame."""
        assert self._head is not None
        found = (_amount(self._pages, PAGE_BYTES), _amount(self._blocks, BLOCK_BYTES), len(self._packets))
        if body != found:
            wanted = f"{found[0]} pages, {found[1]} blocks and {found[2]} packets"
            raise FrameError(self._sequence, "end", wanted, repr(body)[:80])
        areas = self._sealed if self._expected.hidden_registers else self._areas
        vcpus = len(self._head[0])
        few = not vcpus <= len(areas) <= self._expected.most_areas(vcpus)
        if few or len(self._areas) + len(self._sealed) != len(areas):
            raise FrameError(self._sequence, "registers", f"of {vcpus} vCPUs", len(areas))
        if self._expected.by_agent and self._context is None:
            raise FrameError(self._sequence, "context", "one", "none")
        self._ended = True


_HANDLERS: Mapping[int, Callable[[_Reader, object], None]] = {
    FrameKind.HEAD: _Reader.take_head,
    FrameKind.REGISTERS: _Reader.take_registers,
    FrameKind.PAGES: _Reader.take_pages,
    FrameKind.BLOCKS: _Reader.take_blocks,
    FrameKind.END: _Reader.take_end,
    FrameKind.PACKETS: _Reader.take_packets,
    FrameKind.SEALED_REGISTERS: _Reader.take_sealed_registers,
    FrameKind.TOLD: _Reader.take_told,
    FrameKind.CONTEXT: _Reader.take_context,
    FrameKind.METADATA: _Reader.take_metadata,
}
