"""What was decided is read back after a crash, up to the first entry that is not whole; what begins can be ended."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.commit_record import CommitRecord, Entry, RecordFullError
from cluster.hand_over import AUTHORITY, Phase, Record

ENTRIES = st.lists(st.builds(Entry, st.integers(0, 1 << 40), st.sampled_from(Record)), max_size=6)


def written(entries: list[Entry]) -> CommitRecord:
    record = CommitRecord()
    for one in entries:
        record.append(one.number, one.record)
    return record


@settings(max_examples=30, deadline=None)
@given(entries=ENTRIES, cut=st.integers(0, 400))
def test_a_record_that_is_cut_anywhere_reads_as_a_beginning_of_what_was_written(
    entries: list[Entry], cut: int
) -> None:
    whole = written(entries)
    assert list(whole.entries()) == entries
    found = list(CommitRecord(whole.data[:cut]).entries())
    assert found == entries[: len(found)]
    assert len(written(found).data) <= max(cut, 0)


@settings(max_examples=30, deadline=None)
@given(entries=ENTRIES, cut=st.integers(0, 400))
def test_what_is_written_behind_a_cut_is_read_again(entries: list[Entry], cut: int) -> None:
    reopened = CommitRecord(written(entries).data[:cut])
    before = list(reopened.entries())
    reopened.append(7, Record.COMMITTED)
    assert list(reopened.entries()) == [*before, Entry(7, Record.COMMITTED)]


def test_room_for_what_was_written_is_kept_no_longer():
    one = CommitRecord(most_bytes=1 << 20)
    assert one.reserve(0)
    wanted = one._reserved[0]
    full = CommitRecord(most_bytes=2 * wanted)
    assert full.reserve(0)
    for record in (Record.BEGUN, Record.COMMITTED):
        full.append(0, record)
    assert full.reserve(1)
    assert not full.reserve(2)


@pytest.mark.parametrize("said", [(), (Record.BEGUN,), (Record.BEGUN, Record.COMMITTED)])
@pytest.mark.parametrize("torn", [0, 3])
def test_who_reads_it_again_keeps_room_for_what_is_not_over_and_for_nothing_else(
    said: tuple[Record, ...], torn: int
) -> None:
    one = CommitRecord(most_bytes=4096)
    for number in range(2):
        assert one.reserve(number)
    for record in (Record.BEGUN, Record.COMMITTED, Record.MOVED):
        one.append(0, record)
    one.release(0)
    for record in said:
        one.append(1, record)
    one.most_bytes = len(one.data) + one.reserved_bytes
    again = CommitRecord(one.data + bytes(torn), one.most_bytes)
    assert again.reserved_bytes == (one.reserved_bytes if said else 0)
    if said:
        assert not again.reserve(2)
        for record in (Record.BEGUN, Record.COMMITTED, Record.AHEAD, Record.MOVED)[len(said) :]:
            again.append(1, record)


def test_a_disk_that_lost_what_it_said_it_wrote_reads_as_one_to_which_less_was_written() -> None:
    """So nothing can be found at reading, unless an entry is torn."""
    less, more = written([Entry(3, Record.BEGUN)]), written([Entry(3, Record.BEGUN), Entry(3, Record.COMMITTED)])
    assert more.data[: len(less.data)] == less.data
    assert CommitRecord(more.data[: len(less.data)]).last() == less.last() == {3: Record.BEGUN}


@settings(max_examples=30, deadline=None)
@given(entries=ENTRIES.filter(bool), at=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_a_changed_byte_ends_it_there(entries: list[Entry], at: int, flip: int) -> None:
    data = written(entries).data
    data[at % len(data)] ^= flip
    found = list(CommitRecord(data).entries())
    assert found == entries[: len(found)]
    assert len(found) < len(entries)


def test_the_last_word_about_a_move_counts() -> None:
    record = written([Entry(3, Record.BEGUN), Entry(4, Record.BEGUN), Entry(3, Record.COMMITTED)])
    assert record.last() == {3: Record.COMMITTED, 4: Record.BEGUN}


def test_a_full_disk_says_so_and_writes_nothing() -> None:
    record = written([Entry(3, Record.BEGUN)])
    record.most_bytes = len(record.data)
    before = bytes(record.data)
    with pytest.raises(RecordFullError, match="no room for committed of move 3"):
        record.append(3, Record.COMMITTED)
    assert record.data == before


def histories(phase: Phase, written: tuple[Record, ...], seen: frozenset[Phase]) -> set[tuple[Record, ...]]:
    """All that may be written of a move from a phase on, each phase entered once."""
    found = {written}
    for (before, _), step in AUTHORITY.items():
        if before is phase and step.to not in seen:
            more = written if step.record is None else (*written, step.record)
            found |= histories(step.to, more, seen | {step.to})
    return found


@pytest.mark.parametrize("number", [0, 127, 128, 1 << 20])
def test_what_begins_can_be_ended_in_each_way_however_full_the_disk_is(number: int) -> None:
    every = histories(Phase.SOURCE, (), frozenset({Phase.SOURCE}))
    assert (Record.BEGUN, Record.COMMITTED, Record.AHEAD, Record.MOVED) in every
    for history in every:
        record = CommitRecord(most_bytes=200)
        assert record.reserve(number)
        others = [other for other in range(100, 120) if record.reserve(other)]
        assert 0 < len(others) < 20
        for other in others:
            for one in (Record.BEGUN, Record.COMMITTED, Record.AHEAD, Record.MOVED):
                record.append(other, one)
            record.release(other)
        for one in history:
            record.append(number, one)
        assert len(record.data) <= 200


def test_room_that_a_move_did_not_need_is_another_s() -> None:
    record = CommitRecord(most_bytes=100)
    assert record.reserve(1)
    assert not record.reserve(2)
    record.append(1, Record.BEGUN)
    record.append(1, Record.ABORTED)
    assert not record.reserve(2)
    record.release(1)
    assert [record.reserve(2), record.reserve(3)] == [False, False]
    record.most_bytes = 150
    assert [record.reserve(2), record.reserve(3)] == [True, False]
    with pytest.raises(RecordFullError, match="no room for begun of move 3"):
        CommitRecord(record.data, len(record.data)).append(3, Record.BEGUN)
