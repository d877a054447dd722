"""Every TIO command in every state of its device and TDI, by a table; a refusal changes nothing."""

from __future__ import annotations

from functools import cache

import pytest
from device_bench import (
    ANSWER,
    CONTEXT,
    RID,
    STATUS,
    TDI_CONTEXT,
    Bench,
    bound,
    connected,
    new_bench,
    running,
    with_guest,
)
from tio_orders import DEVICE, ORDERS, C, Order
from toy_machine import snp_guest

from psp import tsm
from psp.commands import COMMANDS, SnpCommand
from psp.guest_context import SnpGuestState
from psp.status import Status
from tio.tdisp import InterfaceId

COMMAND_PAGE = 0x1000
TABLE = """
                  absent created connected tdi bound running broken broken-bound
DEV_CREATE        00     3A      3A        3A  3A    3A      3A     3A
DEV_RECLAIM       36     00      3B        3B  3B    3B      3B     3B
DEV_CONNECT       36     32      3B        3B  3B    3B      32     3A
DEV_DISCONNECT    36     3B      32        32  3A    3A      35     35
DEV_DISCONNECT!   36     3B      00        00  00    00      00     00
DEV_STATUS        36     00      00        00  00    00      00     00
DEV_MEASUREMENTS  36     3B      32        32  32    32      35     35
DEV_CERTIFICATES  36     3B      32        32  32    32      35     35
ROLL_KEY          36     3B      32        32  32    32      35     35
TDI_CREATE        36     3B      00        3A  3A    3A      35     35
TDI_RECLAIM       36     37      37        00  3A    3A      00     3A
TDI_BIND          36     37      37        32  3C    3C      35     35
TDI_BIND+         36     37      37        3C  32    3C      35     35
TDI_UNBIND        36     37      37        3C  32    32      3C     35
TDI_UNBIND!       36     37      37        3C  00    00      3C     00
TDI_REPORT        36     37      37        3C  32    32      3C     35
TDI_STATUS        36     37      37        32  32    32      35     35
TDI_INFO          36     37      37        00  00    00      00     00
GUEST_REQUEST     36     37      37        00  00    00      00     00
FENCE_CLEAR       36     00      00        00  00    3C      00     00
FENCE_STATUS      36     00      00        00  00    00      00     00
"""
"""The sheet's refusals; 35 where a session is of no use, 3A where a page or an interface is taken."""
HEAD, *LINES = [line.split() for line in TABLE.strip().splitlines()]
CELLS = [(name, state, int(said, 16)) for name, *row in LINES for state, said in zip(HEAD, row, strict=True)]
CHANGES = {"DEV_CONNECT", "DEV_CREATE", "DEV_RECLAIM", "DEV_DISCONNECT!", "TDI_CREATE", "TDI_RECLAIM", "TDI_UNBIND!"}
"""Commands after which the state is another."""


def in_state(state: str) -> Bench:
    bench = _raw(state)
    bench.lay_buffers()
    bench.lend(CONTEXT, TDI_CONTEXT, STATUS, ANSWER)
    return bench


def _raw(state: str) -> Bench:
    if state in {"absent", "created"}:
        bench = new_bench()
        snp_guest(bench.machine, SnpGuestState.RUNNING)
        assert state == "absent" or bench.create() == 0
        return bench
    if state == "connected":
        bench = connected()
        snp_guest(bench.machine, SnpGuestState.RUNNING)
        return bench
    bench = {"tdi": with_guest, "broken": with_guest, "running": running}.get(state, bound)()
    if state.startswith("broken"):
        link = bench.machine.psp.snp.tsm.contexts.devices[CONTEXT].link
        assert link is not None
        link.broken = True
    return bench


@cache
def shared(state: str) -> Bench:
    """For commands that leave the state as it is."""
    return in_state(state)


def give_up(bench: Bench) -> None:
    """Forget a command that waits, as no command would: the next cell begins as this one did."""
    for device in bench.machine.psp.snp.tsm.contexts.devices.values():
        if device.pending is not None:
            device.pending.steps.close()
            device.pending = None


def test_the_table_has_every_command() -> None:
    assert {ORDERS[name][0] for name, *_ in LINES} == {
        command for command in COMMANDS if 0xD2 <= command <= 0xE4
    } == {one for one in SnpCommand if one >= 0xD2}


@pytest.mark.parametrize(("name", "state", "expected"), CELLS, ids=str)
def test_every_command_in_every_state(name: str, state: str, expected: int) -> None:
    begins = expected in {Status.SUCCESS, Status.SPDM_REQUEST}
    bench = in_state(state) if name in CHANGES and begins else shared(state)
    command, order = ORDERS[name]
    bench.machine.bus.write(COMMAND_PAGE, order(bench).pack())
    before = bench.snapshot()
    status = bench.machine.psp.submit(command, COMMAND_PAGE)
    assert status == expected, Status(status).name
    if not begins:
        assert bench.snapshot() == before
    give_up(bench)


WITH_EXCHANGE = [name for name, (command, _) in ORDERS.items() if issubclass(COMMANDS[command].layout, tsm.SpdmOrder)]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [one for one in WITH_EXCHANGE if not one.endswith("!")])
def test_while_one_command_waits_for_a_device_no_other_is_begun(name: str) -> None:
    bench = shared("running")
    waiting = bench.order(tsm.DeviceMeasurements, nonce=b"\1" * 32)
    assert bench.give(C.TIO_DEV_MEASUREMENTS, waiting) == Status.SPDM_REQUEST
    command, order = ORDERS[name]
    bench.machine.bus.write(COMMAND_PAGE, order(bench).pack())
    before = bench.snapshot()
    status = bench.machine.psp.submit(command, COMMAND_PAGE)
    # The same command with another nonce is another one, too.
    assert status == (Status.INVALID_PARAM if name == "DEV_MEASUREMENTS" else Status.IN_USE)
    assert bench.snapshot() == before
    give_up(bench)


@pytest.mark.parametrize("name", ["DEV_STATUS", "TDI_INFO", "FENCE_STATUS"])
def test_what_asks_no_device_is_answered_while_a_command_waits(name: str) -> None:
    bench = shared("running")
    assert bench.give(C.TIO_DEV_CERTIFICATES, bench.order(tsm.DeviceOrder)) == Status.SPDM_REQUEST
    command, order = ORDERS[name]
    assert bench.give(command, order(bench)) == Status.SUCCESS
    give_up(bench)


def test_a_tdi_that_a_command_waits_for_is_not_reclaimed_and_a_device_being_connected_neither() -> None:
    bench = shared("tdi")
    assert bench.give(C.TIO_TDI_BIND, bench.bind_order()) == Status.SPDM_REQUEST
    found = bench.device_status()
    assert (found.flags, found.pending, found.pending_interface) == (3, C.TIO_TDI_BIND, InterfaceId(RID).pack())
    command, order = ORDERS["TDI_RECLAIM"]
    assert bench.give(command, order(bench)) == Status.IN_USE
    give_up(bench)
    bench = shared("created")
    command, order = ORDERS["DEV_CONNECT"]
    assert bench.give(command, order(bench)) == Status.SPDM_REQUEST
    assert bench.give(C.TIO_DEV_RECLAIM, tsm.DeviceReclaim(16, **DEVICE)) == Status.IN_USE
    give_up(bench)


# The platform.

ALL = [
    ("STATUS", C.TIO_STATUS, lambda _: tsm.TioStatus(16, address=STATUS)),
    ("INIT", C.TIO_INIT, lambda _: tsm.TioInit(16)),
    *((name, *row) for name, row in ORDERS.items()),
]


@pytest.mark.parametrize(("name", "command", "order"), ALL, ids=[one for one, *_ in ALL])
def test_commands_come_when_the_platform_is_ready_and_not_before(name: str, command: int, order: Order) -> None:
    for enabled in (False, True):
        bench = platform(enabled=enabled)
        bench.machine.bus.write(COMMAND_PAGE, order(bench).pack())
        before = bench.snapshot()
        status = bench.machine.psp.submit(command, COMMAND_PAGE)
        if enabled and name in {"STATUS", "INIT"}:
            assert status == Status.SUCCESS
            bench.machine.psp.snp.tsm.initialised = False
        else:
            assert status == Status.INVALID_PLATFORM_STATE
            assert bench.snapshot() == before


@cache
def platform(*, enabled: bool) -> Bench:
    """TIO is not initialised, or not even switched on."""
    bench = new_bench(tio_init=False, enabled=enabled)
    snp_guest(bench.machine, SnpGuestState.RUNNING)
    bench.lend(CONTEXT, STATUS)
    return bench


def test_tio_init_comes_once() -> None:
    bench = shared("absent")
    before = bench.snapshot()
    assert bench.ask(C.TIO_INIT, tsm.TioInit) == Status.INVALID_PLATFORM_STATE
    assert bench.snapshot()["snp.tsm"] == before["snp.tsm"]


@pytest.mark.parametrize(("name", "command", "order"), ALL, ids=[one for one, *_ in ALL])
def test_a_buffer_that_says_another_length_or_flags_that_mean_nothing_is_refused(
    name: str, command: int, order: Order
) -> None:
    bench = shared("running" if name.endswith(("+", "!")) else "tdi")
    size = COMMANDS[command].layout.SIZE  # type: ignore[union-attr]
    bad = [(length, 0, Status.INVALID_LENGTH) for length in (0, size - 1, size + 1, 1 << 31)]
    bad += [(size, 1 << bit, Status.INVALID_PARAM) for bit in (1, 31)]
    for length, flags, expected in bad:
        data = bytearray(order(bench).pack())
        data[:4] = length.to_bytes(4, "little")
        data[4:8] = (int.from_bytes(data[4:8], "little") | flags).to_bytes(4, "little")
        bench.machine.bus.write(COMMAND_PAGE, bytes(data))
        before = bench.snapshot()
        assert bench.machine.psp.submit(command, COMMAND_PAGE) == expected
        assert bench.snapshot() == before

