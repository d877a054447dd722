"""What an attacker gets out of a security processor, where somebody has shown the way.

The glitch works on Zen 1 to 3, whatever their firmware. The hole is in old firmware only: in any
that is older than what the laboratory's products have.
"""

from __future__ import annotations

from collections.abc import Mapping

from node.board import Board
from node.operations import Answer
from psp import elliptic
from workloads.attacks.chip_operations import ChipOperation, ExtractKeys, GlitchChip, ReadAsFirmware

GLITCHED = frozenset({"Naples", "Rome", "Milan"})
"""Buhren et al., "One Glitch to Rule Them All" (CCS 2021): Zen 1 to 3; no later part has been published."""
