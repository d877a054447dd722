"""The security chip: AMD's secure processor and the firmware on it.

This floor owns the mailbox, the command buffers and status codes of both
firmware interfaces, the platform and guest state machines, launch digests and
what proves them. It sees the machine only through ``SystemBus``, which it
defines and is handed. It knows no clock and no randomness of its own, and
imports nothing of ours but ``tio``.

Interfaces: SEV API specification (55766) and SEV-SNP firmware ABI (56860).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from psp.commands import LegacyCommand, SnpCommand
    from psp.firmware import SecurityProcessor
    from psp.launch_digest import LaunchDigest, PageType
    from psp.status import PspError, Status
    from psp.system_bus import CoreConfiguration, RmpEntry, SystemBus

__all__ = [
    "CoreConfiguration",
    "LaunchDigest",
    "LegacyCommand",
    "PageType",
    "PspError",
    "RmpEntry",
    "SecurityProcessor",
    "SnpCommand",
    "Status",
    "SystemBus",
]

_HOMES = {
    "CoreConfiguration": "system_bus",
    "LaunchDigest": "launch_digest",
    "LegacyCommand": "commands",
    "PageType": "launch_digest",
    "PspError": "status",
    "RmpEntry": "system_bus",
    "SecurityProcessor": "firmware",
    "SnpCommand": "commands",
    "Status": "status",
    "SystemBus": "system_bus",
}


def __getattr__(name: str) -> object:
    # Loaded on demand: whoever judges reports with ``psp.verifier`` runs nothing of the chip that makes them.
    if name not in _HOMES:
        raise AttributeError(f"module psp has no attribute {name}")
    return getattr(import_module(f"psp.{_HOMES[name]}"), name)
