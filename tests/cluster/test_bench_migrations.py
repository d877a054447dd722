"""The migrations benchmark on a small fleet: every move is a real one, in both cases."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from cluster.bench import migrations as bench
from cluster.errors import ToolError
from cluster.session import Session
from node.firmware_image import laboratory_image

HOSTS = 12


@pytest.fixture(scope="module")
def firmware(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("firmware") / "laboratory.fd"
    path.write_bytes(laboratory_image().data)
    return path


@pytest.mark.parametrize("writing", [False, True])
def test_every_vm_moves_five_times_with_its_bytes_one_move_per_host_at_a_time(writing: bool, firmware: Path) -> None:
    scenario = bench.fleet(HOSTS, writing=writing, firmware=firmware)
    with Session("inline", None) as session:
        results = session.run(scenario, None, None, None)
    rows = results.migrations.to_pylist()
    vms = results.vms.to_pylist()
    assert Counter(row["vm"] for row in rows) == dict.fromkeys((vm["vm"] for vm in vms), bench.MOVES)
    assert len(vms) == HOSTS * bench.VMS_PER_HOST
    assert {row["outcome"] for row in rows} == {"completed"}
    assert {(vm["state"], vm["faults"]) for vm in vms} == {("running", 0)}
    # Firmware and the program's own page are read back at the target each time.
    assert min(row["pages_checked"] for row in rows) > len(laboratory_image().data) // 4096
    assert len({row["destination"] for row in rows}) > HOSTS // 2
    for host in {row["source"] for row in rows}:
        own = [row for row in rows if host in (row["source"], row["destination"])]
        spans = sorted((row["started_ns"], row["ended_ns"]) for row in own)
        assert all(first[1] <= second[0] for first, second in pairwise(spans))
    firsts = {row["vm"]: row["ordered_ns"] for row in reversed(rows)}
    assert all(1e9 <= at_ns < 60e9 for at_ns in firsts.values())
    # 100 MB/s for the 3.4 s of the first round are 300 MB, then 20 MB, then what 30 ms of downtime take.
    assert {row["rounds"] for row in rows} == ({3} if writing else {1})


def test_a_fleet_whose_migrations_do_not_all_complete_is_no_figure(firmware: Path) -> None:
    whole = bench.fleet(2, writing=False, firmware=firmware)
    short = whole.model_copy(update={"duration": 70 * 10**9})
    with pytest.raises(ToolError, match="expected 20 completed"):
        bench.migrate(short)


def test_what_was_timed_says_what_it_did(firmware: Path) -> None:
    timed = bench.migrate(bench.fleet(4, writing=True, firmware=firmware))
    assert (timed.moved, timed.rounds) == (40, 3.0)
    # Firmware, registers and a page of the program, in frames.
    assert len(laboratory_image().data) + 2 * 4096 < timed.frame_bytes < len(laboratory_image().data) + 4 * 4096
    assert timed.run_s > 0
