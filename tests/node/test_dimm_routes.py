"""What lies where when SPAs lead to other cells, against a dictionary of pages."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from node.dimm_routes import grounded
from node.dram import CHUNK_BYTES, Dram, MachineCheck, Unanswered, Words
from psp.system_bus import PAGE_BYTES

PAGES = 8
BASE = CHUNK_BYTES // PAGE_BYTES - PAGES // 2
"""The pages of the test lie on both sides of a chunk's end."""

pages = st.integers(0, PAGES - 1)
counts = st.integers(1, 4)


def masked(words: Words, spa: int, out: Words) -> None:
    """A cipher of which one sees what address it was given."""
    out[:] = words ^ (np.arange(spa // 8, spa // 8 + len(words), dtype=np.uint64) << np.uint64(8))


def masked_bytes(data: bytes, spa: int) -> bytes:
    return b"".join(
        (int.from_bytes(data[at : at + 8], "little") ^ ((spa + at) // 8 << 8)).to_bytes(8, "little")
        for at in range(0, len(data), 8)
    )


class Routes(RuleBasedStateMachine):
    """``routes`` says which cell page a page reaches, or what reads as where it reaches none."""

    def __init__(self) -> None:
        super().__init__()
        self.dram = Dram(2 * CHUNK_BYTES)
        self.cells = {page: bytearray(PAGE_BYTES) for page in range(PAGES)}
        self.written: set[int] = set()
        self.routes: dict[int, int | Unanswered] = {}

    def spa(self, page: int) -> int:
        return (BASE + page) * PAGE_BYTES

    def cell_of(self, page: int) -> int | None:
        route = self.routes.get(page, page)
        return None if isinstance(route, Unanswered) else route

    def seen(self, page: int) -> bytes:
        route = self.routes.get(page, page)
        return bytes([route]) * PAGE_BYTES if isinstance(route, Unanswered) else bytes(self.cells[route])

    def store(self, page: int, at: int, data: bytes) -> None:
        cell = self.cell_of(page)
        if cell is not None:
            self.cells[cell][at : at + len(data)] = data
            self.written.add(cell)

    @rule(page=pages, count=counts, to=pages)
    def alias(self, page: int, count: int, to: int) -> None:
        count = min(count, PAGES - page, PAGES - to)
        self.dram.alias(self.spa(page), count * PAGE_BYTES, self.spa(to))
        for n in range(count):
            self.routes[page + n] = to + n

    @rule(page=pages, count=counts, reads=st.sampled_from(Unanswered))
    def drop(self, page: int, count: int, reads: Unanswered) -> None:
        count = min(count, PAGES - page)
        self.dram.drop(self.spa(page), count * PAGE_BYTES, reads)
        for n in range(count):
            self.routes[page + n] = reads

    @rule(page=pages, count=counts)
    def straighten(self, page: int, count: int) -> None:
        count = min(count, PAGES - page)
        self.dram.straighten(self.spa(page), count * PAGE_BYTES)
        for n in range(count):
            self.routes.pop(page + n, None)

    @rule(page=pages, at=st.integers(0, PAGE_BYTES - 1), data=st.binary(min_size=1, max_size=2 * PAGE_BYTES))
    def write(self, page: int, at: int, data: bytes) -> None:
        data = data[: (PAGES - page) * PAGE_BYTES - at]
        self.dram.write(self.spa(page) + at, data)
        for n, byte in enumerate(data):
            self.store(page + (at + n) // PAGE_BYTES, (at + n) % PAGE_BYTES, bytes([byte]))

    @rule(page=pages, count=counts, seed=st.integers(0, 255), encrypted=st.booleans())
    def lay(self, page: int, count: int, seed: int, encrypted: bool) -> None:
        count = min(count, PAGES - page)
        data = np.random.default_rng(seed).bytes(count * PAGE_BYTES)
        self.dram.lay(self.spa(page), data, masked if encrypted else None)
        for n in range(count):
            part = data[n * PAGE_BYTES : (n + 1) * PAGE_BYTES]
            self.store(page + n, 0, masked_bytes(part, self.spa(page + n)) if encrypted else part)

    @rule(page=pages, count=counts)
    def refill(self, page: int, count: int) -> None:
        count = min(count, PAGES - page)
        cells = [self.cell_of(page + n) for n in range(count)]
        if len({cell for cell in cells if cell is not None}) < sum(cell is not None for cell in cells):
            return  # one cell twice in one go: the order would count
        for at, size in self.dram.refill(self.spa(page), count * PAGE_BYTES, None, masked):
            self.dram.write(at, masked_bytes(self.dram.read(at, size), at))
        for n in range(count):
            self.store(page + n, 0, masked_bytes(self.seen(page + n), self.spa(page + n)))

    @rule(page=pages, count=counts)
    def clear(self, page: int, count: int) -> None:
        count = min(count, PAGES - page)
        self.dram.clear(self.spa(page), count * PAGE_BYTES, masked)
        for n in range(count):
            self.store(page + n, 0, masked_bytes(bytes(PAGE_BYTES), self.spa(page + n)))

    @rule(page=pages, count=counts)
    def release(self, page: int, count: int) -> None:
        count = min(count, PAGES - page)
        self.dram.release(self.spa(page), count * PAGE_BYTES)
        for n in range(count):
            cell = self.cell_of(page + n)
            if cell is not None:
                self.cells[cell][:] = bytes(PAGE_BYTES)
                self.written.discard(cell)

    @rule(page=pages, at=st.integers(0, 500), count=st.integers(1, 12))
    def change_words(self, page: int, at: int, count: int) -> None:
        into = self.dram.writable_words(self.spa(page) + at * 8, count * 8)
        assert into.tobytes() == self.seen(page)[at * 8 : (at + count) * 8]
        into[:] = 7
        self.store(page, at * 8, (7).to_bytes(8, "little") * count)

    @invariant()
    def everybody_sees_the_same_cells(self) -> None:
        for page in range(PAGES):
            assert self.dram.cells.read(self.spa(page), PAGE_BYTES) == self.cells[page]
        whole = b"".join(self.seen(page) for page in range(PAGES))
        assert self.dram.read(self.spa(0), len(whole)) == whole
        assert self.dram.read(self.spa(1) + 5, PAGE_BYTES) == whole[PAGE_BYTES + 5 : 2 * PAGE_BYTES + 5]
        for spa, length in self.dram.pieces(self.spa(0) + 8, PAGES * PAGE_BYTES - 16):
            words = self.dram.words(spa, length)
            there = whole[spa - self.spa(0) : spa - self.spa(0) + length]
            assert (bytes(length) if words is None else words.tobytes()) == there
        runs = {
            (at - self.spa(0)) // PAGE_BYTES
            for spa, length in self.dram.resident_runs(self.spa(0), PAGES * PAGE_BYTES)
            for at in range(spa, spa + length, PAGE_BYTES)
        }
        assert runs == {
            page for page in range(PAGES)
            if self.cell_of(page) in self.written or self.routes.get(page) is Unanswered.ONES
        }  # fmt: skip
        for page in range(PAGES):
            laid = self.dram.laid(self.spa(page), PAGE_BYTES, None)
            assert laid is None or laid == self.seen(page)
            assert self.dram.leads_away(self.spa(page), 1) is (self.cell_of(page) != page)


TestRoutes = Routes.TestCase
TestRoutes.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


def test_an_interposer_s_switch_hides_cells_and_gives_them_back() -> None:
    dram = Dram(64 * PAGE_BYTES)
    line = 8 * PAGE_BYTES
    dram.write(line, b"hidden")
    dram.write(0, b"seen by both")
    for spa, length, cells in grounded(line, dram.size_bytes):
        dram.alias(spa, length, cells)
    for spa in range(0, dram.size_bytes, PAGE_BYTES):
        dram.write(spa, bytes([spa // PAGE_BYTES]))
        assert dram.read(spa & ~line, 1) == dram.read(spa | line, 1)
    assert dram.read(line, 12) == bytes([8]) + b"een by both"
    for spa, length, _ in grounded(line, dram.size_bytes):
        dram.straighten(spa, length)
    assert not dram.has_routes
    assert dram.read(line, 6) == b"hidden"


def test_addresses_that_cannot_be_are_refused_and_change_nothing() -> None:
    dram = Dram(64 * PAGE_BYTES)
    for spa, length, cells in ((1, PAGE_BYTES, 0), (0, 100, 0), (0, PAGE_BYTES, 8)):
        with pytest.raises(ValueError, match="whole pages"):
            dram.alias(spa, length, cells)
    for spa, cells in ((64, 0), (0, 64), (-1, 0), (0, -1)):
        with pytest.raises(MachineCheck):
            dram.alias(spa * PAGE_BYTES, PAGE_BYTES, cells * PAGE_BYTES)
    with pytest.raises(MachineCheck):
        dram.drop(63 * PAGE_BYTES, 2 * PAGE_BYTES)
    for line in (0, 1, 2048, 3 * PAGE_BYTES, -PAGE_BYTES):
        with pytest.raises(ValueError, match="one address bit"):
            list(grounded(line, dram.size_bytes))
    assert not dram.has_routes
    dram.drop(0, PAGE_BYTES)
    for access in (lambda: dram.read(63 * PAGE_BYTES, 2 * PAGE_BYTES), lambda: dram.write(-1, b"x"),
                   lambda: dram.words(0, -8), lambda: dram.release(64 * PAGE_BYTES, 1)):  # fmt: skip
        with pytest.raises(MachineCheck):
            access()


def test_the_owner_of_kept_cells_hears_of_accesses_by_whatever_address() -> None:
    dram = Dram(64 * PAGE_BYTES)
    heard: list[tuple[int, int]] = []
    dram.keep(32 * PAGE_BYTES, 4 * PAGE_BYTES, lambda at, length: heard.append((at, length)))
    dram.alias(8 * PAGE_BYTES, PAGE_BYTES, 33 * PAGE_BYTES)
    heard.clear()
    dram.write(8 * PAGE_BYTES + 16, b"thirteen byte")
    assert set(heard) == {(33 * PAGE_BYTES + 16, 13)}
    heard.clear()
    dram.drop(33 * PAGE_BYTES, PAGE_BYTES)  # whoever keeps it must put it down first
    assert heard == [(33 * PAGE_BYTES, PAGE_BYTES)]
    heard.clear()
    dram.write(33 * PAGE_BYTES, b"lost")
    assert not heard
    assert dram.read(8 * PAGE_BYTES + 16, 13) == b"thirteen byte"
