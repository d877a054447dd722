"""AP reset hold: vCPUs with registers of their own wait in an exit, and go on when another starts them."""

from __future__ import annotations

import pytest
from toy_guests import SECOND, look, make_host, run, script, start

from node import ghcb_msr as msr
from node import operations as op
from node.actor import Role
from node.ap_start import ApStart
from node.ap_wake import JUMP_TABLE_GPA, wait_by_message, wait_by_page, wake
from node.generation import Generation
from node.ghcb_page import GhcbUntrusted, build_exit
from node.guest import GuestState
from node.guest_ghcb import page_exit
from node.guest_kernel import AP_RIP, GuestKernel
from node.interrupt_command import FIXED, INIT, STARTUP, X2APIC_ICR
from node.nae_event import JumpTable, NaeEvent
from node.operations import Shutdown, Sleep, VmgExit
from node.vcpu import VcpuState
from node.vcpu_runner import TERMINATED
from node.vmsa import initial_vmsa
from psp.system_bus import PAGE_BYTES

ES, SNP = Generation.SEV_ES, Generation.SEV_SNP
BOTH = pytest.mark.parametrize("generation", [ES, SNP], ids=lambda one: one.name)
MILLISECOND = SECOND // 1000
HOLD, WOKEN = 0x006, 0x1007


def company(waits, orders):
    """A program: vCPU 0 does one of ``orders`` a millisecond, the others wait again and again."""

    def step(placement, registers):
        page = placement.shared_gpa
        yield (VmgExit(msr.RegisterGhcbRequest(page // PAGE_BYTES).value),)
        if placement.vcpu:
            yield from waits(page)
            registers.r13 += 1
            return None
        if registers.r13 < len(orders):
            yield from orders[registers.r13](page)
            registers.r13 += 1
        return Sleep(MILLISECOND)

    return {"company": script(step)}


def by_page(page):
    yield from wait_by_page(page)


def by_message(_page):
    yield from wait_by_message()


def start_first(page):
    yield from wake(page, 1)


def nothing(_page):
    yield ()


def command(mode, target=1, vector=0):
    """A write to the interrupt command register, whatever comes of it."""

    def order(page):
        shown = {"RCX": X2APIC_ICR, "RAX": mode << 8 | vector, "RDX": target}
        yield from page_exit(page, NaeEvent.MSR, 1, registers=shown, outputs=())

    return order


def machine(generation, waits, *orders, vcpus=2):
    host = make_host(company(waits, orders))
    guest = start(host, "vm", generation, "company", vcpus=vcpus)
    run(host, SECOND // 50)
    return host, guest


@BOTH
@pytest.mark.parametrize("waits", [by_page, by_message])
def test_each_start_lets_a_vcpu_go_on_once(generation, waits):
    _, guest = machine(generation, waits, start_first, start_first, nothing, start_first, vcpus=3)
    assert guest.state is GuestState.RUNNING
    assert [vcpu.registers.r13 for vcpu in guest.vcpus] == [4, 3, 0]
    assert [vcpu.state for vcpu in guest.vcpus[1:]] == [VcpuState.IN_RESET] * 2


@BOTH
@pytest.mark.parametrize(
    ("orders", "starts"),
    [
        ((command(STARTUP),), 0),
        ((command(INIT), command(INIT)), 0),
        ((command(INIT), command(STARTUP), command(STARTUP)), 1),
        ((command(INIT), command(INIT), command(STARTUP)), 1),
        ((command(INIT, 7), command(STARTUP, 7)), 0),
        ((command(INIT, 0), command(STARTUP, 0)), 0),
        ((command(INIT), command(FIXED, vector=0x40)), 0),
    ],
)
def test_a_start_is_an_init_and_a_sipi_to_another_vcpu(generation, orders, starts):
    _, guest = machine(generation, by_page, *orders)
    assert (guest.state, guest.vcpus[1].registers.r13) == (GuestState.RUNNING, starts)
    assert guest.vcpus[1].state is VcpuState.IN_RESET


@pytest.mark.parametrize("icr", [1 << 8, 2 << 8, 4 << 8, 7 << 8, 0x0F])
def test_other_commands_are_general_protection_to_the_guest(icr):
    def order(page):
        shown = {"RCX": X2APIC_ICR, "RAX": icr, "RDX": 1}
        reply = yield from page_exit(page, NaeEvent.MSR, 1, registers=shown, outputs=())
        assert (reply.exception, reply.error_code) == (13, 0)

    _, guest = machine(ES, by_page, order)
    assert [vcpu.registers.r13 for vcpu in guest.vcpus] == [1, 0]


def test_a_start_that_comes_before_the_vcpu_waits_is_kept_for_it():
    def step(placement, registers):
        if not placement.vcpu:
            if not registers.r13:
                yield from wake(placement.shared_gpa, 1)
                registers.r13 = 1
            return Sleep(SECOND)
        registers.r13 += 1
        if registers.r13 == 1:
            yield ()
            return Sleep(MILLISECOND)
        yield from wait_by_page(placement.shared_gpa)
        return None

    host = make_host({"company": script(step)})
    guest = start(host, "vm", ES, "company", vcpus=2)
    run(host, SECOND // 2)
    # It went on at once, and waits for the second time now.
    assert (guest.vcpus[1].registers.r13, guest.vcpus[1].state) == (3, VcpuState.IN_RESET)


def test_the_boot_processor_of_an_es_guest_starts_the_others_by_init_and_sipi():
    seen = []
    host = make_host()
    host.board.observer = lambda actor, batch, answers: seen.extend(
        (actor.vcpu, one.msr, answer)
        for one, answer in zip(batch, answers, strict=True)
        if actor.role is Role.GUEST and isinstance(one, op.VmgExit) and one.msr & 0xFFF == HOLD
    )
    guest = start(host, "vm", ES, "busy", vcpus=3)
    run(host, SECOND // 50)
    assert sorted(seen) == [(1, HOLD, WOKEN), (2, HOLD, WOKEN)]
    assert all(vcpu.state is VcpuState.COMPUTING and vcpu.registers.r13 for vcpu in guest.vcpus)
    assert not host.hypervisor.launched("vm").starts.holds


def test_where_started_vcpus_go_on_stands_in_the_guest_s_own_memory():
    host = make_host()
    guest = start(host, "vm", ES, "busy", vcpus=2)
    run(host, SECOND // 50)
    assert host.hypervisor.launched("vm").jump_table == JUMP_TABLE_GPA
    assert look(host, guest, JUMP_TABLE_GPA, 4) == AP_RIP.to_bytes(4, "little")


@pytest.mark.parametrize("lie", [0, 0x5000])
def test_a_jump_table_elsewhere_is_an_attack(lie):
    host = make_host()
    server = host.hypervisor._ghcb
    honest = server._events[NaeEvent.AP_JUMP_TABLE]

    def lies(vm, record, vcpu, exit_, asked):
        record.jump_table = lie if asked.info1 == JumpTable.GET else record.jump_table
        return honest(vm, record, vcpu, exit_, asked)

    server._events = {**server._events, NaeEvent.AP_JUMP_TABLE: lies}
    guest = start(host, "vm", ES, "busy", vcpus=2)
    run(host, SECOND // 50)
    assert (guest.state, guest.shutdown_code) == (GuestState.STOPPED, TERMINATED | msr.GhcbReason.GENERAL)


def test_an_es_guest_whose_vcpus_are_not_started_ends_itself():
    host = make_host()
    server = host.hypervisor._ghcb
    server._events = {key: one for key, one in server._events.items() if key != NaeEvent.MSR}
    guest = start(host, "vm", ES, "busy", vcpus=2)
    run(host, SECOND // 50)
    assert (guest.state, guest.shutdown_code) == (GuestState.STOPPED, TERMINATED | msr.GhcbReason.GENERAL)


def test_a_vcpu_that_is_entered_without_a_start_takes_it_for_an_attack():
    def held(page):
        try:
            yield from wait_by_page(page)
        except GhcbUntrusted:
            return Shutdown(9)
        return None

    def step(placement, _registers):
        if placement.vcpu:
            return (yield from held(placement.shared_gpa))
        yield ()
        return Sleep(SECOND)

    host = make_host({"company": script(step)})
    guest = start(host, "vm", ES, "company", vcpus=2)
    run(host, SECOND // 2)
    assert guest.vcpus[1].state is VcpuState.IN_RESET
    assert host.board.execute_host((op.VmKick("vm", 1),)) == (0,)
    run(host, SECOND)
    assert (guest.state, guest.shutdown_code) == (GuestState.STOPPED, 9)


def test_no_interrupt_reaches_a_vcpu_that_waits_for_its_start():
    host, guest = machine(ES, by_page)
    record = host.hypervisor.launched("vm")
    with pytest.raises(StopIteration) as done:
        next(host.hypervisor._ghcb.interrupts.interrupt("vm", record, 1, 0x40))
    assert done.value.value is False
    assert guest.vcpus[1].state is VcpuState.IN_RESET


def test_a_vcpu_that_gets_a_new_save_area_waits_no_longer():
    host, guest = machine(SNP, by_page)
    record = host.hypervisor.launched("vm")
    assert set(record.starts.holds) == {1}
    memory = guest.spec.memory
    boot_ghcb = GuestKernel(SNP, memory, guest.launched, 0, 0, 0).ghcb_gpa
    host.board.execute_guest(host.board.vmcb("vm", 0), (op.VmgExit(msr.RegisterGhcbRequest(boot_ghcb >> 12).value),))
    gpa = ApStart(memory, guest.launched, boot_ghcb, AP_RIP, 1).save_area_gpa(7)
    page = build_exit(NaeEvent.AP_CREATION, 1 | 1 << 32, gpa, {"RAX": 1})
    batch = (
        op.Write(gpa, initial_vmsa(AP_RIP, 0, 1)),
        op.RmpAdjust(gpa, PAGE_BYTES, large=False, target=1, permissions=0, vmsa=True),
        op.Write(boot_ghcb, page, private=False),
        op.VmgExit(boot_ghcb),
    )
    host.board.execute_guest(host.board.vmcb("vm", 0), batch)
    assert not record.starts.holds
    run(host, host.now_ns + SECOND // 50)
    # It began anew, and waits in its program.
    assert guest.vcpus[1].state is VcpuState.IN_RESET
    assert guest.vcpus[1].save_area_spa == record.spa_of(gpa)


def test_a_vm_pauses_and_goes_on_with_a_vcpu_that_waits():
    host, guest = machine(ES, by_page, *[nothing] * 30, start_first)
    host.pause("vm")
    run(host, host.now_ns + SECOND // 50)
    assert guest.state is GuestState.PAUSED
    assert guest.vcpus[1].state is VcpuState.IN_RESET
    host.resume("vm")
    run(host, host.now_ns + SECOND // 50)
    assert [vcpu.registers.r13 for vcpu in guest.vcpus] == [31, 1]


def test_a_vm_goes_with_a_vcpu_that_waits():
    host, guest = machine(SNP, by_page)
    host.destroy("vm")
    run(host, host.now_ns + SECOND)
    assert guest.state is GuestState.DESTROYED
    assert [vcpu.state for vcpu in guest.vcpus] == [VcpuState.STOPPED] * 2
