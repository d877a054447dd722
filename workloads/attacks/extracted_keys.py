"""Keys out of the chip itself, whatever its firmware: a glitch, its fuses, and every key that follows (row 52)."""

from __future__ import annotations

from psp.chip_identity import ChipIdentity
from psp.product_line import PRODUCT_LINES
from workloads.attacks.chip_operations import GlitchChip
from workloads.attacks.forged_platform import impersonate
from workloads.attacks.forged_report import learn_platform
from workloads.attacks.old_firmware import sev_digest
from workloads.attacks.small_codes import VICTIMS_CODE
from workloads.attacks.small_sev_guest import SmallSevGuest
from workloads.attacks.target import Attack, Target
from workloads.attacks.undefended import by_generation
from workloads.attacks.wrong_launch import small_guest_digest

_ZEN_3 = PRODUCT_LINES["Milan"]
"""The only line with SEV-SNP whose chips somebody has opened."""


def _glitch_sev(target: Target) -> Attack:
    (fuses,) = yield (GlitchChip(),)
    if isinstance(fuses, bytes):
        chip = ChipIdentity(_ZEN_3, lambda: fuses)  # a CEK is derived alike on all lines
        yield from impersonate(SmallSevGuest.of(target), chip.cek_key(), sev_digest())


def _glitch_snp(target: Target) -> Attack:
    (fuses,) = yield (GlitchChip(),)
    if isinstance(fuses, bytes):
        chip = ChipIdentity(_ZEN_3, lambda: fuses)
        forged = yield from learn_platform(target, chip)
        yield from forged.take_secret(small_guest_digest(VICTIMS_CODE))


forge_with_chip_key = by_generation(_glitch_sev, _glitch_snp)
"""Row 52: read the fuses, derive the endorsement keys of any TCB, and vouch for a guest that is none."""
