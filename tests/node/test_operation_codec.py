"""What passes between processes of a host comes back as it was; anything else becomes no object."""

import dataclasses
import math
import types
import typing
from enum import Enum

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node import operations as op
from node.generation import Generation
from node.guest_memory_map import GuestMemoryMap
from node.operation_codec import (
    KINDS,
    CodecError,
    form_of,
    load_packed_registers,
    packed,
    packed_registers,
    unpacked,
)
from node.program import Ending, ProgramSpec, Registers
from node.tenant import TenantSpec
from node.vmsa import VMSA_BYTES, StoredArea
from psp.system_bus import RmpEntry

SCALARS = {
    int: st.integers(-(1 << 63), (1 << 64) - 1),
    bool: st.booleans(),
    str: st.text(max_size=5),
    bytes: st.binary(max_size=20),
    float: st.floats(allow_nan=False),
    types.NoneType: st.none(),
}
MEMORY = GuestMemoryMap(256 << 20, 2)


def values(declared) -> st.SearchStrategy:
    """Any value of a declared type."""
    if declared in SCALARS:
        return SCALARS[declared]
    if declared is StoredArea:
        return st.just(StoredArea(bytes(VMSA_BYTES), tuple(range(17)))).map(bytes)
    if isinstance(declared, type) and issubclass(declared, Enum):
        return st.sampled_from(declared)
    if declared is GuestMemoryMap:
        return st.just(MEMORY)
    names = getattr(declared, "_fields", ())
    if dataclasses.is_dataclass(declared):
        names = [one.name for one in dataclasses.fields(declared)]
    if names or dataclasses.is_dataclass(declared):
        hints = typing.get_type_hints(declared)
        return st.builds(declared, **{name: values(hints[name]) for name in names})
    parts = typing.get_args(declared)
    if typing.get_origin(declared) is not tuple:
        return st.one_of(*map(values, parts))
    if parts[1:] == (Ellipsis,):
        return st.lists(values(parts[0]), max_size=3).map(tuple)
    return st.tuples(*map(values, parts))


def back(declared, value):
    form = form_of(declared)
    return form.parse(unpacked(packed(form.pack(value))))


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.__name__)
@settings(max_examples=20, deadline=None)
@given(st.data())
def test_every_kind_comes_back_as_it_was(kind, data) -> None:
    value = data.draw(values(kind))
    again = back(kind, value)
    assert again == value
    assert type(again) is kind
    assert packed(form_of(kind).pack(again)) == packed(form_of(kind).pack(value))


def test_what_is_not_made_yet_crosses_as_what_it_stands_for() -> None:
    area = StoredArea(bytes(VMSA_BYTES), tuple(range(17)))
    assert back(bytes | StoredArea, area) == bytes(area) != bytes(VMSA_BYTES)


@pytest.mark.parametrize("union", [op.GuestOperation, op.HypervisorOperation, op.Answer, Ending])
def test_every_operation_answer_and_end_of_a_block_has_a_number(union) -> None:
    assert set(typing.get_args(union)) - set(SCALARS) <= set(KINDS.values())


@settings(deadline=None)
@given(values(tuple[op.GuestOperation, ...]), values(tuple[op.HypervisorOperation, ...]), values(tuple[op.Answer, ...]))
def test_batches_and_answers_come_back_as_they_were(guest, host, answers) -> None:
    assert back(tuple[op.GuestOperation, ...], guest) == guest
    assert back(tuple[op.HypervisorOperation, ...], host) == host
    there = back(tuple[op.Answer, ...], answers)
    assert there == answers
    assert [type(one) for one in there] == [type(one) for one in answers]  # True is no 1


@settings(deadline=None)
@given(st.lists(SCALARS[int].filter(lambda one: one >= 0), min_size=17, max_size=17))
def test_registers_come_back_as_they_were(numbers: list[int]) -> None:
    before, after = Registers(), Registers(rip=1)
    for name, number in zip(Registers.__slots__, numbers, strict=True):
        setattr(before, name, number)
    load_packed_registers(packed_registers(before), after)
    assert [getattr(after, name) for name in Registers.__slots__] == numbers


LEAVES = st.one_of(*SCALARS.values(), st.sampled_from([*KINDS]))
ANYTHING = st.recursive(LEAVES, lambda one: st.lists(one, max_size=6).map(tuple), max_leaves=12)


@settings(deadline=None)
@given(ANYTHING, st.sampled_from([op.GuestOperation, op.Answer, Ending, TenantSpec, tuple[int, bytes]]))
def test_anything_else_is_refused_or_is_what_it_says(data, declared) -> None:
    form = form_of(declared)
    try:
        value = form.parse(data)
    except CodecError:
        return
    assert unpacked(packed(form.pack(value))) == data


READ = form_of(op.Read).pack(op.Read(4096, 8))


@pytest.mark.parametrize(
    ("declared", "data", "problem"),
    [
        (op.GuestOperation, (99, 1), "expected .*BlockRead or .* got tuple"),
        (op.GuestOperation, form_of(op.HostRead).pack(op.HostRead(0, 1)), "expected .*BlockRead or"),
        (op.Read, READ[:-1], "Read: expected 3 fields, got 2"),
        (op.Read, (*READ, 1), "Read: expected 3 fields, got 4"),
        (op.Read, (READ[0], "x", 8, True), r"Read\.gpa: value: expected int, got str"),
        (op.Read, (READ[0], 0, 8, 1), r"Read\.private: value: expected bool, got 1"),
        (op.RmpUpdate, (21, 0, 4096, (80,)), r"RmpUpdate\.entry: RmpEntry: expected 8 fields, got 0"),
        (op.Fault, (48, "NONE", 0, 0), r"Fault\.kind: value: expected a FaultKind, got str"),
        (GuestMemoryMap, (85, 1, 1), "GuestMemoryMap: memory: expected a multiple of 2 MiB"),
        (tuple[int, ...], 7, "expected an array, got 7"),
        (tuple[int, int], (1,), "expected 2 values, got 1"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(declared, data, problem: str) -> None:
    with pytest.raises(CodecError, match=problem):
        form_of(declared).parse(data)


@pytest.mark.parametrize("data", [b"", b"\xc1", msgpack.packb([1]) + b"\0", b"\x92\x01"])
def test_bytes_that_are_no_msgpack_are_refused(data: bytes) -> None:
    with pytest.raises(CodecError, match="expected msgpack"):
        unpacked(data)


@pytest.mark.parametrize("data", [None, b"", bytes(135), bytes(137), (1,) * 17])
def test_registers_of_another_length_are_refused(data) -> None:
    with pytest.raises(CodecError, match="registers: expected 136 bytes"):
        load_packed_registers(data, Registers())


def test_errors_show_no_contents() -> None:
    with pytest.raises(CodecError) as caught:
        form_of(op.Read).parse((1, b"a tenant's secret", 8, True))
    assert "secret" not in str(caught.value)


def test_a_program_s_parameters_keep_their_types() -> None:
    spec = TenantSpec("vm", Generation.SEV, MEMORY, ProgramSpec("p", (("a", 1), ("b", 1.0), ("c", "1"))), 5, (1,), (2,))
    assert [type(value) for _, value in back(TenantSpec, spec).program.parameters] == [int, float, str]
    assert math.isinf(back(float, math.inf))
    assert back(RmpEntry, RmpEntry(gpa=1 << 51, vmpl_permissions=(1, 2, 3, 4))).vmpl_permissions == (1, 2, 3, 4)
