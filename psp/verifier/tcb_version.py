"""TCB versions as a verifier reads them: eight bytes, a component or zero in each (SEV-SNP firmware ABI, section 2.2).

The verifier's own table; whoever makes reports has another, so that a slip in one shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

TCB_BYTES = 8
COMPONENTS = ("fmc", "bootloader", "tee", "snp", "microcode")
HIGHEST_LEVEL = 255


@dataclass(frozen=True, slots=True)
class TcbLayout:
    """Which byte holds which component, in the order in which people name them."""

    components: tuple[tuple[str, int], ...]

    def split(self, tcb: bytes) -> dict[str, int]:
        """The components by name."""
        return {name: tcb[at] for name, at in self.components}

    def reaches(self, tcb: bytes, floor: Mapping[str, int]) -> bool:
        """Whether every component of a floor is there, and no lower."""
        found = self.split(tcb)
        return all(found.get(name, -1) >= level for name, level in floor.items())

    def reserved_are_zero(self, tcb: bytes) -> bool:
        """Whether the bytes that hold no component are zero."""
        used = {at for _, at in self.components}
        return not any(octet for at, octet in enumerate(tcb) if at not in used)

    def pack(self, components: Mapping[str, int]) -> bytes:
        """Eight bytes from components by name; those not named are zero."""
        tcb = bytearray(TCB_BYTES)
        for name, at in self.components:
            tcb[at] = components.get(name, 0)
        return bytes(tcb)


MILAN_LAYOUT = TcbLayout((("bootloader", 0), ("tee", 1), ("snp", 6), ("microcode", 7)))
"""Milan and Genoa."""
TURIN_LAYOUT = TcbLayout((("fmc", 0), ("bootloader", 1), ("tee", 2), ("snp", 3), ("microcode", 7)))


def at_most(tcb: bytes, limit: bytes) -> bool:
    """Whether no component is above the limit's."""
    return all(one <= other for one, other in zip(tcb, limit, strict=True))


def spelled(components: Mapping[str, int]) -> str:
    """Components as people write them: ``bootloader=3 tee=0 snp=8 microcode=115``."""
    return " ".join(f"{name}={level}" for name, level in components.items())


def higher_levels(one: Mapping[str, int] | None, other: Mapping[str, int] | None) -> Mapping[str, int] | None:
    """Of each component the higher of two levels, of which either may not be there; None where nothing is."""
    if one is None or other is None:
        return other if one is None else one
    return {name: max(one.get(name, 0), other.get(name, 0)) for name in {**one, **other}}
