"""A host whose cores have caches: what stale, dropped and missing lines do, as published."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import types

import pytest
from cached_boards import base, by_guest, by_host, drive, forgetful, shared
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_guests import GENERATIONS, SECOND, final_state, make_host, run, spa, start

from node import operations as op
from node.board import Board
from node.cache_switches import Snoop
from node.core_msrs import INVD_WBINVD, Msr
from node.counter_random import CounterRandom
from node.generation import Generation
from node.guest import GuestState
from node.host_bring_up import bring_up_steps, refusal
from node.hypervisor import Hypervisor
from node.platform import Platform
from node.product import PRODUCTS
from psp import command_buffers as buffers
from psp.commands import LegacyCommand
from psp.status import Status
from psp.system_bus import RmpEntry

GIB = 1 << 30
COMMAND_PAGE = 2 << 20
CACHED = Platform(caches=True)
OLD, NEW = b"what memory has " * 4, b"what the line is" * 4
FIXED = dataclasses.replace(CACHED, invd_writes_back=True)


def cached_host(product="Milan", platform=CACHED, **kwargs):
    return make_host(product=product, platform=platform, **kwargs)


def begin(host, name, generation):
    """A VM that has accepted its memory."""
    guest = start(host, name, generation)
    run(host)
    return guest


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_store_stays_in_the_caches_until_its_line_is_flushed(generation):
    host = cached_host()
    guest = begin(host, "vm", generation)
    gpa = base(guest)
    before = host.board.dram.read(at := spa(host, guest, gpa), 64)
    assert by_guest(host, guest, op.Write(gpa, NEW), op.Read(gpa, 64)) == (None, NEW)
    assert host.board.dram.read(at, 64) == before
    assert by_guest(host, guest, op.Clflush(gpa, 64), op.Read(gpa, 64)) == (None, NEW)
    assert (host.board.dram.read(at, 64) == NEW) is (generation is Generation.PLAIN)
    assert host.board.dram.read(at, 64) != before


def holders(board, secret: bytes) -> list[str]:
    """Kinds of objects within a board that hold bytes, and "DRAM" if that does."""
    found, seen, todo = set(), set(), [board]
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)):
            continue
        seen.add(id(one))
        if isinstance(one, (bytes, bytearray)) and secret in one:
            found.add(type(one).__name__)
        todo += gc.get_referents(one)
    for at, length in board.dram.resident_runs(0, board.dram.size_bytes):
        if secret in board.dram.read(at, length):
            found.add("DRAM")
    return sorted(found)


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("platform", [Platform(), CACHED])
def test_after_a_flush_no_chip_holds_a_private_pages_plaintext(platform, generation):
    host = cached_host(platform=platform)
    guest = begin(host, "vm", generation)
    secret = hashlib.sha256(b"of the guest").digest()[:16]
    gpa = base(guest)
    by_guest(host, guest, op.Write(gpa, secret * 8), op.Read(gpa + 5, 32))
    if platform.caches:
        assert holders(host.board, secret) == ["bytearray"]
    by_host(host, op.Wbinvd())
    assert holders(host.board, secret) == (["DRAM"] if generation is Generation.PLAIN else [])


# CacheWarp (CVE-2023-20592).


@pytest.mark.parametrize(
    ("product", "generation", "platform", "lost"),
    [
        ("Naples", Generation.SEV, CACHED, True),
        ("Rome", Generation.SEV, CACHED, True),
        ("Rome", Generation.PLAIN, CACHED, True),
        ("Milan", Generation.SEV, CACHED, True),
        ("Milan", Generation.SEV_SNP, CACHED, True),
        ("Milan", Generation.SEV_SNP, FIXED, False),
        ("Genoa", Generation.SEV_SNP, CACHED, False),
        ("Turin", Generation.SEV_SNP, CACHED, False),
    ],
)
def test_invd_takes_a_guests_store_back_on_zen_1_to_3_unless_microcode_forbids_it(product, generation, platform, lost):
    host = cached_host(product, platform, min_sev_asid=8)
    guest = begin(host, "vm", generation)
    gpa = base(guest)
    by_guest(host, guest, op.Write(gpa, OLD))
    by_host(host, op.Wbinvd())
    by_guest(host, guest, op.Write(gpa, NEW))
    assert by_host(host, op.Invd()) == (None,)
    # No fault tells the guest: it reads what it overwrote.
    assert by_guest(host, guest, op.Read(gpa, 64)) == (OLD if lost else NEW,)


def test_invd_writes_back_as_long_as_every_core_has_hwcr_say_so():
    host = cached_host("Milan")
    guest = begin(host, "vm", Generation.SEV_SNP)
    (hwcr,) = by_host(host, op.ReadMsr(0, Msr.HWCR))
    by_host(host, op.WriteMsr(None, Msr.HWCR, hwcr | INVD_WBINVD))
    by_guest(host, guest, op.Write(base(guest), OLD))
    by_host(host, op.Invd())
    assert by_guest(host, guest, op.Read(base(guest), 64)) == (OLD,)
    by_guest(host, guest, op.Write(base(guest), NEW))
    by_host(host, op.WriteMsr(9, Msr.HWCR, hwcr), op.Invd())
    assert by_guest(host, guest, op.Read(base(guest), 64)) == (OLD,)


def test_firmware_does_not_take_invd_for_the_wbinvd_that_it_waits_for():
    host = cached_host("Rome")
    board = host.board
    handle = active_guest(host, 200)
    named = op.PspCommand(LegacyCommand.DEACTIVATE, 0x20_0000, buffers.Handle(handle).pack())
    flush = op.PspCommand(LegacyCommand.DF_FLUSH)
    answers = board.execute_host((named, op.Invd(), flush, op.Wbinvd(), flush))
    assert [one.status for one in answers if one is not None] == [0, Status.WBINVD_REQUIRED, 0]


# The launch: firmware encrypts in place what the host wrote through other lines.


def active_guest(host, asid: int) -> int:
    """A SEV guest that firmware knows and no hypervisor: its handle."""
    start_buffer = buffers.LaunchStart(policy=1).pack()
    (started,) = host.board.execute_host((op.PspCommand(LegacyCommand.LAUNCH_START, 0x20_0000, start_buffer),))
    assert started.status == 0
    handle = buffers.LaunchStart.parse(started.buffer).handle
    activate = buffers.Activate(handle, asid).pack()
    (answer,) = host.board.execute_host((op.PspCommand(LegacyCommand.ACTIVATE, 0x20_0000, activate),))
    assert answer.status == 0
    return handle


def launched_firmware(product: str, *omitted: type):
    """A SEV guest whose host flushes everything once, some time after the launch; what it sees of its firmware."""
    host = cached_host(product, min_sev_asid=8)
    forgetful(host.board, *omitted)
    guest = start(host, "vm", Generation.SEV)
    assert guest.state is GuestState.RUNNING
    record = host.hypervisor.launched("vm")
    gpa, data = record.firmware.gpa, record.firmware.data
    by_host(host, op.Wbinvd())
    (seen,) = by_guest(host, guest, op.Read(gpa, len(data)))
    return host, guest, seen, data


@pytest.mark.parametrize("product", ["Naples", "Rome"])
def test_without_clflush_before_the_launch_the_hosts_lines_land_on_the_guests_firmware(product):
    host, guest, seen, data = launched_firmware(product, op.HostClflush)
    assert seen != data
    # The digest does not show it, and memory holds in the clear what the guest takes for its own.
    end = host.hypervisor.launched("vm").firmware.gpa + len(data) - 64
    assert host.board.dram.read(spa(host, guest, end), 64) == data[-64:]
    whole = launched_firmware(product)[1]
    assert guest.launch_digest == whole.launch_digest


@pytest.mark.parametrize(("product", "omitted"), [("Rome", ()), ("Milan", (op.HostClflush,)), ("Genoa", ())])
def test_a_launch_is_whole_with_the_flush_or_on_a_coherent_part(product, omitted):
    _, _, seen, data = launched_firmware(product, *omitted)
    assert seen == data


@pytest.mark.parametrize(
    ("product", "forgets", "spoilt"), [("Rome", True, True), ("Rome", False, False), ("Milan", True, False)]
)
def test_a_guest_that_was_destroyed_without_wbinvd_haunts_its_frames_on_an_incoherent_part(product, forgets, spoilt):
    host = cached_host(product)
    if forgets:
        forgetful(host.board, op.Wbinvd)
    first = start(host, "first", Generation.SEV)
    gpa = base(first)
    at = spa(host, first, gpa)
    by_guest(host, first, op.Write(gpa, OLD))
    host.destroy("first")
    run(host)
    # Its ASID goes to a guest of a host that forgets to flush; here the key alone stands for that guest.
    host.board.controller.install_key(first.asid, bytes(16))
    by_host(host, op.HostWrite(at, NEW), op.HostClflush(at, 64))
    assert host.board.dram.read(at, 64) == NEW
    host.board.caches.cache.flush_all()
    assert (host.board.dram.read(at, 64) != NEW) is spoilt


# ASIDs and the lines that carry them.


def test_lines_of_an_asids_last_owner_would_answer_the_next_so_firmware_demands_wbinvd():
    host = cached_host("Rome")
    guest = start(host, "vm", Generation.SEV)
    gpa, asid = base(guest), guest.asid
    by_guest(host, guest, op.Write(gpa, OLD))
    handle = host.hypervisor.launched("vm").handle
    page = 0x20_0000
    named = buffers.Handle(handle).pack()
    assert by_host(host, op.PspCommand(LegacyCommand.DEACTIVATE, page, named))[0].status == 0
    # The lines outlive the key: whoever runs with the ASID finds the plaintext of the guest before.
    assert by_guest(host, guest, op.Read(gpa, 64)) == (OLD,)
    again = op.PspCommand(LegacyCommand.ACTIVATE, page, buffers.Activate(handle, asid).pack())
    flush = op.PspCommand(LegacyCommand.DF_FLUSH)
    answers = by_host(host, again, flush, op.Wbinvd(), again, flush, again)
    assert [one.status for one in answers if one is not None] == [
        Status.WBINVD_REQUIRED, Status.WBINVD_REQUIRED, Status.DFFLUSH_REQUIRED, 0, 0,
    ]  # fmt: skip
    (seen,) = by_guest(host, guest, op.Read(gpa, 64))
    assert seen != OLD


def test_vm_page_flush_writes_back_lines_of_one_page_and_one_asid():
    host = cached_host("Rome")
    one, other = (start(host, name, Generation.SEV) for name in ("one", "other"))
    gpa = base(one)
    at = spa(host, one, gpa)
    by_host(host, op.NestedMap("other", gpa, at, 8192))
    by_guest(host, one, op.Write(gpa, OLD), op.Write(gpa + 4096, OLD))
    by_guest(host, other, op.Write(gpa + 64, NEW))
    cache = host.board.caches.cache
    by_host(host, op.Wbinvd())
    by_guest(host, one, op.Write(gpa, NEW), op.Write(gpa + 4096, NEW))
    by_guest(host, other, op.Write(gpa + 64, OLD))
    assert len(cache._dirty) == 3
    assert by_host(host, op.VmPageFlush(at, one.asid)) == (None,)
    assert len(cache._dirty) == 2
    read = host.board.caches.fabric(Snoop.NONE).read
    assert read(at, 64, one.asid) == NEW
    assert read(at + 64, 64, other.asid) == NEW
    assert read(at + 4096, 64, one.asid) == OLD


@pytest.mark.parametrize(("at", "asid"), [(0, 0), (0, 510), (0, -1), (64, 1), (4095, 1)])
def test_vm_page_flush_of_no_page_or_no_asid_is_a_general_protection_fault(at, asid):
    host = cached_host("Rome")
    (answer,) = by_host(host, op.VmPageFlush(at, asid))
    assert answer.kind is op.FaultKind.GENERAL_PROTECTION


@pytest.mark.parametrize("platform", [Platform(), CACHED])
@pytest.mark.parametrize(("at", "length"), [(-64, 64), (0, -1), (4 << 30, 64), ((4 << 30) - 64, 128), (1 << 60, 1)])
def test_a_flush_outside_of_memory_is_a_machine_check(platform, at, length):
    host = cached_host("Rome", platform)
    assert by_host(host, op.HostClflush(at, length))[0].kind is op.FaultKind.MACHINE_CHECK
    if not at % 4096 and at:
        assert by_host(host, op.VmPageFlush(at, 1))[0].kind is op.FaultKind.MACHINE_CHECK


@pytest.mark.parametrize(("product", "reached"), [("Rome", False), ("Milan", True)])
def test_the_hosts_clflush_reaches_a_guests_lines_on_a_coherent_part_only(product, reached):
    host = cached_host(product)
    guest = start(host, "vm", Generation.SEV)
    gpa = base(guest)
    at = spa(host, guest, gpa)
    by_host(host, op.Wbinvd())
    by_guest(host, guest, op.Write(gpa, NEW))
    by_host(host, op.HostClflush(at, 64))
    assert len(host.board.caches.cache._dirty) == (0 if reached else 1)
    assert (host.board.caches.fabric(Snoop.NONE).read(at, 64, guest.asid) == NEW) is reached


@pytest.mark.parametrize("product", ["Rome", "Milan"])
def test_a_host_that_reads_a_private_page_sees_its_newest_ciphertext_on_a_coherent_part_only(product):
    """Either way it is ciphertext: a line answers to its own domain alone."""
    host = cached_host(product)
    guest = start(host, "vm", Generation.SEV)
    gpa = base(guest)
    at = spa(host, guest, gpa)
    by_guest(host, guest, op.Write(gpa, OLD))
    by_host(host, op.Wbinvd())
    (old,) = by_host(host, op.HostRead(at, 64))
    by_guest(host, guest, op.Write(gpa, NEW))
    (now,) = by_host(host, op.HostRead(at, 64))
    assert (now == old) is (product == "Rome")
    assert {old, now}.isdisjoint({OLD, NEW})


@pytest.mark.parametrize("product", ["Rome", "Milan"])
def test_a_device_finds_the_hosts_lines_and_not_a_guests(product):
    host = cached_host(product)
    guest = start(host, "vm", Generation.SEV)
    private, pool = base(guest), shared(guest)
    device = host.board.fabric
    by_host(host, op.Wbinvd())
    by_guest(host, guest, op.Write(private, NEW), op.Write(pool, NEW, private=False))
    assert device.read(spa(host, guest, pool), 64, 0) == NEW
    at = spa(host, guest, private)
    before = host.board.dram.read(at, 64)
    assert device.read(at, 64, 0) == before
    device.write(spa(host, guest, pool) + 8, b"from a device", 0)
    assert by_guest(host, guest, op.Read(pool, 64, private=False)) == (NEW[:8] + b"from a device" + NEW[21:],)
    device.write(at, bytes(64), 0)
    # The guest's own line still answers it, and is written back over what the device wrote.
    assert by_guest(host, guest, op.Read(private, 64), op.Clflush(private, 64), op.Read(private, 64))[2] == NEW


def switched(product: str, **switches: Snoop) -> Board:
    row = PRODUCTS[product]
    row = dataclasses.replace(row, caches=dataclasses.replace(row.caches, **switches))
    return Board("board", row, GIB, 100, CounterRandom(1), CACHED)


def test_devices_that_find_lines_of_all_domains_read_a_guests_newest_ciphertext():
    at = 16 << 20
    for snoop, newest in ((Snoop.OWN, False), (Snoop.ALL, True)):
        board = switched("Milan", devices=snoop)
        board.controller.install_key(100, bytes(16))
        board.controller.write(at, NEW, 100)
        seen = board.fabric.read(at, 64, 0)
        assert (seen != bytes(64)) is newest
        assert seen == board.dram.read(at, 64) != NEW


@pytest.mark.parametrize(
    ("snoop", "status", "whole"),
    [(Snoop.NONE, None, None), (Snoop.OWN, Status.SUCCESS, False), (Snoop.ALL, Status.SUCCESS, True)],
)
def test_what_firmware_finds_in_lines_decides_what_a_host_must_flush_for_it(snoop, status, whole):
    """An incoherent part: command buffers that nobody flushed, and a launch without CLFLUSH."""
    board = switched("Rome", firmware=snoop)
    page, at = 0x20_0000, 0x40_0000
    drive(board, Hypervisor(PRODUCTS["Rome"], GIB, 100, {}).bring_up())
    wanted = buffers.LaunchStart(policy=1).pack()
    (started,) = board.execute_host((op.PspCommand(LegacyCommand.LAUNCH_START, page, wanted),))
    if status is None:
        # It reads memory past the lines, where the buffer is not yet, and writes what the lines hide.
        assert buffers.LaunchStart.parse(started.buffer).handle == 0
        return
    assert started.status == status
    handle = buffers.LaunchStart.parse(started.buffer).handle
    update = buffers.LaunchUpdateData(handle=handle, address=at, length=64)
    answers = board.execute_host((
        op.PspCommand(LegacyCommand.ACTIVATE, page, buffers.Activate(handle, 200).pack()),
        op.HostWrite(at, NEW),
        op.PspCommand(LegacyCommand.LAUNCH_UPDATE_DATA, page, update.pack()),
        op.Wbinvd(),
    ))
    assert [one.status for one in answers if one is not None] == [0, 0]
    assert (board.controller.read(at, 64, 200) == NEW) is whole


# RMPocalypse (CVE-2025-0033).


@pytest.mark.parametrize("barrier", [False, True])
def test_dirty_lines_over_the_rmp_outlive_snp_init_unless_cores_are_stopped(barrier):
    """A line of zeros says that the page which holds it is the hypervisor's: from there the table falls."""
    product = PRODUCTS["Milan"]
    board = Board("board", product, GIB, 100, CounterRandom(1), dataclasses.replace(CACHED, rmp_init_barrier=barrier))
    assert board.rmp is not None
    entry_spa = board.rmp.layout.entry_spa
    ((start_spa, length),) = board.rmp.layout.ranges()
    own = next(at for at in range(start_spa // 4096, (start_spa + length) // 4096) if entry_spa(at) // 4096 == at)
    for step in bring_up_steps(product, COMMAND_PAGE, 0):
        if step.name == "SNP_INIT_EX":
            # After the WBINVD of who means well, and written back by the one that firmware demands.
            assert board.execute_host((op.HostWrite(entry_spa(own) // 64 * 64, bytes(64)),)) == (None,)
        assert refusal(step, board.execute_host(step.batch)) == ""

    # From the page that has fallen down to the victim: each page holds the next one's entry.
    victim = 10_000
    chain = [victim]
    while entry_spa(chain[-1]) // 4096 != own:
        chain.append(entry_spa(chain[-1]) // 4096)
    entry = RmpEntry(assigned=True, gpa=0x5000, asid=7)
    assert board.execute_host((op.RmpUpdate(victim * 4096, 4096, entry),)) == (0,)
    steps = [one for page in reversed(chain) for one in (op.HostWrite(entry_spa(page), bytes(16)), op.Wbinvd())]
    answers = board.execute_host((*steps, op.HostWrite(victim * 4096, b"evil")))
    if barrier:
        assert [one.kind for one in answers if one is not None] == [op.FaultKind.RMP_FAULT] * (len(chain) + 1)
        assert board.rmp.entry(victim * 4096).asid == 7
    else:
        assert set(answers) == {None}
        assert not board.rmp.entry(victim * 4096).assigned


def test_what_instructions_do_to_the_rmp_is_not_hidden_by_lines_of_its_memory():
    host = cached_host()
    rmp = host.board.rmp
    at = rmp.layout.entry_spa(100_000)
    by_host(host, op.HostRead(at, 16))
    by_host(host, op.RmpUpdate(100_000 * 4096, 4096, RmpEntry(assigned=True, gpa=0x5000, asid=7)))
    (seen,) = by_host(host, op.HostRead(at, 16))
    assert seen == host.board.dram.read(at, 16) != bytes(16)


def test_a_host_that_reads_what_was_written_finds_what_only_lines_know():
    host = cached_host("Rome")
    free = 3 << 30
    by_host(host, op.HostWrite(free + 100, b"in a line"))
    (found,) = by_host(host, op.HostReadWritten(free, 8192))
    assert found.runs == ((free, bytes(100) + b"in a line" + bytes(4096 - 109)),)


# Whole hosts.

_GPA = st.sampled_from([0, 60, 64, 4000, 4096])
GUEST_STEPS = st.one_of(
    st.builds(op.Read, _GPA, st.integers(0, 200), st.booleans()),
    st.builds(op.Write, _GPA, st.binary(min_size=1, max_size=150), st.booleans()),
    st.builds(op.Clflush, _GPA, st.integers(0, 5000), st.booleans()),
)
HOST_STEPS = st.one_of(
    st.builds(op.HostRead, _GPA, st.integers(0, 200)),
    st.builds(op.HostReadWritten, st.sampled_from([0, 4096]), st.just(4096)),
    st.builds(op.HostWrite, _GPA, st.binary(min_size=1, max_size=150)),
    st.builds(op.HostClear, st.sampled_from([0, 4096]), st.just(4096)),
    st.builds(op.HostClflush, _GPA, st.integers(0, 5000)),
    st.builds(op.VmPageFlush, st.sampled_from([0, 4096]), st.sampled_from([1, 2, 100])),
    st.builds(op.Wbinvd),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["one", "two", "host"]), GUEST_STEPS, HOST_STEPS), max_size=25))
def test_a_coherent_board_with_caches_answers_every_batch_as_one_without(steps):
    """Two SEV guests that see the same memory, and the host that holds it."""
    boards = [Board("board", PRODUCTS["Milan"], GIB, 100, CounterRandom(1), one) for one in (CACHED, Platform())]
    at = 16 << 20
    for board in boards:
        for number, vm in enumerate(("one", "two")):
            board.controller.install_key(100 + number, bytes([number]) * 16)
            vmcb = op.VmcbWrite(vm, 0, 100 + number, Generation.SEV.name, 0)
            frames = op.NestedFrames(vm, (32 << 20) + number * 65536, 65536)
            assert board.execute_host((frames, op.NestedMap(vm, 0, at, 16384), vmcb)) == (None,) * 3
    for who, guest_step, host_step in steps:
        if who == "host":
            one = dataclasses.replace(host_step, spa=host_step.spa + at) if hasattr(host_step, "spa") else host_step
            answers = [board.execute_host((one,)) for board in boards]
            if type(one) is op.HostReadWritten:
                # What was never written but read from a line is zero either way.
                answers = [[(at, data) for at, data in answer[0].runs if any(data)] for answer in answers]
        else:
            answers = [board.execute_guest(board.vmcb(who, 0), (guest_step,)) for board in boards]
        assert answers[0] == answers[1]
    for board in boards:
        board.execute_host((op.Wbinvd(),))
    assert boards[0].dram.read(at, 16384) == boards[1].dram.read(at, 16384)


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("product", ["Milan", "Turin"])
def test_a_vm_lives_on_a_host_with_caches_as_on_one_without(product, generation):
    ends = []
    for platform in (Platform(), CACHED):
        host = make_host(product=product, platform=platform)
        guest = start(host, "vm", generation, "ledger", units=8)
        run(host, 20 * SECOND)
        ends.append((guest.launch_digest, final_state(host, guest, 64 << 10)))
        host.destroy("vm")
        run(host, 40 * SECOND)
    assert ends[0] == ends[1]


@pytest.mark.parametrize("generation", [Generation.PLAIN, Generation.SEV])
def test_a_host_that_does_its_duties_keeps_vms_whole_on_an_incoherent_part(generation):
    host = cached_host("Rome")
    for number in range(3):
        guest = start(host, f"vm{number}", generation, "ledger", units=8)
        run(host, (20 + 20 * number) * SECOND)
        assert (guest.state, guest.units_of_work) == (GuestState.RUNNING, 0)
        host.close(host.now_ns)
        assert guest.units_of_work == 8
        host.destroy(guest.spec.name)
        run(host, (30 + 20 * number) * SECOND)
