"""The collector of a process that holds a fleet: it leaves the fleet alone, and is as it was afterwards."""

import gc
from collections.abc import Iterator

import pytest
from toy_hosts import Toy, build_toy

from cluster import inline_layout
from cluster.fleet_garbage import collect_fleet, growing_fleet, spare_fleet


@pytest.fixture(scope="module", autouse=True)
def aside() -> Iterator[None]:
    """As usual before, whatever fleets of other tests are spared; modules and tests are left out again afterwards."""
    collect_fleet()
    yield
    gc.freeze()


def test_a_fleet_is_spared_while_it_lives_and_the_collector_is_as_usual_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inline_layout, "collect_fleet", collect_fleet)
    usual = gc.get_threshold()
    layout = inline_layout.InlineLayout()
    toy = Toy("one")
    layout.start(build_toy, [(toy.name, toy.pack())])
    assert gc.get_freeze_count() > 0
    assert gc.get_threshold()[0] > usual[0]
    layout.close()
    assert (gc.get_freeze_count(), gc.get_threshold()) == (0, usual)


def test_circles_that_a_run_leaves_behind_are_gone_once_its_fleet_is() -> None:
    class Circle:
        alive = 0

        def __init__(self) -> None:
            self.me = self
            Circle.alive += 1

        def __del__(self) -> None:
            Circle.alive -= 1

    spare_fleet()
    Circle()
    assert Circle.alive == 1
    collect_fleet()
    assert Circle.alive == 0


def test_nothing_is_looked_for_while_a_fleet_is_built_and_all_of_it_is_spared_then() -> None:
    with growing_fleet():
        assert not gc.isenabled()
        fleet = [[] for _ in range(100)]
    assert gc.isenabled()
    assert gc.get_freeze_count() > len(fleet)
    collect_fleet()
    with pytest.raises(KeyError), growing_fleet():
        raise KeyError
    assert gc.isenabled()
    collect_fleet()
