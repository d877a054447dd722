"""Frames of a stopped VM: whole there and back, and nothing else is ever taken for one."""

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node import migration_frames
from node.migration_frames import (
    MOST_FRAME_BYTES,
    NO_SESSION,
    Expected,
    FrameError,
    PageDigests,
    Stream,
    frames_of,
    page_digests,
    state_of,
)
from node.packing import packed
from node.vm_state import VmState, whole_runs
from psp.secret_packet import PacketHeader

PAGE = 4096
MEMORY = 4 << 20
BLOCKS = 1000


def inside(gpa, length):
    return gpa >= 0 and gpa + length <= MEMORY


def back(frames):
    return state_of(frames, Expected("vm", inside, BLOCKS))


def runs(unit, most):
    """Runs in ascending order that do not touch."""
    return st.lists(st.tuples(st.integers(0, 40), st.integers(1, 6)), max_size=5).map(
        lambda gaps: _runs_of(gaps, unit, most)
    )


def _runs_of(gaps, unit, step):
    at, found = 0, []
    for gap, length in gaps:
        at += gap + 1
        found.append((at * step, bytes([at % 251]) * (length * unit)))
        at += length
    return tuple(found)


STATES = st.builds(
    lambda vcpus, pages, blocks, launched, time_base: VmState(
        "vm", tuple(bytes([number]) * PAGE for number in range(vcpus)),
        tuple(number % 2 == 0 for number in range(vcpus)), tuple(launched), tuple(range(vcpus)), pages, blocks,
        time_base=time_base,
    ),
    st.integers(1, 4), runs(PAGE, PAGE), runs(PAGE, 1), st.lists(st.integers(0, 1 << 40), max_size=3),
    st.tuples(st.integers(1, 1 << 34), st.integers(0, (1 << 64) - 1)),
)  # fmt: skip


@given(state=STATES)
def test_a_vm_survives_its_frames(state):
    assert back(frames_of(state)) == state


@given(state=STATES)
@settings(max_examples=30)
def test_a_stream_that_nobody_looked_at_is_as_long_as_its_frames_and_is_packed_as_they_are(state):
    session = bytes(range(16))
    frames = frames_of(state, session)
    assert Stream(state, session).size_bytes == Stream(state, session).size_bytes == sum(map(len, frames))
    digests = PageDigests(state.pages)
    assert packed((Stream(state, session), digests)) == packed((frames, page_digests(state.pages)))


@given(state=STATES)
@settings(max_examples=30)
def test_a_stream_is_taken_and_refused_as_its_frames_are(state):
    def outcome(frames, expected):
        try:
            return state_of(frames, expected)
        except FrameError as error:
            return str(error)

    for expected in (
        Expected("vm", inside, BLOCKS), Expected("vm", lambda gpa, _: gpa < 8 * PAGE, BLOCKS),
        Expected("vm", inside, 10), Expected("vm", inside, BLOCKS, vcpus=2), Expected("other", inside, BLOCKS),
        Expected("vm", inside, BLOCKS, session=b"another session."),
        Expected("vm", inside, BLOCKS, hidden_registers=True),
    ):  # fmt: skip
        for _ in ("looked at", "known by its shape"):
            assert outcome(Stream(state, NO_SESSION), expected) == outcome(frames_of(state), expected)


def test_streams_that_differ_in_how_far_ahead_their_clock_is_are_known_by_one_length_of_it():
    """Between hosts of different speeds each move has another offset, and nothing else that is new."""
    offsets = (0, 1, 127, 128, 255, 256, 1 << 16, (1 << 32) - 1, 1 << 32, (1 << 64) - 1)
    states = [VmState("vm", (bytes(PAGE),), (True,), (77,), (0,), (), (), time_base=(10**9, one)) for one in offsets]
    expected, before = Expected("vm", inside, BLOCKS), len(migration_frames._SHAPES)
    for state in states:
        assert Stream(state, NO_SESSION).size_bytes == sum(map(len, frames_of(state)))
        assert state_of(Stream(state, NO_SESSION), expected) == state
    lengths = {len(packed(one)) for one in offsets}
    assert len(migration_frames._SHAPES) - before <= len(lengths) + 1  # None at all is one of its own.
    for offset in (-1, -3, 1 << 64):
        with pytest.raises(FrameError, match="time base"):
            state_of(Stream(states[0]._replace(time_base=(10**9, offset)), NO_SESSION), expected)


def test_no_frame_is_longer_than_it_may_be_and_large_runs_are_cut():
    state = VmState("vm", (bytes(PAGE),), (True,), (), (0,), ((0, bytes(MEMORY)),), ((0, bytes(700 * PAGE)),))
    frames = frames_of(state)
    assert max(map(len, frames)) <= MOST_FRAME_BYTES
    assert len(frames) > MEMORY >> 20
    found = back(frames)
    assert found.pages == state.pages
    assert b"".join(data for _, data in found.blocks) == bytes(700 * PAGE)


@settings(max_examples=93, deadline=None)
@given(state=STATES, number=st.integers(0, 99), at=st.integers(0, 1 << 20), bit=st.integers(0, 7))
def test_no_changed_bit_is_taken_for_the_vm(state, number, at, bit):
    frames = list(frames_of(state))
    number %= len(frames)
    spoiled = bytearray(frames[number])
    spoiled[at % len(spoiled)] ^= 1 << bit
    frames[number] = bytes(spoiled)
    try:
        found = back(frames)
    except FrameError as error:
        assert str(error).startswith(f"frame {number}: ")
    else:
        # Msgpack knows several spellings of one value; the value is what was sent.
        assert found == state


@settings(max_examples=62, deadline=None)
@given(state=STATES, order=st.randoms(use_true_random=False))
def test_frames_missing_repeated_or_in_another_order_are_refused(state, order):
    frames = list(frames_of(state))
    changed = [frame for frame in frames for _ in range(order.choice((0, 1, 1, 2)))]
    order.shuffle(changed)
    if changed == frames:
        return
    with pytest.raises(FrameError):
        back(changed)


@given(rubbish=st.lists(st.binary(max_size=200), min_size=1, max_size=3))
def test_rubbish_is_refused(rubbish):
    with pytest.raises(FrameError):
        back(rubbish)


def forged(sequence, kind, body):
    """A frame with a right checksum, as somebody who knows the format makes it."""
    from node.migration_frames import _checksum

    packed = msgpack.packb(body)
    checksum = _checksum(NO_SESSION, sequence, kind, packed)
    return msgpack.packb((3, NO_SESSION, sequence, kind, len(packed), checksum, packed))


FIELDS = ("version", "session", "sequence", "kind", "length", "checksum", "body")
OTHER_TYPES = (2.0, "2", True, None, b"2", (2,), {"2": 2})


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", OTHER_TYPES, ids=repr)
def test_a_field_of_another_type_is_refused_by_name_whatever_it_equals(field, value):
    """2.0 is 2 to who does not look, and so is True 1."""
    frames = [list(msgpack.unpackb(forged(number, kind, body), use_list=False))
              for number, (kind, body) in enumerate([(1, HEAD), (2, (0, bytes(PAGE)))])]  # fmt: skip
    at = FIELDS.index(field)
    if type(frames[1][at]) is type(value):
        return
    frames[1][at] = value
    wanted = "int" if at in (0, 2, 3, 4) else "bytes"
    with pytest.raises(FrameError, match=f"^frame 1: {field}: expected {wanted}, got"):
        back([msgpack.packb(frame) for frame in frames])


TIME_BASE = (2_000_000_000, 7)
HEAD = ("vm", (True,), (), (0,), TIME_BASE)


@pytest.mark.parametrize(
    ("bodies", "line"),
    [
        ([(1, ("other", *HEAD[1:]))], "frame 0: vm: expected vm, got 'other'"),
        ([(1, ("vm", (), (), (), TIME_BASE))], "frame 0: vcpus: expected 1 to 1024"),
        ([(1, ("vm", (True,), (-1,), (0,), TIME_BASE))], "frame 0: head: expected 64-bit addresses"),
        ([(1, HEAD[:4])], "frame 0: head: expected name, vCPUs, launched pages, reset vectors, time base"),
        ([(1, (*HEAD[:4], (1,)))], "frame 0: time base: expected a rate and an offset"),
        ([(1, (*HEAD[:4], (1, -1)))], "frame 0: time base: expected a rate and an offset"),
        ([(1, (*HEAD[:4], (True, 0)))], "frame 0: time base: expected a rate and an offset"),
        ([(1, [1, 2])], "frame 0: head: expected name"),
        ([(3, ((0, bytes(PAGE)),))], "frame 0: kind: expected a head first"),
        ([(1, HEAD), (1, HEAD)], "frame 1: kind: expected a head first"),
        ([(1, HEAD), (11, ())], "frame 1: kind: expected 1 to 10, got 11"),
        ([(1, HEAD), (9, ())], "frame 1: context: expected one"),
        ([(1, HEAD), (10, ())], "frame 1: metadata: expected 1 to"),
        ([(1, HEAD), (2, (1, bytes(PAGE)))], "frame 1: registers: expected those of vCPU 0"),
        ([(1, HEAD), (2, (0, bytes(5)))], "frame 1: registers: expected 4096 bytes, got 5"),
        ([(1, HEAD), (3, ((5, bytes(PAGE)),))], "frame 1: gpa: expected whole pages of the VM, got 0x5"),
        ([(1, HEAD), (3, ((MEMORY, bytes(PAGE)),))], "frame 1: gpa: expected whole pages of the VM"),
        ([(1, HEAD), (3, ((0, bytes(PAGE)), (0, bytes(PAGE))))], "frame 1: gpa: expected pages in ascending order"),
        ([(1, HEAD), (3, ())], "frame 1: runs: expected 1 to 256"),
        ([(1, HEAD), (3, ((0, bytes(7)),))], "frame 1: run: expected an address and whole units of 4096 bytes"),
        ([(1, HEAD), (4, ((BLOCKS, bytes(PAGE)),))], "frame 1: lba: expected blocks below 1000"),
        ([(1, HEAD), (4, ((5, bytes(PAGE)),)), (4, ((5, bytes(PAGE)),))], "frame 2: lba: expected blocks in ascending"),
        ([(1, HEAD), (5, (0, 0, 0))], "frame 1: registers: expected of 1 vCPUs, got 0"),
        ([(1, HEAD), (2, (0, bytes(PAGE))), (5, (3, 0, 0))], "frame 2: end: expected 0 pages, 0 blocks and 0 packets"),
    ],
)
def test_frames_that_are_well_formed_and_wrong_are_refused_by_field(bodies, line):
    frames = [forged(number, kind, body) for number, (kind, body) in enumerate(bodies)]
    with pytest.raises(FrameError) as caught:
        back(frames)
    assert str(caught.value).startswith(line)


def test_a_frame_that_is_too_long_is_refused_before_anybody_opens_it():
    body = bytes(MOST_FRAME_BYTES)
    frames = [forged(0, 1, HEAD), forged(1, 3, ((0, body),))]
    with pytest.raises(FrameError, match=rf"^frame 1: length: expected at most {MOST_FRAME_BYTES} bytes, got"):
        back(frames)


H, P = bytes(PacketHeader.SIZE), bytes(PAGE)
AREA, CONTEXT = (7, (0, H, P)), (9, (b"context", ()))


@pytest.mark.parametrize(
    ("bodies", "line"),
    [
        ([(6, ((PAGE, H, P), (PAGE, H, P)))], "1: gpa: expected pages in ascending order, got 0x1000"),
        ([(6, ((PAGE, H, P),)), (6, ((0, H, P),))], "2: gpa: expected pages in ascending order, got 0x0"),
        ([(6, ((5, H, P),))], "1: gpa: expected whole pages of the VM, got 0x5"),
        ([(6, ((MEMORY, H, P),))], "1: gpa: expected whole pages of the VM"),
        ([(6, ((0, H[1:], P),))], "1: packet: expected a number"),
        ([(6, ((0, H, P[1:]),))], "1: packet: expected a number"),
        ([(6, ())], "1: packets: expected 1 to"),
        ([(7, (1, H, P))], "1: registers: expected sealed ones of vCPU 0"),
        ([AREA, (7, (1, H, P))], "2: registers: expected those of 1 vCPUs, got more"),
        ([(8, (((0, 5),), ()))], "1: told: expected whole pages"),
        ([(8, (((5, PAGE),), ()))], "1: told: expected whole pages"),
        ([(8, (((0, 0),), ()))], "1: told: expected ranges of the VM"),
        ([(8, (((MEMORY, PAGE),), ()))], "1: told: expected ranges of the VM"),
        ([CONTEXT, CONTEXT], "2: context: expected one, of a VM that an agent moves"),
        ([(9, (b"", ()))], "1: context: expected one, of a VM that an agent moves"),
        ([(9, (b"context", ((PAGE, 1, False),) * 2))], "1: rows: expected whole pages of the VM, in ascending order"),
        ([(9, (b"context", ((PAGE, 1, True),)))], "1: rows: expected whole pages of the VM"),
        ([(9, (b"context", ((0, MEMORY // PAGE + 1, False),)))], "1: rows: expected whole pages of the VM"),
        ([(9, (b"context", ((0, 0, False),)))], "1: rows: expected an address"),
        ([CONTEXT, (10, (P[1:],))], "2: metadata: expected pages of 4096 bytes"),
        ([(4, ((5, P), (5, P)))], "1: lba: expected blocks in ascending order, got 5"),
        ([AREA, (5, (0, 0, 0))], "2: context: expected one, got none"),
        ([(2, (0, P)), AREA, CONTEXT, (5, (0, 0, 0))], "4: registers: expected of 1 vCPUs, got 1"),
        ([AREA, (6, ((0, H, P),)), CONTEXT, (5, (0, 0, 0))], "4: end: expected 0 pages, 0 blocks and 1 packets"),
    ],
)
def test_what_comes_of_a_vm_that_firmware_and_an_agent_move_is_refused_by_field(bodies, line):
    frames = [forged(number, kind, body) for number, (kind, body) in enumerate([(1, HEAD), *bodies])]
    expected = Expected("vm", inside, BLOCKS, by_firmware=True, hidden_registers=True, by_agent=True)
    with pytest.raises(FrameError) as caught:
        state_of(frames, expected)
    assert str(caught.value).startswith(f"frame {line}")


def test_a_frame_that_is_too_long_is_refused_unread():
    with pytest.raises(FrameError, match=f"frame 0: length: expected at most {MOST_FRAME_BYTES} bytes"):
        back([bytes(MOST_FRAME_BYTES + 1)])


@pytest.mark.parametrize(
    "told",
    [(5,), (1.5,), (None,), ((),), ((1, 2),), ((0, 1, 2, 3),), ((-2, 0, 0),), ((True, 0, 0),), ((0, -1, 0),), ("abc",)],
)
def test_words_of_a_guest_that_are_none_are_refused(told):
    with pytest.raises(FrameError, match="frame 1: told: expected a vCPU and two numbers"):
        back([forged(0, 1, HEAD), forged(1, 8, ((), told))])


@pytest.mark.parametrize(
    ("packets", "rows", "most"), [(0, 0, 0), (1, 0, 1), (63, 1, 1), (64, 1, 3), (100, 28, 3)]
)
def test_no_more_metadata_pages_are_taken_than_what_came_before_them_has(packets, rows, most):
    """Each holds the entries of 64 pages, or of 64 of its own kind."""
    expected = Expected("vm", inside, BLOCKS, by_firmware=True, by_agent=True)
    bodies = [(1, HEAD), (2, (0, bytes(PAGE)))]
    if packets:
        bodies.append((6, tuple((gpa * PAGE, bytes(PacketHeader.SIZE), bytes(PAGE)) for gpa in range(packets))))
    bodies += [(9, (b"context", tuple((MEMORY // 2 + row * 2 * PAGE, 1, False) for row in range(rows))))]
    bodies += [(10, (bytes(PAGE),))] * most
    frames = [forged(number, kind, body) for number, (kind, body) in enumerate(bodies)]
    end = forged(len(frames), 5, (0, 0, packets))
    assert len(state_of([*frames, end], expected).metadata) == most
    with pytest.raises(FrameError, match=f"metadata: expected at most {most} pages, got {most + 1}"):
        state_of([*frames, forged(len(frames), 10, (bytes(PAGE),))], expected)


def test_page_digests_follow_the_pages():
    first, second = b"a" * PAGE, b"b" * PAGE
    assert page_digests([(0, first + second)]) == page_digests([(0, first), (9 * PAGE, second)])
    assert page_digests([(0, first)]) != page_digests([(0, second)])
    assert len(page_digests([(0, first + second)])) == 16


@given(cuts=st.lists(st.integers(1, 600), max_size=4))
@settings(max_examples=10, deadline=None)
def test_a_vm_is_the_same_however_its_pages_were_cut_on_their_way(cuts):
    """What a host lays down, and what of it is read as one piece, depends on no layout: frames hold 1 MiB each."""
    octets = b"".join([bytes([page % 251]) * PAGE for page in range(sum(cuts) + 300)])
    state = VmState("vm", (bytes(PAGE),), (True,), (), (0,), ((PAGE, octets),), ())
    pieces, at = [], 0
    for pages in (*cuts, 300):
        pieces.append((PAGE + at, octets[at : at + pages * PAGE]))
        at += pages * PAGE
    assert whole_runs(pieces) == state.pages
    expected = Expected("vm", lambda *_: True, BLOCKS)
    assert state_of(frames_of(state), expected) == state
    stream = Stream(state, NO_SESSION)
    assert state_of(stream, expected) == state_of(stream, expected) == state


def test_pieces_that_do_not_touch_stay_pieces():
    apart = [(0, bytes(PAGE)), (2 * PAGE, bytes(PAGE))]
    assert whole_runs(apart) == tuple(apart)
    assert whole_runs([]) == ()
