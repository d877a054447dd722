"""Whether a VM finds at a target what it had: checked before its first byte leaves.

That processors have what the guest was shown is asked before anybody is told of the move. Of one that firmware
carries, the two firmwares check certificates and the guest's policy; that the guest's page tables mean the same there,
and that it does not come under an older firmware, nobody else does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from node.cpu_model import features_shown, lacking
from node.generation import CAPABILITIES
from node.guest import GuestSpec
from node.migration_refusal import MigrationRefusal
from node.product import Product
from node.sev_features import features_of


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


def lacks(target: Product, guest: GuestSpec) -> MigrationRefusal | None:
    """What a guest was shown, or runs with, that this product's processors do not have."""
    if guest.sev_features & ~features_of(target.name):
        return MigrationRefusal.SEV_FEATURES
    missing = lacking(target, features_shown(guest.cpu_model, guest.launched_on))
    return MigrationRefusal.CPU_FEATURES if missing else None


def unfit(source: Product, target: Product, guest: GuestSpec) -> MigrationRefusal | None:
    """Why a guest cannot go from one product's processors to another's; None for nothing that is known of them."""
    if CAPABILITIES[guest.generation].key_per_vm and source.line.name != target.line.name:
        return MigrationRefusal.OTHER_PRODUCT_LINE
    return lacks(target, guest)
