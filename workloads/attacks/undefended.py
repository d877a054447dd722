"""Where nothing is measured and nothing attested, an attack on attestation is not needed."""

from __future__ import annotations

from collections.abc import Callable

from workloads.attacks.read_memory import read_private_page
from workloads.attacks.target import Attack, Target


def by_generation(sev: Callable[[Target], Attack], snp: Callable[[Target], Attack]) -> Callable[[Target], Attack]:
    """An attack on each kind of guest that has a launch; of others the hypervisor reads the memory."""

    def attack(target: Target) -> Attack:
        if target.victim.gctx:
            return snp(target)
        return sev(target) if target.victim.handle else read_private_page(target)

    attack.__name__ = snp.__name__
    return attack
