"""Traces: the real one loads whole, and a broken one is refused with file, row and column."""

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from workloads.trace import MemoryUnit, TraceError, load_trace
from workloads.trace_vm import CpuFragments, TraceVm

HOUR_NS = 3_600_000_000_000
TASKS = {
    "id": [7, 9],
    "submission_time": [1_376_314_546_000, 1_376_314_606_000],
    "duration": [900_000, 600_000],
    "cpu_count": [2, 1],
    "cpu_capacity": [5200.0, 2600.0],
    "mem_capacity": [4096, 2048],
}
FRAGMENTS = {"id": [7, 9, 7], "duration": [300_000, 600_000, 300_000], "cpu_usage": [52.0, 0.0, 2600.0]}
COLUMN_FILES = {"tasks": TASKS, "fragments": FRAGMENTS}


def write(folder, tables=COLUMN_FILES, suffix="parquet") -> None:
    for name, columns in tables.items():
        table = columns if isinstance(columns, pa.Table) else pa.table(columns)
        if suffix == "csv":
            pyarrow.csv.write_csv(table, folder / f"{name}.csv")
        else:
            pyarrow.parquet.write_table(table, folder / f"{name}.parquet")


def refused(folder, **others) -> TraceError:
    with pytest.raises(TraceError) as caught:
        load_trace(folder, **others)
    assert str(caught.value).count("\n") == 0
    return caught.value


@pytest.fixture(scope="module")
def bitbrains(test_data):
    return load_trace(test_data / "trace")


def test_the_real_trace_loads_with_every_machine_and_sample(bitbrains) -> None:
    # 50 machines and 276,979 samples in 30 days: the counts published with the extract.
    assert len(bitbrains) == 50
    assert sum(len(vm.fragments) for vm in bitbrains) == 276_979
    assert [vm.arrival_ns for vm in bitbrains] == sorted(vm.arrival_ns for vm in bitbrains)
    assert bitbrains[0].arrival_ns == 0
    assert max(vm.arrival_ns + vm.duration_ns for vm in bitbrains) <= 30.01 * 24 * HOUR_NS
    largest = max(bitbrains, key=lambda vm: vm.vcpus)
    assert (largest.name, largest.vcpus, largest.memory_bytes >> 30) == ("vm-740", 32, 124)


def test_memory_of_the_real_trace_is_read_as_kib_unless_told_otherwise(test_data, bitbrains) -> None:
    assert sum(vm.memory_bytes == 8 << 30 for vm in bitbrains) >= 3
    assert all(64 << 20 <= vm.memory_bytes <= 128 << 30 for vm in bitbrains)
    error = refused(test_data / "trace", memory_unit=MemoryUnit.MIB)
    assert (error.column, error.row) == ("mem_capacity", 16)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_rows_become_machines(tmp_path, suffix) -> None:
    write(tmp_path, suffix=suffix)
    first, second = load_trace(tmp_path)
    assert (first.name, first.arrival_ns, first.duration_ns) == ("vm-7", 0, 900_000_000_000)
    assert (first.vcpus, first.memory_bytes, first.capacity_mhz) == (2, 4 << 30, 5200.0)
    assert first.fragments.duration_ms.tolist() == [300_000, 300_000]
    assert first.fragments.usage_mhz.tolist() == [52.0, 2600.0]
    assert (second.name, second.arrival_ns, second.fragments.total_ms) == ("vm-9", 60_000_000_000, 600_000)


def test_ids_may_be_names_and_times_timestamps(tmp_path) -> None:
    tasks = pa.table(TASKS | {
        "id": pa.array(["a.1", "b-2"]).dictionary_encode(),
        "submission_time": pa.array([1_376_314_546_000_000, 1_376_314_606_000_000], pa.timestamp("us")),
    })  # fmt: skip
    write(tmp_path, {"tasks": tasks, "fragments": FRAGMENTS | {"id": ["a.1", "b-2", "a.1"]}})
    assert [(vm.name, vm.arrival_ns) for vm in load_trace(tmp_path)] == [("vm-a.1", 0), ("vm-b-2", 60_000_000_000)]


BROKEN = [
    # file, column, values, row at fault, words of the expectation
    ("tasks", "id", [7, 7], 2, "an id of its own"),
    ("tasks", "id", [None, 9], 1, "an id"),
    ("tasks", "id", ["../7", "9"], 1, "an id of at most"),
    ("tasks", "id", ["7", "9" * 1000], 2, "an id of at most"),
    ("tasks", "id", [7.0, 9.0], None, "an id"),
    ("tasks", "submission_time", [0, -1], 2, "milliseconds"),
    ("tasks", "submission_time", [0, 1 << 62], 2, "milliseconds"),
    ("tasks", "submission_time", [0, 200_000_000_000_000], 2, "within 100 years of the first"),
    ("tasks", "duration", [900_000, 0], 2, "from 1 ms"),
    ("tasks", "duration", [900_000, -5], 2, "from 1 ms"),
    ("tasks", "duration", [900_000, 1 << 60], 2, "from 1 ms"),
    ("tasks", "duration", [900_000, None], 2, "from 1 ms"),
    ("tasks", "cpu_count", [0, 1], 1, "from 1 to 4096"),
    ("tasks", "cpu_count", [2, 1.5], 2, "from 1 to 4096"),
    ("tasks", "cpu_count", [2, 5000], 2, "from 1 to 4096"),
    ("tasks", "cpu_count", [True, False], None, "from 1 to 4096"),
    ("tasks", "cpu_capacity", [float("nan"), 2600.0], 1, "MHz"),
    ("tasks", "cpu_capacity", [5200.0, float("inf")], 2, "MHz"),
    ("tasks", "cpu_capacity", [5200.0, -1.0], 2, "MHz"),
    ("tasks", "mem_capacity", [0, 2048], 1, "at most 32 TiB"),
    ("tasks", "mem_capacity", [4096, 1 << 40], 2, "at most 32 TiB"),
    ("tasks", "mem_capacity", [4096, (32 << 20) + 1], 2, "at most 32 TiB"),
    ("tasks", "mem_capacity", [[1], [2]], None, "at most 32 TiB"),
    ("fragments", "id", [7, 9, 8], 3, "the id of a task"),
    ("fragments", "id", [7, None, 7], 2, "the id of a task"),
    ("fragments", "duration", [300_000, 600_000, 0], 3, "from 1 ms"),
    ("fragments", "duration", [300_000, 600_000, -1], 3, "from 1 ms"),
    ("fragments", "duration", [300_000, 600_000, 600_001], 3, "end with their task 7"),
    ("fragments", "duration", [300_000, 600_001, 300_000], 2, "end with their task 9"),
    ("fragments", "cpu_usage", [52.0, float("nan"), 1.0], 2, "MHz"),
    ("fragments", "cpu_usage", [52.0, -0.5, 1.0], 2, "MHz"),
    ("fragments", "cpu_usage", [52.0, None, 1.0], 2, "MHz"),
    ("fragments", "cpu_usage", [52.0, 5200.1, 1.0], 2, "at most 2 times"),
    ("fragments", "cpu_usage", ["52", "much", "1"], 2, "MHz"),
]


@pytest.mark.parametrize(("file", "column", "values", "row", "words"), BROKEN)
def test_a_broken_row_is_refused_with_its_place(tmp_path, file, column, values, row, words) -> None:
    write(tmp_path, COLUMN_FILES | {file: COLUMN_FILES[file] | {column: values}})
    error = refused(tmp_path)
    assert (error.file, error.column, error.row) == (str(tmp_path / f"{file}.parquet"), column, row)
    assert words in str(error)
    assert len(str(error)) < 300 + len(error.file)


@pytest.mark.parametrize(("file", "column", "values", "row"), [
    ("tasks", "duration", ["900000", "abc"], 2),
    ("tasks", "duration", ["900000", ""], 2),
    ("tasks", "cpu_count", ["2", "1e3"], 2),
    ("fragments", "cpu_usage", ["1", "nan", "2"], 2),
    ("fragments", "cpu_usage", ["1", "0x10", "2"], 2),
    ("fragments", "duration", ["1", "99999999999999999999", "2"], 2),
])  # fmt: skip
def test_a_broken_row_of_a_csv_file_is_refused_with_its_place(tmp_path, file, column, values, row) -> None:
    write(tmp_path, COLUMN_FILES | {file: COLUMN_FILES[file] | {column: values}}, suffix="csv")
    error = refused(tmp_path)
    assert (error.file, error.column, error.row) == (str(tmp_path / f"{file}.csv"), column, row)


def test_a_bad_row_far_into_the_file_is_counted_right(tmp_path) -> None:
    count = 150_000
    usage = np.zeros(count)
    usage[140_000] = -1
    fragments = {"id": np.full(count, 7), "duration": np.ones(count, dtype=np.int64), "cpu_usage": usage}
    write(tmp_path, COLUMN_FILES | {"fragments": fragments})
    assert refused(tmp_path).row == 140_001


@pytest.mark.parametrize("file", ["tasks", "fragments"])
def test_a_missing_column_is_named(tmp_path, file) -> None:
    for suffix in ("parquet", "csv"):
        (tmp_path / suffix).mkdir()
        columns = {name: values for name, values in COLUMN_FILES[file].items() if name != "duration"}
        write(tmp_path / suffix, COLUMN_FILES | {file: columns}, suffix)
        error = refused(tmp_path / suffix)
        assert (error.column, error.row) == ("duration", None)


@pytest.mark.parametrize("file", ["tasks", "fragments"])
def test_a_missing_or_empty_file_is_named(tmp_path, file) -> None:
    write(tmp_path, COLUMN_FILES | {file: pa.table(COLUMN_FILES[file]).slice(0, 0)})
    assert "at least one row" in str(refused(tmp_path))
    (tmp_path / f"{file}.parquet").unlink()
    assert refused(tmp_path).file == str(tmp_path / f"{file}.parquet")


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"PAR1" + bytes(50) + b"PAR1", bytes(range(256)) * 9])
@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_rubbish_is_no_trace(tmp_path, content, suffix) -> None:
    write(tmp_path)
    (tmp_path / "tasks.parquet").unlink()
    (tmp_path / f"tasks.{suffix}").write_bytes(content)
    assert refused(tmp_path).file == str(tmp_path / f"tasks.{suffix}")


def test_a_file_cut_short_is_no_trace(tmp_path) -> None:
    write(tmp_path)
    whole = (tmp_path / "fragments.parquet").read_bytes()
    for length in range(0, len(whole), 41):
        (tmp_path / "fragments.parquet").write_bytes(whole[:length])
        assert refused(tmp_path).file == str(tmp_path / "fragments.parquet")


def test_a_csv_line_without_end_is_refused_in_bounded_memory(tmp_path) -> None:
    write(tmp_path)
    (tmp_path / "tasks.parquet").unlink()
    (tmp_path / "tasks.csv").write_bytes(b"id,submission_time" + b"x" * (3 << 20))
    assert refused(tmp_path).file == str(tmp_path / "tasks.csv")
    (tmp_path / "tasks.csv").write_bytes((",".join(TASKS) + "\n").encode() + b"7" * (3 << 20))
    assert refused(tmp_path).file == str(tmp_path / "tasks.csv")


def test_the_error_survives_pickling(tmp_path) -> None:
    error = refused(tmp_path)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.file, again.row) == (str(error), error.file, error.row)


@pytest.fixture
def vm() -> TraceVm:
    pieces = CpuFragments(np.array([100, 200, 300]), np.array([10.0, 20.0, 30.0]))
    return TraceVm("vm-1", 1_000_000_000, 700_000_000, 2, 1 << 30, pieces, 5200.0)


def test_a_window_cuts_a_machine_s_life_and_its_fragments(vm) -> None:
    part = vm.window(1_150_000_000, 300_000_000)
    assert (part.arrival_ns, part.duration_ns) == (0, 300_000_000)
    assert list(zip(part.fragments.duration_ms.tolist(), part.fragments.usage_mhz.tolist(), strict=True)) == [
        (150, 20.0),
        (150, 30.0),
    ]
    later = vm.window(500_000_000, 5_000_000_000)
    assert (later.arrival_ns, later.duration_ns, later.fragments.total_ms) == (500_000_000, 700_000_000, 600)
    assert vm.window(0, 1_000_000_000) is None
    assert vm.window(1_700_000_000, 1_000_000_000) is None


def test_scaled_time_keeps_use_and_does_not_drift(vm) -> None:
    small = vm.scaled(0.015)
    assert (small.arrival_ns, small.duration_ns) == (15_000_000, 10_500_000)
    assert small.fragments.total_ms == round(600 * 0.015)
    assert set(small.fragments.usage_mhz.tolist()) <= {10.0, 20.0, 30.0}
