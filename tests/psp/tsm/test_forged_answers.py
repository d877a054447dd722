"""The host carries every byte between firmware and device and may make up any: it gains nothing, and all goes on."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from device_bench import (
    CONTEXT,
    PORT,
    RESPONSE,
    RID,
    STREAM,
    TDI_CONTEXT,
    Bench,
    bound,
    connected,
    draws,
    new_bench,
    running,
    with_guest,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_machine import PAGE

from psp import tsm
from psp.commands import SnpCommand
from psp.status import Status
from psp.tsm.spdm_loop import MOST_ANSWER_BYTES
from tio.device_security_module import ProtocolId
from tio.ide import IdeError, StreamState, memory_write
from tio.ide.key_programmer import draw_keys, program_keys, start_keys
from tio.loose_device import LooseDevice
from tio.spdm import PCI_DOE, Requester, RequesterSettings
from tio.spdm.binding import Packet
from tio.spdm.connection_messages import PCI_SIG_STANDARD, PCI_SIG_VENDOR
from tio.spdm.faults import SpdmFault
from tio.steps import carry

C = SnpCommand
REFUSALS = {Status.SPDM_ERROR, Status.ERR_IN_DEV_CONN}
CERTIFICATES, DISCONNECT = C.TIO_DEV_CERTIFICATES, C.TIO_DEV_DISCONNECT


def root_stream(bench: Bench):
    return bench.trusted_io.ports[0, PORT].port.streams[STREAM]


@cache
def packets_of_a_connection() -> int:
    bench = new_bench()
    bench.create()
    assert bench.connect() == Status.SUCCESS
    return len(bench.statuses)


def test_a_connection_takes_as_many_exchanges_as_the_sheet_says() -> None:
    """Version, capabilities, algorithms, digests, key exchange, finish, measurements; chain; ports; 12 of keys."""
    assert 20 <= packets_of_a_connection() <= 30


@pytest.mark.parametrize("number", range(26))
def test_one_changed_byte_in_any_answer_of_a_connection_ends_it_and_the_next_one_holds(number: int) -> None:
    def change(at: int, answer: bytes) -> bytes:
        where = (len(answer) - 4) // (1 + number % 3)
        return answer[:where] + bytes((answer[where] ^ 0x41,)) + answer[where + 1 :] if at == number else answer

    if number >= packets_of_a_connection():
        return
    bench = new_bench()
    bench.create()
    assert bench.connect(change) in REFUSALS
    found = bench.device_status()
    assert (found.state, found.flags, found.measurements_digest) == (tsm.DeviceState.CREATED, 0, bytes(48))
    assert not root_stream(bench).has_any_key()
    assert bench.connect() == Status.SUCCESS
    bench.enable_streams()
    assert root_stream(bench).state is StreamState.SECURE


@pytest.mark.parametrize("number", [3, 8, 20])
def test_an_answer_that_was_given_before_ends_a_connection(number: int) -> None:
    answers: list[bytes] = []

    def change(at: int, answer: bytes) -> bytes:
        answers.append(answer)
        return answers[at - 1] if at == number else answer

    bench = new_bench()
    bench.create()
    assert bench.connect(change) in REFUSALS
    assert bench.connect() == Status.SUCCESS


def response(payload: bytes, *, capacity: int = PAGE, size: int | None = None, flags: int = 0, **fields: int) -> bytes:
    """A response buffer in which one thing may be other than it must be."""
    ours = {"object_id": 2, "length": 16 + len(payload), "data_type": 2, "minor": 0, "major": 1} | fields
    whole = tsm.MessageObject(**ours).pack() + payload
    whole = whole.ljust(tsm.padded(len(whole)), b"\0")
    return tsm.BufferHeader(capacity, len(whole) if size is None else size, flags).pack() + whole


NOT_RESPONSES = {
    "empty": (response(b"x" * 40, size=0), Status.RESYNC_REQ),
    "encrypted": (response(b"x" * 40, flags=1), Status.RESYNC_REQ),
    "a request": (response(b"x" * 40, object_id=1), Status.RESYNC_REQ),
    "a result": (response(b"x" * 40, object_id=4), Status.RESYNC_REQ),
    "no object": (response(b"x" * 40, object_id=0), Status.RESYNC_REQ),
    "no data type": (response(b"x" * 40, data_type=0), Status.RESYNC_REQ),
    "another data type": (response(b"x" * 40, data_type=3), Status.RESYNC_REQ),
    "another version": (response(b"x" * 40, major=2), Status.RESYNC_REQ),
    "shorter than its head": (response(b"x" * 40, length=15), Status.RESYNC_REQ),
    "longer than its payload": (response(b"x" * 40, length=65), Status.RESYNC_REQ),
    "with a unit too many": (response(b"x" * 40, length=32), Status.RESYNC_REQ),
    "a payload that is no whole unit": (response(b"x" * 40, size=63), Status.INCORRECT_BUFFER_LENGTH),
    "a payload beyond the buffer": (response(b"x" * 40, size=PAGE), Status.INCORRECT_BUFFER_LENGTH),
    "a buffer beyond its page": (response(b"x" * 40, capacity=PAGE + 1), Status.INCORRECT_BUFFER_LENGTH),
    "more than a device may say": (response(b"x" * (MOST_ANSWER_BYTES + 1)), Status.RESPONSE_TOO_LARGE),
}


@pytest.mark.parametrize("name", NOT_RESPONSES)
def test_what_is_no_response_leaves_the_command_waiting_for_one(name: str) -> None:
    bench = waiting()
    data, expected = NOT_RESPONSES[name]
    order = bench.order(tsm.DeviceOrder)
    packet = bench.asked()
    bench.machine.bus.write(RESPONSE, data)
    before = bench.snapshot()
    assert bench.give(CERTIFICATES, order) == expected
    assert {**bench.snapshot(), "DRAM": {}} == {**before, "DRAM": {}}
    assert bench.asked() == packet


@cache
def waiting() -> Bench:
    """A command waits for its first answer."""
    bench = connected()
    bench.lay_buffers()
    assert bench.give(CERTIFICATES, bench.order(tsm.DeviceOrder)) == Status.SPDM_REQUEST
    return bench


def test_a_command_that_was_given_no_response_goes_on_with_the_one_that_comes_later() -> None:
    bench = connected()
    bench.lay_buffers()
    order = bench.order(tsm.DeviceOrder)
    assert bench.give(CERTIFICATES, order) == Status.SPDM_REQUEST
    for data, expected in NOT_RESPONSES.values():
        bench.machine.bus.write(RESPONSE, data)
        assert bench.give(CERTIFICATES, order) == expected
    bench.carry()
    assert bench.run(CERTIFICATES, order) == Status.SUCCESS


# Records of the session.


def forged(_: int, answer: bytes) -> bytes:
    return answer[:-8] + bytes(8)


def test_a_forged_record_makes_the_session_useless_and_a_new_connection_makes_good() -> None:
    bench = connected()
    bench.lay_buffers()
    order = bench.order(tsm.DeviceOrder)
    keys = len(bench.trusted_io.ports[0, PORT].keys)
    assert bench.run(CERTIFICATES, order, forged) == Status.ERR_IN_DEV_CONN
    assert bench.run(CERTIFICATES, order) == Status.ERR_IN_DEV_CONN
    assert bench.run(DISCONNECT, order) == Status.ERR_IN_DEV_CONN
    assert bench.connect() == Status.SUCCESS
    bench.enable_streams()
    assert root_stream(bench).state is StreamState.SECURE
    assert len(set(bench.trusted_io.ports[0, PORT].keys)) == 2 * keys
    bench.lay_buffers()
    assert bench.run(CERTIFICATES, order) == Status.SUCCESS


def test_a_message_outside_of_the_session_is_no_answer_to_a_record() -> None:
    bench = connected()
    bench.lay_buffers()
    order = bench.order(tsm.DeviceOrder)
    assert bench.give(CERTIFICATES, order) == Status.SPDM_REQUEST
    bench.answer(bytes.fromhex("137f0400"), secured=False)
    assert bench.give(CERTIFICATES, order) == Status.ERR_IN_DEV_CONN


Setup = Callable[[], Bench]
COMMANDS: dict[str, tuple[Setup, int, Callable[[Bench], tsm.SpdmOrder]]] = {
    "DISCONNECT": (connected, DISCONNECT, lambda b: b.order(tsm.DeviceOrder)),
    "MEASUREMENTS": (connected, C.TIO_DEV_MEASUREMENTS, lambda b: b.order(tsm.DeviceMeasurements)),
    "ROLL_KEY": (connected, C.TIO_ROLL_KEY, lambda b: b.order(tsm.DeviceOrder)),
    "BIND": (with_guest, C.TIO_TDI_BIND, lambda b: b.bind_order()),
    "BIND to run": (bound, C.TIO_TDI_BIND, lambda b: b.bind_order(run_flags=tsm.RUN)),
    "UNBIND": (running, C.TIO_TDI_UNBIND, lambda b: b.tdi_order()),
    "REPORT": (running, C.TIO_TDI_REPORT, lambda b: b.tdi_order()),
}


@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_forged_record_ends_a_command_without_its_effect_and_force_leads_on(name: str, number: int) -> None:
    set_up, command, order = COMMANDS[name]
    bench = set_up()
    bench.lay_buffers()
    before = bench.trusted_io.bindings.copy(), set(bench.trusted_io.running), bench.device_status()
    status = bench.run(command, order(bench), lambda at, answer: forged(at, answer) if at == number else answer)
    if len(bench.statuses) <= number:
        assert status == Status.SUCCESS
        return
    assert status == Status.ERR_IN_DEV_CONN
    assert (bench.trusted_io.bindings, bench.trusted_io.running, bench.device_status()) == before
    assert bench.run(DISCONNECT, bench.order(tsm.DeviceOrder, flags=tsm.FORCE)) == Status.SUCCESS
    assert not bench.trusted_io.bindings
    assert not root_stream(bench).has_any_key()
    assert bench.connect() == Status.SUCCESS
    if set_up is not connected:
        assert bench.bind() == Status.SUCCESS
        assert bench.bind(run_flags=tsm.RUN) == Status.SUCCESS


@pytest.mark.parametrize("name", [*COMMANDS, "CONNECT"])
def test_a_device_that_never_answers_is_left_by_force(name: str) -> None:
    if name == "CONNECT":
        bench = new_bench()
        bench.create()
        bench.lay_buffers()
        order = bench.order(tsm.DeviceConnect, tc_mask=1, stream_ids=b"\1" + bytes(7))
        assert bench.give(C.TIO_DEV_CONNECT, order) == Status.SPDM_REQUEST
    else:
        set_up, command, make = COMMANDS[name]
        bench = set_up()
        bench.lay_buffers()
        assert bench.give(command, make(bench)) == Status.SPDM_REQUEST
    if name in {"BIND", "BIND to run", "UNBIND", "REPORT"}:
        assert bench.unbind(flags=tsm.FORCE) == Status.SUCCESS
        assert not bench.trusted_io.bindings
        assert bench.device_status().flags == 0
    assert bench.run(DISCONNECT, bench.order(tsm.DeviceOrder, flags=tsm.FORCE)) == Status.SUCCESS
    assert bench.device_status().state == tsm.DeviceState.CREATED
    assert not root_stream(bench).has_any_key()
    assert bench.connect() == Status.SUCCESS


# Sessions of the host's own.


def hosts_session(bench: Bench) -> Callable[[ProtocolId, object], None]:
    """The host speaks SPDM with the device itself, through the mailbox that is its own."""
    requester = Requester(RequesterSettings(), PCI_DOE, draws("host"))

    def answer(packet: Packet) -> Packet:
        payload, secured = bench.device_says(packet.payload, secured=packet.secured)
        return Packet(payload, secured=secured)

    carry(requester.connect(), answer)
    carry(requester.certificates(), answer)
    session = carry(requester.open_session(), answer)

    def say(protocol: ProtocolId, steps: object) -> None:
        def inner(asked: bytes) -> bytes:
            head = bytes((protocol,))
            said = requester.vendor_defined(head + asked, PCI_SIG_STANDARD, PCI_SIG_VENDOR, session)
            return carry(said, answer)[1:]

        carry(steps, inner)  # type: ignore[arg-type]

    return say


def test_a_session_of_the_host_before_the_firmware_s_is_over_with_it() -> None:
    bench = new_bench()
    say = hosts_session(bench)
    keys = draw_keys(draws("host's keys"))
    say(ProtocolId.IDE_KM, program_keys(1, STREAM, 0, keys))
    say(ProtocolId.IDE_KM, start_keys(1, STREAM, 0))
    bench.create()
    assert bench.connect() == Status.SUCCESS
    bench.enable_streams()
    assert root_stream(bench).state is bench.card.port.streams[STREAM].state is StreamState.SECURE
    # What it says in its old one may end the firmware's, for the device takes it for a forged record; no key comes in.
    with pytest.raises(SpdmFault):
        say(ProtocolId.IDE_KM, program_keys(1, STREAM, 0, keys))
    assert not bench.card.port.streams[STREAM].has_any_key()


def test_a_session_of_the_host_after_the_firmware_s_ends_it_and_opens_nothing() -> None:
    bench = running()
    say = hosts_session(bench)
    assert bench.card.port.streams[STREAM].state is StreamState.INSECURE
    keys = draw_keys(draws("host's keys"))
    say(ProtocolId.IDE_KM, program_keys(1, STREAM, 0, keys))
    say(ProtocolId.IDE_KM, start_keys(1, STREAM, 0))
    bench.card.port.streams[STREAM].enable()
    # The card would send with the host's keys; the root port's are the firmware's.
    packets = bench.card.port.streams[STREAM].send([memory_write(RID, 0x1000, b"\x5a" * 64)])
    assert bench.trusted_io.ports[0, PORT].port.receive(packets) == []
    assert root_stream(bench).state is StreamState.INSECURE
    bench.lay_buffers()
    assert bench.run(CERTIFICATES, bench.order(tsm.DeviceOrder)) == Status.ERR_IN_DEV_CONN
    assert bench.bind(run_flags=tsm.RUN) == Status.ERR_IN_DEV_CONN
    with pytest.raises(IdeError):
        root_stream(bench).send([memory_write(RID, 0x1000, b"\x5a" * 64)])


def test_a_device_that_was_swapped_is_told_by_its_certificates() -> None:
    bench = connected()
    assert bench.run(DISCONNECT, bench.order(tsm.DeviceOrder)) == Status.SUCCESS
    bench.card = type(bench.card)(
        bench.card.kind, LooseDevice(), draws("another"), serial="0002", requester_id=RID, programmed=True
    )
    assert bench.connect() == Status.DEV_CERT_CHANGED
    assert bench.device_status().state == tsm.DeviceState.CREATED
    assert not root_stream(bench).has_any_key()
    assert bench.ask(C.TIO_DEV_RECLAIM, tsm.DeviceReclaim, device=CONTEXT) == Status.SUCCESS
    bench.create()
    assert bench.connect() == Status.SUCCESS


def test_a_stream_that_the_host_has_not_set_up_ends_a_connection() -> None:
    bench = new_bench()
    bench.create()
    assert bench.connect(stream_ids=b"\2" + bytes(7)) == Status.SPDM_ERROR  # The device has none.
    del bench.trusted_io.ports[0, PORT].port.streams[STREAM]
    assert bench.connect() == Status.INVALID_PARAM
    assert bench.device_status().state == tsm.DeviceState.CREATED


def test_a_slot_without_certificates_is_refused() -> None:
    bench = new_bench()
    bench.create()
    assert bench.connect(certificate_slot=1) == Status.INVALID_PARAM


# Anything at all.

STATUSES = {
    Status.SUCCESS, Status.SPDM_REQUEST, Status.SPDM_ERROR, Status.ERR_IN_DEV_CONN, Status.RESYNC_REQ,
    Status.INCORRECT_BUFFER_LENGTH, Status.RESPONSE_TOO_LARGE, Status.INVALID_PARAM, Status.DEV_CERT_CHANGED,
}  # fmt: skip


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 24), st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_bytes_in_the_response_buffer_get_a_status_and_the_device_connects_after(
    number: int, changes: list[tuple[int, int]]
) -> None:
    bench = new_bench()
    bench.create()
    bench.lay_buffers()
    order = bench.order(tsm.DeviceConnect, tc_mask=1, stream_ids=b"\1" + bytes(7))
    for at in range(60):
        status = bench.give(C.TIO_DEV_CONNECT, order)
        assert status in STATUSES
        if status in {Status.SUCCESS, *REFUSALS, Status.DEV_CERT_CHANGED}:
            break
        if status != Status.SPDM_REQUEST and at > number + 1:
            break
        if status == Status.SPDM_REQUEST:
            bench.carry()
        if at == number:
            for where, octet in changes:
                bench.machine.bus.write(RESPONSE + where, bytes((octet,)))
    bench.run(DISCONNECT, bench.order(tsm.DeviceOrder, flags=tsm.FORCE))
    assert bench.connect() == Status.SUCCESS


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 24),
    st.one_of(st.binary(max_size=80), st.tuples(st.integers(0, 100), st.integers(1, 255), st.integers(0, 400))),
)
def test_a_device_that_says_anything_inside_of_its_session_gets_a_status(
    number: int, change: bytes | tuple[int, int, int]
) -> None:
    bench = with_guest_of_the_day()
    count = iter(range(1000))
    honest = type(bench.card.dsm).answer

    def lying(session_id: int | None, payload: bytes) -> bytes | None:
        answer = honest(bench.card.dsm, session_id, payload)
        if next(count) != number or answer is None:
            return answer
        if isinstance(change, bytes):
            return change
        where, flip, cut = change
        changed = bytearray(answer)
        changed[where % len(changed)] ^= flip
        return bytes(changed[: max(1, cut)])

    device = bench.machine.psp.snp.tsm.contexts.devices[CONTEXT]
    bench.card.dsm.answer = lying  # type: ignore[method-assign]
    try:
        assert bench.connect() in STATUSES
        if device.link is not None:
            assert bench.bind() in STATUSES
            assert bench.bind(run_flags=tsm.RUN) in STATUSES | {Status.INVALID_TDI_STATE}
            bench.lay_buffers()
            assert bench.run(C.TIO_TDI_REPORT, bench.tdi_order()) in STATUSES | {Status.INVALID_TDI_STATE}
    finally:
        del bench.card.dsm.answer  # type: ignore[method-assign]
    assert bench.run(DISCONNECT, bench.order(tsm.DeviceOrder, flags=tsm.FORCE)) in {0, Status.INVALID_DEV_STATE}
    assert not bench.trusted_io.bindings
    assert not root_stream(bench).has_any_key()


@cache
def with_guest_of_the_day() -> Bench:
    """One for all examples: each begins and ends without a connection."""
    bench = with_guest()
    assert bench.run(DISCONNECT, bench.order(tsm.DeviceOrder)) == Status.SUCCESS
    assert TDI_CONTEXT in bench.machine.psp.snp.tsm.contexts.devices[CONTEXT].tdis
    return bench
