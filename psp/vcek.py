"""How a VCEK follows from a chip's secret and a TCB version: a chain of hashes that only goes down.

A seed is hashed once for each security version that a component is below the
highest one possible, component after component. So firmware can compute the
keys of all versions below its own and of none above: what was signed with an
old firmware's leaked key never looks like a newer one's. Source: published
research on Zen 2 and 3 (Buhren et al. 2021).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from psp.elliptic import SEED_BYTES
from psp.key_derivation import derive
from psp.product_line import FmcPlace, ProductLine
from psp.tcb_version import MOST_SVN, TcbComponent

CHAIN_SEED_BYTES = 48


def vcek_seed(chain_seed: bytes, line: ProductLine, tcb: int) -> bytes:
    """What the VCEK for a TCB version is made of (56 bytes); ``chain_seed`` is that of all components at 255.

    ValueError where the line has no VCEK.
    """
    seed = chain_end(chain_seed, chain_versions(line, tcb))
    return derive(hashlib.sha384(seed).digest(), "sev-versioned-chip-endorsement-key", b"", SEED_BYTES)


def chain_versions(line: ProductLine, tcb: int) -> tuple[int, ...]:
    """The security versions in the order of the chain."""
    if line.tcb is None:
        raise ValueError(f"{line.name} has no VCEK")
    versions = line.tcb.unpack(tcb)
    fmc = versions.pop(TcbComponent.FMC, None)
    rest = tuple(versions.values())
    if fmc is None:
        return rest
    return (fmc, *rest) if line.fmc_place is FmcPlace.FIRST else (*rest, fmc)


def chain_end(seed: bytes, versions: Sequence[int]) -> bytes:
    """The seed behind the last component."""
    for at, version in enumerate(versions):
        if at:
            seed = hashlib.sha384(bytes(8) + seed).digest()
        seed = hashed(seed, MOST_SVN - version)
    return seed


def hashed(seed: bytes, times: int) -> bytes:
    """SHA-384 of SHA-384 of ... a seed."""
    sha384 = hashlib.sha384
    for _ in range(times):
        seed = sha384(seed).digest()
    return seed
