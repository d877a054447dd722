"""A journal gives back what was told: all mail, up to the same horizon, from memory or from disk."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.entity import Message
from cluster.journal import Journal

NAMES = st.sampled_from(["host-1", "host-2", "host-3"])
LETTERS = st.lists(st.tuples(NAMES, st.binary(max_size=40)), max_size=4)
WINDOWS = st.lists(st.tuples(st.integers(1, 50), LETTERS), max_size=12)

Told = list[tuple[int, dict[str, tuple[Message, ...]]]]


def told(steps: list[tuple[int, list[tuple[str, bytes]]]]) -> Told:
    """Windows as a coordinator hands them over, each further than the one before."""
    windows: Told = []
    horizon_ns = sequence = 0
    for length, letters in steps:
        mail: dict[str, tuple[Message, ...]] = {}
        for receiver, payload in letters:
            sequence += 1
            letter = Message(horizon_ns + length, "control", sequence, receiver, "letter", payload)
            mail[receiver] = (*mail.get(receiver, ()), letter)
        horizon_ns += length
        windows.append((horizon_ns, mail))
    return windows


def all_mail(windows: Told) -> dict[str, list[Message]]:
    found: dict[str, list[Message]] = {}
    for _, mail in windows:
        for name, messages in mail.items():
            found.setdefault(name, []).extend(messages)
    return found


@given(WINDOWS, st.sampled_from([1, 100, 1 << 20]), st.sampled_from([1, 64, 1 << 20]))
def test_all_mail_comes_back_before_its_time_and_to_the_last_horizon(
    steps: list[tuple[int, list[tuple[str, bytes]]]], held_bytes: int, together_bytes: int
) -> None:
    windows = told(steps)
    journal = Journal(held_bytes)
    for horizon_ns, mail in windows:
        journal.append(horizon_ns, mail)
    for _ in range(2):  # as often as workers are lost
        back = [(horizon_ns, dict(mail)) for horizon_ns, mail in journal.windows(together_bytes)]
        assert all_mail(back) == all_mail(windows)
        horizons = [horizon_ns for horizon_ns, _ in back]
        assert horizons == sorted(set(horizons))
        assert (horizons or [0])[-1] == (windows[-1][0] if windows else 0)
        # Joined windows hand mail over early, never after a horizon that it had to meet.
        given_ns = {letter: horizon_ns for horizon_ns, mail in windows for part in mail.values() for letter in part}
        starts = [0, *horizons]
        for start_ns, (_, mail) in zip(starts, back, strict=False):
            assert all(start_ns <= given_ns[letter] for part in mail.values() for letter in part)
    journal.close()


def test_what_is_read_back_can_be_gone_on_with() -> None:
    journal = Journal(held_bytes=1)
    first, second = told([(5, [("host-1", b"a")]), (5, [("host-1", b"b")])])
    journal.append(*first)
    assert list(journal.windows()) == [first]
    journal.append(*second)
    assert list(journal.windows(together_bytes=1)) == [first, second]


def test_a_journal_that_was_read_in_part_loses_nothing_when_it_goes_on() -> None:
    first, second, third = windows = told([(5, [("host-1", bytes(1 << 20))])] * 3)
    journal = Journal()
    journal.append(*first)
    journal.append(*second)
    assert next(journal.windows(together_bytes=1)) == first  # and then this worker was lost too
    journal.append(*third)
    assert list(journal.windows(together_bytes=1)) == windows


def test_a_disk_that_is_full_ends_the_journal_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.TemporaryFile", lambda *_, **__: Path("/dev/full").open("w+b"))  # noqa: SIM115 - the journal closes it
    journal = Journal(held_bytes=100_000)
    small, large, more = told([(5, [("host-1", bytes(size))]) for size in (10, 100_000, 10)])
    journal.append(*small)
    assert journal.wrong == ""
    journal.append(*large)
    journal.append(*more)
    assert journal.wrong == f"{tempfile.gettempdir()}: No space left on device"
    journal.close()


def test_a_window_that_took_several_calls_is_kept_once() -> None:
    journal = Journal()
    (window,) = told([(7, [("host-2", b"x")])])
    journal.append(*window)
    once_bytes = journal._file.tell()
    journal.append(window[0], {})
    journal.append(window[0], {})
    assert journal._file.tell() == once_bytes
    assert list(journal.windows(together_bytes=1)) == [window]


def test_little_mail_is_told_in_one_window_and_much_in_several() -> None:
    journal = Journal()
    for window in told([(1, [("host-1", bytes(100))])] * 10):  # 130 bytes each, with all that belongs to a letter
        journal.append(*window)
    assert len(list(journal.windows(together_bytes=10_000))) == 1
    assert len(list(journal.windows(together_bytes=250))) == 5
