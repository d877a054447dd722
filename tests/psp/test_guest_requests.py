"""SNP_GUEST_REQUEST: numbers, seals and headers; whatever is wrong has its status and changes nothing."""

import dataclasses

import pytest
from asking_guest import REQUEST, RESPONSE, ask, opened, running, sealed, submit
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_machine import COMMAND_PAGE, FIRMWARE, GCTX, PAGE, POLICY, UNCOVERED, change_context, context

from psp import command_buffers as buffers
from psp.commands import SnpCommand
from psp.guest_message import MessageHeader, MessageKey, MessageType
from psp.status import Status
from psp.system_bus import RmpEntry

TSC, ZEROS = MessageType.TSC_INFO_REQ, bytes(128)


@pytest.fixture(scope="module")
def machine():
    return running()


def refused(machine, message, request=REQUEST, response=RESPONSE):
    machine.bus.write(request // PAGE * PAGE, message.ljust(PAGE, b"\0"))
    machine.bus.write(COMMAND_PAGE, buffers.SnpGuestRequest(GCTX, request, response).pack())
    before = machine.snapshot()
    status = machine.psp.submit(SnpCommand.GUEST_REQUEST, COMMAND_PAGE)
    assert machine.snapshot() == before
    return status


def key(machine, vmpl=0):
    return context(machine).vmpck(vmpl)


def after(machine, vmpl=0):
    return context(machine).message_counts[vmpl]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 3), st.integers(0, (1 << 64) - 1), st.integers(0, 255), st.integers(0, 255), st.binary())
def test_a_sealed_message_is_that_of_the_sheet(vmpck, sequence, kind, version, payload):
    secret = bytes(range(32))
    message = MessageKey(secret).seal(vmpck, sequence, kind, version, payload)
    assert message == sealed(secret, sequence, kind, payload, vmpck, version)
    assert MessageKey(secret).unseal(MessageHeader.checked(message), message) == payload


@pytest.mark.parametrize("vmpl", range(4))
def test_numbers_go_up_by_two_for_each_key_by_itself(vmpl):
    machine = running()
    for _ in range(2):
        ask(machine, TSC, ZEROS, vmpl)
    assert context(machine).message_counts == tuple(4 * (one == vmpl) for one in range(4))


@pytest.mark.parametrize("step", [-2, -1, 0, 2, 3, 1 << 32])
def test_a_number_that_is_not_the_next_is_refused(machine, step):
    ask(machine, TSC, ZEROS)
    count = after(machine)
    assert refused(machine, sealed(key(machine), count + step, TSC, ZEROS)) == Status.AEAD_OFLOW
    ask(machine, TSC, ZEROS)


def test_number_zero_and_a_message_that_was_answered_are_refused():
    machine = running()
    first = sealed(key(machine), 1, TSC, ZEROS)
    assert refused(machine, sealed(key(machine), 0, TSC, ZEROS)) == Status.AEAD_OFLOW
    assert submit(machine, first) == 0
    assert refused(machine, first) == Status.AEAD_OFLOW
    answer = machine.bus.read(RESPONSE, PAGE)
    assert refused(machine, answer) == Status.AEAD_OFLOW, "the firmware's own answer is no request"


def test_the_last_number_is_for_an_answer_and_then_the_key_is_dead():
    machine = running()
    change_context(machine, message_count_1=(1 << 64) - 4)
    ask(machine, TSC, ZEROS, 1)
    assert after(machine, 1) == (1 << 64) - 2
    for sequence in ((1 << 64) - 1, 0, 1):
        assert refused(machine, sealed(key(machine, 1), sequence, TSC, ZEROS, 1)) == Status.AEAD_OFLOW
    ask(machine, TSC, ZEROS, 0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("algorithm", 0), ("algorithm", 2), ("header_version", 0), ("header_version", 2), ("header_bytes", 0x5F),
        ("header_bytes", 0x61), ("header_bytes", 0), ("payload_bytes", 4001), ("payload_bytes", 0xFFFF),
        ("payload_bytes", 127), ("payload_bytes", 129), ("reserved", 1), ("vmpck", 4), ("vmpck", 255), ("vmpck", 1),
    ],
)  # fmt: skip
def test_a_header_that_no_guest_means_is_refused(field, value):
    """Sealed by the guest itself, but for a length that is not the payload's and a key that is another's."""
    machine = running()
    message = sealed(key(machine), 1, TSC, ZEROS, **{field: value})
    assert refused(machine, message) == Status.INVALID_PARAM


@pytest.mark.parametrize("at", [*range(0x40), *range(0x3D, 0x60, 7), 0x60, 0x60 + 127])
def test_a_message_that_was_changed_on_its_way_is_refused(at):
    machine = running()  # whose keys have all been used as often
    message = bytearray(sealed(key(machine), after(machine) + 1, TSC, ZEROS))
    message[at] ^= 1
    status = Status.AEAD_OFLOW if 0x20 <= at < 0x28 else Status.INVALID_PARAM
    assert refused(machine, bytes(message)) == status


def test_what_another_key_sealed_is_refused(machine):
    ask(machine, TSC, ZEROS, 2)
    message = sealed(key(machine, 3), after(machine, 2) + 1, TSC, ZEROS, vmpck=2)
    assert refused(machine, message) == Status.INVALID_PARAM


@pytest.mark.parametrize("kind", [0, *(one + 1 for one in range(1, 0x13, 2)), 0x13, 0x1A, 0xFF])
def test_a_type_that_firmware_does_not_know_is_refused(machine, kind):
    message = sealed(key(machine), after(machine) + 1, kind, ZEROS)
    assert refused(machine, message) == Status.INVALID_PARAM


LENGTHS = {3: 0x20, 5: 0x60, 7: 0x10, 9: 0x320, 0xB: 0x320, 0xD: 0x40, 0xF: 0x320, 0x11: 0x80}


@pytest.mark.parametrize(("kind", "length"), LENGTHS.items())
@pytest.mark.parametrize(("version", "longer"), [(0, 0), (2, 0), (3, 0), (255, 0), (1, -1), (1, 1), (1, -4096)])
def test_a_version_or_length_that_a_message_has_not_is_refused(machine, kind, length, version, longer):
    payload = bytes(max(length + longer, 0))
    message = sealed(key(machine), after(machine) + 1, kind, payload, version=version)
    assert refused(machine, message) == Status.INVALID_PARAM


def test_version_2_of_a_key_request_is_longer(machine):
    for length, status in ((0x20, Status.INVALID_PARAM), (0x28, 0)):
        message = sealed(key(machine), after(machine) + 1, MessageType.KEY_REQ, bytes(length), version=2)
        assert submit(machine, message) == status


@pytest.mark.parametrize(
    ("request_spa", "response_spa", "status"),
    [
        (REQUEST + 8, RESPONSE, Status.INVALID_ADDRESS),
        (REQUEST + PAGE - 0x60, RESPONSE, Status.INVALID_ADDRESS),
        (REQUEST, RESPONSE + 8, Status.INVALID_ADDRESS),
        (REQUEST, RESPONSE + PAGE, Status.INVALID_PAGE_STATE),
        (REQUEST, UNCOVERED, Status.INVALID_PAGE_STATE),
        (REQUEST, GCTX, Status.INVALID_PAGE_STATE),
        (REQUEST, 1 << 60, Status.INVALID_ADDRESS),
        (REQUEST, 0xE0_0000, Status.INVALID_PAGE_STATE),
    ],
)
def test_pages_that_are_not_there_not_aligned_or_not_firmware_s_are_refused(
    machine, request_spa, response_spa, status
):
    message = sealed(key(machine), after(machine) + 1, TSC, ZEROS)
    assert refused(machine, message, request_spa, response_spa) == status


@pytest.mark.parametrize("spa", [1 << 60, 0xE0_0000])
def test_a_request_page_that_is_not_there_or_firmware_s_own_is_refused(machine, spa):
    machine.bus.write(COMMAND_PAGE, buffers.SnpGuestRequest(GCTX, spa, RESPONSE).pack())
    before = machine.snapshot()
    status = machine.psp.submit(SnpCommand.GUEST_REQUEST, COMMAND_PAGE)
    assert status == (Status.INVALID_ADDRESS if spa == 1 << 60 else Status.INVALID_PAGE_STATE)
    assert machine.snapshot() == before


def test_no_guest_has_another_s_answers(machine):
    machine.bus.write(COMMAND_PAGE, buffers.SnpGuestRequest(REQUEST, REQUEST, RESPONSE).pack())
    before = machine.snapshot()
    assert machine.psp.submit(SnpCommand.GUEST_REQUEST, COMMAND_PAGE) == Status.INVALID_GUEST
    assert machine.snapshot() == before


def test_a_response_page_of_the_host_s_is_not_written():
    machine = running()
    machine.bus.rmp_set(RESPONSE, RmpEntry())
    assert refused(machine, sealed(key(machine), 1, TSC, ZEROS)) == Status.INVALID_PAGE_STATE
    machine.bus.rmp_set(RESPONSE, FIRMWARE)
    ask(machine, TSC, ZEROS)


@pytest.mark.parametrize("status", [Status.INVALID_PARAM, Status.BAD_MEASUREMENT])
def test_statuses_that_sources_do_not_agree_on_are_switches(status):
    machine = running()
    requests = machine.psp.snp.guest_requests
    requests.switches = dataclasses.replace(requests.switches, bad_sequence=status, bad_message=status)
    assert refused(machine, sealed(key(machine), 2, TSC, ZEROS)) == status
    assert refused(machine, sealed(key(machine, 1), 1, TSC, ZEROS)) == status
    assert refused(machine, sealed(key(machine), 1, TSC, ZEROS, algorithm=0)) == status


def test_without_the_check_of_numbers_an_old_message_is_answered_as_if_it_were_new():
    machine = running()
    requests = machine.psp.snp.guest_requests
    requests.switches = dataclasses.replace(requests.switches, checks_sequence=False)
    old = sealed(key(machine), 1, TSC, ZEROS)
    ask(machine, TSC, ZEROS)
    ask(machine, TSC, ZEROS)
    assert submit(machine, old) == 0
    assert opened(key(machine), machine.bus.read(RESPONSE, PAGE))[0] == 2
    assert after(machine) == 4
    assert refused(machine, sealed(key(machine), (1 << 64) - 1, TSC, ZEROS)) == Status.AEAD_OFLOW


def test_a_message_is_its_guest_s_alone():
    """Carried under the context of another guest, whose keys have been used as often, it does not open."""
    machine = running()
    other = GCTX + PAGE
    machine.bus.rmp_set(other, FIRMWARE)
    assert machine.call(SnpCommand.GCTX_CREATE, buffers.GuestContextPage(other).pack()) == 0
    assert machine.call(SnpCommand.LAUNCH_START, buffers.SnpLaunchStart(other, POLICY).pack()) == 0
    assert machine.call(SnpCommand.LAUNCH_FINISH, buffers.SnpLaunchFinish(other).pack()) == 0
    message = sealed(key(machine), 1, TSC, ZEROS)
    machine.bus.write(REQUEST, message.ljust(PAGE, b"\0"))
    machine.bus.write(COMMAND_PAGE, buffers.SnpGuestRequest(other, REQUEST, RESPONSE).pack())
    before = machine.snapshot()
    assert machine.psp.submit(SnpCommand.GUEST_REQUEST, COMMAND_PAGE) == Status.INVALID_PARAM
    assert machine.snapshot() == before
    assert submit(machine, message) == 0
