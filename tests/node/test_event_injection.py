"""Events that a hypervisor injects by VMRUN: which it may, and when and how the guest takes them."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from rmp_laboratory import laboratory, save_area
from toy_guests import GENERATIONS, SECOND, make_host, run, start

from node import operations as op
from node.board import Board
from node.counter_random import CounterRandom
from node.event_delivery import Delivered, gate
from node.event_injection import Event, EventType, ExceptionVector, exception, virtual_interrupt_field
from node.generation import Generation
from node.guest import GuestState
from node.guest_events import back, frame_at, lay_gates
from node.host_instructions import VMEXIT_INVALID
from node.platform import AS_USUAL, Platform
from node.product import PRODUCTS
from node.program import Registers
from node.vcpu import VcpuState
from node.vmsa import VMSA_FIELDS, SevFeature
from psp.system_bus import PAGE_BYTES

PLAIN, SEV, ES, SNP = GENERATIONS
MIB = 1 << 20
AREA, IDT, STACK = MIB, 0x1_0000, 0x2_1000
MAIN, HANDLER = 0x40_0000, 0x40_8000
IF = 1 << 9
# APM volume 2, table 8-1: the vectors that are exceptions today, #CP, #HV, #VC and #SX among them.
EXCEPTIONS = {0, 1, *range(3, 9), *range(10, 15), *range(16, 20), 21, 28, 29, 30}
REST, ALT = SevFeature.RESTRICTED_INJECTION, SevFeature.ALTERNATE_INJECTION


def injected(vector: int, kind: int, valid: int = 1) -> int:
    return valid << 31 | kind << 8 | vector


@pytest.fixture(scope="module")
def plain_board() -> Board:
    return new_board()


def new_board() -> Board:
    board = Board("board", PRODUCTS["Milan"], 64 * MIB, 100, CounterRandom(1))
    frames, mapped = op.NestedFrames("vm", 32 * MIB, 64 << 10), op.NestedMap("vm", 0, 4 * MIB, 4 * MIB)
    assert board.execute_host((frames, mapped, op.VmcbWrite("vm", 0, 0, "PLAIN", AREA))) == (None,) * 3
    return board


@pytest.mark.parametrize("kind", range(8))
def test_vmrun_takes_an_event_that_there_is(plain_board: Board, kind: int) -> None:
    taken = set()
    for vector in range(256):
        stored = op.VmcbStore("vm", 0, "EVENTINJ", injected(vector, kind))
        store, entered, left = plain_board.execute_host((stored, op.VmRun("vm", 0), op.VmcbLoad("vm", 0, "EVENTINJ")))
        assert (store, entered) in ((None, 0), (None, VMEXIT_INVALID))
        # What VMRUN took is gone from the field; what it refused stands there.
        assert left == (0 if entered == 0 else injected(vector, kind))
        taken |= {vector} if entered == 0 else set()
    # #HV is for guests with restricted injection alone.
    right = {0: set(range(256)), 2: set(range(256)), 3: EXCEPTIONS - {28}, 4: set(range(256))}
    assert taken == right.get(kind, set())
    plain_board.execute_host((op.VmcbStore("vm", 0, "EVENTINJ", 0),))


def test_an_event_that_is_not_valid_is_none(plain_board: Board) -> None:
    stored = op.VmcbStore("vm", 0, "EVENTINJ", injected(2, 3, valid=0))
    assert plain_board.execute_host((stored, op.VmRun("vm", 0))) == (None, 0)
    assert plain_board.events.waiting == {}


@pytest.mark.parametrize("name", ["EVENTINJ", "V_INTR", "ALLOWED_SEV_FEATURES"])
def test_a_field_of_a_control_block_holds_what_fits(plain_board: Board, name: str) -> None:
    answers = plain_board.execute_host(
        (
            op.VmcbStore("vm", 0, name, 1 << 64),
            op.VmcbStore("vm", 0, name, -1),
            op.VmcbStore("vm", 1, name, 0),
            op.VmcbStore("vm", 0, "RAX", 0),
            op.VmcbLoad("nobody", 0, name),
            op.VmKick("nobody", 0),
        )
    )
    protection = op.Fault(op.FaultKind.GENERAL_PROTECTION, 0)
    undefined = op.Fault(op.FaultKind.UNDEFINED_OPCODE, 0)
    assert answers == (protection, protection, undefined, undefined, undefined, VMEXIT_INVALID)
    for value in ((1 << 64) - 1, 0):
        stored = op.VmcbStore("vm", 0, name, value)
        assert plain_board.execute_host((stored, op.VmcbLoad("vm", 0, name))) == (None, value)


def features_of(lab, value: int, **fields: int) -> None:
    """Write the save area of guest one as its launch would have."""
    for name, number in {"SEV_FEATURES": value, **fields}.items():
        at = VMSA_FIELDS[name]
        lab.board.controller.write(save_area("one", 0) + at.offset, number.to_bytes(at.width, "little"), 1)


HV, VC = exception(28).field, exception(29, 0x81).field
INT80 = Event(0x80, EventType.INTERRUPT).field


@pytest.mark.parametrize(
    ("features", "event", "taken"),
    [
        (0, HV, False),
        (0, VC, True),
        (0, INT80, True),
        (REST, HV, True),
        (REST, VC, False),
        (REST, INT80, False),
        (REST, injected(28, 0), False),
        (REST, injected(28, 4), False),
        (REST, 0, True),
        (ALT, VC, False),
        (ALT, INT80, False),
        (ALT, HV, False),
        (ALT, 0, True),
        (REST | ALT, HV, True),
        (REST | ALT, INT80, False),
    ],
)
def test_an_snp_guests_own_features_say_what_may_be_injected(features: int, event: int, taken: bool) -> None:
    lab = laboratory("Milan")
    features_of(lab, features | SevFeature.SNP_ACTIVE)
    stored, entered = lab.host(op.VmcbStore("one", 0, "EVENTINJ", event), op.VmRun("one", 0))
    assert (stored, entered) == (None, 0 if taken else VMEXIT_INVALID)


def test_where_it_does_not_refuse_alternate_injection_ignores_the_hypervisors_event() -> None:
    lab = laboratory("Milan", Platform(alternate_injection_refuses=False))
    features_of(lab, ALT | SevFeature.SNP_ACTIVE)
    assert lab.host(op.VmcbStore("one", 0, "EVENTINJ", INT80), op.VmRun("one", 0)) == (None, 0)
    assert lab.board.events.waiting == {}


def test_with_alternate_injection_the_event_is_the_save_areas() -> None:
    lab = laboratory("Milan")
    features_of(lab, ALT | SevFeature.SNP_ACTIVE, EVENTINJ=INT80)
    assert lab.host(op.VmRun("one", 0)) == (0,)
    assert lab.board.events.waiting == {("one", 0): Event(0x80, EventType.INTERRUPT)}
    assert lab.board.controls.load(lab.board.vmcb("one", 0), "EVENTINJ") == 0
    features_of(lab, ALT | SevFeature.SNP_ACTIVE, EVENTINJ=injected(2, 3))
    assert lab.host(op.VmRun("one", 0)) == (VMEXIT_INVALID,)


def test_vmrun_holds_the_features_against_those_that_the_hypervisor_allows() -> None:
    lab = laboratory("Milan")
    features_of(lab, REST | SevFeature.SNP_ACTIVE)
    for allowed, code in ((0, 0), (1, 0), (1 << 63 | 1, VMEXIT_INVALID), (1 << 63 | 9, 0)):
        assert lab.host(op.VmcbStore("one", 0, "ALLOWED_SEV_FEATURES", allowed), op.VmRun("one", 0)) == (None, code)


def test_a_control_block_that_is_filled_anew_injects_nothing() -> None:
    lab = laboratory("Milan")
    lab.host(op.VmcbStore("one", 0, "EVENTINJ", INT80))
    lab.host(op.VmcbWrite("one", 0, 1, "SEV_SNP", save_area("one", 0)))
    assert lab.host(op.VmcbLoad("one", 0, "EVENTINJ"), op.VmRun("one", 0)) == (0, 0)
    assert lab.board.events.waiting == {}


# Delivery, on a board alone.


def ready(board: Board, *handlers: tuple[int, bytes]) -> Registers:
    vmcb = board.vmcb("vm", 0)
    table = bytearray(PAGE_BYTES)
    for vector, one in handlers:
        table[16 * vector : 16 * vector + 16] = one
    board.execute_guest(vmcb, (op.Write(IDT, bytes(table)), op.LoadIdt(IDT, PAGE_BYTES - 1), op.WriteFlags(IF | 2)))
    registers = Registers(MAIN)
    registers.rsp = STACK
    return registers


def delivered(board: Board, registers: Registers, event: Event) -> Delivered:
    board.execute_host((op.VmcbStore("vm", 0, "EVENTINJ", event.field), op.VmRun("vm", 0)))
    return board.delivery.take(board.vmcb("vm", 0), registers)


def words(board: Board, registers: Registers, count: int) -> list[int]:
    (octets,) = board.execute_guest(board.vmcb("vm", 0), (op.Read(registers.rsp, 8 * count),))
    assert isinstance(octets, bytes)
    return [int.from_bytes(octets[at : at + 8], "little") for at in range(0, 8 * count, 8)]


@pytest.mark.parametrize("trap", [False, True])
@pytest.mark.parametrize("event", [Event(0x80, 0), Event(77, 2), exception(3), Event(0x80, 4), exception(13, 0x18)])
def test_the_handler_finds_the_frame_of_long_mode(plain_board: Board, event: Event, trap: bool) -> None:
    vector = 2 if event.kind == EventType.NMI else event.vector
    registers = ready(plain_board, (vector, gate(HANDLER, trap=trap)))
    registers.rsp = STACK - 3
    assert delivered(plain_board, registers, event) is Delivered.TAKEN
    assert registers.rip == HANDLER
    # SS:RSP, RFLAGS, CS:RIP from the top of an aligned stack down, and the error code where there is one.
    frame = [MAIN, 0, IF | 2, STACK - 3, 0]
    expected = frame if event.error is None else [event.error, *frame]
    assert words(plain_board, registers, len(expected)) == expected
    assert registers.rsp == STACK - 16 - 8 * len(expected)
    (flags,) = plain_board.execute_guest(plain_board.vmcb("vm", 0), (op.ReadFlags(),))
    assert flags == (IF | 2 if trap else 2)
    assert plain_board.delivery.take(plain_board.vmcb("vm", 0), registers) is Delivered.NOTHING


DF, GP, NP, PF = (ExceptionVector[name] for name in ("DF", "GP", "NP", "PF"))


@pytest.mark.parametrize(
    ("event", "handlers", "vector", "error"),
    [
        # A benign event, then a contributory one in its turn; EXT says that the first was not the program's own.
        (Event(0x80, 0), (GP, NP, DF), GP, 0x80 << 3 | 3),
        (Event(0x80, 4), (GP, NP, DF), GP, 0x80 << 3 | 2),
        # Contributory after contributory is #DF.
        (exception(GP, 0), (NP, DF), DF, 0),
        (exception(PF, 0), (NP, DF), DF, 0),
        (Event(0x80, 0), (DF,), DF, 0),
        (Event(0x80, 0), (), None, None),
        (exception(DF, 0), (GP, NP), None, None),
    ],
)
def test_an_event_without_a_gate_ends_in_the_manuals_exception_or_in_a_shutdown(
    plain_board: Board, event: Event, handlers: tuple[int, ...], vector: int | None, error: int | None
) -> None:
    registers = ready(plain_board, *[(one, gate(HANDLER + one)) for one in handlers])
    came = delivered(plain_board, registers, event)
    if vector is None:
        assert (came, registers.rip, registers.rsp) == (Delivered.SHUTDOWN, MAIN, STACK)
    else:
        assert (came, registers.rip) == (Delivered.TAKEN, HANDLER + vector)
        assert words(plain_board, registers, 1) == [error]


def with_type(octet: int) -> bytes:
    """A gate with other bits in place of P, DPL, S and type."""
    return gate(HANDLER)[:5] + bytes([octet]) + gate(HANDLER)[6:]


@pytest.mark.parametrize(
    ("octet", "vector", "error"),
    [(0x8C, GP, 0x403), (0x9E, GP, 0x403), (0x85, GP, 0x403), (0x0E, NP, 0x403), (0x0F, NP, 0x403)],
)
def test_what_is_no_gate_and_what_is_not_present(plain_board: Board, octet: int, vector: int, error: int) -> None:
    registers = ready(plain_board, (0x80, with_type(octet)), (vector, gate(HANDLER)))
    assert delivered(plain_board, registers, Event(0x80, 0)) is Delivered.TAKEN
    assert words(plain_board, registers, 1) == [error]


def test_a_gate_with_a_stack_of_its_own_is_as_good_as_none(plain_board: Board) -> None:
    """No task has one here (LIMITATIONS): #NP with the gate's selector, as where P is clear."""
    with_stack = gate(HANDLER)[:4] + bytes([1]) + gate(HANDLER)[5:]
    registers = ready(plain_board, (0x80, with_stack), (NP, gate(HANDLER)))
    assert delivered(plain_board, registers, Event(0x80, 0)) is Delivered.TAKEN
    assert words(plain_board, registers, 1) == [0x403]


@pytest.mark.parametrize(
    ("cpl", "level", "passes"), [(0, 0, True), (0, 3, True), (3, 3, True), (3, 2, False), (3, 0, False)]
)
def test_int_n_goes_through_gates_that_its_level_may_call(cpl: int, level: int, passes: bool) -> None:
    """APM volume 2, 8.7.3: a software interrupt to a gate whose DPL is below CPL is #GP; other events do not ask."""
    for asked, to in ((True, HANDLER if passes else HANDLER + GP), (False, HANDLER)):
        board = new_board()
        vmcb = board.vmcb("vm", 0)
        registers = ready(board, (0x80, with_type(0x8E | level << 5)), (GP, gate(HANDLER + GP)))
        board.controls.store(vmcb, "CPL", cpl)
        board.controls.forget("vm")
        if asked:
            board.execute_guest(vmcb, (op.SoftwareInterrupt(0x80),))
            assert board.delivery.take(vmcb, registers) is Delivered.TAKEN
        else:
            assert delivered(board, registers, Event(0x80, 0)) is Delivered.TAKEN
        assert registers.rip == to


def test_a_table_that_is_too_short_has_no_gate(plain_board: Board) -> None:
    registers = ready(plain_board, (0x80, gate(HANDLER)), (GP, gate(HANDLER)))
    plain_board.execute_guest(plain_board.vmcb("vm", 0), (op.LoadIdt(IDT, 16 * 0x80 + 14),))
    assert delivered(plain_board, registers, Event(0x80, 0)) is Delivered.TAKEN
    assert words(plain_board, registers, 1) == [0x80 << 3 | 3]


def test_a_stack_that_is_not_backed_exits_and_tells_which_event_it_kept(plain_board: Board) -> None:
    registers = ready(plain_board, (0x80, gate(HANDLER)))
    registers.rsp = 64 * MIB
    event = Event(0x80, 0)
    assert delivered(plain_board, registers, event) is Delivered.EXIT
    names = ("EXITCODE", "EXITINFO2", "EXITINTINFO")
    found = plain_board.execute_host(tuple(op.VmcbLoad("vm", 0, name) for name in names))
    assert found == (0x400, 64 * MIB - 40, event.field)
    assert registers.rip == MAIN
    # The next VMRUN injects nothing by itself: whoever does not inject it again has lost it.
    assert plain_board.execute_host((op.VmRun("vm", 0), op.VmcbLoad("vm", 0, "EXITINTINFO"))) == (0, 0)
    assert plain_board.delivery.take(plain_board.vmcb("vm", 0), registers) is Delivered.NOTHING


@pytest.mark.parametrize(("priority", "tpr", "taken"), [(8, 0, True), (8, 7, True), (8, 8, False), (8, 15, False)])
def test_a_virtual_interrupt_waits_until_flags_and_priority_let_it(
    plain_board: Board, priority: int, tpr: int, taken: bool
) -> None:
    registers = ready(plain_board, (0x85, gate(HANDLER)))
    vmcb = plain_board.vmcb("vm", 0)
    field_ = virtual_interrupt_field(0x85)
    assert field_ >> 16 & 0xF == priority
    plain_board.execute_guest(vmcb, (op.WriteFlags(2),))
    stored = op.VmcbStore("vm", 0, "V_INTR", field_)
    assert plain_board.execute_host((stored, op.VmRun("vm", 0))) == (None, 0)
    assert plain_board.delivery.take(vmcb, registers) is Delivered.NOTHING
    assert not plain_board.events.ready(vmcb)
    plain_board.execute_guest(vmcb, (op.WriteControl("CR8", tpr), op.WriteFlags(IF)))
    assert plain_board.delivery.take(vmcb, registers) is (Delivered.TAKEN if taken else Delivered.NOTHING)
    if not taken:
        plain_board.execute_guest(vmcb, (op.WriteControl("CR8", priority - 1),))
        assert plain_board.delivery.take(vmcb, registers) is Delivered.TAKEN
    assert plain_board.execute_host((op.VmcbLoad("vm", 0, "V_INTR"),))[0] & 1 << 8 == 0
    plain_board.execute_host((op.VmcbStore("vm", 0, "V_INTR", 0),))


@pytest.mark.parametrize(("features", "queued"), [(0, True), (REST, False), (ALT, False)])
def test_only_without_features_of_its_own_the_hypervisor_queues_interrupts(features: int, queued: bool) -> None:
    lab = laboratory("Milan")
    features_of(lab, features | SevFeature.SNP_ACTIVE)
    lab.host(op.VmcbStore("one", 0, "V_INTR", virtual_interrupt_field(0x85)), op.VmRun("one", 0))
    assert bool(lab.board.events.waiting) is queued


# In a guest that runs.


A_SECOND = op.Sleep(SECOND)


@dataclass
class Life:
    """What a guest's handlers told."""

    seen: list[tuple[int, int]] = field(default_factory=list)
    rounds: int = 0


@dataclass(frozen=True)
class Taker:
    """Lays its gates and rests; its handler notes what interrupted it."""

    placement: object
    life: Life
    masked: bool = False
    rest: op.Sleep | op.Await = A_SECOND

    entry = MAIN
    demands = ()

    @property
    def blocks(self):
        return {MAIN: self._open, MAIN + 1: self._rest, HANDLER: self._handle}

    def _open(self, registers):
        base = self.placement.base_gpa
        registers.rsp = base + 2 * PAGE_BYTES
        gates = lay_gates(base, {0x80: HANDLER, 2: HANDLER})
        assert (yield (*gates, op.WriteFlags(2 if self.masked else IF))) == (None, None, None)
        registers.rip = MAIN + 1

    def _rest(self, registers):
        self.life.rounds += 1
        return self.rest
        yield ()

    def _handle(self, registers):
        frame = yield from frame_at(registers.rsp)
        self.life.seen.append((frame.rip, frame.rflags))
        yield from back(registers)


def taker(
    generation: Generation, masked: bool = False, platform: Platform = AS_USUAL,
    rest: op.Sleep | op.Await = A_SECOND,
):  # fmt: skip
    life = Life()
    host = make_host({"taker": lambda _, place: Taker(place, life, masked, rest)}, platform=platform)
    guest = start(host, "vm", generation, "taker")
    run(host, SECOND // 2)
    assert guest.vcpus[0].state is VcpuState.SLEEPING
    return host, guest, life


@pytest.mark.parametrize("generation", GENERATIONS)
def test_an_injected_interrupt_reaches_a_guest_that_masks_it_and_a_virtual_one_does_not(generation: Generation) -> None:
    host, guest, life = taker(generation, masked=True)
    by_host = host.board.execute_host
    assert by_host((op.VmcbStore("vm", 0, "V_INTR", virtual_interrupt_field(0x80)), op.VmKick("vm", 0))) == (None, 0)
    run(host, host.now_ns + 1000)
    assert (life.seen, guest.vcpus[0].state) == ([], VcpuState.SLEEPING)
    assert by_host((op.VmcbStore("vm", 0, "EVENTINJ", INT80), op.VmKick("vm", 0))) == (None, 0)
    run(host, host.now_ns + 1_000_000)
    # It woke from its sleep at once, and rests anew.
    assert (life.seen, life.rounds) == ([(MAIN + 1, 2)], 2)
    assert guest.vcpus[0].state is VcpuState.SLEEPING
    assert guest.vcpus[0].registers.rsp % PAGE_BYTES == 0


@pytest.mark.parametrize("rest", [A_SECOND, op.Await(SECOND)])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_virtual_interrupt_wakes_a_guest_that_lets_it(generation: Generation, rest: op.Sleep | op.Await) -> None:
    host, _, life = taker(generation, rest=rest)
    host.board.execute_host((op.VmcbStore("vm", 0, "V_INTR", virtual_interrupt_field(0x80)), op.VmKick("vm", 0)))
    run(host, host.now_ns + 1_000_000)
    assert life.seen == [(MAIN + 1, IF | 2)]


@pytest.mark.parametrize("generation", GENERATIONS)
def test_of_an_encrypted_guests_flags_the_hypervisor_learns_one(generation: Generation) -> None:
    for masked in (False, True):
        host, _, _ = taker(generation, masked)
        (state,) = host.board.execute_host((op.VmcbLoad("vm", 0, "INTERRUPT_STATE"),))
        encrypted = generation in (ES, SNP)
        assert state == (2 if encrypted and not masked else 0)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_vcpu_that_vmrun_refuses_stays_out_until_it_is_entered(generation: Generation) -> None:
    host, guest, life = taker(generation)
    by_host = host.board.execute_host
    assert by_host((op.VmcbStore("vm", 0, "EVENTINJ", injected(2, 3)), op.VmKick("vm", 0))) == (None, VMEXIT_INVALID)
    assert by_host((op.VmcbLoad("vm", 0, "EXITCODE"),)) == ((1 << 64) - 1,)
    run(host, host.now_ns + 5 * SECOND)
    assert (life.rounds, guest.state, guest.vcpus[0].state) == (1, GuestState.RUNNING, VcpuState.PAUSED)
    assert by_host((op.VmcbStore("vm", 0, "EVENTINJ", INT80), op.VmKick("vm", 0))) == (None, 0)
    run(host, host.now_ns + 1_000_000)
    assert (life.rounds, len(life.seen)) == (2, 1)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_guest_without_a_handler_shuts_down(generation: Generation) -> None:
    host = make_host()
    guest = start(host, "vm", generation, "rest")
    run(host, SECOND)
    host.board.execute_host((op.VmcbStore("vm", 0, "EVENTINJ", INT80), op.VmKick("vm", 0)))
    run(host, host.now_ns + 1_000_000)
    assert (guest.state, guest.shutdown_code) == (GuestState.STOPPED, 0x7F)


def test_an_event_that_a_pause_kept_is_injected_again() -> None:
    host, guest, life = taker(PLAIN)
    board = host.board
    board.events.waiting["vm", 0] = Event(0x80, 0)
    host.pause("vm")
    assert board.execute_host((op.VmcbLoad("vm", 0, "EXITINTINFO"),)) == (INT80,)
    host.resume("vm")
    run(host, host.now_ns + 2 * SECOND)
    assert len(life.seen) == 1
    assert guest.state is GuestState.RUNNING
