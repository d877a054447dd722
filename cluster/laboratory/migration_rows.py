"""Rows of the attack matrix about moves from host to host: 55 to 60."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.laboratory.interface import Interface
from cluster.laboratory.row import Row
from psp.policy import LegacyPolicy
from workloads.attacks import fake_target, migration, stale_page

MIGRATION_ROWS: Mapping[str, Row] = {
    # To whom a guest may go that asks for no platform of AMD's is nobody's secret.
    "55": Row((fake_target.move_to_fake,), moves=True, sev_policy=int(LegacyPolicy.SEV)),
    "56": Row((migration.permute, migration.replay), moves=True, open_without_key=True),
    "57": Row((migration.run_on,), moves=True, open_without_key=True),
    "58": Row((migration.take_in_twice, migration.take_back_too), moves=True, open_without_key=True),
    "59": Row((stale_page.return_older,), needs=Interface.PAGE_SWAP),
    "60": Row(
        (migration.roll_back, migration.roll_back_disk), moves=True, open_without_key=True, victim="counted"
    ),
}
"""By id of the matrix."""
