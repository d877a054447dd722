"""Prices of operations, by mechanism and generation."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_guests import COSTS, GENERATIONS, KIND, MIB

from node import operations as op
from node.generation import Generation
from node.mechanism import Mechanism
from node.operation_cost import PSC_ENTRIES, GuestOperationCost, HostOperationCost
from psp import command_buffers as buffers
from psp.commands import LegacyCommand, SnpCommand
from psp.system_bus import RmpEntry

LATENCY = COSTS["dram.latency_ns"]
BYTE_NS = 1e9 / COSTS["dram.copy_bytes_per_s"]


def price(generation, *batch, latency=LATENCY):
    lost = dict.fromkeys(Mechanism, 0.0)
    total = GuestOperationCost(generation, COSTS, KIND).price(batch, latency, lost)
    return total, {one: ns for one, ns in lost.items() if ns}


def test_a_plain_load_costs_the_latency_and_its_bytes():
    total, lost = price(Generation.PLAIN, op.Read(0, 65536))
    assert lost == {Mechanism.OPERATIONS: pytest.approx(LATENCY + 65536 * BYTE_NS)}
    assert total == round(lost[Mechanism.OPERATIONS])


@pytest.mark.parametrize("one", [op.Read(0, 4096), op.Write(0, bytes(4096))])
def test_only_private_accesses_of_encrypted_guests_pay_the_cipher(one):
    plain, _ = price(Generation.PLAIN, one)
    for generation in (Generation.SEV, Generation.SEV_SNP):
        total, lost = price(generation, one)
        assert total > plain
        assert lost[Mechanism.ENCRYPTION] >= COSTS["dram.encryption_adder_ns"]
    shared = op.Read(0, 4096, private=False)
    assert price(Generation.SEV, shared) == price(Generation.PLAIN, shared)


def test_a_copy_is_two_accesses_and_the_rate_of_a_copy() -> None:
    one = op.Copy(0, 1 << 20, 65536, target_private=False)
    _, plain = price(Generation.PLAIN, one)
    _, snp = price(Generation.SEV_SNP, one)
    assert plain == {Mechanism.BOUNCE: pytest.approx(2 * LATENCY + 65536 * BYTE_NS)}
    share, adder_ns = COSTS["dram.encrypted_bandwidth_share"], COSTS["dram.encryption_adder_ns"]
    assert snp == {Mechanism.BOUNCE: pytest.approx(2 * LATENCY + adder_ns + 65536 * BYTE_NS / share)}
    assert price(Generation.PLAIN, one, latency=2 * LATENCY)[0] == round(4 * LATENCY + 65536 * BYTE_NS)


def test_the_hosts_present_latency_is_what_counts():
    assert price(Generation.PLAIN, op.Read(0, 1), latency=500.0)[0] == round(500 + BYTE_NS)


def test_acceptance_is_priced_by_page_and_size():
    _, large = price(Generation.SEV_SNP, op.PValidate(0, 8 * MIB, large=True))
    _, small = price(Generation.SEV_SNP, op.PValidate(0, 8 * MIB, large=False))
    assert large == {Mechanism.ACCEPTANCE: 4 * COSTS["rmp.pvalidate_large_ns"]}
    assert small == {Mechanism.ACCEPTANCE: 2048 * COSTS["rmp.pvalidate_ns"]}


@pytest.mark.parametrize(("length", "pages"), [(2 * MIB, 1), (600 * 2 * MIB, 600), (4096, 1), (5 * 4096, 5)])
def test_a_page_state_change_is_one_exit_for_each_full_request(length, pages):
    calls = -(-pages // PSC_ENTRIES)
    _, lost = price(Generation.SEV_SNP, op.PageStateChange(0, length, shared=True))
    assert lost[Mechanism.ACCEPTANCE] == pytest.approx(pages * COSTS["rmp.update_ns"])
    assert lost[Mechanism.VMGEXIT] == pytest.approx(calls * COSTS["core.vmgexit_ns"])
    assert Mechanism.OPERATIONS not in lost


@pytest.mark.parametrize(
    ("generation", "row"), [(Generation.SEV, "core.hypercall_ns"), (Generation.SEV_ES, "core.vmgexit_ns")]
)
def test_without_an_rmp_to_share_a_range_is_one_call_that_no_plain_machine_makes(generation, row):
    _, lost = price(generation, op.PageStateChange(0, 1 << 30, shared=True))
    assert lost == {Mechanism.VMGEXIT: COSTS[row]}


def test_an_exit_costs_the_round_trip_and_part_of_it_is_the_instructions_that_it_stands_for():
    whole, exit_ns = COSTS["core.vmgexit_ns"], COSTS["core.exit_ns"]
    assert price(Generation.SEV_ES, op.VmgExit(0x1000))[1] == {Mechanism.VMGEXIT: whole}
    assert price(Generation.SEV_ES, op.VmgExit(0x1000, instead=True))[1] == {
        Mechanism.OPERATIONS: exit_ns, Mechanism.VMGEXIT: whole - exit_ns,
    }  # fmt: skip


def test_accesses_that_only_guests_with_a_key_make_are_booked_to_what_they_are_for():
    own = COSTS["dram.encryption_adder_ns"]
    _, lost = price(Generation.SEV_SNP, op.UpkeepRead(0, 16, mechanism=Mechanism.BOUNCE))
    share = COSTS["dram.encrypted_bandwidth_share"]
    assert lost == {Mechanism.BOUNCE: pytest.approx(LATENCY + own + 16 * BYTE_NS / share)}
    _, lost = price(Generation.SEV_SNP, op.UpkeepWrite(0, bytes(16), private=False))
    assert lost == {Mechanism.ACCEPTANCE: pytest.approx(LATENCY + 16 * BYTE_NS)}
    assert price(Generation.SEV_SNP, op.UpkeepWrite(0, bytes(4096), paid=True)) == (0, {})


def test_a_copy_has_a_row_of_its_own():
    costs = COSTS | {"bounce.copy_ns_per_kib": 0.0, "upkeep.misses_per_access": 0.0}
    lost = dict.fromkeys(Mechanism, 0.0)
    copy = op.Copy(0, 0, 1 << 20, source_private=False, target_private=False)
    assert GuestOperationCost(Generation.SEV_SNP, costs, KIND).price((copy,), LATENCY, lost) == 0
    assert not any(lost.values())


def test_a_disk_request_costs_an_snp_guest_dearer_exits():
    request = op.BlockRead(0, 16, 0)
    plain, _ = price(Generation.PLAIN, request)
    assert price(Generation.SEV, request)[0] == plain
    assert plain == round(COSTS["disk.read_ns"] + 61440 * 1e9 / COSTS["disk.bytes_per_s"])
    _, lost = price(Generation.SEV_SNP, request)
    extra = COSTS["core.vmgexit_ns"] - COSTS["core.exit_ns"]
    assert lost[Mechanism.VMGEXIT] == pytest.approx(COSTS["disk.exits_per_request"] * extra)


def test_a_disk_goes_as_fast_as_was_measured_in_a_plain_vm():
    """PM1735 behind virtio-blk: 104.5 and 37.3 us for 4 KiB at queue depth 1, 4890 and 1953 MiB/s at most."""
    for request, least_us, mib_per_s in ((op.BlockRead, 104.5, 4890), (op.BlockWrite, 37.3, 1953)):
        assert price(Generation.PLAIN, request(0, 1, 0))[0] == least_us * 1000
        more_ns = price(Generation.PLAIN, request(0, 1 + (1 << 18), 0))[0] - least_us * 1000
        assert 1024 / (more_ns / 1e9) == pytest.approx(mib_per_s, rel=1e-6)


OPERATIONS = st.one_of(
    st.builds(op.Read, st.integers(-9, 9), st.integers(-5000, 5000), st.booleans()),
    st.builds(op.Write, st.integers(-9, 9), st.binary(max_size=64), st.booleans()),
    st.builds(op.Copy, st.integers(-9, 9), st.integers(-9, 9), st.integers(-5000, 5000), st.booleans(), st.booleans()),
    st.builds(op.PValidate, st.integers(-9, 9), st.integers(-5000, 1 << 30), st.booleans()),
    st.builds(op.PageStateChange, st.integers(-9, 9), st.integers(-5000, 1 << 30), st.booleans()),
    st.builds(op.BlockRead, st.integers(-9, 9), st.integers(-9, 99), st.just(0)),
    st.builds(op.RmpUpdate, st.just(0), st.just(4096), st.just(RmpEntry())),
    st.builds(op.Wbinvd),
    st.builds(op.Clflush, st.integers(-9, 9), st.integers(-5000, 5000), st.booleans()),
)


@pytest.mark.parametrize("generation", GENERATIONS)
@given(st.lists(OPERATIONS, max_size=6))
def test_a_batch_takes_the_sum_of_its_parts_and_what_costs_anything_takes_time(generation, batch):
    total, lost = price(generation, *batch)
    assert (total >= 1) is bool(lost)
    assert all(ns >= 0 for ns in lost.values())
    assert total == pytest.approx(sum(lost.values()), abs=0.51 if not lost or sum(lost.values()) > 0.5 else 1)


def test_a_batch_of_nothing_takes_no_time():
    assert price(Generation.SEV_SNP) == (0, {})


HOST = HostOperationCost(COSTS)


def test_host_work_is_priced_by_its_row():
    assert HOST.price((op.HostWork("psp.launch_region_ns"),)) == COSTS["psp.launch_region_ns"]
    assert HOST.price((op.HostWrite(0, bytes(1000)),)) == pytest.approx(1000 * BYTE_NS)
    assert HOST.price((op.Wbinvd(),)) == COSTS["host.wbinvd_ns"]
    assert HOST.price((op.HostTimedRead(0),)) == price(Generation.PLAIN, op.TimedRead(0))[1][Mechanism.OPERATIONS]
    assert HOST.price((op.Invd(),)) == COSTS["host.invd_ns"]
    assert HOST.price((op.HostClflush(0, 65),)) == 2 * COSTS["host.clflush_ns"]
    assert HOST.price((op.VmPageFlush(0, 1),)) == 64 * COSTS["host.clflush_ns"]
    assert HOST.price((op.HostClflush(0, -5),)) == 0
    assert HOST.price((op.PSmash(0),)) == COSTS["rmp.psmash_ns"]
    large, small = (RmpEntry(assigned=True, large=one, asid=1) for one in (True, False))
    assert HOST.price((op.RmpUpdate(0, 4 * MIB, large),)) == pytest.approx(2 * COSTS["rmp.update_ns"])
    assert HOST.price((op.RmpUpdate(0, 4 * MIB, small),)) == pytest.approx(1024 * COSTS["rmp.update_ns"])
    assert HOST.price((op.NestedMap("vm", 0, 0, 4096),)) == HOST.price((op.Read(0, 1),)) == 0.0


def test_where_an_rmp_is_in_use_each_page_that_a_host_writes_is_checked():
    checked = HostOperationCost(COSTS, replace(KIND, rmp=True))
    clear = op.HostClear(0, 4 * MIB)
    for one, pages in ((op.HostWrite(0, bytes(4097)), 2), (clear, 1024), (op.HostRead(0, 4096), 0)):
        assert checked.price((one,)) - HOST.price((one,)) == pytest.approx(pages * COSTS["rmp.write_check_ns"])


def test_the_security_processors_time_goes_by_command_and_bytes():
    page = op.PspCommand(SnpCommand.LAUNCH_UPDATE)
    assert HOST.psp_service_ns(page) == pytest.approx(4 * COSTS["psp.launch_update_ns_per_kib"])
    data = buffers.LaunchUpdateData(handle=1, address=0, length=64 << 10).pack()
    region = op.PspCommand(LegacyCommand.LAUNCH_UPDATE_DATA, 0, data)
    assert HOST.psp_service_ns(region) == pytest.approx(64 * COSTS["psp.legacy_launch_update_ns_per_kib"])
    finish = op.PspCommand(SnpCommand.LAUNCH_FINISH, with_rest=True)
    assert HOST.psp_service_ns(finish) == COSTS["psp.command_ns"] + COSTS["psp.launch_fixed_ns"]
    assert HOST.psp_service_ns(op.PspCommand(SnpCommand.LAUNCH_FINISH)) == COSTS["psp.command_ns"]
    assert HOST.psp_service_ns(op.PspCommand(0x7777)) == COSTS["psp.command_ns"]
    assert HOST.psp_service_ns(op.PspCommand(SnpCommand.GUEST_REQUEST)) == 8_000_000
    for command in (SnpCommand.TIO_DEV_CONNECT, SnpCommand.TIO_TDI_BIND, SnpCommand.TIO_GUEST_REQUEST):
        assert HOST.psp_service_ns(op.PspCommand(command)) == COSTS["psp.tio_exchange_ns"]
    assert HOST.psp_service_ns(op.PspCommand(SnpCommand.TIO_DEV_CREATE)) == COSTS["psp.command_ns"]


def test_a_legacy_update_with_a_buffer_of_rubbish_has_a_price_too():
    for rubbish in (b"", b"\xff", b"\xff" * 64):
        ns = HOST.psp_service_ns(op.PspCommand(LegacyCommand.LAUNCH_UPDATE_DATA, 0, rubbish))
        assert 0 <= ns < float("inf")
