"""What boot firmware says of DRAM aliases; the SNP interface goes by it."""

from __future__ import annotations

from enum import Enum


class AliasCheck(Enum):
    """Whether it looked, and what it found."""

    NOT_DONE = "not done"
    """Firmware of before the fix (Milan below ABI build 1.55.22, Genoa below 1.55.38)."""
    COMPLETE = "complete"
    """Bit 1 of the flags of SNP_PLATFORM_STATUS: there are none."""
    FOUND = "found"
    """SNP_INIT is INVALID_CONFIG. The status is the laboratory's choice: AMD says only that SNP does not start."""
