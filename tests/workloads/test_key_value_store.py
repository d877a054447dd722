"""The key-value store's layout, and the ways its table can be wrong."""

import struct

import pytest

from node.operations import Shutdown
from workloads.key_value_store import SERVE_RIP
from workloads.record_table import HEADER

PARAMETERS = {"records": 64, "value_bytes": 32, "batch": 16, "instructions_per_batch": 0}
SLOT = HEADER.size + PARAMETERS["value_bytes"]
TABLE = 4096
"""Offset of the buckets: the versions of 64 keys fill part of a page."""


@pytest.fixture
def store(machine):
    one = machine("key-value-store", **PARAMETERS)
    while one.registers.rip != SERVE_RIP:
        one.step()
    return one


def records(store) -> dict[int, int]:
    """Offset of each record by key."""
    length = store.program.parameters.private_bytes - TABLE
    table = store.memory.load(store.placement.base_gpa + TABLE, length, private=True)
    keys = {struct.unpack_from("<Q", table, at)[0]: TABLE + at for at in range(0, length - SLOT, SLOT)}
    return {key - 1: at for key, at in keys.items() if key}


def test_the_load_phase_stores_every_record_once_at_version_1(store) -> None:
    placed = records(store)
    assert set(placed) == set(range(PARAMETERS["records"]))
    for at in placed.values():
        assert struct.unpack("<Q", store.memory.load(store.placement.base_gpa + at + 8, 8, private=True)) == (1,)


def test_puts_raise_versions_and_every_answer_passes(store) -> None:
    assert store.run(200).shutdown is None
    versions = struct.unpack("<64Q", store.memory.load(store.placement.base_gpa, 512, private=True))
    assert min(versions) > 1
    assert store.registers.r13 == store.registers.r12 * PARAMETERS["batch"]


def test_a_store_that_only_reads_leaves_memory_alone(machine) -> None:
    store = machine("key-value-store", **PARAMETERS, read_share=1.0)
    while store.registers.rip != SERVE_RIP:
        store.step()
    before = store.memory.image()
    assert store.run(60).shutdown is None
    assert store.memory.image() == before


def test_two_records_swapped_are_noticed(store) -> None:
    base = store.placement.base_gpa
    (_, first), (_, second), *_ = sorted(records(store).items())
    one, other = (store.memory.load(base + at, SLOT, private=True) for at in (first, second))
    store.memory.store(base + first, other[:16] + one[16:], private=True)
    assert store.run(200).shutdown == Shutdown(1)


def test_a_record_that_disappeared_is_noticed(store) -> None:
    gpa = store.placement.base_gpa + records(store)[5]
    store.memory.store(gpa, bytes(SLOT), private=True)
    assert store.run(200).shutdown == Shutdown(1)


def test_a_table_full_of_strangers_ends_after_a_bounded_search(machine) -> None:
    store = machine("key-value-store", **(PARAMETERS | {"records": 2000}))
    while store.registers.rip != SERVE_RIP:
        store.step()
    length = store.program.parameters.private_bytes
    stranger = struct.pack("<Q", 1) + bytes(SLOT - 8)
    start = store.placement.base_gpa + 16_384
    store.memory.store(start, stranger * ((length - 16_384) // SLOT), private=True)
    before = store.memory.operations
    assert store.run(400).shutdown == Shutdown(1)
    assert store.memory.operations - before < 64 * 64 * 2


@pytest.mark.parametrize("records_", [1, 2, 3, 4, 5, 31])
def test_tables_of_few_records_work(machine, records_) -> None:
    assert machine("key-value-store", **(PARAMETERS | {"records": records_})).run(60).shutdown is None
