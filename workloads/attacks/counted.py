"""The victim of a rollback: a vault that numbers its rounds, and keeps the last number on its disk.

It may be on its guard: then it asks a counter outside of its host before each round. It tells the number that comes
next, under a key that it shares with the counter, with a random number of the processor's. The counter has seen each
number once: a VM that was put back, or was given an old disk, is behind it, ends itself and uses nothing of what it
remembers. Whoever carries question and answer can hold them back; an old answer names another random number. A VM that
is copied between answer and use would not notice before it asks again.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from node.guest_disk import GuestDisk
from node.operations import Read, ReadRandom, Shutdown, Sleep, Write
from node.program import Block, Demand, Placement, ProgramSpec, Registers
from node.swiotlb import BounceFault
from workloads.attacks.vault import INBOX, OPEN_RIP, OUTBOX, ROUND_RIP, Vault
from workloads.block_outcome import FAULTED, faulted

ASK_RIP, HEAR_RIP = 0x40_2000, 0x40_3000
BEHIND = Shutdown(9)
"""The counter is ahead of it, or what came is no answer of the counter's."""
NOTICED: Mapping[int, str] = {BEHIND.code: "the counter outside does not say that it is the newest"}
ASKS = "asks"
"""A parameter: whether it is on its guard."""
_NUMBER, _FROM_DISK = 12, 13
"""Pages of its private range that no ``Vault`` uses."""
_QUESTION = struct.Struct("<QQ")
"""Random number, and rounds."""
_MAC_BYTES = 32
QUESTION_BYTES, ANSWER_BYTES = _QUESTION.size + _MAC_BYTES, 1 + _MAC_BYTES
_WAIT = Sleep(1_000_000)
_NEWEST, _BEHIND = b"\1", b"\0"


@dataclass(frozen=True, slots=True)
class CounterKey:
    """What a VM and its counter share, and what they say under it."""

    key: bytes

    def question(self, number: int, rounds: int) -> bytes:
        """What the VM says."""
        said = _QUESTION.pack(number, rounds)
        return said + hmac.digest(self.key, b"question" + said, "sha256")

    def rounds(self, question: bytes) -> int | None:
        """What somebody says who has the key; None for anybody else."""
        said, mac = question[: _QUESTION.size], question[_QUESTION.size :]
        if not hmac.compare_digest(mac, hmac.digest(self.key, b"question" + said, "sha256")):
            return None
        _, rounds = _QUESTION.unpack(said)
        return int(rounds)

    def answer(self, question: bytes, *, newest: bool) -> bytes:
        """What the counter says to a question."""
        word = _NEWEST if newest else _BEHIND
        return word + hmac.digest(self.key, b"answer" + word + question, "sha256")


@dataclass(frozen=True, slots=True)
class Counted:
    """R12 holds the number of the round that comes, R11 the random number of the last question."""

    placement: Placement
    asks: bool = False

    entry = OPEN_RIP
    demands: tuple[Demand, ...] = ()

    @classmethod
    def build(cls, spec: ProgramSpec, placement: Placement) -> Counted:
        """The program of a specification."""
        return cls(placement, bool(dict(spec.parameters).get(ASKS, 0)))

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        """Blocks by RIP."""
        return {OPEN_RIP: self._open, ASK_RIP: self._ask, HEAR_RIP: self._hear}

    @property
    def key(self) -> CounterKey:
        """Its owner has given it, and the counter."""
        who = f"{self.placement.seed} {self.placement.vm} counter"
        return CounterKey(hashlib.sha256(who.encode()).digest())

    @property
    def number(self) -> int:
        """GPA of the number of its last round, 8 bytes."""
        return self._vault.private(_NUMBER)

    @property
    def _vault(self) -> Vault:
        return Vault(self.placement)

    @property
    def _disk(self) -> GuestDisk:
        return GuestDisk.of(self.placement)

    def _open(self, registers: Registers) -> Block:
        ending = yield from self._vault.blocks[OPEN_RIP](registers)
        registers.rip = ASK_RIP
        return ending

    def _ask(self, registers: Registers) -> Block:
        try:
            status = yield from self._disk.read(0, 1, self._vault.private(_FROM_DISK))
        except BounceFault:
            return FAULTED
        (last,) = yield (Read(self._vault.private(_FROM_DISK), 8),)
        if status or not isinstance(last, bytes):
            return FAULTED
        registers.r12 = int.from_bytes(last, "little") + 1
        if not self.asks:
            return (yield from self._act(registers))
        (random,) = yield (ReadRandom(),)
        assert isinstance(random, int)
        registers.r11 = random
        question = self.key.question(random, registers.r12)
        answers = yield (Write(self._vault.shared(OUTBOX), question, private=False),)
        registers.rip = HEAR_RIP
        return FAULTED if faulted(answers) else _WAIT

    def _hear(self, registers: Registers) -> Block:
        (said,) = yield (Read(self._vault.shared(INBOX), ANSWER_BYTES, private=False),)
        key = self.key
        if said != key.answer(key.question(registers.r11, registers.r12), newest=True):
            return BEHIND
        return (yield from self._act(registers))

    def _act(self, registers: Registers) -> Block:
        """One round, under its number."""
        answers = yield (Write(self.number, registers.r12.to_bytes(8, "little")),)
        if faulted(answers):
            return FAULTED
        try:
            status = yield from self._disk.write(0, 1, self.number)
        except BounceFault:
            return FAULTED
        if status:
            return FAULTED
        ending = yield from self._vault.blocks[ROUND_RIP](registers)
        registers.rip = ASK_RIP
        return ending
