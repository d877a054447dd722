"""How a host's platform has its firmware: what that is built with, and what a laboratory switches off of it."""

from __future__ import annotations

from node.platform import Platform, Protection
from node.product import Product
from psp.firmware import SecurityProcessor
from psp.guest_requests import GuestMessageSwitches


def settle(psp: SecurityProcessor, product: Product, platform: Platform) -> None:
    """Set a firmware up as the platform has it."""
    psp.legacy.keys.checks_points = product.checks_points or platform.point_check
    psp.snp.wants_fabric_locked = platform.fabric_lock_checked
    psp.snp.reports.forced_version = platform.report_version
    psp.snp.derived_keys.root_tcb = platform.derived_keys
    psp.firmware.signed_at = platform.reports_signed_for
    psp.snp.tsm.tdi_switches.rekeys = platform.ide_rekey_flush
    psp.snp.guests.pages.tweaked = platform.context_tweaked
    psp.snp.guests.pages.has_mac = platform.context_mac
    _switch_off(psp, platform.disabled)


def _switch_off(psp: SecurityProcessor, disabled: frozenset[Protection]) -> None:
    """Have a firmware without some mechanisms."""
    if Protection.MESSAGE_SEQUENCE in disabled:
        psp.snp.guest_requests.switches = GuestMessageSwitches(checks_sequence=False)
    psp.snp.tsm.device_switches.wants_encryption = Protection.SESSION_ENCRYPTION not in disabled
    # Of its care for guests that move, and for pages that are out:
    psp.legacy.migration.checks_target = Protection.TARGET_CHAIN not in disabled
    psp.snp.swap.checks_tag = Protection.SWAP_TAG not in disabled
    psp.snp.swap.spends_entries = Protection.SWAP_ENTRY not in disabled
    psp.snp.migration.export_decommissions = Protection.EXPORT_DECOMMISSIONS not in disabled
