"""A guest of three frames that an attacker launches by hand: its context, one page of code, its secrets page."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from node.operations import Answer, HostWrite, PspCommand, RmpUpdate
from psp import command_buffers as buffers
from psp.byte_layout import ByteLayout
from psp.commands import SnpCommand
from psp.launch_digest import PageType
from psp.system_bus import PAGE_BYTES, RmpEntry
from workloads.attacks.target import WRITE_BACK, AttackBatch, Target

CODE_GPA, SECRETS_GPA = 0x10_0000, 0x10_1000
POLICY = 0x3_0000
"""SMT allowed and the bit that must be one."""
_FIRMWARE = RmpEntry(assigned=True, immutable=True)
_HYPERVISOR = RmpEntry()

Steps = Generator[AttackBatch, tuple[Answer, ...], None]


@dataclass(frozen=True, slots=True)
class SmallGuest:
    """Where its frames are; each launch of it takes the same ones."""

    context: int
    code: int
    secrets: int
    asid: int
    command_page: int

    @classmethod
    def of(cls, target: Target) -> SmallGuest:
        """One in the target's spare frames."""
        context, code, secrets = target.spare[:3]
        return cls(context, code, secrets, target.free_asid, target.command_page)

    def launch(self, code: bytes, policy: int = POLICY) -> Steps:
        """From SNP_GCTX_CREATE to the last SNP_LAUNCH_UPDATE."""
        yield (RmpUpdate(self.context, PAGE_BYTES, _FIRMWARE),)
        yield self.call(SnpCommand.GCTX_CREATE, buffers.GuestContextPage(self.context))
        yield self.call(SnpCommand.LAUNCH_START, buffers.SnpLaunchStart(self.context, policy))
        yield self.call(SnpCommand.ACTIVATE, buffers.SnpActivate(self.context, self.asid))
        yield (HostWrite(self.code, code.ljust(PAGE_BYTES, b"\0")),)
        yield WRITE_BACK
        for spa, gpa, kind in (
            (self.code, CODE_GPA, PageType.NORMAL), (self.secrets, SECRETS_GPA, PageType.SECRETS)
        ):  # fmt: skip
            yield (RmpUpdate(spa, PAGE_BYTES, RmpEntry(assigned=True, immutable=True, gpa=gpa, asid=self.asid)),)
            yield self.call(SnpCommand.LAUNCH_UPDATE, buffers.SnpLaunchUpdate.of(self.context, kind, spa))

    def finish(self) -> Steps:
        """SNP_LAUNCH_FINISH."""
        yield self.call(SnpCommand.LAUNCH_FINISH, buffers.SnpLaunchFinish(self.context))

    def take_down(self) -> Steps:
        """Give everything back, so that the next launch finds frames and ASID as this one did."""
        yield self.call(SnpCommand.DECOMMISSION, buffers.GuestContextPage(self.context))
        yield self.call(SnpCommand.PAGE_RECLAIM, buffers.SnpPageReclaim(self.context))
        yield tuple(RmpUpdate(spa, PAGE_BYTES, _HYPERVISOR) for spa in (self.context, self.code, self.secrets))
        yield WRITE_BACK
        yield (PspCommand(SnpCommand.DF_FLUSH),)

    def call(self, command: int, buffer: ByteLayout) -> AttackBatch:
        """One command with its buffer."""
        return (PspCommand(command, self.command_page, buffer.pack()),)
