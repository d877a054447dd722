"""What is not certain about caches, and what differs between products, as switches."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Snoop(Enum):
    """Which lines of the cores' caches an access from elsewhere on the fabric finds."""

    NONE = "none"
    OWN = "own"
    """Those of its own encryption domain: the address on the fabric carries the domain."""
    ALL = "all"
    """Those of all domains: dirty ones of others are written back before."""


@dataclass(frozen=True, slots=True)
class CacheSwitches:
    """One product's caches beyond ``Product.coherent_across_keys``."""

    invd_drops: bool = True
    """INVD loses dirty lines for good where HWCR lets it be an INVD (CVE-2023-20592).

    Of Zen 1 to 3, says AMD-SB-3005; that later cores do not is inferred from their absence there.
    """
    devices: Snoop = Snoop.OWN
    """How DMA sees lines. Linux flushes for devices even on coherent parts: theirs is between cores only."""
    firmware: Snoop = Snoop.OWN
    """How the security processor sees lines where cores are not coherent across domains; where they are, it sees all.

    Inferred: Linux flushes no command buffer, so firmware finds dirty lines of its own
    domain; it flushes before LAUNCH_UPDATE_DATA on incoherent parts only, so there
    firmware does not find a guest's or takes no plaintext lines away. The RMP is zeroed
    past the caches on all parts, see ``Platform.rmp_init_barrier``.
    """
