"""Lines tagged with address and domain: what cores and others find, against models without caches."""

from __future__ import annotations

import gc
import hashlib
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.data_cache import LINE_BYTES, DataCache

BYTES = 8 * LINE_BYTES
PADS = {domain: hashlib.shake_128(b"%d" % domain).digest(BYTES) for domain in (1, 2)}
PADS[0] = bytes(BYTES)


class Memory:
    """A memory whose cipher is an XOR with a domain's pad."""

    def __init__(self) -> None:
        self.raw = bytearray(BYTES)
        self.written: list[tuple[int, int]] = []

    def read(self, spa: int, length: int, domain: int) -> bytes:
        if not 0 <= spa <= BYTES - length:
            raise LookupError
        pad = PADS[domain][spa : spa + length]
        return bytes(one ^ other for one, other in zip(self.raw[spa : spa + length], pad, strict=True))

    def write(self, spa: int, data: bytes, domain: int) -> None:
        pad = PADS[domain][spa : spa + len(data)]
        self.raw[spa : spa + len(data)] = bytes(one ^ other for one, other in zip(data, pad, strict=True))
        self.written.append((spa, domain))


def caches(lines: int = 4, *, coherent: bool = True) -> tuple[Memory, DataCache]:
    memory = Memory()
    return memory, DataCache(memory.read, memory.write, coherent=coherent, lines=lines)


RANGES = st.integers(0, BYTES - 1).flatmap(lambda at: st.tuples(st.just(at), st.integers(1, BYTES - at)))
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["load", "store", "store", "flush", "page flush", "flush all", "dma read", "dma write"]),
        RANGES,
        st.integers(0, 2),
        st.integers(1, 255),
    ),
    max_size=40,
)


def play(memory: Memory, cache: DataCache, plain: Memory, steps: list, domains: int, *, agents_see_all: bool) -> None:
    """Each step on memory behind caches and on memory without: every read must answer the same."""
    for kind, (spa, length), who, value in steps:
        domain, data = who % domains, bytes([value]) * length
        if kind == "load":
            assert cache.load(spa, length, domain) == plain.read(spa, length, domain)
        elif kind == "store":
            cache.store(spa, data, domain)
            plain.write(spa, data, domain)
        elif kind == "flush":
            cache.flush(spa, length, domain)
        elif kind == "page flush":
            cache.flush_domain(spa, length, domain)
        elif kind == "flush all":
            cache.flush_all()
            assert (len(cache), len(cache._dirty)) == (0, 0)
            assert memory.raw == plain.raw
        else:
            if agents_see_all:
                cache.give_up_others(spa, length, domain)
            if kind == "dma read":
                found = cache.snooped(spa, memory.read(spa, length, domain), domain)
                assert found == plain.read(spa, length, domain)
                continue
            cache.give_up(spa, length, domain)
            memory.write(spa, data, domain)
            plain.write(spa, data, domain)
        assert len(cache) <= cache.lines


@settings(max_examples=46, deadline=None)
@given(st.integers(1, 5), STEPS)
def test_a_coherent_part_answers_as_if_it_had_no_caches(lines, steps):
    memory, cache = caches(lines)
    play(memory, cache, plain := Memory(), steps, 3, agents_see_all=True)
    cache.flush_all()
    assert memory.raw == plain.raw


@settings(max_examples=31, deadline=None)
@given(st.integers(1, 5), STEPS)
def test_an_incoherent_part_does_so_while_all_accesses_are_of_one_domain(lines, steps):
    memory, cache = caches(lines, coherent=False)
    play(memory, cache, plain := Memory(), steps, 1, agents_see_all=False)
    cache.flush_all()
    assert memory.raw == plain.raw


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 6), st.booleans(), st.lists(st.tuples(st.booleans(), RANGES, st.integers(0, 2))), RANGES,
    st.integers(0, 7),
)  # fmt: skip
def test_a_long_load_leaves_what_loads_of_its_lines_would(lines, coherent, steps, ranges, unkept):
    (spa, length), pairs = ranges, []
    for long in (True, False):
        memory, cache = caches(lines, coherent=coherent)
        cache.unkept = (range(unkept * LINE_BYTES, unkept * LINE_BYTES + 70),)
        for stores, (at, size), domain in steps:
            if stores:
                cache.store(at, bytes([size % 256]) * size, domain)
            else:
                cache.load(at, size, domain)
        if long:
            answer = cache.load(spa, length, 1)
        else:
            end = spa + length
            cache.load(end - 1, 1, 1)
            cuts = sorted({spa, end, *range(-(-spa // LINE_BYTES) * LINE_BYTES, end, LINE_BYTES)})
            answer = b"".join(cache.load(low, high - low, 1) for low, high in pairwise(cuts))
        order = []
        while len(cache):
            tag = next(iter(cache._held))
            order.append((tag, bytes(cache._held[tag]), tag in cache._dirty))
            cache.flush_domain(tag[0] * LINE_BYTES, LINE_BYTES, tag[1])
        pairs.append((answer, order, bytes(memory.raw)))
    assert pairs[0] == pairs[1]


KINDS = st.sampled_from(["load", "store", "flush", "invd"])


@settings(max_examples=31, deadline=None)
@given(st.lists(st.tuples(KINDS, st.integers(0, 7), st.integers(0, 2), st.integers(0, 255)), max_size=40))
def test_on_an_incoherent_part_each_domain_has_a_copy_until_it_is_flushed(steps):
    """The model: a copy of a line for each domain that touched it, and memory that only flushes change."""
    memory, cache = caches(64, coherent=False)
    plain, copies, changed = Memory(), {}, set()
    for kind, line, domain, value in steps:
        spa, tag = line * LINE_BYTES, (line, domain)
        if kind == "invd":
            cache.invalidate_all()
            copies.clear()
            changed.clear()
        elif kind == "flush":
            cache.flush(spa, LINE_BYTES, domain)
            copy = copies.pop(tag, None)
            if tag in changed:
                plain.write(spa, bytes(copy), domain)
                changed.discard(tag)
        else:
            copy = copies.setdefault(tag, bytearray(plain.read(spa, LINE_BYTES, domain)))
            if kind == "store":
                cache.store(spa + value % LINE_BYTES, bytes([value]), domain)
                copy[value % LINE_BYTES] = value
                changed.add(tag)
            assert cache.load(spa, LINE_BYTES, domain) == copy
        assert memory.raw == plain.raw
        assert len(cache._dirty) == len(changed)


def test_the_line_that_is_written_back_last_is_what_memory_holds():
    memory, cache = caches(coherent=False)
    cache.store(0, b"a" * 64, 1)
    cache.store(0, b"b" * 64, 2)
    cache.flush(0, 64, 1)
    assert memory.read(0, 64, 1) == b"a" * 64
    cache.flush(0, 64, 2)
    assert memory.read(0, 64, 2) == b"b" * 64
    assert cache.load(0, 64, 1) == memory.read(0, 64, 1) != b"a" * 64


def test_the_least_recently_used_line_makes_room():
    memory, cache = caches(lines=2)
    cache.store(0, b"a", 0)
    cache.store(64, b"b", 0)
    cache.load(0, 1, 0)
    cache.load(128, 1, 0)
    assert memory.written == [(64, 0)]
    assert (len(cache), len(cache._dirty)) == (2, 1)


@pytest.mark.parametrize("spa", [-1, -64, BYTES - 1, BYTES, BYTES + 64])
def test_an_access_that_faults_changes_nothing(spa):
    memory, cache = caches(lines=64)
    with pytest.raises(LookupError):
        cache.store(spa, bytes([9]) * 130, 1)
    with pytest.raises(LookupError):
        cache.load(spa, 130, 1)
    assert len(cache._dirty) == 0
    cache.flush_all()
    assert memory.raw == bytes(BYTES)


def test_a_range_that_is_not_kept_is_loaded_anew_but_holds_stores_back():
    memory = Memory()
    cache = DataCache(memory.read, memory.write, coherent=True, unkept=(range(64, 128),))
    assert cache.load(64, 4, 0) == bytes(4)
    memory.write(64, b"new!", 0)
    assert cache.load(64, 4, 0) == b"new!"
    cache.store(65, b"X", 0)
    assert cache.load(64, 4, 0) == b"nXw!"
    assert memory.read(64, 4, 0) == b"new!"


def test_no_plaintext_is_left_in_the_caches_after_wbinvd():
    _, cache = caches(lines=64)
    secret = b"a guest's secret" * 8
    cache.store(32, secret, 1)

    def found() -> bool:
        seen, todo = set(), [cache]
        while todo:
            one = todo.pop()
            if id(one) in seen or isinstance(one, (type, Memory)) or callable(one):
                continue
            seen.add(id(one))
            if isinstance(one, (bytes, bytearray)) and secret[:16] in one:
                return True
            todo += gc.get_referents(one)
        return False

    assert found()
    cache.flush_all()
    assert not found()
