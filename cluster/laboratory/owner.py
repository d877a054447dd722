"""The victim's owner: sends a secret to a guest whose report is what it expects, and to no other.

The firmware builds no reports yet, so the owner is shown what one would say: the digest in the
context, and whether boot firmware looked for aliases. As with a real report, only code that
holds the context's own message key can have one: it has that key from its secrets page.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.laboratory.owner_secret import IMPOSTOR, SECRET
from cluster.oracle.transcript import Transcript
from node.actor import Actor, Role
from node.board import Board
from node.operations import Answer
from psp.alias_check import AliasCheck
from psp.guest_context import VMPCK_BYTES, SnpGuestState
from psp.launch_digest import LaunchDigest, PageType
from psp.launch_pages import SECRETS_VMPCKS_OFFSET
from psp.status import PspError
from psp.system_bus import PAGE_BYTES
from workloads.attacks.forged_measurement import VICTIMS_CODE
from workloads.attacks.owner_operations import AskOwner
from workloads.attacks.small_guest import CODE_GPA, SECRETS_GPA




class _Unconvinced(Exception):
    """The owner sends nothing, and says why."""


@dataclass(frozen=True, slots=True)
class Owner:
    """What it expects is worked out from its own image, without a host."""

    board: Board
    transcript: Transcript
    victim: str
    demands_alias_check: bool = False
    """It accepts no platform whose report says that nobody looked for aliases (bit 5 of the platform's information)."""

    def act(self, batch: tuple[AskOwner, ...]) -> tuple[Answer, ...]:
        """Answer each who asks; the transcript has who that was, and what the owner noticed."""
        return tuple([self._answer(one) for one in batch])

    def _answer(self, one: AskOwner) -> Answer:
        try:
            asker = self._convinced_by(one)
        except _Unconvinced as doubt:
            self.transcript.complain(self.victim, str(doubt))
            return None
        self.transcript.observe(Actor(Role.GUEST, asker), (one,), (SECRET,))
        return SECRET

    def _convinced_by(self, one: AskOwner) -> str:
        """Who asks. Raises _Unconvinced."""
        psp = self.board.psp
        try:
            context = psp.snp.guests.pages.read(one.context)
        except PspError as refused:
            raise _Unconvinced(f"no report: {refused}") from None
        read = self.board.controller.read
        own_key = read(one.secrets + SECRETS_VMPCKS_OFFSET, VMPCK_BYTES, context.asid)
        if context.state != SnpGuestState.RUNNING or own_key != context.vmpck(0):
            raise _Unconvinced("no report: the guest's message key is not the context's")
        if context.digest != _expected():
            raise _Unconvinced("report: another measurement than expected")
        if self.demands_alias_check and psp.snp.alias_check is not AliasCheck.COMPLETE:
            raise _Unconvinced("report: memory was not checked for aliases")
        code = read(one.code, PAGE_BYTES, context.asid)
        return self.victim if code == _image() else IMPOSTOR


def _image() -> bytes:
    return VICTIMS_CODE.ljust(PAGE_BYTES, b"\0")


def _expected() -> bytes:
    digest = LaunchDigest()
    digest.update(PageType.NORMAL, CODE_GPA, _image())
    digest.update(PageType.SECRETS, SECRETS_GPA)
    return digest.value
