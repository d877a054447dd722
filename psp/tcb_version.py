"""TCB_VERSION: eight bytes, each the security version number of one component of the firmware, or reserved.

Which byte is whose differs by product (SEV-SNP firmware ABI, table "TCB_VERSION").
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

TCB_BYTES = 8
MOST_SVN = 255


class TcbComponent(Enum):
    """What has a security version of its own. The values are those of AMD's key service, without ``SPL``."""

    FMC = "fmc"
    BOOT_LOADER = "bl"
    TEE = "tee"
    SPL_4 = "spl_4"
    SPL_5 = "spl_5"
    SPL_6 = "spl_6"
    SPL_7 = "spl_7"
    SNP = "snp"
    MICROCODE = "ucode"


class TcbLayout(Enum):
    """Which component has which byte, from the least significant one on; ``SPL_n`` are reserved."""

    MILAN = (
        TcbComponent.BOOT_LOADER,
        TcbComponent.TEE,
        TcbComponent.SPL_4,
        TcbComponent.SPL_5,
        TcbComponent.SPL_6,
        TcbComponent.SPL_7,
        TcbComponent.SNP,
        TcbComponent.MICROCODE,
    )
    TURIN = (
        TcbComponent.FMC,
        TcbComponent.BOOT_LOADER,
        TcbComponent.TEE,
        TcbComponent.SNP,
        TcbComponent.SPL_5,
        TcbComponent.SPL_6,
        TcbComponent.SPL_7,
        TcbComponent.MICROCODE,
    )

    def pack(self, svns: Mapping[TcbComponent, int]) -> int:
        """A TCB version; components that are not named are 0. ValueError for one that it has not, or beyond a byte."""
        strangers = svns.keys() - set(self.value)
        if strangers:
            raise ValueError(f"TCB: {self.name} has no {min(one.value for one in strangers)}")
        numbers = [svns.get(component, 0) for component in self.value]
        if not all(0 <= number <= MOST_SVN for number in numbers):
            raise ValueError(f"TCB: expected security versions from 0 to {MOST_SVN}")
        return int.from_bytes(bytes(numbers), "little")

    def unpack(self, tcb: int) -> dict[TcbComponent, int]:
        """The security version of each component, in the order of the bytes. OverflowError beyond eight bytes."""
        return dict(zip(self.value, tcb.to_bytes(TCB_BYTES, "little"), strict=True))
