"""How a guest that works on a device of its own goes about it: parameters of ``depositor``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DepositorWays:
    """Each is 0 or 1, but for ``lock_flags`` and ``detaches``."""

    trusts: int = 1
    """It has its device locked and works in private memory, where its generation can."""
    seals: int = 0
    """It seals what it brings, under a key of its own."""
    rechecks: int = 0
    """It asks for fresh measurements in each round."""
    checks_certificates: int = 1
    checks_identity: int = 1
    checks_measurements: int = 1
    checks_fresh: int = 1
    checks_report: int = 1
    checks_lock: int = 1
    wipes: int = 1
    """It has the device forget its secret in each round."""
    stores: int = 0
    """First in each round it stores its secret through the device's memory window."""
    lock_flags: int = 0
    """What it asks to be locked."""
    polls: int = 0
    """It has a lot sent back besides, and believes a register that says so."""
    awaits: int = 0
    """It waits for its device's interrupt at the end of a round, and decides by whether that comes in time."""
    farewell: int = 0
    """Before it lets its device go it has a lot sent that nobody waits for; then its buffers change places."""
    detaches: int = 0
    """Rounds after which it lets its device go, rests, and takes it again; 0 for never."""
