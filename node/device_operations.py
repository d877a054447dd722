"""Operations on devices: a guest's loads and stores of registers, its hypervisor's, and a host's on its slots."""

from __future__ import annotations

from dataclasses import dataclass

# Of a guest's vCPU. Addresses are guest-physical.


@dataclass(frozen=True, slots=True)
class MmioLoad:
    """Load 1, 2, 4 or 8 bytes where no memory is but a device may be; ``private`` is the C-bit.

    Where nested tables lead to the registers of a card in a slot these are loaded, by a private load of an SNP guest
    with the T bit, if the RMP says that the page is the guest's; what no function answers or admits reads ones.
    Elsewhere the hypervisor answers, or with encrypted registers #VC is raised, as for every intercepted instruction.
    A private load is never answered so: it is a nested page fault. Answer: int; or a Fault.
    """

    gpa: int
    length: int = 4
    private: bool = False


@dataclass(frozen=True, slots=True)
class MmioStore:
    """Store 1, 2, 4 or 8 bytes; otherwise as ``MmioLoad``. Answer: None, or a Fault."""

    gpa: int
    value: int
    length: int = 4
    private: bool = False


# Of the hypervisor.


@dataclass(frozen=True, slots=True)
class NicRead:
    """Load from the registers of a VM's network card, that of one vCPU. Answer: int, all ones without a card."""

    vm: str
    vcpu: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class NicWrite:
    """Store to the registers of a VM's network card; doorbells send what is in its queue. Answer: None."""

    vm: str
    vcpu: int
    offset: int
    value: int
    length: int


@dataclass(frozen=True, slots=True)
class DevicesTold:
    """Tell the host what a VM has written to ``node.device_notice``'s register. Answer: None."""

    vm: str
    value: int


@dataclass(frozen=True, slots=True)
class MmioRead:
    """Load 1, 2, 4 or 8 bytes at their own alignment from a device's registers, by system-physical address.

    The IOMMU's take 8 alone. Answer: int, all ones where a root port is but no function answers; or a Fault where
    nothing is.
    """

    address: int
    length: int = 8


@dataclass(frozen=True, slots=True)
class MmioWrite:
    """Store to a device's registers; otherwise as ``MmioRead``. Answer: None, or a Fault, also of the RMP."""

    address: int
    value: int
    length: int = 8


@dataclass(frozen=True, slots=True)
class ConfigRead:
    """Load 1, 2 or 4 bytes from the configuration space of a function, named by its requester id.

    Answer: int, all ones where there is none.
    """

    requester: int
    offset: int
    width: int = 4


@dataclass(frozen=True, slots=True)
class ConfigWrite:
    """Store to a configuration space; what no function takes is lost. Answer: None."""

    requester: int
    offset: int
    value: int
    width: int = 4


@dataclass(frozen=True, slots=True)
class ConfigIn:
    """Load at most ``MOST_WORDS`` double words from one register, each followed by a store of zero to it.

    So the read mailbox of a DOE instance wants it. Answer: bytes.
    """

    requester: int
    offset: int
    words: int


@dataclass(frozen=True, slots=True)
class ConfigOut:
    """Store at most ``MOST_WORDS`` double words to one register, one after another. Answer: None."""

    requester: int
    offset: int
    data: bytes


MOST_WORDS = 1 << 15
"""Of one run of configuration accesses. The longest object of DOE takes several; firmware's are a few KiB."""


@dataclass(frozen=True, slots=True)
class CardUpdate:
    """Bring other firmware to the card behind a root port, as its maker's tool does. Answer: None.

    ``image`` stands for its bits. Nothing tells the host whether a locked card minds.
    """

    port: int
    version: str
    security_version: int
    image: bytes = b""


@dataclass(frozen=True, slots=True)
class CardDebug:
    """Have the card behind a root port let somebody look inside, until it is reset. Answer: None."""

    port: int


@dataclass(frozen=True, slots=True)
class DeviceRead:
    """Have the device in a slot load at most ``MOST_BYTES``. Answer: bytes, or a Fault if its request was refused.

    The device acts under its slot's requester id, which nobody can choose. ``iova`` is what it
    puts on the bus; what that means is the IOMMU's to say.
    """

    slot: int
    iova: int
    length: int


@dataclass(frozen=True, slots=True)
class DeviceWrite:
    """Have the device in a slot store to memory. Answer: None, also if the store was refused: nobody tells a device."""

    slot: int
    iova: int
    data: bytes
