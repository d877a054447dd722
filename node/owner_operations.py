"""Operations by which a hypervisor asks whoever is outside of its host on behalf of its VMs' owners."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FetchCertificates:
    """Take the table of certificates that the host keeps for guests. Answer: bytes, none if it has none, or not yet."""


@dataclass(frozen=True, slots=True)
class AskLaunchOwner:
    """Show a VM's owner what its platform says of itself, or the measurement of its launch (``node/owned_launch.py``).

    Answer: bytes for the firmware, or None where the owner is not convinced or there is none.
    """

    vm: str
    shown: bytes
