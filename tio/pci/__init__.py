"""PCIe functions: configuration space, memory in BARs, MSI-X, and what of it a TDI reports and lets in.

Everything here is the host's to program, and none of it is believed: a device says what was programmed, and a locked
interface says when that changes.
"""

from __future__ import annotations

from tio.pci.configuration_space import (
    Command,
    ConfigurationSpace,
    DeviceControl,
    ExtendedRegisters,
    Identity,
    MsixControl,
    MsixPlace,
    Register,
)
from tio.pci.doe_mailbox import DoeMailbox, MailboxControl, MailboxRegister, MailboxStatus
from tio.pci.function import Device, PciFunction, Region
from tio.pci.msix import MsixTable
from tio.pci.sr_iov import SrIovCapability, SrIovControl, SrIovRegister, VirtualPlace

__all__ = [
    "Command",
    "ConfigurationSpace",
    "Device",
    "DeviceControl",
    "DoeMailbox",
    "ExtendedRegisters",
    "Identity",
    "MailboxControl",
    "MailboxRegister",
    "MailboxStatus",
    "MsixControl",
    "MsixPlace",
    "MsixTable",
    "PciFunction",
    "Region",
    "Register",
    "SrIovCapability",
    "SrIovControl",
    "SrIovRegister",
    "VirtualPlace",
]
