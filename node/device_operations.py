"""Operations on the registers of devices: a guest's loads and stores, and how its hypervisor passes them on."""

from __future__ import annotations

from dataclasses import dataclass

# Of a guest's vCPU. Addresses are guest-physical.


@dataclass(frozen=True, slots=True)
class MmioLoad:
    """Load 1, 2, 4 or 8 bytes where no memory is but a device may be. Answer: int, all ones if none is; or a Fault.

    With encrypted registers #VC, as for every intercepted instruction.
    """

    gpa: int
    length: int = 4


@dataclass(frozen=True, slots=True)
class MmioStore:
    """Store 1, 2, 4 or 8 bytes where no memory is but a device may be. Answer: None, or a Fault as of ``MmioLoad``."""

    gpa: int
    value: int
    length: int = 4


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
