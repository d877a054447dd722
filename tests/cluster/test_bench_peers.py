"""The star of migrations beside SimGrid's: another simulator, another language, the same virtual times."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from cluster.bench import peers
from cluster.bench.migrations import MOVES, VMS_PER_HOST, Timed, fleet, migrate
from cluster.errors import ToolError
from cluster.figure import Figure
from cluster.scenario import Scenario
from node.laboratory_firmware import build_image
from psp.system_bus import PAGE_BYTES

HOSTS = 12


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    firmware = tmp_path_factory.mktemp("firmware") / "laboratory.fd"
    firmware.write_bytes(build_image(PAGE_BYTES))
    return fleet(HOSTS, writing=False, firmware=firmware)


@pytest.fixture(scope="module")
def timed(scenario: Scenario) -> Timed:
    return migrate(scenario)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return peers.compiled(tmp_path_factory.mktemp("program"))
    except peers.NoSimGridError as error:
        pytest.skip(str(error))


def test_a_plan_has_every_pause_and_every_target(scenario: Scenario, timed: Timed) -> None:
    head, *lines = peers.plan_of(scenario, timed.moves).splitlines()
    assert head == f"{HOSTS} 1250000000 0.0005 {4 << 30} {HOSTS * VMS_PER_HOST}"
    assert len(lines) == HOSTS * VMS_PER_HOST
    for line in lines:
        _, source, count, *steps = line.split()
        assert (int(count), len(steps)) == (MOVES, 2 * MOVES)
        assert all(1 <= float(pause) < 60 for pause in steps[::2])  # as the scenario spreads them
        hosts = [int(source), *map(int, steps[1::2])]
        assert all(first != second for first, second in pairwise(hosts))


def test_both_simulators_agree_where_they_model_the_same(scenario: Scenario, timed: Timed, program: Path) -> None:
    theirs = peers.simgrid_star(program, peers.plan_of(scenario, timed.moves))
    ours = peers.sevfleet_star(timed)
    assert theirs.moved == ours.moved == MOVES * HOSTS * VMS_PER_HOST
    assert ours.disagreements(theirs) == []
    # 4 GiB over 10 Gb/s, which no share of a link makes shorter.
    assert theirs.lasted_s >= (4 << 30) / 1.25e9


def test_a_model_that_is_another_is_found_out(scenario: Scenario, timed: Timed, program: Path) -> None:
    slower = scenario.model_copy(update={"fabric": scenario.fabric.model_copy(update={"link": 1_150_000_000})})
    theirs = peers.simgrid_star(program, peers.plan_of(slower, timed.moves))
    assert any("mean length" in line for line in peers.sevfleet_star(timed).disagreements(theirs))
    assert peers.sevfleet_star(timed).disagreements(replace(peers.sevfleet_star(timed), moved=1))


def test_a_program_that_cannot_read_its_plan_is_one_line(program: Path) -> None:
    with pytest.raises(ToolError, match="bench peers: the program on SimGrid failed"):
        peers.simgrid_star(program, "3 1.25e9\n")


def test_without_simgrid_our_own_figures_remain(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "HOSTS", 2)
    monkeypatch.setattr(peers.shutil, "which", lambda _: None)
    figures: list[Figure] = list(peers.run())
    assert [figure.reference for figure in figures] == [None, None]
    assert capsys.readouterr().err.startswith("bench peers: expected a C++ compiler, found none")
