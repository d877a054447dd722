"""VMs on a host live in virtual time, lose nothing in a pause, and leave nothing when they go."""

from __future__ import annotations

import gc
import types
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_tenants import (
    ENTRY,
    GIB,
    MIB,
    Counting,
    S,
    at,
    counting,
    guest_spec,
    launch,
    new_host,
    run_until,
    scripted,
)

from node import operations as op
from node.board import Board
from node.cost_table import load_cost_table
from node.dram import Dram
from node.free_costs import without_encryption
from node.generation import Generation
from node.ghcb_msr import LinuxReason, ReasonSet
from node.guest import Guest, GuestState
from node.host import Host
from node.hypervisor import LaunchedVm
from node.memory_controller import MemoryController
from node.program import Block, Registers
from node.rmp import ReverseMapTable
from node.vcpu import VcpuState
from node.vcpu_runner import PROGRAM_FAULT, TERMINATED
from node.vmsa import load_registers
from psp.firmware import SecurityProcessor
from psp.launch_digest import LaunchDigest
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES, RmpEntry

GENERATIONS = (Generation.PLAIN, Generation.SEV, Generation.SEV_SNP)
ROUNDS = 6
SUM = sum(number * number for number in range(ROUNDS))


def memory_of(host: Host, guest: Guest, gpa: int, length: int) -> bytes:
    """Guest memory as the guest itself would read it."""
    vmcb = host.board.vmcb(guest.spec.name, 0)
    (answer,) = host.board.execute_guest(vmcb, (op.Read(gpa, length),))
    assert isinstance(answer, bytes)
    return answer


def base_gpa(guest: Guest) -> int:
    return guest.spec.memory.placement("vm", 0, 1).base_gpa


# Pauses.


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_program_runs_to_its_end_and_its_sum_is_right(generation: Generation) -> None:
    host = new_host({"toy": counting(ROUNDS)})
    guest = launch(host, guest_spec(generation=generation))
    run_until(host, 100 * S)
    assert (guest.state, guest.shutdown_code) == (GuestState.STOPPED, 0)
    assert int.from_bytes(memory_of(host, guest, base_gpa(guest), 8), "little") == SUM
    assert guest.vcpus[0].registers.r13 == ROUNDS


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(GENERATIONS), st.lists(st.integers(0, 5 * S), min_size=1, max_size=6))
def test_pauses_at_any_time_lose_every_object_of_a_program_and_nothing_else(
    generation: Generation, pauses: list[int]
) -> None:
    made: list[int] = []
    host = new_host({"toy": counting(ROUNDS, made)})
    guest = launch(host, guest_spec(generation=generation))
    start = host.now_ns
    parked: list[VcpuState] = []

    def pause() -> None:
        host.pause("vm")

    def resume() -> None:
        if guest.state is GuestState.PAUSED:
            parked.append(guest.vcpus[0].state)
            assert guest.software.running[0] is None or parked[-1] is not VcpuState.PAUSED
        host.resume("vm")

    for time_ns in pauses:
        at(host, start + time_ns, pause)
        at(host, start + time_ns + 70_000_000, resume)
    run_until(host, 1000 * S)
    assert (guest.state, guest.shutdown_code) == (GuestState.STOPPED, 0)
    assert int.from_bytes(memory_of(host, guest, base_gpa(guest), 8), "little") == SUM
    assert guest.vcpus[0].registers.r13 == ROUNDS
    assert sum(guest.vcpus[0].instructions.values()) == pytest.approx(ROUNDS * 1e9, abs=len(pauses))
    if VcpuState.PAUSED in parked:
        assert len(made) > 1


def test_a_paused_vm_s_registers_lie_in_its_save_area_as_its_generation_keeps_them() -> None:
    for generation in GENERATIONS:
        host = new_host({"toy": counting(ROUNDS)})
        guest = launch(host, guest_spec(generation=generation))
        run_until(host, host.now_ns + S)
        host.pause("vm")
        run_until(host, host.now_ns + S)
        vcpu = guest.vcpus[0]
        assert vcpu.state is VcpuState.PAUSED
        assert vars_of(vcpu.registers) == dict.fromkeys(Registers.__slots__, 0)
        with pytest.raises(AttributeError, match="r15"):
            vcpu.registers.r15 = 1
        assert guest.software.programs[0] is None
        inside = load_registers(host.board.save_areas.load(host.board.vmcb("vm", 0)))
        assert inside.rip in {ENTRY + 1, ENTRY + 2}
        raw = host.board.dram.read(vcpu.save_area_spa, PAGE_BYTES)
        in_the_clear = load_registers(raw).rip == inside.rip
        assert in_the_clear == (generation is not Generation.SEV_SNP)


def vars_of(registers: Registers) -> dict[str, int]:
    return {name: getattr(registers, name) for name in Registers.__slots__}


def test_units_of_work_of_a_vm_that_is_paused_at_the_end_are_counted() -> None:
    host = new_host({"toy": counting(ROUNDS)})
    guest = launch(host)
    run_until(host, host.now_ns + 2 * S)
    host.pause("vm")
    run_until(host, host.now_ns + S)
    host.close(host.now_ns)
    assert 0 < guest.units_of_work < ROUNDS


# Time.


def test_operations_take_effect_when_their_time_has_passed() -> None:
    answers: list[object] = []
    host = new_host({"toy": scripted((op.Write(96 * MIB, b"x" * 64), op.Read(96 * MIB, 64)), answers)})
    launch(host, guest_spec(generation=Generation.PLAIN, memory_bytes=128 * MIB), running=True)
    assert answers == []
    times = []
    while len(answers) < 2:
        host.clock.env.step()
        times.append((host.now_ns, len(answers)))
    first = next(now for now, count in times if count == 1)
    # A store of one line costs the idle latency and the copy: both rows of the cost table.
    assert first == round(103.4 + 64 / 23.761)
    assert answers == [None, b"x" * 64]


def test_phases_share_one_completion_event_and_voided_ones_do_nothing() -> None:
    host = new_host({"toy": counting(50)})
    for number in range(5):
        launch(host, guest_spec(f"vm-{number}", Generation.PLAIN), running=True)
    run_until(host, 200 * S)
    assert host.vcpus.phase_completions == 5 * 50


def test_a_launch_promises_no_more_than_it_keeps() -> None:
    host = new_host({"toy": counting(1)})
    told: dict[str, int] = {}
    for number in range(4):
        spec = guest_spec(f"vm-{number}", GENERATIONS[number % 3])
        host.launch(spec, lambda guest: told.__setitem__(guest.spec.name, host.now_ns))
    promised = dict(host.tasks.promises)
    while host.tasks.promises:
        for name, time_ns in host.tasks.promises.items():
            assert time_ns >= promised[name]
        promised |= host.tasks.promises
        host.clock.env.step()
    assert all(told[name] >= time_ns for name, time_ns in promised.items())


def test_simultaneous_launches_wait_for_the_one_security_processor() -> None:
    host = new_host({"toy": counting(1)})
    guests: list[Guest] = []
    for number in range(3):
        host.launch(guest_spec(f"vm-{number}"), guests.append)
    while len(guests) < 3:
        host.clock.env.step()
    service = [guest.psp_service_ns for guest in guests]
    assert service[0] == service[1] == service[2]
    assert host.tasks.psp_queue.busy_ns == sum(service)
    assert max(guest.running_ns for guest in guests) >= sum(service)
    assert sum(guest.psp_wait_ns > 0 for guest in guests) >= 2


def test_without_costs_of_encryption_a_phase_takes_the_plain_time() -> None:
    free = without_encryption(load_cost_table())
    elapsed = []
    for generation in GENERATIONS:
        host = new_host({"toy": counting(ROUNDS)}, costs=free)
        guest = launch(host, guest_spec(generation=generation), running=True)
        run_until(host, 100 * S)
        elapsed.append(guest.vcpus[0].elapsed_ns - round(guest.lost_ns["acceptance"]))  # type: ignore[index]
    # The kernel's start-up differs by five exits through the GHCB, what it stores and loads for them, and a
    # nanosecond a block.
    assert max(elapsed) - min(elapsed) < 8000


# Memory.


@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_hypervisor_sees_private_memory_only_as_its_generation_lets_it(generation: Generation) -> None:
    secret = b"tenant's secret!" * 16
    answers: list[object] = []
    gpa = 96 * MIB
    host = new_host({"toy": scripted((op.Write(gpa, secret),), answers)})
    guest = launch(host, guest_spec(generation=generation, memory_bytes=128 * MIB))
    run_until(host, host.now_ns + S)
    ((spa, *_),) = host.board.vmcb("vm", 0).nested.translate(gpa, len(secret))
    (seen,) = host.board.execute_host((op.HostRead(spa, len(secret)),))
    assert isinstance(seen, bytes)
    assert (seen == secret) == (generation is Generation.PLAIN)
    assert (secret[:16] in seen) == (generation is Generation.PLAIN)
    (answer,) = host.board.execute_host((op.HostWrite(spa, bytes(16)),))
    after = memory_of(host, guest, gpa, len(secret))
    if generation is Generation.SEV_SNP:
        assert isinstance(answer, op.Fault)
        assert answer.kind is op.FaultKind.RMP_FAULT
        assert answer.error >> 31 & 1
        assert after == secret
    else:
        assert answer is None
        assert after != secret
        assert after[16:] == secret[16:]


@pytest.mark.parametrize("generation", GENERATIONS)
def test_shared_memory_is_in_the_clear_for_both_sides(generation: Generation) -> None:
    answers: list[object] = []
    gpa = 33 * MIB
    batch = (op.Write(gpa, b"for the host", private=False), op.Read(gpa, 12, private=False))
    host = new_host({"toy": scripted(batch, answers)})
    launch(host, guest_spec(generation=generation))
    run_until(host, host.now_ns + S)
    assert answers == [None, b"for the host"]
    ((spa, *_),) = host.board.vmcb("vm", 0).nested.translate(gpa, 12)
    assert host.board.execute_host((op.HostRead(spa, 12), op.HostWrite(spa, b"x"))) == (b"for the host", None)


def test_a_page_goes_from_private_to_shared_and_back_only_step_by_step() -> None:
    gpa = 40 * MIB
    block = (gpa, LARGE_PAGE_BYTES)
    batch: tuple[op.GuestOperation, ...] = (
        op.PValidate(*block, large=True, validate=False),
        op.PageStateChange(*block, shared=True),
        op.Write(gpa, b"open", private=False),
        op.Read(gpa, 4),
        op.PageStateChange(*block, shared=False),
        op.Read(gpa, 4),
        op.PValidate(*block, large=True),
        op.PValidate(*block, large=True),
        op.Write(gpa, b"shut"),
        op.Read(gpa, 4),
        op.Write(gpa, b"open", private=False),
    )
    host = new_host({"toy": counting(1)})
    launch(host)
    run_until(host, host.now_ns + S)
    # The kernel beneath a program would take the page that is not valid for an attack.
    answers = host.board.execute_guest(host.board.vmcb("vm", 0), batch)
    kinds = [answer.kind if isinstance(answer, op.Fault) else answer for answer in answers]
    assert kinds == [
        op.PValidateResult(0, unchanged=False),
        0,
        None,
        op.FaultKind.RMP_FAULT,
        0,
        op.FaultKind.PAGE_NOT_VALIDATED,
        op.PValidateResult(0, unchanged=False),
        op.PValidateResult(0, unchanged=True),
        None,
        b"shut",
        op.FaultKind.RMP_FAULT,
    ]


def test_a_page_that_was_valid_before_the_guest_asked_ends_its_start_up() -> None:
    host = new_host({"toy": counting(1)})
    told: list[Guest] = []
    host.launch(guest_spec(), told.append)
    while not told:
        host.clock.env.step()
    # The hypervisor cannot validate; a page that is valid already stands for a replayed entry.
    ((spa, *_),) = host.board.vmcb("vm", 0).nested.translate(48 * MIB, 1)
    assert host.board.rmp is not None
    entry = host.board.rmp.entry(spa)
    host.board.rmp.set_entry(spa, RmpEntry(**{**fields(entry), "validated": True}))
    run_until(host, host.now_ns + 10 * S)
    reason = ReasonSet.LINUX << 8 | LinuxReason.PVALIDATE
    assert (told[0].state, told[0].shutdown_code) == (GuestState.STOPPED, TERMINATED | reason)


def fields(entry: RmpEntry) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in RmpEntry.__slots__}


def test_a_guest_of_16_gib_costs_little_until_it_is_touched() -> None:
    for generation in GENERATIONS:
        host = new_host({"toy": scripted((), [])}, memory_bytes=32 * GIB)
        before = host.board.dram.resident_bytes
        launch(host, guest_spec(generation=generation, memory_bytes=16 * GIB))
        run_until(host, host.now_ns + S)
        runs = len(host.board.vmcb("vm", 0).nested) + (0 if host.board.rmp is None else len(host.board.rmp))
        # A run costs well under 300 bytes: three list slots, a value and its RMP entry. The firmware image is
        # one for all guests of the process until somebody looks.
        cost = host.board.dram.resident_bytes - before + 300 * runs
        assert cost <= 64 << 10, generation


# Roles.


def test_a_role_that_may_not_execute_an_instruction_gets_undefined_opcode() -> None:
    host = new_host({"toy": scripted((), [])})
    launch(host)
    vmcb = host.board.vmcb("vm", 0)
    for one in (op.RmpUpdate(0, PAGE_BYTES, RmpEntry()), op.PspCommand(1), op.HostRead(0, 8), op.Wbinvd()):
        (answer,) = host.board.execute_guest(vmcb, (one,))  # type: ignore[arg-type]
        assert answer == op.Fault(op.FaultKind.UNDEFINED_OPCODE, 0)
    (answer,) = host.board.execute_host((op.PValidate(0, PAGE_BYTES, large=False),))  # type: ignore[arg-type]
    assert answer == op.Fault(op.FaultKind.UNDEFINED_OPCODE, 0)


def test_rmp_instructions_do_not_exist_on_a_product_without_snp() -> None:
    host = new_host({"toy": scripted((op.PValidate(40 * MIB, LARGE_PAGE_BYTES, large=True),), answers := [])}, "Rome")
    launch(host, guest_spec(generation=Generation.SEV))
    run_until(host, host.now_ns + S)
    assert answers == [op.Fault(op.FaultKind.UNDEFINED_OPCODE, 0)]
    (answer,) = host.board.execute_host((op.RmpUpdate(0, PAGE_BYTES, RmpEntry()),))
    assert answer == op.Fault(op.FaultKind.UNDEFINED_OPCODE, 0)


def reachable(roots: Iterable[object]) -> set[type]:
    """Types of everything that can be reached through frames, closures, attributes and containers."""
    seen: set[int] = set()
    found: set[type] = set()
    waiting = list(roots)
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, (type, types.ModuleType, types.BuiltinFunctionType)):
            continue
        seen.add(id(one))
        found.add(type(one))
        if isinstance(one, types.FunctionType):
            waiting.extend(cell.cell_contents for cell in one.__closure__ or ())
            continue
        waiting.extend(
            inner for inner in gc.get_referents(one) if not (isinstance(inner, dict) and "__builtins__" in inner)
        )
    return found


CHIPS = {Board, Dram, MemoryController, ReverseMapTable, SecurityProcessor, Host}


def test_programs_and_the_hypervisor_reach_no_chip() -> None:
    host = new_host({"toy": counting(ROUNDS)})
    guest = launch(host)
    run_until(host, host.now_ns + S)
    block: Block = guest.software.blocks[0][ENTRY + 1](Registers())
    next(block)
    task = host.hypervisor.launch(guest_spec("other").machine)
    next(task)
    assert reachable([block, guest.software]) & CHIPS == set()
    assert Counting in reachable([block])
    assert reachable([task, host.hypervisor]) & CHIPS == set()
    assert LaunchedVm in reachable([task])


# Ends.


def leftovers(host: Host) -> tuple[int, int, int, int, bool]:
    assert host.board.rmp is not None
    return (
        host.hypervisor.frames.used_bytes,
        host.board.dram.resident_bytes,
        len(host.board.rmp),
        host.hypervisor.asids.in_use(Generation.SEV) + host.hypervisor.asids.in_use(Generation.SEV_SNP),
        any(host.board.controller.has_key(asid) for asid in range(1, 510)),
    )


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_destroyed_vm_gives_everything_back(generation: Generation) -> None:
    host = new_host({"toy": counting(ROUNDS)})
    host.board.execute_host((op.HostClear(LARGE_PAGE_BYTES, PAGE_BYTES),))
    before = leftovers(host)
    guest = launch(host, guest_spec(generation=generation, vcpus=2, memory_bytes=512 * MIB))
    run_until(host, host.now_ns + S)
    assert leftovers(host) != before
    host.destroy("vm")
    run_until(host, host.now_ns + 10 * S)
    host.board.execute_host((op.HostClear(LARGE_PAGE_BYTES, PAGE_BYTES),))
    assert guest.state is GuestState.DESTROYED
    assert leftovers(host) == before
    assert not host.board.vmcb("vm", 0).consistent  # there is none: VMRUN would refuse it


def test_a_vm_destroyed_while_it_launches_goes_as_soon_as_it_has_come() -> None:
    host = new_host({"toy": counting(ROUNDS)})
    told: list[Guest] = []
    host.launch(guest_spec(), told.append)
    host.destroy("vm")
    run_until(host, 60 * S)
    assert told[0].state is GuestState.DESTROYED
    assert host.hypervisor.frames.used_bytes == PAGE_BYTES


@pytest.mark.parametrize(
    ("product", "changes", "reason"),
    [
        ("Milan", {"memory_bytes": 32 * GIB}, "memory: "),
        ("Rome", {}, "generation: Rome has no SEV_SNP"),
        ("Milan", {"generation": Generation.SEV_TIO}, "generation: Milan has no SEV_TIO"),
        ("Milan", {"generation": Generation.SME}, "generation: SME needs a host whose own memory encryption is on"),
    ],
)
def test_a_refused_launch_names_its_reason_and_keeps_nothing(
    product: str, changes: dict[str, object], reason: str
) -> None:
    host = new_host({"toy": counting(1)}, product)
    guest = launch(host, guest_spec(**changes))  # type: ignore[arg-type]
    assert guest.state is GuestState.REFUSED
    assert guest.reason.startswith(reason)
    assert host.hypervisor.frames.used_bytes == PAGE_BYTES


def test_asids_run_out_and_come_back_after_a_flush() -> None:
    host = new_host({"toy": counting(1000)}, min_sev_asid=3)
    first, second, third = (launch(host, guest_spec(f"vm-{number}")) for number in range(3))
    assert (first.asid, second.asid) == (1, 2)
    assert third.reason == "ASID: all 2 of the host for SEV_SNP are in use"
    flushes = host.board.bus.wbinvds
    host.destroy("vm-0")
    run_until(host, host.now_ns + S)
    fourth = launch(host, guest_spec("vm-4"))
    assert (fourth.state, fourth.asid) == (GuestState.RUNNING, 1)
    assert host.board.bus.wbinvds == flushes + 1


@pytest.mark.parametrize("vcpus", [1, 2])
def test_every_vcpu_runs_its_program_in_memory_of_its_own(vcpus: int) -> None:
    host = new_host({"toy": counting(ROUNDS)})
    guest = launch(host, guest_spec(vcpus=vcpus, memory_bytes=128 * MIB))
    run_until(host, 100 * S)
    memory = guest.spec.memory
    done = [memory_of(host, guest, memory.placement("vm", vcpu, 1).base_gpa, 8) for vcpu in range(vcpus)]
    assert guest.state is GuestState.STOPPED
    # The first vCPU to finish powers the VM off; the others have come as far.
    assert int.from_bytes(done[0], "little") == SUM
    assert all(int.from_bytes(one, "little") > 0 for one in done)


class _Broken(Counting):
    pass


@pytest.mark.parametrize("blocks", [{}, {ENTRY: lambda _: iter(())}], ids=["no such block", "no time passes"])
def test_a_program_that_goes_nowhere_ends_its_vm(blocks: dict[int, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def still(_: Registers) -> Block:
        return None
        yield ()

    table = dict.fromkeys(blocks, still)
    monkeypatch.setattr(Counting, "blocks", property(lambda _: table))
    host = new_host({"toy": counting(1)})
    guest = launch(host, guest_spec(generation=Generation.PLAIN))
    run_until(host, host.now_ns + S)
    assert (guest.state, guest.shutdown_code) == (GuestState.STOPPED, PROGRAM_FAULT)


def test_the_digest_of_a_launch_is_that_of_the_pages_in_order() -> None:
    from node.measured_launch import snp_launch_pages
    from node.vcpu_model import vcpu_model
    from node.vmsa import SevFeature

    host = new_host({"toy": counting(1)})
    guest = launch(host, guest_spec(vcpus=2, memory_bytes=128 * MIB))
    expected = LaunchDigest()
    image = host.hypervisor.launched("vm").firmware
    for page in snp_launch_pages(image, 2, vcpu_model("EPYC-v4"), SevFeature.SNP_ACTIVE):
        expected.update(page.page_type, page.gpa, page.data)
    assert guest.launch_digest == expected.value.hex()
