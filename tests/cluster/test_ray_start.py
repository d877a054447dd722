"""What Ray's processes are started with: where it has changed in what is reached into, it is left alone."""

from types import SimpleNamespace

import pytest

from cluster import ray_start

COMMAND = ["raylet", "--session_dir=there", "--node_id=one", "--other"]
NAMES = {name: name.lower() for name in ray_start._PORTS}


def compiled(**changes):
    """Ray's compiled part, as far as it is reached into, and what it was told to write down."""
    told = []
    found = NAMES | {"persist_port": lambda *of: told.append(of)} | changes
    return SimpleNamespace(**{name: what for name, what in found.items() if what is not None}), told


def test_a_raylet_is_told_that_none_of_its_agents_listens():
    ray, told = compiled()
    assert ray_start._nobody_listens(ray, COMMAND)
    assert told == [("there", "one", name, -1) for name in NAMES.values()]


@pytest.mark.parametrize("missing", [*NAMES, "persist_port"])
def test_a_ray_that_cannot_be_told_so_is_told_nothing(missing):
    ray, told = compiled(**{missing: None})
    assert not ray_start._nobody_listens(ray, COMMAND)
    assert told == []


@pytest.mark.parametrize("missing", [1, 2])
def test_a_raylet_that_does_not_say_where_its_files_are_or_who_it_is_keeps_its_agents(missing):
    ray, told = compiled()
    assert not ray_start._nobody_listens(ray, [one for number, one in enumerate(COMMAND) if number != missing])
    assert told == []
