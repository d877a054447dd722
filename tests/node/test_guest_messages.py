"""Guest messages from a guest's kernel to the firmware and back, past a hypervisor that does with them what it may."""

import struct
from dataclasses import replace

import pytest
from svsm_guests import SvsmVm
from toy_guests import COSTS, SECOND, make_host, run, script, start

from node import operations as op
from node.generation import Generation
from node.guest_memory_map import Range
from node.guest_messages import MOST_TRIES, GuestMessages, MessageRefused, MessagesBusy
from node.guest_requests import Requested, RequestError
from psp.attestation_report import AttestationReport
from psp.command_buffers import SnpGuestRequest
from psp.commands import SnpCommand
from psp.guest_context import counted
from psp.guest_message import MessageType
from psp.status import Status

PAGE = 4096
TSC, ZEROS = MessageType.TSC_INFO_REQ, bytes(128)
REPORT = bytes(range(64)) + bytes(32)


class Vm:
    """A guest at rest, the hands of its kernel, and those of a hostile hypervisor at the firmware's mailbox."""

    def __init__(self, vcpus=1):
        self.host = make_host()
        self.guest = start(self.host, "vm", Generation.SEV_SNP, vcpus=vcpus)
        run(self.host, SECOND)
        self.placement = self.guest.software.programs[0].placement
        self.messages = self.client()
        self.submit = self.host.board.psp.submit
        self.requests, self.responses = [], []

    def client(self, vcpu=0, **changes):
        placement = self.guest.software.programs[vcpu].placement
        place = replace(placement.messages, **changes)
        return GuestMessages(place, placement.shared_gpa, placement.shared_gpa + PAGE)

    def step(self, asking, answers=None, vcpu=0):
        batch = asking.send(answers)
        return self.host.board.execute_guest(self.host.board.vmcb("vm", vcpu), batch)

    def ask(self, kind=TSC, payload=ZEROS, messages=None, vcpu=0, **more):
        asking, answers = (messages or self.messages).ask(kind, payload, **more), None
        while True:
            try:
                answers = self.step(asking, answers, vcpu)
            except StopIteration as end:
                return end.value

    def secrets(self, gpa, length):
        return self.host.board.execute_guest(self.host.board.vmcb("vm", 0), (op.Read(gpa, length),))[0]

    @property
    def count(self):
        return int.from_bytes(self.secrets(self.messages.place.count_gpa, 4), "little")

    @property
    def has_key(self):
        return any(self.secrets(self.messages.place.key_gpa, 32))

    def tap(self, between=lambda page: page, before=lambda page: page, status=None):
        """Sit at the mailbox: change requests on their way there, and responses on their way back."""
        controller = self.host.board.controller

        def submit(command, at):
            if command != SnpCommand.GUEST_REQUEST:
                return self.submit(command, at)
            asked = SnpGuestRequest.parse(controller.read(at, SnpGuestRequest.SIZE, 0))
            request = controller.read(asked.request, PAGE, 0)
            self.requests.append(request)
            controller.write(asked.request, before(request), 0)
            found = self.submit(command, at)
            response = controller.read(asked.response, PAGE, 0)
            self.responses.append(response)
            controller.write(asked.response, between(response), 0)
            return found if status is None else status

        self.host.board.psp.submit = submit


@pytest.fixture
def vm():
    return Vm()


def test_a_report_comes_from_the_firmware_to_the_guest(vm):
    answer = vm.ask(MessageType.REPORT_REQ, REPORT).payload
    assert struct.unpack_from("<II", answer) == (0, 0x4A0)
    report = AttestationReport.parse(answer[0x20:])
    record = vm.host.board.psp.launch_record(vm.host.hypervisor.launched("vm").gctx)
    assert (report.measurement, report.policy) == (record.digest, record.policy)
    assert report.measurement.hex() == vm.guest.launch_digest
    assert report.report_data == REPORT[:64]
    assert (report.cpuid_family, report.cpuid_model, report.cpuid_stepping) == (0x19, 1, 1)
    assert vm.count == 2


def test_numbers_go_on_with_each_answer_and_the_key_lives_in_the_secrets_page(vm):
    for number in range(1, 4):
        vm.ask()
        assert vm.count == 2 * number
    assert vm.has_key
    assert vm.ask(messages=vm.client()).payload, "a client that was made anew goes on where the last one was"


def test_the_hypervisor_sees_nothing_of_what_is_asked_or_answered(vm):
    vm.tap()
    answer = vm.ask(MessageType.REPORT_REQ, REPORT).payload
    for page in vm.requests + vm.responses:
        pieces = [answer[at : at + 16] for at in range(0x20, 0x4C0 - 16)]
        assert not any(piece in page for piece in pieces if len(set(piece)) > 8)
        assert REPORT[:16] not in page


def refused(vm, **more):
    with pytest.raises(MessageRefused) as found:
        vm.ask(**more)
    return found.value


def test_an_answer_from_before_is_refused_and_the_key_wiped(vm):
    vm.tap()
    vm.ask()
    (old,) = vm.responses
    vm.tap(between=lambda _: old)
    refused(vm)
    assert not vm.has_key
    vm.tap()
    refused(vm)
    assert len(vm.requests) == 2, "without a key nothing is asked any more"


def test_a_guest_that_does_not_look_at_numbers_takes_an_answer_from_before():
    careless = Vm()
    messages = careless.client(checks_answers=False)
    careless.tap()
    first = careless.ask(MessageType.REPORT_REQ, REPORT, messages).payload
    (old,) = careless.responses
    careless.tap(between=lambda _: old)
    assert careless.ask(MessageType.REPORT_REQ, bytes(96), messages).payload == first


@pytest.mark.parametrize("at", [0, 0x20, 0x28, 0x30, 0x32, 0x34, 0x35, 0x36, 0x3C, 0x60, 0x60 + 127])
def test_an_answer_that_was_changed_on_its_way_is_refused(at):
    vm = Vm()
    vm.tap(between=lambda page: page[:at] + bytes([page[at] ^ 1]) + page[at + 1 :])
    refused(vm)
    assert not vm.has_key


def test_the_guest_s_own_request_and_nothing_at_all_are_no_answers():
    for fake in (lambda vm: vm.requests[-1], lambda _: bytes(PAGE), lambda _: b"\xff" * PAGE):
        vm = Vm()
        vm.tap(between=lambda _, vm=vm, fake=fake: fake(vm))
        refused(vm)


def test_a_request_that_was_changed_on_its_way_or_sent_again_is_the_firmware_s_to_refuse(vm):
    vm.tap()
    vm.ask()
    (old,) = vm.requests
    vm.tap(before=lambda _: old)
    assert refused(vm).status == Status.AEAD_OFLOW
    assert not vm.has_key


@pytest.mark.parametrize("status", [Status.INVALID_PARAM, Status.AEAD_OFLOW, Status.INVALID_GUEST_STATE])
def test_a_status_is_told_and_costs_the_key(vm, status):
    vm.tap(status=status)
    assert refused(vm).status == status
    assert not vm.has_key


def with_answers(vm, *answers):
    """A hypervisor that answers each guest request with EXITINFO2 and leaves the firmware out of it, then carries."""
    requests, left = vm.host.hypervisor._ghcb.requests, list(answers)
    carry = requests.ask

    def ask(record, asked, *, extended):
        if left:
            return left.pop(0)
            yield ()
        return (yield from carry(record, asked, extended=extended))

    requests.ask = ask


def busy(vm, times):
    with_answers(vm, *[Requested(RequestError.BUSY)] * times)


def test_a_busy_hypervisor_is_asked_again_with_the_same_message(vm):
    busy(vm, MOST_TRIES - 1)
    vm.tap()
    vm.ask()
    assert vm.count == 2
    assert len(vm.requests) == 1


def test_a_hypervisor_that_stays_busy_costs_the_key_and_no_more_tries(vm):
    busy(vm, MOST_TRIES)
    vm.tap()
    refused(vm)
    assert vm.requests == []
    assert not vm.has_key


@pytest.mark.parametrize(("pages", "length"), [(1, 100), (2, PAGE + 1)])
def test_certificates_come_with_a_report_where_there_is_room(vm, pages, length):
    vm.host.hypervisor._ghcb.requests.certificates = b"c" * length
    room = Range(vm.placement.shared_gpa + 2 * PAGE, pages * PAGE)
    answered = vm.ask(MessageType.REPORT_REQ, REPORT, room=room)
    assert answered.certificates.startswith(b"c" * length)
    assert len(answered.certificates) == room.length
    assert (answered.pages_needed, vm.count) == (0, 2)


def test_a_table_that_is_too_long_costs_nothing_but_the_certificates(vm):
    """The same message goes again, without: its number may not be used for another."""
    vm.host.hypervisor._ghcb.requests.certificates = b"c" * 3 * PAGE
    room = Range(vm.placement.shared_gpa + 2 * PAGE, PAGE)
    vm.tap()
    answered = vm.ask(MessageType.REPORT_REQ, REPORT, room=room)
    assert (answered.certificates, answered.pages_needed) == (b"", 3)
    assert len(answered.payload) == 0x4C0
    assert len(vm.requests) == 1
    vm.ask()


def test_two_vcpus_do_not_take_one_number_for_two_messages():
    vm = Vm(vcpus=2)
    first = vm.messages.ask(TSC, ZEROS)
    answers = vm.step(first)
    with pytest.raises(MessagesBusy):
        vm.ask(messages=vm.client(1), vcpu=1)
    while True:
        try:
            answers = vm.step(first, answers)
        except StopIteration:
            break
    vm.ask(messages=vm.client(1), vcpu=1)
    assert vm.count == 4
    assert vm.has_key


def test_a_number_that_could_not_be_stored_is_never_used_again(vm):
    """Its hypervisor takes the secrets page away while the firmware works, and brings it back with what was in it."""
    board, page = vm.host.board, vm.messages.place.secrets_gpa
    spa = board.vmcb("vm", 0).nested.translate(page, 1)[0][0]

    def take_away(response):
        assert board.execute_host((op.NestedUnmap("vm", page, PAGE),)) == (None,)
        return response

    vm.tap(between=take_away)
    refused(vm)
    assert board.execute_host((op.NestedMap("vm", page, spa, PAGE, encrypted=False),)) == (None,)
    vm.tap()
    assert (vm.count, vm.has_key) == (0, True), "as if nothing had been asked"
    with pytest.raises(MessagesBusy):
        vm.ask()
    assert len(vm.requests) == 1


def test_the_last_numbers_of_32_bits_are_used_and_then_none():
    vm = Vm()
    place, board = vm.messages.place, vm.host.board
    record = vm.host.hypervisor.launched("vm")
    near = (1 << 32) - 3
    pages = board.psp.snp.guests.pages
    pages.write_packed(record.gctx, counted(pages.opened(record.gctx)[0], 0, near))
    board.execute_guest(board.vmcb("vm", 0), (op.Write(place.count_gpa, near.to_bytes(4, "little")),))
    vm.ask()
    assert vm.count == (1 << 32) - 1
    vm.tap()
    refused(vm)
    assert vm.requests == []


def test_above_an_svsm_the_kernel_speaks_with_the_key_of_its_own_vmpl():
    def talk(talker):
        placement = talker.placement
        messages = GuestMessages(placement.messages, placement.shared_gpa, placement.shared_gpa + PAGE)
        own = yield from messages.ask(MessageType.REPORT_REQ, bytes(64) + struct.pack("<I", 2) + bytes(28))
        higher = yield from messages.ask(MessageType.REPORT_REQ, bytes(96))
        return own.payload, higher.payload

    vm = SvsmVm(talk)
    own, higher = vm.said
    assert AttestationReport.parse(own[0x20:]).vmpl == 2
    assert int.from_bytes(higher[:4], "little") == Status.INVALID_PARAM
    assert vm.guest.software.programs[1].placement.messages is None


def test_guests_without_a_context_have_nobody_to_ask():
    host = make_host()
    for generation in (Generation.PLAIN, Generation.SEV, Generation.SEV_ES):
        guest = start(host, generation.name, generation)
        run(host, host.now_ns + SECOND)
        assert guest.software.programs[0].placement.messages is None


def asking(read):
    def step(placement, registers):
        messages = GuestMessages(placement.messages, placement.shared_gpa, placement.shared_gpa + PAGE)
        yield from messages.ask(MessageType.REPORT_REQ, REPORT)
        read.setdefault(placement.vm, []).append(registers.rbx)
        return op.Sleep(10**18)

    return script(step)


def test_a_storm_of_requests_waits_in_the_security_processor_s_one_queue():
    """AT-2 of the published measurements: the last of N guests has its report after N times 8 ms."""
    read = {}
    host = make_host({"asking": asking(read)})
    for number in range(6):
        start(host, f"vm{number}", Generation.SEV_SNP, "asking")
    ended = {}
    while host.clock.env.peek() < SECOND:
        host.clock.env.step()
        for name in read:
            ended.setdefault(name, host.now_ns)
    guests = [host.guests[f"vm{number}"] for number in range(6)]
    service = COSTS["psp.guest_request_ns"]
    assert [one.psp_service_ns for one in guests] == [service] * 6
    waits = [one.psp_wait_ns for one in guests]
    assert waits == sorted(waits)
    assert all(0.9 * number * service <= wait <= number * service for number, wait in enumerate(waits))
    begun = min(ended.values()) - service
    assert 6 * service <= max(ended.values()) - begun <= 6.5 * service
