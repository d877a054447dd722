"""A machine whose pages hold bytes moves as one whose pages are accounted: the same rounds, bytes, times and downtime.

Rounds, bytes and times follow from what is there, not from what sevfleet happens to hold of it. ``sevfleet bench
materialised`` holds all 64 MiB in every generation; here those do whose pages no firmware wraps one by one.
"""

from pathlib import Path

import pytest

from cluster.bench import materialised
from node.agent_transfer import BY_AGENT
from psp.system_bus import PAGE_BYTES

MIB = 1 << 20
HELD = {
    "PLAIN": 64 * MIB, "SME": 64 * MIB, "SEV": 4 * MIB, "SEV_ES": 4 * MIB, "SEV_SNP": MIB, "SEV_TIO": MIB,
    materialised.BY_HANDLER: MIB, materialised.AHEAD: 64 * MIB,
}  # fmt: skip


BY_AGENTS = [one.name for one in BY_AGENT]


@pytest.fixture(scope="module")
def firmware(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return materialised.small_firmware(tmp_path_factory.mktemp("firmware"))


@pytest.mark.parametrize("way", materialised.WAYS)
def test_a_machine_moves_the_same_whatever_of_it_is_held(way: str, firmware: Path) -> None:
    most = HELD[way]
    accounted, held = materialised.both(way, firmware, most)
    assert materialised.differences(accounted, held) == []
    assert (held["outcome"], held["reason"]) == ("completed", None)
    more = held["pages_checked"] - accounted["pages_checked"]
    assert more > 0.9 * min(most, 62 * MIB) / PAGE_BYTES
    assert held["frame_bytes"] - accounted["frame_bytes"] > more * PAGE_BYTES
    at_once = [*BY_AGENTS, materialised.AHEAD]
    assert (held["rounds"] == 1) == (way in at_once), "agents move a machine that stands still"
    assert (held["post_copy_faults"] > 0) == (way == materialised.AHEAD)
    assert len(held["phases"]) > 3
