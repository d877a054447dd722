"""AMD's generations of memory encryption, in the order they were built, as sets of capabilities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Generation(Enum):
    """How a virtual machine is protected. SME is a plain VM on an SME host, SEV_TIO an SNP VM with trusted devices."""

    __hash__ = object.__hash__
    """Enum's own is a call in Python, for each look into a table."""

    PLAIN = "PLAIN"
    SME = "SME"
    SEV = "SEV"
    SEV_ES = "SEV_ES"
    SEV_SNP = "SEV_SNP"
    SEV_TIO = "SEV_TIO"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a generation protects (AMD white papers on SME/SEV, SEV-ES and SEV-SNP)."""

    encrypted_memory: bool = False
    key_per_vm: bool = False
    encrypted_registers: bool = False
    rmp: bool = False
    trusted_devices: bool = False


CAPABILITIES: Mapping[Generation, Capabilities] = {
    Generation.PLAIN: Capabilities(),
    Generation.SME: Capabilities(encrypted_memory=True),
    Generation.SEV: Capabilities(encrypted_memory=True, key_per_vm=True),
    Generation.SEV_ES: Capabilities(encrypted_memory=True, key_per_vm=True, encrypted_registers=True),
    Generation.SEV_SNP: Capabilities(True, True, True, rmp=True),
    Generation.SEV_TIO: Capabilities(True, True, True, rmp=True, trusted_devices=True),
}
