"""Generated traces: a function of the seed, in the schema of the real one."""

import pyarrow.parquet
import pytest

from workloads.trace import load_trace
from workloads.trace_generator import DAY_MS, TraceShape, generate_tables, generate_trace, write_trace


def test_the_same_seed_makes_the_same_tables_and_another_seed_others() -> None:
    shape = TraceShape(vms=20)
    assert generate_tables(1, shape) == generate_tables(1, shape)
    tasks, fragments = generate_tables(2, shape)
    assert tasks != generate_tables(1, shape)[0]
    assert fragments != generate_tables(1, shape)[1]


def test_a_trace_of_a_seed_never_changes() -> None:
    # Made by this generator on x86-64: every machine must make the same, or runs cannot be compared.
    machines = {vm.name: vm for vm in generate_trace(5, TraceShape(vms=4))}
    first, fourth = machines["vm-1"], machines["vm-4"]
    assert (first.vcpus, first.memory_bytes >> 30, first.duration_ns) == (2, 4, 3_600_000_000_000)
    assert fourth.fragments.usage_mhz[:3].tolist() == [642.2, 676.0, 673.4]


def test_generated_tables_have_the_schema_of_the_real_trace(test_data) -> None:
    for name, table in zip(("tasks", "fragments"), generate_tables(1, TraceShape()), strict=True):
        real = pyarrow.parquet.read_schema(test_data / "trace" / f"{name}.parquet")
        assert table.schema.equals(real.remove_metadata())


@pytest.mark.parametrize("shape", [
    TraceShape(vms=1),
    TraceShape(vms=300, span_ms=DAY_MS, resident_share=0.1),
    TraceShape(vms=3, span_ms=7, sample_ms=2, shortest_lifetime_ms=1),
])  # fmt: skip
def test_generated_machines_pass_the_checks_of_a_file_and_fit_their_span(shape) -> None:
    machines = generate_trace(3, shape)
    assert len(machines) == shape.vms
    for vm in machines:
        assert vm.arrival_ns + vm.duration_ns <= shape.span_ms * 1_000_000
        assert vm.fragments.total_ms * 1_000_000 == vm.duration_ns
        assert vm.fragments.usage_mhz.max() <= vm.capacity_mhz


def test_lifetimes_are_heavy_tailed() -> None:
    shape = TraceShape(vms=2000, span_ms=30 * DAY_MS, sample_ms=30 * DAY_MS, resident_share=0.0)
    lives = sorted(vm.duration_ns for vm in generate_trace(4, shape))
    assert lives[1000] < 2 * 2 * shape.shortest_lifetime_ms * 1_000_000
    assert sum(lives[-40:]) > 0.3 * sum(lives)


def test_a_written_trace_is_loaded_again(tmp_path) -> None:
    shape = TraceShape(vms=5)
    write_trace(tmp_path, 8, shape)
    for written, made in zip(load_trace(tmp_path), generate_trace(8, shape), strict=True):
        assert (written.name, written.arrival_ns, written.memory_bytes) == (
            made.name,
            made.arrival_ns,
            made.memory_bytes,
        )
        assert written.fragments.usage_mhz.tolist() == made.fragments.usage_mhz.tolist()


@pytest.mark.parametrize("wrong", [{"vms": 0}, {"sample_ms": 0}, {"span_ms": 1}, {"shortest_lifetime_ms": 0}])
def test_impossible_shapes_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match="expected"):
        TraceShape(**wrong)
