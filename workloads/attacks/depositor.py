"""The victim of attacks on the device path: a guest that works on a GPU of its own, and believes what comes back.

First it makes its buffers and rests; then it takes its device, has it proved where its generation can, and goes on
round by round, resting once in each. A round

- notes what the device sent at the end of the last one, and what it has kept since then;
- brings a secret to the device, and has it forgotten there again;
- leaves a deposit there, new in each round, and has it sent back, to be found in the buffer after the rest;
- stores two words through the device's memory window, and notes what the device finds of them there.

What it notes it has decided by: in an undisturbed life it notes, round by round, what it has brought. It looks at
what its drivers look at, and compares nothing else. Some of its ways are parameters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, fields, replace

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from node.device_policy import DevicePolicy, DeviceUntrusted
from node.device_window import DeviceWindow
from node.ghcb_page import GhcbUntrusted
from node.guest_gpu import PRIVATE_BYTES as GPU_BYTES
from node.guest_gpu import SHARED_BYTES as GPU_SHARED_BYTES
from node.guest_gpu import GuestGpu
from node.guest_messages import GuestMessages, MessageRefused
from node.guest_tdi import SHARED_BYTES as TDI_SHARED_BYTES
from node.guest_tdi import GuestTdi, TdiRefused
from node.operations import Await, Read, ReadTsc, Shutdown, Sleep, Write
from node.program import Block, Demand, Placement, ProgramSpec, Registers
from node.swiotlb import BounceArea, BounceFault, Steps
from psp.system_bus import PAGE_BYTES
from psp.tsm.tio_buffers import NONCE_BYTES
from tio.device_identity import CardKind
from tio.gpu import MEMORY_BAR, GpuCommand, GpuOpcode
from tio.tdisp import LockFlags
from tio.tdisp.report import InterfaceReport, parse_report
from workloads.attacks.depositor_ways import DepositorWays
from workloads.block_outcome import UNTRUSTED, faulted, with_devices
from workloads.device_policies import policy_for
from workloads.device_work import NOT_TRUSTED

OPEN_RIP, ATTACH_RIP, ROUND_RIP, DETACH_RIP, AWAKE_RIP = 0x40_0000, 0x40_1000, 0x40_2000, 0x40_3000, 0x40_4000
FORGED = Shutdown(8)
"""What came back does not bear the seal of what went out."""
NOTICED: Mapping[int, str] = {
    UNTRUSTED.code: "its device says what no such device says, or nothing",
    NOT_TRUSTED.code: "its device is not trusted",
    FORGED.code: "what came back is forged",
}
"""Codes by which it ends itself because it noticed something."""
CONTENT_BYTES = 64
KEPT_ROUNDS = 16
"""Rounds whose notes have a place of their own."""
SERIAL = "0001"
"""Of the device that it was given."""
DEVICE = 0
"""The number of its device."""
SECRET_AT, DEPOSIT_AT, NOTHING_AT, BUFFER_BYTES = 0, 128, 256, 384
"""In a buffer. 128 bytes have room for content and seal."""
_ON_DEVICE, SECRET_ON_DEVICE, WORDS_ON_DEVICE = 0, 0x400, (0x1000, 0x2000)
_WORDS_AT = 320
_WORD_BYTES = 8
_SLOT_BYTES, _NONCE_BYTES = 128, 12
_REPORT, _NOTES, _SIZE, _BUFFERS = (GPU_BYTES // PAGE_BYTES + at for at in range(4))
"""Pages of its private range, behind its driver's."""
_NOTE_BYTES = 256
OUT, IN, LARGE, IDLE = range(4)
_FIRST_PAGES = {False: (0, 1, 2, 18), True: (16, 17, 0, 18)}
"""Where in its buffers the one is for what goes out, for what comes, a large one, and a page that nobody uses."""
LARGE_BYTES = 1 << 16
_BUFFER_PAGES = 19
_NO_ANSWER = (1 << 64) - 1
_LENGTH_BYTES = 4
REST = Sleep(1_000_000_000)
_PATIENCE = Await(500_000_000)
_LATE_TICKS = 300_000_000
"""Of the time-stamp counter, at 2 to 4 GHz: more than an interrupt takes, and less than its patience."""
_IN_TIME, _LATE = b"in time.", b"too late"
_DECIDED_AT = 64
"""In the page of the device's size: whether the interrupt came in time."""


@dataclass(frozen=True, slots=True)
class Depositor:
    """R13 counts rounds, R12 those since it took its device, R11 how often it let it go; R10 is since when it waits."""

    placement: Placement
    ways: DepositorWays = DepositorWays()  # noqa: RUF009 - frozen
    turned: bool = False
    """Its buffers lie the other way round."""

    entry = OPEN_RIP
    demands: tuple[Demand, ...] = ()

    @classmethod
    def build(cls, spec: ProgramSpec, placement: Placement) -> Depositor:
        """The program of a specification."""
        known = {one.name for one in fields(DepositorWays)}
        return cls(placement, DepositorWays(**{name: int(value) for name, value in spec.parameters if name in known}))

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        """Blocks by RIP."""
        return {rip: _ending(self, step) for rip, step in _STEPS.items()}

    def at(self, attached: int) -> Depositor:
        """Itself as it is when it has taken its device so often."""
        return replace(self, turned=bool(self.ways.farewell and attached % 2))

    # What is true of it.

    @property
    def secret(self) -> bytes:
        """What it brings to its device and to nobody else."""
        return self._content("secret")

    def deposit(self, number: int) -> bytes:
        """What it leaves on the device in a round."""
        return self._content(f"deposit {number % KEPT_ROUNDS}")

    def words(self, number: int) -> tuple[bytes, bytes]:
        """What it stores through the window in a round."""
        both = self._content(f"words {number % KEPT_ROUNDS}")
        return both[:_WORD_BYTES], both[_WORD_BYTES : 2 * _WORD_BYTES]

    def promises(self, memory_bytes: int) -> dict[int, bytes]:
        """What it notes, wherever it does, by GPA, of a device with so much memory."""
        size = self._private(_SIZE)
        out = {size: memory_bytes.to_bytes(8, "little"), size + _DECIDED_AT: _IN_TIME}
        for number in range(KEPT_ROUNDS):
            for at, octets in zip(_PLACES, self._expected(number), strict=True):
                out[self._note_gpa(number) + at] = octets
        return out

    def device_writes(self) -> tuple[tuple[int, int], ...]:
        """Private memory that its device writes, as (GPA, bytes): the driver's ring and fence, and its buffers."""
        return (self.placement.base_gpa, 2 * PAGE_BYTES), (self._private(_BUFFERS), _BUFFER_PAGES * PAGE_BYTES)

    @property
    def lent(self) -> tuple[int, int]:
        """Shared memory in which it hands things to its device, as (GPA, bytes)."""
        return self.placement.shared_gpa + TDI_SHARED_BYTES, GPU_SHARED_BYTES + _BUFFER_PAGES * PAGE_BYTES

    @property
    def idle(self) -> int:
        """GPA of a page that its device reaches and nobody uses."""
        return self.buffer(IDLE, bounces=self.bounces)

    def buffer(self, number: int, *, bounces: bool) -> int:
        """GPA of a buffer as its device reaches it."""
        if bounces:
            return self.lent[0] + GPU_SHARED_BYTES + _FIRST_PAGES[self.turned][number] * PAGE_BYTES
        return self._inner(number)

    @property
    def _lent_at(self) -> int:
        """GPA of all its buffers as its device reaches them."""
        return self.lent[0] + GPU_SHARED_BYTES if self.bounces else self._private(_BUFFERS)

    def _inner(self, number: int) -> int:
        """GPA of a buffer in private memory."""
        return self._private(_BUFFERS + _FIRST_PAGES[self.turned][number])

    # Where things are.

    @property
    def trusts(self) -> bool:
        """Whether it lets its device into private memory."""
        return self.placement.trusts_devices and bool(self.ways.trusts)

    @property
    def bounces(self) -> bool:
        """Whether its device reaches the pool alone."""
        return self.placement.bounces and not self.trusts

    @property
    def _area(self) -> BounceArea:
        place = self.placement
        area = BounceArea(place.shared_gpa, place.shared_length, place.book_gpa)
        area = replace(area, gpa=area.gpa + TDI_SHARED_BYTES, length=area.length - TDI_SHARED_BYTES)
        return replace(area, bounces=self.bounces)

    @property
    def _window(self) -> DeviceWindow:
        return DeviceWindow(DEVICE, private=self.trusts)

    @property
    def _gpu(self) -> GuestGpu:
        return GuestGpu(self._area, self._window, self.placement.base_gpa)

    @property
    def _policy(self) -> DevicePolicy:
        ways = self.ways
        return replace(
            policy_for(CardKind.GPU), serial=SERIAL, lock_flags=LockFlags(ways.lock_flags),
            checks_certificates=bool(ways.checks_certificates), checks_identity=bool(ways.checks_identity),
            checks_measurements=bool(ways.checks_measurements), checks_fresh=bool(ways.checks_fresh),
            checks_report=bool(ways.checks_report), checks_lock=bool(ways.checks_lock),
        )  # fmt: skip

    def _tdi(self) -> GuestTdi:
        place = self.placement
        if place.messages is None:
            raise TdiRefused("nobody to ask")
        return GuestTdi.of(GuestMessages(place.messages, place.shared_gpa, place.shared_gpa + PAGE_BYTES), DEVICE)

    def _fresh(self, number: int) -> bytes:
        """What it wants its device to be measured with."""
        return self._content(f"fresh {number}")[:NONCE_BYTES]

    def _private(self, page: int) -> int:
        return self.placement.base_gpa + page * PAGE_BYTES

    def _note_gpa(self, number: int) -> int:
        return self._private(_NOTES) + number % KEPT_ROUNDS * _NOTE_BYTES

    def _content(self, what: str) -> bytes:
        name = f"{self.placement.seed} {self.placement.vm} {what}"
        return hashlib.shake_128(name.encode()).digest(CONTENT_BYTES)

    def _expected(self, number: int) -> tuple[bytes, bytes, bytes, bytes]:
        """What it notes of a round: what was sent back, what was kept, the words twice, what was polled for."""
        deposit = self.deposit(number)
        return deposit, deposit, 2 * b"".join(self.words(number)), deposit

    # Blocks.

    def _open(self, registers: Registers) -> Block:
        registers.rip = ATTACH_RIP
        if self.placement.devices:
            yield from self._area.open()
        return REST

    def _attach(self, registers: Registers) -> Block:
        if not self.placement.devices:
            return REST
        if self.trusts:
            report = (yield from self._tdi().attach(self._policy, self._fresh(registers.r13))).pack()
            kept = len(report).to_bytes(_LENGTH_BYTES, "little") + report
            yield from _done(Write(self._private(_REPORT), kept))
        size = yield from self._gpu.start()
        at = yield from self._area.map_from_device(self._private(_BUFFERS), _BUFFER_PAGES * PAGE_BYTES)
        assert at == self._lent_at
        yield from _done(Write(self._private(_SIZE), size.to_bytes(8, "little")))
        registers.rip = ROUND_RIP
        return None

    def _round(self, registers: Registers) -> Block:
        number = registers.r13
        if self.ways.stores:
            yield from self._window.store(MEMORY_BAR, *_words_of(self.secret, SECRET_ON_DEVICE))
        if registers.r12:
            yield from self._take(number - 1)
        if self.ways.rechecks and self.trusts:
            yield from self._tdi().judged(self._policy, self._fresh(number))
        yield from self._bring(number)
        registers.r12, registers.r13 = registers.r12 + 1, number + 1
        if self.ways.awaits:
            registers.r10, registers.rip = (yield from self._time()), AWAKE_RIP
            return _PATIENCE
        return self._rested(registers)

    def _awake(self, registers: Registers) -> Block:
        late = (yield from self._time()) - registers.r10 > _LATE_TICKS
        yield from _done(Write(self._private(_SIZE) + _DECIDED_AT, _LATE if late else _IN_TIME))
        return self._rested(registers)

    def _rested(self, registers: Registers) -> Sleep:
        registers.rip = DETACH_RIP if registers.r12 == self.ways.detaches else ROUND_RIP
        return REST

    def _time(self) -> Steps[int]:
        (ticks,) = yield (ReadTsc(),)
        return ticks if isinstance(ticks, int) else 0

    def _detach(self, registers: Registers) -> Block:
        if self.ways.farewell:
            at = self.buffer(LARGE, bounces=self.bounces)
            yield from self._gpu.leave(GpuCommand(GpuOpcode.COPY_OUT, 0, _ON_DEVICE, at, LARGE_BYTES))
        yield from self._gpu.stop()
        yield from self._area.unmap(self._lent_at, _BUFFER_PAGES * PAGE_BYTES)
        if self.trusts:
            yield from self._tdi().detach((yield from self._kept_report()))
        registers.r11, registers.r12, registers.rip = registers.r11 + 1, 0, ATTACH_RIP
        return REST

    def _kept_report(self) -> Steps[InterfaceReport]:
        data = yield from self._read(self._private(_REPORT), PAGE_BYTES)
        length = int.from_bytes(data[:_LENGTH_BYTES], "little")
        return parse_report(data[_LENGTH_BYTES : _LENGTH_BYTES + length])

    # Parts of a round.

    def _take(self, number: int) -> Steps[None]:
        """What was sent back, and what was kept."""
        first = yield from self._arrived(number)
        yield from self._copy(GpuOpcode.COPY_OUT, _ON_DEVICE, DEPOSIT_AT, _SLOT_BYTES)
        second = yield from self._arrived(number)
        place = self._note_gpa(number)
        yield from _done(Write(place + _PLACES[0], first), Write(place + _PLACES[1], second))

    def _arrived(self, number: int) -> Steps[bytes]:
        """The deposit as it came to lie in the buffer for what comes."""
        inbox = self._inner(IN)
        yield from self._area.copy_from_device(self.buffer(IN, bounces=self.bounces), inbox, BUFFER_BYTES)
        found = yield from self._read(inbox + DEPOSIT_AT, _SLOT_BYTES)
        return self._opened(found, f"deposit {number % KEPT_ROUNDS}")

    def _bring(self, number: int) -> Steps[None]:
        out = self._inner(OUT)
        parts = (self.secret, "secret"), (self.deposit(number), f"deposit {number % KEPT_ROUNDS}")
        data = b"".join([self._sealed(*part).ljust(_SLOT_BYTES, b"\0") for part in parts]) + bytes(_SLOT_BYTES)
        yield from _done(Write(out, data))
        yield from self._area.copy_to_device(out, self.buffer(OUT, bounces=self.bounces), BUFFER_BYTES)
        yield from self._copy(GpuOpcode.COPY_IN, SECRET_ON_DEVICE, SECRET_AT, _SLOT_BYTES)
        if self.ways.wipes:
            yield from self._copy(GpuOpcode.COPY_IN, SECRET_ON_DEVICE, NOTHING_AT, _SLOT_BYTES)
        yield from self._copy(GpuOpcode.COPY_IN, _ON_DEVICE, DEPOSIT_AT, _SLOT_BYTES)
        yield from self._keep_words(number)
        yield from self._copy(GpuOpcode.COPY_OUT, _ON_DEVICE, DEPOSIT_AT, _SLOT_BYTES)
        if self.ways.polls:
            yield from self._poll_for_all(number)

    def _keep_words(self, number: int) -> Steps[None]:
        """Store two words through the window, and note what the device has of them."""
        words = self.words(number)
        stores = [
            (at, int.from_bytes(word, "little"), _WORD_BYTES) for at, word in zip(WORDS_ON_DEVICE, words, strict=True)
        ]
        yield from self._window.store(MEMORY_BAR, *stores)
        for place, at in enumerate(WORDS_ON_DEVICE):
            yield from self._copy(GpuOpcode.COPY_OUT, at, _WORDS_AT + place * _WORD_BYTES, _WORD_BYTES)
        inbox = self._inner(IN)
        yield from self._area.copy_from_device(self.buffer(IN, bounces=self.bounces), inbox, BUFFER_BYTES)
        found = yield from self._read(inbox + _WORDS_AT, 2 * _WORD_BYTES)
        seen = yield from self._words_in_window()
        yield from _done(Write(self._note_gpa(number) + _PLACES[2], found + seen))

    def _words_in_window(self) -> Steps[bytes]:
        """Both words as it loads them; one of all ones, which nobody answered, once again."""
        found: dict[int, int] = {}
        for at in WORDS_ON_DEVICE:
            found[at] = yield from self._window.load(MEMORY_BAR, at, _WORD_BYTES)
        for at, word in found.items():
            if word == _NO_ANSWER:
                found[at] = yield from self._window.load(MEMORY_BAR, at, _WORD_BYTES)
        return b"".join([word.to_bytes(_WORD_BYTES, "little") for word in found.values()])

    def _poll_for_all(self, number: int) -> Steps[None]:
        """Have all of the device's memory sent, and note the deposit in it."""
        at = self.buffer(LARGE, bounces=self.bounces)
        yield from self._gpu.run_polled(GpuCommand(GpuOpcode.COPY_OUT, 0, _ON_DEVICE, at, LARGE_BYTES))
        large = self._inner(LARGE)
        yield from self._area.copy_from_device(at, large, CONTENT_BYTES)
        found = yield from self._read(large, CONTENT_BYTES)
        yield from _done(Write(self._note_gpa(number) + _PLACES[3], found))

    def _copy(self, opcode: GpuOpcode, on_device: int, in_buffer: int, length: int) -> Steps[None]:
        if opcode is GpuOpcode.COPY_IN:
            source, destination = self.buffer(OUT, bounces=self.bounces) + in_buffer, on_device
        else:
            source, destination = on_device, self.buffer(IN, bounces=self.bounces) + in_buffer
        yield from self._gpu.run(GpuCommand(opcode, 0, source, destination, length))

    def _read(self, gpa: int, length: int) -> Steps[bytes]:
        (found,) = yield (Read(gpa, length),)
        if not isinstance(found, bytes):
            raise BounceFault(found)
        return found

    # Seals.

    def _sealed(self, octets: bytes, what: str) -> bytes:
        if not self.ways.seals:
            return octets
        # One key seals each content once or again, and never another under the same nonce.
        return AESGCM(self._key).encrypt(self._nonce(what), octets, what.encode())

    def _opened(self, found: bytes, what: str) -> bytes:
        if not self.ways.seals:
            return found[:CONTENT_BYTES]
        try:
            return AESGCM(self._key).decrypt(self._nonce(what), found[: CONTENT_BYTES + 16], what.encode())
        except InvalidTag:
            raise _Forged from None

    @property
    def _key(self) -> bytes:
        return self._content("key")[:32]

    def _nonce(self, what: str) -> bytes:
        return self._content(f"nonce of {what}")[:_NONCE_BYTES]


def _words_of(octets: bytes, at: int) -> list[tuple[int, int, int]]:
    """Stores of a word each, from an offset on."""
    return [
        (at + done, int.from_bytes(octets[done : done + _WORD_BYTES], "little"), _WORD_BYTES)
        for done in range(0, len(octets), _WORD_BYTES)
    ]


class _Forged(Exception):
    """A seal is broken."""


_PLACES = (0, CONTENT_BYTES, 2 * CONTENT_BYTES, 3 * CONTENT_BYTES)
"""In the notes of a round: what was sent back, what was kept, the words, what was polled for."""


def _done(*batch: Write) -> Generator[tuple[Write, ...], tuple[object, ...], None]:
    answers = yield batch
    if faulted(answers):  # type: ignore[arg-type]
        raise BounceFault(answers[0])  # type: ignore[arg-type]


_Step = Callable[[Depositor, Registers], Block]
_STEPS: Mapping[int, _Step] = {
    OPEN_RIP: Depositor._open,  # noqa: SLF001 - of this file
    ATTACH_RIP: Depositor._attach,  # noqa: SLF001
    ROUND_RIP: Depositor._round,  # noqa: SLF001
    DETACH_RIP: Depositor._detach,  # noqa: SLF001
    AWAKE_RIP: Depositor._awake,  # noqa: SLF001
}


def _ending(program: Depositor, step: _Step) -> Callable[[Registers], Block]:
    return lambda registers: with_devices(_judging(step(program.at(registers.r11), registers)))


def _judging(block: Block) -> Block:
    try:
        return (yield from block)
    except (DeviceUntrusted, TdiRefused, MessageRefused, GhcbUntrusted):
        return NOT_TRUSTED
    except _Forged:
        return FORGED
