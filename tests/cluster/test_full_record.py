"""Where the record of hand-overs fills up no move is left without an end, and no VM without a place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from test_live_migration import FIRMWARE, IDLE, group, move, outcomes, play, scenario, vm_row

from cluster.bench.fault_verdict import judged
from cluster.bench.faults import schedule, small_firmware
from cluster.hand_over import FINAL
from cluster.migration import Outcome
from node.guest import GuestState
from node.host import Host

HOSTS = [{"name": "host", "product": "Milan", "count": 4, "memory": "2 GiB"}]
MOST = range(20, 260, 12)
QUIET = {"kind": "messages", "at": "0 s", "lasts": "0 s"}


@pytest.fixture(scope="module", autouse=True)
def small_image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    FIRMWARE[0] = str(small_firmware(tmp_path_factory.mktemp("firmware")))
    yield
    FIRMWARE[0] = "auto"


@pytest.mark.parametrize("mode", ["pre-copy", "post-copy"])
def test_each_move_ends_or_does_not_begin(mode: str) -> None:
    begun = set()
    for most in MOST:
        hosts: dict[str, Host] = {}
        fleet, rows = play(
            scenario(
                vms=[group("vm", **IDLE, memory="64 MiB")], hosts=HOSTS, duration="9 s", faults=[QUIET],
                migration={"mode": mode, "record": f"{most} B"},
                migrations=[move(to="host-2"), move(at="3 s", to="host-3"), move(at="5 s", to="host-4")],
            ),
            at_start=hosts.update,
        )  # fmt: skip
        live = fleet.control.migrations
        moved = [one for one in outcomes(rows) if one == ("completed", None)]
        # Once it is full it stays full.
        assert outcomes(rows) == moved + [("refused", "RECORD_FULL")] * (3 - len(moved))
        assert {one.phase for one in live.all[: len(moved)]} <= FINAL
        assert len(live.record.data) <= most
        begun.add(len(moved))
        place = ["host-1", "host-2", "host-3", "host-4"][len(moved)]
        assert (vm_row(rows)["host"], vm_row(rows)["state"]) == (place, "running")
        holding = [host for host, one in hosts.items() if "vm" in one.guests and is_there(one)]
        assert holding == [place]
        assert [host for host in sorted(hosts) if fleet.control.placement.on(host)] == [place]
    assert begun == {0, 1, 2, 3}


def is_there(host: Host) -> bool:
    return host.guests["vm"].state is not GuestState.DEPARTED


def test_a_move_that_does_not_begin_takes_no_place_in_line() -> None:
    pair = [group(name, memory="64 MiB") for name in ("one", "other")]
    _, rows = play(
        scenario(
            vms=pair, migration={"per_fleet": 1, "record": "70 B"}, duration="9 s",
            migrations=[move("one", to="host-2"), move("other", to="host-2")],
        )
    )  # fmt: skip
    assert outcomes(rows) == [("completed", None), ("refused", "RECORD_FULL")]


def test_whatever_else_goes_wrong_on_a_full_disk_a_vm_is_whole_and_in_one_place() -> None:
    outcomes_seen = set()
    for seed in range(40):
        body = schedule(seed, "PLAIN", Path(FIRMWARE[0]))
        body["migration"]["record"] = f"{60 + 15 * (seed % 5)} B"
        wrong, moves = judged(body)
        assert wrong is None, seed
        outcomes_seen |= {(one.outcome, one.reason == "RECORD_FULL") for one in moves}
    assert {(Outcome.COMPLETED, False), (Outcome.REFUSED, True), (Outcome.RESTARTED, False)} <= outcomes_seen
