"""What a relying party expects of a guest and its host; whatever is None is not looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from psp.verifier.product_line import PRODUCT_LINES
from psp.verifier.tcb_version import COMPONENTS, HIGHEST_LEVEL

NONCE_BYTES = 32
_SIZES = {
    "measurement": 48,
    "host_data": 32,
    "family_id": 16,
    "image_id": 16,
    "report_data": 64,
    "nonce": NONCE_BYTES,
}

_EACH = {"chip_ids": 64, "migration_agents": 32, "id_key_digests": 48, "author_key_digests": 48}


@dataclass(frozen=True, slots=True)
class Expectations:
    """A careful tenant's, unless told otherwise: no debugging, no migration agent, VMPL 0, a chip's own key.

    Components of a TCB go by the names in COMPONENTS; versions are (major, minor, build), times
    seconds since 1970. ValueError for a value of another size.
    """

    product: str | None = None
    chip_ids: frozenset[bytes] | None = None
    """The chips that are allowed, 64 bytes each."""
    vlek_allowed: bool = False
    csp_id: str | None = None
    """The provider whose VLEK it must be; a VCEK is no provider's."""
    masked_chip_id_allowed: bool = False
    crl_demanded: bool = False

    debug_allowed: bool = False
    migration_allowed: bool = False
    """Without a list of agents, whoever may be moved may have been made up by anybody's agent, or by itself."""
    migration_agents: frozenset[bytes] | None = None
    """Report ids of migration agents, 32 bytes each: a guest that may be moved must have one of them."""
    migration_agent: Expectations | None = None
    """What the migration agent of a guest that may be moved must prove itself, its measurement at least: the report
    beside the guest's, whose id the guest's names. One key signed both: of the same chip if that is a VCEK; a VLEK is
    that of all of its provider's chips, and then neither report tells one. Without, no such report is looked at."""
    policy: int | None = None
    policy_set: int = 0
    policy_clear: int = 0
    platform_set: int = 0
    platform_clear: int = 0
    vmpl: int | None = 0
    measurement: bytes | None = field(default=None, repr=False)
    host_data: bytes | None = None
    family_id: bytes | None = None
    image_id: bytes | None = None
    min_guest_svn: int = 0

    min_tcb: Mapping[str, int] | None = field(default=None, hash=False)
    """A floor for each component named; one that the product has not is never high enough."""
    pinned_tcb: Mapping[str, int] | None = field(default=None, hash=False)
    """What is reported of each component named, and nothing above it: a certificate that was pinned, in other words."""
    min_launch_tcb: Mapping[str, int] | None = field(default=None, hash=False)
    """A floor, as ``min_tcb``, for the firmware that launched the guest."""
    min_firmware: tuple[int, int, int] | None = None
    provisional_allowed: bool = True
    """Whether what runs may be newer than what is committed."""
    mitigations: int = 0
    """Bits of version 5's current mitigation vector."""

    report_data: bytes | None = None
    nonce: bytes | None = None
    channel_key: bytes | None = None
    """The public key, as sent, whose digest binds a channel to the report."""
    nonce_expires: int | None = None

    id_key_digests: frozenset[bytes] | None = None
    author_key_digests: frozenset[bytes] | None = None

    def __post_init__(self) -> None:
        for name, size in _SIZES.items():
            value = getattr(self, name)
            if value is not None and len(value) != size:
                raise ValueError(f"{name}: expected {size} bytes, got {len(value)}")
        for name, size in _EACH.items():
            for value in getattr(self, name) or ():
                if len(value) != size:
                    raise ValueError(f"{name}: expected {size} bytes each, got {len(value)}")
        for name in ("min_tcb", "pinned_tcb", "min_launch_tcb"):
            for component, level in (getattr(self, name) or {}).items():
                if component not in COMPONENTS or not 0 <= level <= HIGHEST_LEVEL:
                    raise ValueError(f"{name}: expected levels of {', '.join(COMPONENTS)}, got {component}={level}")
        if self.migration_agent is not None and self.migration_agent.measurement is None:
            raise ValueError("migration_agent: expected a measurement, got none")
        if self.product is not None and self.product not in PRODUCT_LINES:
            raise ValueError(f"product: expected one of {', '.join(PRODUCT_LINES)}, got {self.product}")
