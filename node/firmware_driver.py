"""How a hypervisor brings other firmware to its security processor while its guests run, and commits it.

As patches to Linux do it (``snp_dlfw_ex``): no SEV or SEV-ES guest may be there, for the SEV interface is shut down
for it and comes up again after it; then every guest's context is touched once, so that the new firmware has taken it
over. Products without SEV-SNP have the older command alone, which commits.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

from node import operations as op
from node.expected_answers import expect_done
from node.frame_allocator import OutOfMemory
from node.generation import Generation
from node.host_bring_up import bring_up_steps, refusal
from node.hypervisor_port import Answers, Batch, LaunchRefused, Reply
from psp import command_buffers as buffers
from psp.commands import LegacyCommand, SnpCommand
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES
from psp.update_buffers import COMMIT_AT_ONCE, DownloadFirmware, SnpDownloadFirmwareEx

if TYPE_CHECKING:
    from node.hypervisor import Hypervisor

LEGACY_GUESTS, NO_MEMORY = -1, -2
"""Why the firmware was not asked: the SEV interface has guests, or there is no place for the image."""
LEGACY = (Generation.SEV, Generation.SEV_ES)
_ANEW = ("INIT", "DF_FLUSH")
"""Steps of the bring-up that come again; the trusted memory region is still firmware's."""


def update_firmware(self: Hypervisor, image: bytes, commit: bool) -> Reply:
    """Bring firmware from an image, provisionally unless it is to be committed; the status, or why nobody was asked."""
    # PLAIN VMs without a record, which these leave out, have nothing of the firmware.
    if any(record.generation in LEGACY for record in self._vms.values()):
        return LEGACY_GUESTS
    try:
        # Alone in a large page it lies in one piece, and none of it is a guest's.
        ((place, _),) = self.frames.allocate(LARGE_PAGE_BYTES, LARGE_PAGE_BYTES)
    except OutOfMemory:
        return NO_MEMORY
    self.updating = True
    write = op.HostWrite(place, image)
    expect_done([write], (yield (write,)))
    status = yield from _download(self, place, len(image), commit=commit)
    self.updating = False
    yield (op.HostClear(place, LARGE_PAGE_BYTES),)
    self.frames.release([(place, LARGE_PAGE_BYTES)])
    if self.snp and not status:
        for vm in list(self._vms.values()):
            if vm.gctx:
                yield from _touch(self, vm.gctx)
    return status


def commit_firmware(self: Hypervisor) -> Reply:
    """SNP_COMMIT; its status."""
    commit = buffers.SnpCommit(buffers.SnpCommit.SIZE)
    return (yield from _status_of(SnpCommand.COMMIT, self.command_page, commit.pack()))


def _download(self: Hypervisor, place: int, length: int, *, commit: bool) -> Reply:
    command = self.command_page
    status = yield from _status_of(LegacyCommand.SHUTDOWN)
    if status:
        return status
    if self.snp:
        flags = COMMIT_AT_ONCE if commit else 0
        load = SnpDownloadFirmwareEx(SnpDownloadFirmwareEx.SIZE, 0, place, length, flags).pack()
        status = yield from _status_of(SnpCommand.DOWNLOAD_FIRMWARE_EX, command, load)
    else:
        status = yield from _status_of(LegacyCommand.DOWNLOAD_FIRMWARE, command, DownloadFirmware(place, length).pack())
    # One batch: after INIT no ASID is usable before the flush, and no launch may come between (KVM holds a lock).
    steps = [one for one in bring_up_steps(self.product, command, 0, 0, self._trusted_region) if one.name in _ANEW]
    answers = yield tuple(one for step in steps for one in step.batch)
    for step in steps:
        refused = refusal(step, answers[: len(step.batch)])
        if refused:
            raise LaunchRefused(refused)
        answers = answers[len(step.batch) :]
    return status


def _touch(self: Hypervisor, gctx: int) -> Generator[Batch, Answers, None]:
    """SNP_GUEST_STATUS of a guest; one that has gone meanwhile is left alone."""
    page = self._frame()
    yield from self.give_to_firmware(page)
    yield from _status_of(SnpCommand.GUEST_STATUS, self.command_page, buffers.SnpGuestStatus(gctx, page).pack())
    yield from self.take_from_firmware(page)
    self.frames.release([(page, PAGE_BYTES)])


def _status_of(command: int, spa: int = 0, buffer: bytes = b"") -> Reply:
    (answer,) = yield (op.PspCommand(command, spa, buffer),)
    assert isinstance(answer, op.PspAnswer)
    return answer.status
