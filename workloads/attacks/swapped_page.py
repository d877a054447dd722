"""One page of an SNP guest that runs, swapped out and in by hand: SNP_PAGE_SWAP_OUT and _IN (SNP ABI)."""

from __future__ import annotations

from dataclasses import dataclass

from node.operations import HostRead, HostWrite, PspAnswer, PspCommand, RmpUpdate
from psp import command_buffers as buffers
from psp import swap_buffers
from psp.byte_layout import ByteLayout
from psp.commands import SnpCommand
from psp.page_swap import MdataEntry
from psp.system_bus import PAGE_BYTES, RmpEntry
from workloads.attacks.firmware_call import Bytes, Steps
from workloads.attacks.hypervisor_books import NoteSmashed
from workloads.attacks.nested_remap import smash
from workloads.attacks.target import WRITE_BACK, AttackBatch, Target
from workloads.attacks.target_page import Page

_FIRMWARE = RmpEntry(assigned=True, immutable=True)


@dataclass(frozen=True, slots=True)
class SwappedPage:
    """The page, and three frames: for a Metadata page, for what firmware writes, and for what it reads."""

    target: Target
    page: Page
    metadata: int
    out_through: int
    in_through: int

    @classmethod
    def of(cls, target: Target, page: Page) -> SwappedPage:
        """With the target's spare frames."""
        return cls(target, page, *target.spare[5:8])

    def begin(self) -> Steps:
        """A Metadata page with empty entries."""
        yield smash(self.page)
        yield (NoteSmashed(self.page.spa),)
        yield tuple(RmpUpdate(spa, PAGE_BYTES, _FIRMWARE) for spa in (self.metadata, self.out_through))
        yield self._call(
            SnpCommand.PAGE_MD_INIT, swap_buffers.SnpPageMdInit(self.target.victim.gctx, self.metadata)
        )

    def out(self, entry: int) -> Bytes:
        """Its ciphertext, with what is needed to believe it in an entry of the Metadata page."""
        victim, spa = self.target.victim, self.page.spa
        held = RmpEntry(assigned=True, immutable=True, gpa=self.page.gpa, asid=victim.asid)
        yield (RmpUpdate(spa, PAGE_BYTES, held),)
        order = swap_buffers.SnpPageSwapOut(victim.gctx, spa, self.out_through, self._entry(entry))
        yield self._call(SnpCommand.PAGE_SWAP_OUT, order)
        (sealed,) = yield (HostRead(self.out_through, PAGE_BYTES),)
        return sealed if isinstance(sealed, bytes) else b""

    def back(self, entry: int, sealed: bytes) -> Steps:
        """Have it come in by an entry; undone where firmware refuses."""
        order = swap_buffers.SnpPageSwapIn(
            self.target.victim.gctx, self.in_through, self.page.spa, self._entry(entry)
        )
        yield (HostWrite(self.in_through, sealed),)
        yield WRITE_BACK
        (answer,) = yield self._call(SnpCommand.PAGE_SWAP_IN, order)
        if isinstance(answer, PspAnswer) and answer.status == 0:
            yield self._call(SnpCommand.PAGE_RECLAIM, buffers.SnpPageReclaim(self.page.spa))

    def _entry(self, number: int) -> int:
        return self.metadata + number * MdataEntry.SIZE

    def _call(self, command: int, buffer: ByteLayout) -> AttackBatch:
        return (PspCommand(command, self.target.command_page, buffer.pack()),)
