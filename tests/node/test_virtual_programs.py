"""Programs that use virtual addresses on a host: their state goes with them, and their stores are logged."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
from paged_guests import LME, NXE, PAE, PAGE, PE, PG, WP, C, P, W
from toy_guests import GENERATIONS, make_host, run, script, start

from node import operations as op
from node.dirty_log import DirtyLog
from node.generation import Generation
from node.platform import Platform
from node.program import Placement, Registers

GVA, SECRET = 0x7F12_3456_7000, b"by virtual address"


def pages(step: Any) -> Any:
    """A program that turns paging on, with four tables at the start of its memory and a page behind them."""

    def program(place: Placement, registers: Registers) -> Generator[Any, Any, Any]:
        if not registers.r13:
            tables = [place.base_gpa + number * PAGE for number in range(5)]
            c_bit = 0 if place.vm == Generation.PLAIN.name else C
            zeros = [op.Write(gpa, bytes(PAGE)) for gpa in tables]
            links = [
                op.Write(table + (GVA >> shift & 511) * 8, (below | P | W | c_bit).to_bytes(8, "little"))
                for table, below, shift in zip(tables, tables[1:], (39, 30, 21, 12), strict=False)
            ]
            controls = [("CR4", PAE), ("EFER", LME | NXE), ("CR3", tables[0]), ("CR0", PG | PE | WP)]
            yield (*zeros, *links, *[op.WriteControl(*one) for one in controls])
        registers.r13 += 1
        return (yield from step(place, registers))

    return program


def rewrite(_: Placement, registers: Registers) -> Generator[Any, Any, Any]:
    """Check what was written before, write it anew, and rest a while."""
    before, wrote = yield (op.VirtualRead(GVA, len(SECRET)), op.VirtualWrite(GVA, SECRET))
    if wrote is not None or (registers.r13 > 1 and before != SECRET):
        return op.Shutdown(1)
    return op.Sleep(1_000_000)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_control_registers_and_tables_outlive_a_pause(generation: Generation) -> None:
    host = make_host({"pages": script(pages(rewrite))})
    guest = start(host, generation.name, generation, "pages")
    run(host, 10_000_000)
    host.pause(generation.name)
    run(host, 20_000_000)
    units = guest.vcpus[0].registers.r13
    host.resume(generation.name)
    run(host, 60_000_000)
    assert guest.state.name == "RUNNING"
    assert guest.vcpus[0].registers.r13 > max(units, 20)
    assert guest.faults == 0
    assert guest.bytes_written > 20 * len(SECRET)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_vcpus_with_tables_of_their_own_do_not_meet_in_translation_buffers(generation: Generation) -> None:
    """Two of one VM, with one ASID and one virtual address for different pages; paused and resumed on the way."""

    def own(place: Placement, registers: Registers) -> Generator[Any, Any, Any]:
        mark = bytes([place.vcpu + 1]) * 8
        before, wrote = yield (op.VirtualRead(GVA, 8), op.VirtualWrite(GVA, mark))
        if wrote is not None or (registers.r13 > 1 and before != mark):
            return op.Shutdown(1)
        return op.Sleep(1_000_000)

    host = make_host({"own": script(pages(own))}, platform=Platform(tlb_entries=16))
    guest = start(host, generation.name, generation, "own", vcpus=2)
    for end in (10_000_000, 20_000_000, 30_000_000):
        run(host, end)
        host.pause(generation.name)
        run(host, end + 5_000_000)
        host.resume(generation.name)
    run(host, 60_000_000)
    assert guest.state.name == "RUNNING"
    assert min(vcpu.registers.r13 for vcpu in guest.vcpus) > 20
    tlb = host.board.tlb
    assert tlb is not None
    assert tlb.hits > tlb.misses


def test_a_store_by_virtual_address_is_logged_where_it_goes() -> None:
    host = make_host({"pages": script(pages(rewrite))})
    guest = start(host, Generation.PLAIN.name, Generation.PLAIN, "pages")
    run(host, 10_000_000)
    guest.dirty_log = DirtyLog()
    run(host, 20_000_000)
    # The page that the address leads to and no other: A and D bits were set before the log began.
    assert guest.dirty_log.written_since(0) == 1
    log, guest.dirty_log = guest.dirty_log, None
    run(host, 30_000_000)
    assert log.written_since(20_000_000) == 0
