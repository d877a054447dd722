"""Firmware of a secure processor: what runs, what it may go back to, and what it says of itself.

The rules, for versions and for each component of a TCB version by itself:

    reported <= committed <= current        launch <= committed

Firmware that runs and is not committed is provisional: an older image may follow, down to what is committed.
What is committed never goes down. Sources: SEV-SNP firmware ABI (56860) on CURRENT_TCB, COMMITTED_TCB,
REPORTED_TCB and LAUNCH_TCB, as quoted in virtee/trustee and virtee/sev; public reports of hosts whose update was
never committed (AMDESE/AMDSEV issue 274, enarx/steward issue 50): they report the committed TCB.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum, auto

from psp.tcb_version import TCB_BYTES

Version = tuple[int, int, int]
"""Major, minor and build of an interface."""


@dataclass(frozen=True, slots=True)
class FirmwareLevel:
    """One state of a platform's firmware: the version of its interfaces, and its TCB version (0 without SEV-SNP)."""

    version: Version
    tcb: int = 0


class TcbOf(StrEnum):
    """Whose TCB version it is, where that is doubtful.

    Every public report of a host with provisional firmware or microcode says the committed one, and only so do all
    inequalities hold after a roll-back. Descriptions of SNP_CONFIG and of LAUNCH_TCB say word for word the current one.
    """

    COMMITTED = auto()
    CURRENT = auto()
    REPORTED = auto()


@dataclass(slots=True)
class InstalledFirmware:
    """What runs, what is committed, and which TCB reports say. All the same when a host is switched on."""

    current: FirmwareLevel
    reported_limit: TcbOf = TcbOf.COMMITTED
    """What SNP_CONFIG may report at most, and what it goes back to when it names no TCB."""
    launched_at: TcbOf = TcbOf.COMMITTED
    """What a guest keeps as the TCB of its launch."""
    signed_at: TcbOf = TcbOf.REPORTED
    """Whose VCEK signs reports. AMD's text says the reported one's (quoted in google/go-sev-guest issue 72); owners of
    hosts with provisional firmware found the current one's (AMDESE/AMDSEV issue 274, enarx/steward issue 50)."""
    committed: FirmwareLevel = field(init=False)
    reported_tcb: int = field(init=False)

    def __post_init__(self) -> None:
        self.committed = self.current
        self.reported_tcb = self.current.tcb

    @property
    def provisional(self) -> bool:
        """Whether what runs may still be rolled back."""
        return self.current != self.committed

    @property
    def launch_tcb(self) -> int:
        """What a guest that is launched now keeps."""
        return self._tcb(self.launched_at)

    @property
    def signing_tcb(self) -> int:
        """What the key is derived for that signs reports."""
        return self._tcb(self.signed_at)

    def install(self, level: FirmwareLevel) -> None:
        """Run other firmware, which has been checked. What is reported stays, if it is not above what runs."""
        self.current = level
        if not tcb_at_most(self.reported_tcb, level.tcb):
            self.reported_tcb = level.tcb

    def commit(self) -> bool:
        """Commit what runs, and report it. Whether what is reported has changed."""
        before = self.reported_tcb
        self.committed = self.current
        self.reported_tcb = self.current.tcb
        return self.reported_tcb != before

    def report(self, tcb: int) -> bool:
        """Report a TCB version; 0 for the highest there may be. Whether what is reported has changed.

        Raises ValueError above the limit.
        """
        before = self.reported_tcb
        highest = self._tcb(self.reported_limit)
        if not tcb_at_most(tcb, highest):
            raise ValueError("TCB to report: above what may be reported")
        self.reported_tcb = tcb or highest
        return self.reported_tcb != before

    def _tcb(self, of: TcbOf) -> int:
        if of is TcbOf.REPORTED:
            return self.reported_tcb
        return self.committed.tcb if of is TcbOf.COMMITTED else self.current.tcb


def tcb_at_most(tcb: int, limit: int) -> bool:
    """Whether no component of a TCB version is above another's."""
    return all(a <= b for a, b in zip(*(one.to_bytes(TCB_BYTES, "little") for one in (tcb, limit)), strict=True))
