"""A hypervisor's calls of firmware that answers in memory, by hand."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from node.operations import Answer, Fault, HostRead, HostWrite, PspAnswer, PspCommand, RmpUpdate
from psp import command_buffers as buffers
from psp.byte_layout import ByteLayout
from psp.commands import SnpCommand
from psp.system_bus import PAGE_BYTES, RmpEntry
from workloads.attacks.target import AttackBatch, Target

_FIRMWARE, _HYPERVISOR = RmpEntry(assigned=True, immutable=True), RmpEntry()

Steps = Generator[AttackBatch, tuple[Answer, ...], None]
Bytes = Generator[AttackBatch, tuple[Answer, ...], bytes]


@dataclass(frozen=True, slots=True)
class FirmwareCall:
    """A frame for commands that write nothing, and one for those that answer in their own buffer."""

    command_page: int
    lent: int

    @classmethod
    def of(cls, target: Target) -> FirmwareCall:
        """With the target's last spare frame."""
        return cls(target.command_page, target.spare[-1])

    def plain(self, command: int, buffer: ByteLayout) -> AttackBatch:
        """One command that writes nothing of the host's."""
        return (PspCommand(command, self.command_page, buffer.pack()),)

    def told(self, command: int, buffer: ByteLayout, out: tuple[int, ...] = ()) -> Bytes:
        """A command that answers in its buffer, and writes to the frames ``out``; nothing if it was refused."""
        data = buffer.pack()
        yield (HostWrite(self.lent, data),)
        lends = yield from self.lend(self.lent, *out)
        (answer,) = yield (PspCommand(command, self.lent),)
        if lends:
            yield from self.take_back(self.lent, *out)
        (back,) = yield (HostRead(self.lent, len(data)),)
        done = isinstance(answer, PspAnswer) and answer.status == 0
        return back if done and isinstance(back, bytes) else b""

    def lend(self, *frames: int) -> Generator[AttackBatch, tuple[Answer, ...], bool]:
        """Under SNP firmware writes to pages of its own alone. Whether there is SNP."""
        answers = yield tuple(RmpUpdate(spa, PAGE_BYTES, _FIRMWARE) for spa in frames)
        return not any(isinstance(one, Fault) for one in answers)

    def take_back(self, *frames: int) -> Steps:
        """What was lent."""
        for spa in frames:
            yield self.plain(SnpCommand.PAGE_RECLAIM, buffers.SnpPageReclaim(spa))
            yield (RmpUpdate(spa, PAGE_BYTES, _HYPERVISOR),)
