"""The board: who may do what to which memory, per generation."""

import gc
import tracemalloc

import pytest
from toy_guests import GENERATIONS, MIB, guest_spec, look, make_host, run, spa, start

from node import operations as op
from node.generation import Generation
from node.guest import GuestState
from node.host_instructions import VMEXIT_BUSY, VMEXIT_INVALID
from node.rmp import ERROR_PRESENT, ERROR_RMP, ERROR_WRITE
from node.rmp_entry import decoded
from psp.system_bus import LARGE_PAGE_BYTES, RmpEntry

SECRET = b"a guest's secret" * 16
UD = op.FaultKind.UNDEFINED_OPCODE
OF_THE_HOST = 4
"""Runs of the RMP that no guest made: the pages the table itself lies in, and the IOMMU's event log and semaphore."""


@pytest.fixture(params=GENERATIONS, ids=lambda one: one.name)
def machine(request):
    host = make_host()
    guest = start(host, "vm", request.param)
    run(host)
    return host, guest


def by_guest(host, guest, *batch):
    return host.board.execute_guest(host.board.vmcb(guest.spec.name, 0), batch)


def by_host(host, *batch):
    return host.board.execute_host(batch)


def place(guest):
    return guest.spec.memory.placement(guest.spec.name, 0, 0)


def test_private_memory_is_ciphertext_to_the_host_where_the_generation_encrypts(machine):
    host, guest = machine
    gpa = place(guest).base_gpa
    assert by_guest(host, guest, op.Write(gpa, SECRET), op.Read(gpa, len(SECRET))) == (None, SECRET)
    (seen,) = by_host(host, op.HostRead(spa(host, guest, gpa), len(SECRET)))
    assert (seen == SECRET) is (guest.spec.generation is Generation.PLAIN)
    # Equal blocks at unequal addresses do not look alike.
    assert len({seen[at : at + 16] for at in range(0, len(seen), 16)}) == (1 if seen == SECRET else 16)


def test_shared_memory_is_in_the_clear_for_both(machine):
    host, guest = machine
    gpa = place(guest).shared_gpa
    at = spa(host, guest, gpa)
    assert by_guest(host, guest, op.Write(gpa, SECRET, private=False)) == (None,)
    assert by_host(host, op.HostRead(at, len(SECRET))) == (SECRET,)
    assert by_host(host, op.HostWrite(at, b"from the host")) == (None,)
    assert look(host, guest, gpa, 13, private=False) == b"from the host"


def test_what_a_host_store_to_private_memory_does_depends_on_the_generation(machine):
    host, guest = machine
    gpa = place(guest).base_gpa
    at = spa(host, guest, gpa)
    by_guest(host, guest, op.Write(gpa, SECRET))
    before = host.board.dram.read(at, len(SECRET))
    (answer,) = by_host(host, op.HostWrite(at, b"evil" * 4))
    after = look(host, guest, gpa, len(SECRET))
    if guest.spec.generation is Generation.SEV_SNP:
        assert answer == op.Fault(op.FaultKind.RMP_FAULT, at, ERROR_PRESENT | ERROR_RMP | ERROR_WRITE)
        assert host.board.dram.read(at, len(SECRET)) == before
        assert after == SECRET
    elif guest.spec.generation in (Generation.SEV, Generation.SEV_ES):
        assert answer is None
        assert after[:16] not in (SECRET[:16], b"evil" * 4)
        assert after[16:] == SECRET[16:]
    else:
        assert answer is None
        assert after == b"evil" * 4 + SECRET[16:]


def test_a_host_clear_of_private_memory_is_refused_only_by_the_rmp(machine):
    host, guest = machine
    gpa = place(guest).base_gpa
    by_guest(host, guest, op.Write(gpa, SECRET))
    (answer,) = by_host(host, op.HostClear(spa(host, guest, gpa), 4096))
    if guest.spec.generation is Generation.SEV_SNP:
        assert answer.kind is op.FaultKind.RMP_FAULT
        assert look(host, guest, gpa, len(SECRET)) == SECRET
    else:
        assert answer is None


def snp():
    host = make_host()
    guest = start(host, "vm", Generation.SEV_SNP)
    run(host)
    return host, guest


def test_a_guest_shares_a_page_of_a_large_one_and_takes_it_back():
    host, guest = snp()
    gpa = place(guest).base_gpa + LARGE_PAGE_BYTES
    by_guest(host, guest, op.Write(gpa, SECRET), op.Write(gpa + 4096, SECRET))
    # The guest gives up one 4 KiB page: it must rescind a large page as a whole, so the host smashes first.
    assert by_guest(host, guest, op.PageStateChange(gpa, 4096, shared=True)) == (0,)
    assert look(host, guest, gpa + 4096, len(SECRET)) == SECRET
    assert by_guest(host, guest, op.Write(gpa, b"open", private=False)) == (None,)
    assert by_host(host, op.HostRead(spa(host, guest, gpa), 4)) == (b"open",)
    assert look(host, guest, gpa, 4).kind is op.FaultKind.RMP_FAULT
    assert by_guest(host, guest, op.PageStateChange(gpa, 4096, shared=False)) == (0,)
    assert look(host, guest, gpa, 4).kind is op.FaultKind.PAGE_NOT_VALIDATED
    assert by_guest(host, guest, op.PValidate(gpa, 4096, large=False)) == (op.PValidateResult(0, unchanged=False),)
    assert by_guest(host, guest, op.Write(gpa, SECRET)) == (None,)
    assert look(host, guest, gpa, len(SECRET)) == SECRET
    host.destroy("vm")
    run(host)
    assert guest.state is GuestState.DESTROYED
    assert len(host.board.rmp) == OF_THE_HOST


def test_a_shared_large_block_taken_back_in_parts_goes_at_the_end_too():
    host, guest = snp()
    pool = guest.spec.memory.shared
    assert by_guest(host, guest, op.PageStateChange(pool.gpa, 4096, shared=False)) == (0,)
    assert by_guest(host, guest, op.PageStateChange(pool.gpa, pool.length, shared=False)) == (0,)
    assert by_guest(host, guest, op.PageStateChange(pool.gpa, pool.length, shared=True)) == (0,)
    (answer,) = by_guest(host, guest, op.Write(pool.gpa, b"x", private=False))
    assert answer is None
    host.destroy("vm")
    run(host)
    assert len(host.board.rmp) == OF_THE_HOST
    assert host.hypervisor.frames.used_bytes == 4096


@pytest.mark.parametrize(
    ("gpa", "length"),
    [(1, 4096), (0, 0), (0, -4096), (-4096, 4096), (0, 100), (1 << 50, 4096), (64 * MIB - 4096, 8192)],
)
def test_a_page_state_change_of_no_memory_is_refused_and_changes_nothing(gpa, length):
    host, guest = snp()
    before = [host.board.rmp.entry(at) for at in range(0, 128 * MIB, LARGE_PAGE_BYTES // 2)]
    assert by_guest(host, guest, op.PageStateChange(gpa, length, shared=True)) == (1,)
    assert [host.board.rmp.entry(at) for at in range(0, 128 * MIB, LARGE_PAGE_BYTES // 2)] == before


def test_pvalidate_twice_says_unchanged():
    host, guest = snp()
    gpa = place(guest).base_gpa
    again = op.PValidate(gpa, LARGE_PAGE_BYTES, large=True)
    assert by_guest(host, guest, again) == (op.PValidateResult(0, unchanged=True),)
    rescind = op.PValidate(gpa, LARGE_PAGE_BYTES, large=True, validate=False)
    assert by_guest(host, guest, rescind, again) == (op.PValidateResult(0, False), op.PValidateResult(0, False))


def test_another_snp_guests_page_is_out_of_reach_even_through_the_hosts_tables():
    host, guest = snp()
    other = start(host, "other", Generation.SEV_SNP)
    run(host)
    gpa = place(guest).base_gpa
    by_guest(host, guest, op.Write(gpa, SECRET))
    by_host(host, op.NestedMap("other", gpa, spa(host, guest, gpa), 4096))
    assert look(host, other, gpa, 16).kind is op.FaultKind.RMP_FAULT
    assert look(host, guest, gpa, len(SECRET)) == SECRET


@pytest.mark.parametrize("generation", [Generation.PLAIN, Generation.SEV])
def test_a_guest_without_rmp_entries_cannot_write_to_an_snp_guests_page(generation):
    host, guest = snp()
    other = start(host, "other", generation)
    gpa = place(guest).base_gpa
    by_guest(host, guest, op.Write(gpa, SECRET))
    by_host(host, op.NestedMap("other", gpa, spa(host, guest, gpa), 4096))
    for private in (True, False):
        (answer,) = by_guest(host, other, op.Write(gpa, b"evil", private))
        assert answer.kind is op.FaultKind.RMP_FAULT
    assert look(host, guest, gpa, len(SECRET)) == SECRET


GUEST_ONLY = [op.Read(0, 1), op.Write(0, b"x"), op.PValidate(0, 4096, False), op.PageStateChange(0, 4096, True)]
GUEST_ONLY += [op.RmpAdjust(0, 4096, False, 1, 1), op.RmpQuery(0, 1)]
GUEST_ONLY += [op.BlockRead(0, 1, 0), op.BlockWrite(0, 1, 0), op.Clflush(0, 64), op.TimedRead(0)]
HOST_ONLY = [
    op.HostRead(0, 1), op.HostWrite(0, b"x"), op.HostClear(0, 4096), op.HostWork("psp.launch_region_ns"),
    op.RmpUpdate(0, 4096, RmpEntry()), op.PSmash(0), op.RmpRead(0), op.NestedMap("vm", 0, 0, 4096),
    op.NestedUnmap("vm", 0, 4096),
    op.VmcbWrite("vm", 0, 0, "PLAIN", 0), op.VmRun("vm", 0), op.VmcbClear("vm"), op.PspCommand(1), op.Wbinvd(),
    op.HostClflush(0, 64), op.Invd(), op.VmPageFlush(0, 1), op.HostTimedRead(0),
]  # fmt: skip


def test_a_role_gets_undefined_opcode_for_the_others_instructions(machine):
    host, guest = machine
    assert {answer.kind for answer in by_host(host, *GUEST_ONLY)} == {UD}
    assert {answer.kind for answer in by_guest(host, guest, *HOST_ONLY)} == {UD}
    assert guest.state is GuestState.RUNNING


def test_rmp_instructions_are_undefined_without_an_rmp_or_without_snp():
    host = make_host(product="Rome")
    assert by_host(host, op.PSmash(0))[0].kind is UD
    assert by_host(host, op.RmpUpdate(0, 4096, RmpEntry()))[0].kind is UD
    for generation in (Generation.PLAIN, Generation.SEV):
        guest = start(host, generation.name, generation)
        assert by_guest(host, guest, op.PValidate(0, 4096, False))[0].kind is UD


@pytest.mark.parametrize("address", [-1, -4096, 1 << 45, (4 << 30) - 1])
def test_addresses_without_memory_are_machine_checks_to_the_host(address):
    host = make_host(product="Rome")  # without an RMP in the last page
    for one in (op.HostRead(address, 16), op.HostWrite(address, bytes(16)), op.HostClear(address, 4096)):
        (answer,) = by_host(host, one)
        assert answer.kind is op.FaultKind.MACHINE_CHECK


@pytest.mark.parametrize("address", [-1, -4096, 1 << 45, 64 * MIB, 64 * MIB - 8])
def test_addresses_without_a_mapping_are_nested_page_faults_to_a_guest(machine, address):
    host, guest = machine
    for one in (op.Read(address, 16), op.Write(address, bytes(16)), op.Read(address, 16, private=False)):
        (answer,) = by_guest(host, guest, one)
        assert answer.kind is op.FaultKind.NESTED_PAGE_FAULT


def test_accesses_across_pieces_of_memory_join_them(machine):
    host, guest = machine
    gpa = place(guest).base_gpa
    by_host(host, op.HostRead(0, 1))
    data = bytes(range(256)) * 64
    assert by_guest(host, guest, op.Write(gpa + LARGE_PAGE_BYTES - 1000, data)) == (None,)
    assert look(host, guest, gpa + LARGE_PAGE_BYTES - 1000, len(data)) == data


def test_vmrun_refuses_a_block_without_save_area_key_or_entry():
    host, guest = snp()
    area = guest.vcpus[0].save_area_spa
    assert by_host(host, op.VmRun("nobody", 0), op.VmRun("vm", 7)) == (VMEXIT_INVALID,) * 2
    assert by_host(host, op.VmRun("vm", 0)) == (VMEXIT_BUSY,)
    host.pause("vm")
    run(host)
    assert by_host(host, op.VmRun("vm", 0)) == (0,)
    free = host.hypervisor.frames.used_bytes + 64 * MIB
    for changed in (
        op.VmcbWrite("x", 0, guest.asid + 1, "SEV_SNP", area),
        op.VmcbWrite("x", 0, guest.asid, "SEV_SNP", free),
        op.VmcbWrite("x", 0, 120, "SEV", free),
    ):
        assert by_host(host, changed, op.VmRun("x", 0)) == (None, VMEXIT_INVALID)


def test_an_access_through_an_empty_key_slot_is_a_fault_and_no_crash():
    host = make_host()
    guest = start(host, "vm", Generation.SEV)
    gpa = place(guest).base_gpa
    host.board.controller.remove_key(guest.asid)
    assert look(host, guest, gpa, 16).kind is op.FaultKind.MACHINE_CHECK
    assert by_guest(host, guest, op.Write(gpa, b"x"))[0].kind is op.FaultKind.MACHINE_CHECK


@pytest.fixture(scope="module")
def others_aside():
    """What other tests left is collected once, and not looked through again and again."""
    gc.collect()
    gc.freeze()


@pytest.mark.usefixtures("others_aside")
@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("touched", [0, MIB])
def test_a_guest_of_16_gib_costs_little_until_it_is_touched(generation, touched):
    """Counted: pages of DRAM that hold bytes, and the interpreter's memory.

    A guest like it was there before: lists of pages that all kernels of a size send are kept once. The last entries
    that a process decoded are nobody's; and what another thread or a first use takes meanwhile, it takes of one alone.
    """
    host = make_host(memory_bytes=64 << 30)
    start(host, "first", generation, memory_bytes=16 << 30)
    run(host)
    costs = []
    for name in ("second", "third"):
        gc.collect()
        tracemalloc.start()
        resident = host.board.dram.resident_bytes
        guest = start(host, name, generation, memory_bytes=16 << 30)
        run(host)
        gpa = place(guest).base_gpa
        for at in range(0, touched, 65536):
            by_guest(host, guest, op.Write(gpa + at, b"\1" * 65536))
        decoded.cache_clear()
        gc.collect()
        heap = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        costs.append(heap + host.board.dram.resident_bytes - resident)
    assert min(costs) <= (2 << 20 if touched else 64 << 10)


def test_specifications_of_guests_with_impossible_sizes_are_named():
    with pytest.raises(ValueError, match="memory: expected"):
        _ = guest_spec("vm", Generation.PLAIN, memory_bytes=3 * MIB).memory
