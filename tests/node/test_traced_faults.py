"""Nested faults as exits: the hypervisor learns where, the guest goes on as if nothing had been, and loses nothing."""

import pytest
from toy_guests import GENERATIONS, SECOND, make_host, run, script, start

from node import operations as op
from node.generation import Generation
from node.guest import GuestState
from node.vcpu import VcpuState
from psp.system_bus import PAGE_BYTES

SNP = Generation.SEV_SNP
FIRST, SECOND_PAGE = 0, 1


class Guest:
    """A guest that stores to two pages and reads both back, in one batch, once a second."""

    def __init__(self, generation: Generation) -> None:
        self.seen: list[tuple[object, ...]] = []
        self.host = make_host({"vm": script(self._program)})
        self.guest = start(self.host, "vm", generation, "vm")
        run(self.host, SECOND // 2)
        self.base = self.guest.spec.memory.placement("vm", 0, 11).base_gpa
        board = self.host.board
        self.spas = [board.vmcb("vm", 0).nested.translate(gpa, 1)[0][0] for gpa in self.pages]
        if generation is SNP:
            block = self.spas[0] // (2 << 20) * (2 << 20)
            assert self.by_host(op.PSmash(block)) == (0,)
            self.host.hypervisor.launched("vm").smashed.add(block)

    @property
    def pages(self) -> list[int]:
        return [self.base, self.base + PAGE_BYTES]

    def _program(self, place, registers):
        registers.r13 += 1
        word = registers.r13.to_bytes(8, "little")
        stores = [op.Write(place.base_gpa + page * PAGE_BYTES, word) for page in (FIRST, SECOND_PAGE)]
        loads = [op.Read(place.base_gpa + page * PAGE_BYTES, 8) for page in (FIRST, SECOND_PAGE)]
        self.seen.append((yield (*stores, *loads)))
        return op.Sleep(SECOND)

    def by_host(self, *batch):
        return self.host.board.execute_host(batch)

    def unmap(self, page: int) -> None:
        assert self.by_host(op.NestedUnmap("vm", self.pages[page], PAGE_BYTES)) == (None,)

    def map(self, page: int) -> None:
        assert self.by_host(op.NestedMap("vm", self.pages[page], self.spas[page], PAGE_BYTES)) == (None,)

    def on(self, more_ns: int = SECOND * 3 // 2) -> None:
        run(self.host, self.host.now_ns + more_ns)

    @property
    def state(self) -> VcpuState:
        return self.guest.vcpus[0].state


def full(number: int) -> tuple[object, ...]:
    word = number.to_bytes(8, "little")
    return None, None, word, word


@pytest.fixture(params=GENERATIONS, ids=lambda one: one.name)
def traced(request: pytest.FixtureRequest) -> Guest:
    guest = Guest(request.param)
    guest.by_host(op.TraceFaults("vm", on=True))
    return guest


@pytest.mark.parametrize("page", [FIRST, SECOND_PAGE])
def test_a_fault_exits_and_the_instruction_is_tried_again(traced: Guest, page: int) -> None:
    traced.unmap(page)
    traced.on()
    assert (traced.state, traced.seen) == (VcpuState.HELD, [full(1)])
    names = ("EXITCODE", "EXITINFO2")
    assert traced.by_host(*[op.VmcbLoad("vm", 0, name) for name in names]) == (0x400, traced.pages[page])
    traced.on(5 * SECOND)
    assert traced.state is VcpuState.HELD
    # Entered without a change it faults again; with one it goes on.
    assert traced.by_host(op.VmKick("vm", 0)) == (0,)
    traced.on(1000)
    assert traced.state is VcpuState.HELD
    traced.map(page)
    assert traced.by_host(op.VmKick("vm", 0)) == (0,)
    traced.on(SECOND // 2)
    assert (traced.state, traced.seen) == (VcpuState.SLEEPING, [full(1), full(2)])
    assert traced.guest.faults == 0


def test_one_fault_after_another(traced: Guest) -> None:
    for page in (FIRST, SECOND_PAGE):
        traced.unmap(page)
    traced.on()
    for page in (FIRST, SECOND_PAGE):
        assert traced.by_host(op.VmcbLoad("vm", 0, "EXITINFO2")) == (traced.pages[page],)
        traced.map(page)
        traced.by_host(op.VmKick("vm", 0))
        traced.on(1000)
    assert traced.seen == [full(1), full(2)]


def test_a_pause_waits_for_one_that_is_held(traced: Guest) -> None:
    traced.unmap(SECOND_PAGE)
    traced.on()
    parked = []
    traced.host.pause("vm", lambda: parked.append(1))
    traced.on()
    assert parked == []
    traced.host.resume("vm")
    traced.on()
    assert traced.state is VcpuState.HELD
    traced.host.pause("vm", lambda: parked.append(1))
    traced.map(SECOND_PAGE)
    traced.by_host(op.VmKick("vm", 0))
    traced.on(1000)
    assert (parked, traced.state, traced.seen) == ([1], VcpuState.PAUSED, [full(1), full(2)])
    traced.host.resume("vm")
    traced.on(3 * SECOND)
    assert traced.seen[:4] == [full(number) for number in (1, 2, 3, 4)]


def test_one_that_is_held_can_be_destroyed(traced: Guest) -> None:
    traced.unmap(FIRST)
    traced.on()
    traced.host.destroy("vm")
    traced.on()
    assert traced.guest.state is GuestState.DESTROYED
    assert traced.host.board.traced == set()


@pytest.mark.parametrize("generation", GENERATIONS)
def test_without_the_wish_a_fault_is_the_guests_to_see(generation: Generation) -> None:
    guest = Guest(generation)
    guest.by_host(op.TraceFaults("vm", on=True), op.TraceFaults("vm", on=False))
    guest.unmap(FIRST)
    guest.on()
    assert [type(one) for one in guest.seen[1]] == [op.Fault, type(None), op.Fault, bytes]
