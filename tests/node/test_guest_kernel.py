"""The guest's start-up: shares the pool, accepts memory, and does not go on where anything is odd."""

import pytest
from toy_guests import MIX, make_host, rest, run, script, start

from node import ghcb_msr as msr
from node import operations as op
from node.ap_wake import JUMP_TABLE_GPA
from node.generation import Generation
from node.ghcb_page import BadInput, build_exit, build_reply, refusal
from node.guest import GuestState
from node.guest_kernel import ACCEPT_RIP, AP_RIP, BOOT_FAILED, CANARY_GPA, GuestKernel
from node.guest_memory_map import GuestMemoryMap
from node.kernel_settings import KernelSettings
from node.nae_event import NaeEvent
from node.page_state_list import GENERIC_FAILURE, PageOperation, PageStateList, build_list, entries_of
from node.program import Registers
from node.vcpu_runner import TERMINATED
from node.vmexit import ExitCode

PLAIN, SEV, ES, SNP = Generation.PLAIN, Generation.SEV, Generation.SEV_ES, Generation.SEV_SNP
MEMORY = GuestMemoryMap(64 << 20, 1)
RESET, ENTRY = 0xFFF0, 0x40_0000
NOBODY = msr.RegisteredGhcb(msr.NO_PREFERENCE).value
LAUNCHED = (0x80_0000, 0x80_1000, 0x80_9000)
GHCB = 0x80_2000
"""The first page of a block with launched pages that is none of them."""
STATUS = {SEV: 1, ES: 3, SNP: 7}
"""SEV_STATUS bits 0 to 2 (APM volume 2, 15.34.10)."""


CANARY = bytes(range(0x40, 0x50))


def kernel(generation=SNP, vcpu=0, **settings):
    return GuestKernel(generation, MEMORY, LAUNCHED, vcpu, RESET, ENTRY, KernelSettings(**settings), canary=CANARY)


def boot(one, answers, registers=None):
    """Run blocks, each on an object made anew, until the program's entry; returns (ending, batches)."""
    registers = registers or Registers(RESET)
    batches = []
    while registers.rip != ENTRY:
        block = one.blocks[registers.rip](registers)
        batch = next(block)
        try:
            while True:
                batches.append(batch)
                batch = block.send(tuple(answers(one_op) for one_op in batch))
        except StopIteration as end:
            if end.value is not None:
                return end.value, batches
    return None, batches


class Host:
    """A hypervisor and a processor that answer as they should, but for what a test puts in their place."""

    def __init__(self, generation=SNP, **instead):
        self.generation, self.instead = generation, instead
        self.page, self.lists = b"", []

    def __call__(self, one):
        name = {op.VmgExit: "exit", op.ReadSevStatus: "status", op.PValidate: "pvalidate"}.get(type(one), "")
        if isinstance(one, op.VmgExit):
            name = EXITS.get(one.msr & 0xFFF, "")
        elif isinstance(one, op.Read):
            name = "page" if one.gpa == GHCB else "shared" if not one.private else "private"
        answer = self.well(one)
        return self.instead[name](answer) if name in self.instead else answer

    def well(self, one):
        if isinstance(one, op.VmgExit):
            if not one.msr & 0xFFF:
                self.lists.append(PageStateList.parse(self.page[0x800:0xFF0]))
                done = len(self.lists[-1].entries).to_bytes(2, "little")
                self.page = bytes(build_reply(0, 0)).ljust(0x800, b"\0") + done + self.page[0x802:]
                return one.msr
            return {
                0x002: msr.SevInfo(2, 1, 51).value,
                0x080: msr.Features(1).value,
                0x014: msr.PageStateResult(0).value,
                0x012: one.msr + 1,
            }.get(one.msr & 0xFFF, one.msr)
        if isinstance(one, op.Write):
            self.page = one.data if one.gpa == GHCB else self.page
            return None
        if isinstance(one, op.Read):
            return self.page if one.gpa == GHCB else CANARY if one.private else bytes(16)
        return STATUS[self.generation] if isinstance(one, op.ReadSevStatus) else op.PValidateResult(0, unchanged=False)


EXITS = {0x002: "info", 0x080: "features", 0x014: "share", 0x012: "register", 0x000: "list"}


def flat(batches):
    return [one for batch in batches for one in batch]


def test_an_snp_guest_shares_its_pool_and_accepts_every_other_page_once():
    host = Host()
    ending, batches = boot(kernel(), host)
    assert ending is None
    (pages,) = host.lists
    pool = MEMORY.shared
    assert pages.entries == tuple(entries_of(pool.gpa, pool.length, PageOperation.SHARED))
    accepted = [one for one in flat(batches) if isinstance(one, op.PValidate)]
    pages = [page for one in accepted for page in range(one.gpa, one.gpa + one.length, 4096)]
    shared = (*range(pool.gpa, pool.gpa + pool.length, 4096), GHCB)
    expected = [page for page in range(0, 64 << 20, 4096) if page not in shared and page not in LAUNCHED]
    assert sorted(pages) == expected
    assert all(one.validate for one in accepted)


def test_an_snp_guest_speaks_to_its_hypervisor_in_the_order_of_the_protocol():
    _, batches = boot(kernel(), Host())
    spoken = [one.msr for one in flat(batches) if isinstance(one, op.VmgExit)]
    share = msr.PageStateRequest(GHCB >> 12, msr.MsrPageState.SHARED).value
    assert spoken == [0x002, 0x080, share, msr.RegisterGhcbRequest(GHCB >> 12).value, GHCB]
    pool = MEMORY.shared
    entries = build_list(entries_of(pool.gpa, pool.length, PageOperation.SHARED))
    page = build_exit(NaeEvent.PAGE_STATE_CHANGE, 0, 0, {"SW_SCRATCH": GHCB + 0x800}, entries)
    assert op.UpkeepWrite(GHCB, page, private=False, paid=True) in flat(batches)


@pytest.mark.parametrize("generation", [SEV, ES])
def test_guests_without_an_rmp_check_what_they_run_on_and_go_to_their_program(generation):
    ending, (batch,) = boot(kernel(generation), Host(generation))
    assert ending is None
    assert batch[0] == op.ReadSevStatus()
    assert [one for one in batch if isinstance(one, op.VmgExit)] == [op.VmgExit(0x002)] * (generation is ES)
    assert batch[-3:] == (
        op.UpkeepWrite(CANARY_GPA, CANARY), op.UpkeepRead(CANARY_GPA, 16, False), op.UpkeepRead(CANARY_GPA, 16)
    )  # fmt: skip


@pytest.mark.parametrize(("generation", "vcpu"), [(PLAIN, 0), (PLAIN, 1), (SEV, 1)])
def test_who_has_nothing_to_settle_goes_straight_to_its_program(generation, vcpu):
    assert boot(kernel(generation, vcpu), Host()) == (None, [()])


def test_every_other_vcpu_of_an_es_guest_waits_for_the_boot_processor():
    waiting = [(op.VmgExit(0x006),)]
    said = {op.VmgExit: 0x1007, op.UpkeepRead: AP_RIP.to_bytes(4, "little")}
    looks = (op.UpkeepRead(JUMP_TABLE_GPA, 4),)
    assert boot(kernel(ES, 1), lambda one: said[type(one)]) == (None, [*waiting, looks, ()])
    for lie in (0x006, 0x007, 0x1006, 0, op.Fault(op.FaultKind.UNDEFINED_OPCODE, 0)):
        ending, batches = boot(kernel(ES, 1), lambda _, lie=lie: lie)
        assert ending == op.Shutdown(BOOT_FAILED)
        assert batches == [*waiting, (op.VmgExit(msr.TerminateRequest(0, msr.GhcbReason.GENERAL).value),)]


def test_every_other_vcpu_of_an_snp_guest_registers_a_page_of_its_own_in_the_pool():
    memory = GuestMemoryMap(64 << 20, 2)
    page, place = memory.ghcb_gpa(1), memory.placement("vm", 1, 0)
    assert place.shared_gpa + place.shared_length == page
    assert page + 4096 <= memory.shared.gpa + memory.shared.length
    other = GuestKernel(SNP, memory, LAUNCHED, 1, RESET, ENTRY)
    register = op.VmgExit(msr.RegisterGhcbRequest(page >> 12).value)
    assert boot(other, Host(), Registers(AP_RIP)) == (None, [(register,)])
    ending, batches = boot(other, Host(register=lambda _: NOBODY), Registers(AP_RIP))
    assert ending == op.Shutdown(BOOT_FAILED)
    assert batches[-1] == (op.VmgExit(msr.TerminateRequest(1, msr.LinuxReason.REGISTER_GHCB).value),)


def ended(one, host):
    """The reason with which a kernel ended its VM: (set, code), or its shutdown code where it has no GHCB."""
    ending, batches = boot(one, host)
    assert ending == op.Shutdown(BOOT_FAILED)
    last = batches[-1][-1]
    if not isinstance(last, op.VmgExit):
        return ending.code
    request = msr.parse_request(last.msr)
    assert isinstance(request, msr.TerminateRequest)
    return request.reason_set, request.reason_code


FAULT = op.Fault(op.FaultKind.UNDEFINED_OPCODE, 0)
BAD_ACCEPTANCES = [
    op.PValidateResult(0, unchanged=True),
    op.PValidateResult(1, unchanged=False),
    op.PValidateResult(6, unchanged=False),
    op.Fault(op.FaultKind.RMP_FAULT, 0),
    None,
    0,
]


@pytest.mark.parametrize("bad", BAD_ACCEPTANCES)
def test_any_other_answer_to_acceptance_is_fatal(bad):
    assert ended(kernel(), Host(pvalidate=lambda _: bad)) == (1, msr.LinuxReason.PVALIDATE)


# GHCB specification 2.3.1 and 2.3.13; codes of Linux in set 1.
BAD_HYPERVISORS = {
    "speaks version 1 only": ({"info": lambda _: msr.SevInfo(1, 1, 51).value}, (0, 1)),
    "speaks from version 3 on": ({"info": lambda _: msr.SevInfo(4, 3, 51).value}, (0, 1)),
    "does not answer": ({"info": lambda _: 0x002}, (0, 1)),
    "answers with a fault": ({"info": lambda _: FAULT}, (0, 1)),
    "does not offer SNP": ({"features": lambda _: msr.Features(2).value}, (0, 2)),
    "offers nothing": ({"features": lambda _: 0x080}, (0, 2)),
    "does not share the GHCB page": ({"share": lambda _: msr.PageStateResult(1).value}, (1, 1)),
    "registers another page": ({"register": lambda answer: answer + 0x1000}, (1, 0)),
    "registers none": ({"register": lambda _: msr.RegisteredGhcb(msr.NO_PREFERENCE).value}, (1, 0)),
    "changes the MSR": ({"list": lambda answer: answer + 1}, (1, 1)),
    "refuses the list": ({"page": lambda _: refusal(BadInput.INVALID_EVENT).ljust(4096, b"\0")}, (1, 1)),
    "reports a failure": ({"page": lambda page: build_reply(0, GENERIC_FAILURE) + page[0x400:]}, (1, 1)),
    "leaves the list as it was": ({"page": lambda page: page[:0x800] + bytes(2) + page[0x802:]}, (1, 1)),
    "says more than there was": ({"page": lambda page: page[:0x800] + b"\xff\xff" + page[0x802:]}, (1, 1)),
    "leaves no outcome": ({"page": lambda page: bytes(0x400) + page[0x400:]}, (1, 1)),
}


@pytest.mark.parametrize(("instead", "reason"), BAD_HYPERVISORS.values(), ids=BAD_HYPERVISORS)
def test_a_hypervisor_that_does_not_keep_to_the_protocol_ends_the_vm_with_the_reason(instead, reason):
    assert ended(kernel(), Host(**instead)) == reason


def test_a_list_that_is_half_done_goes_on_with_the_rest():
    memory = GuestMemoryMap(128 << 20, 1)
    host = Host()
    host.instead = {"page": lambda page: page if len(host.lists) > 1 else page[:0x800] + b"\1\0" + page[0x802:]}
    ending, _ = boot(GuestKernel(SNP, memory, LAUNCHED, 0, RESET, ENTRY, canary=CANARY), host)
    assert ending is None
    first, second = host.lists
    assert first.entries[1:] == second.entries


@pytest.mark.parametrize("generation", [SEV, ES, SNP])
@pytest.mark.parametrize("status", [0, 1, 3, 7, 1 << 3 | 7, 1 << 40 | 7, 1 << 7 | 3, FAULT])
def test_a_kernel_runs_only_as_what_it_was_built_for(generation, status):
    instead = {"status": lambda _: status}
    if status == STATUS[generation]:
        assert boot(kernel(generation), Host(generation, **instead))[0] is None
        return
    assert ended(kernel(generation), Host(generation, **instead)) == (BOOT_FAILED if generation is SEV else (0, 0))
    assert boot(kernel(generation, checks_sev_status=False), Host(generation, **instead))[0] is None


@pytest.mark.parametrize("generation", [SEV, ES, SNP])
def test_memory_that_reads_the_same_without_the_c_bit_is_not_private(generation):
    instead = {"shared": lambda _: CANARY}
    assert ended(kernel(generation), Host(generation, **instead)) == (BOOT_FAILED if generation is SEV else (0, 0))
    assert boot(kernel(generation, checks_c_bit=False), Host(generation, **instead))[0] is None


@pytest.mark.parametrize("generation", [SEV, ES, SNP])
@pytest.mark.parametrize("found", [bytes(16), FAULT], ids=["noise", "fault"])
def test_memory_that_does_not_keep_what_was_written_is_not_the_guest_s(generation, found):
    instead = {"private": lambda _: found}
    assert ended(kernel(generation), Host(generation, **instead)) == (BOOT_FAILED if generation is SEV else (0, 0))
    assert boot(kernel(generation, checks_c_bit=False), Host(generation, **instead))[0] is None


def test_registers_of_start_up_do_not_reach_the_program():
    registers = Registers(RESET)
    registers.rdx = 0x800F12
    boot(kernel(), Host(), registers)
    assert {getattr(registers, name) for name in registers.__slots__ if name != "rip"} == {0}
    assert ACCEPT_RIP < MIX


def tampered(**instead):
    """A quiet SNP guest one of whose pages is validated behind its back."""
    host = make_host({"quiet": script(rest)}, **instead)
    guest = start(host, "vm", SNP, "quiet")
    page = guest.spec.memory.placement("vm", 0, 0).base_gpa
    vmcb = host.board.vmcb("vm", 0)
    assert host.board.execute_guest(vmcb, (op.PValidate(page, 2 << 20, large=True),)) == (op.PValidateResult(0, False),)
    run(host)
    return guest


def test_a_page_validated_behind_the_guests_back_ends_it_at_start_up():
    guest = tampered()
    reason = msr.ReasonSet.LINUX << 8 | msr.LinuxReason.PVALIDATE
    assert (guest.state, guest.shutdown_code) == (GuestState.STOPPED, TERMINATED | reason)


@pytest.mark.parametrize("generation", [SEV, ES, SNP])
def test_an_es_or_snp_guest_that_is_run_as_less_does_not_come_up(generation):
    host = make_host({"quiet": script(rest)})
    guest = start(host, "vm", generation, "quiet")
    vmcb = host.board.vmcb("vm", 0)
    # The hypervisor enters it without encryption: its code, memory and registers read as garbage, or not at all.
    host.board.execute_host((op.VmcbWrite("vm", 0, vmcb.asid, PLAIN.name, vmcb.save_area_spa),))
    run(host)
    # An SNP guest's save area is no page of the hypervisor's, so VMRUN itself refuses it.
    code = ExitCode.INVALID & 0xFF if generation is SNP else ExitCode.SHUTDOWN
    assert (guest.state, guest.shutdown_code) == (GuestState.STOPPED, code)


@pytest.mark.parametrize("generation", [PLAIN, SEV, ES, SNP])
def test_sev_status_is_the_processors_word(generation):
    host = make_host()
    start(host, "vm", generation)
    (status,) = host.board.execute_guest(host.board.vmcb("vm", 0), (op.ReadSevStatus(),))
    if generation is PLAIN:
        assert status.kind is op.FaultKind.GENERAL_PROTECTION
    else:
        assert status == STATUS[generation]
