"""Frames between guests of one host: real queues and doorbells, copies where there must be some, and hostile cards."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_guests import COSTS, GENERATIONS, MIB, SECOND, look, make_host, run, script

from node import operations as op
from node.generation import CAPABILITIES, Generation
from node.guest import GuestSpec
from node.guest_memory_map import NIC_GPA
from node.guest_nic import BUFFER_BYTES, CARD_BYTES, ENTRIES, GuestNic, NicUntrusted
from node.mac_address import mac_of
from node.mechanism import Mechanism
from node.operations import Await, Shutdown, Sleep, Write
from node.program import ProgramSpec
from node.swiotlb import BounceArea, BounceFault
from tio.virtio_format import DeviceStatus, Register

ROUNDS = 40
"""More than the queues have entries."""
MOST_NS = SECOND


def nic_of(place):
    return GuestNic(BounceArea.of(place), place.vcpu, place.base_gpa)


def frame(to, own, text):
    return to + own + b"\x88\xb5" + text


def payload(number, round_number):
    return struct.pack("<II", number, round_number) * (1 + 37 * round_number % 150)


def asker(place, registers):
    """Ask the other guest ``ROUNDS`` times, three frames at once, and compare what it answers."""
    nic = nic_of(place)
    if not registers.r12:
        yield from nic.area.open()
        mac = yield from nic.start()
        if mac != mac_of("asker"):
            return Shutdown(3)
        registers.r12 = 1
        return Sleep(1_000_000)  # until the other one is there
    if registers.rbx == 0:
        texts = [payload(number, registers.r13) for number in range(3)]
        yield from nic.send([frame(mac_of("server"), mac_of("asker"), text) for text in texts])
        registers.rbx = 1
        return Await(MOST_NS)
    frames = yield from nic.receive(ENTRIES)
    for one in frames:
        number = (registers.rbx - 1) % 3
        if one != frame(mac_of("asker"), mac_of("server"), payload(number, registers.r13)[::-1]):
            return Shutdown(1)
        registers.rbx += 1
    if registers.rbx == 4:
        registers.rbx = 0
        registers.r13 += 1
        return Shutdown(0) if registers.r13 == ROUNDS else None
    return Await(MOST_NS)


def server(place, registers):
    """Send every frame back, turned round."""
    nic = nic_of(place)
    if not registers.r12:
        yield from nic.area.open()
        yield from nic.start()
        registers.r12 = 1
    frames = yield from nic.receive(3)
    if frames:
        yield from nic.send([frame(one[6:12], one[:6], one[14:][::-1]) for one in frames])
        registers.r13 += len(frames)
    return Await(10**15)


def start(host, name, generation, program, memory_bytes=128 * MIB):
    spec = GuestSpec(name, generation, 1, memory_bytes, ProgramSpec(program), 11, network=True)
    host.launch(spec, lambda _: None, running=True)
    return host.guests[name]


def pair(generation):
    host = make_host({"asker": script(asker), "server": script(server)})
    return host, start(host, "server", generation, "server"), start(host, "asker", generation, "asker")


@pytest.mark.parametrize("generation", GENERATIONS)
def test_guests_of_one_host_ask_and_answer_in_real_frames(generation):
    host, one, other = pair(generation)
    run(host, 10 * SECOND)
    assert (other.state, other.shutdown_code) == ("stopped", 0)
    host.close(10 * SECOND)
    frames = 3 * ROUNDS
    size = sum(14 + len(payload(number, done)) for number in range(3) for done in range(ROUNDS))
    for books in (one.network, other.network):
        assert (books.frames_sent, books.bytes_sent, books.frames_received, books.bytes_received) == (
            frames, size, frames, size,
        )  # fmt: skip
        assert (books.refused, books.missed, books.malformed, books.errors) == (0, 0, 0, 0)
    # Out: a frame. In: a frame with its header of 12 bytes.
    bounced = 2 * size + 12 * frames if CAPABILITIES[generation].key_per_vm else 0
    assert one.bytes_bounced == other.bytes_bounced == bounced
    assert (other.faults > ROUNDS) is CAPABILITIES[generation].encrypted_registers  # a #VC for each doorbell


def test_a_frame_takes_the_time_that_the_table_says():
    host, one, _ = pair(Generation.PLAIN)
    run(host, 10 * SECOND)
    least = round(2 * COSTS["net.crossing_ns"])
    assert one.network.delay_ns >= one.network.frames_received * least
    most_bytes = 3 * (14 + max(len(payload(0, done)) for done in range(ROUNDS)))
    assert least < one.network.longest_ns <= least + most_bytes * 1e9 / COSTS["net.bytes_per_s"] + 1


def test_a_waiting_guest_costs_an_exit_for_each_time_it_is_called_and_nothing_between():
    spent = {}
    for generation in (Generation.PLAIN, Generation.SEV_SNP):
        host, one, other = pair(generation)
        run(host, 10 * SECOND)
        assert other.state == "stopped"
        spent[generation] = one.lost_ns[Mechanism.VMGEXIT]
        assert one.operation_ns < SECOND
    assert spent[Generation.PLAIN] == 0
    assert spent[Generation.SEV_SNP] > ROUNDS * (COSTS["core.vmgexit_ns"] - COSTS["core.exit_ns"])


def test_nobody_sends_in_anothers_name_and_to_nobody():
    def liar(place, registers):
        nic = nic_of(place)
        yield from nic.area.open()
        yield from nic.start()
        yield from nic.send([
            frame(mac_of("server"), mac_of("asker"), b"I am the asker"), frame(mac_of("nobody"), mac_of("liar"), b"?"),
            frame(mac_of("server"), mac_of("liar"), b"I am"),
        ])  # fmt: skip
        return Sleep(10**18)

    host = make_host({"liar": script(liar), "server": script(server)})
    one, bad = start(host, "server", Generation.PLAIN, "server"), start(host, "liar", Generation.PLAIN, "liar")
    run(host, SECOND)
    assert (bad.network.refused, bad.network.frames_sent, one.network.frames_received) == (2, 1, 1)


def test_frames_for_a_guest_that_stands_still_or_is_gone_are_lost_and_counted():
    host, one, _ = pair(Generation.PLAIN)
    host.pause("server")
    run(host, SECOND)
    assert one.network.missed > 0
    before = host.network.lost
    host.network.arrive(mac_of("nobody"), (bytes(60),), 0)
    host.destroy("server")
    host.network.arrive(mac_of("server"), (bytes(60),), 0)
    run(host, 2 * SECOND)
    assert host.network.lost == before + 2
    assert "server" not in host.board.nics


def test_a_vm_without_a_card_finds_ones_and_reaches_no_others():
    def finder(place, registers):
        registers.rbx, registers.rcx = yield (op.MmioLoad(NIC_GPA), op.MmioLoad(NIC_GPA + 4096))
        return Sleep(10**18)

    host = make_host({"finder": script(finder), "server": script(server)})
    start(host, "server", Generation.PLAIN, "server")
    spec = GuestSpec("vm", Generation.PLAIN, 1, 64 * MIB, ProgramSpec("finder"), 11)
    host.launch(spec, lambda _: None, running=True)
    run(host, SECOND)
    registers = host.guests["vm"].vcpus[0].registers
    assert (registers.rbx, registers.rcx) == (0xFFFF_FFFF, 0xFFFF_FFFF)


@pytest.mark.parametrize(
    "one",
    [
        op.MmioLoad(-1), op.MmioLoad(NIC_GPA, 3), op.MmioLoad(0x1000), op.MmioLoad(1 << 60), op.MmioStore(NIC_GPA, -1),
        op.MmioStore(NIC_GPA, 1 << 32), op.MmioStore(0x1000, 0), op.MmioLoad(NIC_GPA, 1 << 70),
    ],
)  # fmt: skip
def test_a_bad_access_to_registers_is_a_fault(one):
    host = make_host()
    start(host, "vm", Generation.PLAIN, "rest")
    (answer,) = host.board.execute_guest(host.board.vmcb("vm", 0), (one,))
    assert answer == op.Fault(op.FaultKind.GENERAL_PROTECTION, 0)


def test_a_card_pointed_at_private_memory_is_stopped_by_the_rmp_and_gets_ciphertext_without_one():
    secret = bytes(range(1, 101)) * 4

    def careless(place, registers):
        """Set the card up by its driver, then show it private memory."""
        nic = nic_of(place)
        yield from nic.area.open()
        yield from nic.start()
        hidden, rings = place.base_gpa + MIB, place.shared_gpa
        yield (Write(hidden, frame(mac_of("server"), mac_of("vm"), secret)), Write(hidden + 4096, secret))
        registers.r12 = 1
        # One frame to send from there, all receive buffers there, and a doorbell.
        yield (
            Write(rings + 0x800, struct.pack("<QIHHQIHH", rings + 0xE00, 12, 1, 1, hidden, 414, 0, 0), private=False),
            Write(rings + 0xA00, struct.pack("<HHH", 0, 1, 0), private=False),
            *(Write(rings + 16 * n, struct.pack("<QIHH", hidden + 4096, 2048, 2, 0), private=False) for n in range(16)),
        )
        yield (op.MmioStore(NIC_GPA + Register.QUEUE_NOTIFY, 1),)
        return Sleep(10**18)

    for generation, stopped in ((Generation.SEV, False), (Generation.SEV_SNP, True)):
        host = make_host({"vm": script(careless)})
        guest = start(host, "vm", generation, "vm")
        sent = []
        host.network.uplink = lambda _, frames, sent=sent: sent.extend(frames)
        run(host, SECOND)
        assert guest.vcpus[0].registers.r12 == 1
        assert not any(secret[:16] in one for one in sent)  # what the card read there was ciphertext
        host.network.arrive(mac_of("vm"), (bytes(60),), 0)
        run(host, 2 * SECOND)
        host.close(2 * SECOND)
        place = guest.spec.memory.placement("vm", 0, 11)
        held = look(host, guest, place.base_gpa + MIB + 4096, len(secret))
        assert (guest.network.errors, held == secret) == ((1, True) if stopped else (0, False))


# A driver against a card that lies.

CARD, BOOK, PRIVATE, POOL = 0x20_0000, 0x10_0000, 0x40_0000, 0x20_0000


class LyingCard:
    """Memory, and registers that read as a good card's; ``answers`` says what they read instead."""

    def __init__(self, answers=()):
        self.memory = bytearray(8 * MIB)
        self.registers = {
            Register.MAGIC_VALUE: 0x74726976, Register.VERSION: 2, Register.DEVICE_ID: 1,
            Register.STATUS: int(DeviceStatus.FEATURES_OK), **dict(answers),
        }  # fmt: skip
        self.area = BounceArea(POOL, 1 << 20, BOOK)
        self.nic = GuestNic(self.area, 0, PRIVATE)
        self.on_bell = lambda: None
        self.operations = 0

    def run(self, steps):
        answers = None
        while True:
            try:
                batch = steps.send(answers)
            except StopIteration as end:
                return end.value
            answers = tuple([self._answer(one) for one in batch])
            self.operations += len(batch)

    def _answer(self, one):
        match one:
            case op.Read():
                return bytes(self.memory[one.gpa : one.gpa + one.length])
            case op.Write():
                self.memory[one.gpa : one.gpa + len(one.data)] = one.data
            case op.Copy():
                data = bytes(self.memory[one.source : one.source + one.length])
                self.memory[one.target : one.target + one.length] = data
                return data
            case op.MmioLoad():
                return self.registers.get(one.gpa - NIC_GPA, 0)
            case op.MmioStore():
                if one.gpa - NIC_GPA == Register.QUEUE_NOTIFY:
                    self.on_bell()
            case op.VmgExit():
                return op.Fault(op.FaultKind.UNDEFINED_OPCODE, 0)
        return None

    def started(self):
        self.run(self.area.open())
        self.run(self.nic.start())
        return self

    def put(self, at, fmt, *values):
        struct.pack_into(fmt, self.memory, CARD + at, *values)


RECEIVED, SENT = 0x400, 0xC00
"""The used rings."""


@pytest.mark.parametrize("register", [Register.MAGIC_VALUE, Register.VERSION, Register.DEVICE_ID, Register.STATUS])
def test_a_driver_takes_no_card_that_is_another(register):
    card = LyingCard([(register, 0)])
    card.run(card.area.open())
    with pytest.raises(NicUntrusted):
        card.run(card.nic.start())


GOOD_HEADER = bytes(10) + b"\1\0"


def lie(index, number=0, length=100, header=GOOD_HEADER):
    def put(card):
        card.put(RECEIVED + 2, "<H", index)
        card.put(RECEIVED + 4, "<II", number, length)
        card.put(0x1000 + BUFFER_BYTES * (number % ENTRIES), "<12s", header)

    return put


@pytest.mark.parametrize(
    ("told", "what"),
    [
        (lie(ENTRIES + 1), "used index"), (lie(0x8000), "used index"), (lie(1, ENTRIES), "used buffer"),
        (lie(1, 1 << 31), "used buffer"), (lie(1, 0, 25), "used length"), (lie(1, 0, 1527), "used length"),
        (lie(1, 0, 1 << 31), "used length"), (lie(1, header=bytes(12)), "header"),
    ],
)  # fmt: skip
def test_a_driver_believes_no_lie_about_frames_that_came(told, what):
    card = LyingCard().started()
    told(card)
    before = card.operations
    with pytest.raises(NicUntrusted, match=rf"^{what}"):
        card.run(card.nic.receive(ENTRIES))
    assert card.operations - before <= 8


def test_a_buffer_may_come_back_in_any_order_but_not_twice():
    card = LyingCard().started()
    lie(1, 7)(card)
    assert card.run(card.nic.receive(4)) == [bytes(88)]
    card.put(RECEIVED + 2, "<H", ENTRIES + 2)
    with pytest.raises(NicUntrusted, match=r"^used index"):
        card.run(card.nic.receive(4))


@pytest.mark.parametrize(("index", "head"), [(0, 0), (2, 0), (1, 1), (1, 1 << 20)])
def test_a_driver_believes_no_lie_about_a_frame_that_it_sent_and_lends_nothing_for_ever(index, head):
    card = LyingCard().started()
    lent = bytes(card.memory[BOOK : BOOK + 64])

    def bell():
        card.put(SENT + 2, "<H", index)
        card.put(SENT + 4, "<II", head, 0)

    card.on_bell = bell
    with pytest.raises(NicUntrusted, match=r"^used"):
        card.run(card.nic.send([bytes(60)]))
    assert bytes(card.memory[BOOK : BOOK + 64]) == lent
    card.on_bell = lambda: (card.put(SENT + 2, "<H", 1), card.put(SENT + 4, "<II", 0, 0))
    card.run(card.nic.send([bytes(60)]))


def test_what_is_in_the_rings_is_never_believed_only_the_books_are():
    card = LyingCard().started()
    card.memory[CARD : CARD + 0x400] = b"\xff" * 0x400  # descriptors and available ring, spoiled by the host
    lie(1, 3)(card)
    assert card.run(card.nic.receive(1)) == [bytes(88)]


def test_too_many_or_too_long_frames_are_the_callers_slip():
    card = LyingCard().started()
    for frames in ([], [bytes(60)] * 9, [bytes(1515)]):
        with pytest.raises(ValueError, match=r"^frames"):
            card.run(card.nic.send(frames))


def test_a_fault_in_its_memory_is_told():
    card = LyingCard().started()
    card.memory = bytearray(PRIVATE)  # the books are gone
    steps = card.nic.receive(1)
    steps.send(None)
    with pytest.raises(BounceFault):
        steps.send((op.Fault(op.FaultKind.NESTED_PAGE_FAULT, 0),))
    assert CARD_BYTES < 256 << 10


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=132, max_size=132), st.integers(0, 20))
def test_a_driver_makes_frames_or_a_refusal_of_any_ring(ring, index):
    card = LyingCard().started()
    card.memory[CARD + RECEIVED : CARD + RECEIVED + len(ring)] = ring
    card.put(RECEIVED + 2, "<H", index)
    before = card.operations
    try:
        frames = card.run(card.nic.receive(ENTRIES))
    except NicUntrusted:
        frames = []
    assert all(14 <= len(one) <= 1514 for one in frames)
    assert card.operations - before <= 2 + 6 * ENTRIES
