"""What a laboratory switches off of a firmware's care for guests that move, for pages that are out, and for devices."""

from __future__ import annotations

from node.platform import Protection
from psp.firmware import SecurityProcessor


def switch_off(psp: SecurityProcessor, disabled: frozenset[Protection]) -> None:
    """Have a firmware without some mechanisms."""
    psp.legacy.migration.checks_target = Protection.TARGET_CHAIN not in disabled
    psp.snp.swap.checks_tag = Protection.SWAP_TAG not in disabled
    psp.snp.swap.spends_entries = Protection.SWAP_ENTRY not in disabled
    psp.snp.migration.export_decommissions = Protection.EXPORT_DECOMMISSIONS not in disabled
    psp.snp.tsm.message_switches.checks_route = Protection.MMIO_ROUTE not in disabled
    psp.snp.tsm.tdi_switches.checks_pages = Protection.MMIO_GIVEN_BACK not in disabled
