"""Each fault at each point of a move, for every way to move: wherever it comes, the VM is whole and in one place."""

from functools import cache
from math import gcd
from pathlib import Path

import pytest

from cluster import hand_over
from cluster.bench import fault_grid, faults, inner_faults
from cluster.bench.fault_grid import GENERATIONS, Cell
from cluster.bench.fault_verdict import judged
from cluster.bench.inner_faults import FaultyControl
from cluster.bench.moving_machines import WAYS
from cluster.commit_record import CommitRecord
from cluster.control_plane import ControlPlane
from cluster.hand_over import Event, Phase, Record
from cluster.live_migration import LiveMigrations
from cluster.migration import Migration
from cluster.migration_commands import TELL, rows_of
from node.page_swaps import PageSwaps

SWITCH_OVER = ["paused", "stopped", "sent", "committed"]
ROUNDS = ["setup", "first round", "later rounds"]
END = "destination"


def points(way: str) -> list[str]:
    """Where moves are; one that runs ahead is drained, and one with a disk writes too little for a second round."""
    name = way.removesuffix(" by post-copy")
    rounds = ROUNDS[1 : 2 if "devices" in WAYS[name].machine else 3] if fault_grid.is_copied_while_it_runs(name) else []
    return [ROUNDS[0], *(rounds if name == way else []), *SWITCH_OVER, *(["draining"] if name != way else []), END]


@pytest.fixture(scope="module")
def firmware(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return faults.small_firmware(tmp_path_factory.mktemp("firmware"))


@cache
def cells(way: str, firmware: Path) -> list[Cell]:
    return list(fault_grid.cells(way, firmware))


def found(one: Cell, firmware: Path, seed: int = 1) -> str | None:
    return fault_grid.played(one, firmware, seed)[0]


@pytest.mark.parametrize("way", GENERATIONS)
def test_a_move_has_these_points_and_every_fault_comes_at_each(way: str, firmware: Path) -> None:
    assert [(one.point, one.fault) for one in cells(way, firmware)] == [
        (point, fault) for point in points(way) for fault in fault_grid.faults_of(way)
    ]
    assert all(one.from_ns < one.to_ns for one in cells(way, firmware))


@pytest.mark.parametrize("fault", fault_grid.faults_of("PLAIN"))
def test_whatever_happens_wherever_a_plain_vm_is_whole_and_in_one_place(fault: str, firmware: Path) -> None:
    for one in cells("PLAIN", firmware):
        if one.fault == fault:
            assert found(one, firmware) is None, one


@pytest.mark.parametrize("way", [way for way in GENERATIONS if way != "PLAIN"])
def test_so_is_one_that_moves_another_way(way: str, firmware: Path) -> None:
    """Each fault once, each at another point; ``sevfleet bench faults`` has all of them at all."""
    every = cells(way, firmware)
    there = len(fault_grid.faults_of(way))
    for number in range(0, there, 3 if way.startswith("SEV_TIO") else 1):
        one = every[number % len(points(way)) * there + number]
        assert found(one, firmware) is None, one


def test_a_control_plane_that_takes_a_decision_back_is_found(firmware: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives up a move that it has committed, because it hears nothing of the target, which has started the VM."""
    where = "nobody hears anything", "committed"
    (one,) = [one for one in cells("PLAIN", firmware) if (one.fault, one.point) == where]
    unsafe = {**hand_over.AUTHORITY, (Phase.COMMITTED, Event.FAILED): hand_over.AUTHORITY[Phase.PRE, Event.FAILED]}
    monkeypatch.setattr("cluster.live_migration.ROWS", rows_of(unsafe))
    assert "2 hosts ran it at once" in {found(one, firmware, seed) for seed in range(6)}


def wrong(fault: str, way: str, firmware: Path, point: str, seeds: int = 4) -> str:
    (one,) = [one for one in cells(way, firmware) if (one.fault, one.point) == (fault, point)]
    return " ".join(filter(None, [found(one, firmware, seed) for seed in range(seeds)]))


KILLED = "the control plane is killed while it writes"


def test_a_control_plane_that_says_what_it_has_not_written_is_found(
    firmware: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(live: LiveMigrations, one: Migration, event: Event, now_ns: int) -> bool:
        row = hand_over.AUTHORITY.get((one.phase, event))
        if row is not None:
            for command in row.told:
                TELL[command](live, one)
            if row.record is not None:
                live.record.append(one.number, row.record)
            live._enter(one, row.to, now_ns)
        return row is not None

    assert wrong(KILLED, "PLAIN", firmware, "sent") == ""
    monkeypatch.setattr(LiveMigrations, "step", step)
    assert "2 hosts ran it at once" in wrong(KILLED, "PLAIN", firmware, "sent")


def test_a_record_that_goes_on_behind_a_torn_entry_is_found(firmware: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reopened(data: bytes, _: int) -> CommitRecord:
        record = CommitRecord()
        record._data += data
        return record

    assert wrong(KILLED, "PLAIN", firmware, "committed") == ""
    monkeypatch.setattr(inner_faults, "CommitRecord", reopened)
    assert "on host-1, host-2" in wrong(KILLED, "PLAIN", firmware, "committed")


def test_a_record_that_keeps_no_room_is_found(firmware: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CommitRecord, "reserve", lambda *_: True)
    assert "RecordFullError" in wrong("the record is full", "PLAIN", firmware, "paused")


def test_a_disk_that_loses_what_it_said_it_wrote_makes_two_and_they_are_found(firmware: Path) -> None:
    """Nothing withstands that, and nothing can tell, as LIMITATIONS says: what was decided, and said, is forgotten."""
    where = "the control plane crashes", "committed"
    (one,) = [one for one in cells("PLAIN", firmware) if (one.fault, one.point) == where]

    def bring(control: ControlPlane, _: object) -> FaultyControl:
        faulty, live = FaultyControl(control), control.migrations

        def loses() -> None:
            kept, last = CommitRecord(), list(live.record.entries())
            assert last.pop().record is Record.COMMITTED
            for entry in last:
                kept.append(entry.number, entry.record)
            live.record = kept

        faulty.at(one.to_ns - 1, loses)
        return faulty

    body = fault_grid.schedule(one, firmware, 0)
    body["faults"] = [{"kind": "control-plane-crash", "at": f"{one.to_ns - 1} ns"}]
    assert judged(body)[0] is None
    assert judged(body, bring)[0] == "2 hosts ran it at once"


def test_pages_that_stay_out_when_firmware_fails_are_found(firmware: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PageSwaps, "undo", PageSwaps.end)
    assert "pages of it are gone" in wrong("the source's firmware fails", "SEV_SNP", firmware, "setup")


def test_spoilt_bytes_that_nobody_looks_at_are_found(firmware: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.arrivals.Arrivals._difference", lambda *_: None)
    monkeypatch.setattr("node.migration_frames._checksum", lambda *_: bytes(4))
    assert wrong("a bit flips on the way", "PLAIN", firmware, "later rounds") != ""


@pytest.mark.parametrize("way", GENERATIONS)
def test_each_fault_and_each_kind_of_schedule_has_its_turn_to_be_played_twice(way: str) -> None:
    assert gcd(faults.TWICE, len(fault_grid.faults_of(way))) == 1
    modes = [faults.schedule(seed, "PLAIN", Path())["migration"].get("mode") for seed in range(0, 60, faults.TWICE)]
    assert set(modes) == {None, "post-copy"}
