"""A kernel's exits with its GHCB page, step by step: what it goes on with, and what it does not."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from node import operations as op
from node.ap_wake import wait_by_page, wake
from node.ghcb_page import GHCB_BYTES, SHARED_BUFFER, GhcbUntrusted, build_reply, exception_event
from node.guest_ghcb import change_pages, exit_between, mmio_load, mmio_store, page_exit
from node.nae_event import NaeEvent
from node.page_state_list import LIST_BYTES, PageOperation

GPA, DEVICE = 0x20_0000, 0xFEC0_0000
RAISES_GP = build_reply(1, exception_event(13, 0))


def page(head: bytes, buffer: bytes = b"") -> bytes:
    return head.ljust(SHARED_BUFFER, b"\0") + buffer.ljust(GHCB_BYTES - SHARED_BUFFER, b"\0")


def run(steps: Generator, *replies: bytes | op.Answer, around: tuple[op.Answer, ...] = ()) -> object:
    """What the steps come to, if each exit brings the next page back."""
    pages, answers = list(replies), None
    while True:
        try:
            batch = steps.send(answers)
        except StopIteration as end:
            return end.value
        answers = tuple([_answer(one, pages) for one in batch])
        if around:
            answers = (around[0], *answers[1:-1], around[1])


def _answer(one: op.GuestOperation, pages: list[bytes]) -> op.Answer:
    if isinstance(one, op.VmgExit):
        return one.msr
    return pages.pop(0) if isinstance(one, op.Read) and one.gpa == GPA else None


def test_a_load_from_a_device_is_what_lies_in_the_buffer() -> None:
    assert run(mmio_load(GPA, DEVICE, 4), page(build_reply(0, 0), b"\1\2\3\4\5")) == 0x0403_0201
    assert run(mmio_store(GPA, DEVICE, 7, 4), page(build_reply(0, 0))) is None


@pytest.mark.parametrize("steps", [lambda: mmio_load(GPA, DEVICE, 4), lambda: mmio_store(GPA, DEVICE, 7, 4)])
def test_no_exception_comes_of_a_device(steps) -> None:
    with pytest.raises(GhcbUntrusted, match="MMIO: exception 13"):
        run(steps(), page(RAISES_GP))


def test_a_vcpu_that_waits_goes_on_when_it_was_woken_and_not_otherwise() -> None:
    assert run(wait_by_page(GPA), page(build_reply(0, 1))) is None
    for head in (build_reply(0, 0), RAISES_GP):
        with pytest.raises(GhcbUntrusted, match="AP reset hold"):
            run(wait_by_page(GPA), page(head))


def test_a_hypervisor_that_knows_no_interrupt_commands_starts_nobody() -> None:
    done = page(build_reply(0, 0))
    assert run(wake(GPA, 1), done, done) is None
    for replies in ((page(RAISES_GP),), (done, page(RAISES_GP))):
        with pytest.raises(GhcbUntrusted, match="interrupt command"):
            run(wake(GPA, 1), *replies)


def progress(current: int) -> bytes:
    return page(build_reply(0, 0), current.to_bytes(2, "little").ljust(LIST_BYTES, b"\0"))


def test_a_list_that_is_done_in_parts_is_done() -> None:
    pages = 3 * 4096
    assert run(change_pages(GPA, 0x1000, pages, PageOperation.SHARED), progress(2), progress(1)) is None


@pytest.mark.parametrize("moved", [(4,), (0,), (2, 2), (2, 0), (1, 1, 2)])
def test_no_part_of_a_list_is_longer_than_what_is_left_or_nothing(moved: tuple[int, ...]) -> None:
    with pytest.raises(GhcbUntrusted, match="current entry"):
        run(change_pages(GPA, 0x1000, 3 * 4096, PageOperation.SHARED), *map(progress, moved))


def test_what_must_come_just_before_an_exit_must_have_come() -> None:
    def between() -> Generator:
        return exit_between(GPA, NaeEvent.GUEST_REQUEST, (0x1000, 0x2000), {}, op.Write(1, b"x"), op.Read(2, 1))

    reply, last = run(between(), page(build_reply(0, 5)), around=(None, b"y"))
    assert (reply.info2, last) == (5, b"y")
    with pytest.raises(GhcbUntrusted, match="GUEST_REQUEST"):
        run(between(), page(build_reply(0, 5)), around=(op.Fault(op.FaultKind.RMP_FAULT, 1), b"y"))


@pytest.mark.parametrize("back", [None, b"", bytes(GHCB_BYTES - 1), op.Fault(op.FaultKind.RMP_FAULT, GPA)])
def test_a_page_that_does_not_come_back_is_no_reply(back: op.Answer) -> None:
    with pytest.raises(GhcbUntrusted, match="VMGEXIT"):
        run(page_exit(GPA, NaeEvent.WBINVD), back)
