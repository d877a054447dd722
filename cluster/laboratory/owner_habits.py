"""What a tenant's owner looks at before it sends a secret: by default all that it can know without lists of others."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OwnerHabits:
    """The switches of the matrix that are an owner's; with ``CAREFUL`` as they are by default."""

    nonce: bool = True
    """It asks for something fresh in every report, and for its own channel."""
    measurement: bool = True
    """It compares the measurement of a launch with that of its own image."""
    min_tcb: bool = True
    """It accepts no report with a TCB below what its product has today."""
    policy_bits: bool = True
    """It compares the bits of a report's policy that allow debugging and migration."""
    platform_info: bool = False
    """It accepts no platform that nobody checked for DRAM aliases."""
    chip_id: bool = False
    """It accepts reports of the chips alone that it rents."""
    crl: bool = False
    """It asks for the list of revoked keys."""
    min_api: bool = False
    """Its SEV policy names the lowest firmware interface, that of its product today."""
    device: bool = True
    """Its guest compares a device's certificates, measurements and number with those that it wants."""
    id_key: bool = False
    """It trusts whatever its own key has signed."""
    debuggable: bool = False
    """Its own policy allows debugging."""


CAREFUL = OwnerHabits()
