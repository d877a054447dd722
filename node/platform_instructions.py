"""What a hypervisor does to the platform itself: registers of cores and of the IOMMU, and devices that it drives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from node import operations as op
from node.device_port import SLOTS
from node.dram import MachineCheck
from node.energy_counters import ENERGY_MSRS
from node.fault_answers import answer_to
from node.pci_instructions import pci_instructions
from node.rmp import ProtectionFault
from tio.dma_port import DmaFault

if TYPE_CHECKING:
    from node.board import Board


def platform_instructions(board: Board) -> Mapping[type, Callable[..., op.Answer]]:
    """What each of these operations does on a board."""

    def read_msr(one: op.ReadMsr) -> op.Answer:
        if one.msr in ENERGY_MSRS and 0 <= one.core < board.product.threads:
            return board.bus.energy.read(one.core, one.msr)
        try:
            return board.msrs.read(one.core, one.msr)
        except ProtectionFault as fault:
            return answer_to(fault, one.msr)

    def write_msr(one: op.WriteMsr) -> op.Answer:
        try:
            board.msrs.write(one.core, one.msr, one.value)
        except ProtectionFault as fault:
            return answer_to(fault, one.msr)
        board.settle_snp()
        return None

    def fabric_route(one: op.FabricRoute) -> op.Answer:
        try:
            board.data_fabric.route(one.spa, one.length, to_memory=one.to_memory)
        except MachineCheck as fault:
            return answer_to(fault, one.spa)
        except ValueError:
            return answer_to(ProtectionFault(), one.spa)
        return None

    def fabric_divert(one: op.FabricDivert) -> op.Answer:
        board.bus.fast_registers.divert(one.spa)
        return None

    def device_read(one: op.DeviceRead) -> op.Answer:
        if not 0 <= one.slot < SLOTS or one.length > op.MOST_BYTES:
            return _aborted(one.iova)
        try:
            return board.device_port(one.slot).read(one.iova, one.length)
        except DmaFault as fault:
            return _aborted(fault.address)

    def device_write(one: op.DeviceWrite) -> op.Answer:
        if 0 <= one.slot < SLOTS:
            try:
                board.device_port(one.slot).write(one.iova, one.data)
            except DmaFault:
                # No request can carry such an address; as little as for another refusal is the device told.
                return None
        return None

    return {
        op.ReadMsr: read_msr,
        op.WriteMsr: write_msr,
        **pci_instructions(board),
        op.FabricRoute: fabric_route,
        op.FabricDivert: fabric_divert,
        op.DeviceRead: device_read,
        op.DeviceWrite: device_write,
    }


def _aborted(iova: int) -> op.Fault:
    return op.Fault(op.FaultKind.DMA_ABORTED, iova)
