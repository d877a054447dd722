"""What a responder is asked about and only its device knows: keys, certificates, measurements, its own protocols."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tio.spdm.algorithms import Aead, AeadAlgorithm, BaseAsym, BaseHash, DheGroup
from tio.spdm.capabilities import Capability
from tio.spdm.codes import Version
from tio.spdm.connection_messages import VendorDefinedRequest
from tio.spdm.measurement import Measurement
from tio.spdm.negotiation import Offer
from tio.spdm.signing import Signer

TEE_IO_CAPABILITIES = (
    Capability.CERT
    | Capability.CHAL
    | Capability.MEAS_SIG
    | Capability.MEAS_FRESH
    | Capability.ENCRYPT
    | Capability.MAC
    | Capability.KEY_EX
    | Capability.HBEAT
    | Capability.KEY_UPD
)
"""What a device for confidential guests has; a handshake in the clear, PSK and chunks are extras."""

SEV_TIO_OFFER = Offer(
    asym=(BaseAsym.RSASSA_3072, BaseAsym.ECDSA_P256, BaseAsym.ECDSA_P384),
    hashes=(BaseHash.SHA_256, BaseHash.SHA_384),
    dhe=(DheGroup.SECP_256_R1, DheGroup.SECP_384_R1),
    aead=(Aead.AES_128_GCM, Aead.AES_256_GCM),
)
"""The algorithms that SEV-TIO's status words have numbers for."""


@dataclass(frozen=True, slots=True)
class CertificateSlot:
    """A slot's certificates, DER, root first, and the key of the last one."""

    certificates: tuple[bytes, ...]
    signer: Signer = field(repr=False)


@dataclass(frozen=True, slots=True)
class VendorSession:
    """The session in which a vendor-defined request came."""

    session_id: int
    encrypted: bool
    """Whether nobody on the way reads what is said in it."""
    cipher: AeadAlgorithm


Vendor = Callable[[VendorSession | None, VendorDefinedRequest], bytes | None]
"""Answers a vendor-defined request of a session (None: of none): the payload, or None for a protocol it has not."""


def _no_psk(_hint: bytes) -> None:
    return None


def _no_vendor(_session: VendorSession | None, _request: VendorDefinedRequest) -> None:
    return None


def _nobody(_session_id: int) -> None:
    """Hear nothing."""


@dataclass(frozen=True, slots=True)
class Personality:
    """One device."""

    slots: Mapping[int, CertificateSlot]
    """By slot number, 0 to 7; slot 0 is the factory's."""
    measurements: Callable[[], Sequence[Measurement]]
    """What the device measures when it is asked, in the order of the index."""
    psk: Callable[[bytes], bytes | None] = field(default=_no_psk, repr=False)
    """The key that goes with a hint, None for a hint that names none."""
    vendor: Vendor = _no_vendor
    ended: Callable[[int], None] = _nobody
    """Hears of each session that is over, however it ended."""


@dataclass(frozen=True, slots=True)
class ResponderSettings:
    """How a responder is built. Raises ValueError for sizes that no record can carry."""

    versions: tuple[Version, ...] = (Version.V1_2, Version.V1_3)
    capabilities: Capability = TEE_IO_CAPABILITIES
    offer: Offer = field(default_factory=Offer)
    ct_exponent: int = 20
    """2^20 us, the second that DOE allows for any answer."""
    data_transfer_bytes: int = 0x1200
    max_message_bytes: int = 0x1200
    most_sessions: int = 4
    heartbeat_s: int = 0
    """How often a session must be heard of; 0 asks for no heartbeats."""
    slow: frozenset[int] = frozenset()
    """Requests that are answered with ResponseNotReady first."""
    psk_salt_ones: bool = True
    """Whether 1.3 extracts a PSK with a salt of FF bytes, as DMTF's library does; known from there only."""

    def __post_init__(self) -> None:
        if not 42 <= self.data_transfer_bytes <= min(self.max_message_bytes, 0xFF00):
            raise ValueError(f"data_transfer_bytes: expected 42 to 0xff00, found {self.data_transfer_bytes:#x}")
