"""SNP_VERIFY_MITIGATION: which vulnerabilities firmware knows a mitigation for, and which it has found in force.

A live update brings new mitigations while guests run; the command has the firmware make sure
of one without a new RMP, and a report says what came of it (SEV-SNP firmware ABI 1.58, as
Linux's driver describes it). A vector has one bit for each vulnerability; AMD's bulletins say
which. What has to hold before a bit can be verified differs by vulnerability: here it is a
setting, like the vector itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from psp import command_buffers as buffers
from psp.byte_layout import ByteLayout, at
from psp.host_memory import HostMemory
from psp.installed_firmware import InstalledFirmware
from psp.status import PspError, Status

FIRST_API = (1, 58)
"""Firmware before it has no such command."""
REQ_STATUS, REQ_VERIFY = 0, 1
"""Subcommands."""


@dataclass(frozen=True, slots=True)
class MitigationResult(ByteLayout):
    """What the command writes, if it is told where."""

    SIZE: ClassVar[int] = 0x14
    verified: int = at(0x00, 8)
    supported: int = at(0x08, 8)
    failure_status: int = at(0x10, 4)


@dataclass(slots=True)
class Mitigations:
    """What one platform's firmware knows."""

    supported: int = 0
    failures: Mapping[int, int] = field(default_factory=dict)
    """By bit of the vector: the MIT_FAILURE_STATUS with which its verification ends on this platform."""
    verified: int = 0
    """Until the platform is switched off."""

    def verify(self, vector: int) -> int:
        """Have firmware look at one mitigation, and return how it ended: 0 when it is in force.

        Raises PspError(INVALID_PARAM) unless exactly one bit is named, of those it supports.
        """
        if not vector or vector & (vector - 1) or not vector & self.supported:
            raise PspError(Status.INVALID_PARAM)
        failure = self.failures.get(vector, 0)
        if not failure:
            self.verified |= vector
        return failure


class MitigationCommand:
    """The handler. Status of a bad request and the order of checks are the laboratory's."""

    def __init__(self, memory: HostMemory, firmware: InstalledFirmware) -> None:
        self.mitigations = Mitigations()
        self._firmware = firmware
        self._memory = memory

    @property
    def offered(self) -> bool:
        """Whether firmware that runs has the command."""
        return self._firmware.current.version[:2] >= FIRST_API

    def verify_mitigation(self, asked: buffers.SnpVerifyMitigation) -> None:
        """SNP_VERIFY_MITIGATION. A source of further data, which some mitigation may want, is UNSUPPORTED."""
        if not self.offered:
            raise PspError(Status.UNSUPPORTED)
        if asked.length != buffers.SnpVerifyMitigation.SIZE:
            raise PspError(Status.INVALID_LENGTH)
        known = buffers.SNP_MITIGATION_DESTINATION | buffers.SNP_MITIGATION_SOURCE
        if asked.subcommand not in {REQ_STATUS, REQ_VERIFY} or asked.flags & ~known:
            raise PspError(Status.INVALID_PARAM)
        if asked.flags & buffers.SNP_MITIGATION_SOURCE:
            raise PspError(Status.UNSUPPORTED)
        answers = bool(asked.flags & buffers.SNP_MITIGATION_DESTINATION)
        if answers:
            self._memory.check_writable(asked.destination, MitigationResult.SIZE)
        failure = self.mitigations.verify(asked.vector) if asked.subcommand == REQ_VERIFY else 0
        if answers:
            found = self.mitigations
            self._memory.write(
                asked.destination, MitigationResult(found.verified, found.supported, failure).pack()
            )
