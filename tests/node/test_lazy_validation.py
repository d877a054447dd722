"""A kernel that accepts memory when it is touched ends up like one that accepts all, and sees the same attacks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from node import operations as op
from node.generation import Generation
from node.ghcb_msr import LinuxReason, ReasonSet
from node.guest import GuestState
from node.guest_memory_map import SHARED_GPA, VALIDATION_BOOK_GPA, GuestMemoryMap
from node.kernel_settings import CAREFUL, KernelSettings
from node.operations import Fault, FaultKind, PValidate, PValidateResult, Read, Shutdown, Sleep, UpkeepRead, Write
from node.page_acceptance import PageAcceptance, ValidationRefused
from node.vcpu_runner import TERMINATED
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES, RmpEntry
from tests.node.toy_guests import MIB, final_state, guest_spec, make_host, run, script, spa

SNP = Generation.SEV_SNP
LAZY = KernelSettings(lazy_validation=True)
ATTACKED = TERMINATED | ReasonSet.LINUX << 8 | LinuxReason.PVALIDATE


def snp(program, settings=LAZY, programs=None, vcpus=1, **parameters):
    host = make_host(programs)
    spec = replace(guest_spec("vm", SNP, program, vcpus, **parameters), kernel=settings)
    host.launch(spec, lambda _: None, running=True)
    return host, host.guests["vm"]


def validated(host, guest, gpa):
    return host.board.rmp.entry(spa(host, guest, gpa) // PAGE_BYTES * PAGE_BYTES).validated


def accepted_bytes(host, guest):
    ram = range(0, guest.spec.memory_bytes, PAGE_BYTES)
    return sum(validated(host, guest, gpa) for gpa in ram) * PAGE_BYTES


def test_programs_come_to_the_same_end_whichever_way_their_memory_is_accepted():
    states = []
    for settings in (CAREFUL, LAZY):
        host, guest = snp("ledger", settings, vcpus=2, units=5)
        run(host)
        assert guest.state is GuestState.RUNNING
        states.append(final_state(host, guest, 4 * MIB if settings is CAREFUL else 2 * MIB))
    (registers, eager, units), (_, lazy, _) = states
    assert registers == states[1][0]
    assert units == states[1][2] == 10
    # The ledger keeps to its first 2 MiB; the toy looks at its memory through the same handler.
    assert [part[: 2 * MIB] for part in eager] == [part[: 2 * MIB] for part in lazy]


def test_only_what_was_touched_is_accepted_beyond_the_kernels_own_memory():
    def touch(place, _):
        first = place.base_gpa + 3 * LARGE_PAGE_BYTES
        # Across the border of two chunks, and what lies in a third; all in one batch.
        done = yield (Write(first - 8, b"x" * 16), Read(first - 8, 16), Write(first + 5 * LARGE_PAGE_BYTES, b"y"))
        return Shutdown(1) if done != (None, b"x" * 16, None) else Sleep(10**18)

    host, guest = snp("touch", programs={"touch": script(touch)})
    run(host)
    place = guest.spec.memory.placement("vm", 0, 11)
    assert guest.state is GuestState.RUNNING
    expected = [place.base_gpa + number * LARGE_PAGE_BYTES for number in (2, 3, 8)]
    chunks = range(place.base_gpa, place.base_gpa + place.length, LARGE_PAGE_BYTES)
    assert [chunk for chunk in chunks if validated(host, guest, chunk)] == expected
    assert validated(host, guest, VALIDATION_BOOK_GPA)
    assert accepted_bytes(host, guest) < SHARED_GPA + 3 * LARGE_PAGE_BYTES + MIB


def replaced(host, guest, gpa):
    """The hypervisor puts a fresh page that is duly the guest's in the place of one that it has in use."""
    ((fresh, _),) = host.hypervisor.frames.allocate(PAGE_BYTES, PAGE_BYTES)
    block = spa(host, guest, gpa) // LARGE_PAGE_BYTES * LARGE_PAGE_BYTES
    answers = host.board.execute_host(
        (
            op.PSmash(block),
            op.RmpUpdate(fresh, PAGE_BYTES, RmpEntry(assigned=True, gpa=gpa, asid=guest.asid)),
            op.NestedMap("vm", gpa, fresh, PAGE_BYTES),
        )
    )
    assert answers == (0, 0, None)


def keep(place, registers):
    """Write once, then read what was written again and again."""
    if not registers.r13:
        yield (Write(place.base_gpa, b"kept"),)
    else:
        (kept,) = yield (Read(place.base_gpa, 4),)
        if kept != b"kept":
            return Shutdown(1)
    registers.r13 += 1
    return Sleep(10**9)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("tracks", [False, True])
def test_a_page_in_the_place_of_one_in_use_ends_the_guest_that_keeps_books(lazy, tracks):
    settings = KernelSettings(lazy_validation=lazy, tracks_validation=tracks)
    host, guest = snp("keep", settings, {"keep": script(keep)})
    run(host, 5 * 10**9)
    assert guest.state is GuestState.RUNNING
    replaced(host, guest, guest.spec.memory.placement("vm", 0, 11).base_gpa)
    run(host, 20 * 10**9)
    # Without books it validates the page and reads what it never wrote: its own comparison alone finds out.
    assert (guest.state, guest.shutdown_code) == (GuestState.STOPPED, ATTACKED if tracks else 1)


@pytest.mark.parametrize("checks", [True, False])
def test_a_chunk_validated_behind_the_guests_back_is_no_fresh_memory(checks):
    settings = replace(LAZY, checks_carry=checks)
    host, guest = snp("keep", settings, {"keep": script(keep)})
    run(host, 0)
    chunk = guest.spec.memory.placement("vm", 0, 11).base_gpa
    vmcb = host.board.vmcb("vm", 0)
    # All but the first page, which the guest then finds not to be valid.
    host.board.execute_host((op.PSmash(spa(host, guest, chunk)),))
    rest = PValidate(chunk + PAGE_BYTES, LARGE_PAGE_BYTES - PAGE_BYTES, large=False)
    assert host.board.execute_guest(vmcb, (rest,)) == (PValidateResult(0, unchanged=False),)
    run(host, 20 * 10**9)
    assert guest.state is (GuestState.STOPPED if checks else GuestState.RUNNING)
    assert guest.shutdown_code == (ATTACKED if checks else 0)


def test_smashed_chunks_are_accepted_page_by_page():
    host, guest = snp("keep", LAZY, {"keep": script(keep)})
    run(host, 0)
    chunk = guest.spec.memory.placement("vm", 0, 11).base_gpa
    host.board.execute_host((op.PSmash(spa(host, guest, chunk)),))
    run(host, 5 * 10**9)
    assert guest.state is GuestState.RUNNING
    assert validated(host, guest, chunk + LARGE_PAGE_BYTES - PAGE_BYTES)


# Two vCPUs at one chunk: every way in which their steps can follow each other.

MEMORY = GuestMemoryMap(64 * MIB, 2)
CHUNK = MEMORY.placement("vm", 0, 0).base_gpa
NOTE = VALIDATION_BOOK_GPA + CHUNK // LARGE_PAGE_BYTES


class Chunk:
    """A chunk, its note in the book, and PVALIDATE as the RMP answers it."""

    def __init__(self, small: bool) -> None:
        self.note, self.valid, self.small = 0, 0, small

    def answer(self, one):
        if isinstance(one, Read):
            assert one == UpkeepRead(NOTE, 1)
            return bytes((self.note,))
        if isinstance(one, Write):
            assert one.gpa == NOTE
            (self.note,) = one.data
            return None
        assert (one.gpa, one.length) == (CHUNK, LARGE_PAGE_BYTES)
        if one.large and self.small:
            return PValidateResult(6, unchanged=False)
        before, self.valid = self.valid, 512
        return PValidateResult(0, unchanged=before > 0)


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("order", range(64))
def test_two_vcpus_at_one_chunk_are_no_attack(order, small):
    chunk = Chunk(small)
    acceptance = PageAcceptance(MEMORY, (), LAZY)
    waiting = {number: (acceptance.touched(CHUNK, again=False), None) for number in (0, 1)}
    for step in range(1000):
        if not waiting:
            break
        number = order >> step & 1 if step < 6 else step & 1
        number = number if number in waiting else 1 - number
        steps, answers = waiting[number]
        try:
            batch = steps.send(answers)
        except StopIteration:
            # The access is made again, and finds the page valid.
            assert chunk.valid
            del waiting[number]
            continue
        waiting[number] = steps, tuple([chunk.answer(one) for one in batch])
    assert not waiting
    assert chunk.note == 2


@pytest.mark.parametrize("answer", [Fault(FaultKind.RMP_FAULT, 0), b"\x07", None])
def test_a_book_that_cannot_be_read_is_no_book(answer):
    steps = PageAcceptance(MEMORY, (), LAZY).touched(CHUNK, again=False)
    next(steps)
    with pytest.raises(ValidationRefused):
        steps.send((answer,))
