"""What walks remember of tables is what memory says, whoever changed it and whichever way."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from node.cipher_modes import CIPHER_DESIGNS
from node.dram import Dram, MachineCheck
from node.memory_cipher import CipherMode
from node.memory_controller import MemoryController, NoKey
from node.nested_walk import FETCH, READ, WRITE, NestedLeaf, NestedPageFault, NestedWalker
from node.page_table_entry import LONG, EntryFormat
from node.table_entries import MOST_KEPT, TableEntries

PAGE, PAGES = 4096, 2
PLACES = [(page * PAGE + offset, asid) for page in range(PAGES) for offset in (8, 4088) for asid in (0, 1, 2)]


class CountingController(MemoryController):
    """Counts reads."""

    reads = 0

    def read(self, spa: int, length: int, asid: int) -> bytes:
        self.reads += 1
        return super().read(spa, length, asid)


def machine() -> tuple[Dram, CountingController, TableEntries]:
    dram = Dram(PAGES * PAGE)
    ciphers = CIPHER_DESIGNS[CipherMode.AES_128_XEX].for_boot(np.random.default_rng(1).bytes)
    controller = CountingController(dram, ciphers)
    controller.install_key(1, bytes(16))
    return dram, controller, TableEntries(controller, dram)


def answer(memory: MemoryController | TableEntries, spa: int, asid: int) -> bytes | type[Exception]:
    try:
        return memory.read(spa, 8, asid)
    except (NoKey, MachineCheck) as error:
        return type(error)


NUMBERS = st.integers(0, PAGES - 1)
STEPS = st.tuples(
    st.sampled_from(
        ["poke", "write", "lay", "clear", "encrypt", "alias", "drop", "straighten", "key", "no key", "reserve", "free"]
    ),
    NUMBERS, NUMBERS, st.integers(0, 2), st.integers(0, 255),
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(st.lists(STEPS, min_size=3, max_size=12))
@example([("lay", 0, 0, 0, 0), ("drop", 0, 0, 0, 0), ("alias", 0, 0, 0, 0)])
def test_entries_are_what_memory_holds_after_any_change(steps: list[tuple[str, int, int, int, int]]) -> None:
    dram, controller, entries = machine()
    for kind, page, other, asid, value in steps:
        spa = page * PAGE
        with suppress(NoKey, MachineCheck):
            if kind == "poke":
                dram.write(spa + 8, bytes([value]))
            elif kind == "write":
                controller.write(spa + value, bytes([value]) * 40, asid)
            elif kind == "lay":
                controller.lay(spa, bytes([value]) * PAGE, asid)
            elif kind == "clear":
                controller.clear(spa, min(2, PAGES - page) * PAGE, asid)
            elif kind == "encrypt":
                controller.encrypt_in_place(spa, PAGE, asid)
            elif kind == "alias":
                dram.alias(spa, PAGE, other * PAGE)
            elif kind == "drop":
                dram.drop(spa, PAGE)
            elif kind == "straighten":
                dram.straighten(spa, PAGE)
            elif kind == "key":
                controller.install_key(1 + asid % 2, bytes([value]) * 16)
            elif kind == "no key":
                controller.remove_key(asid)
            elif kind == "reserve":
                controller.reserve(spa, PAGE)
            else:
                controller.reserve(0, 0)
        for place in PLACES:
            assert answer(entries, *place) == answer(controller, *place), (kind, place)


WORDS = st.tuples(st.integers(0, 1), st.sampled_from([0, 1, 3, 7, 7, 7, 0x27, 0x67, 0x87, 1 << 63 | 7])).map(
    lambda one: one[0] * PAGE | one[1]
)
PUT = st.tuples(st.integers(0, 1), st.integers(0, 2), WORDS)


def end(walker: NestedWalker, gpa: int, access: int) -> NestedLeaf | tuple[int, int]:
    try:
        return walker.leaf(0, gpa, access)
    except NestedPageFault as fault:
        return fault.gpa, fault.error


@settings(max_examples=80, deadline=None)
@given(
    st.lists(PUT, min_size=6, max_size=6),
    st.lists(st.tuples(st.sampled_from(["poke", "store", "alias", "straighten", "none"]), PUT), max_size=8),
)
def test_walks_end_where_memory_says_after_any_change(
    first: list[tuple[int, int, int]], steps: list[tuple[str, tuple[int, int, int]]]
) -> None:
    """Two pages are tables of every level at once, each entry with whatever rights."""
    dram, controller, entries = machine()
    form = EntryFormat(LONG, 48, 47)
    remembering, anew = NestedWalker(entries, form, entries=entries), NestedWalker(controller, form)
    for kind, (page, index, word) in [("poke", one) for one in first] + steps:
        data = word.to_bytes(8, "little")
        if kind == "poke":
            dram.write(page * PAGE + index * 8, data)
        elif kind == "store":
            entries.write(page * PAGE + index * 8, data, 0)
        elif kind == "alias":
            dram.alias(page * PAGE, PAGE, PAGE - page * PAGE)
        elif kind == "straighten":
            dram.straighten(page * PAGE, PAGE)
        for gpa in (0, 0x1000, 0x20_0123, 0x40_0000_0000):
            for access in (READ, WRITE, FETCH):
                assert end(remembering, gpa, access) == end(anew, gpa, access)


def test_memory_is_asked_once_until_it_changes() -> None:
    dram, controller, entries = machine()
    changes = (
        lambda: None, lambda: dram.write(0, b"x"), controller.flush, lambda: controller.install_key(3, bytes(16)),
    )  # fmt: skip
    for change in changes:
        before = controller.reads
        change()
        for _ in range(3):
            entries.read(64, 8, 1)
        assert controller.reads == before + 1
    dram.write(PAGE, b"x")
    entries.read(64, 8, 1)
    assert controller.reads == before + 1


def test_pages_whose_owner_keeps_them_in_another_form_are_never_remembered() -> None:
    dram, _, entries = machine()
    told: list[int] = []
    entries.read(0, 8, 0)
    dram.keep(0, PAGE, lambda spa, _: told.append(spa))
    for _ in range(2):
        told.clear()
        entries.read(0, 8, 0)
        assert told
    dram.let_go(0)
    dram.write(0, b"entry...")
    assert entries.read(0, 8, 0) == b"entry..."


@pytest.mark.parametrize("asid", [0, 1])
def test_what_is_remembered_is_bounded(asid: int) -> None:
    dram = Dram(MOST_KEPT * 64)
    controller = MemoryController(dram, CIPHER_DESIGNS[CipherMode.AES_128_XEX].for_boot(np.random.default_rng(1).bytes))
    controller.install_key(1, bytes(16))
    entries = TableEntries(controller, dram)
    for number in range(MOST_KEPT + 10):
        entries.read(number * 8, 8, asid)
    assert len(entries._found) == 10
    dram.write(0, b"x" * 64)
    assert entries.read(0, 8, 0) == b"x" * 8


def test_a_laid_page_that_is_encrypted_in_place_is_read_anew() -> None:
    _, controller, entries = machine()
    controller.lay(0, bytes(range(256)) * 16, 0)
    assert entries.read(8, 8, 0) == bytes(range(8, 16))
    controller.encrypt_in_place(0, PAGE, 1)
    assert entries.read(8, 8, 0) == controller.read(8, 8, 0) != bytes(range(8, 16))
