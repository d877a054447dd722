"""Hypervisors that lie through the GHCB: what a kernel's check stops, and what the lie is good for where it is off."""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace

import pytest
from toy_guests import IMAGE, SECOND, guest_spec, look, make_host, run, script

from node import ghcb_msr as msr
from node import operations as op
from node.ap_wake import JUMP_TABLE_GPA
from node.generation import Generation
from node.ghcb_page import BadInput, build_reply, refusal
from node.guest import GuestState
from node.guest_kernel import AP_RIP
from node.kernel_settings import KernelSettings
from node.nae_event import JumpTable, NaeEvent
from node.page_state_list import GENERIC_FAILURE
from node.vcpu import VcpuState
from node.vcpu_runner import PROGRAM_FAULT, TERMINATED

ES, SNP = Generation.SEV_ES, Generation.SEV_SNP
GENERAL, PROTOCOL, FEATURES = (msr.ReasonSet.GHCB << 8 | code for code in (0, 1, 2))
PAGE_STATES = msr.ReasonSet.LINUX << 8 | msr.LinuxReason.PAGE_STATE_CHANGE
NOT_REGISTERED = msr.ReasonSet.LINUX << 8 | msr.LinuxReason.REGISTER_GHCB
Lie = Callable[[int], int | None]
PORT = 0x60


@dataclass
class Liar:
    """Answers a message with what ``messages`` make of it, and a page's event with what ``events`` lay over it."""

    honest: object
    messages: dict[int, Lie]
    events: dict[tuple[int, int | None], bytes]

    def vmgexit(self, vm: str, vcpu: int, value: int) -> Generator:
        lie = self.messages.get(value & 0xFFF) if value & 0xFFF else None
        if lie is not None:
            return lie(value)
        if not value & 0xFFF:
            at = self.honest.launched(vm).page_spa(value)
            (page,) = yield (op.HostRead(at, 4096),)
            code, info = (int.from_bytes(page[offset : offset + 8], "little") for offset in (0x390, 0x398))
            laid = self.events.get((code, info), self.events.get((code, None)))
            if laid is not None:
                yield (op.HostWrite(at, laid),)
                return value
        return (yield from self.honest.vmgexit(vm, vcpu, value))


def asks_a_port(placement, registers):
    """Reads a port once, into RBX, and stores to its shared memory; what it is answered it keeps in its registers."""
    if placement.vcpu or registers.r13:
        registers.r13 += 1
        return op.Sleep(SECOND // 10)
    registers.r13 = 1
    found, stored = yield op.PortIn(PORT, 1), op.Write(placement.shared_gpa, b"data", private=False)
    registers.rbx = found if isinstance(found, int) else 0xBAD
    registers.r12 = 0 if stored is None else int(stored.kind)
    return op.Sleep(SECOND // 10)


def lied_to(generation, *, vcpus=1, messages=None, events=None, liar=Liar, **kernel):
    host = make_host({"asks": script(asks_a_port)})
    host.board.exits = liar(host.hypervisor, messages or {}, events or {})
    spec = replace(guest_spec("vm", generation, "asks", vcpus=vcpus), kernel=KernelSettings(**kernel))
    host.launch(spec, lambda _: None, running=True)
    run(host, SECOND // 2)
    return host, host.guests["vm"]


def ended(guest, reason):
    return (guest.state, guest.shutdown_code) == (GuestState.STOPPED, TERMINATED | reason)


VERSIONS = {"none but the first": (1, 1), "none but later ones": (9, 3)}


@pytest.mark.parametrize("generation", [ES, SNP])
@pytest.mark.parametrize("versions", VERSIONS.values(), ids=VERSIONS)
def test_with_a_hypervisor_of_other_versions_only_a_kernel_goes_on_that_does_not_ask(generation, versions):
    messages = {0x002: lambda _: msr.SevInfo(*versions, 51).value}
    _, guest = lied_to(generation, messages=messages)
    assert ended(guest, PROTOCOL)
    _, guest = lied_to(generation, messages=messages, checks_protocol=False)
    assert (guest.state, guest.vcpus[0].registers.rbx) == (GuestState.RUNNING, 0xFF)


@dataclass
class OfVersion1(Liar):
    """A hypervisor from before SEV-SNP: it says so, and has no page of a later version."""

    shown: set[int] = field(default_factory=set)

    def vmgexit(self, vm: str, vcpu: int, value: int) -> Generator:
        if not value & 0xFFF:
            at = self.honest.launched(vm).page_spa(value)
            (version,) = yield (op.HostRead(at + 0xFFA, 2),)
            self.shown.add(int.from_bytes(version, "little"))
            if self.shown != {1}:
                yield (op.HostWrite(at, refusal(BadInput.INVALID_USAGE)),)
                return value
        return (yield from super().vmgexit(vm, vcpu, value))


def of_version_1(generation, **kernel):
    messages = {0x002: lambda _: msr.SevInfo(1, 1, 51).value}
    return lied_to(generation, vcpus=2, messages=messages, liar=OfVersion1, **kernel)


@pytest.mark.parametrize("old", [False, True], ids=["offered both", "offered the first"])
def test_a_sev_es_kernel_of_version_1_starts_every_vcpu_and_speaks_nothing_else(old):
    host, guest = of_version_1(ES, ghcb_version=1) if old else lied_to(ES, vcpus=2, ghcb_version=1)
    assert (guest.state, guest.vcpus[0].registers.rbx) == (GuestState.RUNNING, 0xFF)
    assert guest.vcpus[1].registers.r13
    assert not old or host.board.exits.shown == {1}


def test_a_kernel_of_another_version_than_its_hypervisor_gets_no_answer_to_its_page():
    _, guest = of_version_1(ES)
    assert ended(guest, PROTOCOL)
    _, guest = of_version_1(ES, checks_protocol=False)
    assert guest.state is GuestState.STOPPED
    messages = {0x002: lambda _: msr.SevInfo(2, 2, 51).value}
    assert ended(lied_to(ES, messages=messages, ghcb_version=1)[1], PROTOCOL)


def test_an_snp_guest_needs_version_2():
    _, guest = lied_to(SNP, ghcb_version=1)
    assert ended(guest, FEATURES)
    _, guest = lied_to(SNP, ghcb_version=1, checks_features=False)
    assert ended(guest, PAGE_STATES)


def test_without_what_an_snp_guest_needs_a_kernel_that_does_not_ask_runs_until_it_misses_it():
    messages = {0x080: lambda _: msr.Features(0).value}
    _, guest = lied_to(SNP, messages=messages)
    assert ended(guest, FEATURES)
    _, guest = lied_to(SNP, messages=messages, checks_features=False)
    assert (guest.state, guest.vcpus[0].registers.rbx) == (GuestState.RUNNING, 0xFF)
    refuses = {(NaeEvent.AP_CREATION, None): refusal(BadInput.INVALID_EVENT)}
    _, guest = lied_to(SNP, vcpus=2, messages=messages, events=refuses, checks_features=False)
    assert ended(guest, GENERAL)


UNCHANGED = {
    "failed": build_reply(0, GENERIC_FAILURE),
    "stands still": build_reply(0, 0),
}
"""Lists of which no entry is carried out."""


@pytest.mark.parametrize("laid", UNCHANGED.values(), ids=UNCHANGED)
def test_a_pool_that_is_still_private_ends_a_kernel_at_once_or_at_its_first_store(laid):
    events = {(NaeEvent.PAGE_STATE_CHANGE, None): laid}
    _, guest = lied_to(SNP, events=events)
    assert ended(guest, PAGE_STATES)
    _, guest = lied_to(SNP, events=events, checks_page_states=False)
    # That is all that the hypervisor has of it: the RMP keeps its pages.
    assert (guest.state, guest.vcpus[0].registers.r12) == (GuestState.RUNNING, op.FaultKind.RMP_FAULT)


def test_a_page_for_exits_that_is_still_private_ends_either_kernel():
    messages = {0x014: lambda _: msr.PageStateResult(1).value}
    for checks in (True, False):
        _, guest = lied_to(SNP, messages=messages, checks_page_states=checks)
        assert ended(guest, PAGE_STATES)


TABLE = NaeEvent.AP_JUMP_TABLE, JumpTable.GET


def test_a_false_place_of_the_jump_table_is_where_a_credulous_kernel_stores():
    host, guest = lied_to(ES, vcpus=2)
    assert guest.state is GuestState.RUNNING
    victim = IMAGE.gpa
    before = look(host, guest, victim, 64)
    assert look(host, guest, JUMP_TABLE_GPA, 4) == AP_RIP.to_bytes(4, "little")
    # What it says of the start it does not do, so that nobody looks for the table.
    events = {TABLE: build_reply(0, victim), (NaeEvent.MSR, 1): build_reply(0, 0)}
    host, guest = lied_to(ES, vcpus=2, events=events)
    assert ended(guest, GENERAL)
    host, guest = lied_to(ES, vcpus=2, events=events, checks_jump_table=False)
    assert (guest.state, guest.vcpus[1].state) == (GuestState.RUNNING, VcpuState.IN_RESET)
    assert look(host, guest, victim, 64) == AP_RIP.to_bytes(4, "little") + before[4:]


@pytest.mark.parametrize("place", [0, 3, 0xFFF0_0000_0000, (1 << 64) - 4096])
def test_a_place_where_there_is_no_table_stops_only_the_guest(place):
    _, guest = lied_to(ES, vcpus=2, events={TABLE: build_reply(0, place)}, checks_jump_table=False)
    assert (guest.state, guest.shutdown_code) == (GuestState.STOPPED, PROGRAM_FAULT)


def page_of(head: bytes, value: int) -> bytes:
    """A reply with something in RAX, whatever its bits say."""
    return head[:0x1F8] + value.to_bytes(8, "little") + head[0x200:]


ILL_FORMED = {
    "refused": page_of(refusal(BadInput.INVALID_INPUT), 0x41),
    "not marked": page_of(build_reply(0, 0), 0x41),
    "no outcome": page_of(bytes(0x400), 0x41),
    "an outcome that nobody knows": page_of(build_reply(77, 0, {"RAX": 0}), 0x41),
    "an exception that no hypervisor may ask for": page_of(build_reply(1, 1 << 31 | 3 << 8 | 14, {"RAX": 0}), 0x41),
}


@pytest.mark.parametrize("generation", [ES, SNP])
@pytest.mark.parametrize("laid", ILL_FORMED.values(), ids=ILL_FORMED)
def test_a_reply_of_the_wrong_form_is_an_answer_only_to_who_does_not_look(generation, laid):
    events = {(NaeEvent.IOIO, None): laid}
    _, guest = lied_to(generation, events=events)
    assert ended(guest, GENERAL)
    _, guest = lied_to(generation, events=events, checks_replies=False)
    assert (guest.state, guest.vcpus[0].registers.rbx) == (GuestState.RUNNING, 0x41)


def test_a_page_that_was_not_registered_passes_for_one_that_was():
    messages = {0x012: lambda _: msr.RegisteredGhcb(msr.NO_PREFERENCE).value}
    _, guest = lied_to(SNP, messages=messages)
    assert ended(guest, NOT_REGISTERED)
    # An honest hypervisor does not take exits from there, and says so; the guest takes that for success.
    _, guest = lied_to(SNP, messages=messages, checks_replies=False, checks_page_states=False)
    assert (guest.state, guest.vcpus[0].registers.rbx) == (GuestState.RUNNING, 0)


def test_a_vcpu_that_nobody_started_goes_where_its_table_says_before_there_is_one():
    messages = {0x006: lambda _: msr.ApResetHold(woken=False).value}
    _, guest = lied_to(ES, vcpus=2, messages=messages)
    assert ended(guest, GENERAL)
    _, guest = lied_to(ES, vcpus=2, messages=messages, checks_replies=False)
    assert guest.state is GuestState.STOPPED
    assert not guest.shutdown_code & TERMINATED
