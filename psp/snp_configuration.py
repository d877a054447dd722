"""SNP_CONFIG, SNP_COMMIT and SNP_VLEK_LOAD: what a host decides about reports (SEV-SNP firmware ABI).

What they decide on is in :mod:`psp.installed_firmware`. Whether a configuration outlives SNP_SHUTDOWN is not
published: here it does, as a VLEK does.
"""

from __future__ import annotations

from collections.abc import Callable

from psp import command_buffers as buffers
from psp.host_memory import HostMemory
from psp.installed_firmware import InstalledFirmware, tcb_at_most
from psp.status import PspError, Status
from psp.vlek import Hashstick, WrappedHashstick, WrongHashstickError, unwrapped

_KNOWN_FLAGS = buffers.SNP_CONFIG_MASK_CHIP_ID | buffers.SNP_CONFIG_MASK_CHIP_KEY


class SnpConfiguration:
    """Handlers of the three commands, and what they decide. ``chip_key`` is made when a VLEK comes."""

    def __init__(self, memory: HostMemory, chip_key: Callable[[], bytes], firmware: InstalledFirmware) -> None:
        self.flags = 0
        self.vlek: Hashstick | None = None
        """What a host has loaded."""
        self.firmware = firmware
        self._memory = memory
        self._chip_key = chip_key

    def config(self, config: buffers.SnpConfig) -> None:
        """SNP_CONFIG."""
        if config.flags & ~_KNOWN_FLAGS or config.reserved.strip(b"\0"):
            raise PspError(Status.INVALID_PARAM)
        try:
            changed = self.firmware.report(config.reported_tcb)
        except ValueError:
            raise PspError(Status.INVALID_PARAM) from None
        self.flags = config.flags
        self._forget_vlek(changed=changed)

    def commit(self, commit: buffers.SnpCommit) -> None:
        """SNP_COMMIT."""
        if commit.length != buffers.SnpCommit.SIZE:
            raise PspError(Status.INVALID_LENGTH)
        self.commit_firmware()

    def commit_firmware(self) -> None:
        """Make what runs the least that may ever run again, and report it."""
        self._forget_vlek(changed=self.firmware.commit())

    def _forget_vlek(self, *, changed: bool) -> None:
        """A VLEK goes with the TCB version that was reported when it came (virtee/sev on SNP_COMMIT)."""
        if changed:
            self.vlek = None

    def vlek_load(self, load: buffers.SnpVlekLoad) -> None:
        """SNP_VLEK_LOAD. A hashstick of another chip, of a TCB that the firmware has not, or damaged is INVALID_KEY."""
        if load.length != buffers.SnpVlekLoad.SIZE:
            raise PspError(Status.INVALID_LENGTH)
        if load.version:
            raise PspError(Status.INVALID_PARAM)
        wrapped = self._memory.read(load.address, WrappedHashstick.SIZE)
        try:
            hashstick = unwrapped(wrapped, self._chip_key())
        except WrongHashstickError:
            raise PspError(Status.INVALID_KEY) from None
        if not tcb_at_most(hashstick.tcb, self.firmware.current.tcb):
            raise PspError(Status.INVALID_KEY)
        self.vlek = hashstick
