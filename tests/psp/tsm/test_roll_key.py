"""TIO_ROLL_KEY: a link gets new keys while it works, and the old ones are gone from both senders."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from device_bench import PORT, RID, STREAM, Bench, connected, running

from psp import tsm
from psp.commands import SnpCommand
from psp.status import Status
from tio.ide import IdePort, StreamState, completion, memory_read, memory_write
from tio.tdisp import TdiState


def roll(bench: Bench) -> int:
    bench.lay_buffers()
    return bench.run(SnpCommand.TIO_ROLL_KEY, bench.order(tsm.DeviceOrder))


def ends(bench: Bench) -> Iterator[tuple[IdePort, IdePort]]:
    root, card = bench.trusted_io.ports[0, PORT].port, bench.card.port
    yield from ((card, root), (root, card))


def traffic(bench: Bench) -> list[int]:
    """A write and a read each way; the key set that each packet names."""
    key_sets = []
    for sender, receiver in ends(bench):
        for packet in (memory_write(RID, 0x1000, b"\x5a" * 64), memory_read(RID, 0x1000, 64, 7)):
            (sealed,) = sender.streams[STREAM].send([packet])
            key_sets.append(sealed.prefix[1] >> 4 & 1)
            assert receiver.streams[STREAM].receive(sealed)
    return key_sets


def test_packets_go_on_under_new_keys_and_the_tdi_runs_on() -> None:
    bench = running()
    traffic(bench)
    assert roll(bench) == Status.SUCCESS
    traffic(bench)
    for sender, _ in ends(bench):
        assert sender.streams[STREAM].state is StreamState.SECURE
    assert bench.card.tdi.state is TdiState.RUN
    assert len(set(bench.trusted_io.ports[0, PORT].keys)) == 12


def test_no_new_key_is_seen_either() -> None:
    bench = connected()
    assert roll(bench) == Status.SUCCESS
    memory = b"".join(bench.machine.bus.pages.values())
    for key in bench.trusted_io.ports[0, PORT].keys:
        for form in (key, key[::-1]):
            assert form not in memory
            assert form not in bench.seen


def test_a_packet_under_the_old_key_that_was_held_back_is_not_taken_after_one_under_the_new() -> None:
    bench = connected()
    card, root = bench.card.port.streams[STREAM], bench.trusted_io.ports[0, PORT].port.streams[STREAM]
    (old,) = card.send([memory_write(RID, 0x1000, b"old" * 4)])
    assert roll(bench) == Status.SUCCESS
    (new,) = card.send([memory_write(RID, 0x1000, b"new" * 4)])
    root.receive(new)
    assert root.receive(old) == []


def test_the_other_half_of_a_roll_that_the_device_refused_is_taken_back_by_the_next_connection() -> None:
    bench = connected()
    honest = bench.card.dsm.answer
    bench.card.dsm.answer = lambda session, payload: (  # type: ignore[method-assign]
        None if payload[1] == 4 else honest(session, payload)
    )
    assert roll(bench) in {Status.SPDM_ERROR, Status.ERR_IN_DEV_CONN}
    del bench.card.dsm.answer  # type: ignore[method-assign]
    force = bench.order(tsm.DeviceOrder, flags=tsm.FORCE)
    assert bench.run(SnpCommand.TIO_DEV_DISCONNECT, force) == Status.SUCCESS
    assert not bench.trusted_io.ports[0, PORT].port.streams[STREAM].has_any_key()
    assert bench.connect() == Status.SUCCESS
    bench.enable_streams()
    traffic(bench)


def test_firmware_may_give_fresh_keys_before_a_tdi_that_has_run_is_locked_again() -> None:
    for rekeys, keys in ((False, 6), (True, 12)):
        bench = running()
        bench.machine.psp.snp.tsm.tdi_switches.rekeys = rekeys
        traffic(bench)
        assert bench.unbind() == Status.SUCCESS
        for _ in range(2):  # Nothing has run in between: the second time the keys stay.
            assert bench.bind() == Status.SUCCESS
            assert len(set(bench.trusted_io.ports[0, PORT].keys)) == keys
            assert bench.unbind() == Status.SUCCESS
        traffic(bench)


@pytest.mark.parametrize("refuses", [True, False])
def test_keys_that_a_sub_stream_still_uses_are_not_rolled_away_under_it(refuses: bool) -> None:
    bench = running()
    bench.machine.psp.snp.tsm.device_switches.refuses_early_roll = refuses
    assert roll(bench) == Status.SUCCESS
    # Of six sub-streams only two have had a packet under the new keys: receivers of the rest wait for one.
    card, root = bench.card.port.streams[STREAM], bench.trusted_io.ports[0, PORT].port.streams[STREAM]
    for sender, receiver in ((card, root), (root, card)):
        (sealed,) = sender.send([memory_write(RID, 0x1000, b"new" * 4)])
        receiver.receive(sealed)
    before, given = bench.snapshot(), len(bench.trusted_io.ports[0, PORT].keys)
    assert roll(bench) == (Status.IN_USE if refuses else Status.INVALID_PARAM)
    assert (bench.card.tdi.state is TdiState.RUN) is refuses
    if refuses:
        assert bench.snapshot()["trusted I/O"] == before["trusted I/O"]
        assert len(bench.trusted_io.ports[0, PORT].keys) == given
        traffic(bench)
        for sender, receiver in ((card, root), (root, card)):
            (sealed,) = sender.send([completion(RID, 0x18, 7, bytes(4))])
            receiver.receive(sealed)
        assert roll(bench) == Status.SUCCESS
        traffic(bench)


def test_packets_pass_between_any_two_exchanges_of_a_roll() -> None:
    """Who sends with a new key first would do so to one that has none."""
    bench, passed = running(), list[int]()

    def meanwhile(_: int, answer: bytes) -> bytes:
        passed.extend(traffic(bench))
        return answer

    bench.lay_buffers()
    assert bench.run(SnpCommand.TIO_ROLL_KEY, bench.order(tsm.DeviceOrder), meanwhile) == Status.SUCCESS
    assert set(passed) == {0, 1}
    for sender, _ in ends(bench):
        assert sender.streams[STREAM].state is StreamState.SECURE
    assert bench.card.tdi.state is TdiState.RUN
