"""Whatever a host does to a card that works for a guest, in any order: no exception, and nothing of it leaks."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from rmp_laboratory import GUEST_SPA, Laboratory, give, page_of
from trusted_cards import (
    CANARY,
    CARDS,
    DATA,
    FENCE,
    GPU,
    MMIO_GPA,
    PAGES,
    RING,
    attach,
    bar,
    enable_streams,
    ends,
    filled,
    firmware_runs,
    give_keys,
    guest_accepts,
    running,
    set_up_streams,
    store,
    trusted_io,
    work,
)

from node import operations as op
from node.card_slot import MmioWindow
from node.physical_slots import PhysicalSlots
from psp.system_bus import PAGE_BYTES, RmpEntry
from tio.gpu import GpuRegister
from tio.ide import IdeTlp, Packet, Tlp, Way
from tio.pci import Register
from tio.tdisp import TdiState

ROUNDS, ACTS = 12, 20
OTHERS = 0x9000
"""A page of guest two's, which no device of guest one may touch."""
KEPT = b"guest two keeps this here" * 4


class Host:
    """One that does things at random. ``heard`` is all that it was answered, and what passed on its link."""

    def __init__(self, lab: Laboratory, seed: int) -> None:
        self.heard = bytearray()
        self._lab = lab
        self._random = Random(seed)
        self._window: MmioWindow = filled(lab).window
        self._bar = bar(lab)
        self._bars = [lab.host(op.ConfigRead(GPU.requester, 0x10 + 4 * at))[0] for at in range(6)]
        self._again = 0
        filled(lab).link.tap = self._look

    def _look(self, _: Way, packet: Packet) -> list[Packet]:
        self.heard += packet.payload
        if self._random.random() < 0.02 and isinstance(packet, IdeTlp):
            return self._random.choice(([], [packet, packet], [replace(packet, payload=packet.payload[::-1])]))
        return [packet]

    def act(self) -> None:
        """Do one thing."""
        acts = (
            self._configure, self._configure, self._configure, self._store, self._load, self._assign, self._map,
            self._translate, self._talk, self._hands, self._set_up,
        )  # fmt: skip
        self._random.choice(acts)()

    def begin_anew(self) -> None:
        """Reset the card, set everything up as it was, and have the firmware bring it to its guest again."""
        lab, there = self._lab, filled(self._lab)
        there.link.tap = None
        trusted_io(lab).unbind(GPU.requester)
        assert trusted_io(lab).fence_clear(1)
        for function, block in ends(lab):
            lab.host(*[op.ConfigWrite(function, block + at, 0) for at in (4, 4)])
        lab.host(op.ConfigWrite(GPU.root_port, 0x3E, 1 << 6, 2), op.RmpUpdate(self._bar, PAGE_BYTES, RmpEntry()))
        lab.host(*[op.ConfigWrite(GPU.requester, 0x10 + 4 * at, word) for at, word in enumerate(self._bars)])
        lab.host(op.ConfigWrite(GPU.requester, Register.COMMAND, 6, 2))
        set_up_streams(lab)
        give_keys(there)
        enable_streams(lab)
        firmware_runs(lab)
        self._again = self._again % 8 + 1
        attach(lab, PAGES, again=self._again)
        guest_accepts(lab)
        there.link.tap = self._look

    def _do(self, *batch: op.HypervisorOperation) -> None:
        for answer in self._lab.host(*batch):
            if isinstance(answer, bytes):
                self.heard += answer
            elif isinstance(answer, int):
                self.heard += answer.to_bytes(8, "little")

    def _number(self) -> int:
        return self._random.choice((0, 1, 6, 1 << 31, 0xFFFF_FFFF, 0xC100_0001, self._random.getrandbits(32)))

    def _configure(self) -> None:
        requester, block = self._random.choice(ends(self._lab))
        offset = self._random.choice((4, 0x10, 0x14, 0x3C, 0x48, 0x82, block + 4, block + 12, 0x100, 0x110)) & ~3
        if self._random.random() < 0.5:
            offset = self._random.randrange(0, 0x300, 4)
        self._do(op.ConfigWrite(requester, offset, self._number()), op.ConfigRead(requester, offset))

    def _place(self) -> int:
        if self._random.random() < 0.7:
            return self._bar + self._random.choice((0, 4, 8, 0x10, 0x14, 0x20, PAGE_BYTES))
        return self._window.base + self._random.randrange(0, self._window.length, 8)

    def _store(self) -> None:
        self._do(op.MmioWrite(self._place(), self._number(), 4))

    def _load(self) -> None:
        self._do(op.MmioRead(self._place() & ~7), op.HostRead(GUEST_SPA + self._random.choice((RING, DATA)), 512))

    def _assign(self) -> None:
        entry = self._random.choice((RmpEntry(), page_of(MMIO_GPA), page_of(MMIO_GPA, asid=2)))
        self._do(op.RmpUpdate(self._bar, PAGE_BYTES, entry))

    def _map(self) -> None:
        spa = self._random.choice((self._bar, self._bar + PAGE_BYTES, GUEST_SPA + OTHERS, GUEST_SPA + DATA))
        self._do(op.NestedMap("one", MMIO_GPA, spa, PAGE_BYTES, large=False))

    def _translate(self) -> None:
        self._again = self._again % 8 + 1
        target = self._random.choice((DATA, OTHERS, FENCE))
        pages = [*PAGES[:2], (DATA, GUEST_SPA + target)]
        attach(self._lab, pages, again=self._again)

    def _talk(self) -> None:
        card = filled(self._lab).card
        at = card.space.extended_at(card.mailbox)
        words = self._random.randbytes(4 * self._random.randrange(1, 20))
        self._do(
            op.ConfigOut(GPU.requester, at + 0x10, words), op.ConfigWrite(GPU.requester, at + 8, 1 << 31),
            op.ConfigIn(GPU.requester, at + 0x14, 8), op.ConfigWrite(GPU.requester, at + 8, 1),
        )  # fmt: skip

    def _hands(self) -> None:
        assert self._lab.board.root_complex is not None
        hands = PhysicalSlots(self._lab.board.root_complex, self._lab.board.slots)
        way = self._random.choice((Way.UP, Way.DOWN))
        head = self._random.choice((b"\x60\x00\x00\x01", b"\x20\x00\x00\x01", b"\x4a\x00\x00\x01"))
        rest = self._random.choice((GPU.requester.to_bytes(2, "big"), self._random.randbytes(2)))
        at = self._random.choice((DATA, OTHERS, self._bar)).to_bytes(8, "big")
        hands.inject(GPU.port, way, [Tlp(head + rest + b"\x00\x0f" + at, self._random.choice((b"", b"evil")))])

    def _set_up(self) -> None:
        if self._random.random() < 0.3:
            set_up_streams(self._lab)
            enable_streams(self._lab)


@pytest.mark.parametrize("seed", range(4))
def test_no_sequence_of_a_host_s_acts_breaks_anything_or_leaks(seed: int) -> None:
    lab = running()
    give(lab, page_of(OTHERS, asid=2), offset=OTHERS)
    lab.guest("two", op.Write(OTHERS, KEPT))
    assert work(lab)
    host, worked = Host(lab, seed), 0
    for _ in range(ROUNDS):
        for _ in range(ACTS):
            host.act()
            lab.guest("one", op.MmioLoad(MMIO_GPA + GpuRegister.STATUS, private=True), store(GpuRegister.DOORBELL, 2))
            worked += work(lab)
            if filled(lab).card.tdi.state is not TdiState.RUN:
                break
        host.begin_anew()
    filled(lab).link.tap = None
    assert work(lab)
    assert worked
    assert CANARY[:16] not in host.heard
    assert CANARY[:16] not in lab.board.dram.read(0, lab.board.dram.size_bytes // 2)
    assert lab.guest("two", op.Read(OTHERS, len(KEPT))) == (KEPT,)
    assert CARDS[0] is GPU
