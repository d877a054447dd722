"""SNP_CONFIG, SNP_COMMIT and SNP_VLEK_LOAD: what a host decides about reports (SEV-SNP firmware ABI).

What they decide on is in :mod:`psp.installed_firmware`. Whether a configuration outlives SNP_SHUTDOWN is not
published: here it does, as a VLEK does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from psp import command_buffers as buffers
from psp.byte_layout import ByteLayout, at
from psp.host_memory import HostMemory
from psp.installed_firmware import InstalledFirmware, tcb_at_most
from psp.status import PspError, Status
from psp.tcb_version import TCB_BYTES

HASHSTICK_BYTES = 384
"""48 bytes for each of eight components."""
_TAG_BYTES = 16
_KNOWN_FLAGS = buffers.SNP_CONFIG_MASK_CHIP_ID | buffers.SNP_CONFIG_MASK_CHIP_KEY


@dataclass(frozen=True, slots=True)
class WrappedHashstick(ByteLayout):
    """A VLEK on its way from the key distribution service to one chip."""

    SIZE: ClassVar[int] = 0x1B0
    iv: bytes = at(0x000, 12, bytes(12))
    wrapped: bytes = at(0x010, HASHSTICK_BYTES, bytes(HASHSTICK_BYTES))
    tcb: int = at(0x190, TCB_BYTES)
    tag: bytes = at(0x1A0, _TAG_BYTES, bytes(_TAG_BYTES))


def wrap_hashstick(chip_key: bytes, hashstick: bytes, tcb: int, iv: bytes) -> bytes:
    """What AMD's service would send. That the tag covers the TCB, and how a chip's key is made, is the laboratory's."""
    sealed = AESGCM(chip_key).encrypt(iv, hashstick, tcb.to_bytes(TCB_BYTES, "little"))
    return WrappedHashstick(iv, sealed[:-_TAG_BYTES], tcb, sealed[-_TAG_BYTES:]).pack()


class SnpConfiguration:
    """Handlers of the three commands, and what they decide. ``chip_key`` is made when a VLEK comes."""

    def __init__(self, memory: HostMemory, chip_key: Callable[[], bytes], firmware: InstalledFirmware) -> None:
        self.flags = 0
        self.vlek = b""
        """The hashstick; empty without one."""
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
            self.vlek = b""

    def vlek_load(self, load: buffers.SnpVlekLoad) -> None:
        """SNP_VLEK_LOAD. A hashstick of another chip, of a TCB that the firmware has not, or damaged is INVALID_KEY."""
        if load.length != buffers.SnpVlekLoad.SIZE:
            raise PspError(Status.INVALID_LENGTH)
        if load.version:
            raise PspError(Status.INVALID_PARAM)
        wrapped = WrappedHashstick.parse(self._memory.read(load.address, WrappedHashstick.SIZE))
        bound = wrapped.tcb.to_bytes(TCB_BYTES, "little")
        try:
            hashstick = AESGCM(self._chip_key()).decrypt(wrapped.iv, wrapped.wrapped + wrapped.tag, bound)
        except InvalidTag:
            raise PspError(Status.INVALID_KEY) from None
        if not tcb_at_most(wrapped.tcb, self.firmware.current.tcb):
            raise PspError(Status.INVALID_KEY)
        self.vlek = hashstick
