"""The security chip: AMD's secure processor and the firmware on it.

This floor owns the mailbox, the command buffers and status codes of both
firmware interfaces, the platform and guest state machines, launch digests and
what proves them. It sees the machine only through ``SystemBus``, which it
defines and is handed. It knows no clock and no randomness of its own, and
imports nothing of ours but ``tio``.

Interfaces: SEV API specification (55766) and SEV-SNP firmware ABI (56860).
"""

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
