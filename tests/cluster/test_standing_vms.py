"""A VM that is handed over has one row, at whatever moment a run ends, and it is of the host that runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.bench.faults import small_firmware
from cluster.bench.moving_machines import VM, WAYS, moving
from cluster.coordinator import Coordinator
from cluster.fleet import build_fleet
from cluster.hand_over import Phase
from cluster.host_entity import HostEntity, HostOrder
from cluster.inline_layout import InlineLayout
from cluster.layout import Row, Rows, merged_rows
from cluster.migration import Migration, Outcome
from cluster.scenario import Scenario
from cluster.shard import ShardReport
from cluster.shard_worker import Mail, _gathered
from cluster.standing_vms import STANDING, settle
from cluster.tables import EVENTS, TABLES, build_tables
from node.event_log import ChainEnd, EventLog
from node.guest import GuestState


@pytest.fixture(scope="module")
def firmware(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_firmware(tmp_path_factory.mktemp("firmware"))

_MOVE = {"vm": VM, "at": "1 s", "to": "host-2"}
_QUICK = {"psp.send_update_ns_per_kib": 1024, "psp.receive_update_ns_per_kib": 1024}


class Watched(InlineLayout):
    """Looks, each time that the hosts have gone on, at the rows that there would be if the run ended."""

    def __init__(self) -> None:
        super().__init__()
        self.entities: list[HostEntity] = []
        self.seen: dict[tuple[str, ...], None] = {}
        self.apart = 0

    def build(self, order: bytes) -> HostEntity:
        entity = HostEntity(HostOrder.parse(order))
        self.entities.append(entity)
        return entity

    def together(self, lookahead_ns: int, end_ns: int) -> None:
        """None: it would not see that."""

    def advance(self, horizon_ns: int, mail: Mail, event_budget: int) -> ShardReport:
        report = super().advance(horizon_ns, mail, event_budget)
        of_each = {entity.name: entity.guests_rows() for entity in self.entities}
        self.apart += sum(STANDING in rows for rows in of_each.values())
        rows = merged_rows(of_each)
        running = [one.name for one in self.entities if one.host.guests.get(VM) and runs(one)]
        assert [row["vm"] for row in rows["vms"]] == [VM]
        for name in ("vm_time", "vm_rows", "phases", "disks", "svsms"):
            keys = [tuple(row[key] for key in TABLES[name].keys) for row in rows.get(name, [])]
            assert len(keys) == len(set(keys))
        if running:
            assert [row["host"] for row in rows["vms"]] == running
        self.seen[tuple(str(row["host"]) for row in rows["vms"])] = None
        return report


def runs(entity: HostEntity) -> bool:
    return entity.host.guests[VM].state is GuestState.RUNNING


def play(
    way: str, firmware: Path, migration: dict[str, str] | None = None, duration_ns: int = 3 * 10**9,
    crashes: tuple[tuple[str, int], ...] = (), moves: tuple[dict[str, str], ...] = (_MOVE,),
) -> tuple[Watched, Migration]:
    body = moving(way, firmware) | {"migration": migration or {}, "duration": f"{duration_ns} ns"}
    body |= {"schema": 1, "name": "cut", "seed": 1}
    body["costs"] = body["costs"] | _QUICK
    body["migrations"] = list(moves)
    body["faults"] = [{"kind": "host-crash", "host": host, "at": f"{at_ns} ns"} for host, at_ns in crashes]
    scenario = Scenario.parse(body)
    fleet, layout = build_fleet(scenario), Watched()
    layout.start(layout.build, [(order.spec.name, order.pack()) for order in fleet.orders])
    Coordinator(layout, fleet.control, scenario.control_plane_latency, scenario.duration).run()
    return layout, fleet.control.migrations.all[-1]


@pytest.mark.parametrize(("way", "mode"), [*[(way, "pre-copy") for way in WAYS], ("PLAIN", "post-copy")])
def test_whenever_a_run_ends_a_vm_that_moves_has_one_row(way: str, mode: str, firmware: Path) -> None:
    layout, move = play(way, firmware, {"mode": mode})
    assert move.outcome is Outcome.COMPLETED
    assert Phase.COMMITTED in dict(move.history)
    assert list(layout.seen) == [("host-1",), ("host-2",)]
    assert layout.apart


def test_rows_are_the_same_where_each_host_s_were_gathered_by_a_worker_of_its_own(firmware: Path) -> None:
    """Half a latency after the commit point: it stands still at its source, and nobody else has rows of it."""
    committed_ns = dict(play("PLAIN", firmware)[1].history)[Phase.COMMITTED]
    found = []
    for workers in (False, True):
        end_ns = committed_ns + 500_000
        layout, _ = play("PLAIN", firmware, duration_ns=end_ns)
        of_each = {entity.name: entity.collect(end_ns) for entity in layout.entities}
        assert STANDING in of_each["host-1"]
        if workers:
            of_each = {name: dict(_gathered({name: rows})[name]) for name, rows in of_each.items()}
        rows = merged_rows(of_each)
        rows.pop(EVENTS.name, None)
        found.append(build_tables(rows))
    assert found[0] == found[1]
    assert found[0]["vms"]["host"].to_pylist() == ["host-1"]
    assert found[0]["vm_time"].num_rows > 0


@pytest.mark.parametrize(
    ("way", "crashing"), [("PLAIN", ("host-1",)), ("PLAIN", ("host-1", "host-2")), ("SEV_ES", ("host-1",))]
)
def test_a_vm_whose_books_were_on_their_way_when_its_source_crashed_has_one_row_with_its_fate(
    way: str, crashing: tuple[str, ...], firmware: Path
) -> None:
    end_ns = 1_500_000_000
    phases = dict(play(way, firmware, duration_ns=end_ns)[1].history)
    stopped_ns, committed_ns = phases[Phase.STOPPED], phases[Phase.COMMITTED]
    fates = {}
    # A fault is told to its host a latency later. The target waits for the word when it has all.
    for at_ns in (stopped_ns - 500_000, (stopped_ns + committed_ns) // 2, committed_ns, committed_ns + 3_000_000):
        layout, _ = play(way, firmware, duration_ns=end_ns, crashes=tuple([(host, at_ns) for host in crashing]))
        rows = merged_rows({entity.name: entity.collect(end_ns) for entity in layout.entities})
        (vm,) = rows["vms"]
        runs_now = [entity.name for entity in layout.entities if entity.host.guests.get(VM) and runs(entity)]
        assert runs_now == ([vm["host"]] if vm["state"] == "running" else [])
        fates[at_ns] = vm["state"], vm["reason"]
        assert vm["operations"] > 0
        assert vm["units_of_work"] > 0
        assert sum(host["operations"] for host in rows["hosts"]) >= vm["operations"]
        keys = [(one["entity"], one["bucket"]) for one in rows["digests"]]
        assert len(keys) == len(set(keys))
    assert fates[stopped_ns - 500_000] == ("ended", "host crashed")
    assert set(fates.values()) <= {("ended", "host crashed"), ("running", None)}
    assert (("running", None) in fates.values()) == (len(crashing) == 1)


def test_one_that_comes_back_to_a_host_that_crashed_behind_it_and_whose_other_then_crashes_has_one_row(
    firmware: Path,
) -> None:
    """From host-1, which crashes when the target has all of it, and back, where the other does the same."""
    there, back = {"vm": VM, "at": "1 s", "to": "host-2"}, {"vm": VM, "at": "2 s", "to": "host-1"}
    _, move = play("PLAIN", firmware, moves=(there,))
    crashes = (("host-1", dict(move.history)[Phase.COMMITTED]),)
    _, move = play("PLAIN", firmware, crashes=crashes, moves=(there, back))
    assert move.outcome is Outcome.COMPLETED
    crashes += (("host-2", dict(move.history)[Phase.COMMITTED]),)
    layout, move = play("PLAIN", firmware, crashes=crashes, moves=(there, back))
    assert move.outcome is Outcome.COMPLETED
    rows = merged_rows({entity.name: entity.collect(3 * 10**9) for entity in layout.entities})
    assert [(row["host"], row["state"]) for row in rows["vms"]] == [("host-1", "running")]
    keys = [(one["entity"], one["bucket"]) for one in rows["digests"]]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("way", ["PLAIN", "SEV_ES"])
def test_a_run_that_ends_with_a_vm_between_two_hosts_has_its_chain_to_the_end(
    way: str, firmware: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with what the target goes on from in a run that goes on."""
    entered: list[ChainEnd] = []
    go_on = EventLog.enter
    monkeypatch.setattr(EventLog, "enter", lambda log, vm, end: (entered.append(end), go_on(log, vm, end))[1])
    phases = dict(play(way, firmware, duration_ns=1_500_000_000)[1].history)
    ((bucket, records, digest),) = entered
    assert records > 0
    for end_ns in (phases[Phase.STOPPED] + 500_000, phases[Phase.COMMITTED] + 500_000):
        layout, _ = play(way, firmware, duration_ns=end_ns)
        rows = merged_rows({entity.name: entity.collect(end_ns) for entity in layout.entities})
        last = [one for one in rows["digests"] if one["entity"] == VM and one["bucket"] == bucket]
        assert [(one["records"], one["digest"]) for one in last] == [(records, digest.hex())]
    assert len(entered) == 1


def row(host: str) -> Row:
    return {"vm": VM, "host": host}


def standing(host: str, move: int) -> Row:
    return {"vm": VM, "move": move, "rows": {"vms": [row(host)], "phases": [row(host)]}}


@pytest.mark.parametrize("moves", [(3, 4), (4, 3)])
def test_where_it_stands_still_on_several_hosts_and_runs_on_none_it_is_at_that_of_the_newest_move(
    moves: tuple[int, int],
) -> None:
    tables: Rows = {"vms": [{"vm": "other", "host": "c"}], STANDING: [standing("a", moves[0]), standing("b", moves[1])]}
    settle(tables)
    newest = row("ab"[moves.index(4)])
    assert tables == {"vms": [{"vm": "other", "host": "c"}, newest], "phases": [newest]}


def test_where_another_host_has_rows_of_it_all_that_stand_apart_are_left_out() -> None:
    tables: Rows = {"vms": [row("c")], STANDING: [standing("a", 1), standing("b", 2)]}
    settle(tables)
    assert tables == {"vms": [row("c")]}
