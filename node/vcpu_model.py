"""CPU models of QEMU and the CPUID signature each shows its guest.

The signature (CPUID 1 EAX; AMD 25481) reaches RDX of the initial VMSA and so
the launch digest. Rows: ``builtin_x86_defs`` of QEMU, target/i386/cpu.c.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class VcpuModel:
    """One named model; family and model are the combined values, extended part included."""

    name: str
    family: int
    model: int
    stepping: int

    @property
    def cpuid_signature(self) -> int:
        """CPUID 1 EAX: a family above 0xF lies in the extended field, counted from 0xF."""
        base_family = min(self.family, 0xF)
        return (
            (self.family - base_family) << 20
            | (self.model >> 4) << 16
            | base_family << 8
            | (self.model & 0xF) << 4
            | self.stepping
        )


    @classmethod
    def of_signature(cls, signature: int) -> VcpuModel:
        """The model that shows a signature; ValueError for a value that no processor can show."""
        base_family, extended_family = signature >> 8 & 0xF, signature >> 20 & 0xFF
        found = cls(
            f"signature {signature:#x}",
            family=base_family + extended_family,
            model=signature >> 12 & 0xF0 | signature >> 4 & 0xF,
            stepping=signature & 0xF,
        )
        if found.cpuid_signature != signature:
            raise ValueError(f"CPUID signature: expected the value of CPUID 1 EAX, found {signature:#x}")
        return found


class UnknownVcpuModelError(ValueError):
    """No model of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"vCPU model: expected one of {', '.join(VCPU_MODELS)}, found {name!r}")
        self.name = name


_FAMILIES = (
    # line, family, model, stepping, versions, alias
    ("EPYC", 0x17, 0x01, 2, 5, "EPYC-IBPB"),
    ("EPYC-Rome", 0x17, 0x31, 0, 5, None),
    ("EPYC-Milan", 0x19, 0x01, 1, 3, None),
    ("EPYC-Genoa", 0x19, 0x11, 0, 2, None),
    ("EPYC-Turin", 0x1A, 0x00, 0, 1, None),
)
"""A version changes feature bits, never the signature."""

VCPU_MODELS: Mapping[str, VcpuModel] = {
    name: VcpuModel(name, family, model, stepping)
    for line, family, model, stepping, versions, alias in _FAMILIES
    for name in (line, *(f"{line}-v{n}" for n in range(1, versions + 1)), *([alias] if alias else []))
}


def vcpu_model(name: str) -> VcpuModel:
    """The model of a name as ``qemu -cpu`` takes it."""
    try:
        return VCPU_MODELS[name]
    except KeyError:
        raise UnknownVcpuModelError(name) from None
