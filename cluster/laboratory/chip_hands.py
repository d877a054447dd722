"""What an attacker gets out of a security processor, where somebody has shown the way.

The glitch works on Zen 1 to 3, whatever their firmware. The hole is in old firmware only: in any
that is older than what the laboratory's products have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from node.board import Board
from node.firmware_levels import LEVELS
from node.operations import Answer
from node.product import Product
from psp.elliptic import PrivateKey
from psp.installed_firmware import FirmwareLevel
from workloads.attacks.chip_operations import ChipOperation, ExtractKeys, GlitchChip, ReadAsFirmware

GLITCHED = frozenset({"Naples", "Rome", "Milan"})
"""Buhren et al., "One Glitch to Rule Them All" (CCS 2021): Zen 1 to 3; no later part has been published."""
_SCALAR_BYTES = 48


class ChipHands:
    """The ways into one board's security processor."""

    def __init__(self, board: Board, product: Product) -> None:
        self._board = board
        self._glitches = product.name in GLITCHED
        self._today = product.firmware_api
        self._ways: Mapping[type, Callable[..., Answer]] = {
            GlitchChip: lambda _: self._board.psp.legacy.keys.chip.fuses if self._glitches else None,
            ExtractKeys: lambda _: self._keys() if self._has_hole else None,
            ReadAsFirmware: lambda one: self._load(one) if self._has_hole else None,
        }

    def act(self, batch: tuple[ChipOperation, ...]) -> tuple[Answer, ...]:
        """Do what has been shown to work; what has not answers None."""
        return tuple([self._ways[type(one)](one) for one in batch])

    @property
    def _has_hole(self) -> bool:
        return self._board.psp.firmware.current.version < self._today

    def _keys(self) -> bytes:
        chip, tcb = self._board.psp.legacy.keys.chip, self._board.psp.firmware.current.tcb
        vcek = _scalar(chip.vcek_key(tcb)) if chip.line.tcb else bytes(_SCALAR_BYTES)
        return _scalar(chip.cek_key()) + vcek

    def _load(self, one: ReadAsFirmware) -> bytes:
        return self._board.controller.read(one.spa, one.length, one.asid)


def old_level(product: Product) -> FirmwareLevel:
    """What a host of the product runs whose firmware nobody has updated.

    The oldest that somebody has seen; where its interface is today's, a made-up one: of the interface before, and with
    security versions that are one lower.
    """
    oldest = LEVELS[product.name][0]
    layout = product.line.tcb
    if oldest.version[:2] < product.firmware_api[:2]:
        return FirmwareLevel(oldest.version, layout.pack(oldest.svns) if layout else 0)
    major, minor, build = oldest.version
    assert layout is not None
    older = {component: max(0, level - 1) for component, level in oldest.svns.items()}
    return FirmwareLevel((major, minor - 1, build), layout.pack(older))


def _scalar(key: PrivateKey) -> bytes:
    return key.private_numbers().private_value.to_bytes(_SCALAR_BYTES, "big")
