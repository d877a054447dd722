"""Plays one machine of a trace back: it is as busy as the trace says, and keeps data meanwhile.

The trace is handed over as a text of runs (``pack_runs``): how long, and at
what share of the vCPU in whole hundredths. A run is played in steps; each step
loads and compares a few slots of the working set, stores them anew, and
retires as many instructions as the share gives, no faster than the share
allows. At 0 the vCPU halts. After the last run the VM powers off.

Instructions are work: a host too slow or too full for them plays on for longer
instead of leaving some out.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from node.operations import Compute, Fault, Read, Shutdown, Sleep, Write
from node.program import Block, Demand, Placement, ProgramSpec, Registers, Scalar
from workloads.block_outcome import FAULTED, WRONG_ANSWER, faulted, loaded
from workloads.keyed_content import KeyedContent
from workloads.parameters import WorkloadParameterError, check_placement, parameters_from, text, whole
from workloads.trace_vm import NS_PER_MS, TraceVm

FULL = 100
"""Share of a vCPU in its smallest steps."""
LONGEST_TEXT = 64 << 10
"""Room for about 12,000 runs: a month of five-minute samples."""
_LONGEST_RUN_MS = 1 << 42
FILL_RIP, PLAY_RIP = 0x40_0000, 0x40_1000
_FILL_BYTES = 256 << 10

_DEMAND = Demand(
    "play",
    instructions_per_cycle=1.5,
    llc_misses_per_kilo_instruction=1.5,
    tlb_misses_per_kilo_instruction=1.0,
    memory_level_parallelism=2.0,
    exits_per_mega_instruction=0.5,
    written_bytes_per_kilo_instruction=4.0,
)
"""An ordinary server. The laboratory's choice: a trace says nothing about it."""

INSTRUCTIONS_PER_KILO_CYCLE = 1066
"""What ``_DEMAND`` retires in a thousand busy cycles of a plain VM at 2.6 GHz and 103 ns to idle memory: a share of
100 then keeps such a vCPU just busy. The laboratory's choice, as ``_DEMAND``."""

_AN_HOUR = (5, 10, 20, 60, 0, 35, 15, 80, 5, 0, 25, 10)
"""Shares of the five minutes of an hour, for whom no trace is given."""

Run = tuple[int, int]
"""Milliseconds, and hundredths of a vCPU."""


def pack_runs(runs: Iterable[Run]) -> str:
    """Runs as text: for each a byte for the share and the duration in LEB128, all in base64; equal neighbours merge."""
    merged: list[Run] = []
    for duration, level in runs:
        if not (0 <= level <= FULL and duration >= 0):
            raise ValueError(f"expected a share from 0 to {FULL} and no negative duration, got {level} for {duration}")
        if merged and merged[-1][1] == level:
            merged[-1] = merged[-1][0] + duration, level
        elif duration:
            merged.append((duration, level))
    packed = bytearray()
    for duration, level in merged:
        packed.append(level)
        left = duration
        while left > 0x7F:
            packed.append(0x80 | left & 0x7F)
            left >>= 7
        packed.append(left)
    return base64.b64encode(packed).decode()


@lru_cache(maxsize=64)
def unpack_runs(packed: str) -> tuple[Run, ...]:
    """The runs of a text. A pure function, cached because a program is rebuilt often."""
    try:
        data = base64.b64decode(packed, validate=True)
    except (binascii.Error, ValueError):
        raise _no_runs("base64") from None
    runs = []
    at = 0
    while at < len(data):
        level, at = data[at], at + 1
        duration = shift = 0
        while True:
            if at == len(data) or 1 << shift >= _LONGEST_RUN_MS:
                raise _no_runs("whole durations")
            octet, at = data[at], at + 1
            duration |= (octet & 0x7F) << shift
            shift += 7
            if octet < 0x80:
                break
        if level > FULL or not 0 < duration < _LONGEST_RUN_MS:
            raise _no_runs(f"shares of at most {FULL} and durations above 0 ms")
        runs.append((duration, level))
    if not runs:
        raise _no_runs("at least one run")
    return tuple(runs)


def _no_runs(what: str) -> WorkloadParameterError:
    return WorkloadParameterError("fragments", f"runs as workloads.trace_player.pack_runs makes them ({what})")


def player_parameters(vm: TraceVm, **others: Scalar) -> tuple[tuple[str, Scalar], ...]:
    """What the player of each vCPU of a trace's machine is told; ``others`` are further parameters."""
    levels = np.rint(vm.fragments.usage_mhz * (FULL / vm.capacity_mhz)).astype(np.int64)
    # Boost above the nominal clock is nothing a vCPU of this laboratory can do.
    runs = list(zip(vm.fragments.duration_ms.tolist(), np.minimum(levels, FULL).tolist(), strict=True))
    rest = -(-vm.duration_ns // NS_PER_MS) - vm.fragments.total_ms
    packed = pack_runs([*runs, (max(0, rest), 0)])
    if len(packed) > LONGEST_TEXT:
        raise WorkloadParameterError("fragments", f"a part of the trace with less than about {LONGEST_TEXT // 6} runs")
    mhz = min(max(1, round(vm.capacity_mhz / vm.vcpus)), 100_000)
    return tuple(sorted({**others, "fragments": packed, "mhz": mhz}.items()))


@dataclass(frozen=True, slots=True)
class PlayerParameters:
    """Parameters of ``trace-player``; the defaults fit 4 MiB and are the laboratory's choice.

    Without ``fragments``, an hour of ups and downs is played.
    """

    fragments: str = text(pack_runs((300_000, level) for level in _AN_HOUR), LONGEST_TEXT)
    """Runs as ``pack_runs`` makes them."""
    mhz: int = whole(2600, 1, 100_000)
    """Clock of the traced CPU."""
    step_ms: int = whole(10_000, 1, 86_400_000)
    """Longest time between two touches of memory."""
    working_set_bytes: int = whole(512 << 10, 4096, 1 << 34, 4096)
    slot_bytes: int = whole(2048, 64, 64 << 10, 64)
    touches_per_step: int = whole(24, 0, 1024)
    """Slots loaded, compared and stored in each step."""
    written_set_bytes: int = whole(0, 0, 1 << 40, 4096)
    """Memory that each vCPU writes all over, anywhere, with bytes nobody looks at; 0 for the working set."""
    written_bytes_per_s: int = whole(0, 0, 10**12)
    """How much of that it writes with all of its vCPU; 0 for what an ordinary server does."""

    def __post_init__(self) -> None:
        unpack_runs(self.fragments)
        if self.working_set_bytes % self.slot_bytes:
            raise WorkloadParameterError("working_set_bytes", f"a multiple of slot_bytes ({self.slot_bytes})")
        if self.touches_per_step > self.slots:
            raise WorkloadParameterError("touches_per_step", f"at most the working set's {self.slots} slots")

    @property
    def slots(self) -> int:
        """Slots of the working set."""
        return self.working_set_bytes // self.slot_bytes

    @property
    def private_bytes(self) -> int:
        """The working set."""
        return self.working_set_bytes

    @property
    def shared_bytes(self) -> int:
        """None."""
        return 0

    @property
    def disk_bytes(self) -> int:
        """None."""
        return 0


@dataclass(frozen=True, slots=True)
class TracePlayer:
    """The program. R12 counts slots filled, then runs played; R11 the steps of this run; R13 all steps."""

    parameters: PlayerParameters
    placement: Placement
    content: KeyedContent
    runs: tuple[Run, ...]

    @classmethod
    def build(cls, spec: ProgramSpec, placement: Placement) -> TracePlayer:
        """Rebuild the program whole."""
        parameters = parameters_from(PlayerParameters, spec.parameters)
        check_placement(parameters, placement)
        return cls(parameters, placement, KeyedContent.of(placement, spec.name), unpack_runs(parameters.fragments))

    @property
    def entry(self) -> int:
        """RIP of the first block."""
        return FILL_RIP

    @property
    def demands(self) -> tuple[Demand, ...]:
        """One for each share from 1 to 100: the same work, no faster than the share allows."""
        mine = self.parameters
        own, written = mine.working_set_bytes, mine.written_set_bytes
        read = own if mine.touches_per_step else 0
        return _capped_demands(mine.mhz, written or own, mine.written_bytes_per_s, read, bool(written))

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        """Blocks by RIP."""
        return {FILL_RIP: self._fill, PLAY_RIP: self._play}

    def _fill(self, registers: Registers) -> Block:
        """Store some slots for the first time."""
        first = registers.r12
        stop = min(self.parameters.slots, first + max(1, _FILL_BYTES // self.parameters.slot_bytes))
        data = b"".join([self._slot(slot, 0) for slot in range(first, stop)])
        answers = yield (Write(self._gpa(first), data),)
        if faulted(answers):
            return FAULTED
        registers.r12 = stop
        if stop == self.parameters.slots:
            registers.r12 = 0
            registers.rip = PLAY_RIP
        return None

    def _play(self, registers: Registers) -> Block:
        """One step of one run."""
        parameters = self.parameters
        if registers.r12 == len(self.runs):
            yield ()
            return Shutdown(0)
        duration, level = self.runs[registers.r12]
        if not level:
            yield ()
            registers.r12 += 1
            return Sleep(duration * NS_PER_MS)
        # The working set is gone through again and again; the number of the touch says how often.
        times, size = parameters.touches_per_step, parameters.slot_bytes
        slots = parameters.working_set_bytes // size
        base_gpa, octets = self.placement.base_gpa, self.content.octets
        first = registers.r13 * times
        if times == 1:
            # The machines of large fleets, one slot at a time: the same without lists of one.
            stored, slot = divmod(first, slots)
            gpa = base_gpa + slot * size
            (answer,) = yield (_load(gpa, size),)
            if type(answer) is not bytes:
                return FAULTED
            if answer != octets(b"slot", slot, stored, size):
                return WRONG_ANSWER
            (answer,) = yield (Write(gpa, octets(b"slot", slot, stored + 1, size)),)
            if type(answer) is Fault:
                return FAULTED
        else:
            touches = [divmod(touch, slots) for touch in range(first, first + times)]
            answers = yield tuple([_load(base_gpa + slot * size, size) for _, slot in touches])
            data = loaded(answers)
            if data is None:
                return FAULTED
            if data != [octets(b"slot", slot, stored, size) for stored, slot in touches]:
                return WRONG_ANSWER
            answers = yield tuple(
                [Write(base_gpa + slot * size, octets(b"slot", slot, stored + 1, size)) for stored, slot in touches]
            )
            if faulted(answers):
                return FAULTED
        step = min(parameters.step_ms, duration - registers.r11 * parameters.step_ms)
        registers.r11 += 1
        registers.r13 += 1
        if registers.r11 * parameters.step_ms >= duration:
            registers.r11 = 0
            registers.r12 += 1
        # MHz times milliseconds are thousands of cycles; the share is in hundredths.
        return _phase(level - 1, max(1, level * parameters.mhz * step * INSTRUCTIONS_PER_KILO_CYCLE // FULL))

    def _slot(self, slot: int, stored: int) -> bytes:
        """Contents of a slot that was stored anew so often."""
        return self.content.octets(b"slot", slot, stored, self.parameters.slot_bytes)

    def _gpa(self, slot: int) -> int:
        return self.placement.base_gpa + slot * self.parameters.slot_bytes


# Machines of a trace do the same at the same addresses again and again.
_load = lru_cache(maxsize=4096)(Read)
_phase = lru_cache(maxsize=4096)(Compute)


@lru_cache(maxsize=64)
def _capped_demands(
    mhz: int, written_bytes: int, written_per_s: int, read_bytes: int, reads_apart: bool
) -> tuple[Demand, ...]:
    full_per_s = float(mhz * 1000 * INSTRUCTIONS_PER_KILO_CYCLE)
    play = replace(_DEMAND, written_bytes_per_kilo_instruction=1000.0 * written_per_s / full_per_s)
    return tuple(
        replace(
            play if written_per_s else _DEMAND,
            name=f"play {level} %",
            max_instructions_per_s=full_per_s * level / FULL,
            written_set_bytes=written_bytes,
            read_set_bytes=read_bytes,
            reads_apart=reads_apart,
        )
        for level in range(1, FULL + 1)
    )
