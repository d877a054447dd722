"""Exits through the GHCB on a board: what a hypervisor does for a guest, and what it refuses from a hostile one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_guests import COSTS, SECOND, make_host, run, script, spa, start

from node import ghcb_msr as msr
from node import operations as op
from node.ap_wake import JUMP_TABLE_GPA
from node.cpu_features import features_of
from node.cpu_model import VCPU_MODEL
from node.cpuid_page import cpuid_entries
from node.generation import Generation
from node.ghcb_page import SHARED_BUFFER, BadInput, GhcbReply, GhcbUntrusted, build_exit, parse_reply
from node.guest import GuestState
from node.nae_event import EVENTS, NaeEvent
from node.operations import Sleep
from node.page_state_list import GENERIC_FAILURE, INVALID_ENTRY, INVALID_HEADER, PageStateEntry, build_list
from node.product import PRODUCTS
from node.program import Registers
from node.vcpu_model import vcpu_model
from node.vcpu_runner import TERMINATED
from psp.system_bus import LARGE_PAGE_BYTES, RmpEntry

ES, SNP = Generation.SEV_ES, Generation.SEV_SNP
SHARED, PRIVATE = 2, 1
OFFERED = msr.HypervisorFeature(0b1_0111)
"""SNP, AP creation, restricted injection, list of APIC IDs."""


class Guest:
    """A guest that is up, and the hands of its kernel."""

    def __init__(self, generation):
        self.host = make_host()
        self.guest = start(self.host, "vm", generation, vcpus=2)
        run(self.host, SECOND)
        self.memory = self.guest.spec.memory
        self.ghcb = self.memory.shared.gpa
        if generation is SNP:
            assert self.message(msr.RegisterGhcbRequest(self.ghcb >> 12)) == msr.RegisteredGhcb(self.ghcb >> 12)

    def do(self, *batch):
        answers = self.host.board.execute_guest(self.host.board.vmcb("vm", 0), batch)
        return answers[0] if len(batch) == 1 else answers

    def message(self, request):
        return msr.parse_response(request, self.do(op.VmgExit(request.value)))

    def exit(self, page, gpa=None):
        gpa = self.ghcb if gpa is None else gpa
        self.do(op.Write(gpa, page, private=False), op.VmgExit(gpa))
        return self.do(op.Read(gpa, 4096, private=False))

    def ask(self, code, info1=0, info2=0, buffer=b"", **registers):
        registers = {"SW_SCRATCH" if name == "SCRATCH" else name: value for name, value in registers.items()}
        return self.exit(build_exit(code, info1, info2, registers, buffer))

    def change(self, *entries, scratch=None):
        """A page state change; its status, and the list as it came back."""
        data = build_list(entries) if entries and isinstance(entries[0], PageStateEntry) else b"".join(entries)
        at = self.ghcb + SHARED_BUFFER if scratch is None else scratch
        if scratch is not None:
            self.do(op.Write(scratch, data, private=False))
        back = self.ask(NaeEvent.PAGE_STATE_CHANGE, buffer=b"" if scratch else data, SCRATCH=at)
        return parse_reply(back, ()).info2, back[SHARED_BUFFER:]

    def rmp(self, gpa):
        return self.host.board.rmp.entry(spa(self.host, self.guest, gpa) // 4096 * 4096)

    def state(self):
        """Everything that a refused exit must leave alone."""
        board, record = self.host.board, self.host.hypervisor.launched("vm")
        return len(board.rmp), dict(record.ghcbs), dict(record.dr7), set(record.smashed), dict(board.terminated)


@pytest.fixture(params=[ES, SNP], ids=lambda one: one.name)
def either(request):
    return Guest(request.param)


@pytest.fixture
def snp():
    return Guest(SNP)


def refused(back):
    assert back[0x3F0:0x400] == (1 << 115 | 1 << 116).to_bytes(16, "little")
    assert int.from_bytes(back[0x398:0x3A0], "little") == 2
    return BadInput(int.from_bytes(back[0x3A0:0x3A8], "little"))


# The MSR protocol.


def test_the_hypervisor_says_its_versions_features_and_c_bit(either):
    info = either.message(msr.SevInfoRequest())
    assert info == msr.SevInfo(2, 1, either.host.spec.product.c_bit)
    expected = OFFERED if either.guest.spec.generation is SNP else 0
    assert either.message(msr.FeaturesRequest()) == msr.Features(expected)
    assert either.message(msr.PreferredGhcbRequest()) == msr.PreferredGhcb(msr.NO_PREFERENCE)
    assert either.message(msr.RunVmplRequest(1)).error


def test_cpuid_by_message_is_a_register_at_a_time(either):
    vendor = [either.message(msr.CpuidRequest(0, number)).result.to_bytes(4, "little") for number in (1, 3, 2)]
    assert b"".join(vendor) == b"AuthenticAMD"
    assert either.message(msr.CpuidRequest(0x1234_5678, 0)).result == 0


def test_a_value_that_is_no_request_is_left_as_it_is(either):
    before = either.state()
    for value in (0x001, 0x003, 0xFFF, 0x1002, 0x1006, 1 << 63 | 0x100):
        assert either.do(op.VmgExit(value)) == value
    assert either.state() == before
    assert either.do(op.VmgExit(-1)).kind is either.do(op.VmgExit(1 << 64)).kind is op.FaultKind.GENERAL_PROTECTION


def test_no_ghcb_is_registered_where_the_guest_has_no_memory(either):
    asked = msr.RegisterGhcbRequest(1 << 40)
    assert either.do(op.VmgExit(asked.value)) == msr.RegisteredGhcb(msr.NO_PREFERENCE).value


def test_one_page_changes_by_message(snp):
    gpa = snp.memory.placement("vm", 0, 0).base_gpa
    assert snp.message(msr.PageStateRequest(gpa >> 12, SHARED)) == msr.PageStateResult(0)
    assert not snp.rmp(gpa).assigned
    assert snp.message(msr.PageStateRequest(gpa >> 12, PRIVATE)) == msr.PageStateResult(0)
    assert (snp.rmp(gpa).assigned, snp.rmp(gpa).validated) == (True, False)
    for gfn, operation in ((1 << 39, SHARED), (gpa >> 12, 0), (gpa >> 12, 3), (gpa >> 12, 15)):
        assert snp.message(msr.PageStateRequest(gfn, operation)).error


def test_guests_without_an_rmp_change_no_page():
    guest = Guest(ES)
    assert guest.message(msr.PageStateRequest(0x2000, SHARED)).error
    pages = build_list([PageStateEntry(0, SHARED)])
    back = guest.ask(NaeEvent.PAGE_STATE_CHANGE, buffer=pages, SCRATCH=guest.ghcb + SHARED_BUFFER)
    assert refused(back) is BadInput.INVALID_EVENT


# The page.


def test_cpuid_through_the_page(either):
    signature, milan = vcpu_model(VCPU_MODEL).cpuid_signature, PRODUCTS["Milan"]
    generation, features = either.guest.spec.generation, features_of("Milan")
    for entry in cpuid_entries(signature, generation, milan.c_bit, milan.reduced_bits, features):
        state = {"XCR0": 7, "XSS": 0} if entry.eax_in == 0xD else {}
        asked = either.ask(NaeEvent.CPUID, RAX=entry.eax_in, RCX=entry.ecx_in, **state)
        reply = parse_reply(asked, EVENTS[NaeEvent.CPUID].outputs)
        assert reply.registers == {"RAX": entry.eax, "RBX": entry.ebx, "RCX": entry.ecx, "RDX": entry.edx}


def test_dr7_is_kept_for_each_vcpu(either):
    assert parse_reply(either.ask(NaeEvent.DR7_READ), ("RAX",)).registers == {"RAX": 0x400}
    parse_reply(either.ask(NaeEvent.DR7_WRITE, RAX=0x401), ())
    assert parse_reply(either.ask(NaeEvent.DR7_READ), ("RAX",)).registers == {"RAX": 0x401}
    assert either.host.hypervisor.launched("vm").dr7 == {(0, 0): 0x401}
    wide = parse_reply(either.ask(NaeEvent.DR7_WRITE, RAX=1 << 32), ())
    assert (wide.exception, wide.error_code) == (13, 0)
    assert either.host.hypervisor.launched("vm").dr7 == {(0, 0): 0x401}


def test_where_no_device_is_buses_read_ones(either):
    inb = parse_reply(either.ask(NaeEvent.IOIO, info1=0x3F8 << 16 | 0x11), ("RAX",))
    assert inb.registers == {"RAX": 0xFF}
    back = either.ask(NaeEvent.IOIO, info1=0x3F8 << 16 | 0x1D, info2=3, SCRATCH=either.ghcb + 0x810)
    assert (parse_reply(back, ()).info2, back[0x80F:0x814]) == (0, b"\0\xff\xff\xff\0")
    back = either.ask(NaeEvent.MMIO_READ, info1=0xFEC0_0000, info2=4, SCRATCH=either.ghcb + 0x800)
    assert back[0x800:0x805] == b"\xff" * 4 + b"\0"
    parse_reply(either.ask(NaeEvent.MMIO_WRITE, info1=0xFEC0_0000, info2=4, SCRATCH=either.ghcb + 0x800), ())
    parse_reply(either.ask(NaeEvent.IOIO, info1=0x80 << 16 | 0x10, RAX=1), ())


def test_an_msr_that_nobody_emulates_raises_gp(either):
    reply = parse_reply(either.ask(NaeEvent.MSR, RCX=0xC001_0131), ())
    assert (reply.exception, reply.error_code) == (13, 0)


@pytest.mark.parametrize("event", [NaeEvent.INVD, NaeEvent.MONITOR, NaeEvent.MWAIT, NaeEvent.NMI_COMPLETE])
def test_what_a_guest_may_do_but_a_hypervisor_need_not_is_done_with_nothing_said(either, event):
    before = either.state()
    back = either.ask(event, RAX=0, RCX=0, RDX=0)
    assert parse_reply(back, ()) == GhcbReply(0, {})
    assert either.state() == before


def test_there_are_no_counters_and_no_hypercalls(either):
    assert parse_reply(either.ask(NaeEvent.RDPMC, RCX=0), ()).exception == 13
    for cpl, error in ((0, 1000), (3, 1)):
        found = parse_reply(either.ask(NaeEvent.VMMCALL, RAX=12, CPL=cpl), ("RAX",)).registers["RAX"]
        assert found == (1 << 64) - error


def test_features_by_event(snp):
    assert parse_reply(snp.ask(NaeEvent.HYPERVISOR_FEATURES), ()).info2 == OFFERED


def test_pages_change_by_a_list_and_it_says_how_far_it_came(snp):
    base = snp.memory.placement("vm", 0, 0).base_gpa
    entries = [PageStateEntry(base, SHARED, large=True), PageStateEntry(base + LARGE_PAGE_BYTES, SHARED)]
    status, back = snp.change(*entries)
    assert (status, back[:8]) == (0, bytes([2, 0, 1, 0, 0, 0, 0, 0]))
    assert [int.from_bytes(back[at : at + 2], "little") & 0xFFF for at in (8, 16)] == [512, 1]
    assert not snp.rmp(base).assigned
    assert not snp.rmp(base + LARGE_PAGE_BYTES).assigned
    assert snp.rmp(base + LARGE_PAGE_BYTES + 4096).assigned
    assert snp.do(op.Write(base, b"open", private=False)) is None
    assert snp.change(*[PageStateEntry(one.gpa, PRIVATE, one.large) for one in entries])[0] == 0
    rights = (15, 0, 0, 0)
    assert snp.rmp(base) == RmpEntry(True, True, gpa=base, asid=snp.guest.asid, vmpl_permissions=rights)


def test_entries_that_repeat_a_page_or_name_it_in_both_sizes_are_done_one_after_another(snp):
    base = snp.memory.placement("vm", 0, 0).base_gpa
    inner = base + 4 * 4096
    orders = [
        PageStateEntry(inner, SHARED), PageStateEntry(inner, SHARED), PageStateEntry(inner, PRIVATE),
        PageStateEntry(base, SHARED, large=True), PageStateEntry(inner, PRIVATE), PageStateEntry(inner + 4096, PRIVATE),
        PageStateEntry(inner + 4096, SHARED),
    ]  # fmt: skip
    status, back = snp.change(*orders)
    assert (status, back[0]) == (0, len(orders))
    assert [snp.rmp(at).assigned for at in (base, inner, inner + 4096, inner + 8192)] == [False, True, False, False]
    assert snp.rmp(inner).gpa == inner
    # Given anew, it is nobody's to use before it is validated anew.
    assert snp.do(op.Read(inner, 4)).kind is op.FaultKind.PAGE_NOT_VALIDATED
    assert snp.do(op.Write(base, b"open", private=False)) is None


def test_a_list_may_lie_in_another_shared_page(snp):
    base = snp.memory.placement("vm", 0, 0).base_gpa
    scratch = snp.ghcb + 4096 - 16  # Inside of the GHCB page's tail: refused.
    with pytest.raises(GhcbUntrusted, match="reason 0x3"):
        snp.change(PageStateEntry(base, SHARED), scratch=scratch)
    status, _ = snp.change(PageStateEntry(base, SHARED), scratch=snp.ghcb + 2 * 4096 - 12)
    assert status == 0
    assert snp.do(op.Read(snp.ghcb + 2 * 4096 - 12, 2, private=False)) == b"\1\0"
    assert not snp.rmp(base).assigned


def word(gfn, operation=SHARED, large=0, done=0, reserved=0):
    return (done | gfn << 12 | operation << 52 | large << 56 | reserved << 57).to_bytes(8, "little")


def header(current, last):
    return current.to_bytes(2, "little") + last.to_bytes(2, "little") + bytes(4)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (header(1, 0) + word(1), INVALID_HEADER),
        (header(0, 253) + word(1) * 252, INVALID_HEADER),
        (header(0, 0xFFFF) + word(1), INVALID_HEADER),
        (header(0, 0) + word(1, 0), INVALID_ENTRY),
        (header(0, 1) + word(0x3000) + word(1, 9), INVALID_ENTRY),
        (header(0, 0) + word(0x3001, large=1), INVALID_ENTRY),
        (header(0, 0) + word(0x3000, reserved=1), INVALID_ENTRY),
    ],
)
def test_a_malformed_list_changes_nothing(snp, data, status):
    before = snp.rmp(0x3000 << 12), snp.state()
    assert snp.change(data)[0] == status
    assert (snp.rmp(0x3000 << 12), snp.state()) == before


def test_a_list_stops_at_a_page_that_is_not_the_guests(snp):
    base = snp.memory.placement("vm", 0, 0).base_gpa
    status, back = snp.change(*[PageStateEntry(gpa, SHARED) for gpa in (base, 1 << 40, base + 8192)])
    assert (status, back[0]) == (GENERIC_FAILURE, 1)
    assert not snp.rmp(base).assigned
    assert snp.rmp(base + 8192).assigned


def test_an_snp_guest_must_register_its_page_first(snp):
    other = snp.ghcb + 8192
    assert refused(snp.exit(build_exit(NaeEvent.HYPERVISOR_FEATURES), other)) is BadInput.NOT_REGISTERED
    es = Guest(ES)
    parse_reply(es.exit(build_exit(NaeEvent.CPUID, registers={"RAX": 0, "RCX": 0}), es.ghcb + 8192), ())


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        (build_exit(NaeEvent.CPUID, registers={"RAX": 0}), BadInput.MISSING_INPUT),
        (build_exit(0x8000_001B), BadInput.INVALID_EVENT),
        (build_exit(NaeEvent.TIO_OP), BadInput.INVALID_EVENT),
        (build_exit(NaeEvent.UNSUPPORTED), BadInput.INVALID_EVENT),
        (build_exit(NaeEvent.IOIO, 1), BadInput.INVALID_INPUT),
        (build_exit(NaeEvent.MMIO_READ, 0, 4, {"SW_SCRATCH": 1 << 45}), BadInput.BAD_SCRATCH),
        (build_exit(NaeEvent.CPUID, version=3), BadInput.INVALID_USAGE),
        (build_exit(NaeEvent.CPUID)[:4092] + b"\1\0\0\0", BadInput.INVALID_USAGE),
        (bytes(4096), BadInput.INVALID_USAGE),
    ],
)
def test_a_malformed_exit_gets_its_reason_and_changes_nothing(either, page, reason):
    before = either.state()
    assert refused(either.exit(page)) is reason
    assert either.state() == before


def test_an_event_that_this_hypervisor_does_not_offer_is_refused_like_one_that_is_none(either):
    before = either.state()
    for code in set(NaeEvent) - set(either.host.hypervisor._ghcb._events):
        back = either.ask(code, RAX=0, RBX=0, RCX=0, RDX=0, CPL=0, SCRATCH=either.ghcb + SHARED_BUFFER)
        assert refused(back) is BadInput.INVALID_EVENT
    assert either.state() == before


def test_a_page_that_is_private_is_not_served(snp):
    gpa = snp.memory.placement("vm", 0, 0).base_gpa
    assert snp.message(msr.RegisterGhcbRequest(gpa >> 12)) == msr.RegisteredGhcb(gpa >> 12)
    page = build_exit(NaeEvent.TERMINATION)
    snp.do(op.Write(gpa, page))
    assert snp.do(op.VmgExit(gpa)) == gpa
    assert snp.do(op.Read(gpa, 4096)) == page
    assert snp.state()[-1] == {}


def test_an_exit_without_memory_is_not_served(either):
    assert either.do(op.VmgExit(1 << 45)) == 1 << 45


def test_scratch_in_private_memory_is_refused(snp):
    gpa = snp.memory.placement("vm", 0, 0).base_gpa
    back = snp.ask(NaeEvent.MMIO_READ, info1=0xFEC0_0000, info2=4, SCRATCH=gpa)
    assert refused(back) is BadInput.BAD_SCRATCH


@pytest.mark.parametrize("generation", [Generation.PLAIN, Generation.SEV])
def test_guests_whose_registers_are_plain_have_no_vmgexit(generation):
    host = make_host()
    start(host, "vm", generation)
    (answer,) = host.board.execute_guest(host.board.vmcb("vm", 0), (op.VmgExit(0x002),))
    assert answer.kind is op.FaultKind.UNDEFINED_OPCODE


@pytest.mark.parametrize("place", [0x3000, SHARED_BUFFER])
def test_a_list_that_takes_its_own_scratch_page_away_is_refused_before_anything_changes(snp, place):
    base = snp.memory.placement("vm", 0, 0).base_gpa
    scratch = snp.ghcb + place
    page = scratch // 4096 * 4096
    data = build_list((PageStateEntry(base, SHARED), PageStateEntry(page, PRIVATE)))
    if place != SHARED_BUFFER:
        snp.do(op.Write(scratch, data, private=False))
    before, entry = snp.state(), snp.rmp(base)
    back = snp.ask(NaeEvent.PAGE_STATE_CHANGE, SCRATCH=scratch, buffer=data if place == SHARED_BUFFER else b"")
    assert refused(back) is BadInput.BAD_SCRATCH
    assert (snp.state(), snp.rmp(base), snp.rmp(page).assigned) == (before, entry, False)


# What a hypervisor puts into the MSR.


@pytest.mark.parametrize("answer", [1 << 64, 1 << 70, -(1 << 64), -(1 << 16) - 1, None, 1.5, "x", b"a"], ids=str)
def test_an_answer_that_no_msr_holds_is_none(either, answer):
    served = either.host.board.exits.vmgexit

    def serve(vm, vcpu, value):
        yield from served(vm, vcpu, value)
        return answer

    either.host.board.exits.vmgexit = serve
    before = either.state()
    assert either.do(op.VmgExit(msr.SevInfoRequest().value)) == op.Fault(op.FaultKind.UNDEFINED_OPCODE, 0)
    assert either.state() == before


# Double fetch: somebody else writes the page between two looks of the hypervisor.


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_hypervisor_looks_once(snp, elsewhere):
    base = snp.memory.placement("vm", 0, 0).base_gpa
    data = build_list([PageStateEntry(base, SHARED)])
    scratch = snp.ghcb + (0x3000 if elsewhere else SHARED_BUFFER)
    page = build_exit(NaeEvent.PAGE_STATE_CHANGE, registers={"SW_SCRATCH": scratch}, buffer=b"" if elsewhere else data)
    place, other = (spa(snp.host, snp.guest, gpa) for gpa in (snp.ghcb, scratch))
    memory = {place: page, other: data} if elsewhere else {place: page}
    looks = dict.fromkeys(memory, 0)
    task = snp.host.hypervisor.vmgexit("vm", 0, snp.ghcb)

    def answer(one):
        if isinstance(one, op.HostRead):
            # The first look is what the guest laid down, each later one is a page of ones.
            at = next(at for at in memory if at <= one.spa < at + 4096)
            looks[at] += 1
            found, memory[at] = memory[at], b"\xff" * 4096
            return found[: one.length].ljust(one.length, b"\0")
        return None if isinstance(one, op.HostWrite) else snp.host.board.execute_host((one,))[0]

    batch = next(task, None)
    while batch is not None:
        try:
            batch = task.send(tuple(map(answer, batch)))
        except StopIteration:
            batch = None
    assert set(looks.values()) == {1}
    assert not snp.rmp(base).assigned


# A guest's end.


@pytest.mark.parametrize("by_page", [False, True])
@pytest.mark.parametrize("generation", [ES, SNP])
def test_a_termination_ends_the_vm_with_its_reason(generation, by_page):
    def end(place, registers: Registers):
        if by_page:
            gpa = place.shared_gpa
            yield (op.VmgExit(msr.RegisterGhcbRequest(gpa >> 12).value),)
            yield (op.Write(gpa, build_exit(NaeEvent.TERMINATION, 0x1 | 0x21 << 4), private=False), op.VmgExit(gpa))
        else:
            yield (op.VmgExit(msr.TerminateRequest(1, 0x21).value),)
        registers.r13 += 1
        return Sleep(10**18)

    host = make_host({"end": script(end)})
    guest = start(host, "vm", generation, "end")
    run(host, SECOND)
    assert (guest.state, guest.shutdown_code, guest.units_of_work) == (GuestState.STOPPED, TERMINATED | 0x121, 0)
    assert not host.board.terminated
    host.destroy("vm")
    run(host)
    assert guest.state is GuestState.DESTROYED


def test_a_guest_waits_for_what_is_done_in_its_exits():
    def started(**changed):
        host = make_host(costs={**COSTS, **changed})
        guest = start(host, "vm", SNP)
        run(host, SECOND)
        vcpu = guest.vcpus[0]
        return guest.operation_ns, vcpu.elapsed_ns, guest.lost_ns["acceptance"], vcpu.slept_from_ns

    before = started()
    # Start-up shares the GHCB's page and the pool, 2 MiB of a guest this small: two RMPUPDATEs.
    after = started(**{"rmp.update_ns": COSTS["rmp.update_ns"] + 1000})
    assert [b - a for a, b in zip(before, after, strict=True)] == [2000, 2000, 2000, 2000]


# Anything at all.

FUZZED = {generation: Guest(generation) for generation in (ES, SNP)}
WORDS = st.integers(0, (1 << 64) - 1) | st.integers(0, 1 << 13) | st.integers(32 << 20, 40 << 20)


@settings(deadline=None)
@given(st.sampled_from([ES, SNP]), WORDS)
def test_any_value_of_the_msr_is_answered(generation, value):
    if value & 0xFFF in (0, 0x100) or value == 0x006:
        return  # a page, the VM's end, and an exit that does not come back yet
    answer = FUZZED[generation].do(op.VmgExit(value))
    assert isinstance(answer, int)
    assert 0 <= answer < 1 << 64


@settings(deadline=None)
@given(
    st.sampled_from([ES, SNP]),
    st.sampled_from(sorted({*EVENTS} - {NaeEvent.TERMINATION, NaeEvent.AP_RESET_HOLD})) | WORDS,
    WORDS,
    WORDS,
    st.dictionaries(st.sampled_from(("RAX", "RBX", "RCX", "RDX", "SW_SCRATCH")), WORDS),
    st.binary(max_size=40),
)
def test_any_page_is_served_or_refused_with_a_reason(generation, code, info1, info2, registers, buffer):
    guest = FUZZED[generation]
    back = guest.exit(build_exit(code, info1, info2, registers, buffer))
    try:
        parse_reply(back, ())
    except GhcbUntrusted:
        assert refused(back) in BadInput


def test_the_address_of_a_jump_table_is_kept_for_whoever_asks(either):
    def told(*words):
        return parse_reply(either.ask(NaeEvent.AP_JUMP_TABLE, *words), ()).info2

    kernel_s = JUMP_TABLE_GPA if either.guest.spec.generation is ES else 0
    assert told(1) == kernel_s
    told(0, 0x9000)
    assert told(1) == 0x9000
    for words in ((2,), (1 << 32,), (0, 0x9001), (0, 1 << 45)):
        assert refused(either.ask(NaeEvent.AP_JUMP_TABLE, *words)) is BadInput.INVALID_INPUT
    assert told(1) == 0x9000
    told(0, 0)
    assert told(1) == 0
