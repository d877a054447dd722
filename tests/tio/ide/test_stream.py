"""What a stream's receiver takes: what its sender sent, in its order, once, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from ide_ends import ends, go, key_of, program

from tio.ide import (
    Direction,
    Failure,
    IdeError,
    IdeStream,
    IdeTlp,
    StreamState,
    SubStream,
    Tlp,
    completion,
    memory_read,
    memory_write,
    receive_writes,
    send_writes,
)
from tio.ide.stream import MOST_POSTED

WRITES = [memory_write(0x100, 64 * n, bytes([n]) * 64) for n in range(20)]
Change = Callable[[list[IdeTlp]], list[IdeTlp]]
READ = memory_read(0x100, 0x4000, 64, tag=3)
ANSWER = completion(0x200, 0x100, 3, b"answers!" * 8)


def arrive(stream: IdeStream, packets: list[IdeTlp]) -> list[Tlp]:
    return [one for packet in packets for one, _ in stream.receive(packet)]


@pytest.mark.parametrize("aggregation", [1, 2, 8])
def test_what_is_sent_arrives_in_its_order(aggregation: int) -> None:
    one, other = ends(aggregation)
    packets = [*WRITES, READ, *WRITES[:3], ANSWER, READ]
    wire = one.send(packets)
    assert arrive(other, wire) == packets
    # One MAC for each aggregate, which no packet of another sub-stream goes into.
    macs = -(-20 // aggregation) + 1 + -(-3 // aggregation) + 2
    assert [len(packet.mac) for packet in wire if packet.mac] == [12] * macs
    hidden = [plain.payload not in packet.payload for plain, packet in zip(packets, wire, strict=True) if plain.payload]
    assert all(hidden)


def test_both_ways_have_keys_of_their_own() -> None:
    one, other = ends()
    down, up = one.send(WRITES[:1]), other.send(WRITES[:1])
    assert down[0].payload != up[0].payload
    assert arrive(other, down) == arrive(one, up) == WRITES[:1]


def test_the_record_is_gcm_with_a_mac_of_96_bits_over_prefixes_and_headers() -> None:
    """As another part of the library opens it, which takes tags that are cut short."""
    one, _ = ends(8)
    for invocation in (1, 2):
        wire = one.send(WRITES[:8])
        gcm = modes.GCM(bytes(4) + invocation.to_bytes(8, "big"), wire[-1].mac, min_tag_length=12)
        opener = Cipher(algorithms.AES(key_of(Direction.TX, SubStream.PR)), gcm).decryptor()
        opener.authenticate_additional_data(b"".join([packet.prefix + packet.header for packet in wire]))
        text = opener.update(b"".join([packet.payload for packet in wire])) + opener.finalize()
        assert text == b"".join([packet.payload for packet in WRITES[:8]])


def flipped(data: bytes, bit: int) -> bytes:
    return (int.from_bytes(data, "big") ^ 1 << bit).to_bytes(len(data), "big")


@pytest.mark.parametrize("part", ["prefix", "header", "payload", "mac"])
@pytest.mark.parametrize("packet", [0, 1])
def test_no_bit_of_an_aggregate_can_be_changed(part: str, packet: int) -> None:
    """A prefix that names another stream, or is none, is dropped; its absence is found by what comes next."""
    for bit in range(8 * len(getattr(ends(2)[0].send(WRITES[:2])[packet], part))):
        one, other = ends(2)
        wire = one.send(WRITES[:4])
        wire[packet] = replace(wire[packet], **{part: flipped(getattr(wire[packet], part), bit)})
        # Reserved bits of the prefix are ignored and covered by the MAC.
        assert arrive(other, wire) == []
        assert other.state is StreamState.INSECURE
        assert other.failure is not None


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("dropped", lambda wire: [*wire[:2], *wire[3:]]),
        ("repeated", lambda wire: [*wire[:2], wire[1], *wire[2:]]),
        ("swapped", lambda wire: [*wire[:2], wire[3], wire[2], *wire[4:]]),
        ("of before", lambda wire: [*wire[:2], wire[0], *wire[2:]]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("aggregation", [1, 2])
def test_a_packet_dropped_repeated_or_moved_ends_the_stream(name: str, change: Change, aggregation: int) -> None:
    one, other = ends(aggregation)
    sent = WRITES[:8]
    wire = one.send(sent)
    came = arrive(other, change(wire))
    assert came == sent[:2]
    assert other.failure in (Failure.MAC, Failure.AGGREGATE)
    # What follows is not taken, in whatever order, and nothing is sent in the clear.
    assert arrive(other, wire) == []
    assert other.dropped >= len(wire)
    with pytest.raises(IdeError):
        other.send(WRITES[:1])


def test_somebody_elses_packet_ends_the_stream() -> None:
    one, other = ends()
    stranger, _ = ends()
    program(stranger, ends()[1], seed=99)
    forged = IdeStream(7)
    program(forged, IdeStream(7), seed=5)
    go(forged)
    forged.enable()
    assert arrive(other, forged.send(WRITES[:1])) == []
    assert (other.failure, one.state) == (Failure.MAC, StreamState.SECURE)


def test_a_packet_of_another_stream_is_misrouted_and_no_failure() -> None:
    one, other = ends()
    assert arrive(other, ends(stream_id=8)[0].send(WRITES[:2])) == []
    assert (other.misrouted, other.state) == (2, StreamState.SECURE)
    assert arrive(other, one.send(WRITES)) == WRITES


def test_a_stream_for_trusted_packets_takes_and_sends_no_others() -> None:
    one, other = ends(tee_limited=True)
    with pytest.raises(IdeError):
        one.send(WRITES[:1], tee=False)
    loose, _ = ends()
    assert arrive(other, loose.send(WRITES[:1], tee=False)) == []
    assert other.failure is Failure.TEE_LIMITED
    both = [ends()[0].send(WRITES[:1], tee=tee) for tee in (True, False)]
    assert [[tee for one in wire for _, tee in ends()[1].receive(one)] for wire in both] == [[True], [False]]


def test_more_packets_than_the_stream_aggregates_end_it() -> None:
    many, few = ends(8)[0], ends(4)[1]
    assert arrive(few, many.send(WRITES[:8])) == []
    assert few.failure is Failure.AGGREGATE


def test_a_packet_in_the_clear_where_the_stream_belongs_ends_it() -> None:
    _, other = ends()
    other.receive_clear(WRITES[0])
    assert (other.state, other.failure) == (StreamState.INSECURE, Failure.UNPROTECTED)


def test_a_packet_on_a_sub_stream_that_is_not_its_own_ends_the_stream() -> None:
    one, other = ends()
    (wire,) = one.send(WRITES[:1])
    for sub_stream in (1, 2, 3, 7):
        _, fresh = ends()
        moved = replace(wire, prefix=bytes((wire.prefix[0], wire.prefix[1] | sub_stream, *wire.prefix[2:])))
        assert arrive(fresh, [moved]) == []
        assert fresh.failure is Failure.TYPE
    assert arrive(other, [wire]) == WRITES[:1]


# Order.


def test_posted_writes_may_pass_a_read_but_no_read_passes_them() -> None:
    one, other = ends()
    wire = one.send([*WRITES[:3], READ, WRITES[3]])
    late = [*wire[:3], wire[4], wire[3]]
    assert arrive(other, late) == [*WRITES[:4], READ]
    one, other = ends()
    wire = one.send([*WRITES[:3], READ])
    assert arrive(other, [*wire[:2], wire[3]]) == WRITES[:2]
    assert other.failure is Failure.ORDER


def many_writes_then_a_read(*, reorder_check: bool) -> tuple[IdeStream, list[IdeTlp]]:
    one, other = ends(8, reorder_check=reorder_check)
    count = MOST_POSTED + 1
    wire = one.send([*[WRITES[0]] * count, READ])
    assert len(wire) == count + 2  # a Sync message tells what the read's prefix cannot
    return other, wire


@pytest.mark.parametrize("reorder_check", [False, True])
def test_more_writes_than_the_prefix_counts_are_told_of_before_a_read(reorder_check: bool) -> None:
    other, wire = many_writes_then_a_read(reorder_check=reorder_check)
    assert arrive(other, wire) == [*[WRITES[0]] * (MOST_POSTED + 1), READ]


def test_a_read_moved_before_a_sync_message_passes_writes_unseen_without_the_check() -> None:
    """CVE-2025-9612: the receiver has no count of its own against which the Sync message would be wrong."""
    other, wire = many_writes_then_a_read(reorder_check=False)
    assert arrive(other, [wire[-1], *wire[:-1]])[0] == READ
    assert other.state is StreamState.SECURE
    other, wire = many_writes_then_a_read(reorder_check=True)
    assert arrive(other, [wire[-1], *wire[:-1]]) == []
    assert other.failure is Failure.MAC


# Keys.


def test_keys_are_refreshed_without_a_packet_lost() -> None:
    one, other = ends(2)
    wire = one.send(WRITES[:4])
    program(one, other, key_set=1)
    for end in (other, one):
        go(end, key_set=1)
    wire += one.send(WRITES[4:8])
    assert arrive(other, wire) == WRITES[:8]
    assert {packet.prefix[1] >> 4 & 1 for packet in wire[:4]} == {0}
    assert {packet.prefix[1] >> 4 & 1 for packet in wire[4:]} == {1}
    # The set that nobody uses any more can stop; the one in use cannot.
    for sub_stream in SubStream:
        other.stop(0, Direction.TX, sub_stream)
    assert other.state is StreamState.SECURE
    other.stop(1, Direction.TX, SubStream.PR)
    assert other.failure is Failure.STOPPED


def test_a_packet_under_the_key_of_before_that_was_held_back_is_not_taken_any_more() -> None:
    one, other = ends(2)
    late = one.send(WRITES[:2])
    program(one, other, key_set=1)
    for end in (other, one):
        go(end, key_set=1)
    wire = one.send(WRITES[2:4])
    assert arrive(other, wire) == WRITES[2:4]
    assert arrive(other, late) == []
    assert other.failure is Failure.KEY_SET


def test_the_key_set_does_not_change_inside_an_aggregate() -> None:
    one, other = ends(2)
    program(one, other, key_set=1)
    go(other, key_set=1)
    wire = one.send(WRITES[:2])
    wire[1] = replace(wire[1], prefix=bytes((wire[1].prefix[0], wire[1].prefix[1] ^ 1 << 4, *wire[1].prefix[2:])))
    assert arrive(other, wire) == []
    assert other.failure is Failure.KEY_SET


def test_keys_that_do_not_run_open_nothing() -> None:
    one, other = ends()
    program(one, other, key_set=1)
    go(one, key_set=1)
    assert arrive(other, one.send(WRITES[:1])) == []
    assert other.failure is Failure.KEY_SET


@pytest.mark.parametrize("missing", [(way, sub) for way in Direction for sub in SubStream])
def test_a_stream_is_secure_when_all_six_keys_run_and_it_is_enabled(missing: tuple[Direction, SubStream]) -> None:
    one, other = IdeStream(7), IdeStream(7)
    program(one, other)
    one.enable()
    for way in Direction:
        for sub_stream in SubStream:
            if (way, sub_stream) != missing:
                one.go(0, way, sub_stream)
    assert one.state is StreamState.INSECURE
    one.go(0, *missing)
    assert one.state is StreamState.SECURE
    one.disable()
    assert (one.state, one.failure, one.epoch) == (StreamState.INSECURE, Failure.DISABLED, 1)
    one.enable()
    assert one.state is StreamState.INSECURE  # the keys are gone
    assert not one.has_any_key()


@pytest.mark.parametrize(
    ("key", "initial", "key_set"), [(bytes(31), 1, 0), (bytes(32), 0, 0), (bytes(32), 2, 1), (bytes(32), 1, 2)]
)
def test_a_key_of_another_length_initial_value_or_set_is_refused(key: bytes, initial: int, key_set: int) -> None:
    with pytest.raises(IdeError):
        IdeStream(7).program(key_set, Direction.RX, SubStream.PR, key, initial)


def test_no_invocation_comes_twice() -> None:
    one, other = ends()
    for end, way in ((one, Direction.TX), (other, Direction.RX)):
        end._keys[0, way, SubStream.PR].next_invocation = (1 << 64) - 2
    assert arrive(other, one.send(WRITES[:2])) == WRITES[:2]
    with pytest.raises(IdeError):
        one.send(WRITES[:1])
    assert one.failure is Failure.KEY_USED_UP


# Runs.


@pytest.mark.parametrize("aggregation", [1, 3, 8])
@pytest.mark.parametrize("packets", [1, 8, 21])
def test_a_run_is_its_packets(aggregation: int, packets: int) -> None:
    data = bytes(range(256)) * packets
    one, other = ends(aggregation)
    again, whole = ends(aggregation)
    singles = [memory_write(0x100, 0x10000 + 256 * n, data[256 * n : 256 * n + 256]) for n in range(packets)]
    for _ in range(2):
        run = send_writes(one, 0x100, 0x10000, data)
        assert list(run.packets()) == again.send(singles)
        assert arrive(other, list(run.packets())) == singles
        assert receive_writes(whole, run) == (0x10000, data)
    # Both count what was posted: a read may come behind either way.
    assert arrive(other, one.send([READ])) == arrive(whole, again.send([READ])) == [READ]


def test_a_run_with_a_byte_changed_ends_the_stream() -> None:
    one, other = ends(8)
    run = send_writes(one, 0x100, 0x10000, bytes(4096))
    run.records[1] = bytes((run.records[1][0] ^ 1,)) + run.records[1][1:]
    assert receive_writes(other, run) is None
    assert other.failure is Failure.MAC
    one, other = ends(8)
    run = send_writes(one, 0x100, 0x10000, bytes(4096))
    run.heads[3, -1] ^= 4
    assert receive_writes(other, run) is None  # not plain: it goes packet by packet
    assert arrive(other, list(run.packets())) == []
    assert other.failure is Failure.MAC


@settings(max_examples=60, deadline=None)
@given(
    aggregation=st.sampled_from((1, 2, 8)),
    kinds=st.lists(st.sampled_from("wra"), min_size=1, max_size=24),
    acts=st.lists(
        st.tuples(st.integers(0, 30), st.sampled_from(("drop", "repeat", "swap", "flip")), st.integers(0, 200))
    ),
)
def test_whatever_is_done_on_the_link_only_what_was_sent_arrives(aggregation: int, kinds: str, acts: list) -> None:
    one, other = ends(aggregation)
    sent = [{"w": WRITES[n % 20], "r": READ, "a": ANSWER}[kind] for n, kind in enumerate(kinds)]
    wire = one.send(sent)
    for place, act, bit in acts:
        if not wire:
            break
        at = place % len(wire)
        if act == "drop":
            del wire[at]
        elif act == "repeat":
            wire.insert(at, wire[at])
        elif act == "swap":
            wire[at], wire[at - 1] = wire[at - 1], wire[at]
        else:
            part = "header" if not wire[at].payload else "payload"
            octets = getattr(wire[at], part)
            wire[at] = replace(wire[at], **{part: flipped(octets, bit % (8 * len(octets)))})
    came = arrive(other, wire)
    for sub_stream in SubStream:
        mine = [packet for packet in sent if packet.sub_stream is sub_stream]
        arrived = [packet for packet in came if packet.sub_stream is sub_stream]
        assert arrived == mine[: len(arrived)]
