"""How long a launch takes at least, which a host promises to its coordinator."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from node import operations as op
from node.firmware_image import FirmwareImage
from node.generation import Generation
from node.operation_cost import HostOperationCost
from psp import command_buffers as buffers
from psp.commands import LegacyCommand, SnpCommand
from psp.system_bus import PAGE_BYTES


def least_launch_ns(
    firmware: FirmwareImage, generation: Generation, cost: HostOperationCost, *, small_monitor: bool = False
) -> int:
    """A lower bound of what a launch keeps the security processor busy for, by QEMU or by a small monitor."""
    bound = _BOUNDS.get(generation)
    return int(bound(firmware, cost, small_monitor)) if bound else 0


def _snp(firmware: FirmwareImage, cost: HostOperationCost, small_monitor: bool) -> float:
    page = cost.psp_service_ns(op.PspCommand(SnpCommand.LAUNCH_UPDATE))
    finish = cost.psp_service_ns(op.PspCommand(SnpCommand.LAUNCH_FINISH, with_rest=not small_monitor))
    others = 3 * cost.psp_service_ns(op.PspCommand(SnpCommand.GCTX_CREATE))
    return len(firmware.data) // PAGE_BYTES * page + finish + others


def _sev(firmware: FirmwareImage, cost: HostOperationCost, _: bool) -> float:
    update = buffers.LaunchUpdateData(handle=1, address=0, length=len(firmware.data)).pack()
    others = 4 * cost.psp_service_ns(op.PspCommand(LegacyCommand.LAUNCH_START))
    return cost.psp_service_ns(op.PspCommand(LegacyCommand.LAUNCH_UPDATE_DATA, 0, update)) + others


_BOUNDS: Mapping[Generation, Callable[[FirmwareImage, HostOperationCost, bool], float]] = {
    Generation.SEV: _sev,
    Generation.SEV_ES: _sev,
    Generation.SEV_SNP: _snp,
    Generation.SEV_TIO: _snp,
}
"""Generations whose launch needs the security processor."""
