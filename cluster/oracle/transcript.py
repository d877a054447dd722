"""What the board answered to each actor, in order, and what trusted parties said besides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from node.actor import Actor
from node.operations import (
    Answer,
    BlockRead,
    BlockWrite,
    CpuidResult,
    Fault,
    NestedMap,
    NestedUnmap,
    PageStateChange,
    PSmash,
    PspAnswer,
    RmpAdjust,
    RmpReadResult,
    RmpUpdate,
    Runs,
    VmKick,
    VmRun,
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One operation and its answer. ``actor`` is who asked, as the board knows it."""

    actor: Actor
    operation: object
    answer: Answer


@dataclass(frozen=True, slots=True)
class Complaint:
    """A party that the victim trusts noticed something: a verifier, a program's own checksum, a protocol's MAC."""

    victim: str
    reason: str


@dataclass(frozen=True, slots=True)
class Absence:
    """The laboratory found that the interface which an attack needs is not there."""

    interface: str


@dataclass(frozen=True, slots=True)
class Guess:
    """What somebody says it has learnt of a victim's decisions, a bit for each from the first on."""

    bits: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Conclusion:
    """Bytes of a victim's that somebody says it has worked out of what it was answered."""

    octets: bytes


@dataclass(frozen=True, slots=True)
class Stall:
    """The laboratory waited for a victim longer than any of its rounds takes, and it did not come to rest."""

    victim: str


@dataclass(slots=True)
class Transcript:
    """Everything in the order in which it was answered; ``observe`` is the tap for a board."""

    entries: list[Entry | Complaint | Absence | Guess | Conclusion | Stall] = field(default_factory=list)

    def observe(self, actor: Actor, batch: tuple[object, ...], answers: tuple[Answer, ...]) -> None:
        """Note a batch: a board's ``observer``."""
        self.entries += [Entry(actor, one, answer) for one, answer in zip(batch, answers, strict=True)]

    def complain(self, victim: str, reason: str) -> None:
        """Note that a party which the victim trusts noticed something now."""
        self.entries.append(Complaint(victim, reason))

    def guess(self, bits: tuple[int, ...]) -> None:
        """Note what an adversary says it has learnt."""
        self.entries.append(Guess(bits))

    def concluded(self, octets: bytes) -> None:
        """Note what bytes an adversary says it has worked out."""
        self.entries.append(Conclusion(octets))

    def stalled(self, victim: str) -> None:
        """Note that a victim did not go on."""
        self.entries.append(Stall(victim))

    def absent(self, interface: str) -> None:
        """Note that an interface was looked for and is not there."""
        self.entries.append(Absence(interface))


CODED = frozenset({
    BlockRead, BlockWrite, NestedMap, NestedUnmap, PageStateChange, PSmash, RmpAdjust, RmpUpdate, VmKick, VmRun,
})  # fmt: skip
"""Operations that answer with a code, 0 for success; another's number is a value that it read."""


class Channel(StrEnum):
    """What carries bytes in an answer. Each is joined by itself: a fault between two loads does not part them."""

    DATA = "data"
    NUMBER = "number"
    """A register or a time that was read."""
    CPUID = "CPUID"
    FAULT_ADDRESS = "address of a fault"
    FAULT_ERROR = "error of a fault"


def told_by(entry: Entry) -> tuple[tuple[Channel, bytes], ...]:
    """All bytes that an answer tells, also in integers: these little-endian, as wide as their registers."""
    tell = _TOLD.get(type(entry.answer))
    if tell is not None:
        return tell(entry.answer)
    octets = octets_of(entry)
    return ((Channel.NUMBER if isinstance(entry.answer, int) else Channel.DATA, octets),) if octets else ()


def _fault_tells(fault: Fault) -> tuple[tuple[Channel, bytes], ...]:
    # CR2, and EXITINFO2 and EXITINFO1 (APM volume 2, 15.25.6): 8 bytes each.
    return (Channel.FAULT_ADDRESS, _octets(fault.address, 8)), (Channel.FAULT_ERROR, _octets(fault.error, 8))


def _cpuid_tells(found: CpuidResult) -> tuple[tuple[Channel, bytes], ...]:
    return ((Channel.CPUID, b"".join(_octets(one, 4) for one in (found.eax, found.ebx, found.ecx, found.edx))),)


def _octets(number: int, width: int) -> bytes:
    # Cut to its register: an operand that comes back in a fault may be of any size.
    return (number & ((1 << 8 * width) - 1)).to_bytes(width, "little")


_TOLD: Mapping[type, Callable[..., tuple[tuple[Channel, bytes], ...]]] = {
    Fault: _fault_tells,
    CpuidResult: _cpuid_tells,
}


def octets_of(entry: Entry) -> bytes:
    """The bytes that an answer holds as data or as one number; none in a fault or a code."""
    read = _OCTETS.get(type(entry.answer))
    if read is None or (isinstance(entry.answer, int) and type(entry.operation) in CODED):
        return b""
    return read(entry.answer)


_OCTETS: Mapping[type, Callable[..., bytes]] = {
    bytes: lambda answer: answer,
    int: lambda answer: _octets(answer, 8),
    PspAnswer: lambda answer: answer.buffer,
    RmpReadResult: lambda answer: answer.state,
    Runs: lambda answer: b"".join(data for _, data in answer.runs),
}
