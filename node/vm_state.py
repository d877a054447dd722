"""What a VM is made of while it is on no host: registers, memory and disk, as bytes."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from node.vmsa import StoredArea

MOST_VCPUS = 1024
"""Of a VM; what its vCPUs told at a VMPL follows that of those before by so many."""
Run = tuple[int, bytes]
"""Where a run of whole pages or blocks begins, and its bytes."""
Packet = tuple[int, bytes, bytes]
"""A GPA, or a vCPU, and the header and the ciphertext that firmware made of its page."""
TimeBase = tuple[int, int]
"""How fast a host's time-stamp counter counts, in Hz, and TSC_OFFSET of a VM's control blocks, modulo 2^64."""
NO_TIME_BASE: TimeBase = (0, 0)
"""Of a VM that nobody has taken from its host yet."""


def whole_runs(runs: list[Run]) -> tuple[Run, ...]:
    """Runs of bytes in their order, those that touch as one: the same however they were cut on their way."""
    if not any(at + len(data) == after for (at, data), (after, _) in pairwise(runs)):
        return tuple(runs)  # As nearly always.
    found: list[tuple[int, list[bytes]]] = []
    end = -1
    for at, data in runs:
        if at == end:
            found[-1][1].append(data)
        else:
            found.append((at, [data]))
        end = at + len(data)
    return tuple([(at, b"".join(parts)) for at, parts in found])


class VmState(NamedTuple):
    """A stopped VM.

    ``save_areas`` holds each vCPU's registers; ``started`` whether it had come
    out of reset. ``pages`` are runs by GPA, ``blocks`` runs by logical block;
    what is in neither is zero. ``launched`` and ``reset_rips`` are what its
    start-up code was told. Of a VM whose memory the host cannot read, private pages and,
    with SEV-ES, save areas are ``packets`` and ``sealed_areas``; ``shared`` are the ranges that
    it shares, and ``told`` what its vCPUs told their hypervisor.
    """

    vm: str
    save_areas: tuple[bytes | StoredArea, ...]
    started: tuple[bool, ...]
    launched: tuple[int, ...]
    reset_rips: tuple[int, ...]
    pages: tuple[Run, ...]
    blocks: tuple[Run, ...]
    packets: tuple[Packet, ...] = ()
    sealed_areas: tuple[Packet, ...] = ()
    shared: tuple[tuple[int, int], ...] = ()
    told: tuple[tuple[int, int, int], ...] = ()
    context: bytes = b""
    """Of a guest that a migration agent moves: what it says to its peer."""
    metadata: tuple[bytes, ...] = ()
    """Its Metadata pages as they were swapped out, the leaves first and the root's page last. The entries of the leaves
    are those of ``packets``, ``sealed_areas`` and ``rows``, in this order."""
    rows: tuple[tuple[int, int, bool], ...] = ()
    """Pages that nobody wrote: GPA, number, and whether they are of 2 MiB."""
    time_base: TimeBase = NO_TIME_BASE
    """By what it read the time on the host that it left."""
