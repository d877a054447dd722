"""A kernel above an SVSM makes the same checks as one without, each with its switch, and takes #VC of its programs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from svsm_guests import CAA, PAGES, PLACE, SvsmVm
from toy_guests import IMAGE, SECOND, guest_spec, make_host, run, script

from node import ghcb_msr as msr
from node import operations as op
from node.cpuid_page import CpuidEntry
from node.generation import Generation
from node.guest import GuestState
from node.guest_kernel import BOOT_FAILED
from node.guest_memory_map import GuestMemoryMap
from node.kernel_above_svsm import ACCEPT_RIP, KernelAboveSvsm
from node.kernel_settings import CAREFUL, KernelSettings
from node.program import Registers
from node.sev_status import expected_status
from node.svsm_call import BUFFER, PageEntry, page_list
from node.svsm_memory import GUEST_VMPL, SVSM
from node.vcpu_runner import TERMINATED

SNP = Generation.SEV_SNP
CANARY = bytes(range(0x60, 0x70))
STATUS = expected_status(SNP)
ENCRYPTION_LEAF = 0x8000_001F


def kernel(vcpu=0, **settings):
    memory = GuestMemoryMap(64 << 20, 2)
    chosen = KernelSettings(**settings)
    return KernelAboveSvsm(PLACE, memory, (), vcpu, (0x100, 0x200), 0x40_0000, chosen, IMAGE.cpuid_gpa, CANARY)


def ending(block, *answers):
    """What a block comes to after batches with these answers, None while it still asks."""
    next(block)
    try:
        for one in answers:
            block.send(one)
    except StopIteration as end:
        return end.value
    return None


# At boot.


def meet(status, **settings):
    secrets = b"".join(value.to_bytes(8, "little") for value in (SVSM.gpa, SVSM.length, 0x80_F000))
    secrets += (1).to_bytes(4, "little") + bytes([GUEST_VMPL, 0, 0, 0])
    block = kernel(**settings).blocks[0x100](Registers(0x100))
    return ending(block, (status, msr.SevInfo(2, 1, 51).value, secrets))


def test_sev_status_is_believed_of_what_the_kernel_was_built_for_alone():
    assert meet(STATUS) is None
    for other in (STATUS ^ 1 << 2, STATUS | 1 << 3, 0, op.Fault(op.FaultKind.GENERAL_PROTECTION, 0)):
        # It ends the VM; a hypervisor that goes on with it finds it powered off.
        block = kernel().blocks[0x100](Registers(0x100))
        next(block)
        assert block.send((other, msr.SevInfo(2, 1, 51).value, bytes(32))) == (op.VmgExit(0x100),)
        assert meet(other, checks_sev_status=False) is None


UNDEFINED = op.Fault(op.FaultKind.UNDEFINED_OPCODE, 0)


@pytest.mark.parametrize("read", [(None, CANARY, CANARY), (None, bytes(16), bytes(16)), (UNDEFINED, b"", CANARY)])
def test_memory_that_reads_alike_with_and_without_the_c_bit_ends_the_vm(read):
    done = (1 << 20,)
    for settings, expected in (({}, op.Shutdown(BOOT_FAILED)), ({"checks_c_bit": False}, None)):
        registers = Registers(ACCEPT_RIP)
        (registers.rbx,) = done
        answers = [read] if settings else [read, (0,)]
        assert ending(kernel(**settings).blocks[ACCEPT_RIP](registers), *answers) == expected


def test_each_kernel_s_canary_is_its_own():
    registers = Registers(ACCEPT_RIP)
    registers.rbx = 1 << 20
    written, *_ = next(kernel().blocks[ACCEPT_RIP](registers))
    assert written.data == CANARY


def test_a_page_that_was_valid_already_is_let_pass_by_a_kernel_that_does_not_look():
    assert not any(one.ignores_carry for one in kernel().entries(0, 400))
    careless = kernel(checks_carry=False).entries(0, 400)
    assert len(careless) > 20
    assert all(one.ignores_carry for one in careless)


def test_other_vcpus_register_pages_of_their_own_or_end_the_vm():
    other = kernel(1)
    register = msr.RegisterGhcbRequest(other.memory.ghcb_gpa(1) >> 12)
    block = other.blocks[0x200](Registers(0x200))
    assert next(block) == (op.VmgExit(register.value),)
    assert block.send((msr.RegisteredGhcb(msr.NO_PREFERENCE).value,)) == (op.VmgExit(0x100 | 1 << 12),)
    assert ending(kernel(1).blocks[0x200](Registers(0x200)), (msr.RegisteredGhcb(register.gfn).value,)) is None


# While it runs.


def asked(*instructions, vcpu=0, lie=None, **settings):
    """What a program at VMPL 2 gets for instructions that raise #VC; the VM, and the answers."""
    got = {}

    def step(placement, registers):
        if placement.vcpu == vcpu and not registers.rbx:
            registers.rbx = 1
            got["answers"] = yield instructions
        return op.Sleep(10**18)
        yield ()

    host = make_host({"asks": script(step)})
    spec = replace(guest_spec("vm", SNP, "asks", vcpus=2), svsm=True, kernel=KernelSettings(**settings))
    host.launch(spec, lambda _: None, running=True)
    if lie is not None:  # Firmware has seen its page by now.
        host.hypervisor._ghcb.leaves[SNP] = (CpuidEntry(*lie),)
    run(host, SECOND)
    return host.guests["vm"], got.get("answers")


@pytest.mark.parametrize("vcpu", [0, 1])
def test_what_raises_vc_at_vmpl_2_is_answered_there(vcpu):
    instructions = op.Cpuid(0, 0), op.Rdmsr(0xC001_0015), op.PortIn(0x60, 1), op.WriteDr7(0x455), op.ReadDr7()
    guest, (cpuid, msr_value, port, wrote, dr7) = asked(*instructions, vcpu=vcpu)
    assert guest.state is GuestState.RUNNING
    assert cpuid.ebx.to_bytes(4, "little") == b"Auth"
    assert msr_value.kind is op.FaultKind.GENERAL_PROTECTION
    assert (port, wrote, dr7) == (0xFF, None, 0x455)
    assert guest.faults == 5


LIE = ENCRYPTION_LEAF, 0, 0, 0, 0, 0, 0, 0


def test_cpuid_comes_from_the_page_that_the_svsm_handed_on():
    _, (found,) = asked(op.Cpuid(ENCRYPTION_LEAF, 0), lie=LIE)
    assert found.eax & 0b11010 == 0b11010


def test_without_the_page_a_denial_of_encryption_ends_the_vm_or_is_believed():
    guest, _ = asked(op.Cpuid(ENCRYPTION_LEAF, 0), lie=LIE, reads_cpuid_page=False)
    assert (guest.state, guest.shutdown_code) == (
        GuestState.STOPPED, TERMINATED | msr.ReasonSet.LINUX << 8 | msr.LinuxReason.CPUID_OF_HYPERVISOR,
    )  # fmt: skip
    guest, (found,) = asked(op.Cpuid(ENCRYPTION_LEAF, 0), lie=LIE, reads_cpuid_page=False, checks_cpuid=False)
    assert (guest.state, found.eax) == (GuestState.RUNNING, 0)


def test_a_page_that_is_not_validated_any_more_ends_the_vm():
    """Whoever took it away, and whatever the kernel's switches: it cannot accept a page itself."""

    def talk(talker):
        (page,) = PAGES[:1]
        rescind = page_list([PageEntry(page, validate=False)])
        yield from talker.do(op.Write(CAA + BUFFER, rescind))
        answer = yield from talker.call(0, 1, CAA + BUFFER)
        assert answer.result == 0
        return (yield from talker.do(op.Read(page, 16)))

    for kernel_settings in (CAREFUL, KernelSettings(checks_carry=False)):
        vm = SvsmVm(talk, kernel=kernel_settings)
        ended = TERMINATED | msr.ReasonSet.LINUX << 8 | msr.LinuxReason.PVALIDATE
        assert (vm.guest.state, vm.guest.shutdown_code, vm.said) == (GuestState.STOPPED, ended, None)


def test_a_program_with_a_handler_of_its_own_meets_vc_as_an_answer():
    guest, (found,) = asked(op.Cpuid(0, 0), handles_vc=False)
    assert guest.state is GuestState.RUNNING
    assert found.kind is op.FaultKind.VMM_COMMUNICATION


def test_calls_of_the_svsm_and_exits_of_the_kernel_do_not_disturb_each_other():
    def talk(talker):
        first = yield from talker.call(0, 6, 1)
        cpuid = yield from talker.do(op.Cpuid(0, 0))
        second = yield from talker.call(0, 6, 1)
        return first.result, cpuid.ebx, second.result

    assert SvsmVm(talk, kernel=CAREFUL).said == (0, int.from_bytes(b"Auth", "little"), 0)
