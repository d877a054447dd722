"""Intercepted instructions behave alike in every generation; whatever a hypervisor answers, the kernel goes on or ends.

The guest looks once: what the hypervisor changes in the GHCB page after that changes nothing.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node import operations as op
from node.cpuid_page import CPUID_PAGE_BYTES, CpuidEntry, cpuid_page
from node.generation import CAPABILITIES, Generation
from node.ghcb_page import GHCB_BYTES, build_reply, exception_event
from node.guest import GuestState
from node.kernel_settings import CAREFUL, KernelSettings
from node.operations import Fault, FaultKind, PValidateResult, Read, Shutdown, Sleep, VmgExit, Write
from node.vc_handler import UNHANDLED, VcHandler
from node.vmexit import ExitCode
from tests.node.toy_guests import GENERATIONS, SECOND, make_host, run, script, start

GHCB = 0x1000
GP = Fault(FaultKind.GENERAL_PROTECTION, 0)
INSTRUCTIONS = {
    # APM volume 3 for what each may be told; no MSR is emulated, no device is at a port, and buses read ones.
    op.Rdmsr(0xC001_0000): (ExitCode.MSR, GP),
    op.Wrmsr(0xC001_0000, 1): (ExitCode.MSR, GP),
    op.PortIn(0x71): (ExitCode.IOIO, 0xFF),
    op.PortIn(0xCF8, 4): (ExitCode.IOIO, 0xFFFF_FFFF),
    op.PortOut(0x70, 0x8F): (ExitCode.IOIO, None),
    op.PortOut(0xCF8, 1 << 31, 4): (ExitCode.IOIO, None),
    op.PortInString(0x1F0, 5): (ExitCode.IOIO, b"\xff" * 5),
    op.PortInString(0x1F0, 2000, 4): (ExitCode.IOIO, b"\xff" * 8000),
    op.PortOutString(0xE9, b"console"): (ExitCode.IOIO, None),
    op.PortOutString(0x1F0, bytes(range(256)) * 16, 2): (ExitCode.IOIO, None),
    op.WriteBackCaches(): (ExitCode.WBINVD, None),
    op.MmioLoad(0xFEE0_0000): (ExitCode.NESTED_PAGE_FAULT, 0xFFFF_FFFF),
    op.MmioStore(0xFEE0_0000, 7): (ExitCode.NESTED_PAGE_FAULT, None),
}


@pytest.fixture(scope="module", params=GENERATIONS)
def host(request):
    one = make_host()
    start(one, "vm", request.param)
    return one


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_program_finds_the_same_in_every_generation(generation):
    told = []

    def ask(_place, _registers):
        told.extend((yield tuple(INSTRUCTIONS)))
        return Sleep(10**18)

    host = make_host({"ask": script(ask)})
    guest = start(host, "vm", generation, "ask")
    run(host, SECOND)
    assert guest.state is GuestState.RUNNING
    assert told == [expected for _, expected in INSTRUCTIONS.values()]


@pytest.mark.parametrize("generation", [Generation.SEV_ES, Generation.SEV_SNP])
def test_with_encrypted_registers_the_hypervisor_learns_of_them_from_the_handler_alone(generation):
    assert CAPABILITIES[generation].encrypted_registers
    host = make_host()
    start(host, "vm", generation)
    answers = host.board.execute_guest(host.board.vmcb("vm", 0), tuple(INSTRUCTIONS))
    found = [(answer.kind, answer.error) for answer in answers]
    assert found == [(FaultKind.VMM_COMMUNICATION, code) for code, _ in INSTRUCTIONS.values()]


@pytest.mark.parametrize(
    "one",
    [
        op.Rdmsr(-1), op.Rdmsr(1 << 32), op.Wrmsr(0, 1 << 64), op.Wrmsr(1 << 32, 0), op.PortIn(1 << 16), op.PortIn(-1),
        op.PortInString(1 << 16, 1), op.PortInString(0, 0), op.PortInString(0, -1), op.PortInString(0, 1, 3),
        op.PortInString(0, (1 << 16) + 1), op.PortInString(0, 1 << 60, 4), op.PortOutString(0, b""),
        op.PortOutString(0, b"odd", 2), op.PortOutString(0, bytes((1 << 16) + 4), 4), op.PortOutString(-1, b"x"),
        op.PortIn(0, 3), op.PortIn(0, 8), op.PortOut(0, 256), op.PortOut(0, -1, 4), op.PortOut(-1, 0),
    ],
)  # fmt: skip
def test_what_no_instruction_can_say_is_general_protection(host, one):
    assert host.board.execute_guest(host.board.vmcb("vm", 0), (one,)) == (GP,)


def handled(one, code, respond, handler=VcHandler(GHCB, None)):  # noqa: B008  # frozen
    """What a block got for an instruction, how it ended, and the batches of its handler."""
    got, batches = [], []

    def block():
        got.extend((yield (one,)))
        return Sleep(1)

    steps = handler.around(block())
    answers = None
    try:
        next(steps)
        answers = (Fault(FaultKind.VMM_COMMUNICATION, 0, code),)
        while True:
            batches.append(steps.send(answers))
            answers = tuple(respond(each) for each in batches[-1])
    except StopIteration as end:
        return end.value, got, batches


def answering(page):
    """A hypervisor whose reply is this page, and that changes it as soon as the guest has looked."""
    looks = []

    def respond(each):
        if isinstance(each, VmgExit):
            return each.msr
        if isinstance(each, Read):
            looks.append(each)
            return page if len(looks) == 1 else bytes(GHCB_BYTES)
        return None

    return respond, looks


def reply(info1=0, info2=0, **registers):
    return build_reply(info1, info2, registers).ljust(GHCB_BYTES, b"\0")


@pytest.mark.parametrize(
    ("one", "page", "answer"),
    [
        (op.Rdmsr(7), reply(RAX=1 << 40 | 2, RDX=1 << 33 | 3), 3 << 32 | 2),
        (op.Wrmsr(7, 9), reply(), None),
        (op.PortIn(1, 1), reply(RAX=0x1FF), 0xFF),
        (op.PortOut(1, 1), reply(), None),
        (op.PortIn(1, 2), reply(RAX=0x1_2345), 0x2345),
        (op.PortInString(1, 3), reply()[:0x800] + b"abcdef".ljust(GHCB_BYTES - 0x800, b"\0"), b"abc"),
        (op.PortOutString(1, b"x"), reply(), None),
        (op.Rdmsr(7), reply(1, exception_event(13, 0)), GP),
        (op.Wrmsr(7, 9), reply(1, exception_event(13, 0)), GP),
        (op.PortOut(1, 1), reply(1, exception_event(13, 0)), GP),
    ],
)
def test_of_an_answer_only_what_the_instruction_sets_is_taken_and_it_is_looked_at_once(one, page, answer):
    respond, looks = answering(page)
    code = ExitCode.MSR if isinstance(one, (op.Rdmsr, op.Wrmsr)) else ExitCode.IOIO
    ending, got, _ = handled(one, code, respond)
    assert (ending, got, len(looks)) == (Sleep(1), [answer], 1)


def test_a_string_that_is_longer_than_the_page_s_buffer_goes_in_parts():
    data = bytes(range(256)) * 12
    _, got, batches = handled(op.PortOutString(0x1F0, data, 4), ExitCode.IOIO, answering_always(reply()))
    exits = [one.data for batch in batches for one in batch if isinstance(one, Write) and one.gpa == GHCB]
    lengths = [2032, 1040]
    assert [int.from_bytes(page[0x3A0:0x3A8], "little") * 4 for page in exits] == lengths
    assert b"".join(page[0x800 : 0x800 + size] for page, size in zip(exits, lengths, strict=True)) == data
    assert {int.from_bytes(page[0x398:0x3A0], "little") for page in exits} == {0x1F0 << 16 | 0x24C}
    assert got == [None]


def answering_always(page):
    return lambda each: each.msr if isinstance(each, VmgExit) else page if isinstance(each, Read) else None


@pytest.mark.parametrize(
    ("one", "page"),
    [
        (op.Rdmsr(7), reply(RAX=1)),
        (op.PortIn(1), reply()),
        (op.Rdmsr(7), reply(1, exception_event(6))),
        (op.PortOut(1, 1), reply(1, exception_event(6))),
        (op.PortIn(1), reply(1, exception_event(13, 0))),
        (op.WriteBackCaches(), reply(1, exception_event(13, 0))),
        (op.Wrmsr(7, 9), reply(2, 5)),
        (op.PortInString(1, 3), reply(2, 5)),
        (op.PortInString(1, 3), bytes(GHCB_BYTES)),
        (op.PortOutString(1, b"x"), reply(1, exception_event(13, 0))),
    ],
)
def test_an_answer_that_the_instruction_cannot_have_ends_the_guest(one, page):
    respond, _ = answering(page)
    codes = {op.Rdmsr: ExitCode.MSR, op.Wrmsr: ExitCode.MSR, op.WriteBackCaches: ExitCode.WBINVD}
    ending, got, _ = handled(one, codes.get(type(one), ExitCode.IOIO), respond)
    assert (ending, got) == (Shutdown(UNHANDLED), [])


def test_a_handler_shows_no_more_than_the_instruction_needs():
    respond, _ = answering(reply())
    _, _, (exit_, *_) = handled(op.Wrmsr(7, 0x1_0000_0002), ExitCode.MSR, respond)
    (laid,) = [each for each in exit_ if isinstance(each, Write)]
    assert laid.private is False
    # RAX, RCX, RDX and the three words; offsets of the GHCB specification, table 3.
    shown = {at: laid.data[at : at + 8] for at in range(0, 0x3F0, 8) if any(laid.data[at : at + 8])}
    assert set(shown) == {0x1F8, 0x308, 0x310, 0x390, 0x398}


CPUID_PAGE = 0x2000
MINE = 0x1234_5678, 0x0A0B_0C0D, 0x1111_2222, 0x0033_0044
"""What the page has of each leaf; its EDX has not bit 9."""


def by_page(function, index=0, last=0xD):
    """What a guest with a CPUID page got of a hypervisor that says all ones, and how often that was asked."""
    entries = [CpuidEntry(leaf, 0, 0, 0, *MINE) for leaf in (1, 7, 0xB, 0xD, 0x8000_001E)]
    entries += [CpuidEntry(0, eax=last), CpuidEntry(0x8000_0000, eax=0x8000_001F)]
    lies = reply(RAX=(1 << 64) - 1, RBX=(1 << 64) - 1, RCX=(1 << 64) - 1, RDX=(1 << 64) - 1)

    def respond(each):
        if isinstance(each, Read):
            return cpuid_page(entries) if each.gpa == CPUID_PAGE else lies
        return each.msr if isinstance(each, VmgExit) else None

    handler = VcHandler(GHCB, CPUID_PAGE)
    ending, (got,), batches = handled(op.Cpuid(function, index), ExitCode.CPUID, respond, handler)
    assert ending == Sleep(1)
    return (got.eax, got.ebx, got.ecx, got.edx), sum(isinstance(each, VmgExit) for batch in batches for each in batch)


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (1, (0x1234_5678, 0xFF0B_0C0D, 0x1111_2222, 0x0033_0244)),
        (0xB, (*MINE[:3], 0xFFFF_FFFF)),
        (0x8000_001E, (0xFFFF_FFFF, 0x0A0B_0CFF, 0x1111_22FF, MINE[3])),
    ],
)
def test_of_the_hypervisor_a_vcpu_with_a_cpuid_page_learns_its_own_number_alone(function, found):
    """APM volume 3, appendix E: APIC ID in EBX[31:24], EDX and EAX; APIC in EDX[9]; core and node in EBX, ECX[7:0]."""
    assert by_page(function) == (found, 1)


@pytest.mark.parametrize("function", [7, 0xD])
def test_what_is_the_same_on_all_vcpus_is_asked_of_nobody(function):
    assert by_page(function) == (MINE, 0)


def test_nor_is_a_leaf_beyond_the_last_that_the_page_has():
    assert by_page(0xB, 3, last=0xD) == ((0, 0, 0, 0xFFFF_FFFF), 1)
    assert by_page(0xB, 3, last=7) == ((0, 0, 0, 0), 0)


ANSWERS = st.one_of(
    st.none(),
    st.integers(-1, 1 << 64),
    st.binary(max_size=40),
    st.sampled_from([bytes(GHCB_BYTES), b"\xff" * GHCB_BYTES, reply(RAX=1, RBX=2, RCX=3, RDX=4), reply(2, 1)]),
    st.binary(min_size=0x400, max_size=0x400).map(lambda head: head.ljust(GHCB_BYTES, b"\0")),
    st.binary(max_size=64).map(lambda head: head.ljust(CPUID_PAGE_BYTES, b"\xee")),
    st.builds(Fault, st.sampled_from(FaultKind), st.integers(0, 1 << 52), st.integers(0, 1 << 32)),
    st.builds(PValidateResult, st.integers(0, 9), st.booleans()),
)
OTHERS = (op.Cpuid(0), op.Cpuid(1), op.Cpuid(0xD, 1), op.Cpuid(0x8000_001F), op.ReadDr7(), op.WriteDr7(1))
ASKED = st.sampled_from([*INSTRUCTIONS, *OTHERS])
CREDULOUS = KernelSettings(checks_exit_code=False, reads_cpuid_page=False, checks_cpuid=False)


@settings(max_examples=25, deadline=None)
@given(st.data(), ASKED, st.sampled_from(ExitCode), st.booleans(), st.sampled_from([CAREFUL, CREDULOUS]))
def test_whatever_comes_back_the_block_gets_an_answer_or_the_guest_ends(data, one, code, by_page, settings_):
    handler = VcHandler(GHCB, 0x2000 if by_page else None, settings_)
    honest = data.draw(st.booleans())

    def respond(each):
        if honest and isinstance(each, VmgExit):
            return each.msr
        return None if honest and isinstance(each, Write) else data.draw(ANSWERS)

    ending, got, batches = handled(one, code, respond, handler)
    assert len(batches) <= 3
    if ending == Shutdown(UNHANDLED):
        assert got == []
        assert batches[-1][0].msr & 0xFFF == 0x100
    else:
        assert (ending, len(got)) == (Sleep(1), 1)


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("asked", [op.Cpuid(-1), op.Cpuid(1 << 32), op.Cpuid(0, -1), op.Cpuid(0, 1 << 64)])
def test_a_function_that_no_register_holds_is_asked_of_nobody(generation, asked):
    answers = []

    def ask(_, __):
        answers.extend((yield (asked,)))
        return Shutdown(0)

    host = make_host({"ask": script(ask)})
    guest = start(host, "vm", generation, "ask")
    run(host, SECOND)
    assert guest.state is GuestState.STOPPED
    assert answers == [Fault(FaultKind.GENERAL_PROTECTION, 0)]
