"""Ports and the link between them: what belongs to a stream goes protected or not at all."""

from __future__ import annotations

import pytest
from ide_ends import ends

from tio.ide import (
    Arrived,
    ArrivedWrites,
    Association,
    Failure,
    IdeError,
    IdePort,
    IdeTlp,
    Link,
    StreamState,
    Tlp,
    Way,
    completion,
    memory_read,
    memory_write,
)

DEVICE, OTHER, ROOT = 0x0100, 0x0200, 0x0000
SECRET = b"a tenant's secret, sixty-four bytes of it, as one packet has it!"
assert len(SECRET) == 64


def ports(**settings: bool) -> tuple[IdePort, IdePort, Link]:
    """A root port and a device's, with a stream between them for the device's packets, and memory of the device."""
    root, device = IdePort(**settings), IdePort(**settings)
    root.streams[7], device.streams[7] = ends(8)
    association = Association(7, (DEVICE, DEVICE), ((0xF000_0000, 0xF00F_FFFF),))
    root.associations.append(association)
    device.associations.append(association)
    return root, device, Link()


def test_what_belongs_to_the_stream_is_protected_and_the_rest_in_the_clear() -> None:
    root, device, link = ports()
    mine, others = memory_write(DEVICE, 0x1000, SECRET), memory_write(OTHER, 0x2000, SECRET)
    mmio = memory_write(ROOT, 0xF000_0040, SECRET)
    wire = device.send([mine, others])
    assert [type(one) for one in wire] == [IdeTlp, Tlp]
    assert root.receive(link.carry(Way.UP, wire)) == [Arrived(mine, True, 7), Arrived(others)]
    down = root.send([mmio])
    assert isinstance(down[0], IdeTlp)
    assert device.receive(link.carry(Way.DOWN, down)) == [Arrived(mmio, True, 7)]


def test_of_an_insecure_stream_nothing_is_sent_in_the_clear() -> None:
    root, device, _ = ports()
    device.streams[7].disable()
    assert device.send([memory_write(DEVICE, 0, SECRET)]) == []
    assert device.send_writes(DEVICE, 0, SECRET * 4) is None
    assert device.unsent == 2
    assert device.receive(root.send([memory_write(ROOT, 0xF000_0000, SECRET)])) == []


def test_a_tap_sees_every_packet_as_it_is_on_the_wire() -> None:
    root, device, link = ports()
    seen: list[object] = []

    def look(_way: Way, packet: IdeTlp | Tlp) -> list[IdeTlp | Tlp]:
        seen.append(packet)
        return [packet]

    link.tap = look
    run = device.send_writes(DEVICE, 0x10000, SECRET * 40)
    assert run is not None
    single = device.send([memory_write(OTHER, 0x2000, SECRET)])
    came = root.receive(link.carry(Way.UP, [run, *single]))
    assert len(seen) == len(came) == 11
    assert b"".join([one.packet.payload for one in came if isinstance(one, Arrived)]) == SECRET * 41
    assert [SECRET in one.payload for one in seen] == [False] * 10 + [True]  # type: ignore[attr-defined]
    link.tap = None
    run = device.send_writes(DEVICE, 0x10000, SECRET * 40)
    assert run is not None
    assert root.receive(link.carry(Way.UP, [run])) == [ArrivedWrites(0x10000, bytearray(SECRET * 40), DEVICE, 7)]


def test_a_packet_put_on_the_wire_in_the_clear_ends_the_stream_it_pretends_to() -> None:
    root, device, link = ports()
    link.injected[Way.DOWN].append(memory_write(ROOT, 0xF000_0000, b"evil" * 16))
    assert device.receive(link.carry(Way.DOWN, [])) == []
    assert device.streams[7].failure is Failure.UNPROTECTED
    assert root.streams[7].state is StreamState.SECURE


def asked(root: IdePort, device: IdePort, tag: int, address: int = 0xF000_0000) -> None:
    (arrived,) = device.receive(root.send([memory_read(ROOT, address, 64, tag)]))
    assert isinstance(arrived, Arrived)


def test_a_completion_comes_on_the_stream_of_its_request() -> None:
    root, device, _ = ports()
    asked(root, device, 5)
    answer = completion(DEVICE, ROOT, 5, SECRET)
    assert root.receive(device.send([answer], answers_on=7)) == [Arrived(answer, True, 7)]
    assert root.receive(device.send([answer], answers_on=7)) == []  # nobody waits any more
    assert (root.unexpected, root.streams[7].state) == (1, StreamState.SECURE)
    asked(root, device, 6)
    assert root.receive([completion(DEVICE, ROOT, 6, b"evil" * 16)]) == []
    assert root.streams[7].failure is Failure.OTHER_STREAM


def test_a_tag_that_waits_is_not_used_again() -> None:
    root, device, _ = ports()
    assert root.free_tag() == 0
    asked(root, device, 0)
    assert root.free_tag() == 1
    with pytest.raises(IdeError, match="free tag"):
        root.send([memory_read(ROOT, 0xF000_0000, 64, 0)])


@pytest.mark.parametrize("tag_fence", [False, True])
def test_a_stale_completion_answers_the_next_request_of_its_tag_unless_tags_are_fenced(tag_fence: bool) -> None:
    """CVE-2025-9613."""
    root, device, _ = ports(tag_fence=tag_fence)
    asked(root, device, 0)
    stale = device.send([completion(DEVICE, ROOT, 0, b"old!" * 16)], answers_on=7)
    root.time_out(0)
    tag = root.free_tag()
    assert tag == (1 if tag_fence else 0)
    asked(root, device, tag, 0xF000_1000)
    came = root.receive(stale)
    if not tag_fence:
        assert [one.packet.payload for one in came if isinstance(one, Arrived)] == [b"old!" * 16]
        return
    assert came == []
    fresh = completion(DEVICE, ROOT, tag, SECRET)
    assert root.receive(device.send([fresh], answers_on=7)) == [Arrived(fresh, True, 7)]
    assert root.free_tag() == 0  # its stale completion has come


@pytest.mark.parametrize("octets", [b"", bytes(4), bytes(16), b"\xff" * 16])
def test_bytes_that_are_no_packet_do_nothing(octets: bytes) -> None:
    _, device, _ = ports()
    assert device.receive([Tlp(octets), IdeTlp(octets, octets, octets, octets)]) == []
    assert device.streams[7].state is StreamState.SECURE
