"""#VC of a program, in its kernel's handler: CPUID by the hypervisor's word and by the page that firmware checked."""

from dataclasses import replace

import pytest
from toy_guests import SECOND, guest_spec, make_host, run, script

from node import operations as op
from node.cpuid_page import ENCRYPTION_LEAF, CpuidEntry, cpuid_page, parse_cpuid_page
from node.generation import Generation
from node.ghcb_msr import LinuxReason, ReasonSet
from node.guest import GuestState
from node.kernel_settings import CAREFUL, KernelSettings
from node.operations import Cpuid, CpuidResult, Fault, FaultKind, Sleep
from node.vc_handler import UNHANDLED, VcHandler
from node.vcpu_runner import TERMINATED

PLAIN, SEV, ES, SNP = Generation.PLAIN, Generation.SEV, Generation.SEV_ES, Generation.SEV_SNP
VENDOR = tuple(int.from_bytes(part, "little") for part in (b"Auth", b"cAMD", b"enti"))
LIE = CpuidEntry(0, 0, eax=0, ebx=1, ecx=2, edx=3)
CREDULOUS = KernelSettings(reads_cpuid_page=False, checks_cpuid=False)


def asking(settings, generation, *lies, functions=(0,), vcpu=0):
    """A guest one of whose vCPUs asks for functions of CPUID, and what it took for the answers."""
    told = []

    def ask(place, _registers):
        for function in functions if place.vcpu == vcpu else ():
            told.extend((yield (Cpuid(function),)))
        return Sleep(10**18)

    host = make_host({"ask": script(ask)})
    spec = replace(guest_spec("vm", generation, "ask", vcpus=2), kernel=settings)
    host.launch(spec, lambda _: None, running=True)
    host.hypervisor._ghcb.leaves[generation] = (*lies, *host.hypervisor._ghcb.leaves[generation])
    run(host, SECOND)
    return host.guests["vm"], told


@pytest.mark.parametrize("settings", [CAREFUL, CREDULOUS])
@pytest.mark.parametrize("generation", [PLAIN, SEV, ES, SNP])
@pytest.mark.parametrize("vcpu", [0, 1])
def test_a_guest_learns_its_processors_vendor(generation, settings, vcpu):
    guest, (told,) = asking(settings, generation, vcpu=vcpu)
    assert (told.ebx, told.ecx, told.edx) == VENDOR
    assert guest.state is GuestState.RUNNING


@pytest.mark.parametrize("generation", [PLAIN, SEV, ES, SNP])
def test_a_hypervisor_s_lie_is_believed_by_whoever_asks_it(generation):
    guest, told = asking(CREDULOUS, generation, LIE)
    assert (guest.state, told) == (GuestState.RUNNING, [CpuidResult(0, 1, 2, 3)])


@pytest.mark.parametrize(
    ("generation", "settings", "function", "ns"),
    [
        (SNP, CAREFUL, 0, 646), (SNP, CREDULOUS, 0, 3553), (PLAIN, CAREFUL, 0, 1255),
        (SNP, CAREFUL, 1, 3553), (SNP, CAREFUL, 0xB, 3553), (SNP, CAREFUL, 0xD, 646), (PLAIN, CAREFUL, 1, 1255),
    ],
)  # fmt: skip
def test_cpuid_takes_what_was_measured_with_an_exit_and_without_one(generation, settings, function, ns):
    """CVM_eval's benchmark of exits: a #VC that is answered from the page, a round trip, and a plain exit.

    What differs by vCPU takes an exit with a page, too: functions 1 and 11 there.
    """
    spent = []

    def ask(place, _registers):
        began = host.now_ns
        for _ in range(100):
            yield (Cpuid(function),)
        spent.append(host.now_ns - began)
        return Sleep(10**18)

    host = make_host({"ask": script(ask)})
    host.launch(replace(guest_spec("vm", generation, "ask"), kernel=settings), lambda _: None, running=True)
    run(host, SECOND)
    assert spent[0] / 100 == pytest.approx(ns, abs=1)


@pytest.mark.parametrize("generation", [PLAIN, SEV, ES, SNP])
@pytest.mark.parametrize("vcpu", [0, 1])
def test_each_vcpu_finds_its_own_number_in_all_generations(generation, vcpu):
    """APM volume 3, appendix E: the APIC ID in EBX[31:24] of function 1 and in EDX of function 11."""
    _, (features, topology) = asking(CAREFUL, generation, functions=(1, 0xB), vcpu=vcpu)
    assert (features.ebx >> 24, topology.edx) == (vcpu, vcpu)


def test_a_hypervisor_s_lie_does_not_reach_a_guest_with_a_cpuid_page():
    _, (told,) = asking(CAREFUL, SNP, LIE)
    assert (told.ebx, told.ecx, told.edx) == VENDOR


@pytest.mark.parametrize("lie", [CpuidEntry(ENCRYPTION_LEAF), CpuidEntry(ENCRYPTION_LEAF, eax=1 << 1)])
def test_a_guest_that_has_to_ask_knows_a_hypervisor_that_denies_its_encryption(lie):
    guest, told = asking(CAREFUL, ES, lie, functions=(ENCRYPTION_LEAF,))
    reason = ReasonSet.LINUX << 8 | LinuxReason.CPUID_OF_HYPERVISOR
    assert (guest.state, guest.shutdown_code, told) == (GuestState.STOPPED, TERMINATED | reason, [])


def test_and_one_that_hides_the_leaf_altogether():
    guest, told = asking(CAREFUL, ES, CpuidEntry(0x8000_0000, eax=0x8000_0001), functions=(0x8000_0000,))
    assert (guest.state, told) == (GuestState.STOPPED, [])


@pytest.mark.parametrize("generation", [SEV, ES, SNP])
def test_honest_words_about_encryption_are_believed(generation):
    guest, (last, leaf) = asking(CAREFUL, generation, functions=(0x8000_0000, ENCRYPTION_LEAF))
    assert guest.state is GuestState.RUNNING
    # CPUID 8000_001F EAX bits 1, 3 and 4, and the C-bit's place in EBX (APM volume 3, appendix E).
    # The last function is the one behind it with Milan's features.
    assert (last.eax, leaf.eax) == (0x8000_0021, {SEV: 0b10, ES: 0b1010, SNP: 0b11010}[generation])
    assert leaf.ebx & 0x3F == 51


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
    ending, got, added = handled([(VC,), (page,), (0x100,)], cpuid_gpa=0x2000)
    assert (ending, got) == (op.Shutdown(UNHANDLED), [])
    assert added[-1] == (op.VmgExit(0x100 | ReasonSet.LINUX << 12 | LinuxReason.CPUID_PAGE << 16),)


def test_a_leaf_that_the_page_does_not_have_is_zeros():
    page = cpuid_page([CpuidEntry(7, 1, eax=5)])
    assert parse_cpuid_page(page) == (CpuidEntry(7, 1, eax=5),)
    for one, result in ((Cpuid(7, 1), CpuidResult(5, 0, 0, 0)), (Cpuid(7), CpuidResult(0, 0, 0, 0))):
        assert handled([(VC,), (page,)], (one,), 0x2000)[1] == [(result,)]


def test_the_end_of_the_guest_is_the_protocols():
    def wrong(place, _registers):
        # The pool holds the page of the first exit no more: what comes back is not what the protocol says.
        yield (op.VmgExit(0x0000_0000_0000_0012 | (place.shared_gpa >> 12) << 12), Cpuid(0))

    host = make_host({"wrong": script(wrong)})
    spec = replace(guest_spec("vm", SNP, "wrong"), kernel=CREDULOUS)
    host.launch(spec, lambda _: None, running=True)
    run(host, SECOND)
    guest = host.guests["vm"]
    assert (guest.state, guest.shutdown_code) == (GuestState.STOPPED, TERMINATED)
