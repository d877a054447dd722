"""A host that is emptied: who is coming or going already counts, and nobody comes after it who was not sent there."""

from collections.abc import Mapping
from typing import Any

from test_live_migration import group, move, outcomes, play, scenario, small_image, vm_row

__all__ = ["small_image"]  # a fixture

LEAVES = [move(at="5 s", to="host-2")]


def drained(result: str, body: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """The drain's row, after a look at its result, and all rows."""
    _, rows = play(body)
    (drain,) = rows["drains"]
    assert drain["result"] == result
    return drain, rows


def test_a_vm_that_is_on_its_way_out_already_is_waited_for() -> None:
    drain, rows = drained("complete", scenario(migrations=LEAVES, drains=[{"host": "host-1", "at": "5500 ms"}]))
    assert outcomes(rows) == [("completed", None)]
    assert drain["ended_ns"] == rows["migrations"][0]["ended_ns"]


def test_one_whose_move_fails_is_moved_by_the_drain() -> None:
    leaves = [{**LEAVES[0], "cancel_after": "600 ms"}]
    _, rows = drained("complete", scenario(migrations=leaves, drains=[{"host": "host-1", "at": "5500 ms"}]))
    assert outcomes(rows) == [("cancelled", "on request"), ("completed", None)]
    assert vm_row(rows)["host"] == "host-2"


def test_one_that_is_coming_is_moved_on_when_it_is_there() -> None:
    drain, rows = drained("complete", scenario(migrations=LEAVES, drains=[{"host": "host-2", "at": "5500 ms"}]))
    assert [(row["destination"], row["outcome"]) for row in rows["migrations"]] == [
        ("host-2", "completed"), ("host-1", "completed"),
    ]  # fmt: skip
    assert drain["ended_ns"] == rows["migrations"][1]["ended_ns"]


def test_one_that_never_comes_keeps_no_drain_waiting() -> None:
    comes = [{**LEAVES[0], "cancel_after": "600 ms"}]
    drain, rows = drained("complete", scenario(migrations=comes, drains=[{"host": "host-2", "at": "5500 ms"}]))
    assert outcomes(rows) == [("cancelled", "on request")]
    assert drain["ended_ns"] == rows["migrations"][0]["ended_ns"]


def test_two_drains_of_one_host_are_both_complete() -> None:
    _, rows = play(scenario(drains=[{"host": "host-1", "at": "5 s"}, {"host": "host-1", "at": "5500 ms"}]))
    assert [row["result"] for row in rows["drains"]] == ["complete", "complete"]


def test_nobody_is_placed_on_an_emptied_host_but_who_names_it() -> None:
    late = {"start": "launch", "arrival": "20 s"}
    anywhere = {name: value for name, value in group("anywhere", **late).items() if name != "host"}
    body = scenario(
        vms=[group("vm"), anywhere, group("pinned", **late)], drains=[{"host": "host-1", "at": "5 s"}],
        migrations=[move(at="15 s")],
    )  # fmt: skip
    _, rows = drained("complete", body)
    assert {row["vm"]: row["host"] for row in rows["vms"]} == {
        "vm": "host-3", "anywhere": "host-2", "pinned": "host-1",
    }  # fmt: skip
