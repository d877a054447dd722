"""CPUID through a guest's #VC handler: the hypervisor's word, and the page that firmware checked (matrix row 23)."""

import pytest
from toy_guests import IMAGE, SECOND, make_host, run, script, start

from node import ghcb_msr as msr
from node import operations as op
from node.cpuid_page import CpuidEntry, cpuid_page, parse_cpuid_page
from node.generation import Generation
from node.guest import GuestState
from node.operations import Cpuid, CpuidResult, Fault, FaultKind, Sleep
from node.ovmf import SectionType
from node.vc_handler import UNHANDLED, VcHandler
from node.vcpu_runner import TERMINATED

PLAIN, SEV, ES, SNP = Generation.PLAIN, Generation.SEV, Generation.SEV_ES, Generation.SEV_SNP
(CPUID_GPA,) = (one.gpa for one in IMAGE.tables.sections if one.section_type is SectionType.CPUID)
VENDOR = CpuidResult(1, *(int.from_bytes(part, "little") for part in (b"Auth", b"cAMD", b"enti")))
LIE = CpuidResult(0, 1, 2, 3)


def asked(generation, *, by_page=False, lies=False):
    """What a guest takes CPUID function 0 for."""
    told = []

    def ask(_place, _registers):
        (answer,) = yield (Cpuid(0),)
        told.append(answer)
        return Sleep(10**18)

    def program(place, registers):
        ghcb = place.shared_gpa
        if generation is SNP:
            yield (op.VmgExit(msr.RegisterGhcbRequest(ghcb >> 12).value),)
        block = ask(place, registers)
        if generation in (ES, SNP):
            block = VcHandler(ghcb, CPUID_GPA if by_page else None).around(block)
        return (yield from block)

    host = make_host({"ask": script(program)})
    if lies:
        host.hypervisor._ghcb._cpuid[0, 0] = (LIE.eax, LIE.ebx, LIE.ecx, LIE.edx)
    guest = start(host, "vm", generation, "ask")
    run(host, SECOND)
    assert guest.state is GuestState.RUNNING
    return told


@pytest.mark.parametrize("generation", [PLAIN, SEV, ES, SNP])
def test_a_guest_learns_its_processors_vendor(generation):
    assert asked(generation) == [VENDOR]


@pytest.mark.parametrize("generation", [PLAIN, SEV, ES, SNP])
def test_a_hypervisor_s_lie_is_believed_by_whoever_asks_it(generation):
    assert asked(generation, lies=True) == [LIE]


def test_a_hypervisor_s_lie_does_not_reach_a_guest_with_a_cpuid_page():
    assert asked(SNP, by_page=True, lies=True) == [VENDOR]


CPUID = Cpuid(0)


def handled(answers, batches=(CPUID,), cpuid_gpa=None):
    """Run a block of one batch under a handler; what it got, and the operations that the handler added."""
    got = []

    def block():
        got.append((yield batches))
        return Sleep(1)

    answers, added = iter(answers), []
    run_ = VcHandler(0x1000, cpuid_gpa).around(block())
    batch = next(run_)
    try:
        while True:
            batch = run_.send(next(answers))
            added.append(batch)
    except StopIteration as end:
        return end.value, got, added


VC = Fault(FaultKind.VMM_COMMUNICATION, 0, 0x72)


def test_answers_that_are_no_vc_pass_through():
    assert handled([(VENDOR, b"x")], (Cpuid(0), op.Read(0, 1))) == (Sleep(1), [(VENDOR, b"x")], [])


@pytest.mark.parametrize(
    ("one", "fault"),
    [
        (op.Read(0, 1), VC),
        (Cpuid(0), Fault(FaultKind.VMM_COMMUNICATION, 0, 0x81)),
        (Cpuid(0), Fault(FaultKind.VMM_COMMUNICATION, 0, 0x400)),
        (Cpuid(0), Fault(FaultKind.VMM_COMMUNICATION, 0, 0x7B)),
    ],
)
def test_a_vc_that_the_instruction_does_not_raise_ends_the_guest(one, fault):
    ending, got, added = handled([(fault,), (0x100,)], (one,))
    assert (ending, got, added) == (op.Shutdown(UNHANDLED), [], [(op.VmgExit(0x100),)])


@pytest.mark.parametrize("back", [bytes(4096), b"\xff" * 4096, Fault(FaultKind.RMP_FAULT, 0)])
def test_a_reply_that_cannot_be_trusted_ends_the_guest(back):
    ending, got, _ = handled([(VC,), (None, 0x1000, back), (0x100,)])
    assert (ending, got) == (op.Shutdown(UNHANDLED), [])


@pytest.mark.parametrize("page", [Fault(FaultKind.PAGE_NOT_VALIDATED, 0), b"\xff" * 4096])
def test_a_cpuid_page_that_is_none_ends_the_guest(page):
    ending, got, _ = handled([(VC,), (page,), (0x100,)], cpuid_gpa=0x2000)
    assert (ending, got) == (op.Shutdown(UNHANDLED), [])


def test_a_leaf_that_the_page_does_not_have_is_zeros():
    page = cpuid_page([CpuidEntry(7, 1, eax=5)])
    assert parse_cpuid_page(page) == (CpuidEntry(7, 1, eax=5),)
    for one, result in ((Cpuid(7, 1), CpuidResult(5, 0, 0, 0)), (Cpuid(7), CpuidResult(0, 0, 0, 0))):
        assert handled([(VC,), (page,)], (one,), 0x2000)[1] == [(result,)]


def test_the_end_of_the_guest_is_the_protocols():
    def wrong(place, registers):
        def block():
            yield (Cpuid(0),)

        if registers.r13:
            return Sleep(10**18)
        # The page is not registered, so every exit with it is refused.
        return (yield from VcHandler(place.shared_gpa, None).around(block()))

    host = make_host({"wrong": script(wrong)})
    guest = start(host, "vm", SNP, "wrong")
    run(host, SECOND)
    assert (guest.state, guest.shutdown_code) == (GuestState.STOPPED, TERMINATED)
