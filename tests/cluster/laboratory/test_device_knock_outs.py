"""With one mechanism of the device path switched off, exactly the rows open that it alone closes.

What is expected to flip is reasoned from what each mechanism checks, not from runs. Rows are those whose attacks come
its way at all; what the checks of a link do for row 76, way by way, is in ``test_link_rows``, what the secure device
table does beside the rows in ``test_unasked_devices``.
"""

import pytest
from matrix_cells import CELLS

from cluster.laboratory.device_rows import DEVICE_ROWS
from cluster.laboratory.owner_habits import OwnerHabits
from cluster.laboratory.protection import Column
from cluster.laboratory.rows import verdicts
from cluster.laboratory.scene import Setting
from node.platform import Platform, Protection
from workloads.attacks.depositor_ways import DepositorWays

HELD = {"70a": "blocked", "70b": "blocked", "72": "detected", "77": "blocked", "78": "detected", "80a": "detected",
        "81": "blocked", "71a": "blocked", "85": "detected", "73": "detected"}  # fmt: skip
"""What they come to with everything at work."""
LINK, DEVICE, MEMORY = ("70a", "77"), ("72", "78", "85"), ("70b", "80a", "81")


JUDGED = ("72", "73", "78", "85")
"""Row 73 with a guest that looks at its device's measurements in each round, or nothing of it would be detected."""


def without(protection):
    return {"platform": Platform(disabled=frozenset({protection}))}


CASES = {
    # Everything that crosses the link lies open; what the root complex does behind it stays.
    "ide": (without(Protection.IDE), LINK, {"77": {"leaked"}}),
    # Who only listens learns nothing by a MAC that nobody compares, nor by numbers that nobody counts.
    "mac": (without(Protection.IDE_MAC), LINK, {}),
    "number": (without(Protection.IDE_PACKET_NUMBER), LINK, {}),
    # Cards encrypt the sessions in which they are given keys whether anybody wants it or not.
    "session": (without(Protection.SESSION_ENCRYPTION), LINK, {}),
    # The host's own loads and stores do not pass it; a device that is stopped does nothing trusted any more; at another
    # device's memory the RMP finds another guest address. A card that is its guest's by the RMP and the host's word
    # alone, started behind its back, has nothing else before it; one that nobody started the RMP stops as ever.
    "entry": (without(Protection.SECURE_DEVICE_ENTRY), (*MEMORY, "71a"), {"71a": {"blocked", "leaked"}}),
    # It is the only thing between the host and a buffer in private memory; what it loads there stays ciphertext.
    "write": (without(Protection.RMP_WRITE_CHECK), ("70a", "70b"), {"70b": {"corrupted"}}),
    # Who looks at no certificate and no measurement takes any device, changed or not.
    "device": (
        {"owner": OwnerHabits(device=False)}, DEVICE, {"72": {"leaked"}, "78": {"corrupted"}, "85": {"leaked"}}
    ),
    # A stranger that says to be the one it wants; another of the maker's; the same with other firmware.
    "certificates": ({"ways": DepositorWays(rechecks=1, checks_certificates=0)}, JUDGED, {"72": {"leaked"}}),
    "identity": ({"ways": DepositorWays(rechecks=1, checks_identity=0)}, JUDGED, {"78": {"corrupted"}}),
    "measurements": ({"ways": DepositorWays(rechecks=1, checks_measurements=0)}, JUDGED, {"73": {"leaked"}}),
    # A proper measurement of before says nothing of now. Of a stranger there is none.
    "nonce": ({"owner": OwnerHabits(nonce=False)}, ("72", "85"), {"85": {"leaked"}}),
}


@pytest.mark.parametrize("case", CASES)
def test_exactly_what_a_mechanism_stops_comes_to_pass_without_it(case):
    changed, rows, flips = CASES[case]
    setting = Setting(Column.SEV_TIO, "Turin", **changed)
    found = {row: {one.outcome.value for one in verdicts(row, setting)} for row in rows}
    assert found == {row: flips.get(row, {HELD[row]}) for row in rows}


# In row 81 the attacker's own device is trusted all the same, and rows that need TDISP have nothing to attack.
OF_ALL = [row for row, line in DEVICE_ROWS.items() if line.card and not line.needs and not line.tenant_has_card]


@pytest.mark.parametrize("row", OF_ALL)
def test_a_guest_that_trusts_no_device_fares_as_one_whose_generation_cannot(row):
    expected = {one.outcome for one in CELLS if (one.row, one.column, one.switches) == (row, Column.SEV_SNP, "")}
    found = verdicts(row, Setting(Column.SEV_TIO, "Turin", ways=DepositorWays(trusts=0)))
    assert {one.outcome.value for one in found} == expected, found
