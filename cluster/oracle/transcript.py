"""What the board answered to each actor, in order, and what trusted parties said besides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from node.actor import Actor
from node.operations import (
    Answer,
    BlockRead,
    BlockWrite,
    NestedMap,
    NestedUnmap,
    PageStateChange,
    PSmash,
    PspAnswer,
    RmpAdjust,
    RmpReadResult,
    RmpUpdate,
    Runs,
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


@dataclass(slots=True)
class Transcript:
    """Everything in the order in which it was answered; ``observe`` is the tap for a board."""

    entries: list[Entry | Complaint | Absence] = field(default_factory=list)

    def observe(self, actor: Actor, batch: tuple[object, ...], answers: tuple[Answer, ...]) -> None:
        """Note a batch: a board's ``observer``."""
        self.entries += [Entry(actor, one, answer) for one, answer in zip(batch, answers, strict=True)]

    def complain(self, victim: str, reason: str) -> None:
        """Note that a party which the victim trusts noticed something now."""
        self.entries.append(Complaint(victim, reason))

    def absent(self, interface: str) -> None:
        """Note that an interface was looked for and is not there."""
        self.entries.append(Absence(interface))


CODED = frozenset({BlockRead, BlockWrite, NestedMap, NestedUnmap, PageStateChange, PSmash, RmpAdjust, RmpUpdate, VmRun})
"""Operations that answer with a code, 0 for success; another's number is a value that it read."""


def octets_of(entry: Entry) -> bytes:
    """All bytes that an answer tells; none in a fault or a code."""
    read = _OCTETS.get(type(entry.answer))
    if read is None or (isinstance(entry.answer, int) and type(entry.operation) in CODED):
        return b""
    return read(entry.answer)


_OCTETS: Mapping[type, Callable[..., bytes]] = {
    bytes: lambda answer: answer,
    int: lambda answer: answer.to_bytes(8, "little", signed=answer < 0),
    PspAnswer: lambda answer: answer.buffer,
    RmpReadResult: lambda answer: answer.state,
    Runs: lambda answer: b"".join(data for _, data in answer.runs),
}
