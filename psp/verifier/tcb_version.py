"""TCB versions as a verifier reads them: eight bytes, a component or zero in each (SEV-SNP firmware ABI, section 2.2).

The verifier's own table; whoever makes reports has another, so that a slip in one shows.
"""

from __future__ import annotations

from dataclasses import dataclass

TCB_BYTES = 8


@dataclass(frozen=True, slots=True)
class TcbLayout:
    """Which byte holds which component, in the order in which people name them."""

    components: tuple[tuple[str, int], ...]

    def split(self, tcb: bytes) -> dict[str, int]:
        """The components by name."""
        return {name: tcb[at] for name, at in self.components}

    def reserved_are_zero(self, tcb: bytes) -> bool:
        """Whether the bytes that hold no component are zero."""
        used = {at for _, at in self.components}
        return not any(octet for at, octet in enumerate(tcb) if at not in used)

    def pack(self, components: dict[str, int]) -> bytes:
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
