"""What was decided is read back after a crash, up to the first entry that is not whole."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.commit_record import CommitRecord, Entry, RecordFullError
from cluster.hand_over import Record

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
