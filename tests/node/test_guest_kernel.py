"""The guest's start-up: shares the pool, accepts memory, and does not go on where anything is odd."""

import pytest
from toy_guests import MIX, make_host, rest, run, script, start

from node import operations as op
from node.generation import Generation
from node.guest import GuestState
from node.guest_kernel import ACCEPT_RIP, BOOT_FAILED, GuestKernel
from node.guest_memory_map import GuestMemoryMap
from node.program import Registers

MEMORY = GuestMemoryMap(64 << 20, 2)
RESET, ENTRY = 0xFFF0, 0x40_0000
LAUNCHED = (0x80_0000, 0x80_1000, 0x80_9000)


def kernel(generation=Generation.SEV_SNP, vcpu=0):
    return GuestKernel(generation, MEMORY, LAUNCHED, vcpu, RESET, ENTRY)


def boot(one, answer, registers=None):
    """Run blocks, each on an object made anew, until the program's entry; returns (ending, batches)."""
    registers = registers or Registers(RESET)
    batches = []
    while registers.rip != ENTRY:
        block = one.blocks[registers.rip](registers)
        batch = next(block)
        batches.append(batch)
        with pytest.raises(StopIteration) as end:
            block.send(tuple(answer(one_op) for one_op in batch))
        if end.value.value is not None:
            return end.value.value, batches
    return None, batches


def good(one):
    return 0 if isinstance(one, op.PageStateChange) else op.PValidateResult(0, unchanged=False)


def test_an_snp_guest_shares_its_pool_and_accepts_every_other_page_once():
    ending, batches = boot(kernel(), good)
    assert ending is None
    first, *others = [one for batch in batches for one in batch]
    assert first == op.PageStateChange(MEMORY.shared.gpa, MEMORY.shared.length, shared=True)
    pages = [page for one in others for page in range(one.gpa, one.gpa + one.length, 4096)]
    shared = range(MEMORY.shared.gpa, MEMORY.shared.gpa + MEMORY.shared.length)
    expected = [page for page in range(0, 64 << 20, 4096) if page not in shared and page not in LAUNCHED]
    assert sorted(pages) == expected
    assert all(one.validate for one in others)


@pytest.mark.parametrize("generation", [Generation.PLAIN, Generation.SEV])
def test_guests_without_an_rmp_go_straight_to_their_program(generation):
    ending, batches = boot(kernel(generation), good)
    assert (ending, batches) == (None, [()])


def test_other_vcpus_accept_nothing():
    assert boot(kernel(vcpu=1), good) == (None, [()])


BAD = [
    op.PValidateResult(0, unchanged=True),
    op.PValidateResult(1, unchanged=False),
    op.PValidateResult(6, unchanged=False),
    op.Fault(op.FaultKind.RMP_FAULT, 0),
    None,
    0,
]


@pytest.mark.parametrize("bad", BAD)
def test_any_other_answer_to_acceptance_is_fatal(bad):
    def answer(one):
        return bad if isinstance(one, op.PValidate) and one.gpa else good(one)

    ending, _ = boot(kernel(), answer)
    assert ending == op.Shutdown(BOOT_FAILED)


@pytest.mark.parametrize("bad", [1, -1, op.Fault(op.FaultKind.NESTED_PAGE_FAULT, 0)])
def test_a_refused_page_state_change_is_fatal(bad):
    ending, batches = boot(kernel(), lambda _: bad)
    assert ending == op.Shutdown(BOOT_FAILED)
    assert len(batches) == 1


def test_registers_of_start_up_do_not_reach_the_program():
    registers = Registers(RESET)
    registers.rdx = 0x800F12
    boot(kernel(), good, registers)
    assert {getattr(registers, name) for name in registers.__slots__ if name != "rip"} == {0}
    assert ACCEPT_RIP < MIX


def test_a_page_validated_behind_the_guests_back_ends_it_at_start_up():
    host = make_host({"quiet": script(rest)})
    guest = start(host, "vm", Generation.SEV_SNP, "quiet")
    page = guest.spec.memory.placement("vm", 0, 0).base_gpa
    vmcb = host.board.vmcb("vm", 0)
    assert host.board.execute_guest(vmcb, (op.PValidate(page, 2 << 20, large=True),)) == (op.PValidateResult(0, False),)
    run(host)
    assert (guest.state, guest.shutdown_code) == (GuestState.STOPPED, BOOT_FAILED)
