"""A #VC that comes through the gate: what a handler that believes its error code shows, and one that verifies."""

import pytest

from node.event_delivery import Frame
from node.ghcb_page import GHCB_BYTES, SHARED_BUFFER, BadInput, build_reply, parse_exit, refusal
from node.nae_event import MmioRequest, parse_request
from node.operations import Fault, FaultKind, Read, Shutdown, VmgExit, Write, WriteFlags
from node.program import Registers
from node.vc_gate import VcGate
from node.vc_handler import UNHANDLED

GHCB, STACK, RIP, RAM = 0x3000, 0x8000, 0x40_0000, 64 << 20
SECRET = 0x1122_3344_5566_7788
VMMCALL, MOVS = b"\x0f\x01\xd9", b"\x48\xa5"
DEVICE = 0xFE00_0000


class Machine:
    """What answers a handler; ``reply`` is what the hypervisor makes of an exit."""

    def __init__(self, error: int, code: bytes = b"", reply: bytes | None = None, word: object = None):
        self.frame = Frame(error, RIP, 0x10, 0x202, STACK + 100, 0x18).octets
        self.code, self.reply, self.page, self.done = code, reply, b"", []
        self.word = SECRET.to_bytes(8, "little") if word is None else word

    def __call__(self, one):
        self.done.append(one)
        if isinstance(one, Write) and one.gpa == GHCB:
            self.page = one.data
        if not isinstance(one, Read):
            return GHCB if isinstance(one, VmgExit) and one.msr == GHCB else None
        if one.gpa == STACK:
            return self.frame
        if one.gpa == GHCB:
            return (self.reply or build_reply(0, 0, {"RAX": 5})).ljust(GHCB_BYTES, b"\0")
        return self.code.ljust(one.length, b"\x90") if one.gpa == RIP else self.word


def handled(machine: Machine, *, verifies: bool, rdi: int = 0x9000):
    registers = Registers(0x41_0000)
    registers.rsp, registers.rax, registers.rsi, registers.rdi = STACK, SECRET, 0x7000, rdi
    block = VcGate(GHCB, RAM, verifies).handle(registers)
    batch = next(block)
    try:
        while True:
            batch = block.send(tuple(map(machine, batch)))
    except StopIteration as end:
        return end.value, registers


def shown(machine: Machine):
    return parse_exit(machine.page, GHCB) if machine.page else None


@pytest.mark.parametrize("verifies", [False, True])
def test_vmmcall_shows_rax_and_takes_the_hypervisors_in_its_place(verifies: bool) -> None:
    machine = Machine(0x81, VMMCALL)
    ending, registers = handled(machine, verifies=verifies)
    assert ending is None
    assert shown(machine).fields["RAX"] == SECRET
    assert (registers.rax, registers.rip, registers.rsp) == (5, RIP, STACK + 100)
    assert machine.done[-1] == WriteFlags(0x202)


def test_a_handler_that_believes_shows_rax_wherever_it_was_interrupted() -> None:
    machine = Machine(0x81, MOVS)
    assert handled(machine, verifies=False)[0] is None
    assert shown(machine).fields["RAX"] == SECRET


def test_one_that_verifies_has_laid_rax_down_before_it_ends_the_guest() -> None:
    machine = Machine(0x81, MOVS)
    assert handled(machine, verifies=True)[0] == Shutdown(UNHANDLED)
    assert shown(machine).fields["RAX"] == SECRET
    assert [one.msr for one in machine.done if isinstance(one, VmgExit)] == [0x100]


def test_a_forged_store_sends_what_the_instruction_reads() -> None:
    machine = Machine(0x400, MOVS)
    ending, registers = handled(machine, verifies=False)
    assert ending is None
    request = parse_request(shown(machine))
    assert isinstance(request, MmioRequest)
    assert (request.write, request.gpa, request.length) == (True, 0x9000, 8)
    assert machine.page[SHARED_BUFFER : SHARED_BUFFER + 8] == SECRET.to_bytes(8, "little")
    assert (registers.rsi, registers.rdi, registers.rip) == (0x7008, 0x9008, RIP)


@pytest.mark.parametrize(
    ("code", "rdi", "ends"), [(MOVS, 0x9000, True), (VMMCALL, DEVICE, True), (MOVS, DEVICE, False)]
)
def test_one_that_verifies_stores_to_devices_alone(code: bytes, rdi: int, ends: bool) -> None:
    machine = Machine(0x400, code)
    ending, _ = handled(machine, verifies=True, rdi=rdi)
    assert ending == (Shutdown(UNHANDLED) if ends else None)
    assert (shown(machine) is None) is ends


REFUSED = refusal(BadInput.INVALID_EVENT)


@pytest.mark.parametrize(
    "machine",
    [
        Machine(0x72), Machine(0), Machine(1 << 31), Machine(0x81, reply=REFUSED), Machine(0x400, reply=REFUSED),
        Machine(0x400, word=Fault(FaultKind.PAGE_NOT_VALIDATED, 0x7000)), Machine(0x81, reply=build_reply(0, 0)),
    ],
)  # fmt: skip
def test_what_a_handler_does_not_know_or_believe_ends_the_guest(machine: Machine) -> None:
    assert handled(machine, verifies=False)[0] == Shutdown(UNHANDLED)


def test_so_does_a_stack_that_it_cannot_read() -> None:
    machine = Machine(0x81)
    machine.frame = Fault(FaultKind.PAGE_NOT_VALIDATED, STACK)
    assert handled(machine, verifies=False)[0] == Shutdown(UNHANDLED)


