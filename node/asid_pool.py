"""The hypervisor's ASIDs: which are free, in use, or dirty until caches and fabric are flushed.

ES and SNP guests take 1 to MinSEVASID - 1, SEV guests MinSEVASID to the last. Where
the host asks for ciphertext hiding SNP guests take 1 to MAX_SNP_ASID and ES guests what
is left below MinSEVASID.
A released ASID must not be used again before WBINVD on all cores and DF_FLUSH;
like KVM, the pool flushes only when it has run dry.
"""

from __future__ import annotations

from collections.abc import Mapping

from node.generation import Generation

ASID_KINDS: Mapping[Generation, Generation] = {
    Generation.SEV: Generation.SEV,
    Generation.SEV_ES: Generation.SEV_SNP,
    Generation.SEV_SNP: Generation.SEV_SNP,
    Generation.SEV_TIO: Generation.SEV_SNP,
}
"""Whose ASIDs a generation's guests take where ciphertext is not hidden; guests of others have none."""


class AsidsExhausted(Exception):
    """No ASID of that kind is left; callers flush first when ``needs_flush`` says that dirty ones would do."""

    def __init__(self, generation: Generation, capacity: int) -> None:
        super().__init__(f"ASID: all {capacity} of the host for {generation.name} are in use")


class _Kind:
    __slots__ = ("capacity", "dirty", "free", "peak", "used")

    def __init__(self, first: int, last: int) -> None:
        self.capacity = max(0, last - first + 1)
        self.free = list(range(last, first - 1, -1))
        self.dirty: list[int] = []
        self.used: set[int] = set()
        self.peak = 0


class AsidPool:
    """The kinds of ASIDs of one host; a PLAIN guest has none.

    A MinSEVASID of 1 leaves nothing for ES and SNP, one above ``max_asid``
    nothing for SEV. ``max_snp_asid`` is 0 without ciphertext hiding: ES and SNP
    guests share their kind then.
    """

    def __init__(self, max_asid: int, min_sev_asid: int, max_snp_asid: int = 0) -> None:
        last = min(min_sev_asid - 1, max_asid)
        snp = _Kind(1, min(max_snp_asid, last) if max_snp_asid else last)
        self._kinds = {
            Generation.SEV: _Kind(max(min_sev_asid, 1), max_asid),
            Generation.SEV_ES: _Kind(max_snp_asid + 1, last) if max_snp_asid else snp,
            Generation.SEV_SNP: snp,
            Generation.SEV_TIO: snp,
        }

    def capacity(self, generation: Generation) -> int:
        """How many ASIDs there are for guests of ``generation``."""
        return self._kinds[generation].capacity

    def in_use(self, generation: Generation) -> int:
        """How many of them guests hold."""
        return len(self._kinds[generation].used)

    def peak(self, generation: Generation) -> int:
        """Most of them in use at once so far."""
        return self._kinds[generation].peak

    def needs_flush(self, generation: Generation) -> bool:
        """Whether only dirty ASIDs are left, so that a flush must come before ``allocate``."""
        kind = self._kinds[generation]
        return not kind.free and bool(kind.dirty)

    def allocate(self, generation: Generation) -> int:
        """Take the lowest clean ASID. Raises AsidsExhausted."""
        kind = self._kinds[generation]
        if not kind.free:
            raise AsidsExhausted(generation, kind.capacity)
        asid = kind.free.pop()
        kind.used.add(asid)
        kind.peak = max(kind.peak, len(kind.used))
        return asid

    def release(self, asid: int) -> None:
        """Give an ASID back; it stays dirty until a flush. Raises KeyError if it is not in use."""
        for kind in self._kinds.values():
            if asid in kind.used:
                kind.used.remove(asid)
                kind.dirty.append(asid)
                return
        raise KeyError(asid)

    def after_flush(self) -> None:
        """WBINVD and DF_FLUSH are done: dirty ASIDs are clean."""
        for kind in self._kinds.values():
            kind.free = sorted(kind.free + kind.dirty, reverse=True)
            kind.dirty = []
