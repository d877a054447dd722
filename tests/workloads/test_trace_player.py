"""The player is as busy as its trace says."""

import base64
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.operations import Shutdown
from node.program import Placement, ProgramSpec
from workloads.library import WorkloadParameterError, validate_parameters
from workloads.trace import load_trace
from workloads.trace_player import (
    INSTRUCTIONS_PER_KILO_CYCLE,
    LONGEST_TEXT,
    TracePlayer,
    pack_runs,
    player_parameters,
    unpack_runs,
)
from workloads.trace_vm import CpuFragments, TraceVm


@given(st.lists(st.tuples(st.integers(1, 1 << 36), st.integers(0, 100)), min_size=1, max_size=40))
def test_runs_survive_packing_with_equal_neighbours_merged(runs) -> None:
    packed = unpack_runs(pack_runs(runs))
    assert sum(duration for duration, _ in packed) == sum(duration for duration, _ in runs)
    assert [sum(d for d, at in packed if at == level) for level in range(101)] == [
        sum(d for d, at in runs if at == level) for level in range(101)
    ]
    assert all(one[1] != other[1] for one, other in pairwise(packed))


@pytest.mark.parametrize("packed", [
    "", "!", "AA", "AA==", base64.b64encode(b"\x65\x01").decode(), base64.b64encode(b"\x05\x00").decode(),
    base64.b64encode(b"\x05\x80").decode(), base64.b64encode(b"\x05" + b"\xff" * 50 + b"\x01").decode(), "Ä",
    base64.b64encode(b"\x05\x01").decode() + "\n", "A" * (LONGEST_TEXT + 4),
])  # fmt: skip
def test_a_text_that_is_no_runs_is_refused(packed) -> None:
    with pytest.raises(WorkloadParameterError) as caught:
        validate_parameters("trace-player", {"fragments": packed})
    assert caught.value.field == "fragments"


def test_the_time_of_a_trace_is_kept_on_a_host_that_is_fast_enough(machine) -> None:
    runs = [(25_000, 30), (7_000, 0), (61_234, 1), (5_000, 80)]
    player = machine("trace-player", fragments=pack_runs(runs), mhz=2000).run()
    assert player.shutdown == Shutdown(0)
    assert player.virtual_ns == pytest.approx(1e6 * sum(duration for duration, _ in runs), rel=1e-6)


def test_each_share_has_its_own_cap(machine) -> None:
    demands = machine("trace-player", mhz=2000).program.demands
    assert len(demands) == 100
    assert demands[99].max_instructions_per_s == 2000 * 1000 * INSTRUCTIONS_PER_KILO_CYCLE
    assert demands[0].max_instructions_per_s == pytest.approx(demands[99].max_instructions_per_s / 100)


def test_use_becomes_hundredths_of_capacity_and_the_rest_is_idle() -> None:
    pieces = CpuFragments(np.array([100, 200, 300]), np.array([10.0, 2600.0, 5900.0]))
    vm = TraceVm("vm-1", 0, 700_000_000, 2, 1 << 30, pieces, 5200.0)
    parameters = dict(player_parameters(vm, step_ms=50))
    assert unpack_runs(parameters["fragments"]) == ((100, 0), (200, 50), (300, 100), (100, 0))
    assert (parameters["mhz"], parameters["step_ms"]) == (2600, 50)


def test_every_machine_of_the_real_trace_fits_a_specification(test_data) -> None:
    for vm in load_trace(test_data / "trace"):
        given_parameters = dict(player_parameters(vm))
        assert validate_parameters("trace-player", given_parameters)
        played = sum(duration for duration, _ in unpack_runs(given_parameters["fragments"]))
        assert played * 1_000_000 == vm.duration_ns


def test_a_trace_too_long_for_a_specification_is_refused() -> None:
    count = 20_000
    pieces = CpuFragments(np.full(count, 300_000), np.arange(count) % 2 * 1000.0)
    vm = TraceVm("vm-1", 0, count * 300_000 * 1_000_000, 1, 1 << 30, pieces, 2600.0)
    with pytest.raises(WorkloadParameterError):
        player_parameters(vm)


def test_what_a_machine_writes_can_be_said_and_goes_with_its_share() -> None:
    given = {"fragments": pack_runs([(1000, 50)]), "written_set_bytes": 1 << 30, "written_bytes_per_s": 200_000_000}
    program = TracePlayer.build(
        ProgramSpec("trace-player", tuple(sorted(given.items()))), Placement("vm", 0, 0, 1 << 30, 0, 0, 1)
    )
    half, whole = program.demands[49], program.demands[99]
    for demand, share in ((half, 0.5), (whole, 1.0)):
        written_per_s = demand.max_instructions_per_s / 1000 * demand.written_bytes_per_kilo_instruction
        assert written_per_s == pytest.approx(200e6 * share)
        assert demand.written_set_bytes == 1 << 30


def test_a_set_that_is_written_all_over_lies_anywhere_and_only_slots_are_the_program_s_own() -> None:
    spec = ProgramSpec("trace-player", (("fragments", pack_runs([(1000, 50)])), ("written_set_bytes", 1 << 36)))
    TracePlayer.build(spec, Placement("vm", 0, 0, 1 << 20, 0, 0, 1))
    with pytest.raises(WorkloadParameterError, match="at least 524288 private bytes"):
        TracePlayer.build(spec, Placement("vm", 0, 0, 1 << 18, 0, 0, 1))
