"""The hypervisor does with a moving VM what it likes (rows 56, 57, 58 and 60): it carries all of it, on both hosts.

A VM without a key of its own it can copy as often as it wants. SEV's firmware binds a packet to its session and to
nothing else, and takes no key away. What SNP's migration agents move is bound to entries that firmware keeps.
"""

from __future__ import annotations

from collections.abc import Generator

from node.operations import Answer, DiskRead, DiskWrite, HostRead, Runs
from psp import command_buffers as buffers
from psp.commands import LegacyCommand
from psp.secret_packet import PacketHeader
from psp.system_bus import PAGE_BYTES
from workloads.attacks.fake_target import packet_of
from workloads.attacks.firmware_call import FirmwareCall, Steps
from workloads.attacks.move_operations import (
    Agree,
    GoOnHere,
    KeepPlace,
    LayThere,
    OpenThere,
    RunThere,
    StayHere,
    TakeOut,
)
from workloads.attacks.stream import Page, framed, opened, page_of, with_page
from workloads.attacks.swapped_page import SwappedPage
from workloads.attacks.target import LET_IT_RUN, WRITE_BACK, Attack, AttackBatch, Target

_Carried = Generator[AttackBatch, tuple[Answer, ...], bytes]
_Packet = Generator[AttackBatch, tuple[Answer, ...], Page]


def permute(target: Target) -> Attack:
    """Row 56: two pages change places on the way."""
    first, second = target.victim.value.gpa, target.victim.other.gpa
    yield LET_IT_RUN
    session = yield from agree()
    stream = yield from take_out()
    if not stream:
        return
    state = opened(target.victim, stream)
    one, other = page_of(state, first), page_of(state, second)
    swapped = with_page(with_page(state, first, other), second, one)
    yield from come_up(session, framed(swapped))


def replay(target: Target) -> Attack:
    """Row 56: a page arrives as it was in an earlier round of the same move."""
    gpa = target.victim.value.gpa
    yield LET_IT_RUN
    session = yield from agree()
    older = yield from _packet(target)
    yield LET_IT_RUN
    stream = yield from take_out()
    if stream:
        yield from come_up(session, framed(with_page(opened(target.victim, stream), gpa, older)))


def _packet(target: Target) -> _Packet:
    """A page of the victim's as it is now, in the form in which it travels."""
    victim = target.victim
    yield WRITE_BACK
    if victim.gctx:
        swapped = SwappedPage.of(target, victim.value)
        yield from swapped.begin()
        sealed = yield from swapped.out(0)
        yield from swapped.back(0, sealed)
        return bytes(PacketHeader.SIZE), sealed
    if not victim.handle:
        (page,) = yield (HostRead(victim.value.spa, PAGE_BYTES, encrypted=victim.c_bit),)
        return b"", page if isinstance(page, bytes) else b""
    packet = yield from packet_of(target, victim.value.spa)
    return packet[: PacketHeader.SIZE], packet[PacketHeader.SIZE :]


def run_on(target: Target) -> Attack:
    """Row 57: the victim has come up elsewhere, SEND_FINISH was, and here it goes on all the same."""
    yield LET_IT_RUN
    session = yield from agree()
    stream = yield from take_out()
    if not stream:
        return
    yield from come_up(session, stream)
    if target.victim.handle:
        finish = buffers.Handle(target.victim.handle)
        yield FirmwareCall.of(target).plain(LegacyCommand.SEND_FINISH, finish)
    yield (GoOnHere(stream),)
    yield LET_IT_RUN


def take_in_twice(_: Target) -> Attack:
    """Row 58: what travelled once comes up twice; the first one has run when the second begins where it began."""
    yield LET_IT_RUN
    session = yield from agree()
    stream = yield from take_out()
    if stream:
        yield from come_up(session, stream)
        yield (KeepPlace(),)
        yield from come_up(session, stream)


def take_back_too(_: Target) -> Attack:
    """Row 58: what travelled comes up, and its source is told that the move has failed."""
    yield LET_IT_RUN
    session = yield from agree()
    stream = yield from take_out()
    if not stream:
        return
    yield from come_up(session, stream)
    yield (StayHere(),)
    yield LET_IT_RUN


def roll_back(_: Target) -> Attack:
    """Row 60: the move is called off and the victim goes on; later it is as it was when it was read."""
    yield LET_IT_RUN
    session = yield from agree()
    stream = yield from take_out()
    yield (StayHere(),)
    yield LET_IT_RUN
    yield LET_IT_RUN
    if stream:
        yield from come_up(session, stream)


def roll_back_disk(target: Target) -> Attack:
    """Row 60: the disk is as it was, and the machine goes on."""
    yield LET_IT_RUN
    (old,) = yield (DiskRead(target.victim.vm),)
    yield LET_IT_RUN
    yield LET_IT_RUN
    if isinstance(old, Runs):
        yield tuple(DiskWrite(target.victim.vm, lba, data) for lba, data in old.runs)


def agree() -> _Carried:
    """Both firmwares, or agents, agree; what the source's has for the other."""
    (shown,) = yield (KeepPlace(),)
    (session,) = yield (Agree(shown if isinstance(shown, bytes) else b""),)
    return session if isinstance(session, bytes) else b""


def take_out() -> _Carried:
    """The victim as it travels; nothing where it is not sent."""
    (stream,) = yield (TakeOut(),)
    return stream if isinstance(stream, bytes) else b""


def come_up(session: bytes, stream: bytes) -> Steps:
    """The victim elsewhere, for one round."""
    yield (OpenThere(session),)
    yield (LayThere(stream),)
    yield (RunThere(),)
