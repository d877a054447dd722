"""Without one of its checks a stream takes exactly what that check stops."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ide_ends import ends, go, program

from tio.ide import Failure, IdeStream, IdeTlp, StreamState, Tlp, memory_read, memory_write, receive_writes, send_writes
from tio.ide.stream import StreamChecks

WRITES = [memory_write(0x100, 64 * n, bytes([n]) * 64) for n in range(12)]
NO_MACS, NO_NUMBERS = StreamChecks(macs=False), StreamChecks(numbers=False)
READ = memory_read(0x100, 0x4000, 64, tag=3)


def arrive(stream: IdeStream, packets: list[IdeTlp]) -> list[Tlp]:
    return [one for packet in packets for one, _ in stream.receive(packet)]


def altered(packet: IdeTlp) -> IdeTlp:
    return replace(packet, payload=bytes([packet.payload[0] ^ 0x80]) + packet.payload[1:])


def test_without_the_mac_an_altered_payload_arrives_altered() -> None:
    one, other = ends(checks=NO_MACS)
    wire = one.send(WRITES[:3])
    came = arrive(other, [wire[0], altered(wire[1]), wire[2]])
    assert came[0::2] == WRITES[0:3:2]
    assert came[1].payload == bytes([1 ^ 0x80]) + WRITES[1].payload[1:]
    assert other.state is StreamState.SECURE


def test_without_the_mac_packets_are_still_counted() -> None:
    """What is repeated is opened under the next number: noise, and all that follows is too."""
    one, other = ends(checks=NO_MACS)
    wire = one.send(WRITES[:3])
    came = arrive(other, [wire[0], wire[0], wire[1]])
    assert came[0] == WRITES[0]
    assert came[1].payload not in [one.payload for one in WRITES]
    assert came[2].payload != WRITES[1].payload
    one, other = ends(checks=NO_MACS)
    wire = one.send([*WRITES[:2], READ])
    arrive(other, [wire[0], wire[2]])
    assert other.failure is Failure.ORDER


@pytest.mark.parametrize("aggregation", [1, 2])
def test_without_numbers_what_is_repeated_lost_or_moved_passes(aggregation: int) -> None:
    one, other = ends(aggregation, checks=NO_NUMBERS)
    wire = one.send(WRITES[:8])
    step = aggregation
    first, second, fourth = WRITES[:step], WRITES[step : 2 * step], WRITES[3 * step : 4 * step]
    came = arrive(other, [*wire[:step], *wire[:step], *wire[3 * step : 4 * step], *wire[step : 2 * step]])
    assert came == [*first, *first, *fourth, *second]
    # And goes on with what the sender sends next.
    assert arrive(other, one.send([*WRITES[:2], READ])) == [*WRITES[:2], READ]
    assert other.state is StreamState.SECURE


def test_without_numbers_a_read_passes_writes_that_were_lost() -> None:
    one, other = ends(checks=NO_NUMBERS)
    wire = one.send([*WRITES[:3], READ])
    assert arrive(other, [wire[3]]) == [READ]


def test_without_numbers_what_is_altered_or_somebody_else_s_does_not_pass() -> None:
    one, other = ends(checks=NO_NUMBERS)
    assert arrive(other, [altered(one.send(WRITES[:1])[0])]) == []
    assert other.failure is Failure.MAC
    stranger, other = IdeStream(7), ends(checks=NO_NUMBERS)[1]
    program(stranger, IdeStream(7), seed=99)
    go(stranger)
    stranger.enable()
    assert arrive(other, stranger.send(WRITES[:1])) == []
    assert other.failure is Failure.MAC


@pytest.mark.parametrize("missing", ["macs", "numbers"])
def test_runs_go_packet_by_packet_and_arrive(missing: str) -> None:
    one, other = ends(2, checks=StreamChecks(**{missing: False}))
    data = bytes(range(256)) * 4
    run = send_writes(one, 0x100, 0x1000, data)
    assert receive_writes(other, run) is None
    came = arrive(other, list(run.packets()))
    assert b"".join(packet.payload for packet in came) == data


def test_without_the_cipher_everything_is_read_altered_lost_and_repeated() -> None:
    one, other = ends(2, checks=StreamChecks(ciphers=False))
    wire = one.send([*WRITES[:4], READ])
    assert [packet.payload for packet in wire] == [packet.payload for packet in [*WRITES[:4], READ]]
    came = arrive(other, [altered(wire[0]), wire[1], wire[4], wire[2], wire[3], wire[2], wire[3]])
    assert came[0].payload == bytes([0x80]) + WRITES[0].payload[1:]
    assert came[1:] == [WRITES[1], READ, *WRITES[2:4], *WRITES[2:4]]
    assert other.state is StreamState.SECURE
    run = send_writes(one, 0x100, 0x1000, WRITES[5].payload * 8)
    assert run.records[0][:64] == WRITES[5].payload
    assert b"".join(packet.payload for packet in arrive(other, list(run.packets()))) == WRITES[5].payload * 8
