"""Several devices, streams and guests at once: each by itself."""

from __future__ import annotations

import struct

import pytest
from asking_guest import opened, sealed
from device_bench import (
    ANSWER,
    CONTEXT,
    GUEST_DEVICE_ID,
    MESSAGE,
    OTHER_GCTX,
    PORT,
    RID,
    TDI_CONTEXT,
    Bench,
    beside,
    bound,
    connected,
    draws,
    new_bench,
    running,
    with_guest,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_machine import GCTX, PAGE, change_context, context, snp_guest

from psp import tsm
from psp.commands import SnpCommand
from psp.guest_context import SnpGuestState
from psp.status import Status
from psp.tsm.trusted_io import TdiBinding
from tio.card import Card
from tio.device_identity import CardKind
from tio.ide import StreamState, memory_write
from tio.loose_device import LooseDevice
from tio.tdisp import TdiState

C = SnpCommand


def test_two_devices_are_asked_at_the_same_time_and_neither_hears_the_other_s_answers() -> None:
    one = with_guest()
    other = beside(one)
    assert other.create_tdi() == Status.SUCCESS
    orders = (one.bind_order(), other.bind_order(tdi=other.at(TDI_CONTEXT), guest_device_id=GUEST_DEVICE_ID + 1))
    done: set[int] = set()
    for _ in range(40):
        for at, (bench, order) in enumerate(zip((one, other), orders, strict=True)):
            if at in done:
                continue
            status = bench.give(C.TIO_TDI_BIND, order)
            if status == Status.SUCCESS:
                done.add(at)
            else:
                assert status == Status.SPDM_REQUEST
                bench.carry()
    assert done == {0, 1}
    assert set(one.trusted_io.bindings) == {RID, other.requester}
    assert one.card.tdi.state is other.card.tdi.state is TdiState.CONFIG_LOCKED


def test_an_answer_of_another_device_s_session_is_none() -> None:
    one = connected()
    other = beside(one)
    for bench in (one, other):
        bench.lay_buffers()
        order = bench.order(tsm.DeviceOrder)
        assert bench.give(C.TIO_DEV_CERTIFICATES, order) == Status.SPDM_REQUEST
    payload, secured = other.asked()
    answer, is_record = other.device_says(payload, secured=secured)
    one.answer(answer, secured=is_record)
    assert one.give(C.TIO_DEV_CERTIFICATES, one.order(tsm.DeviceOrder)) == Status.ERR_IN_DEV_CONN
    other.answer(answer, secured=is_record)
    assert other.run(C.TIO_DEV_CERTIFICATES, other.order(tsm.DeviceOrder)) == Status.SUCCESS


def test_every_traffic_class_has_a_stream_with_keys_of_its_own() -> None:
    one = connected()
    other = beside(one, streams=(1, 9))
    root = other.trusted_io.ports[0, other.port]
    assert len(set(root.keys)) == 12
    for stream in (1, 9):
        assert root.port.streams[stream].state is StreamState.SECURE
        (packet,) = other.card.port.streams[stream].send([memory_write(other.requester, 0x1000, b"\x5a" * 64)])
        assert root.port.streams[stream].receive(packet)
    found = other.device_status()
    assert (found.tc_mask, found.stream_ids[:2]) == (3, b"\1\x09")
    snp_guest(one.machine, SnpGuestState.RUNNING)
    assert other.create_tdi() == Status.SUCCESS
    assert other.bind(tdi=other.at(TDI_CONTEXT)) == Status.SUCCESS
    binding = TdiBinding(2, GUEST_DEVICE_ID, frozenset({1, 9}), other.port)
    assert one.trusted_io.bindings[other.requester] == binding
    lock = other.card.tdi.lock
    assert lock is not None
    assert lock.request.stream_id == 1
    assert other.run(C.TIO_DEV_DISCONNECT, other.order(tsm.DeviceOrder, flags=tsm.FORCE)) == Status.SUCCESS
    assert not any(root.port.streams[one].has_any_key() for one in (1, 9))


def fake_beside(bench: Bench) -> Bench:
    """What the host makes up: a card of its own making, said to be behind the same root port."""
    card = Card(CardKind.GPU, LooseDevice(), draws("the host's"), serial="1", requester_id=RID + 8, programmed=True)
    fake = Bench(bench.machine, card, bench.trusted_io, requester=RID + 8, shift=0x8_0000)
    assert fake.create() == Status.SUCCESS
    return fake


@pytest.mark.parametrize("state", ["connected", "being connected"])
def test_a_made_up_device_does_not_get_keys_for_the_stream_of_another(state: str) -> None:
    """Its maker would know with which keys packets pass that count as the other device's."""
    bench = new_bench()
    bench.create()
    if state == "connected":
        assert bench.connect() == Status.SUCCESS
    else:
        bench.lay_buffers()
        order = bench.order(tsm.DeviceConnect, tc_mask=1, stream_ids=b"\1" + bytes(7))
        assert bench.give(C.TIO_DEV_CONNECT, order) == Status.SPDM_REQUEST
    fake = fake_beside(bench)
    keys = list(bench.trusted_io.ports[0, PORT].keys)
    assert fake.connect() == Status.IN_USE
    assert bench.trusted_io.ports[0, PORT].keys == keys
    # A stream of its own it gets, and this one once it is nobody's.
    assert bench.run(C.TIO_DEV_DISCONNECT, bench.order(tsm.DeviceOrder, flags=tsm.FORCE)) == Status.SUCCESS
    assert fake.connect() == Status.SUCCESS
    assert bench.connect() == Status.IN_USE


def test_a_connection_that_failed_leaves_its_streams_to_others() -> None:
    bench = new_bench()
    bench.create()
    assert bench.connect(lambda at, answer: answer[:-9] + bytes(9) if at == 9 else answer) != Status.SUCCESS
    assert fake_beside(bench).connect() == Status.SUCCESS


def test_a_guest_knows_each_of_its_devices_by_another_number() -> None:
    """Else the host could put one in the other's place between two messages of the guest."""
    one = bound()
    other = beside(one)
    assert other.create_tdi() == Status.SUCCESS
    tdi = other.at(TDI_CONTEXT)
    assert other.bind(tdi=tdi) == Status.IN_USE
    assert other.card.tdi.state is TdiState.CONFIG_UNLOCKED
    one.another_guest()
    assert other.bind(tdi=tdi, gctx=OTHER_GCTX) == Status.SUCCESS
    assert other.unbind(tdi=tdi, gctx=OTHER_GCTX) == Status.SUCCESS
    assert other.bind(tdi=tdi, guest_device_id=1) == Status.SUCCESS


def test_two_of_one_number_that_are_locked_at_the_same_time_are_not_both_bound() -> None:
    one = with_guest()
    other = beside(one)
    assert other.create_tdi() == Status.SUCCESS
    order = other.bind_order(tdi=other.at(TDI_CONTEXT))
    assert other.give(C.TIO_TDI_BIND, order) == Status.SPDM_REQUEST
    assert one.bind() == Status.SUCCESS
    other.carry()
    assert other.run(C.TIO_TDI_BIND, order) == Status.IN_USE
    assert set(one.trusted_io.bindings) == {RID}


@pytest.mark.parametrize("command", ["run", "unbind", "unbind by force", "report", "message"])
def test_another_guest_has_nothing_to_say_of_a_tdi(command: str) -> None:
    bench = bound()
    bench.another_guest()
    bench.lay_buffers()
    asked = {
        "run": lambda: bench.bind(gctx=OTHER_GCTX, run_flags=tsm.RUN),
        "unbind": lambda: bench.unbind(gctx=OTHER_GCTX),
        "unbind by force": lambda: bench.unbind(gctx=OTHER_GCTX, flags=tsm.FORCE),
        "report": lambda: bench.run(C.TIO_TDI_REPORT, bench.tdi_order(gctx=OTHER_GCTX)),
        "message": lambda: bench.guest_asks(19, bytes(16), gctx=OTHER_GCTX),
    }
    assert asked[command]() == Status.INVALID_TDI
    assert bench.trusted_io.bindings[RID].asid == 2
    assert bench.card.tdi.state is TdiState.CONFIG_LOCKED


@pytest.mark.parametrize(
    ("state", "changes", "expected"),
    [
        (SnpGuestState.INIT, {}, Status.INVALID_GUEST_STATE),
        (SnpGuestState.LAUNCH, {}, Status.INVALID_GUEST_STATE),
        (SnpGuestState.RUNNING, {"asid": 0}, Status.INACTIVE),
        (SnpGuestState.RUNNING, {}, Status.SUCCESS),
    ],
)
def test_a_tdi_is_bound_to_a_guest_that_runs(state: SnpGuestState, changes: dict[str, int], expected: int) -> None:
    bench = connected()
    snp_guest(bench.machine, state)
    if changes:
        change_context(bench.machine, **changes)
    assert bench.create_tdi() == Status.SUCCESS
    assert bench.bind() == expected


def test_a_guest_with_devices_does_not_leave_by_exporting_itself() -> None:
    """EXPORT ends the guest here in the same moment: with devices it is refused as SNP_DECOMMISSION is."""
    bench = bound()
    for expected in (Status.IN_USE, Status.SUCCESS):
        guest = context(bench.machine)
        count = guest.message_counts[0]
        message = sealed(guest.vmpck(0), count + 1, 7, struct.pack("<QQ", GCTX, 0))
        bench.machine.bus.write(MESSAGE, message.ljust(PAGE, b"\0"))
        bench.lend(ANSWER)
        asked = struct.pack("<QQQ", GCTX, MESSAGE, ANSWER)
        assert bench.machine.call(C.GUEST_REQUEST, asked) == Status.SUCCESS
        answer = opened(guest.vmpck(0), bench.machine.bus.read(ANSWER, PAGE))[3]
        assert int.from_bytes(answer[:4], "little") == expected
        assert bench.unbind() == (Status.SUCCESS if expected else Status.INVALID_TDI_STATE)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([19, 21, 23, 25]), st.data())
def test_any_payload_of_a_guest_gets_an_answer_or_a_status(kind: int, data: st.DataObject) -> None:
    size = {19: 16, 21: 48, 23: 16, 25: 80}[kind]
    words = data.draw(st.binary(min_size=size, max_size=size))
    if data.draw(st.booleans()):
        words = struct.pack("<H", GUEST_DEVICE_ID) + bytes(14) + words[16:]
    bench = shared()
    before = bench.trusted_io.bindings.copy()
    assert bench.guest_asks(kind, words[:size]) in {Status.SUCCESS, Status.INVALID_PARAM}
    assert bench.trusted_io.bindings == before


_SHARED: list[Bench] = []


def shared() -> Bench:
    if not _SHARED:
        _SHARED.append(running())
        assert MESSAGE % PAGE == CONTEXT % PAGE == 0
        assert (0, PORT) in _SHARED[0].trusted_io.ports
    return _SHARED[0]


def test_an_interface_of_no_function_of_the_device_is_not_locked() -> None:
    bench = with_guest()
    tdi = TDI_CONTEXT + PAGE
    assert bench.create_tdi(tdi, RID + 1) == Status.SUCCESS
    assert bench.bind(tdi=tdi) == Status.SPDM_ERROR
    assert not bench.trusted_io.bindings
    assert bench.bind() == Status.SUCCESS


def test_a_device_that_names_more_and_more_ports_is_asked_for_each_once() -> None:
    bench = connected()
    assert bench.run(C.TIO_DEV_DISCONNECT, bench.order(tsm.DeviceOrder)) == Status.SUCCESS

    def nowhere(_: int | None, payload: bytes) -> bytes | None:
        return bytes((0, 1, 0, payload[3], 0, 0, 0, 255)) + bytes(12)

    bench.card.dsm.answer = nowhere  # type: ignore[method-assign]
    bench.lay_buffers()
    order = bench.order(tsm.DeviceConnect, tc_mask=1, stream_ids=b"\1" + bytes(7))
    assert bench.run(C.TIO_DEV_CONNECT, order, most=300) == Status.SPDM_ERROR
    assert 256 < len(bench.statuses) < 280


def test_firmware_knows_no_more_devices_and_tdis_than_it_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = with_guest()
    monkeypatch.setattr("psp.tsm.device_commands.MOST_DEVICES", 1)
    monkeypatch.setattr("psp.tsm.tdi_commands.MOST_TDIS", 1)
    other = CONTEXT + 8 * PAGE
    bench.lend(other)
    create = tsm.DeviceCreate(32, 0, other, RID + 8, PORT)
    before = bench.snapshot()
    assert bench.give(C.TIO_DEV_CREATE, create) == Status.RESOURCE_LIMIT
    assert bench.snapshot()["snp.tsm"] == before["snp.tsm"]
    assert bench.create_tdi(TDI_CONTEXT + PAGE, RID + 1) == Status.RESOURCE_LIMIT
    assert bench.ask(C.TIO_TDI_RECLAIM, tsm.TdiReclaim, device=CONTEXT, tdi=TDI_CONTEXT) == Status.SUCCESS
    assert bench.create_tdi(TDI_CONTEXT + PAGE, RID + 1) == Status.SUCCESS


def test_a_stream_that_failed_gets_new_keys_and_its_tdi_is_bound_again() -> None:
    bench = running()
    root, card = bench.trusted_io.ports[0, PORT].port, bench.card.port
    (packet,) = card.streams[1].send([memory_write(RID, 0x1000, b"\x5a" * 64)])
    assert root.streams[1].receive(type(packet)(packet.prefix, packet.header, bytes(64), packet.mac)) == []
    assert root.streams[1].state is StreamState.INSECURE
    card.streams[1].receive_clear(packet)  # type: ignore[arg-type]
    assert bench.card.tdi.state is TdiState.ERROR
    bench.lay_buffers()
    assert bench.run(C.TIO_ROLL_KEY, bench.order(tsm.DeviceOrder)) == Status.SUCCESS
    assert root.streams[1].state is card.streams[1].state is StreamState.SECURE
    assert bench.unbind() == Status.SUCCESS
    assert bench.bind() == Status.SUCCESS
    assert bench.bind(run_flags=tsm.RUN) == Status.SUCCESS
