import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.digest import digest_of
from cluster.results import Results, ResultsError
from cluster.scenario import Scenario
from cluster.tables import TABLES, Column, ColumnType, TableError, TableSchema, build_tables

Rows = dict[str, list[dict[str, object]]]

EXAMPLES: dict[ColumnType, object] = {
    ColumnType.TEXT: "x",
    ColumnType.INTEGER: 7,
    ColumnType.REAL: 0.5,
    ColumnType.BOOLEAN: True,
}


KEYS: dict[ColumnType, Callable[[int], object]] = {
    ColumnType.TEXT: "name-{}".format,
    ColumnType.INTEGER: lambda number: 7 + number,
}


def example_rows(count: int = 2) -> Rows:
    """Rows that fit every table, told apart by their keys."""
    return {
        name: [
            {
                column.name: KEYS[column.type](number) if column.key else EXAMPLES[column.type]
                for column in schema.columns
            }
            for number in range(count)
        ]
        for name, schema in TABLES.items()
    }


@pytest.fixture
def results(quiet_scenario: Scenario) -> Results:
    return Results.of_rows(quiet_scenario, example_rows(), figures={"operations": 3}, run={"layout": "inline"})


def digest(rows: Rows) -> str:
    return digest_of(build_tables(rows), TABLES)


def digest_of_one(name: str, change: Mapping[str, object] = MappingProxyType({})) -> str:
    """The digest of one table alone, the first row changed: all tables anew for each value would take long."""
    (first, *rest), schema = example_rows()[name], TABLES[name]
    return digest_of({name: schema.build([{**first, **change}, *rest])}, {name: schema})


def test_results_survive_a_folder(results: Results, tmp_path: Path) -> None:
    results.save(tmp_path / "out")
    back = Results.load(tmp_path / "out")
    assert back.digest == results.digest
    assert back.tables == results.tables
    assert back.scenario == results.scenario
    assert (back.figures, back.run["layout"], back.partial) == ({"operations": 3}, "inline", None)
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == [
        "digests.parquet", "run.json", "scenario.toml", "summary.json", "tables",
    ]  # fmt: skip
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_the_summary_does_not_say_how_the_run_went(results: Results, tmp_path: Path) -> None:
    results.save(tmp_path / "a")
    Results(results.scenario, results.tables, results.figures, {"layout": "packed", "wall_s": 9.5}).save(tmp_path / "b")
    assert (tmp_path / "a/summary.json").read_bytes() == (tmp_path / "b/summary.json").read_bytes()
    assert (tmp_path / "a/run.json").read_bytes() != (tmp_path / "b/run.json").read_bytes()


def test_partial_results_say_so_and_why(results: Results, tmp_path: Path) -> None:
    Results(results.scenario, results.tables, partial="stopped after 3 s").save(tmp_path / "out")
    assert Results.load(tmp_path / "out").partial == "stopped after 3 s"
    for file in ("summary.json", "run.json"):
        assert json.loads((tmp_path / "out" / file).read_text())["partial"] is True


def test_tables_are_attributes(results: Results) -> None:
    assert results.vms is results.tables["vms"]
    with pytest.raises(AttributeError, match="results have no table faults; there are vms, "):
        _ = results.faults


def test_earlier_results_are_replaced_whole(results: Results, tmp_path: Path) -> None:
    results.save(tmp_path / "out")
    (tmp_path / "out/tables/stale.parquet").write_bytes(b"")
    Results.of_rows(results.scenario, {}).save(tmp_path / "out")
    assert Results.load(tmp_path / "out").vms.num_rows == 0
    assert not (tmp_path / "out/tables/stale.parquet").exists()


def test_an_empty_folder_becomes_results(results: Results, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    results.save(tmp_path / "out")
    assert Results.load(tmp_path / "out").digest == results.digest


def foreign_file(out: Path) -> None:
    (out / "thesis.tex").write_text("years of work")


def foreign_summary(out: Path) -> None:
    (out / "summary.json").write_text('{"title": "of something else"}')


def foreign_tables(out: Path) -> None:
    (out / "tables").mkdir()


@pytest.mark.parametrize("fill", [foreign_file, foreign_summary, foreign_tables])
def test_a_folder_of_somebody_else_is_left_alone(
    results: Results, tmp_path: Path, fill: Callable[[Path], None]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    fill(out)
    before = [(entry, entry.read_bytes() if entry.is_file() else b"") for entry in sorted(out.rglob("*"))]
    with pytest.raises(ResultsError, match="expected"):
        results.save(out)
    assert [(entry, entry.read_bytes() if entry.is_file() else b"") for entry in sorted(out.rglob("*"))] == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_file_is_no_folder(results: Results, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ResultsError, match="expected a folder"):
        results.save(tmp_path / "out")


def test_a_full_disk_leaves_earlier_results_and_no_litter(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results.save(tmp_path / "out")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OSError, match="No space"):
        Results.of_rows(results.scenario, {}).save(tmp_path / "out")
    assert Results.load(tmp_path / "out").digest == results.digest
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def spoil_digest(out: Path) -> None:
    summary = json.loads((out / "summary.json").read_text())
    (out / "summary.json").write_text(json.dumps(summary | {"digest": "0" * 64}))


def spoil_table(out: Path) -> None:
    pq.write_table(pa.table({"vm": ["x"]}), out / "tables/vms.parquet")


def spoil_parquet(out: Path) -> None:
    (out / "tables/vms.parquet").write_bytes(b"PAR1 rubbish PAR1")


def spoil_json(out: Path) -> None:
    (out / "summary.json").write_text("{")


def spoil_format(out: Path) -> None:
    (out / "summary.json").write_text('{"sevfleet_results": 99}')


def lose_table(out: Path) -> None:
    (out / "tables/vms.parquet").unlink()


def lose_everything(out: Path) -> None:
    shutil.rmtree(out)


SPOILS = [spoil_digest, spoil_table, spoil_parquet, spoil_json, spoil_format, lose_table, lose_everything]


@pytest.mark.parametrize("spoil", SPOILS)
def test_spoilt_results_are_refused_in_one_line(
    results: Results, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    results.save(tmp_path / "out")
    spoil(tmp_path / "out")
    with pytest.raises(ResultsError, match="expected") as refusal:
        Results.load(tmp_path / "out")
    assert str(tmp_path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def change_moves(out: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    file = out / "tables/migrations.parquet"
    pq.write_table(change(pq.ParquetFile(file).read()), file)


def with_column(table: pa.Table, name: str, values: list[object]) -> pa.Table:
    number = table.schema.get_field_index(name)
    return table.set_column(number, pa.field(name, table.schema.field(name).type), [values])


def test_results_whose_columns_could_be_empty_and_are_not_are_read(results: Results, tmp_path: Path) -> None:
    results.save(tmp_path / "out")
    change_moves(tmp_path / "out", lambda table: with_column(table, "carrier", ["x", "x"]))
    read = Results.load(tmp_path / "out")
    assert read.digest == results.digest
    assert read.migrations.schema == TABLES["migrations"].arrow


@pytest.mark.parametrize(("change", "expected"), [
    (lambda table: with_column(table, "generation", ["x", None]),
     "generation: expected a value in each row, got none in 1 of 2"),
    (lambda table: table.drop_columns(["carrier"]), "carrier: expected one such column, got 0"),
    (lambda table: table.append_column("carrier", [["x", "x"]]), "carrier: expected one such column, got 2"),
    (lambda table: table.append_column("a\nb", [["x", "x"]]), '"a\\nb": expected no such column'),
    (lambda table: table.set_column(0, "migration", [["x", "y"]]), 'migration: expected int64, got "string"'),
    (lambda table: table.drop_columns(["vm", "source"]),
     "vm: expected one such column, got 0; source: expected one such column, got 0"),
    (lambda table: table.drop_columns(["migration", "vm", "source", "destination", "drain"]),
     "; ".join(f"{name}: expected one such column, got 0" for name in ("migration", "vm", "source")) + "; and 2 more"),
])  # fmt: skip
def test_columns_that_are_not_those_expected_are_named(
    results: Results, tmp_path: Path, change: Callable[[pa.Table], pa.Table], expected: str
) -> None:
    results.save(tmp_path / "out")
    change_moves(tmp_path / "out", change)
    with pytest.raises(ResultsError) as refusal:
        Results.load(tmp_path / "out")
    assert str(refusal.value) == f"{tmp_path / 'out/tables/migrations.parquet'}: {expected}"


@pytest.mark.parametrize(
    ("table", "column"), [(name, column) for name, schema in TABLES.items() for column in schema.columns]
)
def test_the_digest_differs_when_any_value_does(table: str, column: Column) -> None:
    changes: dict[ColumnType, list[object]] = {
        ColumnType.TEXT: ["", "X", "x\0"],
        ColumnType.INTEGER: [9, -7, 7 + (1 << 32)],
        ColumnType.REAL: [0.5000000000000001, 5, -0.5],
        ColumnType.BOOLEAN: [False],
    }
    values = changes[column.type] + ([None] if column.optional else [])
    digests = {digest_of_one(table)}
    for value in values:
        digests.add(digest_of_one(table, {column.name: value}))
    assert len(digests) == 1 + len(values)


def test_the_digest_knows_no_order_of_rows() -> None:
    rows = example_rows(5)
    assert digest(rows) == digest({name: list(reversed(rows[name])) for name in reversed(rows)})


def test_the_digest_differs_when_a_row_of_any_table_is_missing() -> None:
    whole = example_rows()
    digests = {digest(whole), *(digest({**whole, name: rows[1:]}) for name, rows in whole.items())}
    assert len(digests) == 1 + len(TABLES)


PAIR = TableSchema(
    "pair",
    "Two texts.",
    (Column("key", ColumnType.TEXT, "", "", key=True), Column("value", ColumnType.TEXT, "", "", optional=True)),
)
PAIRS = st.dictionaries(st.text(max_size=3), st.none() | st.text(max_size=3), max_size=4)


@settings(max_examples=60)
@given(PAIRS, PAIRS)
def test_different_tables_never_share_an_encoding(left: dict[str, str | None], right: dict[str, str | None]) -> None:
    digests = [
        digest_of({"pair": PAIR.build([{"key": key, "value": value} for key, value in pairs.items()])}, {"pair": PAIR})
        for pairs in (left, right)
    ]
    assert (digests[0] == digests[1]) == (left == right)


def test_the_digest_is_the_same_in_another_process_with_another_hash_seed(results: Results, tmp_path: Path) -> None:
    results.save(tmp_path / "out")
    program = "import sys; from cluster.results import Results; print(Results.load(sys.argv[1]).digest)"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "out")],
        env=os.environ | {"PYTHONHASHSEED": "99"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == results.digest


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("vm", 3, "table vms: row 1: vm: expected text, got 3"),
        ("vm", None, "table vms: row 1: vm: expected text, got None"),
        ("vcpus", 1.0, "table vms: row 1: vcpus: expected integer, got 1.0"),
        ("vcpus", True, "table vms: row 1: vcpus: expected integer, got True"),
        ("vcpus", 1 << 63, "table vms: row 1: vcpus: expected integer, got 9223372036854775808"),
        ("active_ns", float("nan"), "table vms: row 1: active_ns: expected real, got nan"),
        ("active_ns", float("inf"), "table vms: row 1: active_ns: expected real, got inf"),
        ("colour", 1, "table vms: row 1: colour: no such column"),
        ("vm", "name-0", "table vms: the row name-0 stands twice"),
    ],
)
def test_a_row_that_does_not_fit_its_table_is_named(column: str, value: object, message: str) -> None:
    rows = example_rows()
    rows["vms"][1][column] = value
    with pytest.raises(TableError) as refusal:
        build_tables(rows)
    assert str(refusal.value) == message


def test_rows_of_no_table_are_refused() -> None:
    with pytest.raises(TableError, match="table dreams: no such table"):
        build_tables({"dreams": []})


def test_every_table_has_a_key_and_says_what_it_holds() -> None:
    for schema in TABLES.values():
        assert schema.keys
        assert all(column.meaning for column in schema.columns)
        for column in schema.columns:
            units = {"_ns": "ns", "_bytes": "byte", "_ratio": "ratio"}
            assert all(column.unit == unit for suffix, unit in units.items() if column.name.endswith(suffix))


@pytest.mark.parametrize("cut", [0, 2, 5])
def test_rows_that_were_gathered_in_parts_make_the_same_table(cut: int) -> None:
    rows = example_rows(5)
    parts: Rows = {
        name: [dict(TABLES[name].gathered(some[:cut])), *some[cut:3], dict(TABLES[name].gathered(some[max(cut, 3) :]))]
        for name, some in rows.items()
    }
    assert build_tables(parts) == build_tables(rows)


def test_a_row_that_two_parts_have_stands_twice() -> None:
    schema = TABLES["digests"]
    (row,) = example_rows(1)["digests"]
    with pytest.raises(TableError, match=r"digests: the row .* stands twice"):
        schema.build([schema.gathered([row]), schema.gathered([row])])
