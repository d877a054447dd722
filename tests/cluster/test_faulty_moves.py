"""Moves while hosts and the control plane crash, links break and messages go astray: a VM is whole, in one place.

Every schedule follows from its number: 200 are played here, two thousand by ``sevfleet bench faults``. The oracle
looks from outside at every host after every window, and some are played again without windows. The store in the VM
checks each record against what it wrote, so an old copy or a lost page would end it.
"""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cluster.bench import faults
from cluster.bench.fault_pairs import played, smallest
from cluster.bench.fault_verdict import judged
from cluster.entity import ControlPlane, Message
from cluster.migration import Outcome
from cluster.together import Stretch, Together


@pytest.fixture(scope="module")
def firmware(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return faults.small_firmware(tmp_path_factory.mktemp("firmware"))


@pytest.mark.parametrize("generation", faults.GENERATIONS)
@pytest.mark.parametrize("first", range(0, 50, 10))
def test_whatever_goes_wrong_a_vm_is_whole_and_in_one_place(first: int, generation: str, firmware: Path) -> None:
    for seed in range(first, first + 10):
        one = faults.whole_schedule(seed, generation, firmware)
        wrong, moves = played(one, twice=seed % faults.TWICE == 0)
        assert wrong is None, f"seed {seed}: {wrong}; smallest: {smallest(one)}"
        assert moves


@pytest.mark.parametrize(
    ("seed", "generation"), [(93, "SEV"), (119, "SEV"), (276, "SEV"), (5107, "SEV_ES"), (3522, "PLAIN")]
)
def test_schedules_that_once_went_wrong_go_right(seed: int, generation: str, firmware: Path) -> None:
    """A place that was never filled and is to be started, keys asked for twice, a place kept under two moves.

    And a VM said to be lost, for it had left before its source was told again to keep it after an older move. And
    one that was to go on after a move that was over, at a source that crashed before it heard so.
    """
    assert judged(faults.schedule(seed, generation, firmware))[0] is None


@pytest.mark.parametrize(
    ("seed", "way"),
    [(1, "SEV_TIO"), (0, "SEV_SNP by its handler"), (0, "SEV_SNP"), (3, "SEV_ES"), (2, "SEV"), (2, "PLAIN")],
)
def test_hosts_keep_what_they_promise_wherever_they_are_interrupted(
    seed: int, way: str, firmware: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that is busy a call ends after any event: what is about to be said has to be promised there too."""
    monkeypatch.setattr("cluster.slices.SLICE_EVENTS", 1)
    monkeypatch.setattr("cluster.together.CALL_S", 0.0)
    assert judged(faults.schedule(seed, way, firmware), twice=True)[0] is None


class Late(Together):
    """Has the control plane's mail come a nanosecond later than it was meant."""

    def go_on(self, control: ControlPlane, acts_ns: int, *, until_acted: bool = False) -> Stretch:
        def step(now_ns: int, messages: Sequence[Message]) -> tuple[Sequence[Message], int]:
            mail, next_ns = control.step(now_ns, messages)
            return [one._replace(time_ns=one.time_ns + 1) for one in mail], next_ns

        late = cast(ControlPlane, SimpleNamespace(step=step, next_event_ns=control.next_event_ns))
        return super().go_on(late, acts_ns, until_acted=until_acted)


def test_what_hosts_tell_otherwise_where_nobody_watches_is_found(
    firmware: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = faults.schedule(0, "PLAIN", firmware)
    assert judged(body, twice=True)[0] is None
    monkeypatch.setattr("cluster.shard.Together", Late)
    assert judged(body)[0] is None
    wrong, _ = judged(body, twice=True)
    assert wrong is not None
    assert wrong.startswith("otherwise without windows: ")
    assert "digests" in wrong


def at(body: dict[str, Any], *plans: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**body, "faults": list(plans), "migrations": [{"vm": "vm", "at": "1 s", "to": "host-2"}], **changes}


@pytest.mark.parametrize(
    ("plan", "outcome"),
    [
        ({"kind": "host-crash", "host": "host-1", "at": "1030 ms"}, Outcome.LOST),
        ({"kind": "host-crash", "host": "host-2", "at": "1030 ms"}, Outcome.TARGET_LOST),
        ({"kind": "control-plane-crash", "at": "1030 ms"}, Outcome.RESTARTED),
        ({"kind": "messages", "host": "host-2", "at": "1 s", "lasts": "500 ms", "lost": 1.0}, Outcome.TIMED_OUT),
        ({"kind": "messages", "host": "host-1", "at": "1 s", "lasts": "90 ms", "lost": 1.0}, Outcome.COMPLETED),
        ({"kind": "messages", "at": "1 s", "lasts": "500 ms", "repeated": 1.0, "late": "9 ms"}, Outcome.COMPLETED),
    ],
)
def test_a_move_ends_with_the_reason_of_its_fault(plan: dict[str, Any], outcome: Outcome, firmware: Path) -> None:
    wrong, (one,) = judged(at(faults.schedule(0, "PLAIN", firmware), plan))
    assert (wrong, one.outcome) == (None, outcome)


def test_a_vm_whose_source_crashes_after_all_of_it_is_over_lives_at_the_target(firmware: Path) -> None:
    """At every instant of the switch-over: it is lost with the source before, and runs at the target after that."""
    found = []
    for time_us in range(1_060_000, 1_096_000, 5000):
        crash = {"kind": "host-crash", "host": "host-1", "at": f"{time_us} us"}
        wrong, (one,) = judged(at(faults.schedule(0, "PLAIN", firmware), crash, duration="2 s"))
        assert wrong is None
        found.append(one.outcome)
    turn = found.index(Outcome.COMPLETED)
    assert set(found[:turn]) == {Outcome.LOST}
    assert set(found[turn:]) == {Outcome.COMPLETED}


def test_a_vm_whose_source_crashes_as_it_begins_to_run_ahead_is_lost_and_its_move_ends(firmware: Path) -> None:
    """At every instant of the switch-over: nobody waits for pages of a host that has none any more."""
    found = []
    for time_us in range(1_004_000, 1_040_000, 2000):
        crash = {"kind": "host-crash", "host": "host-1", "at": f"{time_us} us"}
        wrong, (one,) = judged(at(faults.schedule(4, "PLAIN", firmware), crash, duration="3 s"))
        assert wrong is None
        found.append(one.outcome)
    assert set(found) == {Outcome.LOST}


@pytest.mark.parametrize("way", ["PLAIN", "SEV"])
def test_a_newer_move_tells_a_host_that_the_older_one_is_over(way: str, firmware: Path) -> None:
    """It has not heard so: what was said is lost, and is to be said again later than the new one begins."""
    deaf = [
        {"kind": "messages", "host": host, "at": "1009 ms", "lasts": "31 ms", "direction": "to", "lost": 1.0}
        for host in ("host-1", "host-2")
    ]
    moves = [
        {"vm": "vm", "at": "1 s", "to": "host-2", "cancel_after": "10 ms"},
        {"vm": "vm", "at": "1042 ms", "to": "host-2"},
    ]
    wrong, (first, second) = judged(at(faults.schedule(0, way, firmware), *deaf) | {"migrations": moves})
    assert (wrong, first.outcome, second.outcome) == (None, Outcome.CANCELLED, Outcome.COMPLETED)


def test_a_vm_that_is_being_laid_down_when_its_source_and_the_control_plane_crash_lives_at_the_target(
    firmware: Path,
) -> None:
    """Told to start it before all of it lies there, the target says that it is at it, and has not lost it."""
    for time_us in range(1_066_000, 1_078_000, 3000):
        crashes = [
            {"kind": "host-crash", "host": "host-1", "at": f"{time_us - 1500} us"},
            {"kind": "control-plane-crash", "at": f"{time_us} us"},
        ]
        wrong, (one,) = judged(at(faults.schedule(0, "PLAIN", firmware), *crashes, duration="2 s"))
        assert (wrong, one.outcome) == (None, Outcome.COMPLETED)


@pytest.mark.parametrize("way", ["SEV", "SEV_SNP"])
def test_a_target_that_crashed_as_it_copied_copies_what_comes_next(way: str, firmware: Path) -> None:
    """What it was asked for before is forgotten with the rest."""
    crash = {"kind": "host-crash", "host": "host-2", "at": "1300 ms"}
    moves = [{"vm": "vm", "at": at_s, "to": "host-2"} for at_s in ("1 s", "2 s")]
    wrong, (first, second) = judged(at(faults.schedule(0, way, firmware), crash) | {"migrations": moves})
    assert (wrong, first.outcome, second.outcome) == (None, Outcome.TARGET_LOST, Outcome.COMPLETED)
