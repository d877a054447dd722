"""What a hypervisor does to the functions in a host's slots: configuration accesses, and registers by address."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from node import operations as op
from node.dram import MachineCheck
from node.fault_answers import answer_to
from node.iommu_registers import MMIO_BASE, MMIO_BYTES
from node.rmp import RmpFault
from node.root_complex import WIDTHS
from tio.card import Card
from tio.device_identity import Firmware

if TYPE_CHECKING:
    from node.board import Board

_WORD_BYTES = 4
_IOMMU_REGISTER_BYTES = 8
_CONFIG_WIDTHS = (1, 2, 4)
_REQUESTERS = 1 << 16
_PROTECTION = op.Fault(op.FaultKind.GENERAL_PROTECTION, 0)


def pci_instructions(board: Board) -> Mapping[type, Callable[..., op.Answer]]:
    """What each of these operations does on a board."""

    def config_read(one: op.ConfigRead) -> op.Answer:
        if one.width not in _CONFIG_WIDTHS:
            return _PROTECTION
        slots = board.root_complex
        if slots is None or not 0 <= one.requester < _REQUESTERS:
            return (1 << 8 * one.width) - 1
        return slots.configuration_read(one.requester, one.offset, one.width)

    def config_write(one: op.ConfigWrite) -> op.Answer:
        if one.width not in _CONFIG_WIDTHS or not 0 <= one.value < 1 << 8 * one.width:
            return _PROTECTION
        if board.root_complex is not None and 0 <= one.requester < _REQUESTERS:
            board.root_complex.configuration_write(one.requester, one.offset, one.value, one.width)
        return None

    def config_in(one: op.ConfigIn) -> op.Answer:
        slots = board.root_complex
        if not 0 <= one.words <= op.MOST_WORDS:
            return _PROTECTION
        if slots is None or not 0 <= one.requester < _REQUESTERS:
            return b"\xff" * (_WORD_BYTES * one.words)
        out = bytearray()
        for _ in range(one.words):
            out += slots.configuration_read(one.requester, one.offset, _WORD_BYTES).to_bytes(_WORD_BYTES, "little")
            slots.configuration_write(one.requester, one.offset, 0, _WORD_BYTES)
        return bytes(out)

    def config_out(one: op.ConfigOut) -> op.Answer:
        slots, data = board.root_complex, one.data
        if len(data) % _WORD_BYTES or len(data) > _WORD_BYTES * op.MOST_WORDS:
            return _PROTECTION
        if slots is not None and 0 <= one.requester < _REQUESTERS:
            for at in range(0, len(data), _WORD_BYTES):
                word = int.from_bytes(data[at : at + _WORD_BYTES], "little")
                slots.configuration_write(one.requester, one.offset, word, _WORD_BYTES)
        return None

    def mmio_read(one: op.MmioRead) -> op.Answer:
        register = _iommu_register(one.address, one.length)
        if register is not None:
            return board.iommu.read_register(register)
        found = None
        if board.root_complex is not None and _aligned(one.address, one.length):
            found = board.root_complex.load(one.address, one.length)
        return _nothing_there(one.address) if found is None else found

    def mmio_write(one: op.MmioWrite) -> op.Answer:
        value = one.value & (1 << 8 * one.length) - 1 if one.length in WIDTHS else 0
        register = _iommu_register(one.address, one.length)
        if register is not None:
            board.iommu.write_register(register, value)
            return None
        slots = board.root_complex
        if slots is None or not _aligned(one.address, one.length) or slots.leads(one.address, one.length) is None:
            return _nothing_there(one.address)
        try:
            if board.rmp is not None:
                board.rmp.check_host_write(one.address, one.length)
        except RmpFault as fault:
            return answer_to(fault, one.address)
        slots.store(one.address, value, one.length)
        return None

    def card(port: int) -> Card | None:
        if board.root_complex is not None:
            board.root_complex.port(port)
        filled = board.slots.by_port.get(port)
        return None if filled is None else filled.card

    def card_update(one: op.CardUpdate) -> op.Answer:
        found = card(one.port)
        if found is not None:
            found.update_firmware(Firmware(one.version, one.security_version, one.image))
        return None

    def card_debug(one: op.CardDebug) -> op.Answer:
        found = card(one.port)
        if found is not None:
            found.enable_debug()
        return None

    return {
        op.ConfigRead: config_read,
        op.ConfigWrite: config_write,
        op.ConfigIn: config_in,
        op.ConfigOut: config_out,
        op.MmioRead: mmio_read,
        op.MmioWrite: mmio_write,
        op.CardUpdate: card_update,
        op.CardDebug: card_debug,
    }


def _iommu_register(address: int, length: int) -> int | None:
    """A register's place in the IOMMU's MMIO; None for an address that is not a register's."""
    inside = MMIO_BASE <= address < MMIO_BASE + MMIO_BYTES and not address % _IOMMU_REGISTER_BYTES
    return address - MMIO_BASE if inside and length == _IOMMU_REGISTER_BYTES else None


def _aligned(address: int, length: int) -> bool:
    return length in WIDTHS and not address % length


def _nothing_there(address: int) -> op.Fault:
    return answer_to(MachineCheck(address, _IOMMU_REGISTER_BYTES), address)
