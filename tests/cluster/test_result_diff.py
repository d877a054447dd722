from dataclasses import replace
from pathlib import Path

import pytest

from cluster.cli import main
from cluster.result_diff import CellDifference, FirstBucket, difference, first_bucket
from cluster.results import Results
from cluster.scenario import Scenario
from cluster.tables import Row
from cluster.versions import versions


def host(name: str, events: int = 5) -> Row:
    numbers = (
        "threads vcpus_peak memory_bytes memory_peak_bytes rmp_bytes resident_bytes asids_sev asids_sev_peak "
        "asids_es_snp asids_es_snp_peak vms core_mean_ratio bandwidth_mean_ratio psp_busy_ns psp_wait_ns "
        "psp_longest_wait_ns bytes_encrypted bytes_decrypted operations phase_completions"
    )
    words = {"host": name, "product": "Milan", "limit": "", "limit_ratio": 0.0, "events": events}
    return words | dict.fromkeys(numbers.split(), 0)


def bucket(entity: str, number: int, digest: str) -> Row:
    return {"entity": entity, "bucket": number, "start_ns": number * 10**9, "records": 1, "digest": digest}


def results(scenario: Scenario, hosts: list[Row], digests: list[Row]) -> Results:
    return Results.of_rows(scenario, {"hosts": hosts, "digests": digests})


@pytest.fixture
def left(quiet_scenario: Scenario) -> Results:
    digests = [bucket("a", 0, "11"), bucket("a", 1, "12"), bucket("b", 0, "21"), bucket("b", 1, "22")]
    return results(quiet_scenario, [host("a"), host("b")], digests)


@pytest.fixture
def right(quiet_scenario: Scenario) -> Results:
    digests = [bucket("a", 0, "11"), bucket("a", 1, "12"), bucket("b", 0, "21"), bucket("b", 1, "xx")]
    return results(quiet_scenario.with_seed(2), [host("b", events=6), host("c"), host("a")], digests)


def test_equal_runs_have_no_difference_whatever_their_scenarios_are_called(left: Results) -> None:
    other = Results(left.scenario.with_seed(2), left.tables)
    found = difference(left, other)
    assert found.same
    assert found.scenario_fields == ("seed",)
    assert (found.first_bucket, found.cells) == (None, ())


def test_runs_part_at_the_first_bucket_and_entity_whose_digests_differ(left: Results, right: Results) -> None:
    assert difference(left, right).first_bucket == FirstBucket(1, 10**9, ("b",))


def test_a_part_of_a_run_parts_from_another_where_what_is_left_of_it_does(
    quiet_scenario: Scenario, right: Results
) -> None:
    part, whole = results(quiet_scenario, [], [bucket("b", 0, "21"), bucket("b", 1, "22")]), right.digests
    assert first_bucket(part.digests, whole, 1, left_is_whole=False) is None
    assert first_bucket(part.digests, whole, left_is_whole=False) == FirstBucket(1, 10**9, ("b",))
    assert first_bucket(part.digests, whole) == FirstBucket(0, 0, ("a",))


def test_a_bucket_that_only_one_run_has_is_a_difference(quiet_scenario: Scenario) -> None:
    one = results(quiet_scenario, [], [bucket("a", 3, "x")])
    assert difference(one, Results.of_rows(quiet_scenario, {})).first_bucket == FirstBucket(3, 3 * 10**9, ("a",))


def test_cells_and_rows_that_differ_are_named(left: Results, right: Results) -> None:
    assert difference(left, right).cells == (
        CellDifference("hosts", ("b",), "events", 5, 6),
        CellDifference("hosts", ("c",), None, "absent", "present"),
    )


def test_a_long_list_is_cut_and_says_so(left: Results, right: Results) -> None:
    found = difference(left, right, limit=1)
    assert (len(found.cells), found.more) == (1, True)


def test_the_command_says_where_runs_part_and_exits_with_1(
    left: Results, right: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left.save(tmp_path / "a")
    right.save(tmp_path / "b")
    assert main(["diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "the scenarios differ in: seed",
        "the results differ",
        "first in bucket 1, from 1 s of virtual time: b",
        "hosts[b].events: 5 | 6",
        "hosts[c]: absent | present",
    ]


def test_the_command_names_what_shows_both_sides_where_the_runs_can_be_made_again(
    left: Results, right: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replace(left, run=versions()).save(tmp_path / "a")
    # The other side has no "b" among its machines: nothing could be shown of it.
    here = replace(right, run=versions(), tables={**right.tables, "vms": left.vms})
    here.save(tmp_path / "b")
    main(["diff", str(tmp_path / "a"), str(tmp_path / "b")])
    assert "sevfleet trace" not in capsys.readouterr().out

    parted = bucket("host-1", 2, "xx")
    rows = [*left.digests.to_pylist(), parted]
    results(left.scenario, [], rows).save(tmp_path / "c")
    replace(results(left.scenario, [], rows), run=versions()).save(tmp_path / "d")
    replace(left, run=versions()).save(tmp_path / "e")
    main(["diff", str(tmp_path / "c"), str(tmp_path / "e")])
    assert "sevfleet trace" not in capsys.readouterr().out, "nobody knows the versions that made c"
    main(["diff", str(tmp_path / "d"), str(tmp_path / "e")])
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "look closer with",
        f'  sevfleet trace {tmp_path / "d"} --entity host-1 --from "2 s" --to "62 s"',
        f'  sevfleet trace {tmp_path / "e"} --entity host-1 --from "2 s" --to "62 s"',
    ]


def test_the_command_exits_with_0_for_equal_results(
    left: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left.save(tmp_path / "a")
    assert main(["diff", str(tmp_path / "a"), str(tmp_path / "a")]) == 0
    assert capsys.readouterr().out == f"same results, digest {left.digest}\n"


def test_what_is_no_result_is_the_users_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", str(tmp_path), str(tmp_path)]) == 2
    assert "expected a folder of results" in capsys.readouterr().err
