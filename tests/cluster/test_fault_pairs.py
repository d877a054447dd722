"""Two faults at once that no scenario has a word for: the VM is whole and in one place, or says who lost it."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cluster.bench import fault_grid, fault_pairs, fault_verdict, faults, inner_faults
from cluster.bench.fault_pairs import Schedule, Timed, drawn, played, smallest
from cluster.bench.inner_faults import INNER_FAULTS
from cluster.bench.moving_machines import WAYS
from cluster.commit_record import CommitRecord
from cluster.layout import Rows
from cluster.migration import Migration, MigrationOrder, Outcome


@pytest.fixture(scope="module")
def firmware(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return faults.small_firmware(tmp_path_factory.mktemp("firmware"))


@pytest.mark.parametrize("way", WAYS)
def test_a_way_to_move_has_pairs_of_all_that_it_has_and_a_seed_always_the_same(way: str) -> None:
    pairs = [drawn(seed, way) for seed in range(300)]
    assert pairs == [drawn(seed, way) for seed in range(300)]
    there = Counter(timed.fault for pair in pairs for timed in pair)
    assert set(there) == {name for name, one in INNER_FAULTS.items() if one.has_it(way)}
    assert {len({timed.fault for timed in pair}) for pair in pairs} == {0, 2}
    assert 0.3 < sum(map(bool, pairs)) / len(pairs) < 0.5


@pytest.mark.parametrize("way", [
    "SEV_SNP", "SEV_SNP above an SVSM", "SEV_SNP by its handler", "SEV_SNP by its handler and agents", "SEV_TIO",
    "SEV_TIO by its handler",
])  # fmt: skip
def test_whatever_comes_at_once_a_vm_is_whole_and_in_one_place(way: str, firmware: Path) -> None:
    """``sevfleet bench faults`` has them all; those of PLAIN, SEV and SEV-ES are among the 200 schedules of tests.

    The first of each way is played without windows as well.
    """
    for number, seed in enumerate([one for one in range(60) if drawn(one, way)][:4]):
        one = faults.whole_schedule(seed, way, firmware)
        wrong, moves = played(one, twice=number == 0)
        assert wrong is None, f"seed {seed}: {wrong}; smallest: {smallest(one)}"
        assert moves


def at_once(seed: int, way: str, firmware: Path, *inner: Timed) -> Schedule:
    return Schedule(faults.schedule(seed, way, firmware), inner)


FULL_AND_DOWN = "the record is full and the control plane crashes"
KILLED = "the control plane is killed while it writes"
AGENT_GONE = "the source's agent begins anew"
FAILS = "the source's firmware fails"


@pytest.mark.parametrize(
    ("seed", "way", "inner"),
    [
        (157, "SEV_SNP", (Timed(FAILS, 1299068000), Timed("the source's agent says nothing any more", 1574990000))),
        (257, "SEV_SNP", (Timed(FAILS, 1769690000), Timed("a bit flips on the way", 1666033000))),
        (42, "SEV_SNP", (Timed("the target's firmware fails", 1586263000), Timed(FAILS, 1237442000))),
        (159, "SEV_SNP", (Timed(KILLED, 1130880000), Timed(FULL_AND_DOWN, 1604520000))),
        (117, "SEV_SNP by its handler", (Timed(FULL_AND_DOWN, 1653697000), Timed(KILLED, 1015663000))),
        (317, "SEV_SNP above an SVSM", (Timed("nothing goes out of the source", 1048390000), Timed(FAILS, 1186266000))),
    ],
)  # fmt: skip
def test_schedules_that_once_went_wrong_go_right(
    seed: int, way: str, inner: tuple[Timed, ...], firmware: Path
) -> None:
    """Pages that nobody took back of a guest that does not come in again; an agent whose firmware failed once and that
    never had an answer again; a record that was read anew and kept no room for what was under way; a row of pages that
    stayed out and gave its command another name than a page did.
    """
    assert played(at_once(seed, way, firmware, *inner))[0] is None


def test_whose_context_an_agent_alone_had_ends_and_says_so_and_nobody_else_may(firmware: Path) -> None:
    lost = at_once(0, "SEV_SNP", firmware, Timed(AGENT_GONE, 1282576000), Timed("the record is full", 1619608000))
    assert played(lost)[0] is None
    nobody: dict[str, Any] = {name: one._replace(ends=()) for name, one in INNER_FAULTS.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fault_pairs, "INNER_FAULTS", nobody)
        wrong, _ = played(lost)
    assert wrong is not None
    assert wrong.endswith("nowhere, and no host crashed that had it: migration agent: nothing of this guest is kept")


def test_a_handler_does_not_begin_anew_in_a_vm_whose_key_is_not_there(firmware: Path) -> None:
    """At a place whose pages are validated, and whose ASID has no key."""
    one = faults.whole_schedule(306, "SEV_TIO by its handler", firmware)
    assert [timed.fault for timed in one.inner] == ["the target's handler begins anew", "the target's firmware fails"]
    assert played(one)[0] is None


@pytest.mark.parametrize(("started_ns", "outcome", "is_right"), [
    (5, Outcome.TIMED_OUT, True), (5, Outcome.UNFINISHED, True), (-1, Outcome.NO_ROOM, False),
    (5, Outcome.COMPLETED, False),
])  # fmt: skip
def test_who_alone_had_a_vm_has_not_lost_it_before_a_move_began_or_after_one_that_came_to_its_end(
    started_ns: int, outcome: Outcome, is_right: bool
) -> None:
    one = Migration(0, MigrationOrder("vm"), 0)
    one.started_ns, one.outcome, one.reason = started_ns, outcome, "of a test"
    rows: Rows = {"vms": [{"vm": "vm", "reason": "migration agent: nothing of this guest is kept"}]}
    wrong = fault_verdict._wrong(fault_verdict._Watched(), rows, [one], ("migration agent: ",))
    assert (wrong is None) is is_right, wrong
    assert fault_verdict._wrong(fault_verdict._Watched(), rows, [], ("migration agent: ",)) is not None
    assert fault_verdict._wrong(fault_verdict._Watched(), rows, [one], ("another",)) is not None


def test_a_record_that_is_read_anew_and_keeps_no_room_is_found_and_the_schedule_made_smaller(
    firmware: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = at_once(117, "SEV_SNP by its handler", firmware, Timed(FULL_AND_DOWN, 1653697000), Timed(KILLED, 1015663000))
    monkeypatch.setattr(inner_faults, "CommitRecord", lambda data, _: CommitRecord(data))
    assert "RecordFullError" in str(played(one)[0])
    found = smallest(one)
    assert found["faults"] == []
    assert [name for name, _ in found["at once"]] == [FULL_AND_DOWN, KILLED]


def test_what_a_schedule_fails_without_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def judged(body: dict[str, Any], *_: Any, twice: bool, **__: Any) -> tuple[str | None, list[Any]]:
        assert twice
        return "wrong" if 2 in body["faults"] and 8 in body["migrations"] else None, []

    monkeypatch.setattr(fault_pairs, "judged", judged)
    body = {"seed": 3, "faults": [1, 2, 3], "migrations": [7, 8], "migration": {}}
    whole = Schedule(body, (Timed("a bit flips on the way", 5), Timed("nothing goes out of the source", 6)))
    assert smallest(whole) == {"seed": 3, "faults": [2], "migrations": [8]}


@pytest.mark.parametrize("way", ["SEV_SNP by its handler", "SEV_SNP by its handler and agents"])
def test_a_vm_whose_handler_begins_anew_stays_and_moves_when_it_is_asked_again(way: str, firmware: Path) -> None:
    where = next(one for one in fault_grid.cells(way, firmware) if one.point == "first round")
    body = fault_grid.schedule(where, firmware, 1) | {"faults": []}
    again = {"vm": "vm", "at": "3 s", "to": "host-2"}
    inner = Timed("the source's handler begins anew", (where.from_ns + where.to_ns) // 2)
    wrong, moves = played(Schedule(body | {"migrations": [body["migrations"][0], again]}, (inner,)))
    assert wrong is None
    assert [one.outcome for one in moves] == [Outcome.REFUSED, Outcome.COMPLETED]
    assert moves[0].reason
