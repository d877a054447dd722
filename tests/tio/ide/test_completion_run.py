"""Completions in one go are, in every byte, what they are one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ide_ends import ends

from tio.ide import (
    ArrivedCompletions,
    Association,
    Failure,
    IdePort,
    IdeStream,
    Link,
    StreamState,
    Tlp,
    Way,
    memory_read,
    memory_write,
)
from tio.ide.completion_run import receive_completions, send_completions
from tio.ide.requests import completions
from tio.ide.stream import MOST_POSTED, StreamChecks

DEVICE, ROOT, SIZE = 0x0100, 0x0018, 256
WRITE = memory_write(ROOT, 0x8000, bytes(64))


def reads(count: int, length: int) -> list[Tlp]:
    return [memory_read(DEVICE, 0x10000 + 0x1000 * number, length, 40 + number) for number in range(count)]


def singles(requests: list[Tlp], data: bytes) -> list[Tlp]:
    each = len(data) // len(requests)
    return [
        one
        for number, request in enumerate(requests)
        for one in completions(ROOT, request, data[number * each : (number + 1) * each], SIZE)
    ]


def run_of(stream: IdeStream, requests: list[Tlp], data: bytes, *, tee: bool = True):
    return send_completions(stream, ROOT, DEVICE, [one.tag for one in requests], data, SIZE, tee=tee)


def arrive(stream: IdeStream, packets: list) -> list[Tlp]:
    return [one for packet in packets for one, _ in stream.receive(packet)]


@pytest.mark.parametrize("aggregation", [1, 3, 8])
@pytest.mark.parametrize(("count", "length"), [(1, 256), (1, 4096), (3, 512), (5, 1280)])
def test_a_run_is_its_packets(aggregation: int, count: int, length: int) -> None:
    requests, data = reads(count, length), bytes(range(256)) * (count * length // 256)
    one, other = ends(aggregation)
    again, whole = ends(aggregation)
    for posted in (0, 3, 0):
        wire = one.send([WRITE] * posted)
        assert again.send([WRITE] * posted) == wire
        arrive(other, wire)
        arrive(whole, wire)
        run = run_of(one, requests, data)
        assert run.tags == [request.tag for request in requests]
        assert list(run.packets()) == again.send(singles(requests, data))
        assert arrive(other, list(run.packets())) == singles(requests, data)
        assert receive_completions(whole, run) == (data, True)
    last = singles(requests[:1], data[:length])
    assert arrive(other, one.send(last)) == arrive(whole, again.send(last)) == last


def test_the_t_bit_is_the_requests() -> None:
    one, other = ends(8)
    assert receive_completions(other, run_of(one, reads(1, 512), bytes(512), tee=False)) == (bytes(512), False)
    loose, _ = ends(8)
    _, limited = ends(8, tee_limited=True)
    run = run_of(loose, reads(1, 512), bytes(512), tee=False)
    assert receive_completions(limited, run) is None
    assert arrive(limited, list(run.packets())) == []
    assert limited.failure is Failure.TEE_LIMITED


def test_a_bit_changed_ends_the_stream() -> None:
    one, other = ends(8)
    run = run_of(one, reads(2, 4096), bytes(8192))
    run.records[2] = bytes((run.records[2][0] ^ 1,)) + run.records[2][1:]
    assert receive_completions(other, run) is None
    assert other.failure is Failure.MAC
    for column in (1, 2, 3, 9, 13, 14, 15):
        one, other = ends(8)
        run = run_of(one, reads(2, 4096), bytes(8192))
        run.heads[5, column] ^= 1
        assert receive_completions(other, run) is None  # not plain: packet by packet, which fail
        assert arrive(other, list(run.packets())) == []
        assert other.state is StreamState.INSECURE or other.misrouted == 1


def test_answers_that_pass_writes_end_the_stream() -> None:
    one, other = ends(8)
    one.send([WRITE] * 2)
    assert receive_completions(other, run_of(one, reads(1, 512), bytes(512))) is None
    assert other.failure is Failure.ORDER


def test_what_a_run_cannot_tell_goes_packet_by_packet() -> None:
    many, _ = ends(8)
    many.send([WRITE] * (MOST_POSTED + 1))
    checking, _ = ends(8, reorder_check=True)
    knocked, _ = ends(8, checks=StreamChecks(macs=False))
    assert [run_of(one, reads(1, 512), bytes(512)) for one in (many, checking, knocked)] == [None] * 3
    assert run_of(ends(8)[0], reads(1, 128), bytes(128)) is None


def ports(**settings: bool) -> tuple[IdePort, IdePort]:
    """A root port and a device's, on which the device has asked."""
    root, device = IdePort(**settings), IdePort(**settings)
    root.streams[7], device.streams[7] = ends(8)
    for one in (root, device):
        one.associations.append(Association(7, (DEVICE, DEVICE)))
    return root, device


def test_answers_reach_whoever_waits_and_nobody_else() -> None:
    root, device = ports()
    requests, data = reads(2, 512), bytes(range(256)) * 4
    root.receive(device.send(requests))
    run = root.send_completions(ROOT, requests, data, SIZE, tee=True, answers_on=7)
    assert device.receive([run]) == [ArrivedCompletions([40, 41], bytearray(data), True, 7)]
    assert device.receive([root.send_completions(ROOT, requests, data, SIZE, tee=True, answers_on=7)]) == []
    assert (device.unexpected, device.streams[7].state) == (4, StreamState.SECURE)
    # One of them timed out: the other is answered all the same.
    root.receive(device.send(requests))
    device.time_out(40)
    came = device.receive([root.send_completions(ROOT, requests, data, SIZE, tee=True, answers_on=7)])
    assert [one.packet.tag for one in came] == [41, 41]
    device.streams[7].disable()
    assert root.send_completions(ROOT, requests, data, SIZE, tee=True, answers_on=8) is None


def test_a_tag_that_is_fenced_takes_no_run() -> None:
    root, device = ports(tag_fence=True)
    requests = reads(1, 512)
    root.receive(device.send(requests))
    stale = root.send_completions(ROOT, requests, bytes(512), SIZE, tee=True, answers_on=7)
    device.time_out(40)
    assert device.receive([stale]) == []
    assert device.free_tags(50)[40] == 40  # its stale completions have come


def test_a_tap_sees_a_run_packet_by_packet() -> None:
    root, device = ports()
    requests = reads(1, 1024)
    root.receive(device.send(requests))
    link, seen = Link(), []
    link.tap = lambda _, packet: seen.append(packet) or [packet]
    run = root.send_completions(ROOT, requests, b"secret!!" * 128, SIZE, tee=True, answers_on=7)
    came = device.receive(link.carry(Way.DOWN, [run]))
    assert b"".join(one.packet.payload for one in came) == b"secret!!" * 128
    assert len(seen) == 4
    assert all(b"secret" not in one.payload for one in seen)
    swapped = replace(run, records=run.records[::-1])
    assert device.receive([swapped]) == []


def test_answers_on_another_stream_than_the_requests_end_both() -> None:
    root, device = ports()
    root.streams[8], device.streams[8] = ends(8, 8)
    requests = reads(1, 512)
    root.receive(device.send(requests))
    run = root.send_completions(ROOT, requests, b"not what was asked" + bytes(494), SIZE, tee=True, answers_on=8)
    assert device.receive([run]) == []
    assert [device.streams[one].failure for one in (7, 8)] == [Failure.OTHER_STREAM] * 2
