"""SEV-SNP machines with a handler in their SVSM move in fleets while they run, once, and as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_live_migration import FIRMWARE, group, move, outcomes, play, scenario, small_image  # noqa: F401 - the fixture

from cluster.bench.fault_verdict import judged
from cluster.bench.faults import schedule
from cluster.precopy import PrecopySettings, RoundCap
from cluster.scenario import Scenario, ScenarioError

LINK_BYTES_PER_S = 1_250_000_000


def fleet(**changes: Any) -> dict[str, Any]:
    vm = group("vm", generation="SEV_SNP", svsm=True, migration_handler=True, memory="256 MiB", vcpus=2)
    vm |= {"firmware": "auto"}
    hosts = [{"name": "host", "product": "Milan", "count": 3, "memory": "16 GiB"}]
    return scenario(**({"hosts": hosts, "vms": [vm], "duration": "10 s"} | changes))


def test_a_machine_moves_while_it_runs_and_back_and_stands_still_for_what_is_left() -> None:
    _, rows = play(fleet(migrations=[move(times=2, pause="100 ms")]))
    row, back = rows["migrations"]
    assert [(one["outcome"], one["reason"]) for one in (row, back)] == [("completed", None)] * 2
    assert row["bytes"] >= 256 << 20
    assert row["final_bytes"] < row["bytes"] / 4
    # Not at the security processor's pace, and not for as long as all of its memory takes.
    assert row["downtime_ns"] < 1e9 * (256 << 20) / LINK_BYTES_PER_S
    assert (row["rounds"] >= 1, row["pages_checked"] > 0) == (True, True)
    (vm,) = rows["vms"]
    assert (vm["host"], vm["state"], vm["faults"]) == (back["destination"], "running", 0)
    (svsm,) = rows["svsms"]
    assert svsm["calls"] > 0


def with_agents(**changes: Any) -> dict[str, Any]:
    """The same where agents hand the machine's identity over, on hosts that have them, and on one without."""
    body = fleet(**changes)
    common = {"product": "Milan", "memory": "16 GiB"}
    hosts = [{"name": "host", "count": 3, "migration_agent": True} | common, {"name": "bare"} | common]
    return body | {"hosts": hosts, "vms": [vm | {"migration_agent": True} for vm in body["vms"]]}


def test_a_machine_with_an_agent_too_moves_while_it_runs_and_its_agent_hands_its_identity_over() -> None:
    moves = [move(times=2, pause="100 ms"), move(at="5 s", to="bare")]
    _, rows = play(with_agents(migrations=moves))
    assert outcomes(rows) == [("completed", None)] * 2 + [("refused", "NO_AGENT_THERE")]
    row, back, _ = rows["migrations"]
    assert (row["carrier"], row["final_bytes"] < row["bytes"] / 4) == ("handler and agents", True)
    assert row["downtime_ns"] < 1e9 * (256 << 20) / LINK_BYTES_PER_S
    (vm,) = rows["vms"]
    assert (vm["host"], vm["state"], vm["faults"]) == (back["destination"], "running", 0)


def test_a_handler_that_does_not_believe_its_hypervisors_dirty_log_seals_all_of_a_guest_that_stands_still() -> None:
    vm = fleet()["vms"][0] | {"memory": "64 MiB"}
    downtimes = []
    for believes in (True, False):
        asked = {"handler_believes_log": believes}
        _, rows = play(fleet(vms=[vm], migrations=[move()], migration=asked, duration="5 s"))
        (row,) = rows["migrations"]
        assert row["outcome"] == "completed"
        assert (row["final_bytes"] >= 64 << 20) is not believes
        downtimes.append(row["downtime_ns"])
    assert downtimes[1] - downtimes[0] > 0.8e9 * (64 << 20) / LINK_BYTES_PER_S


def test_what_was_changed_on_the_wire_is_refused_and_the_machine_goes_on_where_it_was() -> None:
    def spoilt(_: str, frames: tuple[bytes, ...]) -> tuple[bytes, ...]:
        return (*frames[:1], *[frame.replace(frame[-40:-32], bytes(8)) for frame in frames[1:2]], *frames[2:])

    _, rows = play(fleet(migrations=[move()], duration="5 s"), wire=spoilt)
    ((outcome, _),) = outcomes(rows)
    assert outcome == "spoiled"
    (vm,) = rows["vms"]
    assert (vm["host"], vm["state"], vm["faults"]) == ("host-1", "running", 0)


def test_a_handler_takes_its_guests_time_and_has_half_of_it_at_most() -> None:
    settings = PrecopySettings(300_000_000, 30, RoundCap.ABORT, 0.0, 0.0, handler_bytes_per_s=1e9)
    assert [settings.handler_cap(vcpus) for vcpus in (1, 2, 8)] == [5e8, 1e9, 1e9]
    assert [settings.handler_share(5e8, vcpus) for vcpus in (1, 2, 8)] == [0.5, 0.25, 0.0625]
    assert settings.handler_share(1e12, 4) == 0.5


@pytest.mark.parametrize("way", ["SEV_SNP by its handler", "SEV_SNP by its handler and agents"])
@pytest.mark.parametrize("seed", [1, 4, 6])
def test_whatever_crashes_and_goes_astray_it_is_somewhere_once_and_leaves_nothing_elsewhere(
    seed: int, way: str
) -> None:
    found, moves = judged(schedule(seed, way, Path(FIRMWARE[0])) | {"duration": "5 s"})
    assert found is None
    assert moves


@pytest.mark.parametrize(
    ("changes", "found"),
    [({"svsm": False}, "one without an SVSM"), ({"generation": "SEV"}, "one with SEV")],
)
def test_a_handler_lies_in_an_svsm(changes: dict[str, Any], found: str) -> None:
    body = fleet()
    with pytest.raises(ScenarioError, match=found):
        Scenario.parse({**body, "vms": [body["vms"][0] | {"svsm": False} | changes]})
