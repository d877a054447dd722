"""A move that is called off while firmware is still agreeing on its keys leaves nothing to the next one."""

import pytest
from test_live_migration import group, move, play, scenario, small_image, vm_row  # noqa: F401 - the fixture

from cluster.migration import Outcome


@pytest.mark.parametrize("generation", ["SEV", "SEV_ES"])
def test_the_next_move_agrees_on_keys_when_firmware_has_forgotten_the_last_one_s(generation: str) -> None:
    """A launch of a megabyte keeps firmware busy for 250 ms: SEND_START of both moves waits behind it."""
    leaves = group("vm", generation=generation, vcpus=1, memory="64 MiB", parameters={"records": 40})
    launched = group("other", generation="SEV", memory="64 MiB", parameters={"records": 40}, vcpus=1)
    launched |= {"start": "launch", "arrival": "1 s", "firmware": "auto"}
    fleet, rows = play(scenario(
        vms=[leaves, launched],
        migrations=[move(at="1010 ms", to="host-2", cancel_after="30 ms"), move(at="1050 ms", to="host-3")],
        costs={"psp.send_update_ns_per_kib": 10240, "psp.receive_update_ns_per_kib": 10240},
    ))  # fmt: skip
    first, second = fleet.control.migrations.all
    assert (first.outcome, first.agreed) == (Outcome.CANCELLED, False), "firmware had not got to it"
    assert (second.outcome, second.reason) == (Outcome.COMPLETED, "")
    assert (vm_row(rows)["host"], vm_row(rows)["faults"]) == ("host-3", 0)
