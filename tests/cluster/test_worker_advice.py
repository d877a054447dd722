"""What the first windows took says whether another number of workers would pay."""

import pytest
from test_live_migration import play, scenario, small_image

from cluster.inline_layout import InlineLayout
from cluster.worker_advice import ENOUGH_CALLS, WorkerAdvice

__all__ = ["small_image"]  # a fixture


def advised(
    workers: int, calls: list[tuple[float, tuple[float, ...]]], hosts: int = 100, cores: int = 4,
    loads: tuple[int, ...] = (),
) -> str:  # fmt: skip
    advice = WorkerAdvice(workers, hosts, cores, lambda: loads)
    for wall_s, busy_s in calls:
        advice.note(wall_s, busy_s)
    return advice.text


def test_long_windows_in_one_process_are_worth_workers() -> None:
    assert advised(0, [(0.25, (0.25,))] * 8).startswith("layout packed with 4 workers would be about 3.9 times as fast")


def test_short_windows_are_not() -> None:
    # 1 ms of work a window: two workers would save half of it and cost more to ask.
    assert advised(0, [(0.001, (0.001,))] * 1000).startswith("neither more workers nor fewer would pay")


@pytest.mark.parametrize(("windows", "text"), [
    (8, "layout packed with 4 workers would be about 3.8 times as fast"), (1, "layout packed with 4 workers"),
    (1000, "neither more workers nor fewer would pay"),
])  # fmt: skip
def test_without_windows_it_counts_how_often_workers_would_have_been_asked(windows: int, text: str) -> None:
    advice = WorkerAdvice(0, 100, 4)
    advice.hear(0.9, windows)
    assert not advice.text
    advice.hear(1.5, windows)
    assert advice.text.startswith(text)


def test_workers_that_are_mostly_waited_for_are_too_many() -> None:
    text = advised(2, [(0.003, (0.0004, 0.0004))] * 500)
    assert text.startswith("layout inline would be about 3.8 times as fast")
    assert "87% was waiting" in text


def test_work_that_lies_on_one_host_is_not_shared_by_more_workers() -> None:
    assert advised(2, [(0.25, (0.25, 0.001))] * 8).startswith("neither more workers nor fewer would pay")


@pytest.mark.parametrize("workers", [0, 1])
def test_one_process_knows_by_its_hosts_events_how_they_could_be_shared_out(workers: int) -> None:
    long = [(0.25, (0.25,))] * 8
    assert advised(workers, long, hosts=4, loads=(900, 0, 20, 0)).startswith("neither more workers nor fewer")
    # Hosts are dealt out in turn: the first and the third of them would be on one of two workers.
    text = advised(workers, long, hosts=4, cores=2, loads=(500, 100, 300, 100))
    assert text.startswith("layout packed with 2 workers would be about 1.2 times as fast")
    assert advised(workers, long, hosts=4, cores=2, loads=(0, 0, 0, 0)).startswith("layout packed with 2 workers")


def test_a_fleet_whose_machines_are_all_on_one_host_is_not_sent_to_more_workers() -> None:
    layout = InlineLayout()
    body = scenario(vms=[{**scenario()["vms"][0], "count": 4}])
    play(body, layout=layout)
    assert layout._advice is not None
    loads = layout._advice.loads()
    assert (len(loads), loads[1:]) == (3, [0, 0])
    assert loads[0] > 100


@pytest.mark.parametrize(("hosts", "cores"), [(1, 8), (8, 1)])
def test_nobody_is_sent_beyond_hosts_and_cores(hosts: int, cores: int) -> None:
    assert advised(0, [(0.25, (0.25,))] * 8, hosts, cores).startswith("neither more workers nor fewer would pay")


def test_nothing_is_said_before_enough_is_known_and_only_once() -> None:
    advice = WorkerAdvice(0, 10, 2)
    for _ in range(ENOUGH_CALLS - 1):
        advice.note(10.0, (10.0,))
        assert not advice.text
    advice.note(0.0, ())
    assert not advice.text
    advice.note(10.0, (10.0,))
    text = advice.text
    assert text
    advice.note(1000.0, (0.0,))
    assert advice.text == text
