"""A report that was true once (row 51)."""

from __future__ import annotations

from workloads.attacks.asking_guest import AskingGuest
from workloads.attacks.forged_report import show_as_own
from workloads.attacks.owner_operations import AskNonce, ShowAttestation
from workloads.attacks.small_codes import VICTIMS_CODE
from workloads.attacks.small_sev_guest import SmallSevGuest
from workloads.attacks.target import Attack, Target
from workloads.attacks.undefended import by_generation

_SOME_NONCE = b"whatever 16 byte"


def _replay_sev(target: Target) -> Attack:
    guest = SmallSevGuest.of(target)
    yield from guest.launch(VICTIMS_CODE)
    if not guest.handle:
        return
    yield from guest.receive()
    report = yield from guest.attest(_SOME_NONCE)
    platform = yield from guest.platform()
    yield from guest.take_down()
    yield (AskNonce(),)
    yield (ShowAttestation(report, platform.pdh, platform.chain),)


def _replay_snp(target: Target) -> Attack:
    asking = AskingGuest.of(target)
    yield from asking.guest.launch(VICTIMS_CODE)
    yield from asking.guest.finish()
    yield from asking.ask()
    yield from asking.guest.take_down()
    yield (AskNonce(),)
    yield from show_as_own(asking.shown)


replay = by_generation(_replay_sev, _replay_snp)
"""Row 51: let the owner's guest prove itself, end it, and show its report again when the owner asks anew."""
