"""A guest of a laboratory whose GPU runs trusted: what host, firmware and guest have done for that, step by step.

The TSM's part is done in its place: keys and TDISP messages go to the card's security module, what the guest asked for
to the board's trusted I/O.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Generator
from dataclasses import replace
from typing import TypeVar

from iommu_boards import DOMAIN, do
from rmp_laboratory import GUEST_SPA, Laboratory, give, laboratory, page_of

from node import operations as op
from node.card_slot import CardSlot
from node.filled_slots import FilledSlot
from node.iommu_driver import IommuDriver
from node.platform import Platform
from psp.system_bus import PAGE_BYTES
from psp.tsm.secure_device_entry import SecureDeviceEntry
from psp.tsm.trusted_io import TdiBinding, TrustedIo
from tio.card import STREAM_PORT
from tio.device_identity import CardKind
from tio.device_security_module import ProtocolId
from tio.gpu import GpuCommand, GpuOpcode, GpuRegister, GpuStatus
from tio.ide import Direction, SubStream
from tio.ide import key_programmer as keys
from tio.ide.capability import BlockRegister, StreamControl, address_words, control_word, requester_words
from tio.ide.keys import FIRST_INVOCATION
from tio.pci import Command, Register
from tio.steps import carry
from tio.tdisp import InterfaceId, LockRequest, requester

T = TypeVar("T")
GPU = CardSlot(2, CardKind.GPU, memory_bytes=1 << 16)
CARDS = (GPU, CardSlot(5, CardKind.GPU, serial="0002", memory_bytes=1 << 16))
STREAM, SESSION, DEVICE_ID = 1, 7, 0x20
MMIO_GPA = 0x1_0000_0000
RING, FENCE, DATA = 0x1000, 0x2000, 0x3000
"""Guest-physical pages of guest one."""
CANARY = b"a tenant's canary that its host may not see: " * 2
COPY_IN, COPY_OUT = GpuCommand(GpuOpcode.COPY_IN, 1, DATA, 0, 90), GpuCommand(GpuOpcode.COPY_OUT, 2, 0, DATA + 512, 90)
DONE = struct.pack("<II", 2, GpuStatus.DONE)
PAGES = [(gpa, GUEST_SPA + gpa) for gpa in (RING, FENCE, DATA)]
TABLES = 40 << 20
ALLOWED = SecureDeviceEntry(valid=True, read=True, write=True)


def trusted_io(lab: Laboratory) -> TrustedIo:
    found = lab.board.bus.trusted_io
    assert found is not None
    return found


def filled(lab: Laboratory, slot: CardSlot = GPU) -> FilledSlot:
    assert lab.board.root_complex is not None
    lab.board.root_complex.port(slot.port)
    return lab.board.slots.by_port[slot.port]


def bar(lab: Laboratory, index: int = 0, slot: CardSlot = GPU) -> int:
    """Where a BAR is, as its host reads it."""
    low, high = lab.host(*[op.ConfigRead(slot.requester, 0x10 + 4 * index + at) for at in (0, 4)])
    assert isinstance(low, int)
    assert isinstance(high, int)
    return low & ~0xF | high << 32


def ask(slot: FilledSlot, protocol: ProtocolId, message: bytes) -> bytes:
    answer = slot.card.dsm.answer(SESSION, bytes((protocol,)) + message)
    assert answer is not None
    return answer[1:]


def ide_km(slot: FilledSlot, steps: Generator[bytes, bytes, T]) -> T:
    return carry(steps, lambda message: ask(slot, ProtocolId.IDE_KM, message))


def tdisp(slot: FilledSlot, steps: Generator[bytes, bytes, T]) -> T:
    return carry(steps, lambda message: ask(slot, ProtocolId.TDISP, message))


def attach(lab: Laboratory, pages: list[tuple[int, int]], slot: CardSlot = GPU, *, again: int = 0, **how: bool) -> None:
    """The host maps addresses for a card, in tables of their own each time."""
    frames = iter(range(TABLES + (again << 20), TABLES + (again + 1 << 20), PAGE_BYTES))
    do(lab.board, IommuDriver(lambda: next(frames)).attach(slot.requester, DOMAIN + again, pages, **how))


def host_sets_up(lab: Laboratory, slot: CardSlot = GPU) -> None:
    """The host's part before the TSM's: bus mastering, a domain whose addresses are the guest's, MMIO, streams."""
    there = filled(lab, slot)
    master = Command.MEMORY_SPACE | Command.BUS_MASTER
    lab.host(op.ConfigWrite(slot.requester, Register.COMMAND, master, 2))
    attach(lab, PAGES, slot)
    set_up_streams(lab, slot)
    give_keys(there)
    enable_streams(lab, slot)


def ends(lab: Laboratory, slot: CardSlot = GPU) -> list[tuple[int, int]]:
    """Both ends of a link: requester id, and where the first block of the IDE capability is."""
    there = filled(lab, slot)
    port, card = there.root_port, there.card
    return [
        (slot.root_port, port.space.extended_at(port.ide) + port.ide.block_at(0)),
        (slot.requester, card.space.extended_at(card.ide) + card.ide.block_at(0)),
    ]


def set_up_streams(lab: Laboratory, slot: CardSlot = GPU) -> None:
    """A host's stores: a stream for everything between the port and its card, not enabled yet."""
    window = filled(lab, slot).window
    for function, at in ends(lab, slot):
        stores = {
            BlockRegister.CONTROL: control_word(STREAM, tee_limited=True, aggregation=8, default=True),
        }
        stores[BlockRegister.RID_1], stores[BlockRegister.RID_2] = requester_words(slot.requester, slot.requester)
        if function == slot.root_port:
            words = address_words(window.base, window.end - 1)
            stores |= {BlockRegister.ADDRESS_1 + 4 * at: word for at, word in enumerate(words)}
        lab.host(*[op.ConfigWrite(function, at + register, value) for register, value in stores.items()])


def enable_streams(lab: Laboratory, slot: CardSlot = GPU) -> None:
    """Enable it at both ends."""
    for function, at in ends(lab, slot):
        (control,) = lab.host(op.ConfigRead(function, at + BlockRegister.CONTROL))
        assert isinstance(control, int)
        lab.host(op.ConfigWrite(function, at + BlockRegister.CONTROL, control | StreamControl.ENABLE))


def give_keys(slot: FilledSlot, key_set: int = 0) -> None:
    """Both ends of the link get the keys of a set, and use them."""
    some = {
        (way, sub): hashlib.sha256(f"{key_set} {way} {sub}".encode()).digest() for way in Direction for sub in SubStream
    }
    root = slot.root_port
    ide_km(slot, keys.program_keys(STREAM_PORT, STREAM, key_set, some))
    for (way, sub), key in some.items():
        root.program(STREAM, key_set, Direction(1 - way), sub, key, FIRST_INVOCATION)
    ide_km(slot, keys.start_keys(STREAM_PORT, STREAM, key_set))
    for way, sub in some:
        root.go(STREAM, key_set, way, sub)


def firmware_runs(
    lab: Laboratory, slot: CardSlot = GPU, asid: int = 1, entry: SecureDeviceEntry = ALLOWED, flags: int = 0
) -> None:
    """The TSM locks, binds and starts the TDI, and takes the guest's entry."""
    there, bus, interface = filled(lab, slot), trusted_io(lab), InterfaceId(slot.requester)
    nonce = tdisp(there, requester.lock_interface(interface, LockRequest(flags, STREAM)))
    bus.bind(slot.requester, TdiBinding(asid, DEVICE_ID, frozenset({STREAM}), slot.port))
    tdisp(there, requester.start_interface(interface, nonce))
    bus.start(slot.requester)
    bus.write_entry(slot.requester, entry)


def guest_accepts(lab: Laboratory, slot: CardSlot = GPU, vm: str = "one", asid: int = 1) -> None:
    """The first page of the GPU's registers is mapped, assigned and validated."""
    spa = bar(lab, 0, slot)
    assert lab.host(op.NestedMap(vm, MMIO_GPA, spa, PAGE_BYTES, large=False)) == (None,)
    assert lab.host(op.RmpUpdate(spa, PAGE_BYTES, page_of(MMIO_GPA, asid=asid))) == (0,)
    lab.board.bus.rmp_set(spa, replace(lab.board.bus.rmp_entry(spa), validated=True))


def running(platform: Platform | None = None, flags: int = 0) -> Laboratory:
    """Guest one owns the pages of its driver, and its GPU runs."""
    lab = laboratory("Turin", platform or Platform(cards=CARDS))
    for gpa in (RING, FENCE, DATA):
        give(lab, page_of(gpa), offset=gpa)
    host_sets_up(lab)
    firmware_runs(lab, flags=flags)
    guest_accepts(lab)
    return lab


def store(register: GpuRegister, value: int, length: int = 4) -> op.MmioStore:
    """The guest's own store to a register of its GPU."""
    return op.MmioStore(MMIO_GPA + register, value, length, private=True)


def submit(lab: Laboratory, *commands: GpuCommand, tail: int = 0) -> op.Answer:
    """The guest rings for commands in its private ring: its fence's bytes afterwards."""
    ring = b"".join([one.pack() for one in commands])
    lab.guest("one", op.Write(RING + 64 * tail, ring), op.Write(FENCE, bytes(8)))
    if not tail:
        lab.guest(
            "one", store(GpuRegister.RING_BASE, RING, 8), store(GpuRegister.FENCE_BASE, FENCE, 8),
            store(GpuRegister.RING_ENTRIES, 16),
        )  # fmt: skip
    lab.guest("one", store(GpuRegister.DOORBELL, tail + len(commands)))
    return lab.guest("one", op.Read(FENCE, 8))[0]


def work(lab: Laboratory) -> bool:
    """Whether the GPU brings the canary in and out again."""
    lab.guest("one", op.Write(DATA, CANARY), op.Write(DATA + 512, bytes(90)))
    fence = submit(lab, COPY_IN, COPY_OUT)
    return (fence, *lab.guest("one", op.Read(DATA + 512, 90))) == (DONE, CANARY)
