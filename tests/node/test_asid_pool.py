"""ASIDs: which guests may have which, and that none comes back before caches and fabric are flushed."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from node.asid_pool import AsidPool, AsidsExhausted
from node.generation import Generation

ENCRYPTED_REGISTERS = (Generation.SEV_ES, Generation.SEV_SNP, Generation.SEV_TIO)
KEYED = (Generation.SEV, *ENCRYPTED_REGISTERS)


def drain(pool: AsidPool, generation: Generation) -> list[int]:
    return [pool.allocate(generation) for _ in range(pool.capacity(generation))]


@pytest.mark.parametrize(
    ("max_asid", "min_sev_asid", "sev", "snp"),
    [
        (509, 100, range(100, 510), range(1, 100)),  # dmesg of a Milan host: SEV 100-509, SEV-ES 1-99
        (1006, 99, range(99, 1007), range(1, 99)),  # dmesg of a Genoa host
        (1006, 1006, range(1006, 1007), range(1, 1006)),
        (15, 1, range(1, 16), range(0)),
        (15, 16, range(0), range(1, 16)),
        (15, 400, range(0), range(1, 16)),
    ],
)
def test_the_split_gives_each_kind_its_own_asids(max_asid: int, min_sev_asid: int, sev: range, snp: range) -> None:
    for generation in ENCRYPTED_REGISTERS:
        pool = AsidPool(max_asid, min_sev_asid)
        assert drain(pool, Generation.SEV) == list(sev)
        assert drain(pool, generation) == list(snp)
        for kind in KEYED:
            with pytest.raises(AsidsExhausted, match=kind.name):
                pool.allocate(kind)


@pytest.mark.parametrize(
    ("min_sev_asid", "max_snp_asid", "snp", "es"),
    [
        (99, 40, range(1, 41), range(41, 99)),
        (99, 98, range(1, 99), range(0)),
        (99, 1, range(1, 2), range(2, 99)),
        (1, 5, range(0), range(0)),
        (99, 400, range(1, 99), range(0)),
    ],
)
def test_ciphertext_hiding_splits_the_asids_of_snp_from_those_of_es(min_sev_asid, max_snp_asid, snp, es) -> None:
    pool = AsidPool(1006, min_sev_asid, max_snp_asid)
    assert drain(pool, Generation.SEV_ES) == list(es)
    assert drain(pool, Generation.SEV_SNP) == list(snp)
    assert drain(pool, Generation.SEV) == list(range(min_sev_asid, 1007))
    for kind in KEYED:
        with pytest.raises(AsidsExhausted, match=f"all {pool.capacity(kind)} "):
            pool.allocate(kind)


def test_a_guest_without_a_key_has_no_asid() -> None:
    with pytest.raises(KeyError):
        AsidPool(15, 9).allocate(Generation.PLAIN)


def test_an_asid_that_nobody_holds_cannot_be_released() -> None:
    pool = AsidPool(15, 9)
    asid = pool.allocate(Generation.SEV)
    pool.release(asid)
    for wrong in (asid, 0, 3, 16):
        with pytest.raises(KeyError):
            pool.release(wrong)


class Lives(RuleBasedStateMachine):
    """Guests come and go; the model remembers who holds what and what was not flushed since."""

    @initialize(max_asid=st.integers(1, 12), min_sev_asid=st.integers(1, 14), max_snp_asid=st.integers(0, 14))
    def start(self, max_asid: int, min_sev_asid: int, max_snp_asid: int) -> None:
        self.pool = AsidPool(max_asid, min_sev_asid, max_snp_asid)
        self.max_snp_asid = max_snp_asid
        self.all = set(range(1, max_asid + 1))
        self.min_sev_asid = min_sev_asid
        self.held: dict[int, Generation] = {}
        self.dirty: set[int] = set()

    def fit(self, generation: Generation) -> set[int]:
        if generation is Generation.SEV:
            return {asid for asid in self.all if asid >= self.min_sev_asid}
        below = {asid for asid in self.all if asid < self.min_sev_asid}
        if not self.max_snp_asid:
            return below
        is_es = generation is Generation.SEV_ES
        return {asid for asid in below if (asid > self.max_snp_asid) == is_es}

    @rule(generation=st.sampled_from(KEYED))
    def allocate(self, generation: Generation) -> None:
        clean = self.fit(generation) - self.held.keys() - self.dirty
        if clean:
            asid = self.pool.allocate(generation)
            assert asid == min(clean)
            self.held[asid] = generation
        else:
            with pytest.raises(AsidsExhausted):
                self.pool.allocate(generation)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        asid = data.draw(st.sampled_from(sorted(self.held)))
        self.pool.release(asid)
        del self.held[asid]
        self.dirty.add(asid)

    @rule()
    def flush(self) -> None:
        self.pool.after_flush()
        self.dirty.clear()

    @invariant()
    def books_agree(self) -> None:
        for generation in KEYED:
            fit = self.fit(generation)
            used = fit & self.held.keys()
            assert self.pool.capacity(generation) == len(fit)
            assert self.pool.in_use(generation) == len(used) <= self.pool.peak(generation) <= len(fit)
            assert self.pool.needs_flush(generation) == (not fit - used - self.dirty and bool(fit & self.dirty))


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
