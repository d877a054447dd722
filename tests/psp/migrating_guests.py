"""Two machines with migration agents and guests to be moved, driven by mailbox and sealed messages alone."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import Callable, Sequence
from typing import TypeVar

from asking_guest import RESPONSE, opened, sealed, submit
from toy_machine import FIRMWARE, GCTX, PAGE, Machine, context, up

from psp import command_buffers as buffers
from psp.commands import SnpCommand
from psp.guest_message import MessageType
from psp.launch_digest import PageType
from psp.system_bus import RmpEntry

AGENT, OTHER = GCTX + PAGE, GCTX + 2 * PAGE
"""Contexts of a migration agent, and of one guest more."""
PAGES = 0x20_0000
"""Where the pages of guests lie, from here on."""
POLICY, MOVABLE = 0x3_0000, 0x7_0000
ASIDS = {GCTX: 2, AGENT: 3, OTHER: 4}
MA_EN, IMI_EN = 1, 2
IMI_PAGE = 1 << 4

CONTENTS = [bytes([number]) * PAGE for number in (0x11, 0x22)]
VALID_ROOT = bytes(0x20) + b"\1" + bytes(31)
"""A root entry of a page that is out, as far as IMPORT looks at it."""

A = TypeVar("A")
Pages = Sequence[tuple[bytes, int]]
"""Contents, and flags beside page type and size."""


def machine_of(salt: str) -> Machine:
    """A machine with a chip of its own."""
    machine = up(legacy=False)

    def octets(purpose: str, counter: int, length: int) -> bytes:
        return hashlib.shake_128(f"{salt} {purpose} {counter}".encode()).digest(length)

    machine.psp._octets = octets
    machine.bus.rmp_set(RESPONSE, FIRMWARE)
    return machine


def fresh(machine: Machine, gctx: int) -> None:
    """A context in which nothing was launched."""
    machine.bus.rmp_set(gctx, FIRMWARE)
    assert machine.call(SnpCommand.GCTX_CREATE, buffers.GuestContextPage(gctx).pack()) == 0


def start(machine: Machine, gctx: int, policy: int = POLICY, agent: int = 0, flags: int = 0) -> int:
    """SNP_LAUNCH_START."""
    return machine.call(SnpCommand.LAUNCH_START, buffers.SnpLaunchStart(gctx, policy, agent, flags).pack())


def launched(
    machine: Machine, gctx: int, policy: int = POLICY, agent: int = 0, flags: int = 0, pages: Pages = ()
) -> None:
    """A guest that runs, with pages from its address 0x10000 on."""
    fresh(machine, gctx)
    assert start(machine, gctx, policy, agent, flags) == 0
    asid = ASIDS[gctx]
    assert machine.call(SnpCommand.ACTIVATE, buffers.SnpActivate(gctx, asid).pack()) == 0
    for number, (contents, more) in enumerate(pages):
        spa = frame(gctx, number)
        machine.bus.write(spa, contents)
        machine.bus.rmp_set(spa, ready(gctx, number))
        update = buffers.SnpLaunchUpdate(gctx, PageType.NORMAL << 1 | more, spa)
        assert machine.call(SnpCommand.LAUNCH_UPDATE, update.pack()) == 0
    assert machine.call(SnpCommand.LAUNCH_FINISH, buffers.SnpLaunchFinish(gctx, host_data=b"H" * 32).pack()) == 0


def frame(gctx: int, number: int) -> int:
    """Where a guest's page lies."""
    return PAGES + ASIDS[gctx] * 0x1_0000 + number * PAGE


def ready(gctx: int, number: int) -> RmpEntry:
    """A Pre-Guest page of a guest's."""
    return RmpEntry(
        assigned=True, immutable=True, gpa=0x1_0000 + number * PAGE, asid=ASIDS[gctx], vmpl_permissions=(15, 0, 0, 0)
    )


def agents(agent_policy: int = POLICY) -> tuple[Machine, Machine]:
    """A source and a target, each with an agent."""
    machines = machine_of("source"), machine_of("target")
    for machine in machines:
        launched(machine, AGENT, agent_policy)
    return machines


def ask(machine: Machine, gctx: int, kind: int, payload: bytes, vmpl: int = 0) -> bytes:
    """The payload of the answer to a good message of a guest's."""
    guest = context(machine, gctx)
    key, count = guest.vmpck(vmpl), guest.message_counts[vmpl]
    assert submit(machine, sealed(key, count + 1, kind, payload, vmpl), gctx=gctx) == 0
    sequence, answered, _, answer = opened(key, machine.bus.read(RESPONSE, PAGE))
    assert (sequence, answered) == (count + 2, kind + 1)
    return answer


def status_of(answer: bytes) -> int:
    return int.from_bytes(answer[:4], "little")


def exported(machine: Machine, asking: int, gctx: int, flags: int = 0, vmpl: int = 0) -> bytes:
    """The context that MSG_EXPORT_REQ is answered with."""
    answer = ask(machine, asking, MessageType.EXPORT_REQ, struct.pack("<QQ", gctx, flags), vmpl)
    assert (status_of(answer), len(answer)) == (0, 0x320)
    assert answer[4:0x20] == struct.pack("<II20x", 0x300, 2)
    return answer[0x20:]


def brought(gctx: int, blob: bytes, size: int = 0x300, version: int = 2) -> bytes:
    """The payload of MSG_IMPORT_REQ and the absorbing requests."""
    return struct.pack("<QII16x", gctx, size, version) + blob


def imported(machine: Machine, asking: int, gctx: int, blob: bytes, kind: int = MessageType.IMPORT_REQ) -> int:
    """The status that taking a context in ends with."""
    answer = ask(machine, asking, kind, brought(gctx, blob))
    assert len(answer) == 0x10
    assert not any(answer[4:])
    return status_of(answer)


def give_vmrk(machine: Machine, key: bytes, vmpl: int = 0, gctx: int = GCTX) -> int:
    """The status that the agent gets for a root of a guest's keys."""
    return status_of(ask(machine, AGENT, MessageType.VMRK_REQ, struct.pack("<Q24x32s", gctx, key), vmpl))


def unchanged_but_for(machine: Machine, gctx: int, vmpl: int, action: Callable[[], A]) -> A:
    """An answer that leaves all as it was, but for the number of the message under one key."""
    before, contexts = machine.firmware_state(), {}
    for spa in machine.psp.snp.guests.pages.spas:
        contexts[spa] = context(machine, spa)
    answer = action()
    count = contexts[gctx].message_counts[vmpl] + 2
    contexts[gctx] = dataclasses.replace(contexts[gctx], **{f"message_count_{vmpl}": count})
    assert {spa: context(machine, spa) for spa in machine.psp.snp.guests.pages.spas} == contexts
    assert machine.firmware_state() == before
    return answer
