"""Large pages behind a fleet's objects: only where that costs no memory, and never at the price of a run."""

import gc
from pathlib import Path

import pytest

from cluster.fleet_pages import enlarge_pages

MIB = 1 << 20


ANONYMOUS = "rw-p 00000000 00:00 0 "


def entry(start: int, end: int, kib: int, flags: str = "rd wr mr mw me ac", kind: str = ANONYMOUS) -> str:
    return f"{start:x}-{end:x} {kind}\nSize: {(end - start) >> 10} kB\nRss:  {kib} kB\nVmFlags: {flags} \n"


def asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, hosts: int = 1000) -> list[tuple[int, int]]:
    """Ranges for which the operating system is asked."""
    asked: list[tuple[int, int]] = []

    class Libc:
        class Madvise:
            def __call__(self, start: int, length: int, _: int) -> int:
                asked.append((start, start + length))
                return 0

        madvise = Madvise()

    monkeypatch.setattr("ctypes.CDLL", lambda _: Libc)
    smaps = tmp_path / "smaps"
    smaps.write_text(text)
    assert enlarge_pages(hosts, smaps) == sum(end - start for start, end in asked)
    return asked


def test_whole_large_pages_of_full_memory_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = entry(3 * MIB, 9 * MIB, 6 << 10)
    assert asked_for(tmp_path, monkeypatch, text) == [(4 * MIB, 8 * MIB)]


@pytest.mark.parametrize("text", [
    entry(4 * MIB, 8 * MIB, 1 << 10),
    entry(4 * MIB, 8 * MIB, 4 << 10, flags="rd wr mr mw me ac nh"),
    entry(4 * MIB, 8 * MIB, 4 << 10, kind="r-xp 00000000 00:00 0 "),
    entry(4 * MIB, 8 * MIB, 4 << 10, kind="rw-p 00000000 08:01 77 /a/file"),
    entry(5 * MIB, 7 * MIB, 2 << 10),
    "nothing that the kernel writes",
], ids=["mostly empty", "small ones wanted", "code", "a file's", "no whole page", "malformed"])  # fmt: skip
def test_others_are_left_alone(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked_for(tmp_path, monkeypatch, text) == []


def test_a_small_fleet_and_a_system_that_tells_nothing_ask_for_nothing(tmp_path: Path) -> None:
    assert enlarge_pages(3) == 0
    assert enlarge_pages(1000, tmp_path / "none") == 0


def test_objects_are_what_they_were_behind_large_pages() -> None:
    before = [[number, str(number)] for number in range(100_000)]
    enlarge_pages(1000)
    gc.collect()
    assert all(one == [number, str(number)] for number, one in enumerate(before))
