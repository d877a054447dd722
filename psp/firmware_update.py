"""DOWNLOAD_FIRMWARE and SNP_DOWNLOAD_FIRMWARE_EX: other SEV firmware, the second under guests that run.

An image that was signed for this line of processors is taken unless it is older than what is committed. Firmware of
products without SEV-SNP has no security versions and takes every signed image: old ones with known holes come back so
(Buhren et al. 2019, on Naples; that Rome is no better is taken from its having none).

Contexts of guests need no conversion here, so an update never fails half-way: UPDATE_FAILED and RESTORE_REQUIRED do
not occur. Sources: SEV API, DOWNLOAD_FIRMWARE; structure and statuses of the other command as in patches to Linux
(``sev_data_download_firmware_ex``) and in virtee/sev.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from psp.commands import SnpPlatformState
from psp.host_memory import HostMemory
from psp.installed_firmware import FirmwareLevel, InstalledFirmware
from psp.product_line import ProductLine
from psp.sev_firmware_image import LEAST_BYTES, MOST_BYTES, BadImageError, SevFirmware, opened_image
from psp.status import PspError, Status
from psp.tcb_version import TcbComponent
from psp.update_buffers import COMMIT_AT_ONCE, DownloadFirmware, SnpDownloadFirmwareEx

IMAGE_ALIGNMENT = 32


class FirmwareUpdate:
    """Handlers of both commands. ``memory`` is either interface's; ``commit`` is what SNP_COMMIT does."""

    def __init__(
        self,
        line: ProductLine,
        firmware: InstalledFirmware,
        snp_state: Callable[[], SnpPlatformState],
        legacy_is_up: Callable[[], bool],
        commit: Callable[[], None],
    ) -> None:
        self._line = line
        self._firmware = firmware
        self._snp_state = snp_state
        self._legacy_is_up = legacy_is_up
        self._commit = commit

    def download(self, memory: HostMemory, load: DownloadFirmware) -> None:
        """DOWNLOAD_FIRMWARE: install and commit."""
        if self._snp_state() is not SnpPlatformState.UNINIT:
            raise PspError(Status.INVALID_PLATFORM_STATE)
        self._install(self._checked(memory, load.address, load.length))
        self._commit()

    def download_ex(self, memory: HostMemory, load: SnpDownloadFirmwareEx) -> None:
        """SNP_DOWNLOAD_FIRMWARE_EX: install, provisionally unless it is to be committed at once."""
        if load.length != SnpDownloadFirmwareEx.SIZE:
            raise PspError(Status.INVALID_LENGTH)
        if load.reserved or load.flags & ~COMMIT_AT_ONCE:
            raise PspError(Status.INVALID_PARAM)
        if self._legacy_is_up():
            raise PspError(Status.INVALID_PLATFORM_STATE)
        found = self._checked(memory, load.image_address, load.image_length)
        if found.needs_shutdown and self._snp_state() is not SnpPlatformState.UNINIT:
            raise PspError(Status.SHUTDOWN_REQUIRED)
        self._install(found)
        if load.flags & COMMIT_AT_ONCE:
            self._commit()

    def _checked(self, memory: HostMemory, address: int, length: int) -> SevFirmware:
        """What the image in memory brings. Raises PspError."""
        if not LEAST_BYTES <= length <= MOST_BYTES:
            raise PspError(Status.INVALID_LENGTH)
        if address % IMAGE_ALIGNMENT:
            raise PspError(Status.INVALID_ADDRESS)
        try:
            found = opened_image(self._line.name, memory.read(address, length))
        except BadImageError:
            raise PspError(Status.BAD_SIGNATURE) from None
        committed, layout = self._firmware.committed, self._line.tcb
        if layout is None:
            return found
        if found.svn < layout.unpack(committed.tcb)[TcbComponent.SNP]:
            raise PspError(Status.BAD_SVN)
        if found.version < committed.version:
            raise PspError(Status.BAD_VERSION)
        return found

    def _install(self, found: SevFirmware) -> None:
        level, layout = replace(self._firmware.current, version=found.version), self._line.tcb
        if layout is not None:
            tcb = layout.pack({**layout.unpack(level.tcb), TcbComponent.SNP: found.svn})
            level = FirmwareLevel(found.version, tcb)
        self._firmware.install(level)
