"""A GPU that works straight in its guest's private memory, and what its host can do about it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace

import pytest
from iommu_boards import Driver, do, events
from rmp_laboratory import GUEST_SPA, Laboratory, page_of
from trusted_cards import (
    ALLOWED,
    CANARY,
    CARDS,
    COPY_IN,
    COPY_OUT,
    DATA,
    FENCE,
    GPU,
    MMIO_GPA,
    PAGES,
    RING,
    STREAM,
    attach,
    bar,
    filled,
    running,
    store,
    submit,
    trusted_io,
    work,
)

from node import operations as op
from node.device_table import ENTRY_BYTES
from node.iommu_commands import invalidate_device
from node.iommu_driver import DEVICE_TABLE
from node.iommu_events import EventCode
from node.physical_slots import PhysicalSlots
from node.platform import Platform, Protection
from node.rmp_faults import RmpCode
from psp.system_bus import PAGE_BYTES, RmpEntry
from tio.card import CardFault
from tio.dma_port import DmaFault
from tio.gpu import GpuRegister, GpuStatus
from tio.ide import IdeTlp, Packet, StreamChecks, StreamState, Tlp, Way, memory_write
from tio.ide.link import Tap
from tio.pci import Register
from tio.tdisp import LockFlags, Tampering, TdiState


def watched(lab: Laboratory) -> list[tuple[Way, Packet]]:
    """What passes on the link from now on."""
    seen: list[tuple[Way, Packet]] = []

    def look(way: Way, packet: Packet) -> list[Packet]:
        seen.append((way, packet))
        return [packet]

    filled(lab).link.tap = look
    return seen


def test_a_gpu_works_in_private_memory_and_neither_host_nor_link_learns_what() -> None:
    lab = running()
    seen, host_saw = watched(lab), list[bytes]()
    lab.overheard = lambda who, answer: host_saw.append(answer) if who == "host" and isinstance(answer, bytes) else None
    assert work(lab)
    lab.host(op.HostRead(GUEST_SPA, 1 << 16), op.HostRead(0, 2 << 20))
    assert lab.board.exit_work == []
    assert events(lab.board) == []
    assert seen
    assert all(isinstance(packet, IdeTlp) for _, packet in seen)
    for octets in (*host_saw, b"".join([packet.payload for _, packet in seen])):
        assert CANARY[:16] not in octets


def test_it_finds_what_is_in_the_caches_and_leaves_nothing_old_there() -> None:
    lab = running(Platform(cards=CARDS, caches=True))
    assert work(lab)
    assert work(lab)


def test_without_a_lock_the_canary_is_on_the_link_and_in_shared_memory() -> None:
    """The positive control: the same card in the clear."""
    lab = running()
    slot, bus = filled(lab), trusted_io(lab)
    slot.card.tdi.stop()
    bus.unbind(GPU.requester)
    spa = bar(lab)
    lab.host(op.RmpUpdate(spa, PAGE_BYTES, RmpEntry()))
    for gpa in (RING, FENCE, DATA):
        assert lab.host(op.RmpUpdate(GUEST_SPA + gpa, PAGE_BYTES, RmpEntry())) == (0,)
    for port in (slot.root_port.port, slot.card.port):
        port.associations.clear()
    seen = watched(lab)
    lab.guest("one", op.Write(DATA, CANARY, private=False), op.Write(RING, COPY_IN.pack(), private=False))
    for register, value, length in (
        (GpuRegister.RING_BASE, RING, 8), (GpuRegister.FENCE_BASE, FENCE, 8), (GpuRegister.RING_ENTRIES, 16, 4),
        (GpuRegister.DOORBELL, 1, 4),
    ):  # fmt: skip
        assert lab.guest("one", op.MmioStore(MMIO_GPA + register, value, length)) == (None,)
    assert lab.guest("one", op.Read(FENCE, 8, private=False)) == (struct.pack("<II", 1, GpuStatus.DONE),)
    assert all(isinstance(packet, Tlp) for _, packet in seen)
    assert CANARY[:64] in b"".join([packet.payload for _, packet in seen])
    assert lab.host(op.HostRead(GUEST_SPA + DATA, 90)) == (CANARY,)


@pytest.mark.parametrize("knocked_out", [False, True])
def test_no_guest_validates_registers_by_itself_nor_takes_that_back(knocked_out: bool) -> None:
    off = frozenset({Protection.MMIO_VALIDATION} if knocked_out else ())
    lab = running(Platform(cards=CARDS, disabled=off))
    rescind = op.PValidate(MMIO_GPA, PAGE_BYTES, large=False, validate=False)
    code = 0 if knocked_out else RmpCode.FAIL_INPUT
    assert lab.guest("one", rescind) == (op.PValidateResult(code, False),)
    assert lab.board.bus.rmp_entry(bar(lab)).validated is not knocked_out
    for entry in (RmpEntry(), page_of(MMIO_GPA)):
        assert lab.host(op.RmpUpdate(bar(lab), PAGE_BYTES, entry)) == (0,)
    assert lab.guest("one", replace(rescind, validate=True)) == (op.PValidateResult(code, False),)
    assert lab.board.bus.rmp_entry(bar(lab)).validated is knocked_out
    assert work(lab) is knocked_out


# What the host may do, and what becomes of it.


@pytest.mark.parametrize("one", [op.MmioRead, op.MmioWrite])
def test_the_host_reaches_no_register_of_a_gpu_that_runs(one: type) -> None:
    lab = running()
    at = bar(lab) + GpuRegister.RING_BASE
    submit(lab)
    (answer,) = lab.host(one(at) if one is op.MmioRead else one(at, 0))
    if one is op.MmioRead:
        assert answer == (1 << 64) - 1
    else:
        assert isinstance(answer, op.Fault)
        assert answer.kind is op.FaultKind.RMP_FAULT
    # Nor with the page's entry taken away, which the guest then finds.
    assert lab.host(op.RmpUpdate(at // PAGE_BYTES * PAGE_BYTES, PAGE_BYTES, RmpEntry())) == (0,)
    lab.host(op.MmioWrite(at, 0))
    assert lab.host(op.MmioRead(at)) == ((1 << 64) - 1,)
    (found,) = lab.guest("one", store(GpuRegister.DOORBELL, 1))
    assert isinstance(found, op.Fault)
    assert found.kind is op.FaultKind.RMP_FAULT


@pytest.mark.parametrize(
    "changed", ["unmapped", "entry of the device", "page taken", "page of another", "not readable"]
)
def test_whatever_the_host_changes_under_dma_fences_the_guest_and_nothing_is_lost_unseen(changed: str) -> None:
    lab = running()
    assert work(lab)
    spa, board = GUEST_SPA + DATA, lab.board
    if changed in ("page taken", "page of another"):
        entry = RmpEntry() if changed == "page taken" else page_of(DATA, asid=2)
        assert lab.host(op.RmpUpdate(spa, PAGE_BYTES, entry)) == (0,)
    elif changed == "not readable":
        attach(lab, PAGES, again=1, read=False)
    elif changed == "unmapped":
        attach(lab, PAGES[:2], again=1)
    else:
        poke_device_entry(lab)
    events(board)
    before = board.dram.read(spa, 1024)
    submit(lab, COPY_IN, COPY_OUT)
    assert board.dram.read(spa, 1024) == before
    assert trusted_io(lab).fence_status(1) == 0b1101
    assert {one.code for one in events(board)} <= {EventCode.RMP_PAGE_FAULT, EventCode.IO_PAGE_FAULT}
    # From now on the guest's loads read ones, and it does not come back by itself.
    assert lab.guest("one", op.MmioLoad(MMIO_GPA + GpuRegister.STATUS, private=True)) == (0xFFFF_FFFF,)
    assert not trusted_io(lab).fence_clear(1)


def poke_device_entry(lab: Laboratory) -> None:
    """Clear V of the card's device table entry in memory, and have the IOMMU look again."""
    at = DEVICE_TABLE + GPU.requester * ENTRY_BYTES
    (entry,) = lab.host(op.HostRead(at, 8))
    assert isinstance(entry, bytes)
    lab.host(op.HostWrite(at, (int.from_bytes(entry, "little") & ~1).to_bytes(8, "little")))
    do(lab.board, Driver().command(invalidate_device(GPU.requester)))


@pytest.mark.parametrize(
    ("entry", "passes"),
    [
        (ALLOWED, True), (replace(ALLOWED, valid=False), False), (replace(ALLOWED, read=False), False),
        (replace(ALLOWED, vmpl=1), False), (replace(ALLOWED, vtom_enabled=True, vtom=0), False),
        (replace(ALLOWED, vtom_enabled=True, vtom=1), True),
    ],
)  # fmt: skip
def test_the_guest_s_own_entry_says_what_its_gpu_may_do(entry: object, passes: bool) -> None:
    lab = running()
    trusted_io(lab).write_entry(GPU.requester, entry)  # type: ignore[arg-type]
    assert work(lab) is passes


def test_after_unbind_nothing_of_the_gpu_s_arrives() -> None:
    lab = running()
    assert work(lab)
    trusted_io(lab).unbind(GPU.requester)
    before = lab.board.dram.read(GUEST_SPA, 1 << 16)
    lab.guest("one", store(GpuRegister.DOORBELL, 4))
    assert lab.board.dram.read(GUEST_SPA, 1 << 16) == before
    assert {one.code for one in events(lab.board)} == {EventCode.INVALID_DEVICE_REQUEST}


@pytest.mark.parametrize(
    ("act", "why"),
    [
        (op.ConfigWrite(GPU.requester, Register.COMMAND, 0, 2), Tampering.MEMORY_SPACE),
        (op.ConfigWrite(GPU.requester, 0x10, 1 << 20), Tampering.BAR),
        (op.ConfigWrite(GPU.requester, Register.DEVICE_CONTROL, 1 << 15, 2), Tampering.FUNCTION_RESET),
    ],
)
def test_what_the_host_changes_after_the_lock_ends_the_trust(act: op.HypervisorOperation, why: Tampering) -> None:
    """Rows 74a and 80b: the TDI goes to ERROR, and its registers answer nobody."""
    lab = running()
    assert work(lab)
    lab.host(act)
    tdi = filled(lab).card.tdi
    assert (tdi.state, tdi.why) == (TdiState.ERROR, why)
    assert lab.guest("one", op.MmioLoad(MMIO_GPA + GpuRegister.STATUS, private=True)) == (0xFFFF_FFFF,)
    assert not work(lab)


# The link.


def altered() -> Tap:
    """Turn the lowest bit of every payload that goes down."""

    def tap(way: Way, packet: Packet) -> list[Packet]:
        if way is Way.DOWN and isinstance(packet, IdeTlp) and packet.payload:
            return [replace(packet, payload=bytes([packet.payload[0] ^ 1]) + packet.payload[1:])]
        return [packet]

    return tap


def repeated() -> Tap:
    """Have the first that goes down come once more before the third."""
    first: list[Packet] = []

    def tap(way: Way, packet: Packet) -> list[Packet]:
        if way is Way.DOWN:
            first.append(packet)
        return [first[0], packet] if way is Way.DOWN and len(first) == 3 else [packet]

    return tap


@pytest.mark.parametrize(
    ("tap", "wanted", "missing"),
    [(altered, 0x5001, Protection.IDE_MAC), (repeated, 0x4000, Protection.IDE_PACKET_NUMBER)],
)
def test_what_is_altered_or_repeated_on_the_link_gets_through_only_without_what_stops_it(
    tap: Callable[[], Tap], wanted: int, missing: Protection
) -> None:
    """Row 76, and the knock-outs: each flips its own and no other. The guest sets its ring to 0x4000, then 0x5000."""
    for off in (None, Protection.IDE_MAC, Protection.IDE_PACKET_NUMBER, Protection.SECURE_DEVICE_ENTRY):
        lab = running(Platform(cards=CARDS, disabled=frozenset() if off is None else frozenset({off})))
        slot = filled(lab)
        slot.link.tap = tap()
        lab.guest("one", store(GpuRegister.RING_BASE, 0x4000, 8), store(GpuRegister.RING_BASE, 0x5000, 8))
        lab.guest("one", op.MmioLoad(MMIO_GPA + GpuRegister.STATUS, private=True))
        ring = slot.device.load(0, GpuRegister.RING_BASE, 8)
        assert (ring == wanted) is (off is missing), off
        if off in (None, Protection.SECURE_DEVICE_ENTRY):
            assert slot.card.port.streams[STREAM].state is StreamState.INSECURE


def test_without_secure_entries_a_gpu_that_was_unbound_still_reaches_its_guest() -> None:
    """DMA after unbind: what the secure device table alone stops."""
    for off, arrives in ((None, False), (Protection.SECURE_DEVICE_ENTRY, True), (Protection.IDE_MAC, False)):
        lab = running(Platform(cards=CARDS, disabled=frozenset() if off is None else frozenset({off})))
        assert work(lab)
        trusted_io(lab).unbind(GPU.requester)
        assert work(lab) is arrives, off


def test_a_platform_hands_its_settings_to_both_ends_of_every_link() -> None:
    lab = running(Platform(cards=CARDS, disabled=frozenset({Protection.IDE_MAC})))
    for port in (filled(lab).root_port.port, filled(lab).card.port):
        assert port.streams[STREAM].checks == StreamChecks(macs=False)


# The card itself.


@pytest.mark.parametrize(("flags", "state"), [(0, TdiState.RUN), (LockFlags.NO_FW_UPDATE, TdiState.ERROR)])
def test_firmware_that_changes_under_a_lock_ends_the_trust_only_if_the_lock_says_so(
    flags: int, state: TdiState
) -> None:
    """Row 73."""
    lab = running(flags=flags)
    assert lab.host(op.CardUpdate(GPU.port, "1.1", 2)) == (None,)
    assert filled(lab).card.tdi.state is state
    assert work(lab) is (state is TdiState.RUN)
    assert lab.host(op.CardUpdate(31, "1.1", 2)) == (None,)


def test_debug_mode_ends_the_trust() -> None:
    lab = running()
    assert lab.host(op.CardDebug(GPU.port), op.CardDebug(31)) == (None, None)
    tdi = filled(lab).card.tdi
    assert (tdi.state, tdi.why) == (TdiState.ERROR, Tampering.DEBUG_MODE)
    assert not work(lab)


@pytest.mark.parametrize("fault", [CardFault.INTERNAL, CardFault.SILENT])
def test_a_card_that_breaks_serves_its_guest_no_more(fault: CardFault) -> None:
    lab = running()
    assert lab.board.root_complex is not None
    PhysicalSlots(lab.board.root_complex, lab.board.slots).fault(GPU.port, fault)
    assert not work(lab)
    silent = fault is CardFault.SILENT
    assert (lab.host(op.ConfigRead(GPU.requester, 0)) == (0xFFFF_FFFF,)) is silent


@pytest.mark.parametrize("act", ["swap", "pull"])
def test_another_card_in_the_slot_has_no_keys_and_gets_nothing(act: str) -> None:
    """Row 72: whoever stands there now is asked nothing and answers nothing that would be believed."""
    lab = running()
    assert work(lab)
    assert lab.board.root_complex is not None
    hands = PhysicalSlots(lab.board.root_complex, lab.board.slots)
    before = filled(lab).card
    if act == "swap":
        hands.swap(GPU.port, replace(GPU, serial="9999"))
        assert filled(lab).card.identity != before.identity
    else:
        hands.pull(GPU.port)
        assert lab.host(op.ConfigRead(GPU.requester, 0)) == (0xFFFF_FFFF,)
    memory = lab.board.dram.read(GUEST_SPA, 1 << 16)
    assert lab.guest("one", op.MmioLoad(MMIO_GPA + GpuRegister.STATUS, private=True)) == (0xFFFF_FFFF,)
    lab.guest("one", store(GpuRegister.DOORBELL, 4))
    assert lab.board.dram.read(GUEST_SPA, 1 << 16) == memory


def test_what_somebody_injects_in_the_clear_reaches_no_memory_of_the_guest() -> None:
    lab = running()
    assert lab.board.root_complex is not None
    hands = PhysicalSlots(lab.board.root_complex, lab.board.slots)
    before = lab.board.dram.read(GUEST_SPA + DATA, 64)
    hands.inject(GPU.port, Way.UP, [memory_write(GPU.requester, DATA, b"x" * 64)])
    lab.guest("one", op.MmioLoad(MMIO_GPA + GpuRegister.STATUS, private=True))
    assert lab.board.dram.read(GUEST_SPA + DATA, 64) == before
    # To a stream for trusted packets it does not belong: it is a request like that of any other device.
    assert filled(lab).root_port.port.streams[STREAM].state is StreamState.SECURE
    assert [one.code for one in events(lab.board)] == [EventCode.RMP_PAGE_FAULT]
    with pytest.raises(KeyError):
        hands.inject(30, Way.UP, [])


def test_a_stream_of_another_port_is_not_a_device_s_though_it_has_the_same_id() -> None:
    """Each port numbers its own streams: who stands there names whatever requester it likes."""
    lab = running()
    memory = lab.board.card_memory
    mine, others = memory.behind(GPU.port), memory.behind(CARDS[1].port)
    there = mine.read(GPU.requester, DATA, 16, tee=True, stream_id=STREAM)
    with pytest.raises(DmaFault):
        others.read(GPU.requester, DATA, 16, tee=True, stream_id=STREAM)
    others.write(GPU.requester, DATA, b"evil" * 4, tee=True, stream_id=STREAM)
    assert [one.code for one in events(lab.board)] == [EventCode.INVALID_DEVICE_REQUEST] * 2
    # Nobody is fenced for what somebody else asked.
    assert mine.read(GPU.requester, DATA, 16, tee=True, stream_id=STREAM) == there
