"""Whether a VM that firmware carries finds at a target what it had: checked before its first byte leaves.

The two firmwares check certificates and the guest's policy; that the guest's page tables mean the same there, and
that it does not come under an older firmware, nobody else does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from node.migration_refusal import MigrationRefusal


def misfit(source: Sequence[Any], target: Sequence[Any]) -> MigrationRefusal | None:
    """What is in the way; both say (product line, C-bit, address bits that it costs, firmware's version)."""
    line, c_bit, reduced, version = source
    their_line, their_c_bit, their_reduced, their_version = target
    if line != their_line:
        return MigrationRefusal.OTHER_PRODUCT_LINE
    if (c_bit, reduced) != (their_c_bit, their_reduced):
        return MigrationRefusal.OTHER_C_BIT
    if tuple(their_version) < tuple(version):
        return MigrationRefusal.LOWER_FIRMWARE
    return None
