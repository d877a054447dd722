"""What a scenario may say about a program, and what it is told otherwise."""

import pickle
from dataclasses import fields, replace

import pytest

from node.program import ProgramSpec
from workloads.attested_start import NAME
from workloads.library import (
    DEVICE_WORK,
    PARAMETERS,
    PROGRAMS,
    WORKLOADS,
    WorkloadParameterError,
    footprint,
    validate_parameters,
)

SMALLEST_SLICE_BYTES = 4 << 20
"""The least private memory that a guest's memory map gives a vCPU."""


def refused(name, parameters) -> WorkloadParameterError:
    with pytest.raises(WorkloadParameterError) as caught:
        validate_parameters(name, parameters)
    return caught.value


def test_the_library_knows_twelve_programs_and_one_that_starts_them() -> None:
    assert set(WORKLOADS) == {
        "key-value-store", "key-value-server", "key-value-client", "stream", "random-access", "compile-job",
        "trace-player", "attesting", "relying-party", "sealed-disk", "device-work",
        "idle",
    }  # fmt: skip
    assert set(PARAMETERS) == set(WORKLOADS) == set(PROGRAMS) - {NAME}


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_default_passes_and_fits_the_smallest_slice_of_memory(name) -> None:
    defaults = {one.name: one.default for one in fields(PARAMETERS[name])}
    assert dict(validate_parameters(name, defaults)) == defaults
    assert footprint(ProgramSpec(name)) == footprint(ProgramSpec(name, tuple(defaults.items())))
    assert footprint(ProgramSpec(name)).private_bytes <= SMALLEST_SLICE_BYTES
    # Devices that were given to a VM bounce through whole buffers of their own.
    assert footprint(ProgramSpec(name)).shared_bytes <= (512 << 10 if name == DEVICE_WORK else 64 << 10)


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_parameter_refuses_what_it_cannot_be(name) -> None:
    for one in fields(PARAMETERS[name]):
        for wrong in (-1, True, None, float("nan"), float("inf"), "x" * 100_000, 1 << 70, [1], b"1"):
            error = refused(name, {one.name: wrong})
            assert error.field == one.name
            assert error.expected


@pytest.mark.parametrize(("name", "parameters", "field", "words"), [
    ("tetris", {}, "workload", "one of key-value-store"),
    ("stream", {"colour": 1}, "colour", "one of the parameters array_bytes"),
    ("stream", {"array_bytes": 4097}, "array_bytes", "a multiple of 4096"),
    ("stream", {"array_bytes": 12288, "chunk_bytes": 8192}, "array_bytes", "a multiple of chunk_bytes"),
    ("random-access", {"table_bytes": 100_000}, "table_bytes", "a power of two"),
    ("random-access", {"batch": 3}, "batch", "a power of two"),
    ("random-access", {"table_bytes": 65_536, "batch": 32}, "batch", "up to the table's 16 pages"),
    ("compile-job", {"access_bytes": 192}, "access_bytes", "a divisor of 4096"),
    ("key-value-store", {"read_share": 1.5}, "read_share", "from 0 to 1"),
    ("key-value-store", {"records": 2.0}, "records", "a whole number"),
    ("trace-player", {"working_set_bytes": 4096, "slot_bytes": 192}, "working_set_bytes", "a multiple of slot_bytes"),
    ("trace-player", {"working_set_bytes": 4096, "touches_per_step": 3}, "touches_per_step", "at most"),
])  # fmt: skip
def test_wrong_parameters_are_named_with_what_was_expected(name, parameters, field, words) -> None:
    error = refused(name, parameters)
    assert error.field == field
    assert words in error.expected
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_parameter_given_twice_is_refused(machine) -> None:
    with pytest.raises(WorkloadParameterError, match="once"):
        footprint(ProgramSpec("stream", (("spot_lines", 1), ("spot_lines", 2))))


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_placement_too_small_for_the_program_is_refused(name, machine) -> None:
    one = machine(name)
    needed = footprint(one.spec)
    enough = replace(one.placement, length=needed.private_bytes, shared_length=needed.shared_bytes)
    PROGRAMS[name](one.spec, enough)
    for less in (replace(enough, length=enough.length - 1), replace(enough, shared_length=enough.shared_length - 1)):
        with pytest.raises(WorkloadParameterError, match="memory"):
            PROGRAMS[name](one.spec, less)


def test_what_was_accepted_once_does_not_let_in_what_only_equals_it() -> None:
    assert validate_parameters("trace-player", {"touches_per_step": 1})
    for equal in (True, 1.0):
        with pytest.raises(WorkloadParameterError, match="touches_per_step"):
            validate_parameters("trace-player", {"touches_per_step": equal})
    assert validate_parameters("trace-player", {"touches_per_step": 1})
